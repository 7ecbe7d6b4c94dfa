"""What the LiDAR, the radar, the event camera and the GNSS receiver of the MUSES miniature record, as their files hold it.

Formats follow the SDK (github.com/timbroed/MUSES), and reports of people who opened the files where the SDK does not say.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np

from mlesam.mini.rig import (
    EVENT,
    EVENT_K,
    EVENT_SCALE,
    EVENT_SIZE,
    EVENT_TILT,
    EVENT_TURN,
    LIDAR,
    PITCH,
    RADAR,
    frame_of,
)
from mlesam.mini.scene import THINGS, Instant
from mlesam.sensors.gnss import FIELDS
from mlesam.world.draws import Draws
from mlesam.world.geometry import SKY
from mlesam.world.weather import clearness

LASERS, COLUMNS, ROWS = 5, 220, 44
"""The LiDAR has five lasers side by side (the ``ring``, 1 to 5); together they make a grid of rays."""
LIDAR_WIDE, LIDAR_HIGH = math.radians(60.0), math.radians(12.5)
"""Half of the angles that the LiDAR covers."""
SWEEP = 0.1
"""Seconds a sweep takes, as of the original: points fall on the right pixels only once the vehicle's motion is corrected."""
AZIMUTHS, BINS, BIN = 400, 7536, 0.0438
"""The radar's directions, and its range bins with their length in metres: bin k ends at (k + 1) * BIN, 330 m in all."""
TURN = 0.25
"""Seconds of one turn of the radar."""
SPECKLED = 4000
"""Bins with noise; without any beyond, files stay small."""
HEAD = 11
"""Rows before the first bin: seconds, nanoseconds, sweep counter, valid flag."""
ELEVATIONS = (-8.0, -5.0, -3.0, -1.5, -0.5, 0.5, 2.0)
"""Degrees at which the radar's beam is sampled."""
ECHO = {
    "building": 190, "wall": 130, "hedge": 75, "tree": 70, "pole": 170, "sign": 185, "vehicle": 240, "lorry": 250,
    "pedestrian": 100, "clutter": 120,
}  # fmt: skip
"""Strongest echo of each thing, 0 to 255. The ground and the sky give none."""
WINDOW, SHORT = 100_000, 30_000
"""Microseconds of an event recording; those of the downloads that hold only what the SDK accumulates."""
MOMENTS = (-0.1, -0.065, -0.03, 0.0)
"""Seconds at which the event camera's light is rendered. In between its logarithm runs in a straight line."""
THRESHOLD = 0.25
"""Change of the logarithm of light that makes an event."""


