"""LoRA experts: one set of low-rank updates per sensor, by default on query and value of every trunk block.

q' = q + s B A x, and the same for v; the key stays as it is (arXiv 2412.04220, after LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.config import ModelConfig

Projections = Sequence[Mapping[str, tuple[int, int]]]
"""For each block of a trunk, its linear projections by name (``q``, ``k``, ``v``, ``proj``, ``mlp_in``, ``mlp_out``) with the
widths of what goes in and what comes out."""
Update = Callable[[int, str, Tensor, Tensor], Tensor]
"""What a trunk calls after each projection: (block, name, x, y) to y with the experts' share."""
SHARED = "all"
"""Name of the one expert that all sensors share."""


def unchanged(index: int, name: str, x: Tensor, y: Tensor) -> Tensor:
    """The :data:`Update` of a trunk without experts."""
    return y


@dataclass(frozen=True)
class Segment:
    """Rows ``start`` to ``stop`` of a stacked pass belong to one modality."""

    modality: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class LowRank(nn.Module):
    """x -> scale * B A x with A Kaiming-uniform and B zero, so that a fresh expert changes nothing.

    Args:
        inputs, outputs: widths of the projection it is added to. They differ where Hiera doubles its width.
        rank: width in between. dropout: probability with which a channel of x is left out in training.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale, self.dropout = scale, dropout
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(F.linear(x, self.a), self.b) * self.scale

    def matrix(self) -> Tensor:
        """(outputs, inputs), what it adds to the projection's weight."""
        return (self.b @ self.a) * self.scale


class Expert(nn.Module):
    """The low-rank updates of a whole trunk.

    Args:
        projections: what each block has. targets: which of them get an update.
    """

    def __init__(
        self, projections: Projections, targets: Iterable[str], rank: int, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        targets = tuple(targets)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: LowRank(*block[name], rank, scale, dropout) for name in targets})
            for block in projections
        )

    def update(self, index: int, name: str) -> LowRank | None:
        """The update of a projection, None where it has none."""
        block = cast(nn.ModuleDict, self.blocks[index])
        return cast(LowRank, block[name]) if name in block else None


class Experts(nn.ModuleDict):
    """A model's experts by modality, or the one that all of them share.

    Args:
        modalities: in canonical order. projections: of the trunk. config: rank, targets, scale, dropout, shared or not.
    """

    shared = False

    def __init__(self, modalities: Iterable[str], projections: Projections, config: ModelConfig) -> None:
        super().__init__()
        self.shared = config.experts == "shared"
        if config.rank:
            for modality in (SHARED,) if self.shared else modalities:
                self[modality] = Expert(projections, targets(config), config.rank, scale(config), config.dropout)

    def of(self, modality: str) -> Expert:
        return cast(Expert, self[SHARED if self.shared else modality])

    def on(self, segments: tuple[Segment, ...]) -> Update:
        """What a trunk calls in a stacked pass: each modality's update on its own rows, and none is written into.

        A row of the pass may have become several windows, side by side.
        """
        if not len(self):
            return unchanged
        alone = self.of(segments[0].modality) if self.shared or len(segments) == 1 else None
        rows = segments[-1].stop

        def update(index: int, name: str, x: Tensor, y: Tensor) -> Tensor:
            if alone is not None:
                own = alone.update(index, name)
                return y if own is None else y + own(x)
            parts = []
            for segment, part in zip(segments, x.split([s.rows * (len(x) // rows) for s in segments]), strict=True):
                own = self.of(segment.modality).update(index, name)
                if own is None:
                    return y
                parts.append(own(part))
            return y + torch.cat(parts)

        return update


def targets(config: ModelConfig) -> tuple[str, ...]:
    """The projections that get an update, by the names of :data:`Projections`."""
    return tuple(part for name in config.targets for part in (("mlp_in", "mlp_out") if name == "mlp" else (name,)))


def scale(config: ModelConfig) -> float:
    """The factor s: 1 without ``alpha``, else alpha / rank (LoRA) or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    if config.alpha is None or not config.rank:
        return 1.0
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
