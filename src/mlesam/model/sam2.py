"""SAM2 as a foundation: presets, checkpoints, and the loop over the trunk's blocks.

The modules and their names are those of ``transformers`` (``Sam2Model``). The loop is ours, so that all present sensors
go through as one stacked pass and each expert acts on its own rows.

Shape letters: R rows (one per frame and sensor), H W pixels or tokens, C channels, N windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2VisionNeck

from mlesam.model.checkpoints import finite_or_raise, fit_or_raise, read_meta_checkpoint
from mlesam.model.experts import LATERAL, Project, plain
from mlesam.model.folder import Fit, read_folder
from mlesam.model.foundation import After, Foundation, Loaded, decoder_config, going_on

NANO = Path(__file__).resolve().parents[1] / "weights" / "nano"
"""The pre-trained nano foundation, a ``transformers`` folder. Its card says how it was made."""

# width, blocks, heads, windows, global blocks, positional background, neck width (SAM2's model definitions; nano is ours:
# windows that divide its maps at 256 pixels, and one block with global attention, without which SAM2's code fails).
_SIZES: dict[str, tuple[int, list[int], list[int], list[int], list[int], list[int], int]] = {
    "nano": (48, [1, 2, 3, 1], [1, 2, 4, 8], [8, 8, 8, 4], [5], [7, 7], 128),
    "tiny": (96, [1, 2, 7, 2], [1, 2, 4, 8], [8, 4, 14, 7], [5, 7, 9], [7, 7], 256),
    "small": (96, [1, 2, 11, 2], [1, 2, 4, 8], [8, 4, 14, 7], [7, 10, 13], [7, 7], 256),
    "base_plus": (112, [2, 3, 16, 3], [2, 4, 8, 16], [8, 4, 14, 7], [12, 16, 20], [14, 14], 256),
    "large": (144, [2, 6, 36, 4], [2, 4, 8, 16], [8, 4, 16, 8], [23, 33, 43], [7, 7], 256),
}


HUB_PRESETS = {
    f"facebook/{version}-hiera-{size.replace('_', '-')}": size
    for version in ("sam2", "sam2.1") for size in ("tiny", "small", "base_plus", "large")
}  # fmt: skip
"""The published SAM2 on the Hub, and the preset that has the same shapes."""


def preset_config(name: str) -> Sam2Config:
    """The ``transformers`` configuration of a preset."""
    width, blocks, heads, windows, global_blocks, background, neck = _SIZES[name.removesuffix("-random")]
    widths = [width * 2**i for i in range(4)]
    trunk = Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=heads[0],
        blocks_per_stage=blocks,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=heads,
        window_size_per_stage=windows,
        global_attention_blocks=global_blocks,
        window_positional_embedding_background_size=background,
    )
    vision = Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=widths[::-1], fpn_hidden_size=neck)
    # `transformers` builds the prompt encoder's point table at the neck's width, and the decoder likewise.
    prompts = {"hidden_size": neck}
    return Sam2Config(vision_config=vision, mask_decoder_config=decoder_config(neck), prompt_encoder_config=prompts)


KEPT_SIZES = 4
"""Sizes of maps whose positional embeddings are kept: sensors at half the resolution have one of their own."""


class Sam2Foundation(Foundation):
    """SAM2's trunk and neck, with what the mask head starts from.

    Attributes:
        trunk, neck: ``transformers`` modules, called block by block through :meth:`forward`.
        stride: of the positional embedding, which is tiled in 8x8 windows at stride 4.
    """

    family = "sam2"
    stride = 32
    trunk: Sam2HieraDetModel
    neck: Sam2VisionNeck

    def __init__(self, sam2: Sam2Model, source: str, commit: str | None = None) -> None:
        width = sam2.no_memory_embedding.numel()
        super().__init__(source, commit, width)
        self.trunk = sam2.vision_encoder.backbone
        self.neck = sam2.vision_encoder.neck
        self.register_buffer("no_memory", sam2.no_memory_embedding.detach().reshape(1, width, 1, 1).clone())
        self.register_buffer(
            "no_mask", sam2.prompt_encoder.no_mask_embed.weight.detach().reshape(1, width, 1, 1).clone()
        )
        self.register_buffer("position", sam2.shared_image_embedding.positional_embedding.detach().clone())
        self.requires_grad_(False)
        self._positions: dict[Any, Tensor] = {}

    @property
    def depth(self) -> int:
        return len(self.trunk.blocks)

    @property
    def tile(self) -> int:
        sides, stride = [self.stride], 4
        blocks: Any = self.trunk.blocks
        for block in blocks:
            sides.append(block.window_size * stride or stride)  # 0: global attention, which needs no window
            stride *= 2 if block.query_stride else 1
        return math.lcm(*sides)

    @property
    def fused(self) -> tuple[tuple[str, ...], ...]:
        return ("q", "k", "v"), ("proj",), ("mlp_in",), ("mlp_out",)

    @property
    def stage_levels(self) -> tuple[int, ...] | None:
        return (0, 1, 2, 2) if {0, 1}.isdisjoint(self.neck.fpn_top_down_levels or ()) else None

    def lateral(self, stage: int) -> tuple[Tensor, Tensor]:
        conv: Any = self.neck.convs[3 - stage]
        return conv.weight.flatten(1), conv.bias

    def weight(self, index: int, name: str) -> Tensor:
        block: Any = self.trunk.blocks[index]
        if name in "qkv":
            return block.attn.qkv.weight.chunk(3)["qkv".index(name)]
        layer = {"proj": block.attn.proj, "mlp_in": block.mlp.proj_in, "mlp_out": block.mlp.proj_out}[name]
        return layer.weight

    def forward(self, images_RCHW: Tensor, project: Project = plain, after: After | None = None) -> list[Tensor]:
        stages = self.stages(images_RCHW, project, after)
        return self.pyramid(stages, project) if stages else []

    def stages(self, images_RCHW: Tensor, project: Project = plain, after: After | None = None) -> list[Tensor]:
        """The trunk's four stage outputs, (R, H, W, C) at strides 4, 8, 16 and 32; none where no row goes on."""
        x_RHWC = self.trunk.patch_embed(images_RCHW)
        x_RHWC = x_RHWC + self.position_embedding(x_RHWC.shape[1], x_RHWC.shape[2])
        ends = set(self.trunk.stage_ends)
        outputs: list[Tensor] = []
        x_RCHW, _ = going_on(after, 0, x_RHWC.permute(0, 3, 1, 2), outputs)
        if not len(x_RCHW):
            return []
        x_RHWC = x_RCHW.permute(0, 2, 3, 1)
        for index, block in enumerate(self.trunk.blocks):
            x_RHWC = self.run(run_block, block, x_RHWC, index, project)
            if index in ends:
                x_RCHW, outputs = going_on(after, len(outputs) + 1, x_RHWC.permute(0, 3, 1, 2), outputs)
                if not len(x_RCHW):
                    return []
                x_RHWC = x_RCHW.permute(0, 2, 3, 1)
                outputs.append(x_RHWC)
        return outputs

    def position_embedding(self, height: int, width: int) -> Tensor:
        """(1, height, width, C), kept for the last sizes while the trunk is frozen: making it is a bicubic enlargement."""
        parts = (self.trunk.pos_embed, self.trunk.pos_embed_window)
        if any(p.requires_grad for p in parts) or torch.compiler.is_compiling():
            return self.trunk._get_pos_embed((height, width))
        # Weights made in inference mode count no changes.
        key = (height, width, *((p.data_ptr(), p.is_inference() or p._version, p.dtype, p.device) for p in parts))
        found = self._positions.get(key)
        if found is None:
            found = self.trunk._get_pos_embed((height, width))
            latest = list(self._positions.items())[1 - KEPT_SIZES :]
            self._positions = {**dict(latest), key: found}  # a new one: other threads may be reading
        return found

    def pyramid(self, stages: list[Tensor], project: Project = plain) -> list[Tensor]:
        """SAM2's feature pyramid: laterals everywhere, and the stride-32 map added top-down where the config says so.

        The 1x1 convolutions run as matrix products on channels-last maps, which is what the trunk delivers.
        """
        maps: list[Tensor] = []
        above: Tensor | None = None
        for level in range(len(stages) - 1, -1, -1):
            (lateral,) = project(self.depth + level, (LATERAL,), stages[level], *self.lateral(level))
            lateral = lateral.permute(0, 3, 1, 2)
            if above is not None and level in (self.neck.fpn_top_down_levels or ()):
                lateral = lateral + F.interpolate(above.float(), scale_factor=2.0, mode="nearest").to(lateral.dtype)
            above = lateral
            maps.append(lateral)
        return maps[:0:-1]  # strides 4, 8, 16; the stride-32 map has done its work


