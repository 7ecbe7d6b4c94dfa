"""Look before computing: which sensors of a frame go on through the trunk, decided after one of its early stages.

A router that weighs finished maps saves no time by leaving one out. Here each sensor's early map is scored, and only a frame's
``keep`` best go on; the others are as if they were absent. Learned after the training (``training/look.py``), so that a model's
other weights are those it had. Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlesam.model.experts import Project, Segment

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


class Looking:
    """One pass through a trunk that scores its rows on the way and leaves some behind.

    Args:
        given: scores of each segment's rows in the place of the looks'.

    Attributes:
        early: they are left behind. False: all go on, and whoever decodes them leaves them out.
        scores: (R,) of all rows, where none was left behind.
        segments, frames: of the rows that are left, as :class:`mlesam.model.features.Features` has them.
        rows: of those that the pass began with; None while all are left.
    """

    def __init__(
        self,
        looks: nn.ModuleDict,
        stage: int,
        keep: int,
        segments: tuple[Segment, ...],
        frames: tuple[Tensor, ...],
        count: int,
        projects: Callable[[tuple[Segment, ...]], Project],
        early: bool,
        handovers: nn.ModuleDict,
        given: Sequence[Tensor] | None = None,
    ) -> None:
        self.early, self.handovers, self.given = early, handovers, given
        self.scores: Tensor | None = None
        self.looks, self.stage, self.keep = looks, stage, keep
        self.segments, self.frames, self.count = segments, frames, count
        self.rows: Tensor | None = None
        self._projects, self._project = projects, projects(segments)

    def project(
        self, index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[Tensor]:
        """The :data:`Project` of the rows that are left."""
        return self._project(index, names, x, weight, bias)

    def after(self, stage: int, map_RCHW: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a trunk calls after each stage: the rows that go on and their maps, None for all as they are."""
        if stage != self.stage or (self.early and len(self.segments) <= self.keep):
            return None
        scores = self.given or self._scores(map_RCHW)
        if not self.early:
            self.scores = torch.cat(list(scores))
            return None
        before, owners = self.segments, self.frames
        self.rows, self.segments, self.frames = best(scores, before, owners, self.count, self.keep)
        self._project = self._projects(self.segments)
        kept = map_RCHW[self.rows]
        if len(self.handovers):
            kept = kept + self._handed(map_RCHW, before, owners)[torch.cat(self.frames)]
        return self.rows, kept

    def _scores(self, map_RCHW: Tensor) -> list[Tensor]:
        parts = seen(map_RCHW).split([s.rows for s in self.segments])
        return [self.looks[s.modality](part) for s, part in zip(self.segments, parts, strict=True)]

    def _handed(self, map_RCHW: Tensor, segments: Sequence[Segment], frames: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W), of each frame what those that are left behind hand over."""
        assert self.rows is not None
        behind = torch.ones(len(map_RCHW), dtype=torch.bool, device=map_RCHW.device)
        behind[self.rows] = False
        channels_last = map_RCHW.permute(0, 2, 3, 1)
        handed = channels_last.new_zeros(self.count, *channels_last.shape[1:])
        for segment, own in zip(segments, frames, strict=True):
            left = torch.nonzero(behind[segment.start : segment.stop])[:, 0]
            if len(left):
                given = self.handovers[segment.modality](channels_last[segment.start + left])
                handed = handed.index_add(0, own[left], given)
        return handed.permute(0, 3, 1, 2)


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
