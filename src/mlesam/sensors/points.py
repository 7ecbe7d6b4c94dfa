"""LiDAR: a cloud of points in the sensor's axes becomes a picture on the camera plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera, Mounted
from mlesam.sensors.point_files import SUFFIXES, check_columns, read_points
from mlesam.sensors.projection import Motion, no_point_inside, project_points

__all__ = ["PointsEncoder", "project_points", "read_points"]


@dataclass(frozen=True, kw_only=True)
class PointsEncoder(Mounted):
    """A LiDAR: range, intensity and height on the camera plane.

    MUSES' own tools (github.com/timbroed/MUSES) differ in this: they do not ask whether a point lies in front of the
    camera; they leave out the pixels at the picture's edge; they cut pixel coordinates off instead of rounding them, half a
    pixel up and left; of several points on a pixel the last in the file stays; and where they dilate (2 x 2) each channel
    takes its own maximum, so a pixel can hold the range of one point and the intensity of another, and the farthest
    one covers the nearest.
    """

    kind: ClassVar[str] = "points"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    columns: tuple[str, ...] = ("x", "y", "z", "intensity")
    """What each column of a recording holds. x, y, z (metres, z up), ``intensity`` and ``time`` (seconds) have a meaning;
    other names are read and not used. Without ``intensity`` that channel is left out."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the numbers in a ``.bin`` recording. KITTI: float32; MUSES: float64."""
    nearest: float = 1.0
    """Metres; points nearer to the sensor are dropped."""
    dilate: int = 1
    """Side in pixels of the square that a point paints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self.columns)
        if self.nearest < 0:
            raise RequestError(f"nearest is {self.nearest}, but it must be at least 0 metres.")
        if self.dilate < 1:
            raise RequestError(f"dilate is {self.dilate}, but it must be at least 1 pixel.")

    @property
    def channels(self) -> tuple[str, ...]:
        intensity = ("intensity",) if "intensity" in self.columns else ()
        return ("range (m)", *intensity, "height (m)")

    @property
    def spec(self) -> dict[str, Any]:
        unit = ", ".join("m" if name.endswith("(m)") else "1" for name in self.channels)
        return {"like": "lidar", "unit": unit}

    def read(self, path: Path) -> np.ndarray:
        """``(N, columns)`` as stored, see :func:`read_points`."""
        return read_points(path, self.columns, self.dtype)

    def encode(self, raw: np.ndarray, camera: Camera | None, motion: Motion | None = None) -> np.ndarray:
        """A recording as a picture.

        Args:
            raw: ``(N, columns)``, as :meth:`read` returns it.
            camera: whose plane the points are brought to.
            motion: of the sensor; needs a column ``time`` in seconds of the same clock.

        Returns:
            ``(H, W, channels)`` float32: range in metres, intensity as recorded, height (z in the sensor's axes) in metres;
            NaN where nothing was measured.

        Raises:
            RequestError: no camera, or ``motion`` without a column ``time``.
            DataError: other columns, no point at all, or a calibration that brings no point into the picture.
        """
        if camera is None:
            raise RequestError("points are projected to a camera; give the rig one with its size and matrix.")
        raw = np.asarray(raw)
        if raw.ndim != 2 or raw.shape[1] != len(self.columns):
            raise DataError(
                f"the points have the shape {raw.shape}, but columns names {len(self.columns)} ({', '.join(self.columns)}); "
                "name every column of the recording."
            )
        if not len(raw):
            raise DataError("the recording holds no point; leave the sensor out where it measured nothing.")
        if motion is not None and "time" not in self.columns:
            raise RequestError(
                f"motion needs the time of each point, but columns is {list(self.columns)}; name a time."
            )
        order = [self.columns.index(name) for name in ("x", "y", "z", "intensity") if name in self.columns]
        points = raw if order == list(range(raw.shape[1])) else raw[:, order]
        picture = project_points(
            points,
            camera,
            self.to_camera,
            nearest=self.nearest,
            dilate=self.dilate,
            times=None if motion is None else raw[:, self.columns.index("time")],
            motion=motion,
        )
        if np.isnan(picture[..., 0]).all():
            raise no_point_inside(points, camera, self.to_camera, self.nearest)
        return picture
