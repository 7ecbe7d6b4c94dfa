"""Means over seeds, subsets and frames with their bootstrap intervals, for what ``mlesam ablate`` does not compare itself:
the mean over subsets, results on other frames, and frames along a drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlesam.evaluation.comparison import DRAWS
from mlesam.evaluation.metrics import mean_iou, resampled

Tested = Mapping[str, Sequence[np.ndarray]]
"""``{seed: [(F, C, C), ...]}``: each frame's confusion matrix under one condition or several, which are averaged."""


def estimate(tested: Tested, to: Tested | None = None, *, same_frames: bool = True, block: int = 1) -> dict[str, Any]:
    """Mean mIoU and its 95 % interval, and the difference to another result, paired by seed.

    Args:
        to: what the difference is to. same_frames: whether it was tested on the same frames; then they are drawn together,
            else each for itself, and the interval is wider for it.
        block: neighbouring frames that are drawn together, where neighbours are alike.
    """
    by_seed = {seed: score(own) for seed, own in tested.items()}
    draws = _drawn(tested, block, 0)
    found: dict[str, Any] = {
        "seeds": len(by_seed), "miou": _round(np.mean(list(by_seed.values()))), "interval": _interval(draws),
        "by_seed": {seed: _round(value) for seed, value in by_seed.items()},
    }  # fmt: skip
    if to is not None:
        if list(to) != list(tested):
            raise ValueError(f"the seeds {list(tested)} cannot be paired with {list(to)}")
        found["difference"] = _round(np.mean([by_seed[seed] - score(own) for seed, own in to.items()]))
        found["difference_interval"] = _interval(draws - _drawn(to, block, 0 if same_frames else 1))
    return found


def score(own: Sequence[np.ndarray]) -> float:
    """mIoU over all frames, averaged over the conditions; one that no frame meets does not count."""
    return float(np.nanmean([float(mean_iou(c.sum(axis=0, dtype=np.int64))) for c in own]))


def _drawn(tested: Tested, block: int, key: int) -> np.ndarray:
    """(DRAWS,) means, frames and seeds drawn anew. The same key draws the same frames; seeds are drawn alike for all."""
    by_seed = np.stack([np.nanmean([resampled(c, block, key, DRAWS) for c in own], axis=0) for own in tested.values()])
    chosen = np.random.default_rng(0).integers(0, len(by_seed), size=by_seed.shape)
    return np.take_along_axis(by_seed, chosen, axis=0).mean(axis=0)


def _interval(draws: np.ndarray) -> list[float]:
    return [_round(value) for value in np.nanquantile(draws, [0.025, 0.975])]


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)


def signed(row: Mapping[str, Any], key: str = "difference") -> str:
    """``+1.2 (+0.3 to +2.1)`` in points, or nothing where a row has no difference."""
    if row.get(key) is None:
        return ""
    low, high = row[f"{key}_interval"]
    return f"{100 * row[key]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
