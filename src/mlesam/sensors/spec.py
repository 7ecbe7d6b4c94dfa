"""Sensor specs: what a modality's numbers mean, and how stored values become a normalised tensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlesam.config import build
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sensors.colormaps import lookup_table, scalar_from_colors


@dataclass(frozen=True)
class SensorSpec:
    """What one modality's numbers mean.

    A stored value becomes a physical one (``scale``), is clipped to ``range`` and is normalised with ``mean`` and ``std``.
    A pixel where nothing was measured becomes 0 after normalisation, the value of an average measurement.
    """

    channels: int = 1
    unit: str = "1"
    """Unit after ``scale``; ``1`` is a fraction of the file's full scale."""
    range: tuple[float, float] = (0.0, 1.0)
    """Values in ``unit`` outside this range are clipped to it."""
    mean: tuple[float, ...] = (0.5,)
    """In ``unit``, one value per channel or one for all."""
    std: tuple[float, ...] = (0.25,)
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    """``nearest`` for sparse measurements, which must not be mixed with the emptiness around them."""
    missing: float | None = None
    """Stored value that says "nothing was measured". NaN and infinity always say so."""
    scale: float | None = None
    """Stored whole number x scale = value in ``unit``. None: divide by the largest number the file's type holds.
    Floating-point files are in ``unit`` already."""
    dtype: Literal["uint8", "uint16", "float32"] | None = None
    """How the files store numbers. A file of another type is refused: 8-bit copies of 16-bit data are a classic loss.
    None: anything goes."""
    colormap: str | tuple[tuple[float, float, float], ...] | None = None
    """The files are pictures in this colour map (a name or RGB stops), which is turned back into one channel."""
    normalize: Literal["dataset", "frame"] = "dataset"
    """``frame`` uses each frame's own mean and standard deviation, for sensors with automatic gain."""
    photometric: Literal["color", "intensity", "sparse", "none"] = "intensity"
    """Kind of random changes in training, see ``mlesam.data.transforms``."""
    mirror_negates: tuple[int, ...] = ()
    """Channels (from 0) that change their sign where the picture is mirrored left and right: the sine of an angle of
    polarisation, movement to the side."""

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise RequestError(f"a sensor has {self.channels} channels; it needs at least 1.")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise RequestError(
                    f"{name} has {count} values for {self.channels} channels; give one, or one per channel."
                )
        if not all(math.isfinite(v) for v in self.mean):
            raise RequestError(f"mean is {list(self.mean)}; every value must be finite.")
        if not all(math.isfinite(v) and v > 0 for v in self.std):
            raise RequestError(f"std is {list(self.std)}; every value must be finite and above 0.")
        if not self.range[0] < self.range[1]:
            raise RequestError(f"range is {list(self.range)}; the first value must be below the second.")
        if not all(0 <= channel < self.channels for channel in self.mirror_negates):
            raise RequestError(
                f"mirror_negates is {list(self.mirror_negates)}, but the sensor has the channels 0 to {self.channels - 1}."
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale):
            raise RequestError(f"scale is {self.scale}; it must be finite and not 0.")
        if self.colormap is not None:
            lookup_table(self.colormap)
            if self.channels != 1:
                raise RequestError(f"a sensor with a colour map has one channel, not {self.channels}; set channels: 1.")

    def encode(self, array: np.ndarray, name: str = "the input") -> Tensor:
        """Stored numbers to physical ones.

        Args:
            array: ``(H, W)`` or ``(H, W, C)``, uint8, uint16 or float32.
            name: what the array is called in messages.

        Returns:
            ``(C, H, W)`` float32 in ``unit`` (with ``normalize: frame``, in standard deviations of the frame); NaN where
            nothing was measured.
        """
        if array.ndim == 2:
            array = array[..., None]
        if self.colormap is not None:
            if array.dtype != np.uint8 or array.shape[2] not in (3, 4):
                raise DataError(
                    f"{name} is no 8-bit colour picture, but its sensor declares a colour map; remove colormap."
                )
            values = torch.from_numpy(scalar_from_colors(array, self.colormap))[None]
            low, high = self.range
            values = low + values * (high - low)
            return self._standardized(values) if self.normalize == "frame" else values
        array = self._match_channels(array, name)
        if self.dtype is not None and array.dtype.kind == "u" and array.dtype.name != self.dtype:
            bits = 8 * array.dtype.itemsize
            raise DataError(
                f"{name} holds {bits}-bit values, but this sensor's files are {self.dtype}; "
                "export the original values (a conversion to 8 bits loses them)."
            )
        values = torch.from_numpy(np.ascontiguousarray(array).astype(np.float32)).permute(2, 0, 1)
        empty = ~torch.isfinite(values)
        if self.missing is not None:
            # A pixel with several channels is empty when all of them say so: 0 in one channel can be a measurement.
            empty |= (values == self.missing).all(dim=0, keepdim=True)
        if array.dtype.kind == "u":
            values = values * (self.scale if self.scale is not None else 1.0 / np.iinfo(array.dtype).max)
        values = values.clamp(*self.range).masked_fill(empty, float("nan"))
        return self._standardized(values) if self.normalize == "frame" else values

    def _standardized(self, values: Tensor) -> Tensor:
        """Subtract the frame's own mean and divide by its own standard deviation, over measured pixels."""
        measured = torch.isfinite(values)
        count = measured.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        mean = torch.where(measured, values, 0.0).sum(dim=(1, 2), keepdim=True) / count
        deviation = torch.where(measured, values - mean, 0.0)
        # A floor of a twentieth of the usual spread keeps a flat frame from being blown up to pure noise.
        floor = 0.05 * torch.tensor(self.std)[:, None, None]
        std = torch.maximum((deviation.square().sum(dim=(1, 2), keepdim=True) / count).sqrt(), floor)
        return (values - mean) / std

    def _match_channels(self, array: np.ndarray, name: str) -> np.ndarray:
        found = array.shape[2]
        if found == self.channels:
            return array
        if found == 4 and self.channels == 3 and array.dtype.kind == "u":
            return array[..., :3]  # an alpha channel
        if self.channels == 1 and found in (3, 4) and (array[..., :1] == array[..., :3]).all():
            return array[..., :1]  # grey saved as colour
        if found == 1 and self.channels == 3 and self.photometric == "color":
            return np.repeat(array, 3, axis=2)  # a monochrome camera in the colour camera's place
        hint = ", or declare its colormap" if self.channels == 1 and found == 3 else ""
        raise DataError(
            f"{name} has {found} channels, but its sensor has {self.channels}; correct the file or the spec{hint}."
        )

    def normalized(self, values: Tensor) -> Tensor:
        """What :meth:`encode` returned, to zero mean and unit variance; empty pixels (NaN) become 0."""
        if self.normalize == "frame":
            return torch.nan_to_num(values, nan=0.0)
        mean = torch.tensor(self.mean, dtype=values.dtype)[:, None, None]
        std = torch.tensor(self.std, dtype=values.dtype)[:, None, None]
        return torch.nan_to_num((values - mean) / std, nan=0.0)


