"""A rig: the camera that all sensors are brought to, and for each sensor how its raw recordings become pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mlesam.config import build, read_yaml
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sensors.archives import AnyPath, any_path, unpacked
from mlesam.sensors.camera import Camera, Transform
from mlesam.sensors.depth import DepthEncoder
from mlesam.sensors.events import EventsEncoder
from mlesam.sensors.points import PointsEncoder
from mlesam.sensors.polarization import PolarizationEncoder
from mlesam.sensors.projection import Motion
from mlesam.sensors.radar import RadarEncoder
from mlesam.sensors.spectral import SpectralEncoder
from mlesam.sensors.thermal import ThermalEncoder


class Encoder(Protocol):
    """What every kind of encoder is: a frozen dataclass whose fields are its options."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of the files with raw recordings."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel of the picture holds, with its unit."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """What the picture's numbers mean: fields of :class:`mlesam.sensors.spec.SensorSpec` beside channels, type and range."""
        ...

    def read(self, path: Path) -> np.ndarray:
        """The raw recording."""
        ...

    def encode(self, raw: np.ndarray, camera: Camera | None) -> np.ndarray:
        """``(H, W, C)`` float32, NaN where nothing was measured."""
        ...


KINDS: dict[str, type[Encoder]] = {
    "points": PointsEncoder,
    "radar": RadarEncoder,
    "events": EventsEncoder,
    "depth": DepthEncoder,
    "thermal": ThermalEncoder,
    "polarization": PolarizationEncoder,
    "spectral": SpectralEncoder,
}

MUSES_SIZE, MUSES_EVENT_SIZE = (1920, 1080), (1280, 720)
"""Of the pictures that ``calib.json`` of MUSES belongs to; it does not name them."""
MEND = "give the path of a rig"


@dataclass(frozen=True)
class Rig:
    """How the sensors of one vehicle stand to its camera. A rig belongs to pictures of one size, see :meth:`resized`."""

    camera: Camera | None = None
    """What all sensors are brought to. None: every sensor's pictures are aligned already."""
    sensors: Mapping[str, Encoder] = field(default_factory=dict)
    """By modality."""

    @classmethod
    def load(cls, path: str | AnyPath) -> Rig:
        """Read a rig: YAML (docs/sensors/rig.md), or ``calib.json`` as MUSES ships it.

        Raises:
            RequestError: no such file, an unknown key or kind, a missing or wrong value; the message names file and key.
        """
        path = any_path(path)
        try:
            if path.suffix.lower() == ".json":
                return _from_muses(read_json(path, MEND))
            return cls.build(read_yaml(path))
        except RequestError as error:
            text = str(error)
            raise RequestError(text if str(path) in text else f"{path}: {text}") from None

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Rig:
        """From plain values as YAML holds them: ``camera`` and ``sensors``, each with a ``kind`` and its options."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise RequestError(f"unknown key {key!r}{did_you_mean(key, known)}")
        sensors = values.get("sensors") or {}
        if not isinstance(sensors, Mapping):
            raise RequestError(f"sensors is {sensors!r}, but it must be a mapping of modalities to encoders.")
        camera = values.get("camera")
        return cls(
            camera=None if camera is None else build(Camera, camera, "camera"),
            sensors={str(name): _encoder(options, f"sensors.{name}") for name, options in sensors.items()},
        )

    def spec(self, modality: str) -> dict[str, Any]:
        """The declared fields of a sensor's spec, as :func:`mlesam.sensors.spec.sensor_spec` takes them."""
        encoder = self.sensors[modality]
        everything = (float("-inf"), float("inf"))
        return {"channels": len(encoder.channels), "dtype": "float32", "range": everything, **encoder.spec}

    def encode(self, modality: str, recording: np.ndarray | str | AnyPath, motion: Motion | None = None) -> np.ndarray:
        """A raw recording as a picture that is aligned with the camera's.

        Args:
            modality: a sensor of this rig.
            recording: the raw array, or a file that the sensor's encoder reads.
            motion: of the sensor during the recording, for kinds that time each of their points.

        Returns:
            ``(H, W, C)`` float32 in physical units, NaN where nothing was measured; the channels are
            ``rig.sensors[modality].channels``.

        Raises:
            RequestError: no such sensor, a file of another kind, or motion for a sensor that has no use for it.
            DataError: a recording that cannot be read, or that the calibration brings nowhere into the picture.
        """
        encoder = self.sensors.get(modality)
        if encoder is None:
            raise RequestError(f"the rig has no sensor {modality!r}{did_you_mean(modality, self.sensors)}")
        timed = isinstance(encoder, (PointsEncoder, RadarEncoder))
        if motion is not None and not timed:
            raise RequestError(f"{modality} is of the kind {encoder.kind}, which is not corrected for motion.")
        path = None if isinstance(recording, np.ndarray) else any_path(recording)
        if path is not None and path.suffix.lower() not in encoder.suffixes:
            raise RequestError(
                f"{path} is no recording of the kind {encoder.kind}, which reads {', '.join(encoder.suffixes)}."
            )
        if path is None:
            raw = np.asarray(recording)
        else:
            with unpacked(path) as file:
                raw = encoder.read(file)
        try:
            return encoder.encode(raw, self.camera, motion) if timed else encoder.encode(raw, self.camera)
        except (DataError, RequestError) as error:
            raise type(error)(f"{path or modality}: {error}") from None

    def check_given(self, given: Iterable[str]) -> None:
        """RequestError where none of these sensors is in the rig: it would do nothing."""
        if not set(given) & set(self.sensors):
            raise RequestError(
                f"the calibration has {', '.join(self.sensors)}, and none of them was given; leave it out, or give one of them."
            )

    def fitted(self, size: tuple[int, int]) -> Rig:
        """The rig for pictures of a width and height; they may be smaller than those of the calibration."""
        return self if self.camera is None or self.camera.size == size else self.resized(size)

    def resized(self, size: tuple[int, int]) -> Rig:
        """The rig for pictures that were scaled to another width and height."""
        if self.camera is None:
            raise RequestError("the rig has no camera whose pictures could be scaled.")
        return dataclasses.replace(self, camera=self.camera.resized(size))


