"""Reading recordings of event cameras: HDF5, ``.npy`` and ``.npz``, only the time that is asked for.

A recording of a minute has 10^8 events. Its times are sorted, so a bisection in the file finds the window, and nothing else
is read or decompressed.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlesam.errors import DataError, RequestError

EVENT = np.dtype([("x", "<i2"), ("y", "<i2"), ("p", "<i2"), ("t", "<i8")], align=True)
"""One event: column and row in pixels, polarity -1 (darker) or 1 (brighter), time in microseconds."""
COLUMNS = ("x", "y", "t", "p")
SUFFIXES = (".h5", ".hdf5", ".npy", ".npz")


def read_events(
    path: str | Path,
    stop: int | None = None,
    window: float | None = None,
    *,
    group: str = "events",
    time_unit: float = 1e-6,
) -> np.ndarray:
    """The events of a recording with ``stop - window <= t <= stop``.

    Args:
        path: HDF5 with the datasets ``events/x``, ``events/y``, ``events/t``, ``events/p`` (MUSES, DSEC), or with one
            compound dataset of these fields; ``.npy`` or ``.npz`` with a structured array or ``(N, 4)`` in the order x, y,
            t, p; ``.npz`` with four arrays. A DSEC file's ``t_offset`` is added to its times.
        stop: microseconds on the recording's clock, for instance when an exposure began. None: the last event.
        window: seconds before ``stop``. None: from the first event on.
        group: where an HDF5 file keeps its events.
        time_unit: seconds in one unit of the stored times. 1.0 for files in seconds.

    Returns:
        ``(N,)`` of :data:`EVENT`, sorted by time. Fractional coordinates, of files that were
        undistorted, go to the nearest pixel.

    Raises:
        DataError: a file that is missing, damaged, of another layout, compressed with a filter that is not installed, not
            sorted by time, with columns of different lengths or other polarities than 0 and 1 or -1 and 1; a recording that has
            no event near the window.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path} is no {', '.join(s[1:] for s in SUFFIXES)} file; convert the recording to one of these."
        )
    if window is not None and not (math.isfinite(window) and window > 0):
        raise RequestError(f"window is {window} s; it must be above 0.")
    opened = _hdf5(path, group) if path.suffix.lower() in (".h5", ".hdf5") else _arrays(path)
    try:
        with opened as (columns, offset):
            return _cut(columns, offset, path, stop, window, time_unit)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); it is damaged or cut off, write it again.") from error


def pack_events(x: Any, y: Any, t: Any, p: Any, name: str = "the recording") -> np.ndarray:
    """Four columns as ``(N,)`` of :data:`EVENT`; ``t`` in microseconds, ``p`` of 0 and 1 or of -1 and 1.

    Raises:
        DataError: columns of different lengths, times that fall, other polarities, coordinates no sensor has.
    """
    x, y, t, p = (np.asarray(column) for column in (x, y, t, p))
    _check_lengths({"x": x, "y": y, "t": t, "p": p}, name)
    events = np.empty(len(t), EVENT)
    if not len(t):
        return events
    if (t[1:] < t[:-1]).any():
        place = int(np.argmax(t[1:] < t[:-1])) + 1
        raise DataError(
            f"{name} is not sorted by time: event {place} is at {t[place]}, the one before it at {t[place - 1]}; "
            "sort the events by t."
        )
    low, high = p.min(), p.max()
    fractions = p.dtype.kind == "f" and (p != np.rint(p)).any()
    if fractions or not ((low >= 0 and high <= 1) or (low == -1 and high in (-1, 1) and not (p == 0).any())):
        found = ", ".join(f"{v:g}" for v in np.unique(p)[:5])
        raise DataError(f"{name} has the polarities {found}; store 0 and 1, or -1 and 1.")
    for key, column in (("x", x), ("y", y)):
        if column.dtype.kind == "f":
            column = np.rint(column)
        # NaN fails both comparisons, and says so.
        if not (column.min() >= -32768 and column.max() <= 32767):
            raise DataError(
                f"{name} has values of {key} from {column.min()} to {column.max()}; a pixel's coordinate is a whole "
                "number from 0 to 32767 (are the columns in the order x, y, t, p?)."
            )
        events[key] = column
    events["t"] = t
    polarity = (p > 0).astype(np.int16)
    polarity *= 2
    polarity -= 1
    events["p"] = polarity
    return events


def _check_lengths(columns: dict[str, Any], name: str) -> None:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
        raise DataError(f"{name} has columns of different lengths ({counts}); every event needs x, y, t and p.")


