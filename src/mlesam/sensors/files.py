"""Reading pictures and arrays as they were stored: 8 and 16 bits stay 8 and 16 bits, any number of channels.

Pillow decodes everything that it can hold without loss. It has no 16-bit colour, so those PNG files go through OpenCV
after Pillow has checked them; TIFF goes through tifffile, for any number of bands.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from mlesam.errors import DataError
from mlesam.sensors.archives import AnyPath, any_path, head, readable

PICTURES = (".png", ".jpg", ".jpeg")
EXTENSIONS = (*PICTURES, ".tif", ".tiff", ".npy")
MAX_PIXELS = 178_956_970
"""Largest picture that is decoded (about 13377 x 13377); the size is checked before any memory is taken."""
MAX_BYTES = 4 * 2**30
"""Largest array that is decoded, over all of its channels."""


def read_array(path: str | AnyPath, channels: int | None = None, beside: Iterable[AnyPath] = ()) -> np.ndarray:
    """Read a picture or array.

    Args:
        channels: how many the sensor has, where that is known.
        beside: other files of the same frame. Both tell which axis of an array holds the channels.

    Returns:
        ``(H, W)`` or ``(H, W, C)`` as uint8, uint16 or float32, see :func:`channels_last`. Wider whole numbers come as
        uint16 where they fit.

    Raises:
        DataError: missing, unreadable, truncated, too large, or of a kind that is not read.
    """
    path = any_path(path)
    return _numbers(_decode(path, channels, beside), path)


def _decode(path: AnyPath, channels: int | None = None, beside: Iterable[AnyPath] = ()) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise DataError(f"{path} is no {', '.join(e[1:] for e in EXTENSIONS)} file; convert it to one of these.")
    try:
        if extension == ".npy":
            array, known = _read_npy(path), False
        elif extension in (".tif", ".tiff"):
            array, known = _read_tiff(path)
        else:
            array, known = _read_picture(path), True
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds of errors on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be decoded ({reason}); it is damaged or cut off, write it again.") from error
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{path} has the shape {array.shape}; a sensor file needs (H, W), (H, W, C) or (C, H, W).")
    if array.ndim == 2 or known:
        return array
    told = (array.shape[0] == channels) != (array.shape[2] == channels)
    return channels_last(array, channels, None if told else _picture_size(beside))


def _picture_size(paths: Iterable[AnyPath]) -> tuple[int, int] | None:
    """Height and width of the first picture among the files whose header can be read."""
    for path in paths:
        if path.suffix.lower() in PICTURES:
            with contextlib.suppress(DataError):
                return image_size(path)
    return None


def image_size(path: str | AnyPath) -> tuple[int, int]:
    """Height and width of a file, from its header where the format allows it."""
    path = any_path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    if path.suffix.lower() in PICTURES:
        try:
            with _open(path) as picture:
                return picture.height, picture.width
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be decoded ({error}); it is damaged or cut off, write it again.") from error
    height, width = read_array(path).shape[:2]
    return height, width


def read_label(path: str | AnyPath, colors: Collection[tuple[int, int, int]] = ()) -> np.ndarray:
    """Read a label file as stored: ``(H, W)`` ids (palette PNGs give their indices) or ``(H, W, 3)`` colours.

    Args:
        colors: the classes' colours. A grey picture is ids that were saved as colours, unless all of it is in these.
    """
    path = any_path(path)
    if not path.is_file():
        raise DataError(f"there is no label file {path}; check the name.")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, which changes the ids it stores; write labels as PNG.")
    if path.suffix.lower() != ".npy":
        try:
            with _open(path) as picture:
                if picture.mode in ("P", "1"):
                    return np.asarray(picture).astype(np.uint8)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be decoded ({error}); it is damaged or cut off, write it again.") from error
    array = _decode(path)
    bits, _ = _png_format(path)
    if array.ndim == 2 and bits in (2, 4):
        array = array // (255 // (2**bits - 1))  # Pillow stretches them to 0..255
    if array.ndim == 3 and array.shape[2] == 4:
        array = array[..., :3]
    if array.ndim == 3 and (array[..., :1] == array).all():
        grey = {int(v) for v in np.unique(array)}
        if not grey <= {r for r, g, b in colors if r == g == b}:
            array = array[..., 0]
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.floor(array))).all():
        raise DataError(f"{path} holds fractions or NaN; a label file needs whole numbers, the class ids.")
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Write what :func:`read_array` reads: PNG for uint8 and uint16 with one or three channels, else ``.npy``."""
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        return
    import cv2

    stored = array[..., ::-1] if array.ndim == 3 else array  # OpenCV has blue first
    done, encoded = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"{array.dtype} values of the shape {array.shape} are no PNG")
    path.write_bytes(encoded.tobytes())


def _check_pixels(height: int, width: int, path: AnyPath) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path} claims to be {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; "
            "check the file, or cut it into tiles."
        )


def _check_array(shape: tuple[int, ...], dtype: np.dtype, path: AnyPath) -> None:
    if len(shape) == 3:
        _check_pixels(*_plane(shape), path)
    elif len(shape) == 2:
        _check_pixels(shape[0], shape[1], path)
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise DataError(
            f"{path} claims the shape {shape} of {dtype}, {size / 2**30:,.0f} GiB, more than the {MAX_BYTES // 2**30} GiB "
            "that are read; check the file, or cut it into tiles."
        )


