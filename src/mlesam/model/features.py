"""What the trunk says about a batch: a row for every frame of every sensor, from which any subset can be decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlesam.errors import RequestError
from mlesam.model.experts import Segment
from mlesam.model.look import best
from mlesam.sample import Batch
from mlesam.sensors.spec import canonical_order


@dataclass(frozen=True)
class Features:
    """What the trunk says about a batch, before the sensors are fused.

    Any subset of the sensors can be decoded from it without running the trunk again.

    Attributes:
        levels: three maps (R, C, h, w) at strides 4, 8, 16, aligned, rows stacked by sensor.
        segments: which rows belong to which sensor.
        frames: for each segment, (n,) the frame of each row, in rising order.
        count: frames in the batch; size: height and width of the input in pixels.
        signs: (R, 10) statistics of each row's image, where the router looks at its reliability.
        scores: (R,) what each row promised early, where the model leaves sensors behind (``model.look``) and has not done so yet.
        images: of each segment, (n, C, H, W), where sensors hand over to each other (``model.look_lead``): what one gives depends
            on its company, so nothing is computed, and there are no levels, before it is known who is decoded together.
    """

    levels: tuple[Tensor, ...]
    segments: tuple[Segment, ...]
    frames: tuple[Tensor, ...]
    count: int
    size: tuple[int, int]
    signs: Tensor | None = None
    scores: Tensor | None = None
    images: tuple[Tensor, ...] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(s.modality for s in self.segments)

    def keep(self, rows: Mapping[str, Tensor]) -> Features:
        """Only these rows: ``{modality: (n,) bool}`` over each segment's rows. Sensors left out are absent."""
        picked, segments, frames, images, start = [], [], [], [], 0
        for place, (segment, owners) in enumerate(zip(self.segments, self.frames, strict=True)):
            if segment.modality not in rows:
                continue
            index = torch.nonzero(rows[segment.modality], as_tuple=True)[0]
            if not len(index):
                continue
            picked.append(index + segment.start)
            frames.append(owners[index])
            images += [] if self.images is None else [self.images[place][index]]
            segments.append(Segment(segment.modality, start, start + len(index)))
            start += len(index)
        if not segments:
            raise RequestError("no sensor is left; at least one is needed.")
        kept = self._of_rows(torch.cat(picked), tuple(segments), tuple(frames))
        return replace(kept, images=None if self.images is None else tuple(images))

    def _of_rows(self, index: Tensor, segments: tuple[Segment, ...], frames: tuple[Tensor, ...]) -> Features:
        levels = tuple(level.index_select(0, index) for level in self.levels)
        signs, scores = (None if t is None else t[index] for t in (self.signs, self.scores))
        return replace(self, levels=levels, segments=segments, frames=frames, signs=signs, scores=scores)

    def promising(self, keep: int) -> tuple[Features, Tensor | None]:
        """Only each frame's ``keep`` sensors of the highest score, and the rows that these were (None: all)."""
        if self.scores is None or len(self.segments) <= keep:
            return self, None
        parts = self.scores.split([s.rows for s in self.segments])
        rows, segments, frames = best(parts, self.segments, self.frames, self.count, keep)
        return replace(self._of_rows(rows, segments, frames), scores=None), rows

    def batch(self) -> Batch:
        """What is yet to be computed."""
        assert self.images is not None
        names = self.modalities
        own = dict(zip(names, self.images, strict=True)), dict(zip(names, self.frames, strict=True))
        return Batch(*own, tuple(map(str, range(self.count))))

    def covered(self) -> Tensor:
        """(B,) bool: which frames have at least one sensor left."""
        seen = torch.zeros(self.count, dtype=torch.bool, device=self.frames[0].device)
        for owners in self.frames:
            seen[owners] = True
        return seen

    def check_covered(self) -> None:
        """RequestError where a frame has no sensor left: its fused map would be 0 / 0."""
        if any(len(owners) == self.count for owners in self.frames):
            return  # the shapes say it already, without waiting for the device
        covered = self.covered()
        if not bool(covered.all()):
            blind = int(torch.nonzero(~covered)[0])
            raise RequestError(
                f"frame {blind} of {self.count} has none of {', '.join(self.modalities)}; decode only the frames that do: "
                "features.of_frames(features.covered())."
            )

    def of_frames(self, wanted: Tensor) -> Features:
        """Only the frames where ``wanted`` (B,) is true, numbered anew."""
        kept = self.keep({s.modality: wanted[f] for s, f in zip(self.segments, self.frames, strict=True)})
        number = torch.cumsum(wanted, dim=0) - 1
        return replace(kept, frames=tuple(number[f] for f in kept.frames), count=int(wanted.sum()))

    def apart(self) -> Features:
        """Every row as a frame of its own: each sensor alone, all of them decoded at once."""
        rows = self.segments[-1].stop
        frames = torch.arange(rows, device=self.frames[0].device).split([s.rows for s in self.segments])
        return replace(self, frames=tuple(frames), count=rows)

    @staticmethod
    def join(parts: Iterable[Features]) -> Features:
        """Features of the same frames as one encode of all their sensors would give them. Where several parts have a sensor of
        a frame, the last one counts, so that what changed can be put in the place of what was."""
        parts = list(parts)
        found: dict[str, list[tuple[Features, Segment, Tensor]]] = {}
        for part in parts:
            for segment, owners in zip(part.segments, part.frames, strict=True):
                found.setdefault(segment.modality, []).append((part, segment, owners))
        levels: list[list[Tensor]] = [[] for _ in parts[0].levels]
        extras: dict[str, list[Tensor]] = {"signs": [], "scores": []}
        images: list[Tensor] = []
        segments, frames, start = [], [], 0
        for modality in canonical_order(found):
            own = found[modality]
            owners = [o for _, _, o in own]
            latest = {frame: row for row, frame in enumerate(torch.cat(owners).tolist())} if len(own) > 1 else {}
            order = torch.tensor([latest[frame] for frame in sorted(latest)], device=owners[0].device)
            for i, joined in enumerate(levels):
                joined.append(_picked([p.levels[i][s.start : s.stop] for p, s, _ in own], order))
            for name, joined in extras.items():
                if all(getattr(p, name) is not None for p, _, _ in own):
                    joined.append(_picked([getattr(p, name)[s.start : s.stop] for p, s, _ in own], order))
            held = [p.images[p.segments.index(s)] for p, s, _ in own if p.images is not None]
            images += [_picked(held, order)] if held else []
            frames.append(_picked(owners, order))
            segments.append(Segment(modality, start, start + len(frames[-1])))
            start = segments[-1].stop
        return replace(
            parts[0],
            levels=tuple(torch.cat(maps) for maps in levels),
            segments=tuple(segments),
            frames=tuple(frames),
            **{name: torch.cat(rows) if len(rows) == len(found) else None for name, rows in extras.items()},
            images=tuple(images) if images else None,
        )

    def select(self, modalities: Iterable[str]) -> Features:
        """Only these sensors. To be decoded, every frame must have one of them: see :meth:`covered`."""
        wanted = set(modalities)
        if wanted >= set(self.modalities):
            return self
        rows = {
            s.modality: torch.ones(s.stop - s.start, dtype=torch.bool, device=self.frames[0].device)
            for s in self.segments
            if s.modality in wanted
        }
        return self.keep(rows)


def _picked(pieces: list[Tensor], order: Tensor) -> Tensor:
    """The rows of all pieces in this order; a single piece as it is, without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)[order]


def by_frame(rows_R: Tensor, frames: Sequence[Tensor], count: int) -> Tensor:
    """Rows stacked by sensor (R, ...) to (B, M, ...), 0 where a frame lacks a sensor.

    Args:
        frames, count: as :class:`Features` has them.
    """
    if all(len(own) == count for own in frames):
        return rows_R.unflatten(0, (len(frames), count)).transpose(0, 1)
    sensor_R = torch.cat([torch.full_like(own, place) for place, own in enumerate(frames)])
    return rows_R.new_zeros(count, len(frames), *rows_R.shape[1:]).index_put(
        (torch.cat(list(frames)), sensor_R), rows_R
    )
