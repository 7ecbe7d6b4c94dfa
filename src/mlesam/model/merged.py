"""Experts and aligners worked into projections of each sensor's own, for inference: one matrix product where there were four.

What a pass otherwise folds for itself, where that takes fewer products, is folded once and everywhere. Costs the memory of the
changed projections once for each sensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlesam.model.aligner import Aligners
from mlesam.model.experts import LATERAL, Experts, Project, Segment, Updates, folded, grouped, plain
from mlesam.model.foundation import Foundation


class Merged(nn.Module):
    """What is computed in the place of a trunk's projections. Its tensors move with the model and are in no checkpoint.

    Attributes:
        aligned: levels whose maps have the aligners in them.
    """

    @torch.no_grad()
    def __init__(self, foundation: Foundation, experts: Experts, aligners: Aligners, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.aligned = frozenset(foundation.stage_levels or ()) if len(aligners) else frozenset[int]()
        # By block and names, how the tensors are called.
        self._made: dict[tuple[int, tuple[str, ...]], str] = {}
        owners = self.modalities[:1] if experts.shared else self.modalities
        for index in range(foundation.depth):
            for names in foundation.fused:
                updates = experts.updates(owners, index, names)
                if updates:
                    self._add(index, names, self._weights(foundation, index, names, updates), None)
        for stage in range(len(foundation.stage_levels or ()) if len(aligners) else 0):
            made = aligners.folded(self.modalities, foundation, stage, *foundation.lateral(stage))
            self._add(foundation.depth + stage, (LATERAL,), *made)

    @staticmethod
    def _weights(foundation: Foundation, index: int, names: Sequence[str], updates: Updates) -> Tensor:
        """(M, I, O) of the fused projections ``names``."""
        count = len(next(iter(updates.values())))
        parts = []
        for name in names:
            own_OI = foundation.weight(index, name)
            parts.append(folded(own_OI, updates[name]) if name in updates else own_OI.t().expand(count, -1, -1))
        return torch.cat(parts, dim=2)

    def _add(self, index: int, names: tuple[str, ...], weight_MIO: Tensor, bias_MO: Tensor | None) -> None:
        name = f"{index}-{'-'.join(names)}"
        self._made[index, names] = name
        # In the order of memory in which a product reads it: with few rows it takes a third less time.
        self.register_buffer(f"{name}-weight", weight_MIO.contiguous(), persistent=False)
        self.register_buffer(f"{name}-bias", bias_MO, persistent=False)

    def on(self, segments: tuple[Segment, ...]) -> Project:
        """As :meth:`Experts.on`."""
        chosen = [self.modalities.index(s.modality) for s in segments]
        rows = [s.rows for s in segments]

        def project(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            made = self._made.get((index, tuple(names)))
            if made is None:
                return plain(index, names, x, weight, bias)
            weights, biases = getattr(self, f"{made}-weight"), getattr(self, f"{made}-bias")
            if len(weights) > 1:  # and not that of an expert that all share
                weights = picked(weights, chosen)
            if biases is not None:
                bias = picked(biases, chosen)
            return grouped(x, weights, bias, rows).chunk(len(names), dim=-1)

        return project


def picked(stacked: Tensor, chosen: list[int]) -> Tensor:
    """Those of the sensors that are there; a view where one lies as far behind the other as the next, as any two do."""
    step = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    evenly = range(chosen[0], chosen[-1] + 1, step)
    return stacked[evenly.start : evenly.stop : step] if list(evenly) == chosen else stacked[chosen]
