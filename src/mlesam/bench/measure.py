"""Time in turns, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mlesam.bench.setting import Setting

WARM_UP = 2
"""Rounds that do not count: caches, allocators and clocks settle."""
Outputs = Tensor | Sequence[Tensor]
Run = Callable[[], Outputs | None]
"""Does the work once. What it returns is compared with what the others return, tensor by tensor."""
Build = Callable[[Setting], Run]
"""Makes everything that is needed, so that a :data:`Run` does the work alone. To be found by its name in another process."""


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    setting: Setting,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds of each round of each. Every round has an order of its own, drawn from the setting's seed: what follows upon
    threads that still spin, or upon memory that others left, would else always be the same.

    Args:
        advance: called with rounds done and in all.
    """
    clock: dict[str, list[float]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(setting.seed)
    for number in range(rounds + WARM_UP):
        draw.shuffle(order)
        for name in order:
            setting.wait()
            began = setting.now()
            runs[name]()
            setting.wait()
            if number >= WARM_UP:
                clock[name].append(setting.now() - began)
        advance(number + 1, rounds + WARM_UP)
    return clock


def compared(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Medians and their ratio; and by how much the rounds' own ratios differ: their median, the least and the greatest."""
    seconds, other = (round(statistics.median(values), 6) for values in (ours, baseline))
    rounds = [a / b for a, b in zip(ours, baseline, strict=True)]
    return {
        "ratio": seconds / other, "seconds": seconds, "baseline_seconds": other,
        "ratio_by_round": [round(f(rounds), 4) for f in (statistics.median, min, max)],
    }  # fmt: skip
