"""Sensors, class maps and errors as pictures that can be read at the size of a thumbnail."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from mlesam.inference.segmenter import picture, stretched
from mlesam.sample import IGNORE
from mlesam.sensors.colormaps import lookup_table
from mlesam.sensors.spec import SensorSpec

# Perceptually even maps, from far or cold to near or warm: viridis and inferno (matplotlib, CC0), at equal steps.
VIRIDIS = (
    (68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140), (34, 168, 132),
    (68, 191, 112), (122, 209, 81), (189, 223, 38), (253, 231, 37),
)  # fmt: skip
INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84), (221, 81, 58),
    (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
EMPTY = (24, 27, 33)
"""Colour of pixels where a sensor measured nothing."""
UNSCORED = ((112, 116, 124), (158, 162, 170))
"""Colours of the stripes over pixels whose class is not known: a flat colour could be that of a class."""
WRONG, RIGHT = (235, 64, 52), (216, 220, 225)
POINT = 2.2
"""Least width of a sparse measurement in the drawn picture, in pixels: finer points vanish in a thumbnail."""


def kind(modality: str, spec: SensorSpec) -> str:
    """How a sensor is drawn: ``color``, ``polarity``, ``range``, ``warmth``, ``angle``, ``grey``, ``three`` or ``bands``."""
    if spec.photometric == "color" and spec.channels <= 3:
        return "color"
    if spec.photometric == "sparse":
        # A sensor with a value for "nothing measured" has returns; one without it counts changes.
        return "range" if spec.missing is not None or spec.channels == 1 else "polarity"
    if spec.channels == 1:
        if spec.unit in ("m", "mm", "cm", "km"):
            return "range"
        words = modality.lower().replace("-", "_").split("_")
        warm = "therm" in modality.lower() or {"infrared", "ir", "lwir", "mwir", "tir", "flir"} & set(words)
        return "warmth" if warm else "grey"
    if spec.channels == 2 and spec.photometric == "none":
        return "angle"  # sine and cosine, as the built-in aolp
    return "three" if spec.channels == 3 else "bands"


MEANING = {
    "color": "as the camera shows it",
    "polarity": "orange: got brighter, blue: got darker, points enlarged",
    "range": "yellow: near, violet: far, dark: nothing measured",
    "warmth": "yellow: warm, violet: cold",
    "grey": "dark to bright",
    "angle": "hue: angle",
    "three": "its three channels as red, green and blue",
    "bands": "false colours, the first third of its bands in blue, the middle in green, the last in red",
}
"""What the colours of each kind of picture say."""


def sensor_picture(modality: str, values: np.ndarray, spec: SensorSpec, side: int) -> np.ndarray:
    """A sensor as a picture to look at, at most ``side`` pixels long.

    Args:
        values: ``(C, H, W)`` as :meth:`SensorSpec.encode` returns it; NaN where nothing was measured.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    values = np.asarray(values, dtype=np.float32)
    size = fitted(values.shape[-2], values.shape[-1], side)
    how = kind(modality, spec)
    if how == "color":
        return _shrunk(picture(values, values, spec), size)
    if how == "polarity":
        return _polarity(values, size)
    if how == "range":
        return _range(values[0], size, sparse=spec.photometric == "sparse")
    if how == "angle":
        hue = (np.arctan2(np.nan_to_num(values[0]), np.nan_to_num(values[1])) / np.pi + 1) * 90
        color = np.stack([hue, np.full_like(hue, 170), np.full_like(hue, 225)], axis=-1).astype(np.uint8)
        return _shrunk(cv2.cvtColor(color, cv2.COLOR_HSV2RGB), size)
    drawn = _colored(stretched(values[0]), INFERNO) if how == "warmth" else picture(values, values, spec)
    drawn[~np.isfinite(values).any(axis=0)] = EMPTY
    return _shrunk(drawn, size)


