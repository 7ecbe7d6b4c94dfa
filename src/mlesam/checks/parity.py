"""Whether this package computes with given SAM2 weights what ``transformers`` computes, and what was published of them.

The published scores are those that the script which converts Meta's files for ``transformers`` asserts
(``src/transformers/models/sam2/convert_sam2_to_hf.py`` in huggingface/transformers): three predicted IoUs for one point
in one picture, to 0.01.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import mlesam
from mlesam.checks.findings import Findings
from mlesam.checks.weights import WeightsFindings
from mlesam.errors import RequestError
from mlesam.model.foundation import FAMILIES, load_foundation
from mlesam.model.heads import MaskHead, fourier_position
from mlesam.model.sam2 import LoadedSam2
from mlesam.sensors.files import read_array

SIZES = ((64, 64), (256, 256), (128, 320), (320, 128))
"""Heights and widths of the random pictures: with and without padded windows, square, wide and tall."""
TOLERANCE = 1e-5
"""Largest difference of two float32 results, as a share of the largest value where that is above 1."""

PICTURE = "https://huggingface.co/ybelkada/segment-anything/resolve/main/assets/car.png"
POINT = (1000.0, 600.0)
"""x and y in pixels of the picture."""
SCORES = {
    ("2.1", "tiny"): (0.0316, 0.9647, 0.1029),
    ("2.1", "small"): (0.9664, 0.1494, 0.0456),
    ("2.1", "base_plus"): (0.0361, 0.9775, 0.1307),
    ("2.1", "large"): (0.9648, 0.0371, 0.1898),
    ("2.0", "tiny"): (0.0439, 0.9567, 0.1415),
    ("2.0", "small"): (0.9593, 0.1633, 0.0392),
    ("2.0", "base_plus"): (0.0423, 0.9815, 0.0897),
    ("2.0", "large"): (0.9514, 0.0535, 0.1787),
}
"""Published scores by version and size."""
SCORE_TOLERANCE = 1e-2
SAME_SCORE = 1e-4
"""Ours against those of ``transformers``. They are at the end of trunk, neck and decoder, where roundings have added up."""

Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Comparison:
    """One part on one random picture: the largest difference, and the largest value of ``transformers``."""

    part: str
    height: int
    width: int
    difference: float
    largest: float

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.largest)  # false for NaN


@dataclass
class ParityFindings(Findings):
    """Findings about parity, and everything that was measured, ready for JSON."""

    record: dict[str, Any] = field(default_factory=dict)


def check_parity(name: str, weights: WeightsFindings, image: Path | None, say: Say) -> ParityFindings:
    """Compare trunk, neck, mask decoder and, with a picture, scores.

    Args:
        name: what ``model.foundation`` may be. weights: what the check of its files found.
        image: the picture at ``PICTURE``. say: called with (what, value) as soon as something is known.

    Raises:
        DataError: weights or a picture that cannot be read. RequestError: a picture that the point is not in, or
            no SAM2.
    """
    findings = ParityFindings()
    picture = None if image is None else _picture(image)  # before the work, so that a wrong one is refused at once
    loaded = load_foundation(name)
    if not isinstance(loaded, LoadedSam2):
        raise RequestError(
            f"--parity compares this package's own loop over a SAM2 with transformers, and {name} is a "
            f"{FAMILIES[loaded.foundation.family]}, which transformers itself computes; give a SAM2."
        )
    foundation = loaded.foundation
    versions = {
        "mlesam": mlesam.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    say("versions", ", ".join(f"{what} {version}" for what, version in versions.items()))
    say("machine", platform.platform())
    say("foundation", f"sha256 {foundation.sha256} (trunk, neck and embeddings, as float32)")
    comparisons = []
    for comparison in compare(loaded, SIZES):
        comparisons.append(comparison)
        size = f"{comparison.width}x{comparison.height}"
        say(
            comparison.part,
            f"{size}: differs by {comparison.difference:.1e} at most, values up to {comparison.largest:.3g}",
        )
        if not comparison.equal:
            findings.fault(
                "parts that differ",
                f"the {comparison.part} differs from that of transformers by {comparison.difference:.1e} at {size}, more than "
                f"{TOLERANCE:g} of its values; report it together with this output.",
            )
    scored = None
    if image is None or picture is None:
        findings.note("scores", f"the published scores were not checked; give --image FILE with the picture {PICTURE}")
    else:
        scored = _check_scores(loaded, weights, picture, findings, say)
        scored["image_sha256"] = hashlib.sha256(image.read_bytes()).hexdigest()
    findings.record = {
        "checkpoint": os.path.basename(name) if Path(name).exists() else name,
        "commit": foundation.commit,
        "files": weights.files,
        "size": weights.size,
        "version": weights.version,
        "foundation_sha256": foundation.sha256,
        "versions": versions,
        "machine": platform.platform(),
        "tolerance": TOLERANCE,
        "comparisons": [{**_finite(asdict(c)), "equal": c.equal} for c in comparisons],
        "scores": scored,
        "faults": findings.faults,
        "notes": findings.notes,
        "verdict": findings.verdict,
    }
    return findings


# ---------------------------------------------------------------- part by part


@torch.no_grad()
def compare(loaded: LoadedSam2, sizes: Sequence[tuple[int, int]]) -> Iterator[Comparison]:
    """Trunk, neck and mask decoder on two random pictures of each size, all parts on identical inputs."""
    sam2, foundation = loaded.sam2, loaded.foundation
    decoder = sam2.mask_decoder
    head = MaskHead(decoder, decoder.num_mask_tokens)
    head.mask_tokens.weight.copy_(decoder.mask_tokens.weight)  # without the noise that tells copies apart
    draw = torch.Generator().manual_seed(0)
    for height, width in sizes:
        images = torch.randn(2, 3, height, width, generator=draw)
        stages = sam2.vision_encoder.backbone(images).intermediate_hidden_states
        maps = list(sam2.vision_encoder(images).fpn_hidden_states)
        for part, ours, theirs in (
            ("trunk", foundation.stages(images), stages),
            ("neck", foundation.pyramid(list(stages)), maps),
            ("mask decoder", [head(maps, foundation)], [_masks(loaded, maps)]),
        ):
            differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
            largest = [float(b.abs().max()) for b in theirs]
            worst = max(zip(differences, largest, strict=True), key=lambda pair: (pair[0] / max(1.0, pair[1]), pair[1]))
            yield Comparison(part, height, width, *worst)


def _masks(loaded: LoadedSam2, maps: list[Tensor]) -> Tensor:
    """Logits (B, 4, H / 4, W / 4) of all mask tokens of ``Sam2MaskDecoder`` without a prompt."""
    sam2, decoder = loaded.sam2, loaded.sam2.mask_decoder
    fine, middle, coarse = maps
    encoder = sam2.prompt_encoder
    native = encoder.image_embedding_size
    encoder.image_embedding_size = (coarse.shape[-2], coarse.shape[-1])  # its grid of positions takes no other argument
    positions = sam2.get_image_wide_positional_embeddings()
    encoder.image_embedding_size = native
    decoder.dynamic_multimask_via_stability = False  # token 0 itself, not the best of the others
    inputs = {
        "image_embeddings": coarse + sam2.no_memory_embedding.reshape(1, -1, 1, 1),
        "image_positional_embeddings": positions.expand(len(coarse), -1, -1, -1),
        "sparse_prompt_embeddings": coarse.new_zeros(len(coarse), 1, 0, coarse.shape[1]),
        "dense_prompt_embeddings": encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        "high_resolution_features": [decoder.conv_s0(fine), decoder.conv_s1(middle)],
    }
    return torch.cat([decoder(multimask_output=several, **inputs)[0][:, 0] for several in (False, True)], dim=1)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without NaN and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


# ---------------------------------------------------------------- published scores


@torch.no_grad()
def scores(loaded: LoadedSam2, picture: np.ndarray) -> tuple[list[float], list[float]]:
    """Predicted IoUs of the three masks for the point in a picture (H, W, 3) of 8 bits.

    Returns:
        Those of ``Sam2Model``, and those through this package's trunk, neck, embeddings and positions.
    """
    sam2, foundation, decoder = loaded.sam2, loaded.foundation, loaded.decoder
    height, width = picture.shape[:2]
    side: Any = sam2.prompt_encoder.input_image_size  # 1024, but for models that were made for another size
    pixels = preprocess(picture, side)
    point = torch.tensor([[[[POINT[0] * side / width, POINT[1] * side / height]]]])
    label = torch.ones(1, 1, 1, dtype=torch.int64)
    theirs = sam2(pixel_values=pixels, input_points=point, input_labels=label).iou_scores
    fine, middle, coarse = foundation(pixels)
    ours = decoder(
        image_embeddings=coarse + foundation.no_memory,
        image_positional_embeddings=fourier_position(foundation.position, *coarse.shape[-2:]),
        sparse_prompt_embeddings=sam2.prompt_encoder(point, label, None, None)[0],
        dense_prompt_embeddings=foundation.no_mask,
        multimask_output=True,
        high_resolution_features=[decoder.conv_s0(fine), decoder.conv_s1(middle)],
    )[1]
    return theirs.flatten().tolist(), ours.flatten().tolist()


def preprocess(picture: np.ndarray, side: int) -> Tensor:
    """SAM2's input (1, 3, side, side): squashed to a square in 8 bits, then ImageNet statistics, as its processor does.

    The processor itself needs torchvision, which this package does without.
    """
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    image = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (image / 255 - mean) / std


def _picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    array = read_array(path)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
        raise RequestError(f"{path} is no 8-bit colour picture; --image takes {PICTURE}.")
    height, width = array.shape[:2]
    if width <= POINT[0] or height <= POINT[1]:
        raise RequestError(
            f"{path} is {width}x{height} pixels, and the point {POINT[0]:.0f}, {POINT[1]:.0f} is not in it; --image takes "
            f"{PICTURE}."
        )
    return array[..., :3]


def _check_scores(
    loaded: LoadedSam2, weights: WeightsFindings, picture: np.ndarray, findings: Findings, say: Say
) -> dict[str, Any]:
    say(
        "picture",
        f"{picture.shape[1]}x{picture.shape[0]}, computing its scores (minutes, with a large model on few cores)",
    )
    theirs, ours = scores(loaded, picture)
    say("scores", f"{_said(theirs)} by transformers, {_said(ours)} by this package")
    if not _close(theirs, ours, SAME_SCORE):
        findings.fault(
            "scores", f"the scores of this package differ from those of transformers by more than {SAME_SCORE:g}."
        )
    versions = [weights.version] if weights.version else ["2.1", "2.0"]
    published = {v: SCORES[v, weights.size] for v in versions if weights.size and (v, weights.size) in SCORES}
    for version, expected in published.items():
        say("published", f"{_said(expected)} for SAM {version} {weights.size}, to {SCORE_TOLERANCE:g}")
    met = [v for v, e in published.items() if _close(theirs, e, SCORE_TOLERANCE) and _close(ours, e, SCORE_TOLERANCE)]
    if not published:
        findings.note("scores", "no scores were published of these weights, so they were held against nothing")
    elif not met:
        findings.fault(
            "scores",
            f"the scores are not those published for SAM {' or '.join(published)} {weights.size}: the picture is not {PICTURE}, "
            "the weights are not Meta's own, or they were loaded wrongly.",
        )
    return {
        "point": list(POINT),
        "transformers": theirs,
        "mlesam": ours,
        "published": {version: list(expected) for version, expected in published.items()},
        "tolerance": SCORE_TOLERANCE,
        "met": met,
    }


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _said(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4f}" for v in values)
