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
        if index >= len(self.blocks):  # a projection to the pyramid
            return None
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
        owners, rows = [s.modality for s in segments], [s.rows for s in segments]

        def project(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            updates = self.updates(owners, index, names)
            if _sooner_folded(x, weight, updates):
                return _folding(names, x, weight, bias, updates, rows)
            results = dict(zip(names, plain(index, names, x, weight, bias), strict=True))
            results |= _added({name: results[name] for name in updates}, x, updates, rows)
            return list(results.values())

        return project

    def updates(self, modalities: Sequence[str], index: int, names: Sequence[str]) -> Updates:
        """A block's updates of these projections."""
        found = {name: [self.of(m).update(index, name) for m in modalities] for name in names} if len(self) else {}
        return {name: cast(list[LowRank], own) for name, own in found.items() if own[0] is not None}


Updates = Mapping[str, Sequence[LowRank]]
"""For each projection that has any, its update for each sensor."""


def folded(weight_OI: Tensor, updates: Sequence[LowRank]) -> Tensor:
    """(M, I, O) each sensor's own weight W + s B A of a projection, transposed."""
    a_MRI = torch.stack([update.a for update in updates]).to(weight_OI.dtype)
    b_MOR = torch.stack([update.b for update in updates]).to(weight_OI.dtype)
    return torch.baddbmm(weight_OI.expand(len(updates), -1, -1), b_MOR, a_MRI, alpha=updates[0].scale).transpose(1, 2)


def _folding(
    names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None, updates: Updates, rows: Sequence[int]
) -> list[Tensor]:
    """Each projection by each sensor's own weight, those without an update by the one that they share."""
    results = []
    biases = [None] * len(names) if bias is None else bias.chunk(len(names))
    for name, own_OI, own_O in zip(names, weight.chunk(len(names)), biases, strict=True):
        if name in updates:
            results.append(grouped(x, folded(own_OI, updates[name]), own_O, rows))
        else:
            results.append(F.linear(x, own_OI, own_O))
    return results


def _sooner_folded(x: Tensor, weight_OI: Tensor, updates: Updates) -> bool:
    """Whether x (W + B A) takes fewer products than x W + (x B) A, gradients included: it does where there are many more tokens
    than channels. In float32 alone: where W is rounded to bfloat16, so is what an update adds to it."""
    if not updates or weight_OI.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return False
    first = [own[0] for own in updates.values()]
    if first[0].dropout and any(update.training for own in updates.values() for update in own):
        return False
    tokens, sensors = x.numel() // x.shape[-1], len(next(iter(updates.values())))
    apart = tokens * sum(update.a.numel() + update.b.numel() for update in first)
    folding = sensors * sum(update.a.numel() * update.b.shape[0] for update in first)
    if torch.is_grad_enabled() and any(p.requires_grad for update in first for p in (update.a, update.b)):
        own = tokens * sum(update.a.shape[1] * update.b.shape[0] for update in first)
        return own + 3 * folding < 3 * apart  # W + B A needs a gradient, which W alone does not
    return folding < apart


def grouped(x: Tensor, weight_MIO: Tensor, bias: Tensor | None, rows: Sequence[int]) -> Tensor:
    """Each sensor's rows by its own matrix and bias (O,) or (M, O): one batched product where all have as many rows."""
    if len(weight_MIO) == 1:
        return F.linear(x, weight_MIO[0].t(), bias if bias is None or bias.ndim == 1 else bias[0])
    if any(n != rows[0] for n in rows):
        parts = x.split([n * (len(x) // sum(rows)) for n in rows])
        biases = [bias] * len(parts) if bias is None or bias.ndim == 1 else list(bias)
        return torch.cat([F.linear(part, w.t(), b) for part, w, b in zip(parts, weight_MIO, biases, strict=True)])
    x_MNI = x.reshape(len(weight_MIO), -1, x.shape[-1])
    y = torch.bmm(x_MNI, weight_MIO) if bias is None else torch.baddbmm(bias[..., None, :], x_MNI, weight_MIO)
    return y.view(*x.shape[:-1], -1)


def _added(y: Mapping[str, Tensor], x: Tensor, updates: Updates, rows: Sequence[int]) -> dict[str, Tensor]:
    """Each y with its updates' shares, the sensors' for their own rows of x."""
    if not updates:
        return {}
    first = next(iter(updates.values()))
    if any(n != rows[0] for n in rows) or (first[0].dropout and any(update.training for update in first)):
        parts = x.split([n * (len(x) // sum(rows)) for n in rows])
        return {
            name: y[name] + torch.cat([update(part) for update, part in zip(own, parts, strict=True)])
            for name, own in updates.items()
        }
    # Sensors with as many rows each: one batched product over the sensors down to the rank, for all projections of x, and one for
    # each of them up again, which adds to y as it is made.
    x_MNC = x.reshape(len(rows), -1, x.shape[-1])
    a_MRC = torch.stack([torch.cat([own[m].a for own in updates.values()]) for m in range(len(rows))])
    low = torch.bmm(x_MNC, a_MRC.transpose(1, 2)).chunk(len(updates), dim=-1)
    results = {}
    for (name, own), low_MNr in zip(updates.items(), low, strict=True):
        b_MrC = torch.stack([update.b for update in own]).transpose(1, 2)
        y_MNC = y[name].reshape(len(rows), -1, y[name].shape[-1])
        results[name] = torch.baddbmm(y_MNC, low_MNr, b_MrC, alpha=own[0].scale).view(y[name].shape)
    return results


def targets(config: ModelConfig) -> tuple[str, ...]:
    """The projections that get an update, by the names of :data:`Projections`."""
    return tuple(part for name in config.targets for part in (("mlp_in", "mlp_out") if name == "mlp" else (name,)))


def scale(config: ModelConfig) -> float:
    """The factor s: 1 without ``alpha``, else alpha / rank (LoRA) or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    if config.alpha is None or not config.rank:
        return 1.0
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
