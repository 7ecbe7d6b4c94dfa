"""Aligners: for each sensor and pyramid level a 1x1 projection that brings the sensor's map to where the others' are.

Experts change how the trunk looks at a sensor, but the frozen neck still mixes its channels as it does for pictures. The router
then sums maps in which one channel means something else for every sensor, and the heads have to make sense of each sum.
An aligner lets each sensor speak the heads' language. Beyond the paper; docs/results.md says what it is worth.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlesam.model.experts import Project, Segment, grouped
from mlesam.model.foundation import LEVEL_STRIDES, Foundation


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

    def forward(
        self, maps: Sequence[Tensor], segments: Sequence[Segment], done: Container[int] = ()
    ) -> tuple[Tensor, ...]:
        """Maps (R, C, h, w), finest first, rows stacked by sensor: each sensor's aligner on its own rows.

        Args:
            done: levels that are aligned already.
        """
        aligned = []
        for level, stacked in enumerate(maps):
            if not len(self) or level in done:
                aligned.append(stacked)
                continue
            parts = stacked.split([s.rows for s in segments])
            own = [self[s.modality](part, level) for s, part in zip(segments, parts, strict=True)]
            aligned.append(own[0] if len(own) == 1 else torch.cat(own))
        return tuple(aligned)

    def folded(
        self, modalities: Sequence[str], foundation: Foundation, stage: int, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight (M, I, O) and bias (M, O) of a stage's projection to the pyramid with each sensor's aligner behind it:
        (1 + L) (W x + b) + c."""
        level = (foundation.stage_levels or ())[stage]
        own = [cast(nn.Linear, cast(Aligner, self[m]).levels[level]) for m in modalities]
        matrix = torch.stack([layer.weight for layer in own])
        weights = weight + matrix @ weight
        biases = bias + matrix @ bias
        if stage == level:  # where two stages' maps are added up, one of them brings the constant
            biases = biases + torch.stack([layer.bias for layer in own])
        return weights.transpose(1, 2), biases

    def sooner_folded(self, foundation: Foundation, tokens: int, sensors: int) -> frozenset[int]:
        """The levels at which folding takes fewer products than a pass over the finished maps, gradients included: it does where
        there are many more tokens than channels.

        Args:
            tokens: of all sensors together at stride 4.
        """
        if not len(self) or foundation.stage_levels is None:
            return frozenset()
        inputs = [0] * len(LEVEL_STRIDES)
        for stage, level in enumerate(foundation.stage_levels):
            inputs[level] += foundation.lateral(stage)[0].shape[1]
        chosen = set()
        for level, (stride, width) in enumerate(zip(LEVEL_STRIDES, inputs, strict=True)):
            own = tokens * LEVEL_STRIDES[0] ** 2 // stride**2
            apart, folding = own * foundation.width**2, sensors * foundation.width**2 * width
            if torch.is_grad_enabled() and next(self.parameters()).requires_grad:
                apart, folding = 3 * apart, 3 * folding + own * foundation.width * width
            if folding < apart:
                chosen.add(level)
        return frozenset(chosen)

    def into(
        self, project: Project, segments: Sequence[Segment], foundation: Foundation, levels: Container[int]
    ) -> Project:
        """``project`` with the aligners of these levels folded into the projections that lead there."""
        modalities, rows = [s.modality for s in segments], [s.rows for s in segments]

        def projecting(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            stage = index - foundation.depth
            if stage < 0 or (foundation.stage_levels or ())[stage] not in levels:
                return project(index, names, x, weight, bias)
            assert bias is not None
            return [grouped(x, *self.folded(modalities, foundation, stage, weight, bias), rows)]

        return projecting
