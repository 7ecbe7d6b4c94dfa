"""What a foundation must give, and which ones there are.

A foundation is a pre-trained image model whose weights stay as they are: a trunk that mixes tokens through named linear
projections, to which experts add, and a feature pyramid. ``sam2.py`` and ``swin.py`` fill the contract in;
``tests/test_foundation_contract.py`` holds every foundation to it.

Shape letters: R rows (one per frame and sensor), H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from mlesam.config import PRESETS, RANDOM_PRESETS
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.model.experts import Project, plain
from mlesam.model.folder import model_type
from mlesam.model.hub import fetch_folder, is_hub_id

LEVEL_STRIDES = (4, 8, 16)
PROJECTIONS = ("q", "k", "v", "proj", "mlp_in", "mlp_out")
After = Callable[[int, Tensor], tuple[Tensor | slice, Tensor] | None]
"""Called after each of the four stages with its number (from 1) and its map (R, C, H, W), and before the first one with 0 and the
embedded patches. What it returns are the rows that go on and their maps, from which the pass goes on; None: all as they are.
Where no row goes on, the pass ends and gives no maps."""
FAMILIES = {"sam2": "Segment Anything Model 2", "swin": "Swin Transformer"}
"""What the foundations of each family are called."""
MODEL_TYPES = {"sam2": "sam2", "sam2_video": "sam2", "swin": "swin"}
"""The family of each model type that a ``config.json`` may name. No other code can be named there."""


class Foundation(nn.Module, ABC):
    """The contract. A family's class gives:

    - :meth:`forward`: three maps of ``width`` channels at strides 4, 8 and 16. No row depends on another. ``project`` takes the
      place of each named projection of each block, once, alone or fused with others of the same x; and of each stage's lateral
      to the pyramid, where these are plain projections. The first dimension of x is a whole multiple of the rows, in the order of
      the rows (a row may have become windows side by side). Calls in several threads do not meet.
    - :attr:`depth` and :meth:`weight`: the blocks' linear projections, by the names in ``PROJECTIONS``.
    - :attr:`fused`, :attr:`stage_levels` and :meth:`lateral`, from which experts are merged for inference.
    - :attr:`tile`: sides that fill whole windows.
    - ``no_memory``, ``no_mask``, ``position``: what the mask head adds to the stride-16 map, see below.
    - every parameter frozen but those of ``added``. While it is frozen it runs in evaluation mode, so ``added`` has no dropout.

    Beside it, its loader gives a mask decoder of ``width`` channels that the mask head starts from (:class:`Loaded`).

    Attributes:
        family: key of ``FAMILIES``. stride: sides of the images must be multiples of it.
        width: C of the maps.
        added: first parts of the names of tensors that the weights do not bring, such as a neck drawn at random. They are
            trained and saved with the adapter. SAM2 brings everything.
        no_memory, no_mask: (1, C, 1, 1), added to the stride-16 map before mask decoding.
        position: (2, C / 2), random Fourier matrix of the decoder's positional encoding.
        source: where the weights came from. commit: the Hub's commit, where they came from there.
        checkpointing: whether a pass with gradients keeps only what goes into its blocks, and computes them again for the
            gradients.
    """

    family: ClassVar[str]
    stride: ClassVar[int]
    added: ClassVar[tuple[str, ...]] = ()
    no_memory: Tensor
    no_mask: Tensor
    position: Tensor

    def __init__(self, source: str, commit: str | None, width: int) -> None:
        super().__init__()
        self.source, self.commit, self.width = source, commit, width
        self.checkpointing = False

    def run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """``part(*inputs)``, again for the gradients where that is wanted."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    @abstractmethod
    def forward(self, images_RCHW: Tensor, project: Project = plain, after: After | None = None) -> list[Tensor]:
        """Run trunk and neck on stacked rows.

        Args:
            images_RCHW: (R, 3, H, W), sides multiples of ``stride``, rows of one sensor side by side.
            project: computes each projection that an expert may add to; without it the foundation runs alone.
            after: called after each stage; may leave rows behind and change the others.

        Returns:
            Maps (R, C, H / s, W / s) for the strides 4, 8 and 16; none where ``after`` left all rows behind.
        """

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def weight(self, index: int, name: str) -> Tensor:
        """(outputs, inputs), a projection's weight or its part of a fused one; writing into it changes the trunk."""

    @property
    @abstractmethod
    def fused(self) -> tuple[tuple[str, ...], ...]:
        """Which projections of a block ``forward`` computes together."""

    @property
    def stage_levels(self) -> tuple[int, ...] | None:
        """The pyramid level that each stage's lateral goes to, alone; None where one goes to several."""
        return 0, 1, 2, 2

    @abstractmethod
    def lateral(self, stage: int) -> tuple[Tensor, Tensor]:
        """Weight (C, stage's width) and bias (C,) of a stage's projection to the pyramid."""

    @property
    @abstractmethod
    def tile(self) -> int:
        """Side in pixels, a multiple of ``stride``; at multiples of it no block pads its windows, so that memory and time grow
        with the number of pixels alone."""

    @property
    def projections(self) -> list[dict[str, tuple[int, int]]]:
        """Widths of each block's linear projections, see :data:`mlesam.model.experts.Projections`."""
        shapes = ({name: self.weight(i, name).shape for name in PROJECTIONS} for i in range(self.depth))
        return [{name: (inputs, outputs) for name, (outputs, inputs) in block.items()} for block in shapes]

    def adds(self, name: str) -> bool:
        """Whether a tensor of the state dict belongs to what is ``added``."""
        return name.split(".")[0] in self.added

    @property
    def sha256(self) -> str:
        """Hash of the weights it was made of, as float32: the same for every form of a checkpoint, without ``added``."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if not self.adds(name):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()


def going_on(after: After | None, stage: int, map_RCHW: Tensor, earlier: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A stage's map and those of the stages before it, of the rows that go on."""
    left = None if after is None else after(stage, map_RCHW)
    if left is None:
        return map_RCHW, earlier
    rows, kept = left
    return kept, [output[rows] for output in earlier]


