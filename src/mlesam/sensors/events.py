"""Event cameras: a stream of brightness changes to counts per polarity or to a voxel grid.

An event says that one pixel got brighter or darker by a fixed step of log intensity at one microsecond. Events are kept as one
array of :data:`~mlesam.sensors.event_files.EVENT`, sorted by time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import check_rotation
from mlesam.sensors.event_files import EVENT, SUFFIXES, read_events
from mlesam.sensors.pixel_table import PixelTable, rectification

STEP = 1 << 15
"""Events handled at a time: what is computed for them stays in the processor's cache."""


def polarity_counts(
    events: np.ndarray,
    size: tuple[int, int],
    start: int | None = None,
    stop: int | None = None,
    table: PixelTable | None = None,
) -> np.ndarray:
    """How often each pixel got brighter and darker.

    Args:
        events: ``(N,)`` of EVENT, sorted by time.
        size: (width, height) of the event camera.
        start, stop: microseconds, both included. None: the first and the last event.
        table: moves the events to another picture.

    Returns:
        ``(H, W, 2)`` float32, positive and negative counts; NaN outside of the field of view that a table tells.

    Raises:
        DataError: an event outside of ``size``.
    """
    events, _, _ = _window(events, start, stop)
    planes, pixels = _planes(2, size, table)
    flat, one = planes.reshape(-1), np.float32(1)
    for chunk in _chunks(events):
        index = pixels(chunk)
        index += (chunk["p"] < 0) * planes.shape[1]
        np.add.at(flat, index, one)
    return _picture(planes, size, table)


def voxel_grid(
    events: np.ndarray,
    size: tuple[int, int],
    bins: int = 5,
    start: int | None = None,
    stop: int | None = None,
    table: PixelTable | None = None,
) -> np.ndarray:
    """The discretised event volume: signed polarity, shared between the two nearest instants.

    V(x, y, b) = sum of p_i max(0, 1 - |b - t*_i|) over the events of a pixel, t*_i = (B - 1)(t_i - start) / (stop - start).
    Source: Zhu et al. 2019, "Unsupervised Event-based Learning of Optical Flow, Depth, and Egomotion", equations 1 to 3; events
    lie on whole pixels here, where its kernels in x and y are 1.

    Args:
        events: ``(N,)`` of EVENT, sorted by time.
        size: (width, height) of the event camera.
        bins: B, instants from ``start`` to ``stop``. 1: the sum of the polarities.
        start, stop: microseconds, both included. None: the first and the last event.
        table: moves the events to another picture.

    Returns:
        ``(H, W, B)`` float32 (the bins are planes in memory); NaN outside of the field of view that a table tells.

    Raises:
        DataError: an event outside of ``size``.
    """
    if bins < 1:
        raise RequestError(f"bins is {bins}; it must be at least 1.")
    events, start, stop = _window(events, start, stop)
    planes, pixels = _planes(bins, size, table)
    scale = (bins - 1) / max(stop - start, 1)
    # Sorted events between two instants are one slice and touch two planes only, which fit into the cache.
    instants = [start + b / scale for b in range(1, bins - 1)]
    edges = [0, *np.searchsorted(events["t"], instants), len(events)]
    for b in range(max(bins - 1, 1)):
        for chunk in _chunks(events[edges[b] : edges[b + 1]]):
            index = pixels(chunk)
            early = chunk["p"].astype(np.float32)
            if bins > 1:
                late = (chunk["t"] - start).astype(np.float32)
                late *= np.float32(scale)
                late -= np.float32(b)
                late *= early
                early -= late
                np.add.at(planes[b + 1], index, late)
            np.add.at(planes[b], index, early)
    return _picture(planes, size, table)


