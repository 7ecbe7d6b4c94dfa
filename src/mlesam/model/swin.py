"""Swin (arXiv 2103.14030) as a foundation: the trunk of ``transformers``, its projections open to experts, and a fresh neck.

The computation is that of ``transformers``, stage by stage; each named projection is computed as the experts say.
Swin brings neither a pyramid nor a mask decoder: both are drawn from the seed, trained and saved with the adapter.

Shape letters: R rows (one per frame and sensor), H W pixels or tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from mlesam.errors import DataError
from mlesam.model.checkpoints import finite_or_raise
from mlesam.model.experts import LATERAL, Project, plain
from mlesam.model.folder import Fit, read_folder
from mlesam.model.foundation import After, Foundation, Loaded, decoder_config, going_on

_LAYERS = {
    "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj", "proj": "attention.o_proj",
    "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
}  # fmt: skip
"""Modules of a block by the names of our projections."""

# Heads for other tasks, and the norm behind the last stage.
_IGNORED = ("classifier.", "decoder.", "hidden_states_norms.", "layernorm.", "embeddings.mask_token")

_PROJECT: ContextVar[Project] = ContextVar("project", default=plain)
"""How the pass that is running computes its projections; each thread has its own."""


class Projection(nn.Linear):
    """In the place of one of the trunk's projections, with its weights."""

    def __init__(self, linear: nn.Linear, index: int, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.index, self.name = index, name

    def forward(self, input: Tensor) -> Tensor:
        return _PROJECT.get()(self.index, (self.name,), input, self.weight, self.bias)[0]


class Pyramid(nn.Module):
    """Four stages to maps of one width, as SAM2's neck: laterals, and the stride-32 map added to the one below it.

    A norm comes before each lateral, since Swin's stages end without one.
    """

    def __init__(self, widths: Iterable[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for w in widths)

    def forward(self, stages: list[Tensor], project: Project, first: int) -> list[Tensor]:
        """(R, C_i, H / s, W / s) at strides 4, 8, 16, 32 to (R, C, H / s, W / s) at strides 4, 8, 16.

        Args:
            first: the block that the first lateral counts as.
        """
        laterals: list[Tensor] = []
        for index, stage in enumerate(stages):
            norm, linear = self.laterals[index]  # type: ignore[misc]
            x = norm(stage.permute(0, 2, 3, 1))
            laterals.append(project(first + index, (LATERAL,), x, linear.weight, linear.bias)[0].permute(0, 3, 1, 2))
        *maps, top = laterals
        maps[-1] = maps[-1] + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return maps


class SwinFoundation(Foundation):
    """Swin's trunk with a neck from torch's generator.

    Attributes:
        trunk: ``transformers`` module without the norm behind its last stage.
        stride: of the last stage, so that every stage halves the one before; windows are padded inside.
    """

    family = "swin"
    stride = 32
    added = ("neck", "no_memory", "no_mask", "position")

    def __init__(self, trunk: SwinModel, source: str, commit: str | None = None) -> None:
        embedding = trunk.config.embed_dim
        width = min(256, 32 * -(-8 * embedding // 96))  # 8/3 of the trunk's, as in SAM2's nano, tiny and small
        super().__init__(source, commit, width)
        self.trunk = trunk.requires_grad_(False)
        self.trunk.layernorm = nn.Identity()  # type: ignore[assignment]
        self.neck = Pyramid([embedding * 2**stage for stage in range(4)], width)
        self.register_buffer("no_memory", torch.zeros(1, width, 1, 1))
        self.register_buffer("no_mask", torch.zeros(1, width, 1, 1))
        self.register_buffer("position", torch.randn(2, width // 2))
        for index in range(self.depth):
            for name, place in _LAYERS.items():
                self._blocks[index].set_submodule(place, Projection(self._layer(index, name), index, name))

    @property
    def depth(self) -> int:
        return len(self._blocks)

    @property
    def tile(self) -> int:
        return self.stride * self.trunk.config.window_size  # whole windows in the last stage, so in all

    @property
    def _blocks(self) -> list[Any]:
        return [block for stage in self.trunk.encoder.layers for block in stage.blocks]  # type: ignore[union-attr]

    def _layer(self, index: int, name: str) -> nn.Linear:
        return self._blocks[index].get_submodule(_LAYERS[name])

    @property
    def fused(self) -> tuple[tuple[str, ...], ...]:
        return tuple((name,) for name in _LAYERS)

    def lateral(self, stage: int) -> tuple[Tensor, Tensor]:
        linear: Any = self.neck.laterals[stage][1]  # type: ignore[index]
        return linear.weight, linear.bias

    def weight(self, index: int, name: str) -> Tensor:
        return self._layer(index, name).weight

    def forward(self, images_RCHW: Tensor, project: Project = plain, after: After | None = None) -> list[Tensor]:
        stages = self.stages(images_RCHW, project, after)
        return self.neck(stages, project, self.depth) if stages else []

    def stages(self, images_RCHW: Tensor, project: Project = plain, after: After | None = None) -> list[Tensor]:
        """The trunk's four stage outputs, (R, C, H, W) at strides 4, 8, 16 and 32, as ``SwinBackbone`` has them; none where no
        row goes on."""
        outputs: list[Tensor] = []
        with _projecting(project):
            x, size = self.trunk.embeddings(images_RCHW, interpolate_pos_encoding=True)
        patches, _ = going_on(after, 0, x.transpose(1, 2).unflatten(2, size), outputs)
        if not len(patches):
            return []
        x = patches.flatten(2).transpose(1, 2)
        for stage in self.trunk.encoder.layers:
            x, output = self.run(_run_stage, stage, x, size, project)
            kept, outputs = going_on(after, len(outputs) + 1, output, outputs)
            if not len(kept):
                return []
            if kept is not output:
                x = kept.flatten(2).transpose(1, 2)
                merging: Any = stage.downsample
                x = x if merging is None else merging(x, size)
            outputs.append(kept)
            size = (size[0] // 2, size[1] // 2)
        return outputs


def _run_stage(stage: Any, x: Tensor, size: tuple[int, int], project: Project) -> tuple[Tensor, Tensor]:
    """One stage: what goes on, and its map."""
    with _projecting(project):
        # Without always_partition a small image would shrink the module's windows for good.
        x, output, _ = stage(x, size, always_partition=True, output_hidden_states_before_downsampling=True)
    return x, output


@contextmanager
def _projecting(project: Project) -> Iterator[None]:
    """The trunk's projections are computed so in here, in this thread."""
    token = _PROJECT.set(project)
    try:
        yield
    finally:
        _PROJECT.reset(token)


def load_folder(folder: Path, name: str, source: str, commit: str | None, seed: int) -> Loaded:
    """A ``transformers`` folder of a ``SwinModel``, ``SwinBackbone`` or a Swin with another task's head, which is ignored.

    Args:
        seed: draws neck, positions and mask decoder.

    Raises:
        DataError: a Swin of another build, or one whose tensors do not fit its configuration.
    """
    trunk, fit = read(folder, name)
    fit.refuse(name, "the Swin of its config.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        foundation = SwinFoundation(trunk, source, commit)
        decoder = Sam2MaskDecoder(decoder_config(foundation.width))
    finite_or_raise(foundation.state_dict(), name)
    return Loaded(foundation.eval(), decoder.eval(), decoder_is_drawn=True)


def read(folder: Path, name: str, numbers: bool = True) -> tuple[SwinModel, Fit]:
    """A folder's ``SwinModel`` and how its tensors fit; see :func:`mlesam.model.folder.read_folder`."""
    trunk, fit = read_folder(SwinModel, folder, name, "Swin", numbers=numbers, add_pooling_layer=False)
    config: SwinConfig = trunk.config
    if (config.patch_size, len(config.depths), config.num_channels) != (4, 4, 3):
        raise DataError(
            f"{name} is a Swin with patches of {config.patch_size} pixels, {len(config.depths)} stages and {config.num_channels} "
            "channels; a foundation needs 4, 4 and 3, such as microsoft/swin-tiny-patch4-window7-224."
        )
    fit = replace(
        fit,
        missing=tuple(n for n in fit.missing if not _ignored(n)),
        unexpected=tuple(n for n in fit.unexpected if not _ignored(n)),
        misshapen=tuple(m for m in fit.misshapen if not _ignored(m[0])),
    )
    return trunk, fit


def unused(names: Iterable[str], trunk: SwinModel) -> set[str]:
    """Those tensors of a folder that a foundation has no place for."""
    return {name for name in names if _ignored(name)}


def _ignored(name: str) -> bool:
    computed = name.endswith("relative_position_index")  # in older files, from the window's size
    return computed or name.removeprefix("swin.").startswith(_IGNORED)