def _encoder(options: Any, where: str) -> Encoder:
    if not isinstance(options, dict):
        raise RequestError(f"{where} is {options!r}, but it must be a mapping with a kind.")
    options = dict(options)
    kind = options.pop("kind", None)
    if kind is None:
        raise RequestError(f"{where}.kind is missing; known: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise RequestError(f"{where}.kind is {kind!r}{did_you_mean(kind, KINDS)}")
    return build(KINDS[kind], options, where)


def read_json(path: AnyPath, mend: str) -> Any:
    """What a JSON file holds. RequestError, with the mend at its end, where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}; {mend}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid JSON ({error}); {mend}.") from None


def load_mounts(path: AnyPath) -> dict[str, Transform]:
    """From the axes of MUSES' LiDAR and radar to those of its GNSS receiver, by its ``calib.json``.

    Raises:
        RequestError: as :meth:`Rig.load`.
    """
    calibration = read_json(path, MEND)
    try:
        return {sensor: _extrinsic(calibration, f"{sensor}2gnss") for sensor in ("lidar", "radar")}
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None


def _entry(calibration: Any, *keys: str) -> Any:
    value = calibration
    for i, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            raise RequestError(f"{'.'.join(keys[: i + 1])} is missing; a calibration of MUSES has it.")
        value = value[key]
    return value


def _extrinsic(calibration: Any, name: str) -> Transform:
    return build(Transform, {"matrix": _entry(calibration, "extrinsics", name)}, f"extrinsics.{name}")


def _from_muses(calibration: Any) -> Rig:
    """Transforms are 4 x 4, sensor to camera; the pictures are undistorted. Source: github.com/timbroed/MUSES."""

    def pose(name: str) -> dict[str, Any]:
        transform = _extrinsic(calibration, name)
        return {"rotation": transform.rotation.tolist(), "translation": transform.translation.tolist()}

    camera = {"matrix": _entry(calibration, "intrinsics", "rgb", "K"), "size": MUSES_SIZE}
    lidar = {
        **pose("lidar2rgb"), "columns": ["x", "y", "z", "intensity", "ring", "time"], "dtype": "float64",
    }  # fmt: skip
    # 400 azimuths of 0.9 degrees, clockwise, of which number 199 (from 0) looks forward.
    radar = {
        **pose("radar2rgb"), "resolution": 0.0438, "ground": -1.62, "first_azimuth": 179.1, "sector": [-60, 60],
    }  # fmt: skip
    event = {
        "matrix": _entry(calibration, "intrinsics", "event", "K"), "rotation": pose("event2rgb")["rotation"],
        "size": MUSES_EVENT_SIZE,
    }  # fmt: skip
    return Rig(
        camera=build(Camera, camera, "intrinsics.rgb"),
        sensors={
            "event": build(EventsEncoder, event, "extrinsics.event2rgb"),
            "lidar": build(PointsEncoder, lidar, "extrinsics.lidar2rgb"),
            "radar": build(RadarEncoder, radar, "extrinsics.radar2rgb"),
        },
    )
