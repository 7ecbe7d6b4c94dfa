"""A perception loop: sensors that measure at rates of their own, of which only what is new is computed.

Each sensor's features are kept with their time. What a sensor measured last stands in until it measures again or is too old, and
then the sensor is absent, as if it had never been there. Features of an old frame are not moved to where things are now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlesam.data.reading import check_sizes
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.inference.segmenter import Measured, Segmenter
from mlesam.model.experts import Segment
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Prediction, Sample
from mlesam.sensors.faults import Earlier, SensorFault
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import canonical_order

MAX_AGE = 0.5
"""Seconds: the best without decay on the drives that docs/streams.md chose on."""
DIGITS = 6
"""Ages are whole microseconds, so that 12.4 - 12.2 is not older than 0.2."""


@dataclass(frozen=True)
class Kept:
    """The last features of one sensor, and when it measured, in seconds."""

    features: Features
    time: float


class SensorMemory:
    """The last features of each sensor, for models that are given tensors; :class:`SegmenterStream` is for everything else.

    Args:
        max_age: seconds, for all sensors or ``{modality: seconds}`` (those not named: ``MAX_AGE``); None: any age.
        half_life: seconds in which a sensor's trust halves; None: it does not decay.

    Example:
        >>> memory = SensorMemory(model)
        >>> memory.keep(model.encode(Batch.of({"rgb": rgb, "lidar": lidar})), time=0.0)
        >>> memory.keep(model.encode(Batch.of({"rgb": next_rgb})), time=0.033)
        >>> output = model.decode(*memory.recall(0.033))
    """

    def __init__(
        self,
        model: MLESAM,
        max_age: float | Mapping[str, float | None] | None = MAX_AGE,
        half_life: float | None = None,
    ) -> None:
        if len(model.handovers):
            raise RequestError(
                "what a sensor of this model gives depends on the others of its frame (model.look_lead), so it cannot stand in "
                "for later frames; use a model without it."
            )
        limits = max_age if isinstance(max_age, Mapping) else dict.fromkeys(model.modalities, max_age)
        for modality, limit in limits.items():
            if modality not in model.modalities:
                raise RequestError(f"max_age names no sensor {modality!r}{did_you_mean(modality, model.modalities)}")
            if limit is not None and not limit >= 0:
                raise RequestError(f"max_age of {modality} is {limit}; it must be 0 seconds or more, or None.")
        if half_life is not None and not 0 < half_life < math.inf:
            raise RequestError(f"half_life is {half_life}; it must be more than 0 seconds, or None for no decay.")
        own = {m: limits.get(m, MAX_AGE) for m in model.modalities}
        self.max_age = {m: math.inf if limit is None else float(limit) for m, limit in own.items()}
        self.half_life = half_life
        self.kept: dict[str, Kept] = {}
        self.time: float | None = None

    def forget(self, *modalities: str) -> None:
        """These sensors are absent until they measure again."""
        for modality in modalities:
            if modality not in self.max_age:
                raise RequestError(f"this model has no sensor {modality!r}{did_you_mean(modality, self.max_age)}")
            self.kept.pop(modality, None)

    def reset(self) -> None:
        """Forget all sensors and the time."""
        self.kept.clear()
        self.time = None

    def ages(self, time: float, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """Seconds since each sensor measured last, of those that are fresh enough.

        Args:
            given: when further measurements were made, which are not kept yet.

        Raises:
            RequestError: none is fresh enough; ``time`` is before that of an earlier call; a measurement is of the future.
        """
        if not math.isfinite(time):
            raise RequestError(f"time is {time}; it must be a finite number of seconds.")
        if self.time is not None and time < self.time:
            raise RequestError(
                f"time went back from {self.time:.15g} s to {time:.15g} s; give frames in order (what a sensor measured earlier "
                "has its own time in times), or call reset() where the clock starts anew."
            )
        newest = {m: kept.time for m, kept in self.kept.items()}
        for modality, when in (given or {}).items():
            if not when <= time:
                raise RequestError(
                    f"{modality} measured at {when:.15g} s, but it is only {time:.15g} s; use one clock."
                )
            newest[modality] = max(when, newest.get(modality, when))
        ages = {m: round(time - newest[m], DIGITS) for m in canonical_order(newest)}
        fresh = {m: age for m, age in ages.items() if age <= self.max_age[m]}
        if not fresh:
            known = [f"{m} is {age:g} s old (at most {self.max_age[m]:g})" for m, age in ages.items()]
            rest = [m for m in self.max_age if m not in ages]
            known += [f"nothing is kept of {', '.join(rest)}"] if rest else []
            raise RequestError(
                f"no sensor is fresh enough at {time:.15g} s: {'; '.join(known)}. Give a new measurement, or raise max_age."
            )
        return fresh

    def newer(self, given: Mapping[str, float]) -> list[str]:
        """Which of these measurements are not older than what is kept."""
        return [m for m, time in given.items() if m not in self.kept or time >= self.kept[m].time]

    def keep(self, features: Features, time: float, times: Mapping[str, float] | None = None) -> None:
        """Keep every sensor of ``features`` in the place of what was kept of it, and forget what is no longer fresh enough.

        Args:
            time: now, in seconds. times: when a sensor measured, where that was before.

        Raises:
            RequestError: see :meth:`ages`. DataError: sizes, or numbers of frames, that do not fit those of fresh sensors.
        """
        when = {m: (times or {}).get(m, time) for m in features.modalities}
        fresh = self.ages(time, when)
        for modality in fresh:
            old = None if modality in when else self.kept[modality].features
            if old is not None and (old.size, old.count) != (features.size, features.count):
                raise DataError(
                    f"{old.count} frames of {modality} were {old.size[1]}x{old.size[0]} pixels, but now {features.count} are "
                    f"{features.size[1]}x{features.size[0]}; call reset() where the size changes."
                )
        newer = self.newer(when)
        for segment, frames in zip(features.segments, features.frames, strict=True):
            if segment.modality in newer:
                self.kept[segment.modality] = Kept(_rows_of(features, segment, frames), when[segment.modality])
        self._forget_all_but(fresh, time)

    def recall(self, time: float) -> tuple[Features, Tensor | None]:
        """All sensors that are fresh enough, as one encode would give them, and the logarithm of the trust in each row that is
        left at its age, to be decoded together. RequestError: see :meth:`ages`."""
        ages = self.ages(time)
        self._forget_all_but(ages, time)
        features = Features.join(self.kept[m].features for m in ages)
        if self.half_life is None:
            return features, None
        # Shares depend on differences alone: from the youngest on, sensors of one age all have exactly 0.
        youngest = min(ages.values())
        halvings = [(youngest - ages[s.modality]) / self.half_life for s in features.segments for _ in range(s.rows)]
        return features, torch.tensor(halvings, device=features.levels[0].device) * math.log(2.0)

    def _forget_all_but(self, fresh: Iterable[str], time: float) -> None:
        self.kept = {m: self.kept[m] for m in fresh if m in self.kept}
        self.time = time


def _rows_of(features: Features, segment: Segment, frames: Tensor) -> Features:
    """A copy of one sensor's rows, so that the others' can be freed. It lies in memory as they did: kernels, and with them the
    last bits of what is made of it, depend on that."""
    rows = slice(segment.start, segment.stop)
    return replace(
        features,
        levels=tuple(level[rows].clone() for level in features.levels),
        segments=(Segment(segment.modality, 0, segment.rows),),
        frames=(frames,),
        signs=None if features.signs is None else features.signs[rows].clone(),
        scores=None if features.scores is None else features.scores[rows].clone(),
    )


class SegmenterStream:
    """A segmenter that is given what is new and answers with every sensor that is fresh enough.

    One stream for one rig and one thread; several streams may share a segmenter.

    Args:
        segmenter: its model must stay as it is.
        max_age: seconds after which a sensor's last measurement is absent, for all sensors or ``{modality: seconds}`` (those
            not named: ``MAX_AGE``); None: any age.
        half_life: seconds in which a sensor's trust halves: its share is multiplied by ``2 ** (-age / half_life)``, in the plain
            mean and in the routed one, before shares are scaled to sum to 1. None: it does not decay.
        calibration: a rig, or its file, as for :class:`Segmenter`. Sensors that it names are given as they were recorded.

    Example:
        >>> stream = SegmenterStream(Segmenter.load("runs/street"), max_age={"lidar": 0.2})
        >>> stream({"rgb": frame, "lidar": points}, time=12.33)
        >>> prediction = stream({"rgb": next_frame}, time=12.40)
        >>> prediction.ages
        {'rgb': 0.0, 'lidar': 0.07}
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        max_age: float | Mapping[str, float | None] | None = MAX_AGE,
        half_life: float | None = None,
        calibration: str | Path | Rig | None = None,
    ) -> None:
        if not hasattr(segmenter, "model") or segmenter.compiled is not None:
            raise RequestError(
                "an exported or compiled model computes all of its sensors at once; give the stream the segmenter of its run."
            )
        self.segmenter = segmenter
        self.memory = SensorMemory(segmenter.model, max_age, half_life)
        self.rig = calibration if isinstance(calibration, Rig) or calibration is None else Rig.load(calibration)
        if self.rig is not None:
            self.rig.check_given(segmenter.sensors)
        self._images: dict[str, Tensor] = {}
        self._stored: dict[str, np.ndarray] = {}

    def __call__(
        self,
        inputs: Mapping[str, Any],
        time: float,
        *,
        times: Mapping[str, float] | None = None,
        faults: Iterable[SensorFault | str] = (),
        seed: int = 0,
        frame: str = "",
        earlier: Earlier | None = None,
    ) -> Prediction:
        """Segment the scene at a time.

        A measurement older than the one kept, or older than the sensor's ``max_age``, is not computed. A sensor given again
        for the same time replaces what was given before. After an error the stream is as it was.

        Args:
            inputs: what is new, as for :class:`Segmenter`; nothing new (``{}``) is allowed.
            time: now, in seconds of any clock that never goes back.
            times: ``{modality: seconds}``, when a sensor measured, where that was before ``time``.
            faults, seed, frame, earlier: of what is new, as for :class:`Segmenter`. Of a dropped sensor nothing is new.

        Returns:
            The prediction; ``ages`` has the sensors it was made of.

        Raises:
            RequestError: no sensor is fresh enough; time goes back; a measurement is of the future; else as for
                :class:`Segmenter`. DataError: unreadable input; sizes that differ, also from those of sensors that stand in:
                call :meth:`reset` where the resolution changes.
        """
        time = float(time)
        wrong = [SensorFault.parse(f) if isinstance(f, str) else f for f in faults]
        for fault in wrong:
            fault.check(self.segmenter.sensors)
        lost = {fault.sensor for fault in wrong if fault.fault.removes}
        given = {m: x for m, x in inputs.items() if x is not None}
        self.segmenter.check([*given, *(times or {})])
        when = {m: float((times or {}).get(m, time)) for m in given if m not in lost}
        ages = self.memory.ages(time, when)
        new = [m for m in self.memory.newer(when) if m in ages]
        held = {m: self._images[m] for m in ages if m not in new}
        if new:
            size = next(((x.shape[-1], x.shape[-2]) for x in held.values()), None)
            # Of the faults, only those of new sensors: the others' are in what is kept already.
            measured = self.segmenter.read(
                {m: given[m] for m in new},
                self.rig,
                size,
                faults=[fault for fault in wrong if fault.sensor in new],
                seed=seed,
                frame=frame,
                earlier=earlier,
            )
            self._check_sizes(measured, held, ages)
            self.memory.keep(self.segmenter.encode(measured), time, when)
            self._images |= measured.sample.images
            self._stored = {m: x for m, x in self._stored.items() if m not in new} | dict(measured.stored)
        features, trust = self.memory.recall(time)
        self._images = {m: self._images[m] for m in ages}
        self._stored = {m: self._stored[m] for m in ages if m in self._stored}
        scene = Measured(Sample(self._images, id=frame), self._stored)
        return replace(self.segmenter.decode(scene, features, trust), ages=ages)

    def forget(self, *modalities: str) -> None:
        """These sensors are absent until they measure again: after a jolt, a restart, or a new calibration of them."""
        self.memory.forget(*modalities)

    def reset(self) -> None:
        """Forget all sensors and the time, as for a new recording or another resolution."""
        self.memory.reset()

    @staticmethod
    def _check_sizes(measured: Measured, held: Mapping[str, Tensor], ages: Mapping[str, float]) -> None:
        sizes = {m: tuple(x.shape[-2:]) for m, x in measured.sample.images.items()}
        try:
            check_sizes(sizes | {f"{m} of {ages[m]:g} s ago": tuple(x.shape[-2:]) for m, x in held.items()})
        except DataError as error:
            raise DataError(f"{error} Where the resolution changes, call reset().") from None