def lidar(now: Instant, seconds: float, draws: Draws) -> np.ndarray:
    """(N, 6) float64: x, y, z in the LiDAR's axes (forward, left, up), intensity 0 to 255, ring, timestamp in seconds.

    Every point is where the LiDAR saw it at its timestamp, so the SDK's motion compensation makes it exact. A few returns come
    from closer than a metre, which the SDK drops.

    Args:
        seconds: of the clock, at the instant.
    """
    side = np.linspace(LIDAR_WIDE, -LIDAR_WIDE, COLUMNS)[None, :] + np.zeros((ROWS, 1))
    up = np.linspace(LIDAR_HIGH, -LIDAR_HIGH, ROWS)[:, None] + np.zeros((1, COLUMNS))
    rays = np.stack([np.cos(up) * np.cos(side), np.cos(up) * np.sin(side), np.sin(up)])
    late = np.linspace(-SWEEP / 2, SWEEP / 2, COLUMNS)[None, :] + np.zeros((ROWS, 1))
    seen = now.cast(LIDAR, rays, late)
    shape = seen.distance.shape
    distance = np.where(seen.hits.part == SKY, 0.0, seen.hits.depth)
    strength = seen.infrared * (0.3 + 0.7 * seen.facing) * clearness(2 * now.air.haze, seen.distance)
    back = strength / (seen.distance * seen.distance + 1) * 2600 * (0.6 + draws.uniforms(*shape)) > 1
    back &= (draws.uniforms(*shape) > 0.02 + 0.25 * now.air.wet) & (seen.hits.part != SKY)
    measured = distance + 0.01 * draws.normals(*shape)
    drops = draws.uniforms(*shape) < 0.002
    measured = np.where(drops, 0.3 + 0.6 * draws.uniforms(*shape), measured)
    kept = back | drops
    bright = np.clip(np.where(drops, 4.0, 255 * 0.9 * strength), 1, 255)
    ring = 1 + (np.arange(COLUMNS) * LASERS // COLUMNS)[None, :] + np.zeros((ROWS, 1))
    columns = [*(rays[axis] * measured for axis in range(3)), np.rint(bright), ring, seconds + late]
    return np.stack([column[kept] for column in columns], axis=1).astype(np.float64)


def radar_angles() -> np.ndarray:
    """(AZIMUTHS,) radians to the left of straight ahead. Column 199 looks ahead, columns grow clockwise, as in the SDK."""
    return -np.radians(-180.0 + 360.0 / AZIMUTHS * np.arange(1, AZIMUTHS + 1))


def radar(now: Instant, microseconds: int, draws: Draws) -> np.ndarray:
    """(HEAD + BINS, AZIMUTHS) uint8, one column a direction.

    Rows 0-3 and 4-7 are the seconds and nanoseconds of each column as little-endian 32-bit numbers; 8-9 the sweep counter, which
    the SDK does not read (5600 steps a turn, as Navtech's radars have); 10 is 255 where the column is valid; two columns are not
    and hold rubbish.

    Args:
        microseconds: of the clock, at the instant, which is the middle of the turn.
    """
    angles = radar_angles()
    up = np.radians(ELEVATIONS)[:, None] + np.zeros((1, AZIMUTHS))
    rays = np.stack([np.cos(up) * np.cos(angles), np.cos(up) * np.sin(angles), np.sin(up)])
    late = (np.arange(AZIMUTHS) - (AZIMUTHS - 1) / 2) * (TURN / AZIMUTHS)
    seen = now.cast(RADAR, rays, late[None, :] + np.zeros_like(up))
    strongest = np.array([ECHO.get(thing, 0) for thing in THINGS], dtype=np.float64)[now.things(seen)]
    echo = np.clip(strongest * (0.6 + 0.4 * seen.facing) - 0.4 * seen.distance, 0, 255)
    power = np.zeros((AZIMUTHS, BINS))
    speckle = draws.uniforms(AZIMUTHS, SPECKLED)
    power[:, :SPECKLED] = np.where(speckle < 0.05, 4 + 700 * speckle, 0)  # below 40
    columns = np.broadcast_to(np.arange(AZIMUTHS), up.shape)
    cells = np.rint(seen.distance / BIN).astype(np.int64) - 1
    for wide, across in ((0, 1.0), (-1, 0.6), (1, 0.6)):  # the beam is 1.8 degrees wide
        for deep, along in ((0, 1.0), (-1, 0.8), (1, 0.8), (-2, 0.5), (2, 0.5), (-3, 0.25), (3, 0.25)):
            inside = (echo > 0) & (cells + deep >= 0) & (cells + deep < BINS)
            where = (columns[inside] + wide) % AZIMUTHS, cells[inside] + deep
            np.maximum.at(power, where, echo[inside] * across * along)
    image = np.zeros((HEAD + BINS, AZIMUTHS), dtype=np.uint8)
    nanoseconds = microseconds * 1000 + np.rint(late * 1e9).astype(np.int64)
    for row, value in ((0, nanoseconds // 10**9), (4, nanoseconds % 10**9)):
        image[row : row + 4] = value.astype("<u4").view(np.uint8).reshape(AZIMUTHS, 4).T
    image[8:10] = (14 * np.arange(AZIMUTHS)).astype("<u2").view(np.uint8).reshape(AZIMUTHS, 2).T
    image[10] = 255
    image[HEAD:] = np.rint(power).astype(np.uint8).T
    for _ in range(2):
        broken = draws.integer(AZIMUTHS)
        image[10, broken], image[HEAD:, broken] = 0, 200
    return image


def events(now: Instant, draws: Draws) -> dict[str, np.ndarray]:
    """x, y uint16 in the event camera's own picture, t uint32 in microseconds from the start of the recording, p uint8 (1 is
    brighter), in the order of time. The recording ends at the instant."""
    size, focal, window = frame_of(EVENT_SIZE, EVENT_SCALE, EVENT_K)
    logs = []
    for moment in MOMENTS:
        pitch = math.sin(PITCH + EVENT_TILT)
        light = now.view(now.camera(size, focal, pitch, EVENT, EVENT_TURN, moment), moment).light[:, *window]
        grey = 0.3 * light[0].astype(np.float64) + 0.6 * light[1] + 0.1 * light[2]
        logs.append(np.log(np.maximum(grey, 0) + 0.002))
    spans = zip(itertools.pairwise(MOMENTS), itertools.pairwise(logs), strict=True)
    found = [_crossings(*pair, *span, draws) for span, pair in spans]
    x, y, time, brighter = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    order = np.argsort(time, kind="stable")
    return {
        "x": x[order].astype(np.uint16), "y": y[order].astype(np.uint16), "t": time[order].astype(np.uint32),
        "p": brighter[order].astype(np.uint8),
    }  # fmt: skip


def _crossings(
    first: np.ndarray, second: np.ndarray, begin: float, end: float, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, microseconds into the recording, and whether brighter, of the events between two logarithms of light (H, W)."""
    change = (second - first) / THRESHOLD
    change = change + 0.15 * draws.normals(*change.shape)
    # A rendered pixel stands for 25 pixels with events of their own; two of them fire.
    count = np.minimum(np.abs(change) * 2, 12).astype(np.int64)
    row, column = np.nonzero(count)
    rows, columns = np.repeat(row, count[row, column]), np.repeat(column, count[row, column])
    x = EVENT_SCALE * columns + (EVENT_SCALE * draws.uniforms(len(rows))).astype(np.int64)
    y = EVENT_SCALE * rows + (EVENT_SCALE * draws.uniforms(len(rows))).astype(np.int64)
    seconds = begin + (end - begin) * draws.uniforms(len(rows)).astype(np.float64)
    return x, y, np.clip(WINDOW + 1e6 * seconds, 0, WINDOW - 1), (change > 0)[rows, columns]


def shortened(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The last 30 ms alone, with a clock that starts there: the shorter of the original's two downloads."""
    late = found["t"] >= WINDOW - SHORT
    kept = {name: array[late] for name, array in found.items()}
    kept["t"] = kept["t"] - np.uint32(WINDOW - SHORT)
    return kept


def write_events(path: Path, found: dict[str, np.ndarray], length: int, end: int) -> None:
    """The groups that were reported of the original, which are those of DSEC; compressed with gzip, which every h5py reads.

    Args:
        length: microseconds of the recording. end: of the clock, microseconds.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in found.items():
            file.create_dataset(f"events/{name}", data=array, compression="gzip", compression_opts=1)
        steps = np.searchsorted(found["t"], np.arange(length // 1000) * 1000)
        file.create_dataset("ms_to_idx", data=steps.astype(np.uint64))
        file.create_dataset("t_offset", data=np.int64(end - length))


def gnss(now: Instant, microseconds: int) -> str:
    """One line of text. The vehicle drives on level ground somewhere in the gulf of Guinea; headings grow clockwise."""
    heading = math.degrees(math.asin(now.yaw))
    speed = round(1000 * now.speed)
    north, east = speed * math.cos(math.radians(heading)), speed * now.yaw
    values = dict.fromkeys(FIELDS, 0) | {
        "iTOW": microseconds // 1000 % 604_800_000, "timestamp": microseconds, "fixType": 3, "numSV": 12, "hAcc": 500,
        "vAcc": 800, "heading": round(1e5 * (heading % 360)), "velN": round(north), "velE": round(east), "gSpeed": speed,
        "angular_rate_heading": round(-1e5 * math.degrees(now.turn_rate)),
    }  # fmt: skip
    return " ".join(str(value) for value in values.values()) + "\n"


__all__ = [
    "AZIMUTHS", "BIN", "BINS", "HEAD", "SHORT", "WINDOW", "events", "gnss", "lidar", "radar", "radar_angles",
    "shortened", "write_events",
]  # fmt: skip
