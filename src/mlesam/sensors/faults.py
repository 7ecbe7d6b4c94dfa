"""Faults: what goes wrong with a sensor, for every kind of sensor, in five severities.

A fault acts on a sensor's values in its unit, as they are read and before they are normalised, so it works on anyone's data.
What a sensor can suffer follows from its spec alone, so sensors nobody thought of have faults too. Random numbers depend on
(seed, frame, sensor, fault) and nothing else: not on order, batch or worker, and not on the severity either, so that a worse
severity is the same fault, only worse.

Two faults show an earlier frame (``needs_earlier``); whoever reads the frames brings it. One removes the sensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sample import Sample
from mlesam.sensors import corruptions as physics
from mlesam.sensors.spec import SensorSpec, canonical_order

SEVERITIES = (1, 2, 3, 4, 5)
Kind = Literal["color", "intensity", "distance", "returns", "events", "other"]
Change = Callable[[Tensor, SensorSpec, float, np.random.Generator], Tensor]
Earlier = Callable[[str, str, int], Tensor | None]
"""(modality, fault, parameter) to what a fault in time shows of a sensor; None where there is no earlier frame of it."""

CAMERAS: tuple[Kind, ...] = ("color", "intensity")
DENSE: tuple[Kind, ...] = (*CAMERAS, "distance", "other")
ALL: tuple[Kind, ...] = (*DENSE, "returns", "events")
RANGING = ("lidar", "radar")
"""Sensors that measure returns even where their spec names no value for "nothing measured"."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        values: the physical parameter at severity 1 to 5. parameter: what it is.
        kinds: which kinds of sensors can have it.
        change: what it does to the values; None for what needs an earlier frame or removes the sensor.
    """

    name: str
    family: Literal["noise", "blur", "geometry", "loss", "level", "time"]
    parameter: str
    values: tuple[float, float, float, float, float]
    kinds: tuple[Kind, ...]
    change: Change | None = None

    @property
    def needs_earlier(self) -> bool:
        return self.family == "time"

    @property
    def removes(self) -> bool:
        """The sensor becomes an absent key; it cannot be more or less absent, so all severities are one."""
        return self.name == "dropped"


_TABLE = (
    Fault("gaussian", "noise", "standard deviations", (0.2, 0.4, 0.7, 1.1, 1.6), (*DENSE, "returns"), physics.gaussian),
    Fault("salt-and-pepper", "noise", "share of pixels", (0.01, 0.03, 0.07, 0.15, 0.3), DENSE, physics.salt_and_pepper),
    Fault("event-noise", "noise", "share of pixels", (0.01, 0.03, 0.06, 0.12, 0.25), ("events",), physics.event_noise),
    Fault("motion-blur", "blur", "length / longer side", (0.02, 0.04, 0.07, 0.11, 0.16), CAMERAS, physics.motion_blur),
    Fault("fog", "blur", "contrast left", (0.7, 0.5, 0.35, 0.2, 0.1), CAMERAS, physics.fog),
    Fault("rain", "blur", "streaks per pixel", (0.005, 0.01, 0.02, 0.04, 0.08), CAMERAS, physics.rain),
    Fault("low-resolution", "blur", "pixels per side", (2, 3, 4, 6, 8), (*DENSE, "events"), physics.low_resolution),
    Fault("shift", "geometry", "share of the side", (0.01, 0.02, 0.04, 0.07, 0.1), ALL, physics.shift),
    Fault("rotation", "geometry", "degrees", (1, 2, 4, 7, 12), ALL, physics.rotation),
    Fault("lidar-jitter", "geometry", "share of the width", (0.005, 0.01, 0.02, 0.04, 0.08), ("returns",),
          physics.lidar_jitter),
    Fault("dropped", "loss", "sensors left", (0, 0, 0, 0, 0), ALL),
    Fault("dead-rows", "loss", "share of rows", (0.02, 0.05, 0.1, 0.2, 0.4), ALL, physics.dead_rows),
    Fault("beam-loss", "loss", "share of beams", (0.2, 0.4, 0.6, 0.75, 0.9), ("returns",), physics.beam_loss),
    Fault("depth-holes", "loss", "share of blocks", (0.1, 0.2, 0.35, 0.5, 0.7), ("distance",), physics.depth_holes),
    Fault("black", "level", "share of the frame", (0.2, 0.4, 0.6, 0.8, 1.0), ALL, physics.black),
    Fault("saturated", "level", "share of the frame", (0.2, 0.4, 0.6, 0.8, 1.0), (*CAMERAS, "distance", "events"),
          physics.saturated),
    Fault("over-exposure", "level", "factor", (1.5, 2.2, 3.2, 4.5, 7), CAMERAS, physics.exposure),
    Fault("under-exposure", "level", "factor", (0.6, 0.4, 0.25, 0.15, 0.08), CAMERAS, physics.exposure),
    Fault("thermal-drift", "level", "standard deviations", (0.3, 0.6, 1, 1.5, 2.2), ("intensity",),
          physics.thermal_drift),
    Fault("scale-error", "level", "factor", (1.03, 1.07, 1.15, 1.3, 1.5), ("distance",), physics.scale_error),
    Fault("frozen", "time", "frames that one stands still", (2, 4, 8, 16, 32), ALL),
    Fault("time-offset", "time", "frames late", (1, 2, 4, 8, 16), ALL),
)  # fmt: skip
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _TABLE}
HELD_OUT = ("salt-and-pepper", "rain", "rotation", "beam-loss", "saturated", "under-exposure", "time-offset")
"""Never trained on: a third of the faults, one or more of each family, so that results on them say how far training with
the others carries. Frozen: results before and after a change of it cannot be compared."""


def seen() -> tuple[str, ...]:
    """Faults that training may use."""
    return tuple(name for name in FAULTS if name not in HELD_OUT)


def unseen() -> tuple[str, ...]:
    """Faults that only testing uses."""
    return HELD_OUT


def kind(spec: SensorSpec, modality: str = "") -> Kind:
    """What kind of sensor it is, as far as faults go."""
    if spec.photometric == "color":
        return "color"
    if spec.photometric == "sparse":
        return "returns" if spec.missing is not None or modality in RANGING else "events"
    if spec.photometric == "none":
        return "other"
    return "distance" if spec.interpolation == "nearest" else "intensity"


def applicable(spec: SensorSpec, modality: str = "") -> tuple[str, ...]:
    """Names of the faults that a sensor can have, in the order of the table."""
    own = kind(spec, modality)
    return tuple(name for name, fault in FAULTS.items() if own in fault.kinds)


def earlier_index(index: int, fault: str, parameter: int) -> int:
    """Which frame of a sequence is shown in the place of frame ``index`` (0: the first), for a fault in time.

    ``frozen``: the picture stands still for ``parameter`` frames and then jumps. ``time-offset``: it is ``parameter`` frames
    late. The first frame has no earlier one and shows itself.
    """
    return index - index % parameter if fault == "frozen" else max(0, index - parameter)


@dataclass(frozen=True)
class SensorFault:
    """A fault of one sensor at one severity, written ``SENSOR:NAME:SEVERITY``."""

    sensor: str
    name: str
    severity: int

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise RequestError(f"unknown fault {self.name!r}{did_you_mean(self.name, FAULTS)}")
        if self.severity not in SEVERITIES:
            raise RequestError(f"the severity of {self.sensor}:{self.name} is {self.severity}; it must be 1 to 5.")

    @staticmethod
    def parse(text: str) -> SensorFault:
        """Read ``SENSOR:NAME:SEVERITY``. RequestError for another form, an unknown fault or severity."""
        parts = text.split(":")
        if len(parts) != 3 or not all(parts):
            raise RequestError(f"{text!r} is no fault; write SENSOR:NAME:SEVERITY, for example rgb:fog:3.")
        try:
            severity = int(parts[2])
        except ValueError:
            raise RequestError(
                f"the severity of {text!r} is {parts[2]!r}; it must be a whole number from 1 to 5."
            ) from None
        return SensorFault(parts[0], parts[1], severity)

    def __str__(self) -> str:
        return f"{self.sensor}:{self.name}:{self.severity}"

    @property
    def fault(self) -> Fault:
        return FAULTS[self.name]

    @property
    def value(self) -> float:
        """The physical parameter at this severity."""
        return self.fault.values[self.severity - 1]

    def check(self, sensors: Mapping[str, SensorSpec]) -> None:
        """RequestError where there is no such sensor, or where it cannot have this fault."""
        if self.sensor not in sensors:
            raise RequestError(
                f"there is no sensor {self.sensor!r} for the fault {self.name}{did_you_mean(self.sensor, sensors)}"
            )
        known = applicable(sensors[self.sensor], self.sensor)
        if self.name not in known:
            raise RequestError(f"{self.sensor} cannot have the fault {self.name!r}; it can have {', '.join(known)}.")

    def apply(
        self, values: Tensor, spec: SensorSpec, *, seed: int = 0, frame: str = "", earlier: Earlier | None = None
    ) -> Tensor | None:
        """The sensor's values with the fault.

        Args:
            values: ``(C, H, W)`` float32 in the sensor's unit, NaN where nothing was measured. Left as they are.
            frame: the frame's id, which the random numbers depend on.
            earlier: brings what a fault in time shows; without it, or where it returns None, the frame shows itself.

        Returns:
            Values within the sensor's range or NaN; None where the sensor is gone.

        Raises:
            RequestError: this kind of sensor cannot have the fault.
        """
        self.check({self.sensor: spec})
        if self.fault.removes:
            return None
        if self.fault.needs_earlier:
            stale = earlier(self.sensor, self.name, int(self.value)) if earlier is not None else None
            return values.clone() if stale is None or stale.shape != values.shape else stale.clone()
        change = self.fault.change
        assert change is not None
        changed = change(values, spec, self.value, generator(seed, frame, self.sensor, self.name))
        return _legal(changed, values, spec)


def generator(*key: int | str) -> np.random.Generator:
    """Random numbers that depend on the key alone, on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _legal(changed: Tensor, values: Tensor, spec: SensorSpec) -> Tensor:
    """Within the range; a sensor that is normalised frame by frame adapts to what it now sees, as automatic gain does."""
    if spec.normalize == "dataset":
        return changed.clamp(*spec.range)
    reach = torch.nan_to_num(values.abs(), nan=0.0).amax().clamp(min=physics.FRAME_REACH)
    changed = torch.where(torch.isfinite(changed), torch.clamp(changed, -reach, reach), changed)
    known = torch.isfinite(changed)
    count = known.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    middle = torch.where(known, changed, 0.0).sum(dim=(1, 2), keepdim=True) / count
    deviation = torch.where(known, changed - middle, 0.0)
    return (changed - middle) / (deviation.square().sum(dim=(1, 2), keepdim=True) / count).sqrt().clamp(min=0.05)