@dataclass(frozen=True)
class EventsEncoder:
    """Recordings of an event camera to pictures of the events before an exposure."""

    kind: ClassVar[str] = "events"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    representation: Literal["counts", "voxels"] = "counts"
    """``counts``: events per polarity. ``voxels``: signed events around ``bins`` instants of the window."""
    window: float = 0.03
    """Seconds before the exposure. MUSES: 0.03."""
    bins: int = 5
    """Instants of a voxel grid."""
    size: tuple[int, int] | None = None
    """(width, height) of the event camera in pixels. None: its calibration says so."""
    group: str = "events"
    """Where an HDF5 file keeps x, y, t, p; ``prophesee/left`` in M3ED."""
    time_unit: float = 1e-6
    """Seconds in one unit of the stored times."""
    matrix: tuple[tuple[float, float, float], ...] | None = None
    """3x3 camera matrix of the event camera. With it, events are moved into the rig's camera; None: they lie there already."""
    distortion: tuple[float, ...] = ()
    """OpenCV's coefficients of the event camera."""
    rotation: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    """3x3, from the event camera's axes to the rig's camera. Their distance is left out: events have no depth."""

    def __post_init__(self) -> None:
        check_rotation(np.asarray(self.rotation, dtype=np.float64))
        if self.matrix is not None and np.shape(self.matrix) != (3, 3):
            raise RequestError(f"matrix has the shape {np.shape(self.matrix)}; a camera matrix is 3x3.")
        if self.matrix is not None and self.size is None:
            raise RequestError("matrix is given without size; set size to the event camera's width and height.")
        for name in ("window", "time_unit"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} is {value} s; it must be above 0.")
        if not 1 <= self.bins <= 100:
            raise RequestError(f"bins is {self.bins}; it must be between 1 and 100.")
        if self.size is not None and min(self.size) < 1:
            raise RequestError(f"size is {list(self.size)}; it must be a width and a height above 0.")

    @property
    def channels(self) -> tuple[str, ...]:
        if self.representation == "counts":
            return ("positive events", "negative events")
        return tuple(f"events {b + 1} of {self.bins}" for b in range(self.bins))

    @property
    def spec(self) -> dict[str, Any]:
        return {"like": "event", "unit": "events"}

    def read(self, path: Path, stop: int | None = None) -> np.ndarray:
        """``(N,)`` of EVENT: the last ``window`` seconds before ``stop``, in microseconds. None: before the last event."""
        return read_events(path, stop, self.window, group=self.group, time_unit=self.time_unit)

    def encode(
        self, raw: np.ndarray, camera: Any = None, stop: int | None = None, table: PixelTable | None = None
    ) -> np.ndarray:
        """``(H, W, C)`` float32.

        Args:
            raw: what :meth:`read` returned.
            camera: the event camera; its ``size`` is used where the encoder has none.
            stop: what :meth:`read` was given.
            table: from :func:`mlesam.sensors.pixel_table.rectification`, to move the events to another camera's picture.
        """
        if table is None and self.matrix is not None and camera is not None:
            assert self.size is not None
            table = _table(
                self.size, self.matrix, self.distortion, self.rotation, camera.size, tuple(map(tuple, camera.matrix))
            )
        size = (
            self.size or (camera.size if camera is not None else None) or (table.source if table is not None else None)
        )
        if size is None:
            raise RequestError(
                "the size of the event camera is not known; set size to its width and height, as in [1280, 720]."
            )
        if not len(raw) and stop is None:
            stop = 0
        stop = int(raw["t"][-1]) if stop is None else stop
        start = stop - round(self.window * 1e6)
        if self.representation == "counts":
            return polarity_counts(raw, size, start, stop, table)
        return voxel_grid(raw, size, self.bins, start, stop, table)


@lru_cache(maxsize=8)
def _table(size: Any, matrix: Any, distortion: Any, rotation: Any, target: Any, target_matrix: Any) -> PixelTable:
    """Made once for each pair of cameras."""
    lens = np.asarray(distortion) if distortion else None
    return rectification(size, np.asarray(matrix), lens, np.asarray(rotation), target, np.asarray(target_matrix))


def _window(events: np.ndarray, start: int | None, stop: int | None) -> tuple[np.ndarray, int, int]:
    """The events from ``start`` to ``stop``, which are filled in."""
    if events.dtype != EVENT:
        raise RequestError(f"events are {events.dtype}; make them with read_events or pack_events.")
    t = events["t"]
    if not len(events):
        return events, start or 0, stop or 0
    if (t[1:] < t[:-1]).any():
        raise DataError("the events are not sorted by time; sort them by t.")
    if start is None and stop is None:
        return events, int(t[0]), int(t[-1])
    start, stop = int(t[0]) if start is None else start, int(t[-1]) if stop is None else stop
    if start > stop:
        raise RequestError(f"start is {start} µs and stop {stop} µs; start must not be later.")
    return events[np.searchsorted(t, start, "left") : np.searchsorted(t, stop, "right")], start, stop


def _chunks(events: np.ndarray):
    return (events[i : i + STEP] for i in range(0, len(events), STEP))


def _planes(count: int, size: tuple[int, int], table: PixelTable | None):
    """Planes to add to, each with one place more for what falls outside, and the function from events to places."""
    width, height = size
    if table is not None and table.source != tuple(size):
        raise RequestError(
            f"the event camera has {width} x {height} pixels and the table is for {table.source[0]} x {table.source[1]}; "
            "make the table for this camera."
        )

    def pixels(chunk: np.ndarray) -> np.ndarray:
        x, y = chunk["x"].view(np.uint16), chunk["y"].view(np.uint16)  # negative ones become very large
        if x.max() >= width or y.max() >= height:
            raise DataError(
                f"an event lies at x = {chunk['x'].max()} or y = {chunk['y'].max()}, outside of {width} x {height} pixels; "
                "give the event camera's own width and height."
            )
        index = y.astype(np.int64)
        index *= width
        index += x
        return index if table is None else table.index[index].astype(np.int64)

    across, down = size if table is None else table.size
    return np.zeros((count, across * down + 1), np.float32), pixels


def _picture(planes: np.ndarray, size: tuple[int, int], table: PixelTable | None) -> np.ndarray:
    width, height = size if table is None else table.size
    planes = planes[:, :-1].reshape(-1, height, width)
    if table is not None:
        planes += np.where(table.seen, np.float32(0), np.float32("nan"))  # a sum is quicker than a masked copy
    return np.moveaxis(planes, 0, -1)
