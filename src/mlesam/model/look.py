"""Look before computing: which sensors of a frame go on through the trunk, decided after one of its early stages.

A router that weighs finished maps saves no time by leaving one out. Here each sensor's early map is scored, and only a frame's
``keep`` best go on; the others are as if they were absent. Learned after the training (``training/look.py``), so that a model's
other weights are those it had. Or it is settled beforehand which ones go on, and the others hand over to them what they saw,
which the training teaches (``training/step.py``). Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlesam.model.experts import Project, Segment
from mlesam.model.foundation import After, Foundation

HIDDEN = 16


class Look(nn.Module):
    """How much a sensor promises, by the mean and spread of each channel of its early map.

    Args:
        width: channels of the map.

    Attributes:
        ready: it counts. Until then nothing is left behind.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * width))
        self.register_buffer("std", torch.ones(2 * width))
        self.register_buffer("fitted", torch.zeros(()))
        self.layers = nn.Sequential(nn.Linear(2 * width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        last = cast(nn.Linear, self.layers[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.requires_grad_(False)  # learned by itself, after the training
        self.ready = False
        self.register_load_state_dict_post_hook(_note_ready)

    def fit_scale(self, seen_RS: Tensor) -> None:
        """Bring what is seen to mean 0 and deviation 1 over these frames, and let the scores count."""
        self.mean.copy_(seen_RS.mean(dim=0))
        self.std.copy_(seen_RS.std(dim=0, correction=0).clamp(min=1e-3))
        self.fitted.fill_(1.0)
        self.ready = True

    def forward(self, seen_RS: Tensor) -> Tensor:
        """(R,) scores of what :func:`seen` gives."""
        return self.layers((seen_RS - self.mean) / self.std)[:, 0]


def _note_ready(look: nn.Module, keys: object) -> None:
    assert isinstance(look, Look)
    look.ready = bool(look.fitted)  # once, and not in every pass, where a device would be waited for


class Handover(nn.Linear):
    """What a sensor that is left behind gives to each of its frame's sensors that go on: a 1x1 projection of its early map,
    which is added to theirs. Starts at zero, as if nothing were handed over.

    Args:
        width: channels of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False)
        nn.init.zeros_(self.weight)


def seen(map_RCHW: Tensor) -> Tensor:
    """(R, 2 C) float32: mean and standard deviation of each channel."""
    x = map_RCHW.detach().float()
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return torch.cat([mean, variance.sqrt()], dim=1)


class Pass:
    """One pass through a trunk that may leave rows behind after a stage.

    Args:
        segments, frames, count: of the rows that it begins with, as :class:`mlesam.model.features.Features` has them.
        projects: what computes the projections of a pass with these segments.

    Attributes:
        segments, frames: of the rows that are left. rows: which of those that it began with these are; None while all are left.
        scores: (R,) of all rows, where the best are to go on and none was left behind yet.
    """

    def __init__(
        self,
        stage: int,
        keep: int,
        segments: tuple[Segment, ...],
        frames: tuple[Tensor, ...],
        count: int,
        projects: Callable[[tuple[Segment, ...]], Project],
    ) -> None:
        self.stage, self.keep = stage, keep
        self.segments, self.frames, self.count = segments, frames, count
        self.rows: Tensor | None = None
        self.scores: Tensor | None = None
        self._projects, self._project = projects, projects(segments)
        self._used: dict[int, Project] = {}

    def project(
        self, index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[Tensor]:
        """The :data:`Project` of the rows that are left when a block comes first; checkpointing computes it again with these."""
        return self._used.setdefault(index, self._project)(index, names, x, weight, bias)

    def _leave(self, rows: Tensor, segments: tuple[Segment, ...], frames: tuple[Tensor, ...]) -> None:
        self.rows, self.segments, self.frames = rows, segments, frames
        self._project = self._projects(segments)


class Looking(Pass):
    """The best go on, by the scores of their early maps.

    Args:
        early: the others are left behind. False: all go on, and whoever decodes them leaves them out. rows: of a :class:`Pass`.
    """

    def __init__(self, looks: nn.ModuleDict, early: bool, *rows: Any) -> None:
        super().__init__(*rows)
        self.looks, self.early = looks, early

    def after(self, stage: int, map_RCHW: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a trunk calls after each stage: the rows that go on and their maps, None for all as they are."""
        if stage != self.stage or (self.early and len(self.segments) <= self.keep):
            return None
        parts = seen(map_RCHW).split([s.rows for s in self.segments])
        scores = [self.looks[s.modality](part) for s, part in zip(self.segments, parts, strict=True)]
        if not self.early:
            self.scores = torch.cat(scores)
            return None
        self._leave(*best(scores, self.segments, self.frames, self.count, self.keep))
        assert self.rows is not None
        return self.rows, map_RCHW[self.rows]


class Leading(Pass):
    """Those go on that lead, and in canonical order others where one of them is absent; all others hand over to them.

    Args:
        lead: names of sensors. rows: as of a :class:`Pass`, of more than ``keep`` sensors.
    """

    def __init__(self, handovers: nn.ModuleDict, lead: Collection[str], *rows: Any) -> None:
        super().__init__(*rows)
        self.handovers = handovers
        self.order = sorted((s.modality for s in self.segments), key=lambda m: m not in lead)  # a stable sort

    @property
    def alike(self) -> bool:
        """Whether every frame has every sensor: nothing differs from frame to frame then, so that a fixed graph can hold it."""
        return all(len(own) == self.count for own in self.frames)

    def after(self, stage: int, map_RCHW: Tensor) -> tuple[Tensor, Tensor] | None:
        """As :meth:`Looking.after`."""
        if stage != self.stage:
            return None
        maps_RHWC, before, owners = map_RCHW.permute(0, 2, 3, 1), self.segments, self.frames
        if self.alike:
            behind = self._lead()
            handed = torch.stack([self.handovers[s.modality](maps_RHWC[s.start : s.stop]) for s in behind]).sum(dim=0)
        else:
            ranks = (float(self.order.index(s.modality)) for s in before)
            scores = [torch.full(own.shape, -x, device=own.device) for own, x in zip(owners, ranks, strict=True)]
            self._leave(*best(scores, before, owners, self.count, self.keep))
            handed = self._handed(maps_RHWC, before, owners)
        assert self.rows is not None
        kept = maps_RHWC[self.rows] + handed[torch.cat(self.frames)]
        return self.rows, kept.permute(0, 3, 1, 2)

    def one_by_one(self, foundation: Foundation, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """The levels of those that lead, each sensor through the trunk alone, where all frames are :attr:`alike`:
        first those that hand over, as far as they get."""
        handed: list[Tensor] = []

        def give(stage: int, map_RCHW: Tensor, modality: str) -> tuple[slice, Tensor] | None:
            if stage != self.stage:
                return None
            handed.append(self.handovers[modality](map_RCHW.permute(0, 2, 3, 1)))
            return slice(0), map_RCHW[:0]

        def take(stage: int, map_RCHW: Tensor) -> tuple[slice, Tensor] | None:
            return (slice(None), map_RCHW + given_RCHW) if stage == self.stage else None

        def through(modality: str, after: After) -> list[Tensor]:
            project = self._projects((Segment(modality, 0, self.count),))
            return foundation(maps[modality], project, after)

        for segment in self._lead():
            through(segment.modality, partial(give, modality=segment.modality))
        given_RCHW = torch.stack(handed).sum(dim=0).permute(0, 3, 1, 2)
        levels = [through(s.modality, take) for s in self.segments]
        return [torch.cat(parts) for parts in zip(*levels, strict=True)]

    def _lead(self) -> list[Segment]:
        """Leave behind all that do not lead, where all frames are :attr:`alike`, and return them."""
        leaders = self.order[: self.keep]
        places = [i for i, s in enumerate(self.segments) if s.modality in leaders]
        behind = [s for s in self.segments if s.modality not in leaders]
        left, rows = _side_by_side([self.segments[i] for i in places])
        self._leave(rows.to(self.frames[0].device), left, tuple(self.frames[i] for i in places))
        return behind

    def _handed(self, maps_RHWC: Tensor, segments: Sequence[Segment], frames: Sequence[Tensor]) -> Tensor:
        """(B, H, W, C), of each frame what those that are left behind hand over."""
        behind = torch.ones(len(maps_RHWC), dtype=torch.bool, device=maps_RHWC.device)
        behind[self.rows] = False
        handed = maps_RHWC.new_zeros(self.count, *maps_RHWC.shape[1:])
        for segment, own in zip(segments, frames, strict=True):
            left = torch.nonzero(behind[segment.start : segment.stop])[:, 0]
            if len(left):
                given = self.handovers[segment.modality](maps_RHWC[segment.start + left])
                handed = handed.index_add(0, own[left], given.to(handed.dtype))  # autocast makes it narrower
        return handed


def _side_by_side(segments: Sequence[Segment]) -> tuple[tuple[Segment, ...], Tensor]:
    """Segments of a pass with these alone, and the rows that they were."""
    stops = list(accumulate(s.rows for s in segments))
    rows = [row for s in segments for row in range(s.start, s.stop)]
    return tuple(Segment(s.modality, n - s.rows, n) for s, n in zip(segments, stops, strict=True)), torch.tensor(rows)


def best(
    scores: Sequence[Tensor], segments: Sequence[Segment], frames: Sequence[Tensor], count: int, keep: int
) -> tuple[Tensor, tuple[Segment, ...], tuple[Tensor, ...]]:
    """The rows of each frame's ``keep`` best sensors, and their segments and frames. A frame with fewer keeps them all."""
    table = scores[0].new_full((count, len(segments)), float("-inf"))
    for column, (score, own) in enumerate(zip(scores, frames, strict=True)):
        table[own, column] = score
    chosen = torch.zeros_like(table, dtype=torch.bool)
    chosen.scatter_(1, table.topk(min(keep, len(segments)), dim=1).indices, True)
    rows, left, owners, start = [], [], [], 0
    for column, (segment, own) in enumerate(zip(segments, frames, strict=True)):
        kept = torch.nonzero(chosen[own, column])[:, 0]
        if len(kept):
            rows.append(kept + segment.start)
            owners.append(own[kept])
            left.append(Segment(segment.modality, start, start + len(kept)))
            start += len(kept)
    return torch.cat(rows), tuple(left), tuple(owners)
