"""LoRA experts: one set of low-rank updates per sensor, on query and value of every trunk block.

q' = q + s * B_q A_q x, and the same for v; the key stays as it is (arXiv 2412.04220, after LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        rank: width in between.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * self.scale


class Expert(nn.Module):
    """One modality's LoRA weights for a whole trunk.

    Args:
        widths: (input width, output width) of the attention in each block.
    """

    def __init__(self, widths: list[tuple[int, int]], rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.query = nn.ModuleList(LowRank(dim, out, rank, scale) for dim, out in widths)
        self.value = nn.ModuleList(LowRank(dim, out, rank, scale) for dim, out in widths)


def add_experts(
    experts: nn.ModuleDict, segments: tuple[Segment, ...], index: int, x: Tensor, query: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Add each modality's update to its own rows of query and value, without writing into them.

    Args:
        x, query, value: (N, H, W, C); a row of the stacked pass may have become several windows, side by side.
    """
    windows = x.shape[0] // segments[-1].stop
    queries, values = [], []
    for segment, rows in zip(segments, x.split([s.rows * windows for s in segments]), strict=True):
        expert = experts[segment.modality]
        queries.append(expert.query[index](rows))  # type: ignore[index]
        values.append(expert.value[index](rows))  # type: ignore[index]
    return query + torch.cat(queries), value + torch.cat(values)
