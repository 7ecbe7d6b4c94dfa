"""Aligners: for each sensor and pyramid level a 1x1 projection that brings the sensor's map to where the others' are.

Experts change how the trunk looks at a sensor, but the frozen neck still mixes its channels as it does for pictures. The router
then sums maps in which one channel means something else for every sensor, and the heads have to make sense of each sum.
An aligner lets each sensor speak the heads' language. Beyond the paper; docs/results.md says what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mlesam.model.experts import Segment


class Aligner(nn.Module):
    """x -> x + W x + b at every pixel, one W and b for each level. Starts at zero, so that a fresh one changes nothing.

    Args:
        width: channels C of the maps. levels: how many maps.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(width, width) for _ in range(levels))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, map_NCHW: Tensor, level: int) -> Tensor:
        return map_NCHW + self.levels[level](map_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Aligners(nn.ModuleDict):
    """The aligners of a model by modality. Without any, maps pass as they are."""

    def __init__(self, modalities: Iterable[str], width: int, levels: int) -> None:
        super().__init__({m: Aligner(width, levels) for m in modalities})

    def forward(self, maps: Sequence[Tensor], segments: Sequence[Segment]) -> tuple[Tensor, ...]:
        """Maps (R, C, h, w), finest first, rows stacked by sensor: each sensor's aligner on its own rows."""
        if not len(self):
            return tuple(maps)
        aligned = []
        for level, stacked in enumerate(maps):
            parts = stacked.split([s.rows for s in segments])
            done = [self[s.modality](part, level) for s, part in zip(segments, parts, strict=True)]
            aligned.append(done[0] if len(done) == 1 else torch.cat(done))
        return tuple(aligned)
