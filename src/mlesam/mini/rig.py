"""The vehicle of the MUSES miniature: where its sensors sit, what ``calib.json`` says of them, and its clock.

Axes: a vehicle, the LiDAR and the radar have x forward, y left, z up. A camera has x right, y down, z forward. The GNSS receiver
has x forward, y right, z down. Positions are metres forward, left and up of the colour camera. Sizes, focal lengths and principal
points are near those of the original (an event camera of 1280 x 720, a K near 1055, 941, 550); positions are our own.
"""

from __future__ import annotations

import math

import numpy as np

RGB_SIZE, EVENT_SIZE = (1080, 1920), (720, 1280)
RGB_SCALE, EVENT_SCALE = 4, 5
"""How many pixels of the file one rendered pixel becomes, along each side."""
RGB_K = np.array([[1056.0, 0, 940], [0, 1056, 552], [0, 0, 1]])
EVENT_K = np.array([[1040.0, 0, 625], [0, 1040, 345], [0, 0, 1]])
HEIGHT = 1.50
"""Metres of the colour camera above the road."""
PITCH = math.asin(-0.04)
LIDAR, RADAR, EVENT, GNSS = (-0.05, 0.10, 0.08), (-0.30, -0.12, 0.12), (0.0, -0.03, 0.0), (-0.80, 0.05, 0.25)
"""Positions. The radar is 1.62 m above the road, the level that the SDK assumes."""
EVENT_TURN, EVENT_TILT = 0.009, 0.003
"""Radians that the event camera looks further right and further up than the colour camera."""


def camera_axes(turn: float, pitch: float) -> np.ndarray:
    """(3, 3) vehicle to camera, for a camera turned to the right and pitched upwards, radians."""
    cos_t, sin_t, cos_p, sin_p = math.cos(turn), math.sin(turn), math.cos(pitch), math.sin(pitch)
    right = [-sin_t, -cos_t, 0.0]
    down = [sin_p * cos_t, -sin_p * sin_t, -cos_p]
    forward = [cos_p * cos_t, -cos_p * sin_t, sin_p]
    return np.array([right, down, forward])


RGB_AXES, EVENT_AXES = camera_axes(0.0, PITCH), camera_axes(EVENT_TURN, PITCH + EVENT_TILT)


def transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def calibration() -> dict[str, dict[str, object]]:
    """``calib.json``: intrinsics in pixels of the full pictures, extrinsics as 4 x 4 matrices that move points.

    ``D``, lens distortion, is 0: the SDK says that its data are undistorted.
    """
    straight = [0.0] * 5
    to_gnss = np.diag([1.0, -1.0, -1.0])
    moves = {
        "lidar2rgb": transform(RGB_AXES, RGB_AXES @ LIDAR),
        "radar2rgb": transform(RGB_AXES, RGB_AXES @ RADAR),
        "event2rgb": transform(RGB_AXES @ EVENT_AXES.T, RGB_AXES @ EVENT),
        "lidar2gnss": transform(to_gnss, to_gnss @ (np.array(LIDAR) - GNSS)),
        "radar2gnss": transform(to_gnss, to_gnss @ (np.array(RADAR) - GNSS)),
    }
    return {
        "intrinsics": {
            "rgb": {"K": RGB_K.tolist(), "D": straight},
            "event": {"K": EVENT_K.tolist(), "D": straight},
        },
        "extrinsics": {name: matrix.tolist() for name, matrix in moves.items()},
    }


def frame_of(
    size: tuple[int, int], scale: int, matrix: np.ndarray
) -> tuple[tuple[int, int], float, tuple[slice, slice]]:
    """How to render a camera whose principal point is off the middle, which the world's cameras cannot: larger, and cut.

    Returns:
        Height and width to render, focal length in rendered pixels, and the rows and columns to keep.
    """
    windows = []
    for length, middle in zip((size[0] // scale, size[1] // scale), (matrix[1, 2], matrix[0, 2]), strict=True):
        middle = round(middle / scale)
        before = max(0, length - 2 * middle)  # what is missing on the side of the shorter half
        whole = max(length + before, 2 * middle)
        windows.append((whole, slice(before, before + length)))
    (height, rows), (width, columns) = windows
    return (height, width), matrix[0, 0] / scale, (rows, columns)


__all__ = [
    "EVENT", "EVENT_AXES", "EVENT_K", "EVENT_SCALE", "EVENT_SIZE", "EVENT_TILT", "EVENT_TURN", "HEIGHT", "LIDAR", "PITCH",
    "RADAR", "RGB_AXES", "RGB_K", "RGB_SCALE", "RGB_SIZE", "calibration", "frame_of",
]  # fmt: skip
