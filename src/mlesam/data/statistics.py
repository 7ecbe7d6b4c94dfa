"""Statistics of a sensor's files, band by band, in one pass over them and in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from mlesam.data.dataset import Frame
from mlesam.sensors.spec import SensorSpec

Item = TypeVar("Item")
PERCENTILES = (1.0, 50.0, 99.0)
KEPT_VALUES = 2**24
"""Values of one sensor, over all of its bands, that are kept for the percentiles: 64 MiB."""
DIGITS = 7
"""Significant digits of a measured mean or std in a spec: as many as float32 holds, in which specs are applied."""


class BandStatistics:
    """Statistics of each band of a sensor over the pixels where something was measured; frames are added one by one.

    Mean and spread are kept in float64 and merged frame by frame (Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979), which loses no digits where the spread is small beside
    the mean. Percentiles are those of the pixels that are kept. That is every measured pixel, and so exact, until they
    are more than ``capacity`` values over all bands; then a random half of them is dropped, and from there on half as
    many are taken in. What is kept is a uniform sample at any time, about ``capacity / 2`` to ``capacity`` values of it:
    with n pixels measured the rank of the percentile p is off by a standard error of ``100 sqrt(p (1 - p) / n)`` points, which
    for 100 bands is at most 0.2 at the median and 0.04 at the 1st and the 99th percentile.

    Attributes:
        frames, pixels: that were added, empty pixels included.
        count: ``(C,)`` int64, measured pixels of each band.
        minimum, maximum, mean: ``(C,)`` float64, in the unit of the values; NaN where nothing was measured.
    """

    def __init__(self, channels: int, capacity: int = KEPT_VALUES) -> None:
        self.frames = self.pixels = 0
        self.count = np.zeros(channels, dtype=np.int64)
        self.minimum, self.maximum, self.mean = (np.full(channels, np.nan) for _ in range(3))
        self._squares = np.zeros(channels)  # sum of squared distances from the mean
        self._capacity = capacity
        self._kept: list[np.ndarray] = []
        self._share = 1.0
        self._rng = np.random.default_rng(0)

    def add(self, values: Tensor) -> None:
        """Add a frame: ``(C, H, W)`` as :meth:`SensorSpec.encode` returns it, NaN where nothing was measured."""
        bands = values.flatten(1).numpy()
        self.frames += 1
        self.pixels += bands.shape[1]
        for band, row in enumerate(bands):  # one band at a time: a cube in float64 would be twice the frame
            self._merge(band, row[np.isfinite(row)].astype(np.float64))
        self._keep(bands)

    def _merge(self, band: int, values: np.ndarray) -> None:
        if not values.size:
            return
        self.minimum[band] = np.fmin(self.minimum[band], values.min())
        self.maximum[band] = np.fmax(self.maximum[band], values.max())
        before, mean = int(self.count[band]), values.mean()
        total = before + values.size
        apart = mean - self.mean[band] if before else 0.0
        self.mean[band] = self.mean[band] + apart * values.size / total if before else mean
        self._squares[band] += np.square(values - mean).sum() + apart**2 * before * values.size / total
        self.count[band] = total

    def _keep(self, bands: np.ndarray) -> None:
        taken = np.isfinite(bands).any(axis=0)
        if self._share < 1:
            taken &= self._rng.random(bands.shape[1]) < self._share
        self._kept.append(bands[:, taken])
        while sum(k.size for k in self._kept) > self._capacity:
            kept = np.concatenate(self._kept, axis=1)
            self._kept = [kept[:, self._rng.random(kept.shape[1]) < 0.5]]
            self._share /= 2

    @property
    def std(self) -> np.ndarray:
        """``(C,)`` float64, the population's standard deviation; NaN where nothing was measured."""
        return np.where(self.count > 0, np.sqrt(self._squares / np.maximum(self.count, 1)), np.nan)

    @property
    def empty(self) -> np.ndarray:
        """``(C,)`` float64, share of the pixels where nothing was measured."""
        return 1.0 - self.count / max(self.pixels, 1)

    @property
    def exact(self) -> bool:
        """Whether the percentiles are those of all measured pixels."""
        return self._share == 1

    @property
    def kept(self) -> int:
        """Pixels that the percentiles are taken of."""
        return sum(k.shape[1] for k in self._kept)

    def percentiles(self, wanted: Sequence[float] = PERCENTILES) -> np.ndarray:
        """``(len(wanted), C)`` float64, linear between neighbours; NaN where nothing was measured."""
        found = np.full((len(wanted), len(self.count)), np.nan)
        for band in range(len(self.count)):
            row = np.concatenate([k[band] for k in self._kept]) if self._kept else np.empty(0, np.float32)
            row = row[np.isfinite(row)].astype(np.float64)
            if row.size:
                found[:, band] = np.percentile(row, wanted)
        return found


def spaced(frames: Sequence[Item], most: int | None) -> list[Item]:
    """At most so many frames or numbers of frames (None: all), evenly over the list, with its first and last."""
    count = len(frames) if most is None else min(len(frames), most)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def measure(
    modality: str, spec: SensorSpec, frames: Sequence[Frame], advance: Callable[[], object] = lambda: None
) -> BandStatistics:
    """Statistics of a sensor's files, in the spec's unit also where each frame is normalised by itself.

    Args:
        frames: which have the sensor, each of them.
        advance: called after each file.

    Raises:
        DataError: a file that is unreadable or does not fit the spec.
    """
    raw = dataclasses.replace(spec, normalize="dataset")
    statistics = BandStatistics(spec.channels)
    for frame in frames:
        statistics.add(raw.encode(frame.read(modality, spec.channels), str(frame.files[modality])))
        advance()
    return statistics


def with_statistics(
    spec: SensorSpec, statistics: BandStatistics, names: Collection[str] = ("mean", "std")
) -> SensorSpec:
    """The spec with the measured mean and std, or one of them, to ``DIGITS`` digits."""
    mean = np.where(statistics.count > 0, statistics.mean, 0.0)
    std = np.where(statistics.count > 0, statistics.std, 0.0)
    if spec.photometric == "sparse":
        # Where most pixels are empty, empty must not look like an average measurement: keep 0 at 0.
        std, mean = np.hypot(std, mean), np.zeros_like(mean)
    # A spread below the resolution of the values is that of a constant band.
    std = np.where(std > np.finfo(np.float32).eps * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    values = {"mean": mean, "std": std}
    changes = {name: tuple(float(f"{v:.{DIGITS}g}") for v in values[name]) for name in names}
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
