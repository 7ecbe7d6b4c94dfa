"""What a model is given along a drive: for each frame and sensor, the frame that its measurement is from, or -1 for none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlesam.world.drive import EVERY

SCHEDULES = (
    "all in every frame",
    "own rates, left out",
    "own rates, held",
    "outages, left out",
    "outages, held",
)
"""``left out``: a sensor without a new measurement is absent. ``held``: its last one stands in."""


def sources(schedule: str, frames: int, sensors: Sequence[str], seed: int) -> np.ndarray:
    """(F, M) frame that each sensor's measurement is from, -1 where it is left out.

    Args:
        seed: of the outages.
    """
    every = np.arange(frames)[:, None].repeat(len(sensors), axis=1)
    if schedule == SCHEDULES[0]:
        return every
    kind, rest = schedule.split(", ")
    measured = np.where(measuring(kind, frames, sensors, seed), every, -1)
    return measured if rest == "left out" else np.maximum.accumulate(measured, axis=0)


def measuring(kind: str, frames: int, sensors: Sequence[str], seed: int) -> np.ndarray:
    """(F, M) bool, whether a sensor measures in a frame: at its own rate, in its outages never, or with both in the name both."""
    index = np.arange(frames)[:, None]
    found = np.ones((frames, len(sensors)), dtype=bool)
    if "own rates" in kind:
        found &= index % np.array([EVERY[m] for m in sensors]) == 0
    if "outages" in kind:
        found &= ~outages(frames, len(sensors), seed)
    return found


def outages(frames: int, sensors: int, seed: int) -> np.ndarray:
    """(F, M) bool, where a sensor is away: each for one stretch of a third to two thirds of the drive, which neither begins
    nor ends it, and never all at once."""
    rng = np.random.default_rng(seed)
    index = np.arange(frames)[:, None]
    while True:
        length = rng.integers(frames // 3, 2 * frames // 3, size=sensors)
        start = rng.integers(1, frames - length)
        away = (index >= start) & (index < start + length)
        if not away.all(axis=1).any():
            return away


def present(given: np.ndarray, sensors: Sequence[str]) -> list[str]:
    """Names of the sensors given in each frame, joined by ``+``."""
    return ["+".join(m for m, source in zip(sensors, row, strict=True) if source >= 0) for row in given]
