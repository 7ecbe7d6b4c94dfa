"""Recordings of points: raw rows (.bin), NumPy (.npy), PCD and PLY, as one array with named columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sensors.files import MAX_BYTES

SUFFIXES = (".bin", ".npy", ".pcd", ".ply")
RAW_TYPES = ("float32", "float64")
FARTHEST = 1e5
"""Metres. No sensor on the ground reaches further: coordinates beyond it are bytes read as the wrong type."""
MAX_FIELDS = 1000
"""Numbers that a point of a PCD file may have."""
MEANINGFUL = ("x", "y", "z", "intensity", "time")
"""Columns whose values are used; any other name only says that something stands there."""
INTENSITY = ("intensity", "i", "reflectivity", "reflectance", "scalar_intensity")
"""What PCD and PLY files call the intensity (compared without regard to case)."""


def read_points(path: str | Path, columns: Sequence[str], dtype: str = "float32") -> np.ndarray:
    """Read a recording of points.

    Args:
        path: ``.bin`` (rows of numbers and nothing else, little-endian), ``.npy`` ``(N, columns)``, ``.pcd`` (ascii or
            binary; VIEWPOINT is not applied) or ``.ply`` (ascii or binary_little_endian, vertices first).
        columns: what each column holds; x, y and z must be among them. ``.bin`` and ``.npy`` must have exactly these;
            of the fields that a PCD or PLY file names, these are taken.
        dtype: of the numbers in a ``.bin`` file, ``float32`` or ``float64``.

    Returns:
        ``(N, columns)`` float32 or float64, as stored (whole numbers as float64). Rows whose x, y, z, intensity or time is
        not finite, which some LiDARs write where nothing came back, are left out.

    Raises:
        RequestError: columns without x, y and z, or another dtype.
        DataError: missing, empty, cut off, of another layout, or with values that are no coordinates.
    """
    path = Path(path)
    check_columns(columns)
    if dtype not in RAW_TYPES:
        raise RequestError(f"dtype is {dtype!r}{did_you_mean(dtype, RAW_TYPES)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is no {', '.join(s[1:] for s in SUFFIXES)} file; convert it to one of these.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than the {MAX_BYTES // 2**30} GiB that are read; cut it into frames.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; record it again or remove it.")
    try:
        if suffix == ".bin":
            points = _read_bin(path, columns, dtype)
        elif suffix == ".npy":
            points = _read_npy(path, columns)
        else:
            points = _pick(_read_pcd(path) if suffix == ".pcd" else _read_ply(path), columns, path)
    except DataError:
        raise
    except Exception as error:  # a damaged header can fail anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be decoded ({reason}); it is damaged or cut off, write it again.") from error
    if not _plausible(points, columns):
        raise DataError(_nonsense(path, columns, dtype if suffix == ".bin" else None))
    used = [i for i, name in enumerate(columns) if name in MEANINGFUL]
    finite = np.isfinite(points[:, used]).all(axis=1)
    points = points if finite.all() else points[finite]
    if not len(points):
        raise DataError(
            f"{path} holds no point whose {', '.join(columns[i] for i in used)} are finite; record it again or remove it, or "
            "give a column that holds nothing another name."
        )
    return points


def check_columns(columns: Sequence[str]) -> None:
    """RequestError unless x, y and z are among the columns and each name stands once."""
    missing = [name for name in "xyz" if name not in columns]
    if missing or len(set(columns)) != len(columns):
        raise RequestError(f"columns is {list(columns)}, but it must name x, y and z, and every column once.")


def _read_bin(path: Path, columns: Sequence[str], dtype: str) -> np.ndarray:
    size, row = path.stat().st_size, len(columns) * np.dtype(dtype).itemsize
    if size % row:
        fits = [
            f"{count} columns of {name}"
            for name in RAW_TYPES
            for count in range(3, 9)
            if size % (count * np.dtype(name).itemsize) == 0
        ]
        raise DataError(
            f"{path} has {size:,} bytes, no multiple of {row}, the {len(columns)} columns ({', '.join(columns)}) of {dtype}; "
            + (f"it would hold {' or '.join(fits)}." if fits else "it is cut off, copy it again.")
        )
    return np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<")).reshape(-1, len(columns))


def _read_npy(path: Path, columns: Sequence[str]) -> np.ndarray:
    stored = np.load(path, mmap_mode="r", allow_pickle=False)  # a map checks the size before it takes memory
    if stored.dtype.kind not in "fiu" or stored.ndim != 2 or stored.shape[1] != len(columns):
        raise DataError(
            f"{path} holds {stored.dtype} values of the shape {stored.shape}, but columns names {len(columns)} "
            f"({', '.join(columns)}); name every column of the file."
        )
    return np.array(stored, dtype=np.float32 if stored.dtype == np.float32 else np.float64)


def _plausible(points: np.ndarray, columns: Sequence[str]) -> bool:
    """Whether nearly all coordinates that are finite are below ``FARTHEST``, and some are."""
    coordinates = points[:, [columns.index(name) for name in "xyz"]]
    finite = np.isfinite(coordinates)
    with np.errstate(invalid="ignore"):
        near = np.abs(coordinates) < FARTHEST
    return bool(near.sum() >= 0.99 * finite.sum() and (near.any() or not len(points)))


def _nonsense(path: Path, columns: Sequence[str], dtype: str | None) -> str:
    said = f"{path} holds coordinates that are not finite or beyond {FARTHEST:,.0f} m"
    for other in RAW_TYPES if dtype is not None else ():
        fits = path.stat().st_size % (len(columns) * np.dtype(other).itemsize) == 0
        if other != dtype and fits and _plausible(_read_bin(path, columns, other), columns):
            return f"{said} when read as {dtype}; set dtype: {other}."
    if dtype is not None:
        return f"{said} when read as {dtype}; check dtype and columns."
    return f"{said}; give metres in the sensor's own axes, not map coordinates."


def _pick(table: np.ndarray, columns: Sequence[str], path: Path) -> np.ndarray:
    """The named fields of a structured array as columns, float32 where all of them are."""
    names = list(table.dtype.names or ())
    lowered = {name.lower(): name for name in reversed(names)}
    picked = []
    for column in columns:
        wanted = INTENSITY if column == "intensity" else (column.lower(),)
        name = next((lowered[w] for w in wanted if w in lowered), None)
        if name is None:
            raise DataError(
                f"{path} has no field {column!r}; its fields are {', '.join(names)}. Name those to take in columns."
            )
        picked.append(name)
    kinds = {table.dtype[name] for name in picked}
    points = np.empty((len(table), len(columns)), dtype=np.float32 if kinds == {np.dtype("<f4")} else np.float64)
    for i, name in enumerate(picked):
        points[:, i] = table[name]
    return points


def _header(path: Path, last: str) -> tuple[list[list[str]], bytes]:
    """The words of each line of a header up to the line that begins with ``last``, and what follows it."""
    content = path.read_bytes()
    stream, lines = io.BytesIO(content), []
    while line := stream.readline(4096):
        words = line.decode("ascii", errors="replace").split()
        if words and not words[0].startswith("#"):
            lines.append(words)
            if words[0] == last:
                return lines, content[stream.tell() :]
    raise DataError(f"{path} has no line {last!r} in its header; it is no {path.suffix[1:].upper()} file or cut off.")


def _rows(body: bytes, dtype: np.dtype, count: int, ascii_text: bool, path: Path) -> np.ndarray:
    """The table that follows a header."""
    if count <= 0:
        raise DataError(f"{path} claims {count:,} points; record it again or remove it.")
    if ascii_text:
        lines = body.decode("ascii").split("\n")[:count]
        if len(lines) < count or not lines[-1].strip():
            raise DataError(f"{path} claims {count:,} points and holds fewer; it is cut off, write it again.")
        numbers = np.loadtxt(lines, dtype=np.float64, ndmin=2)
        table = np.empty(count, dtype=dtype)
        for i, name in enumerate(dtype.names or ()):
            table[name] = numbers[:, i]
        return table
    if len(body) < count * dtype.itemsize:
        raise DataError(f"{path} claims {count:,} points and holds fewer; it is cut off, write it again.")
    return np.frombuffer(body, dtype=dtype, count=count)


def _read_pcd(path: Path) -> np.ndarray:
    """Point Cloud Library's format, version 0.7 (pcl.readthedocs.io, "The PCD file format")."""
    lines, body = _header(path, "DATA")
    entry = {words[0]: words[1:] for words in lines}
    kind = entry["DATA"][0]
    if kind not in ("ascii", "binary"):
        raise DataError(f"{path} is {kind}, which is not read; save it as ascii or binary (uncompressed).")
    fields = []
    counts = entry.get("COUNT") or ["1"] * len(entry["FIELDS"])
    if sum(map(int, counts)) > MAX_FIELDS:
        raise DataError(
            f"{path} claims {sum(map(int, counts)):,} numbers a point, more than {MAX_FIELDS:,}; check its header."
        )
    for name, size, letter, count in zip(entry["FIELDS"], entry["SIZE"], entry["TYPE"], counts, strict=True):
        for _ in range(int(count)):
            # Padding is called _, and a field of several numbers is no column: both get names that nobody asks for.
            used = name in {f[0] for f in fields} or name == "_" or int(count) > 1
            fields.append((f"{name}#{len(fields)}" if used else name, f"<{letter.lower()}{int(size)}"))
    count = int(entry["POINTS"][0]) if "POINTS" in entry else int(entry["WIDTH"][0]) * int(entry["HEIGHT"][0])
    return _rows(body, np.dtype(fields), count, kind == "ascii", path)


_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


def _read_ply(path: Path) -> np.ndarray:
    """Stanford's polygon format, version 1.0: the vertices, which must be the first element and hold no lists."""
    lines, body = _header(path, "end_header")
    kind = next((words[1] for words in lines if words[0] == "format"), "")
    if kind not in ("ascii", "binary_little_endian"):
        raise DataError(f"{path} has the format {kind or 'of no PLY file'}; save it as ascii or binary_little_endian.")
    elements = [i for i, words in enumerate(lines) if words[0] == "element"]
    if not elements or lines[elements[0]][1] != "vertex":
        raise DataError(f"{path} does not begin with its vertices; save the points alone.")
    end = elements[1] if len(elements) > 1 else len(lines)
    properties = [words for words in lines[elements[0] : end] if words[0] == "property"]
    if any(words[1] == "list" for words in properties):
        raise DataError(f"{path} has lists in its vertices; save the points alone.")
    dtype = np.dtype([(words[2], f"<{_PLY_TYPES[words[1]]}") for words in properties])
    return _rows(body, dtype, int(lines[elements[0]][2]), kind == "ascii", path)
