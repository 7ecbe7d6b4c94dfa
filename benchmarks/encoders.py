"""What it costs to bring raw recordings to the camera plane: ``python benchmarks/encoders.py``.

Each case is measured against what one would write in NumPy without loops, on the same recording, one call of each by turns.
Both must give the same picture, or the case fails. Times are CPU seconds of one thread, so that other work on the machine
does not count; peaks are what NumPy and Python had allocated at a time during one call.

Writes ``benchmarks/results/encoders.json`` and prints a table.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from conditions import ROOT, command, conditions
from mlesam.model.checkpoints import replace_file
from mlesam.sensors.camera import Camera, Transform
from mlesam.sensors.motion import ConstantTwist
from mlesam.sensors.points import project_points
from mlesam.sensors.projection import FORWARD_LEFT_UP
from mlesam.sensors.radar import RadarEncoder

POINTS = 120_000
CAMERA = Camera(((1500.0, 0.0, 959.5), (0.0, 1500.0, 539.5), (0.0, 0.0, 1.0)), (1920, 1080))
SORTING = "NumPy: one 4x4 product, lexsort by pixel and range"
PAINTING = "NumPy: one 4x4 product, squares painted from far to near"
TO_CAMERA = Transform.from_parts(FORWARD_LEFT_UP.rotation, (0.1, -0.4, -0.3))


@dataclass(frozen=True)
class Case:
    """One encoder on one recording."""

    name: str
    baseline: str
    """What the other implementation does."""
    conditions: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    tolerance: float = 0.0
    """How far the two results may differ; 0: to the bit."""


# ---------------------------------------------------------------- recordings


def street(azimuths: np.ndarray, elevations: np.ndarray) -> np.ndarray:
    """``(N, 4)`` float32: flat ground 1.8 m below the sensor, and something upright on a quarter of the azimuths."""
    rng = np.random.default_rng(0)
    objects = np.where(rng.random(len(azimuths)) < 0.25, rng.gamma(3, 8, len(azimuths)) + 3, 120)
    azimuth, elevation = np.repeat(azimuths, len(elevations)), np.tile(elevations, len(azimuths))
    ground = np.where(elevation < -0.01, 1.8 / -np.sin(np.minimum(elevation, -0.01)), 120)
    distance = np.minimum(ground, np.repeat(objects, len(elevations))) + rng.normal(0, 0.02, len(azimuth))
    flat = distance * np.cos(elevation)
    points = np.stack(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation), rng.random(len(azimuth))], axis=1
    )
    return rng.permutation(points[:POINTS]).astype(np.float32)


def polar() -> np.ndarray:
    """A Navtech recording, 400 azimuths and 150 m, with an echo of some strength in every cell."""
    raw = np.random.default_rng(0).integers(1, 256, (11 + 3424, 400)).astype(np.uint8)
    raw[10] = 255
    return raw


# ---------------------------------------------------------------- what one would write


def on_plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and values of each point in the picture: homogeneous coordinates through one matrix."""
    width, height = CAMERA.size
    homogeneous = np.hstack([points[:, :3].astype(np.float64), np.ones((len(points), 1))])
    seen = (TO_CAMERA.array @ homogeneous.T).T
    distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1).astype(np.float32)
    kept = (seen[:, 2] > 0) & (distance >= 1)
    points, seen, distance = points[kept], seen[kept, :3], distance[kept]
    image = seen @ np.array(CAMERA.matrix).T
    column, row = np.floor(image[:, :2] / image[:, 2:] + 0.5).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    values = np.column_stack([distance[inside], points[inside, 3], points[inside, 2]]).astype(np.float32)
    return row[inside].astype(np.int64), column[inside].astype(np.int64), values


def by_sorting(points: np.ndarray) -> np.ndarray:
    """A sort by pixel and range: the first of each pixel stays."""
    width, height = CAMERA.size
    row, column, values = on_plane(points)
    pixel = row * width + column
    order = np.lexsort((values[:, 0], pixel))
    first = np.append(True, np.diff(pixel[order]) != 0)[: len(order)]
    picture = np.full((height * width, 3), np.nan, dtype=np.float32)
    picture[pixel[order][first]] = values[order][first]
    return picture.reshape(height, width, 3)


def by_painting(points: np.ndarray, side: int) -> np.ndarray:
    """A sort by range, then all squares from the farthest to the nearest, each over those before it."""
    width, height = CAMERA.size
    row, column, values = on_plane(points)
    order = np.argsort(values[:, 0], kind="stable")[::-1]
    reach = np.arange(side) - (side - 1) // 2
    rows = np.repeat(row[order, None] + reach, side, axis=1)
    columns = np.tile(column[order, None] + reach, side)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    picture = np.full((height, width, 3), np.nan, dtype=np.float32)
    picture[rows[inside], columns[inside]] = np.repeat(values[order], inside.sum(axis=1), axis=0)
    return picture