_OPENING = threading.Lock()
"""Python's warning filters belong to the whole process: two threads that change and restore them leave them changed."""


def _open(path: AnyPath):
    from PIL import Image

    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(readable(path), formats=("PNG", "JPEG", "TIFF"))
        except Image.DecompressionBombError as error:
            claimed = re.search(r"\d+", str(error))  # Pillow names the pixels and keeps the sides to itself
            count = f"{int(claimed.group()):,}" if claimed else "more"
            raise DataError(
                f"{path} claims to have {count} pixels, more than the {MAX_PIXELS:,} that are read; "
                "check the file, or cut it into tiles."
            ) from None
    try:
        _check_pixels(picture.height, picture.width, path)
    except DataError:
        picture.close()
        raise
    return picture


def _read_picture(path: AnyPath) -> np.ndarray:
    with _open(path) as picture:
        bits, color = _png_format(path)
        if bits == 16 and color in (2, 4, 6):  # any but grey; whatever the file is called
            import cv2

            picture.verify()  # checksums of all chunks: OpenCV would fill a cut-off file with zeros
            array = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
            if array is None:
                raise DataError(f"{path} cannot be decoded as 16-bit colour; write it again.")
            order = [2, 1, 0, 3][: array.shape[2]] if array.ndim == 3 else None
            return array if order is None else array[..., order]
        if picture.mode == "P":
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        elif picture.mode in ("1", "LA", "PA"):
            picture = picture.convert("L")
        elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            picture = picture.convert("RGB")
        return np.asarray(picture)


def _png_format(path: AnyPath) -> tuple[int, int]:
    """Bits per channel and colour type of a PNG; zeros for any other file."""
    start = head(path, 26)
    return (start[24], start[25]) if len(start) == 26 and start.startswith(b"\x89PNG") else (0, 0)


class _Complaints(logging.Handler):
    """What tifffile logs about a broken file before it goes on with the rest of it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self.reader = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.reader:  # the logger is shared with threads that read other files
            self.found.append(record.getMessage())


def _read_tiff(path: AnyPath) -> tuple[np.ndarray, bool]:
    """The array, and whether the file itself says that its last axis holds the samples of a pixel."""
    import tifffile

    complaints = _Complaints()
    tifffile.logger().addHandler(complaints)
    try:
        with tifffile.TiffFile(readable(path)) as file:
            series = file.series[0]
            if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
                return _read_picture(path), True  # its numbers are indices
            _check_array(tuple(n for n in series.shape if n > 1), series.dtype, path)
            axes = "".join(a for a, n in zip(series.axes, series.shape, strict=True) if n > 1)
            try:
                array = np.squeeze(series.asarray())
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                array, axes = _read_compressed_tiff(path, series.dtype), "YXS"
    finally:
        tifffile.logger().removeHandler(complaints)
    if complaints.found:
        raise ValueError(complaints.found[0])
    if array.ndim != 3 or "S" not in axes:  # pages may be bands or rows
        return array, False
    return np.moveaxis(array, axes.index("S"), -1), True


def _read_compressed_tiff(path: AnyPath, dtype: np.dtype) -> np.ndarray:
    """A compression that tifffile lacks, through Pillow where that holds the values without loss."""
    try:
        array = _read_picture(path)
    except OSError:
        array = None
    if array is None or array.dtype != dtype:
        raise DataError(
            f"{path} stores {dtype} values in a compression that is not read without loss; save it uncompressed or with "
            "deflate, or install the package imagecodecs."
        )
    return array


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    first, second, third = shape
    return (second, third) if first < third else (first, second)


def _read_npy(path: AnyPath) -> np.ndarray:
    header = np.lib.format
    with path.open("rb") as file:
        read = header.read_array_header_1_0 if header.read_magic(file) == (1, 0) else header.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise DataError(
                f"{path} holds Python objects, which could run code and are never read; save plain numbers."
            )
        _check_array(shape, dtype, path)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size - file.tell():
            raise ValueError(f"it is shorter than its shape {shape}")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def _numbers(array: np.ndarray, path: AnyPath) -> np.ndarray:
    """Any stored type as uint8, uint16 or float32, without loss or not at all."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which is no measurement
            return array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype} values; a sensor file needs whole or real numbers.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.min() < 0 or array.max() > 65535:
        raise DataError(
            f"{path} holds {array.dtype} values from {array.min()} to {array.max()}; store whole numbers from 0 to 65535, "
            "or floating-point numbers in the sensor's unit."
        )
    return np.ascontiguousarray(array, dtype=np.uint16)  # also other byte orders, and types without an unsigned form


def channels_last(array: np.ndarray, channels: int | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """``(C, H, W)`` or ``(H, W, C)`` to ``(H, W, C)``, or ``(H, W)`` where C is 1.

    The first or the last axis holds the channels: the one as long as ``channels``; else the one beside a plane of
    ``size``; else the one beside a square; else the one nearest to ``channels`` in length, or the shorter.
    """
    first, second, third = array.shape
    near = channels or 1
    for leading, trailing in (
        (first == channels, third == channels),
        ((second, third) == size, (first, second) == size),
        (second == third, first == second),
        (abs(first - near) < abs(third - near), True),
    ):
        if leading != trailing:
            break
    if leading:
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if array.shape[2] == 1 else array