def break_sample(
    sample: Sample,
    sensors: Mapping[str, SensorSpec],
    faults: Iterable[SensorFault],
    seed: int = 0,
    earlier: Earlier | None = None,
) -> Sample:
    """A frame as :func:`mlesam.data.reading.read_frame` returns it, with faults of its sensors, one after the other.

    A fault of a sensor that the frame does not have changes nothing.

    Raises:
        RequestError: a sensor that does not exist or cannot have the fault. DataError: no sensor is left.
    """
    images = dict(sample.images)
    for fault in faults:
        fault.check(sensors)
        if fault.sensor not in images:
            continue
        values = fault.apply(images[fault.sensor], sensors[fault.sensor], seed=seed, frame=sample.id, earlier=earlier)
        if values is None:
            del images[fault.sensor]
        else:
            images[fault.sensor] = values
    if not images:
        raise DataError(
            f"frame {sample.id!r} has no sensor left after the faults; leave one without the fault dropped."
        )
    return replace(sample, images=images)


def random_fault(
    modalities: Iterable[str], sensors: Mapping[str, SensorSpec], rng: np.random.Generator, earlier: bool = False
) -> SensorFault:
    """A fault for a training frame: any of its sensors, any fault that training may use, any severity.

    Args:
        modalities: the frame's sensors. earlier: whether earlier frames can be had; without them no fault in time is drawn.

    That a sensor is gone is not among them: training leaves sensors out anyway.
    """
    present = canonical_order(modalities)
    modality = present[int(rng.integers(len(present)))]
    known = [
        name
        for name in applicable(sensors[modality], modality)
        if name in seen() and not FAULTS[name].removes and (earlier or not FAULTS[name].needs_earlier)
    ]
    return SensorFault(modality, known[int(rng.integers(len(known)))], int(rng.integers(1, 6)))
