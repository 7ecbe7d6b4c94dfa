"""Reading pictures and arrays as they were stored: 8 and 16 bits stay 8 and 16 bits, any number of channels.

Pillow decodes everything that it can hold without loss. It has no 16-bit colour, so those PNG files go through OpenCV
after Pillow has checked them; TIFF goes through tifffile, for any number of bands.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np

from mlesam.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
MAX_PIXELS = 178_956_970
"""Largest picture that is decoded (about 13377 x 13377); the size is checked before any memory is taken."""


def read_array(path: str | Path) -> np.ndarray:
    """Read a picture or array.

    Returns:
        ``(H, W)`` or ``(H, W, C)`` as uint8, uint16 or float32. In 3-D arrays and TIFFs the shorter of the first and the
        last axis is taken as the channels.

    Raises:
        DataError: missing, unreadable, truncated, too large, or of a kind that is not read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name.")
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise DataError(f"{path} is no {', '.join(e[1:] for e in EXTENSIONS)} file; convert it to one of these.")
    try:
        if extension == ".npy":
            array = _read_npy(path)
        elif extension in (".tif", ".tiff"):
            array = _read_tiff(path)
        else:
            array = _read_picture(path)
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds of errors on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be decoded ({reason}); it is damaged or cut off, write it again.") from error
    return _tidy(array, path)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a file, from its header where the format allows it."""
    path = Path(path)
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        try:
            with _open(path) as picture:
                return picture.height, picture.width
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be decoded ({error}); it is damaged or cut off, write it again.") from error
    height, width = read_array(path).shape[:2]
    return height, width


def read_label(path: str | Path) -> np.ndarray:
    """Read a label PNG as stored: ``(H, W)`` ids (palette PNGs give their indices) or ``(H, W, 3)`` colours."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no label file {path}; check the name.")
    try:
        with _open(path) as picture:
            if picture.mode == "P":
                return np.asarray(picture)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be decoded ({error}); it is damaged or cut off, write it again.") from error
    array = read_array(path)
    if array.ndim == 3 and array.shape[2] == 4:
        array = array[..., :3]
    if array.ndim == 3 and (array[..., :1] == array).all():
        array = array[..., 0]  # ids that were saved as grey RGB
    return array


def _check_pixels(height: int, width: int, path: Path) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path} claims to be {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; "
            "check the file, or cut it into tiles."
        )


def _open(path: Path):
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path, formats=("PNG", "JPEG", "TIFF"))
        except Image.DecompressionBombError:
            _check_pixels(*_claimed_size(path), path)
            raise
    _check_pixels(picture.height, picture.width, path)
    return picture


def _claimed_size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        head = file.read(24)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
        return height, width
    return MAX_PIXELS, 2  # a JPEG or TIFF that Pillow already found too large


def _read_picture(path: Path) -> np.ndarray:
    with _open(path) as picture:
        if path.suffix.lower() == ".png" and _png_is_16_bit_color(path):
            import cv2

            picture.verify()  # checksums of all chunks: OpenCV would fill a cut-off file with zeros
            array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
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


def _png_is_16_bit_color(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(26)
    return len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6)


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            shape = tuple(n for n in series.shape if n > 1) or series.shape
            if len(shape) == 3:
                _check_pixels(*_plane(shape), path)
            elif len(shape) == 2:
                _check_pixels(shape[0], shape[1], path)
            return np.squeeze(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    return _read_picture(path)  # a compression that Pillow's libtiff has


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    first, second, third = shape
    return (second, third) if first < third else (first, second)


def _read_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 3:
        _check_pixels(*_plane(array.shape), path)
    elif array.ndim == 2:
        _check_pixels(array.shape[0], array.shape[1], path)
    return np.array(array)


def _tidy(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{path} has the shape {array.shape}; a sensor file needs (H, W), (H, W, C) or (C, H, W).")
    if array.ndim == 3:
        array = channels_last(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.dtype(">u2"):
        return array.astype(np.uint16)
    if array.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {array.dtype} values; a sensor file needs whole or real numbers.")
    if array.dtype == np.int32 and path.suffix.lower() == ".png":  # Pillow's mode I, a 16-bit picture
        return array.astype(np.uint16)
    return array.astype(np.float32)


def channels_last(array: np.ndarray) -> np.ndarray:
    """``(C, H, W)`` or ``(H, W, C)`` to ``(H, W, C)``, or ``(H, W)`` where C is 1."""
    if array.shape[0] < array.shape[2]:
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if array.shape[2] == 1 else array
