"""Spinning radar: a polar picture of azimuths and ranges becomes a picture on the camera plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera, Mounted
from mlesam.sensors.files import read_array
from mlesam.sensors.projection import Keep, Motion, no_point_inside, project_points


@dataclass(frozen=True, kw_only=True)
class RadarEncoder(Mounted):
    """A radar that turns about its vertical axis and measures the strength of the echo by range, and no elevation.

    Its axes are x forward, y left, z up. Every echo is taken to come from the ground, z = ``ground``: that is where a
    standing thing touches it. The defaults of the layout are those of a Navtech radar as MUSES stores it (rows are ranges,
    columns azimuths; bins 0-3 seconds and 4-7 nanoseconds as little-endian uint32, bin 10 above 0 where the azimuth was
    measured, echoes from bin 11). MUSES' own tools (github.com/timbroed/MUSES) keep cells of strength 0, and of several
    cells on a pixel the last in the file.
    """

    kind: ClassVar[str] = "radar"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".tif", ".tiff", ".npy")

    resolution: float
    """Metres a bin. The first echo bin is one ``resolution`` away."""
    ground: float
    """Metres: z of the ground in the radar's axes, below 0 for a radar on a roof."""
    azimuths: Literal["columns", "rows"] = "columns"
    """Which axis of the recording is the azimuth; the other one is the range."""
    header: int = 11
    """Bins before the first echo."""
    valid: int | None = 10
    """Bin that is 0 where an azimuth was not measured. None: all are."""
    clock: Literal["seconds+nanoseconds"] | None = "seconds+nanoseconds"
    """What the first 8 bins hold: when each azimuth was measured. None: nothing that is known."""
    first_azimuth: float = 0.0
    """Degrees, to the left of forward, of the first azimuth. MUSES: 179.1."""
    clockwise: bool = True
    """Whether the azimuths go round clockwise, seen from above."""
    sector: tuple[float, float] = (-180.0, 180.0)
    """Azimuths that are used, in degrees, from the right (below 0) to the left (above 0) of forward; for a camera that looks
    back ``(130, 230)``. The camera's field of view, a little wider, saves most of the time."""
    range_offset: float = 0.0
    """Metres that are added to every range."""
    nearest: float = 1.0
    """Metres; echoes nearer to the radar are dropped."""
    farthest: float = 150.0
    """Metres; echoes farther from the radar are dropped."""
    threshold: float = 0.0
    """Only stronger echoes are kept. Most cells of a recording are noise of low strength."""
    keep: Keep = "nearest"
    """Which of several echoes on a pixel is kept. Far away one pixel holds dozens of bins: there ``strongest`` is the target."""
    dilate: int = 1
    """Side in pixels of the square that an echo paints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = [
            ("resolution", self.resolution, self.resolution > 0, "above 0 metres"),
            ("header", self.header, self.header >= 0, "at least 0 bins"),
            ("valid", self.valid, self.valid is None or 0 <= self.valid < self.header, "null or one of the header's bins"),
            ("clock", self.clock, self.clock is None or self.header >= 8, "null where the header has fewer than 8 bins"),
            ("sector", list(self.sector), 0 < self.sector[1] - self.sector[0] <= 360, "right edge, then left edge, in degrees"),
            ("nearest", self.nearest, 0 <= self.nearest < self.farthest, "at least 0 and below farthest"),
            ("dilate", self.dilate, self.dilate >= 1, "at least 1 pixel"),
        ]  # fmt: skip
        for key, value, holds, rule in rules:
            if not holds:
                raise RequestError(f"{key} is {value}, but it must be {rule}.")

    @property
    def channels(self) -> tuple[str, ...]:
        # The third is there because published radar pictures have it, and three channels need no stem.
        return ("range (m)", "intensity", "0")

    @property
    def spec(self) -> dict[str, Any]:
        return {"like": "radar", "unit": "m, 1, 1"}

    def read(self, path: Path) -> np.ndarray:
        """The polar picture as stored, ``(H, W)``."""
        raw = read_array(path)
        if raw.ndim == 3 and (raw[..., :1] == raw[..., :3]).all():
            raw = raw[..., 0]  # grey saved as colour
        return raw

    def points(self, raw: np.ndarray, timed: bool = False, cells: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """The echoes in the radar's axes, in order of range.

        Args:
            raw: ``(H, W)``, as :meth:`read` returns it.
            timed: also when each was measured.
            cells: every cell within sector and ranges instead, whatever was measured there.

        Returns:
            ``(N, 4)`` float64: x, y, z in metres (x forward, y left, z up), strength as stored. And ``(N,)`` float64
            seconds of the radar's clock, None unless ``timed``.

        Raises:
            RequestError: ``timed`` without ``clock``. DataError: a recording of another layout.
        """
        polar = self._polar(raw)
        count = polar.shape[1]
        step = 360.0 / count
        degrees = self.first_azimuth + np.arange(count) * (-step if self.clockwise else step)
        ranges = np.arange(1, len(polar) - self.header + 1) * self.resolution + self.range_offset
        right, left = self.sector
        used = (degrees - right + 1e-9) % 360.0 <= left - right + 2e-9  # an azimuth on an edge is inside
        if self.valid is not None:
            used &= polar[self.valid] != 0
        columns = np.flatnonzero(used)
        rows = np.flatnonzero((ranges >= self.nearest) & (ranges <= self.farthest))
        strength = polar[np.ix_(rows + self.header, columns)]
        row, column = np.nonzero(np.ones_like(strength, dtype=bool) if cells else strength > self.threshold)
        distance, angle = ranges[rows[row]], np.radians(degrees[columns])
        points = np.empty((len(row), 4))
        points[:, 0] = distance * np.cos(angle)[column]
        points[:, 1] = distance * np.sin(angle)[column]
        points[:, 2] = self.ground
        points[:, 3] = strength[row, column]
        return points, self._seconds(polar)[columns[column]] if timed else None

    def _polar(self, raw: np.ndarray) -> np.ndarray:
        """Rows are ranges, columns azimuths."""
        raw = np.asarray(raw)
        if raw.ndim != 2:
            raise DataError(f"the radar's recording has the shape {raw.shape}, but it must be ranges by azimuths.")
        polar = raw.T if self.azimuths == "rows" else raw
        if len(polar) <= self.header:
            raise DataError(
                f"the radar's recording has {len(polar)} bins an azimuth, no more than the {self.header} of its header; check "
                "azimuths (now the recording's " + self.azimuths + ") and header."
            )
        return polar

    def _seconds(self, polar: np.ndarray) -> np.ndarray:
        """``(azimuths,)`` float64."""
        if self.clock is None:
            raise RequestError("motion needs the time of each azimuth, but clock is null.")
        if polar.dtype != np.uint8:
            raise DataError(f"the radar's recording is {polar.dtype}, but a clock is stored in bytes; set clock: null.")
        words = np.ascontiguousarray(polar[:8].T).view("<u4").astype(np.float64)
        return words[:, 0] + words[:, 1] * 1e-9

    def encode(self, raw: np.ndarray, camera: Camera | None, motion: Motion | None = None) -> np.ndarray:
        """A recording as a picture.

        Args:
            raw: ``(H, W)``, as :meth:`read` returns it.
            camera: whose plane the echoes are brought to.
            motion: of the radar, on the radar's clock.

        Returns:
            ``(H, W, 3)`` float32: distance in metres from the radar to the place on the ground, strength as stored, and 0;
            NaN where nothing was measured. A frame without any echo above ``threshold`` is NaN everywhere.

        Raises:
            RequestError: no camera, or ``motion`` without ``clock``.
            DataError: another layout, or a calibration that brings no cell into the picture.
        """
        if camera is None:
            raise RequestError("radar echoes are projected to a camera; give the rig one with its size and matrix.")
        points, times = self.points(raw, timed=motion is not None)
        picture = project_points(
            points,
            camera,
            self.to_camera,
            nearest=self.nearest,
            dilate=self.dilate,
            keep=self.keep,
            times=times,
            motion=motion,
        )
        height = picture[..., 2]
        height[height == height] = 0.0  # measured pixels; NaN differs from itself
        if np.isnan(height).all():
            cells, _ = self.points(raw, cells=True)  # where there is no echo, the calibration may still be right
            if np.isnan(project_points(cells, camera, self.to_camera, nearest=self.nearest)[..., 0]).all():
                raise no_point_inside(cells, camera, self.to_camera, self.nearest)
        return picture
