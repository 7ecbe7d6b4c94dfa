"""Weights in and out: Meta's SAM2 checkpoints in, safetensors in and out, whole files or nothing.

Meta's key names become those of ``transformers`` (the renames follow its conversion script for SAM2). Pickles come in
through ``weights_only=True`` alone, and everything written is safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlesam.errors import DataError, WorkError

# Video memory and prompts for pictures of masks: SAM2 keeps them in the same file, a still image needs none of them.
_IGNORED = (
    "memory_attention.", "memory_encoder.", "mask_downsample.", "obj_ptr_proj.", "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial",
)  # fmt: skip

_RENAMES = (
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm(\d|_)", r".layer_norm\1"),
    (r"(backbone\.blocks\.\d+\.mlp|transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"(backbone\.blocks\.\d+\.mlp|transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.2\.", r"\1.proj_out."),
    (r"\.out_proj\.", ".o_proj."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (
        r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    (r"^no_mem_embed$", "no_memory_embedding"),
)


@dataclass(frozen=True)
class MetaLayout:
    """What a checkpoint in Meta's layout turned out to be."""

    size: str
    version: str
    tensors: dict[str, Tensor]
    """In the ``transformers`` names."""
    used: int
    ignored: tuple[str, ...]


def rename(key: str) -> str:
    """Meta's name of a tensor to its name in ``transformers``."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict inside a ``.pt`` file; nothing in it can run code."""
    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}; give the path of a SAM2 .pt file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut-off zip, a foreign file and a forbidden pickle raise different types
        if "GLOBAL" in str(error):  # the pickle names a class or a function
            why = "it holds more than tensors, which could run code; use a file with the state dict alone"
        else:
            why = "it is no PyTorch file, is damaged or its download was cut off; download the original file again"
        raise DataError(f"{path} cannot be read as weights: {why}.") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds no state dict; a SAM2 checkpoint is one, or {{'model': one}}.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def read_meta_checkpoint(path: Path) -> MetaLayout:
    """Read one of Meta's ``.pt`` files (2.0 or 2.1, any size and precision, with or without ``module.`` prefixes)."""
    state = load_pickle(path)
    ignored = tuple(k for k in state if k.startswith(_IGNORED))
    tensors = {rename(k): v.float() for k, v in state.items() if k not in ignored}
    points = [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    if all(p in tensors for p in points):
        tensors["prompt_encoder.point_embed.weight"] = torch.cat([tensors.pop(p) for p in points])
    position = tensors.get("prompt_encoder.shared_embedding.positional_embedding")
    if position is not None:
        tensors["shared_image_embedding.positional_embedding"] = position.clone()
    version = "2.1" if "no_obj_embed_spatial" in state else "2.0"
    return MetaLayout(_size_of(tensors, path), version, tensors, len(state) - len(ignored), ignored)


def _size_of(tensors: dict[str, Tensor], path: Path) -> str:
    if any(k.startswith(("image_encoder.blocks.", "image_encoder.patch_embed.")) for k in tensors):
        raise DataError(
            f"{path} is a checkpoint of the first SAM, whose image encoder is a plain ViT, and not of SAM2; use one of SAM2's, "
            "such as sam2.1_hiera_tiny.pt."
        )
    stem = tensors.get("vision_encoder.backbone.patch_embed.projection.weight")
    blocks = {k.split(".")[3] for k in tensors if k.startswith("vision_encoder.backbone.blocks.")}
    found = (0 if stem is None else stem.shape[0], len(blocks))
    sizes = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}
    if found not in sizes:
        raise DataError(
            f"{path} is no SAM2 checkpoint: its trunk has width {found[0]} and {found[1]} blocks, but SAM2 has "
            + ", ".join(f"{w} and {b} ({name})" for (w, b), name in sizes.items())
            + "."
        )
    return sizes[found]


def fit_or_raise(
    given: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    what: str,
    model: str = "this model",
    mend: str = "use the weights it was made with",
) -> None:
    """DataError that names the first few tensors that are missing, unexpected or of another shape."""
    refuse_misfit(
        [k for k in expected if k not in given],
        [k for k in given if k not in expected],
        [k for k in given if k in expected and tuple(given[k].shape) != expected[k]],
        what, model, mend,
    )  # fmt: skip


def refuse_misfit(
    missing: Collection[str], unexpected: Collection[str], misshapen: Collection[str], what: str, model: str, mend: str
) -> None:
    """DataError about ``what`` where there are any such names."""
    faults = []
    for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{label}: {', '.join(sorted(names)[:3])}{more}")
    if faults:
        raise DataError(f"{what} does not fit {model} ({'; '.join(faults)}); {mend}.")


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinity in them: one such weight makes every result NaN."""
    return [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]


def finite_or_raise(tensors: Mapping[str, Tensor], what: str) -> None:
    """DataError where a number is NaN or infinite."""
    bad = not_finite(tensors)
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise DataError(f"{what} holds NaN or infinity in {bad[0]}{more}; it is damaged, use the original weights.")


# ---------------------------------------------------------------- files


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: to a temporary name, to the disk, then over the old one."""
    with published(path, uuid.uuid4().hex) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all."""
    _save(path, tensors, {k: json.dumps(v) for k, v in metadata.items()})


def save_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as ``transformers`` and PEFT read them, whole or not at all."""
    _save(path, tensors, {"format": "pt"})


def _save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    with published(path, "writing") as temporary:  # one name, so that killed trainings leave no heap of large files
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=header)


@contextmanager
def published(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary name whose file takes the place of ``path``; where the block fails, ``path`` is left alone."""
    temporary = path.with_name(f".{path.name}.{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files private
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{path} cannot be written ({error}); make room or choose another place.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def load_plain(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, whoever wrote it."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({error}); it is missing or damaged.") from error


def load_metadata(path: Path) -> dict[str, object]:
    """What :func:`save_tensors` wrote beside the tensors, which are not read."""
    return load_tensors(path, "no tensor has this name")[1]


def load_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors whose name begins with ``prefix`` (which is cut off) and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            names: Iterable[str] = file.keys()
            tensors = {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({error}); it is missing or damaged.") from error
    return tensors, metadata