@dataclass(frozen=True)
class Loaded:
    """A foundation in float32, and the decoder that the mask head starts from.

    Attributes:
        decoder_is_drawn: it comes from the seed, so there is nothing in it worth freezing.
    """

    foundation: Foundation
    decoder: Sam2MaskDecoder
    decoder_is_drawn: bool


def decoder_config(width: int) -> Sam2MaskDecoderConfig:
    """A mask decoder for maps of ``width`` channels, in SAM2's proportions."""
    sizes = {"hidden_size": width, "mlp_dim": 8 * width, "iou_head_hidden_dim": width}
    return Sam2MaskDecoderConfig(**sizes, attn_implementation="sdpa")  # type: ignore[call-arg]


def load_foundation(name: str, revision: str | None = None, seed: int = 0) -> Loaded:
    """Build or load a foundation.

    Args:
        name: ``nano``, another preset (random weights drawn from ``seed``), a Hub id such as ``facebook/sam2.1-hiera-tiny``, a
            ``transformers`` folder, or one of Meta's ``.pt`` files.
        revision: branch, tag or commit of the Hub repository.
        seed: draws what the weights do not bring.

    Raises:
        RequestError: a name that is none of these. DataError: weights that are damaged, incomplete or another model's.
    """
    from mlesam.model import sam2, swin  # they build on this file

    if name in RANDOM_PRESETS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = sam2.Sam2Model(sam2.preset_config(name)).eval()
        return sam2.LoadedSam2.of(drawn, f"{name} (random weights, seed {seed})")
    if name == "nano":
        return sam2.LoadedSam2.of(sam2.load_folder(sam2.NANO, name), "nano (pre-trained)")
    if name.endswith((".pt", ".pth")):
        return sam2.LoadedSam2.of(sam2.load_meta_checkpoint(Path(name)), os.path.basename(name))
    commit = None
    if Path(name).is_dir():
        folder, source = Path(name), name
    elif is_hub_id(name):
        folder = fetch_folder(name, revision)
        commit, source = folder.name, name if revision is None else f"{name}@{revision}"
    else:
        raise RequestError(
            f"model.foundation {name!r} is no preset, Hub id (owner/name), transformers folder or .pt file"
            f"{did_you_mean(name, PRESETS)}"
        )
    kind = model_type(folder, name)
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise DataError(f"{name} is a {kind!r} model by its config.json; a foundation is one of {known}.")
    if MODEL_TYPES[kind] == "swin":
        return swin.load_folder(folder, name, source, commit, seed)
    return sam2.LoadedSam2.of(sam2.load_folder(folder, name), source, commit)