def _range(distance: np.ndarray, size: tuple[int, int], sparse: bool) -> np.ndarray:
    measured = np.isfinite(distance)
    # Near things are few pixels of most frames' range: even steps in logarithm keep their shape.
    nearness = 1.0 - stretched(np.log(np.where(measured, np.maximum(distance, 1e-3), np.nan)))
    nearness = np.where(measured, nearness, -1.0).astype(np.float32)
    if sparse:
        nearness = cv2.dilate(nearness, _brush(distance.shape, size))  # where points overlap the nearer one shows
    drawn = _colored(np.maximum(nearness, 0.0), VIRIDIS)
    drawn[nearness < 0] = EMPTY
    return _shrunk(drawn, size)


def _polarity(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    values = np.nan_to_num(values)
    brush = _brush(values.shape[1:], size)
    up, down = (cv2.dilate(np.ascontiguousarray(values[i]), brush) for i in (0, -1))
    top = max(float(np.percentile(x[x > 0], 90)) if (x > 0).any() else 0.0 for x in (up, down)) or 1.0
    strength = np.clip(np.maximum(up, down) / top, 0, 1) ** 0.6
    color = np.where(
        (up >= down)[..., None], np.array((255, 150, 50), np.float32), np.array((70, 165, 255), np.float32)
    )
    ground = np.array(EMPTY, np.float32)
    drawn = ground + strength[..., None] * (color - ground)
    return _shrunk(drawn.astype(np.uint8), size)


def _brush(shape: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    width = max(1, round(POINT * shape[0] / size[0]))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE if width > 2 else cv2.MORPH_RECT, (width, width))


def _colored(scaled: np.ndarray, stops: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    return lookup_table(stops).astype(np.uint8)[(scaled * 255).astype(np.uint8)]


# ---------------------------------------------------------------- classes


def class_picture(labels: np.ndarray, colors: Sequence[tuple[int, int, int]], side: int) -> np.ndarray:
    """``(H, W)`` class ids (``IGNORE``: not scored) in the classes' colours, ``(h, w, 3)`` uint8."""
    table = np.array([*colors, (0, 0, 0)], dtype=np.uint8)  # IGNORE is -1, the last row
    return _shrunk(_striped(table[labels], labels == IGNORE, side), fitted(labels.shape[0], labels.shape[1], side))


def error_picture(predicted: np.ndarray, truth: np.ndarray, side: int) -> np.ndarray:
    """Wrong pixels red, right ones pale, pixels that are not scored striped. Both ``(H, W)`` class ids."""
    drawn = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    drawn[predicted != truth] = WRONG
    return _shrunk(_striped(drawn, truth == IGNORE, side), fitted(truth.shape[0], truth.shape[1], side))


def _striped(drawn: np.ndarray, where: np.ndarray, side: int) -> np.ndarray:
    """Stripes over the unscored pixels, three pixels wide in the finished picture."""
    rows, columns = np.nonzero(where)
    width = max(3, round(3 * max(where.shape) / side))
    drawn[rows, columns] = np.array(UNSCORED, dtype=np.uint8)[(rows + columns) // width % 2]
    return drawn


# ---------------------------------------------------------------- files


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the longer side at most ``side``; never enlarged."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shrunk(drawn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if drawn.shape[:2] == size:
        return np.ascontiguousarray(drawn)
    return cv2.resize(np.ascontiguousarray(drawn), (size[1], size[0]), interpolation=cv2.INTER_AREA)


def data_uri(drawn: np.ndarray) -> str:
    """A picture as an address that holds it. Few flat colours are smaller, and better, without loss."""
    files = []
    for lossless in (True, False):
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, format="WEBP", lossless=lossless, quality=82, method=4)
        files.append(buffer.getvalue())
    smallest = files[0] if len(files[0]) <= 1.2 * len(files[1]) else files[1]
    return f"data:image/webp;base64,{base64.b64encode(smallest).decode()}"
