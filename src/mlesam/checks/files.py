"""What a dataset's files hold, in a few numbers each: every file is decoded once and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mlesam.data.dataset import Frame
from mlesam.errors import MlesamError
from mlesam.sensors.archives import AnyPath
from mlesam.sensors.spec import SensorSpec

THREADS = 3
"""Decoders release Python's lock; more threads only keep more whole pictures in memory."""
MOST_COLORS = 4096
"""Colours kept of one label picture. A photograph in a label's place has hundreds of thousands."""

Advance = Callable[[int, int], None]
"""Called with the number of files read so far and of all files."""


@dataclass(frozen=True)
class SensorFile:
    """A sensor's file.

    Attributes:
        size: height and width. channels, dtype: as stored. grey: colour channels that are all the same.
        low, high: smallest and largest stored value of the measured pixels; None where nothing was measured.
        flat: every pixel is the same. off_map: share of pixels whose colour the declared colour map does not have.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    grey: bool
    low: float | None
    high: float | None
    flat: bool
    off_map: float = 0.0


@dataclass(frozen=True)
class LabelFile:
    """A label file: pixels per stored value, or pixels per colour (then ``colored``, and values are 0xRRGGBB)."""

    size: tuple[int, int]
    colored: bool
    values: dict[int, int]


@dataclass
class FrameFacts:
    """One frame's files as they were found; ``unreadable`` says why for each that could not be decoded."""

    split: str
    frame: Frame
    sensors: dict[str, SensorFile] = field(default_factory=dict)
    label: LabelFile | None = None
    unreadable: list[tuple[AnyPath, str]] = field(default_factory=list)


def sensor_file(frame: Frame, modality: str, spec: SensorSpec) -> SensorFile:
    """Decode a sensor's file. Raises DataError where it cannot be."""
    array = frame.read(modality, spec.channels)
    channels = 1 if array.ndim == 2 else array.shape[2]
    measured = np.isfinite(array) if array.dtype.kind == "f" else None
    if spec.missing is not None:
        present = array != spec.missing
        measured = present if measured is None else measured & present
    values = array if measured is None else array[measured]
    off_map = 0.0
    if spec.colormap is not None and array.dtype == np.uint8 and channels in (3, 4):
        off_map = float(np.isnan(spec.encode(array).numpy()).mean())
    return SensorFile(
        size=(array.shape[0], array.shape[1]),
        channels=channels,
        dtype=array.dtype.name,
        grey=channels in (3, 4) and bool((array[..., :1] == array[..., :3]).all()),
        low=float(values.min()) if values.size else None,
        high=float(values.max()) if values.size else None,
        flat=not values.size or bool((array == array[:1, :1]).all()),
        off_map=off_map,
    )


def label_file(frame: Frame, colors: Collection[tuple[int, int, int]] = ()) -> LabelFile:
    """Decode a frame's label file; ``colors`` are those of the classes. Raises DataError where it cannot be."""
    raw = frame.read_label(colors)
    size = (raw.shape[0], raw.shape[1])
    if raw.ndim == 2:
        values, counts = np.unique(raw, return_counts=True)
        return LabelFile(size, False, {int(v): int(n) for v, n in zip(values, counts, strict=True)})
    wide = raw.astype(np.int32)
    values, counts = np.unique((wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_COLORS]
    return LabelFile(size, True, {int(values[i]): int(counts[i]) for i in order})


def read_facts(
    frames: Mapping[str, Sequence[Frame]],
    specs: Mapping[str, SensorSpec],
    colors: Collection[tuple[int, int, int]] = (),
    advance: Advance | None = None,
) -> list[FrameFacts]:
    """Decode the files of all frames, sensors in ``specs`` and labels, in the order of the splits."""
    jobs = [(split, frame) for split, members in frames.items() for frame in members]
    counts = [sum(m in specs for m in frame.files) + (frame.label is not None) for _, frame in jobs]
    total, done = sum(counts), 0
    facts = []
    pool = ThreadPoolExecutor(THREADS)
    try:
        for count, fact in zip(
            counts, pool.map(lambda job: _frame_facts(job[0], job[1], specs, colors), jobs), strict=True
        ):
            facts.append(fact)
            done += count
            if advance is not None:
                advance(done, total)
    finally:  # an interruption must not wait for thousands of files
        pool.shutdown(wait=True, cancel_futures=True)
    return facts


def _frame_facts(
    split: str, frame: Frame, specs: Mapping[str, SensorSpec], colors: Collection[tuple[int, int, int]]
) -> FrameFacts:
    facts = FrameFacts(split, frame)
    for modality, path in frame.files.items():
        if modality in specs:
            try:
                facts.sensors[modality] = sensor_file(frame, modality, specs[modality])
            except MlesamError as error:
                facts.unreadable.append((path, str(error)))
    if frame.label is not None:
        try:
            facts.label = label_file(frame, colors)
        except MlesamError as error:
            facts.unreadable.append((frame.label, str(error)))
    return facts
