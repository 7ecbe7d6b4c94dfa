"""One sampled geometry for every sensor and the label, and photometric changes by kind of sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.config import DataConfig
from mlesam.data.reading import resized
from mlesam.sample import IGNORE, Sample
from mlesam.sensors.faults import Earlier, random_fault
from mlesam.sensors.spec import SensorSpec


@dataclass(frozen=True)
class Geometry:
    """A square window of the source that becomes a square crop, possibly mirrored.

    Attributes:
        top, left, window: the window in source pixels; it may reach beyond the frame.
        crop: side of the result in pixels. flip: mirror left and right.
    """

    top: int
    left: int
    window: int
    crop: int
    flip: bool

    @staticmethod
    def sample(rng: np.random.Generator, size: tuple[int, int], config: DataConfig) -> Geometry:
        """Draw scale, place and flip for a frame of ``size`` (height, width)."""
        height, width = size
        low, high = config.scale
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if config.resize is not None:
            scale *= config.resize / min(height, width)
        window = max(1, round(config.crop / scale))
        top = int(rng.integers(min(0, height - window), max(0, height - window) + 1))
        left = int(rng.integers(min(0, width - window), max(0, width - window) + 1))
        return Geometry(top, left, window, config.crop, bool(rng.random() < config.flip))

    def apply(self, values: Tensor, spec: SensorSpec) -> Tensor:
        """A sensor ``(C, H, W)`` to ``(C, crop, crop)``; what lies beyond the frame is empty (NaN)."""
        cut = self._cut(values, spec.interpolation, float("nan"))
        return mirrored(cut, spec) if self.flip else cut

    def apply_label(self, label: Tensor) -> Tensor:
        """``(H, W)`` ids to ``(crop, crop)``; what lies beyond the frame is not scored."""
        # float32 holds class ids exactly, and interpolation needs floats
        cut = self._cut(label[None].float(), "nearest", float(IGNORE))[0].long()
        return cut.flip(-1) if self.flip else cut

    def _cut(self, values: Tensor, interpolation: str, fill: float) -> Tensor:
        height, width = values.shape[-2:]
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = min(height, self.top + self.window), min(width, self.left + self.window)
        cut = values[:, top:bottom, left:right]
        margins = (left - self.left, self.left + self.window - right, top - self.top, self.top + self.window - bottom)
        if any(margins):
            cut = F.pad(cut, margins, value=fill)
        return resized(cut, (self.crop, self.crop), interpolation)


def mirrored(values: Tensor, spec: SensorSpec) -> Tensor:
    """A sensor's picture ``(C, H, W)``, in its unit, as it would be were the scene mirrored left and right."""
    values = values.flip(-1)
    if spec.mirror_negates:
        values[list(spec.mirror_negates)] *= -1  # flip has made a copy
    return values


def training_sample(
    sample: Sample,
    sensors: Mapping[str, SensorSpec],
    config: DataConfig,
    rng: np.random.Generator,
    earlier: Earlier | None = None,
) -> Sample:
    """A random crop of a frame as :func:`mlesam.data.reading.read_frame` returns it, changed and normalised.

    Where ``config.faults`` says so, ``broken`` holds one of its sensors with a fault as well.

    Args:
        earlier: brings earlier frames for faults in time; without it none of those happens.
    """
    geometry = Geometry.sample(rng, tuple(next(iter(sample.images.values())).shape[-2:]), config)  # type: ignore[arg-type]
    base = int(rng.integers(2**31))
    cut = {m: geometry.apply(values, sensors[m]) for m, values in sample.images.items()}

    def finished(modality: str, values: Tensor) -> Tensor:
        spec = sensors[modality]
        if config.photometric:
            # A generator per sensor: a frame that lacks one sensor changes nothing for the others.
            own = np.random.default_rng([base, *modality.encode()])
            values = photometric(values, spec, own, config.photometric)
        return spec.normalized(values)

    broken = {}
    if config.faults and rng.random() < config.faults:
        fault = random_fault(cut, sensors, rng, earlier is not None)

        def before(modality: str, name: str, parameter: int) -> Tensor | None:
            values = None if earlier is None else earlier(modality, name, parameter)
            return None if values is None else geometry.apply(values, sensors[modality])

        seed = int(rng.integers(2**31))
        # On the crop, so that what its severity says can be seen in it.
        values = fault.apply(cut[fault.sensor], sensors[fault.sensor], seed=seed, frame=sample.id, earlier=before)
        assert values is not None
        broken[fault.sensor] = (finished(fault.sensor, values), fault.severity)
    label = None if sample.label is None else geometry.apply_label(sample.label)
    return replace(sample, images={m: finished(m, x) for m, x in cut.items()}, label=label, broken=broken)


def evaluation_sample(sample: Sample, sensors: Mapping[str, SensorSpec], resize: int | None) -> Sample:
    """The whole frame, normalised, with its short side at ``resize`` pixels; the label keeps its own size."""
    images = {}
    for modality, values in sample.images.items():
        height, width = values.shape[-2:]
        if resize is not None:
            factor = resize / min(height, width)
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
            values = resized(values, size, sensors[modality].interpolation)
        images[modality] = sensors[modality].normalized(values)
    return replace(sample, images=images)


def photometric(values: Tensor, spec: SensorSpec, rng: np.random.Generator, strength: float) -> Tensor:
    """Random changes that this kind of sensor really shows.

    ``color``: brightness, contrast, saturation and blur. ``intensity``: gain, offset, blur and noise. ``sparse``: lost
    returns and noise. ``none``: nothing (a polarisation angle has no brightness).

    Args:
        values: ``(C, H, W)`` in the sensor's unit (in standard deviations for ``normalize: frame``).
    """
    if spec.photometric == "none" or rng.random() < 0.2:
        return values
    spread = torch.ones(1) if spec.normalize == "frame" else torch.tensor(spec.std)
    spread = spread[:, None, None]
    if spec.photometric == "color" and spec.normalize == "dataset":
        values = values * float(np.exp(rng.normal(0, 0.25 * strength)))
        middle = values.nanmean()
        values = middle + (values - middle) * float(np.exp(rng.normal(0, 0.2 * strength)))
        grey = values.nanmean(dim=0, keepdim=True)
        values = grey + (values - grey) * float(np.exp(rng.normal(0, 0.2 * strength)))
        values = values.clamp(*spec.range)
    elif spec.photometric == "sparse":
        lost = torch.from_numpy(rng.random(values.shape[-2:]) < rng.uniform(0, 0.2) * strength)
        values = values.masked_fill(lost & values.isfinite(), float("nan") if spec.missing is not None else 0.0)
        noise = torch.from_numpy(rng.normal(0, 0.02 * strength, values.shape).astype(np.float32))
        return values + noise * values.abs()  # returns keep their place, and emptiness stays empty
    else:
        values = values * float(np.exp(rng.normal(0, 0.1 * strength)))
        values = values + spread * float(rng.normal(0, 0.2 * strength))
        noise = torch.from_numpy(rng.normal(0, 1, values.shape).astype(np.float32))
        values = values + noise * spread * float(abs(rng.normal(0, 0.03 * strength)))
    if rng.random() < 0.2 and bool(torch.isfinite(values).all()):
        values = _blur(values, float(rng.uniform(0.3, 1.2)) * strength)
    return values


def _blur(values: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    if radius >= min(values.shape[-2:]):
        return values
    offsets = torch.arange(-radius, radius + 1, dtype=values.dtype)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=0)
    x = F.pad(values[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(x, kernel[None, None, None, :]), kernel[None, None, :, None])[:, 0]