def by_matrices(motion: ConstantTwist, points: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A rotation matrix and a translation for each point, by the series of the exponential."""
    x, y, z = motion.angular_velocity
    generator = np.array([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0.0]])
    generator[:3, 3] = motion.velocity
    scaled = generator * (times - motion.time)[:, None, None]
    transform = term = np.broadcast_to(np.eye(4), scaled.shape)
    for order in range(1, 9):
        term = term @ scaled / order
        transform = transform + term
    return np.einsum("nij,nj->ni", transform[:, :3, :3], points) + transform[:, :3, 3]


def radar_by_sorting(raw: np.ndarray, encoder: RadarEncoder) -> np.ndarray:
    """Every cell becomes a point, all around; then as for a LiDAR."""
    angle = np.radians(encoder.first_azimuth - 0.9 * np.arange(400))
    distance = np.arange(1, len(raw) - 10) * encoder.resolution
    x, y = np.outer(distance, np.cos(angle)), np.outer(distance, np.sin(angle))
    kept = (raw[11:] > 0) & (raw[10] > 0) & ((distance >= 1) & (distance <= 150))[:, None]
    points = np.column_stack([x[kept], y[kept], np.full(kept.sum(), encoder.ground), raw[11:][kept]])
    picture = by_sorting(points)
    picture[..., 2] *= 0
    return np.abs(picture)  # -0 to 0


# ---------------------------------------------------------------- cases


def lidar() -> list[Case]:
    around = street(np.linspace(-np.pi, np.pi, 1876)[:-1], np.radians(np.linspace(-25, 15, 64)))
    ahead = street(np.radians(np.linspace(-32, 32, 1250)), np.radians(np.linspace(-18, 18, 96)))
    motion, times = ConstantTwist((15.0, 0.0, 0.0), (0.0, 0.01, 0.2), 100.0), 100 + np.linspace(-0.05, 0.05, POINTS)
    xyz = around[:, :3].astype(np.float64)
    size = f"{POINTS:,} points float32 to 1920x1080"
    return [
        Case("lidar-around", SORTING, f"{size}, 64 beams over 360 degrees",
             lambda: project_points(around, CAMERA, TO_CAMERA), lambda: by_sorting(around)),
        Case("lidar-ahead", SORTING, f"{size}, 96 beams over the camera's field of view",
             lambda: project_points(ahead, CAMERA, TO_CAMERA), lambda: by_sorting(ahead)),
        Case("lidar-ahead-2x2", PAINTING, f"{size}, as lidar-ahead, squares of 2 pixels",
             lambda: project_points(ahead, CAMERA, TO_CAMERA, dilate=2), lambda: by_painting(ahead, 2)),
        Case("lidar-ahead-5x5", PAINTING, f"{size}, as lidar-ahead, squares of 5 pixels",
             lambda: project_points(ahead, CAMERA, TO_CAMERA, dilate=5), lambda: by_painting(ahead, 5)),
        Case("lidar-motion", "NumPy: a 4x4 exponential for each point", f"{POINTS:,} points, motion alone",
             lambda: motion.at_exposure(xyz, times), lambda: by_matrices(motion, xyz, times), tolerance=1e-9),
    ]  # fmt: skip


def radar() -> list[Case]:
    rotation, translation = TO_CAMERA.rotation.tolist(), TO_CAMERA.translation.tolist()
    encoder = RadarEncoder(
        rotation=rotation,
        translation=translation,
        resolution=0.0438,
        ground=-1.62,
        first_azimuth=179.1,
        sector=(-40, 40),
    )
    raw = polar()
    return [
        Case("radar", SORTING, "400 azimuths x 3424 bins to 1920x1080, all echoes; ours with a sector of 80 degrees",
             lambda: encoder.encode(raw, CAMERA), lambda: radar_by_sorting(raw, encoder)),
    ]  # fmt: skip


def cases() -> list[Case]:
    """One function for each kind of sensor, in the order of the table."""
    return [*lidar(), *radar()]


# ---------------------------------------------------------------- measuring


def check_equal(case: Case) -> None:
    ours, theirs = case.ours(), case.theirs()
    if case.tolerance:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=case.tolerance, err_msg=case.name)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=case.name)


def peak(function: Callable[[], np.ndarray]) -> float:
    """MiB above what was allocated before."""
    tracemalloc.start()
    function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def measure(case: Case, rounds: int) -> dict[str, Any]:
    check_equal(case)
    clock: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds + 2):  # the first two warm up
        for name, function in (("ours", case.ours), ("theirs", case.theirs)):
            began = time.process_time()
            function()
            if number > 1:
                clock[name].append(time.process_time() - began)
    ours, theirs = (statistics.median(values) for values in clock.values())
    return {
        "name": case.name, "ratio": round(ours / theirs, 3), "baseline": case.baseline,
        "seconds": round(ours, 5), "baseline_seconds": round(theirs, 5),
        "peak_mib": round(peak(case.ours), 1), "baseline_peak_mib": round(peak(case.theirs), 1),
        "conditions": f"{case.conditions}; CPU time of 1 thread, median of {rounds} rounds by turns; results equal"
        + (f" within {case.tolerance:g} m" if case.tolerance else ""),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    lines = ["| encoder | ms | NumPy, ms | ratio | peak, MiB | NumPy, MiB |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        lines.append(
            f"| {row['name']} | {1e3 * row['seconds']:.1f} | {1e3 * row['baseline_seconds']:.1f} | {row['ratio']:.2f} "
            f"| {row['peak_mib']:.0f} | {row['baseline_peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "encoders.json")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [measure(case, options.rounds) for case in cases()]
    content = {"name": "encoders", "command": command("encoders"), **conditions(), "seed": 0, "results": rows}
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
