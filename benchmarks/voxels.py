"""Voxel grids of events beside other ways to add them up: ``python benchmarks/voxels.py``.

A million events of 30 ms on random pixels (the worst case for a processor's cache), five bins, one core. Every way starts from
the same array of events and ends in float32 on the picture; all must agree to 1e-4 in the run that times them. Ways:
``np.add.at`` with row, column and bin, the straightforward form without loops; ``np.add.at`` on flat indices; PyTorch's
``put_`` with ``accumulate``. The last rows move the events to another camera's picture, by the table of every pixel beside
OpenCV's ``undistortPoints`` for every event.

Writes ``benchmarks/results/voxels.json``. Timed in turns, medians, on a machine that should be quiet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from conditions import ROOT, command, conditions
from mlesam.model.checkpoints import replace_file
from mlesam.sensors.event_files import pack_events
from mlesam.sensors.events import voxel_grid
from mlesam.sensors.pixel_table import rectification

COUNT, BINS, DURATION = 1_000_000, 5, 30_000
SIZES = ((640, 480), (1280, 720))
LENS = np.array([-0.2, 0.05, 0.0005, -0.0005, 0.0])
Grid = Callable[[np.ndarray], np.ndarray]


def recording(size: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, DURATION + 1, COUNT))
    t[0], t[-1] = 0, DURATION
    return pack_events(rng.integers(0, size[0], COUNT), rng.integers(0, size[1], COUNT), t, rng.integers(0, 2, COUNT))


def parts(events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The earlier bin of every event, and its shares of the earlier and the later one."""
    instant = ((BINS - 1) * (events["t"] - events["t"][0]) / DURATION).astype(np.float32)
    early = np.minimum(np.floor(instant), BINS - 2).astype(np.int64)
    late_share = (instant - early.astype(np.float32)) * events["p"].astype(np.float32)
    return early, events["p"].astype(np.float32) - late_share, late_share


def add_at(events: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grid = np.zeros((size[1], size[0], BINS), np.float32)
    early, early_share, late_share = parts(events)
    np.add.at(grid, (events["y"], events["x"], early), early_share)
    np.add.at(grid, (events["y"], events["x"], early + 1), late_share)
    return grid


def add_at_flat(
    events: np.ndarray, size: tuple[int, int], x: np.ndarray | None = None, y: np.ndarray | None = None
) -> np.ndarray:
    grid = np.zeros(size[0] * size[1] * BINS, np.float32)
    early, early_share, late_share = parts(events)
    x, y = events["x"] if x is None else x, events["y"] if y is None else y
    index = (y.astype(np.int64) * size[0] + x) * BINS + early
    np.add.at(grid, index, early_share)
    np.add.at(grid, index + 1, late_share)
    return grid.reshape(size[1], size[0], BINS)


def torch_put(events: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grid = torch.zeros(size[1], size[0], BINS)
    early, early_share, late_share = parts(events)
    index = torch.from_numpy((events["y"].astype(np.int64) * size[0] + events["x"]) * BINS + early)
    grid.put_(index, torch.from_numpy(early_share), accumulate=True)
    grid.put_(index + 1, torch.from_numpy(late_share), accumulate=True)
    return grid.numpy()


def undistorted(events: np.ndarray, size: tuple[int, int], matrix: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Every event through OpenCV, and those that stay in the picture added up."""
    pixels = np.stack([events["x"], events["y"]], axis=1).astype(np.float64)[:, None]
    x, y = np.floor(cv2.undistortPoints(pixels, matrix, LENS, R=rotation, P=matrix)[:, 0].T + 0.5).astype(np.int64)
    inside = (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])
    outside = ~inside
    x[outside], y[outside] = 0, size[1]  # a row below the picture, so that the first and the last event stay
    return add_at_flat(events, (size[0], size[1] + 1), x, y)[:-1]


def in_turns(ways: dict[str, Grid], events: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of each way, one of each by turns."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(events)
            if number:
                clock[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in clock.items()}


def rows(name: str, ways: dict[str, Grid], events: np.ndarray, rounds: int, most_apart: float) -> list[dict]:
    """The first way beside each of the others. ``most_apart``: share of the values that may differ."""
    grids = {way: make(events) for way, make in ways.items()}
    ours = next(iter(ways))
    for way, grid in grids.items():
        valid = np.isfinite(grids[ours])
        apart = (np.abs(grid - grids[ours])[valid] > 1e-4).mean()
        if apart > most_apart:
            raise SystemExit(f"{name}: {way} differs from {ours} in {apart:.2%} of the values")
    seconds = in_turns(ways, events, rounds)
    found = []
    for way in list(ways)[1:]:
        found.append(
            {
                "name": name, "ratio": round(seconds[ours] / seconds[way], 4), "baseline": way,
                "seconds": round(seconds[ours], 5), "baseline_seconds": round(seconds[way], 5),
                "conditions": {"events": COUNT, "bins": BINS, "rounds": rounds, "threads": 1},
            }
        )  # fmt: skip
        print(f"{name}: {1e3 * seconds[ours]:.1f} ms, {way}: {1e3 * seconds[way]:.1f} ms", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "voxels.json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results = []
    for size in SIZES:
        events = recording(size, options.seed)
        ways: dict[str, Grid] = {
            "mlesam": lambda e, s=size: voxel_grid(e, s, BINS),
            "np.add.at": lambda e, s=size: add_at(e, s),
            "np.add.at, flat indices": lambda e, s=size: add_at_flat(e, s),
            "torch put_": lambda e, s=size: torch_put(e, s),
        }
        results += rows(f"voxel grid, {size[0]} x {size[1]}", ways, events, options.rounds, 0)
        matrix = np.array([[0.8 * size[0], 0, size[0] / 2], [0, 0.8 * size[0], size[1] / 2], [0, 0, 1]])
        rotation = cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))[0]
        began = time.perf_counter()
        table = rectification(size, matrix, LENS, rotation, size, matrix)
        print(f"table of {size[0]} x {size[1]} pixels, made once: {time.perf_counter() - began:.2f} s")
        ways = {
            "mlesam": lambda e, s=size, t=table: voxel_grid(e, s, BINS, table=t),
            "undistortPoints for every event": lambda e, s=size, k=matrix, r=rotation: undistorted(e, s, k, r),
        }
        # OpenCV stops after a few iterations, so that a few pixels round to their neighbour.
        results += rows(f"rectified voxel grid, {size[0]} x {size[1]}", ways, events, options.rounds, 0.02)
    content = {
        "name": "voxels", "command": command("voxels"), **conditions(), "seed": options.seed, "results": results,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