def _generic(**changes: Any) -> SensorSpec:
    return SensorSpec(**changes)


BUILTIN: dict[str, SensorSpec] = {
    # ImageNet statistics, which SAM2 was trained with (facebookresearch/sam2).
    "rgb": _generic(channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), photometric="color"),
    # 16-bit millimetres, the commonest export of depth cameras; 0 is a hole.
    "depth": _generic(
        unit="m", range=(0.0, 100.0), mean=(5.0,), std=(5.0,), interpolation="nearest", missing=0.0, scale=0.001
    ),
    # Range, intensity and height on the camera plane; most pixels have no return.
    "lidar": _generic(
        channels=3, mean=(0.0,), std=(0.25,), interpolation="nearest", missing=0.0, photometric="sparse"
    ),
    # Positive and negative counts; a pixel without events has seen nothing change, which is a measurement.
    "event": _generic(channels=2, mean=(0.0,), std=(0.25,), interpolation="nearest", photometric="sparse"),
    "thermal": _generic(),
    "radar": _generic(
        channels=3, mean=(0.0,), std=(0.25,), interpolation="nearest", missing=0.0, photometric="sparse"
    ),
    "nir": _generic(mean=(0.4,)),
    # Sine and cosine of the angle of linear polarisation: an angle itself jumps and cannot be interpolated.
    "aolp": _generic(
        channels=2, range=(-1.0, 1.0), mean=(0.0,), std=(0.7,), photometric="none", mirror_negates=(0,)
    ),
    "dolp": _generic(mean=(0.15,), std=(0.2,), photometric="none"),
}  # fmt: skip


def canonical_order(modalities: Iterable[str]) -> tuple[str, ...]:
    """The one order modalities are processed and reported in: built-in sensors first, then by name."""
    rank = {name: i for i, name in enumerate(BUILTIN)}
    return tuple(sorted(modalities, key=lambda name: (rank.get(name, len(rank)), name)))


def sensor_spec(modality: str, declared: Mapping[str, Any] | None = None) -> SensorSpec:
    """The spec of a modality: the built-in one (by its name or by ``like``), with the declared fields on top.

    Raises:
        RequestError: an unknown field, a wrong value, or ``like`` with a name that is no built-in sensor.
    """
    declared = dict(declared or {})
    like = declared.pop("like", modality)
    if not isinstance(like, str) or (like not in BUILTIN and like != modality):
        raise RequestError(f"sensors.{modality}.like is {like!r}{did_you_mean(like, BUILTIN)}")
    base = BUILTIN.get(like, SensorSpec())
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(SensorSpec)}
    if "colormap" in declared and declared["colormap"] is not None:
        # The built-in unit, scale and hole value belong to measured numbers, not to a picture of them.
        values |= {"channels": 1, "unit": "1", "range": (0.0, 1.0), "scale": None, "missing": None, "dtype": "uint8"}
        values |= {"mean": (0.5,), "std": (0.25,)}
    channels = declared.get("channels", values["channels"])
    for name in ("mean", "std"):
        if name not in declared and len(values[name]) not in (1, channels):
            values[name] = (sum(values[name]) / len(values[name]),)
    if channels != base.channels:
        values["mirror_negates"] = ()  # they are other channels
    values |= declared
    return build(SensorSpec, values, f"sensors.{modality}")
