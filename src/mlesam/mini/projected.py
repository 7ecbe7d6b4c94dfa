"""The projections that MUSES' own script writes: LiDAR, radar and events as pictures of the colour camera's size.

``projected_to_rgb/<sensor>/<split>/<weather>/<time>/<stem>_<sensor>.<png|npy|npz>``, by the rules of
``scripts/project_sensors_to_rgb.py`` without motion compensation and without enlarged points:

- LiDAR (range, intensity, height) and radar (range, intensity, 0) are float32, 0 where there is no point; points nearer than
  1 m, and radar points beyond 150 m, are left out; of several points in a pixel the last one stays.
- Events are counts of brighter and darker ones, uint8, and a third channel of 0.
- PNG holds uint16 (value + 100) * 150 of LiDAR and radar. The script hands its first channel to OpenCV as blue, so a reader
  that opens the file as RGB finds the channels in reverse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlesam.mini.pictures import write_png
from mlesam.mini.recordings import BIN, HEAD, SHORT, radar_angles
from mlesam.mini.rig import EVENT_AXES, EVENT_K, RGB_AXES, RGB_K, RGB_SIZE, calibration

SHIFT, SCALE = 100, 150
"""Of the PNG codec."""
NEAR, FAR = 1.0, 150.0
"""Metres: the nearest point of both, and the furthest one of the radar."""
FIELD_OF_VIEW = (145, 255)
"""The radar's columns that the script projects, and thereby none that look backwards."""
GROUND = -1.62
"""Height of every radar point, metres: a radar does not measure it."""


def project_lidar(points: np.ndarray) -> np.ndarray:
    """(N, 6) points of a recording to (H, W, 3) float32."""
    return _picture(points[:, :3], points[:, 3], points[:, 2], "lidar2rgb", np.inf)


def project_radar(image: np.ndarray) -> np.ndarray:
    """(HEAD + bins, AZIMUTHS) of a recording to (H, W, 3) float32. Bins without an echo are points as well."""
    first, last = FIELD_OF_VIEW
    angles = radar_angles()[first:last][image[10, first:last] > 0]
    echo = image[HEAD:, first:last].T[image[10, first:last] > 0]
    distance = BIN * np.arange(1, echo.shape[1] + 1)
    points = np.stack(
        [np.outer(np.cos(angles), distance), np.outer(np.sin(angles), distance), np.full(echo.shape, GROUND)], axis=-1
    )
    points, echo = points.reshape(-1, 3), echo.reshape(-1).astype(np.float64)
    return _picture(points, echo, np.zeros(len(points)), "radar2rgb", FAR)


def project_events(found: dict[str, np.ndarray]) -> np.ndarray:
    """The last 30 ms of a recording to (H, W, 3) uint8. Distances are not known, so only the cameras' rotation counts."""
    end = int(found["t"].max())
    late = found["t"].astype(np.int64) >= end - SHORT
    pixels = np.stack([found["x"], found["y"], np.ones_like(found["x"])])[:, late].astype(np.float64)
    u, v, w = RGB_K @ RGB_AXES @ EVENT_AXES.T @ np.linalg.inv(EVENT_K) @ pixels
    column, row = np.rint(u / w).astype(np.int64), np.rint(v / w).astype(np.int64)
    counts = np.zeros((*RGB_SIZE, 3), dtype=np.int64)
    brighter = found["p"][late] == 1
    np.add.at(counts, (row, column, np.where(brighter, 0, 1)), 1)
    return counts.astype(np.uint8)


def encode(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 to the PNG codec's uint16."""
    return ((image + SHIFT) * SCALE).astype(np.uint16)


def write_projected(path: Path, image: np.ndarray, kind: str) -> None:
    """Write a projection beside ``path``, whose extension is replaced by the kind's."""
    path = path.with_suffix(f".{kind}")
    if kind == "png":
        stored = image if image.dtype == np.uint8 else encode(image)
        write_png(path, stored[..., ::-1])
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if kind == "npy":
            np.save(file, image, allow_pickle=False)
        else:
            np.savez_compressed(file, image)


def _picture(points: np.ndarray, intensity: np.ndarray, height: np.ndarray, move: str, far: float) -> np.ndarray:
    """Draw points (N, 3) in a sensor's axes into the colour camera's picture."""
    away = np.sqrt((points * points).sum(axis=1))
    kept = (away >= NEAR) & (away <= far)
    points, intensity, height, away = points[kept], intensity[kept], height[kept], away[kept]
    matrix = np.array(calibration()["extrinsics"][move])
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    u, v, depth = RGB_K @ moved.T
    u, v = u / depth, v / depth
    rows, columns = RGB_SIZE
    inside = (u > 0) & (u < columns - 1) & (v > 0) & (v < rows - 1)
    image = np.zeros((*RGB_SIZE, 3), dtype=np.float32)
    where = v[inside].astype(np.int64), u[inside].astype(np.int64)
    for channel, values in enumerate((away, intensity, height)):
        image[(*where, channel)] = values[inside]
    return image


__all__ = ["encode", "project_events", "project_lidar", "project_radar", "write_projected"]