def run_block(block: Any, x_RHWC: Tensor, index: int, project: Project) -> Tensor:
    """One block of Hiera (``Sam2MultiScaleBlock``), its linear projections through ``project``."""
    x = block.layer_norm1(x_RHWC)
    shortcut = x_RHWC if block.dim == block.dim_out else _pool(block.proj(x), block.query_stride)
    x = shortcut + _attend(block.attn, x, block.window_size, index, project)
    return x + _mlp(block.mlp, block.layer_norm2(x), index, project)


def _mlp(mlp: Any, x: Tensor, index: int, project: Project) -> Tensor:
    (hidden,) = project(index, ("mlp_in",), x, mlp.proj_in.weight, mlp.proj_in.bias)
    return project(index, ("mlp_out",), mlp.activation(hidden), mlp.proj_out.weight, mlp.proj_out.bias)[0]


def _attend(attention: Any, x_RHWC: Tensor, window: int, index: int, project: Project) -> Tensor:
    """Attention inside windows of ``window`` x ``window`` tokens, or over the whole map where it is 0."""
    qkv, stride = attention.qkv, attention.query_stride or (1, 1)
    height, width = x_RHWC.shape[1:3]
    if window and (height % window or width % window):
        query, key, value = project(index, ("q", "k", "v"), x_RHWC, qkv.weight, qkv.bias)
        bands = []
        for rows, tall in _spans(height, window):
            band = []
            for columns, wide in _spans(width, window):
                q, k, v = (_windows(t[:, rows, columns], tall, wide) for t in (query, key, value))
                out = _scaled(attention, q, k, v, beyond=window * window - tall * wide)
                region = ((rows.stop - rows.start) // stride[0], (columns.stop - columns.start) // stride[1])
                band.append(_unwindowed(out, *region))
            bands.append(torch.cat(band, dim=2))
        out = torch.cat(bands, dim=1)
    else:
        x_NHWC = _windows(x_RHWC, window or height, window or width)
        query, key, value = project(index, ("q", "k", "v"), x_NHWC, qkv.weight, qkv.bias)
        out = _scaled(attention, query, key, value)
        out = _unwindowed(out, height // stride[0], width // stride[1])
    return project(index, ("proj",), out, attention.proj.weight, attention.proj.bias)[0]


def _spans(side: int, window: int) -> list[tuple[slice, int]]:
    """What whole windows fill of a side, and what is left for a smaller one at the end; each with the window's own side."""
    whole = side - side % window
    spans = [(slice(0, whole), window)] if whole else []
    return [*spans, (slice(whole, side), side - whole)] if whole < side else spans


def _scaled(attention: Any, query: Tensor, key: Tensor, value: Tensor, beyond: int = 0) -> Tensor:
    """Scaled dot-product attention of windows, each (N, H, W, C), whose queries are pooled where the block does so.

    SAM2 fills windows that reach beyond the map with zeros *behind* the norm, and lets every token attend to them: their key and
    value are the projections' biases. As they are all the same, one of them does, whose score is raised by the logarithm of
    their number, ``beyond``; and nothing is computed for their own queries, which are cut off in the end.
    """
    heads = attention.num_attention_heads
    if attention.query_stride:
        query = _pool(query, attention.query_stride)

    def split(t: Tensor) -> Tensor:
        return t.reshape(len(t), -1, heads, t.shape[-1] // heads).transpose(1, 2)

    q, k, v = split(query), split(key), split(value)
    raised, queries = None, q.shape[2]
    if beyond:
        _, *biases = attention.qkv.bias.to(k.dtype).chunk(3)
        k, v = (
            torch.cat([t, bias.view(1, heads, 1, -1).expand(len(t), -1, -1, -1)], dim=2)
            for t, bias in zip((k, v), biases, strict=True)
        )
        # A row for every query, and never a single one: OpenVINO (2026.4) reads past the end of a single row in bfloat16.
        q = q if queries > 1 else q.expand(-1, -1, 2, -1)
        raised = F.pad(k.new_zeros(1, 1, q.shape[2], k.shape[2] - 1), (0, 1), value=math.log(beyond))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=raised, scale=attention.scale)[:, :, :queries]
    return out.transpose(1, 2).reshape(query.shape)


def _pool(x_NHWC: Tensor, stride: Any) -> Tensor:
    pooled = F.max_pool2d(x_NHWC.permute(0, 3, 1, 2), kernel_size=tuple(stride), stride=tuple(stride))
    return pooled.permute(0, 2, 3, 1)


def _windows(x_RHWC: Tensor, tall: int, wide: int) -> Tensor:
    """(R, H, W, C) to (R * windows, tall, wide, C); the sides are multiples of the windows'."""
    rows, height, width, channels = x_RHWC.shape
    if (height, width) == (tall, wide):
        return x_RHWC
    x = x_RHWC.reshape(rows, height // tall, tall, width // wide, wide, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, tall, wide, channels)


def _unwindowed(x_NHWC: Tensor, height: int, width: int) -> Tensor:
    """The opposite: windows side by side to maps of (R, height, width, C)."""
    tall, wide, channels = x_NHWC.shape[1:]
    if (height, width) == (tall, wide):
        return x_NHWC
    x = x_NHWC.view(-1, height // tall, width // wide, tall, wide, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, height, width, channels)


# ---------------------------------------------------------------- building and loading

# One matrix under two names: before version 5, `transformers` tied the second to the first and stored one of them.
_POSITIONS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")


@dataclass(frozen=True)
class LoadedSam2(Loaded):
    """A SAM2 in float32 and, sharing its weights, the foundation made of it; its prompt encoder serves checks alone."""

    foundation: Sam2Foundation
    sam2: Sam2Model

    @classmethod
    def of(cls, sam2: Sam2Model, source: str, commit: str | None = None) -> LoadedSam2:
        return cls(
            foundation=Sam2Foundation(sam2, source, commit),
            decoder=sam2.mask_decoder,
            decoder_is_drawn=False,
            sam2=sam2,
        )


def load_meta_checkpoint(path: Path) -> Sam2Model:
    """One of Meta's ``.pt`` files; every tensor in it is used or ignored by name. DataError where one is not."""
    layout = read_meta_checkpoint(path)
    with torch.device("meta"):  # no time for random numbers that the checkpoint replaces
        sam2 = Sam2Model(preset_config(layout.size))
    expected = {name: tuple(tensor.shape) for name, tensor in sam2.state_dict().items()}
    fit_or_raise(layout.tensors, expected, str(path), f"SAM2 {layout.size}", "use the original file")
    finite_or_raise(layout.tensors, str(path))
    sam2.load_state_dict(layout.tensors, assign=True)
    return sam2.eval()


def load_folder(folder: Path, name: str) -> Sam2Model:
    """A ``transformers`` folder of an image or a video model, whose video weights are ignored.

    Raises:
        DataError: a folder that is no SAM2, or whose tensors do not fit its configuration.
    """
    sam2, fit = read(folder, name)
    fit.refuse(name, "the SAM2 of its config.json")
    finite_or_raise(sam2.state_dict(), name)
    return sam2


def read(folder: Path, name: str, numbers: bool = True) -> tuple[Sam2Model, Fit]:
    """A folder's ``Sam2Model`` and how its tensors fit; see :func:`mlesam.model.folder.read_folder`."""
    sam2, fit = read_folder(Sam2Model, folder, name, "SAM2", numbers=numbers)
    missing = set(fit.missing)
    if not missing.issuperset(_POSITIONS):  # one of the two names will do
        for absent, given in (_POSITIONS, _POSITIONS[::-1]):
            if absent in missing and numbers:
                sam2.get_buffer(absent).copy_(sam2.get_buffer(given))
        missing -= set(_POSITIONS)
    return sam2, replace(fit, missing=tuple(sorted(missing)))


def unused(names: Iterable[str], sam2: Sam2Model) -> set[str]:
    """Those tensors of a folder that a SAM2 for still images has no place for."""
    return set(names).difference(sam2.state_dict())