def _cut(
    columns: dict[str, Any], offset: int, path: Path, stop: int | None, window: float | None, time_unit: float
) -> np.ndarray:
    _check_lengths(columns, str(path))
    times = columns["t"]
    if not len(times):
        return np.empty(0, EVENT)
    factor = time_unit * 1e6

    def microseconds(stored: Any) -> int:
        return offset + (int(stored) if time_unit == 1e-6 else round(float(stored) * factor))

    first, last = microseconds(times[0]), microseconds(times[-1])
    if first > last:
        raise DataError(f"{path} is not sorted by time: it runs from {first} to {last} µs; sort the events by t.")
    stop = last if stop is None else stop
    start = first if window is None else stop - round(window * 1e6)
    if stop < first or start > last:
        raise DataError(
            f"{path} has no event between {start} and {stop} µs: it runs from {first} to {last} µs; give the time on the "
            "recording's own clock (a DSEC file's t_offset is part of it)."
        )
    begin = bisect.bisect_left(times, start, key=microseconds)
    end = bisect.bisect_right(times, stop, key=microseconds)
    cut = {key: np.asarray(columns[key][begin:end]) for key in COLUMNS}
    t = cut["t"]
    t = t.astype(np.int64) if time_unit == 1e-6 else np.rint(t.astype(np.float64) * factor).astype(np.int64)
    return pack_events(cut["x"], cut["y"], t + offset, cut["p"], str(path))


@contextlib.contextmanager
def _hdf5(path: Path, group: str) -> Iterator[tuple[dict[str, Any], int]]:
    import h5py

    with h5py.File(path, "r") as file:
        node = file.get(group)
        if isinstance(node, h5py.Dataset) and set(COLUMNS) <= set(node.dtype.names or ()):
            columns: dict[str, Any] = {key: node.fields(key) for key in COLUMNS}
            stored = [node]
        elif isinstance(node, h5py.Group) and all(isinstance(node.get(key), h5py.Dataset) for key in COLUMNS):
            columns = {key: node[key] for key in COLUMNS}
            stored = list(columns.values())
        else:
            names: list[str] = []
            file.visit(lambda name: names.append(name) if len(names) < 12 else None)
            wanted = ", ".join(f"{group}/{key}" for key in COLUMNS)
            raise DataError(
                f"{path} has no {wanted}; it holds {', '.join(names) or 'nothing'}. Set group to where its events are."
            )
        for dataset in stored:
            _check_filters(dataset, path)
        offset = file.get("t_offset")
        yield columns, int(offset[()]) if isinstance(offset, h5py.Dataset) else 0


def _check_filters(dataset: Any, path: Path) -> None:
    import h5py

    plan = dataset.id.get_create_plist()
    for i in range(plan.get_nfilters()):
        code, _, _, name = plan.get_filter(i)
        if not h5py.h5z.filter_avail(code):  # Blosc, Zstandard and others, which event cameras' makers use
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401  # pyright: ignore[reportMissingImports]  # registers its filters
        if not h5py.h5z.filter_avail(code):
            label = name.decode(errors="replace") or "without a name"
            raise DataError(
                f"{path} is compressed with the HDF5 filter {code} ({label}), which is not installed; "
                'install it with: pip install "mlesam[events]".'
            )


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    if path.suffix.lower() == ".npy":
        yield _split(np.lib.format.open_memmap(path, mode="r"), path), 0
        return
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        if set(COLUMNS) <= set(archive.files):
            yield {key: archive[key] for key in COLUMNS}, 0
        elif len(archive.files) == 1:
            yield _split(archive[archive.files[0]], path), 0
        else:
            raise DataError(
                f"{path} holds the arrays {', '.join(archive.files) or 'none'}; it needs x, y, t and p, or one (N, 4) array."
            )


def _split(array: np.ndarray, path: Path) -> dict[str, Any]:
    if array.dtype.names is not None:
        if set(COLUMNS) <= set(array.dtype.names):
            return {key: array[key] for key in COLUMNS}
        raise DataError(f"{path} has the fields {', '.join(array.dtype.names)}; it needs x, y, t and p.")
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"{path} has the shape {array.shape}; it needs (N, 4), the columns x, y, t, p.")
    if len(array) and array[0, 2] > array[-1, 2] and array[0, 0] <= array[-1, 0]:
        raise DataError(f"{path} has falling times in its third column; store the columns in the order x, y, t, p.")
    return {key: array[:, i] for i, key in enumerate(COLUMNS)}
