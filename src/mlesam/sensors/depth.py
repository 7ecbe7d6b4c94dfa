"""Depth cameras: metres to inverse depth, log depth, or HHA (horizontal disparity, height above ground, angle with gravity).

Camera axes are those of OpenCV: x to the right, y down, z forward. A hole is NaN, 0 or anything below, and stays NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.files import EXTENSIONS, read_array

HHA_DISPARITY, HHA_HEIGHT, HHA_ANGLE = 310.0, 100.0, 38.0
"""The 8-bit convention of Gupta et al.'s published code: 310 / metres, 100 x metres, degrees + 38, each cut to 0..255."""


def inverse_depth(depth: np.ndarray) -> np.ndarray:
    """``(H, W)`` metres to 1/m, float32. What stereo and structured light measure: their noise is even in it."""
    return (1.0 / _holes(depth)).astype(np.float32)


def log_depth(depth: np.ndarray) -> np.ndarray:
    """``(H, W)`` metres to the natural logarithm of metres, float32: a ratio of distances is a difference."""
    return np.log(_holes(depth)).astype(np.float32)


def points_of(depth: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` float64: the point that each pixel shows, in metres in the camera's axes.

    Args:
        depth: ``(H, W)`` metres along z (not along the ray).
        matrix: 3x3 camera matrix in pixels, of an undistorted picture.
    """
    return _rays(depth.shape, matrix) * _holes(depth)[..., None]


def normals_of(depth: np.ndarray, matrix: np.ndarray, radius: int = 3) -> np.ndarray:
    """``(H, W, 3)`` float64: unit normals of the surface, pointing away from the camera; NaN at holes and where no plane fits.

    A plane n . X = 1 through the points of a pixel's square neighbourhood. On it 1/z = n . K^-1 (u, v, 1), so inverse depth
    is linear in the pixel's coordinates, and its least-squares fit takes sums over windows alone. Source: the published code of
    Gupta et al. 2013, which minimises the same residual.

    Args:
        depth, matrix: as in :func:`points_of`.
        radius: of the neighbourhood, 2 radius + 1 pixels wide. Nearer than this to an edge, one plane is laid through both of
            its sides.
    """
    import cv2

    inverse = 1.0 / _holes(depth)
    height, width = inverse.shape
    valid = np.isfinite(inverse)
    weight = valid.astype(np.float64)
    q = np.where(valid, inverse, 0.0)
    # Coordinates from the middle keep the differences of sums below accurate.
    u = np.broadcast_to(np.arange(width) - width // 2, q.shape).astype(np.float64)
    v = np.broadcast_to((np.arange(height) - height // 2)[:, None], q.shape).astype(np.float64)

    def window(values: np.ndarray) -> np.ndarray:
        side = 2 * radius + 1
        return cv2.boxFilter(values, cv2.CV_64F, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)

    with np.errstate(divide="ignore", invalid="ignore"):
        count = window(weight)
        mean_u, mean_v, mean_q = window(weight * u) / count, window(weight * v) / count, window(q) / count
        uu = window(weight * u * u) / count - mean_u * mean_u
        vv = window(weight * v * v) / count - mean_v * mean_v
        uv = window(weight * u * v) / count - mean_u * mean_v
        qu = window(q * u) / count - mean_q * mean_u
        qv = window(q * v) / count - mean_q * mean_v
        determinant = uu * vv - uv * uv
        determinant[~valid | (determinant < 1e-3)] = np.nan  # pixels on one line carry no plane
        across, down = (qu * vv - qv * uv) / determinant, (qv * uu - qu * uv) / determinant
        constant = mean_q - across * (mean_u + width // 2) - down * (mean_v + height // 2)
        normals = np.stack([across, down, constant], axis=-1) @ np.asarray(matrix, dtype=np.float64)  # K^T (a, b, c)
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def gravity_of(
    normals: np.ndarray,
    start: tuple[float, float, float] = (0.0, 1.0, 0.0),
    rounds: tuple[tuple[float, int], ...] = ((45.0, 5), (15.0, 5)),
) -> np.ndarray:
    """The direction of gravity in the camera's axes, from the floors and walls of a scene alone.

    Normals within a threshold of the current estimate (or its opposite) are taken as floors, those within it of the
    horizontal as walls; the next estimate is most parallel to floors and most perpendicular to walls: the eigenvector of
    sum(walls) n n^T - sum(floors) n n^T with the smallest eigenvalue. Source: Gupta et al. 2013, "Perceptual Organization and
    Recognition of Indoor Scenes from RGB-D Images", section 3.

    Args:
        normals: ``(..., 3)`` unit vectors; NaN are left out.
        start: first estimate; the camera must be within about 45 degrees of upright to it.
        rounds: threshold in degrees and iterations, one after the other.

    Returns:
        ``(3,)`` float64 unit vector. Where a scene shows neither floor nor wall, ``start``.
    """
    flat = normals.reshape(-1, 3)
    flat = flat[np.isfinite(flat).all(axis=1)]
    direction = np.asarray(start, dtype=np.float64) / np.linalg.norm(start)
    for threshold, count in rounds:
        for _ in range(count):
            along = np.abs(flat @ direction)
            floors = flat[along > math.cos(math.radians(threshold))]
            walls = flat[along < math.sin(math.radians(threshold))]
            if not len(floors) and not len(walls):
                break
            found = np.linalg.eigh(walls.T @ walls - floors.T @ floors)[1][:, 0]
            direction = found if found @ direction >= 0 else -found
    return direction


def hha(
    depth: np.ndarray,
    matrix: np.ndarray,
    gravity: np.ndarray | tuple[float, float, float] | None = None,
    camera_height: float | None = None,
) -> np.ndarray:
    """Horizontal disparity, height above ground, and angle with gravity, in physical units.

    Source: Gupta et al. 2014, "Learning Rich Features from RGB-D Images for Object Detection and Segmentation", section 2.

    Args:
        depth, matrix: as in :func:`points_of`.
        gravity: in the camera's axes, for instance of an accelerometer. None: :func:`gravity_of` normals of a radius of 10.
        camera_height: metres above ground. None: the lowest hundredth of the points seen is the ground.

    Returns:
        ``(H, W, 3)`` float32: 1/m; metres; degrees between gravity and the normal into the surface (0 a floor, 90 a wall, 180 a
        ceiling). NaN at holes; the angle also where no plane fits.

    Raises:
        DataError: a depth map without any measurement.
    """
    points = points_of(depth, matrix)
    if not np.isfinite(points).any():
        raise DataError("the depth map holds no measurement at all, all of it is holes; leave the frame's depth out.")
    if gravity is None:
        gravity = gravity_of(normals_of(depth, matrix, 10))
    else:
        gravity = np.asarray(gravity, dtype=np.float64) / np.linalg.norm(gravity)
    heights = -(points @ gravity)
    heights += camera_height if camera_height is not None else -np.nanpercentile(heights, 1)
    angles = np.degrees(np.arccos(np.clip(normals_of(depth, matrix, 3) @ gravity, -1, 1)))
    return np.stack([1.0 / points[..., 2], heights, angles], axis=-1).astype(np.float32)


def hha_8bit(values: np.ndarray) -> np.ndarray:
    """What :func:`hha` returned, on the scale of 8-bit HHA pictures: float32 in 0..255, not rounded, NaN kept.

    310 / metres (255: 1.2 m and nearer), 100 x metres of height (255: 2.55 m and higher), degrees + 38 (38 a floor, 128 a
    wall, 218 a ceiling). Source: Gupta et al.'s published code, which cuts to whole numbers on top.
    """
    scaled = values * np.array([HHA_DISPARITY, HHA_HEIGHT, 1.0], np.float32) + np.array([0, 0, HHA_ANGLE], np.float32)
    return np.clip(scaled, 0, 255).astype(np.float32)


@dataclass(frozen=True)
class DepthEncoder:
    """Depth maps to one of the pictures above."""

    kind: ClassVar[str] = "depth"
    suffixes: ClassVar[tuple[str, ...]] = EXTENSIONS

    encoding: Literal["metric", "inverse", "log", "hha"] = "metric"
    scale: float = 0.001
    """Metres per stored whole number. Files of floating-point numbers hold metres already."""
    nearest: float = 0.0
    farthest: float | None = None
    """Metres; what is nearer or farther is a hole. Many cameras store 65535 where nothing came back."""
    hha_units: Literal["8bit", "physical"] = "8bit"
    """``8bit``: 0 to 255 each. ``physical``: 1/m, metres, degrees."""
    gravity: tuple[float, float, float] | None = None
    """Direction in the camera's axes (x right, y down, z forward). None: estimated from every depth map."""
    camera_height: float | None = None
    """Metres above ground. None: the lowest hundredth of the points is the ground."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise RequestError(f"scale is {self.scale} m; it must be above 0.")
        if not 0 <= self.nearest < (math.inf if self.farthest is None else self.farthest):
            raise RequestError(
                f"nearest is {self.nearest} m and farthest {self.farthest} m; nearest must be at least 0 and below farthest."
            )
        if self.gravity is not None and not 0 < math.hypot(*self.gravity) < math.inf:
            raise RequestError(f"gravity is {list(self.gravity)}; it must be a direction, as in [0, 1, 0].")

    @property
    def channels(self) -> tuple[str, ...]:
        names = {"metric": ("depth",), "inverse": ("inverse depth",), "log": ("log depth",)}
        return names.get(self.encoding, ("disparity", "height", "angle"))

    @property
    def spec(self) -> dict[str, Any]:
        hha = "1/m, m, degrees" if self.hha_units == "physical" else "1/255"
        unit = {"metric": "m", "inverse": "1/m", "log": "ln m"}.get(self.encoding, hha)
        # NaN alone is a hole: 0 is 1 m as a logarithm, and infinitely far as an inverse.
        return {"like": "depth", "unit": unit, "missing": None}

    def read(self, path: Path) -> np.ndarray:
        """``(H, W)`` as stored: uint8, uint16 or float32."""
        stored = read_array(path, channels=1)
        if stored.ndim != 2:
            raise DataError(f"{path} has the shape {stored.shape}; a depth map has one channel.")
        return stored

    def encode(self, raw: np.ndarray, camera: Any = None) -> np.ndarray:
        """``(H, W, 1)`` or, as HHA, ``(H, W, 3)`` float32; NaN at holes. ``camera`` (``matrix``, ``size``) is needed for HHA."""
        depth = raw.astype(np.float64) * (1.0 if raw.dtype.kind == "f" else self.scale)
        farthest = math.inf if self.farthest is None else self.farthest
        depth[~((depth > 0) & (depth >= self.nearest) & (depth <= farthest) & np.isfinite(depth))] = np.nan
        if self.encoding == "metric":
            return depth.astype(np.float32)[..., None]
        if self.encoding == "inverse":
            return inverse_depth(depth)[..., None]
        if self.encoding == "log":
            return log_depth(depth)[..., None]
        if camera is None:
            raise RequestError("HHA needs the depth camera's matrix; give its calibration, or choose inverse depth.")
        if tuple(camera.size) != (depth.shape[1], depth.shape[0]):
            raise DataError(
                f"the depth map has {depth.shape[1]} x {depth.shape[0]} pixels and its camera {camera.size[0]} x "
                f"{camera.size[1]}; give the calibration of this picture's size."
            )
        values = hha(depth, camera.matrix, self.gravity, self.camera_height)
        return values if self.hha_units == "physical" else hha_8bit(values)


def _holes(depth: np.ndarray) -> np.ndarray:
    """Float64 metres, NaN where nothing was measured."""
    if depth.ndim != 2:
        raise DataError(f"a depth map has the shape {depth.shape}; it needs (H, W).")
    depth = np.asarray(depth, dtype=np.float64)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)


def _rays(shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    """``(H, W, 3)``: K^-1 (u, v, 1) of every pixel."""
    u, v = np.meshgrid(np.arange(shape[1], dtype=np.float64), np.arange(shape[0], dtype=np.float64))
    return np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(np.asarray(matrix, dtype=np.float64)).T
