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
Project = Callable[[int, Sequence[str], Tensor, Tensor, Tensor | None], Sequence[Tensor]]
"""What a trunk calls in the place of each linear projection, or of several fused into one: (block, names, x, weight, bias) to one
result for each name, which has the experts' share in it. The first dimension of x is a whole multiple of the pass's rows."""
LATERAL = "lateral"
"""Name of the 1x1 projection of a stage's map to the pyramid. It counts as block ``depth + stage``; experts leave it alone."""
SHARED = "all"
"""Name of the one expert that all sensors share."""


def plain(index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor]:
    """The :data:`Project` of a trunk without experts."""
    return F.linear(x, weight, bias).chunk(len(names), dim=-1)


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

    def on(self, segments: tuple[Segment, ...]) -> Project:
        """What a trunk calls in a stacked pass: each modality's updates on its own rows, and none is written into."""
        if not len(self):
            return plain
        if self.shared:
            segments = (Segment(SHARED, 0, segments[-1].stop),)
        owners, rows = [self.of(s.modality) for s in segments], [s.rows for s in segments]

        def project(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            results = list(plain(index, names, x, weight, bias))
            if index >= len(owners[0].blocks):
                return results
            for place, name in enumerate(names):
                updates = [update for owner in owners if (update := owner.update(index, name)) is not None]
                if updates:
                    results[place] = _added(results[place], x, updates, rows)
            return results

        return project


def _added(y: Tensor, x: Tensor, updates: Sequence[LowRank], rows: Sequence[int]) -> Tensor:
    """y with each update's share for its own rows of x."""
    alike = all(n == rows[0] for n in rows) and not any(u.dropout and u.training for u in updates)
    if not alike:
        parts = x.split([n * (len(x) // sum(rows)) for n in rows])
        return y + torch.cat([update(part) for update, part in zip(updates, parts, strict=True)])
    # Sensors with as many rows each: one batched product over the sensors, which adds to y as it is made.
    a_MCr = torch.stack([update.a.T for update in updates])
    b_MrC = torch.stack([update.b.T for update in updates])
    x_MNC, y_MNC = x.reshape(len(updates), -1, x.shape[-1]), y.reshape(len(updates), -1, y.shape[-1])
    return torch.baddbmm(y_MNC, torch.bmm(x_MNC, a_MCr), b_MrC, alpha=updates[0].scale).view(y.shape)


def targets(config: ModelConfig) -> tuple[str, ...]:
    """The projections that get an update, by the names of :data:`Projections`."""
    return tuple(part for name in config.targets for part in (("mlp_in", "mlp_out") if name == "mlp" else (name,)))


def scale(config: ModelConfig) -> float:
    """The factor s: 1 without ``alpha``, else alpha / rank (LoRA) or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    if config.alpha is None or not config.rank:
        return 1.0
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
