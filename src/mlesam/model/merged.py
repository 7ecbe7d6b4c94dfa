"""Experts and aligners worked into projections of each sensor's own, for inference: one matrix product where there were four.

W_m = W + s B_m A_m for every projection that sensor m's expert updates. An aligner is a projection behind the pyramid's, so the
two are one: (1 + L_m) (W x + b) + c_m. Costs the memory of the changed projections once for each sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.model.aligner import Aligner, Aligners
from mlesam.model.experts import LATERAL, Experts, Project, Segment, plain
from mlesam.model.foundation import Foundation


class Merged(nn.Module):
    """What is computed in the place of a trunk's projections. Its tensors move with the model and are in no checkpoint.

    Attributes:
        aligned: the aligners are in it, so that the maps need none.
    """

    @torch.no_grad()
    def __init__(self, foundation: Foundation, experts: Experts, aligners: Aligners, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.aligned = not len(aligners) or foundation.stage_levels is not None
        # By block and names, how the tensors are called.
        self._made: dict[tuple[int, tuple[str, ...]], str] = {}
        for index in range(foundation.depth if len(experts) else 0):
            for names in foundation.fused:
                changed = [name for name in names if experts.of(self.modalities[0]).update(index, name) is not None]
                if changed:
                    owners = self.modalities[:1] if experts.shared else self.modalities
                    own = [self._expert_weight(foundation, experts, m, index, names) for m in owners]
                    self._add(index, names, torch.stack(own), None)
        for stage, level in enumerate(foundation.stage_levels or ()) if len(aligners) else ():
            weight, bias = foundation.lateral(stage)
            weights, biases = [], []
            for modality in self.modalities:
                align: Any = cast(Aligner, aligners[modality]).levels[level]
                matrix = torch.eye(len(weight), device=weight.device, dtype=weight.dtype) + align.weight
                weights.append(matrix @ weight)
                # Where two stages' maps are added up, one of them brings the aligner's constant.
                biases.append(matrix @ bias + (align.bias if stage == level else 0.0))
            self._add(foundation.depth + stage, (LATERAL,), torch.stack(weights), torch.stack(biases))

    @staticmethod
    def _expert_weight(
        foundation: Foundation, experts: Experts, modality: str, index: int, names: Sequence[str]
    ) -> Tensor:
        parts = []
        for name in names:
            weight, update = foundation.weight(index, name), experts.of(modality).update(index, name)
            parts.append(weight if update is None else weight + update.matrix().to(weight.dtype))
        return torch.cat(parts)

    def _add(self, index: int, names: tuple[str, ...], weight_MOI: Tensor, bias_MO: Tensor | None) -> None:
        name = f"{index}-{'-'.join(names)}"
        self._made[index, names] = name
        self.register_buffer(f"{name}-weight", weight_MOI, persistent=False)
        self.register_buffer(f"{name}-bias", bias_MO, persistent=False)

    def on(self, segments: tuple[Segment, ...]) -> Project:
        """As :meth:`Experts.on`."""
        chosen = [self.modalities.index(s.modality) for s in segments]
        rows = [s.rows for s in segments]
        alike = all(n == rows[0] for n in rows)

        def project(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            made = self._made.get((index, tuple(names)))
            if made is None:
                return plain(index, names, x, weight, bias)
            weights, biases = getattr(self, f"{made}-weight"), getattr(self, f"{made}-bias")
            if len(weights) == 1:  # of an expert that all share
                return F.linear(x, weights[0], bias).chunk(len(names), dim=-1)
            if alike:
                y = _batched(x, _picked(weights, chosen), bias if biases is None else _picked(biases, chosen))
            else:
                parts = x.split([n * (len(x) // sum(rows)) for n in rows])
                y = torch.cat(
                    [
                        F.linear(part, weights[m], bias if biases is None else biases[m])
                        for m, part in zip(chosen, parts, strict=True)
                    ]
                )
            return y.chunk(len(names), dim=-1)

        return project


def _batched(x: Tensor, weight_MOI: Tensor, bias: Tensor | None) -> Tensor:
    """Each sensor's rows by its own matrix, in one batched product."""
    x_MNI = x.reshape(len(weight_MOI), -1, x.shape[-1])
    if len(weight_MOI) == 1:
        return F.linear(x, weight_MOI[0], bias if bias is None or bias.ndim == 1 else bias[0])
    if bias is None:
        y = torch.bmm(x_MNI, weight_MOI.transpose(1, 2))
    else:
        y = torch.baddbmm(bias[..., None, :], x_MNI, weight_MOI.transpose(1, 2))
    return y.view(*x.shape[:-1], -1)


def _picked(stacked: Tensor, chosen: list[int]) -> Tensor:
    """Those of the sensors that are there; a view where they lie side by side."""
    if chosen == list(range(chosen[0], chosen[0] + len(chosen))):
        return stacked[chosen[0] : chosen[0] + len(chosen)]
    return stacked[chosen]
