"""ENVI files: a text header beside a file of plain numbers, the commonest form of hyperspectral recordings.

The numbers are mapped, not loaded, so that a few bands of a large cube cost no more than these. Source: NV5's description of
ENVI header files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlesam.errors import DataError

TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4"}
"""ENVI's data types that are one real number. 6 and 9 are complex, 14 and 15 have 64 bits."""
NANOMETERS = {"nanometers": 1.0, "nm": 1.0, "micrometers": 1000.0, "um": 1000.0, "µm": 1000.0, "microns": 1000.0}
FIELD = re.compile(r"\s*([^=\n{}]+?)[ \t]*=[ \t]*(\{[^{}]*\}|[^\n{}]*)(?=[ \t]*(?:\n|$))")
"""A name and its value, which is the rest of the line or a list in braces over any number of lines."""
DATA_SUFFIXES = ("", ".raw", ".img", ".dat", ".bin", ".bsq", ".bil", ".bip")


@dataclass(frozen=True)
class Cube:
    """A hyperspectral recording, and what its header says of it."""

    values: np.ndarray
    """``(H, W, B)`` as stored; of an ENVI file mapped and read only."""
    wavelengths: tuple[float, ...] | None = None
    """Centre of each band in nanometres (in the header's unit where that is no length)."""
    good: tuple[bool, ...] | None = None
    """Whether each band can be used (ENVI's bad band list)."""
    missing: float | None = None
    """Stored value that says that nothing was measured."""
    scale: float = 1.0
    """Value = stored value x scale (one over ENVI's reflectance scale factor)."""


def read_envi(path: str | Path) -> Cube:
    """An ENVI cube in any interleave (bsq, bil, bip), byte order and real data type of at most 32 bits, or double.

    Args:
        path: the header (``.hdr``). Its numbers lie in ``name``, ``name.raw``, ``.img``, ``.dat``, ``.bin`` or the interleave's.

    Raises:
        DataError: a header that lacks something, names another type or contradicts itself; a data file that is missing or
            has another size than the header says.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    fields = _header(path)
    width, height, bands = (_whole(fields, key, path, 1) for key in ("samples", "lines", "bands"))
    code, offset = _whole(fields, "data type", path, 0), _whole(fields, "header offset", path, 0, "0")
    if code not in TYPES:
        known = ", ".join(str(t) for t in TYPES)
        raise DataError(f"{path} has the data type {code}; {known} are read. Convert the file to one of these.")
    dtype = np.dtype(TYPES[code])
    order = _whole(fields, "byte order", path, 0, "0" if dtype.itemsize == 1 else None)
    if order not in (0, 1):
        raise DataError(f"{path} has the byte order {order}; it must be 0 (least significant byte first) or 1.")
    dtype = dtype.newbyteorder("<" if order == 0 else ">")
    interleave = fields.get("interleave", "").lower()
    shapes = {"bsq": (bands, height, width), "bil": (height, bands, width), "bip": (height, width, bands)}
    if interleave not in shapes:
        raise DataError(f"{path} has the interleave {interleave or 'none'!r}; it must be bsq, bil or bip.")
    if fields.get("file compression", "0") != "0":
        raise DataError(f"{path} says that its data file is compressed; save it uncompressed.")
    data = _data_file(path)
    expected, found = offset + width * height * bands * dtype.itemsize, data.stat().st_size
    if expected != found:
        raise DataError(
            f"{data} has {found:,} bytes, but {path.name} says {expected:,} (offset {offset}, {width} x {height} pixels, "
            f"{bands} bands of {dtype.itemsize} bytes); it is cut off, or the header belongs to another file."
        )
    stored = np.memmap(data, dtype, "r", offset, shapes[interleave])
    values = np.moveaxis(stored, {"bsq": 0, "bil": 1, "bip": 2}[interleave], -1)
    good = _numbers(fields, "bbl", bands, path)
    factor = _number(fields, "reflectance scale factor", path)
    if factor is not None and not factor > 0:
        raise DataError(f"{path} has the reflectance scale factor {factor}; it must be above 0.")
    return Cube(
        values,
        _wavelengths(fields, bands, path),
        None if good is None else tuple(value != 0 for value in good),
        _number(fields, "data ignore value", path),
        1.0 if factor is None else 1.0 / factor,
    )


def _header(path: Path) -> dict[str, str]:
    """The header's fields by name in lower case; lists keep their braces."""
    try:
        text = path.read_text(encoding="utf-8", errors="strict")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    first, _, rest = text.partition("\n")
    if first.strip() != "ENVI":
        raise DataError(f"{path} does not begin with the line ENVI; it is no ENVI header.")
    rest = "\n".join(line for line in rest.splitlines() if not line.lstrip().startswith(";"))
    fields: dict[str, str] = {}
    place = 0
    while match := FIELD.match(rest, place):
        key = " ".join(match[1].lower().split())
        if key in fields:
            raise DataError(f"{path} says {key!r} twice; remove one of them.")
        fields[key] = " ".join(match[2].split())
        place = match.end()
    if rest[place:].strip():
        line = rest[place:].strip().splitlines()[0]
        raise DataError(f"{path} cannot be read from {line[:60]!r} on; a header has lines of the form: key = value.")
    return fields


def _whole(fields: dict[str, str], key: str, path: Path, least: int, default: str | None = None) -> int:
    text = fields.get(key, default)
    if text is None:
        raise DataError(f"{path} does not say {key!r}; add it to the header.")
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < least:
        raise DataError(f"{path} has {key} = {text!r}; it must be a whole number of at least {least}.")
    return int(text)


def _number(fields: dict[str, str], key: str, path: Path) -> float | None:
    return None if key not in fields else _parse(fields[key], key, path)


def _numbers(fields: dict[str, str], key: str, count: int, path: Path) -> tuple[float, ...] | None:
    if key not in fields:
        return None
    text = fields[key]
    if not text.startswith("{"):
        raise DataError(f"{path} has {key} = {text[:40]!r}; it must be a list in braces.")
    parts = [part for part in text[1:-1].split(",") if part.strip()]
    if len(parts) != count:
        raise DataError(f"{path} has {len(parts)} values of {key!r} for {count} bands; it needs one for each band.")
    return tuple(_parse(part, key, path) for part in parts)


def _parse(text: str, key: str, path: Path) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DataError(f"{path} has {text.strip()!r} in {key!r}; it must be a number.") from None
    if not math.isfinite(number) and key != "data ignore value":
        raise DataError(f"{path} has {text.strip()!r} in {key!r}; it must be finite.")
    return number


def _wavelengths(fields: dict[str, str], bands: int, path: Path) -> tuple[float, ...] | None:
    found = _numbers(fields, "wavelength", bands, path)
    factor = NANOMETERS.get(fields.get("wavelength units", "").lower(), 1.0)
    return None if found is None else tuple(value * factor for value in found)


def _data_file(path: Path) -> Path:
    stem = path.with_suffix("")  # name.hdr stands for name or name.raw, name.raw.hdr for name.raw
    found = [file for suffix in DATA_SUFFIXES if (file := stem.with_name(stem.name + suffix)).is_file()]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or f"no {stem.name}, {stem.name}.raw or the like"
        raise DataError(f"{path} needs one data file beside it, but there is {names}; leave the one that it describes.")
    return found[0]
