"""Suite ``memory``: peaks of inference and training, and the largest batch that can be trained with the memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlesam.bench import inference, training
from mlesam.bench.case import Case, Subject, measure_cases
from mlesam.bench.peak import free_mib, peak_within
from mlesam.bench.setting import Setting
from mlesam.errors import RequestError, WorkError

SHARE = 0.6
"""Of the memory that is free, what a search for the largest batch may take."""
MOST = 4096
"""Frames beyond which no search goes on."""


@dataclass(frozen=True)
class Fit:
    """A batch that fits: its peak in MiB, and seconds of a step for each of its frames."""

    batch: int
    peak_mib: float
    seconds: float


def largest_batch(subject: Subject, setting: Setting, limit_mib: float) -> Fit | None:
    """The largest batch of which a step stays within the limit, None where one frame does not.

    Two small steps say how memory grows; from there on every try halves the doubt. Each has a process of its own, to which the
    system gives no more than the limit.
    """
    found = [attempt(subject, setting.with_(batch=n), limit_mib) for n in (1, 2)]
    one, two = found
    if one is None or two is None:
        return one
    growth = max(two.peak_mib - one.peak_mib, 1e-3)
    good, bad = two, MOST + 1
    probe = min(MOST, max(3, int((limit_mib - one.peak_mib) / growth) + 1))
    step = max(1, probe // 16)  # the guess is near: from there in steps that double, and then by halves
    while bad - good.batch > 1:
        fit = attempt(subject, setting.with_(batch=probe), limit_mib)
        good, bad = (good, probe) if fit is None else (fit, bad)
        middle = (good.batch + bad) // 2
        probe = min(middle, good.batch + step) if bad > MOST else max(middle, bad - step)
        step *= 2
    return good


def attempt(subject: Subject, setting: Setting, limit_mib: float) -> Fit | None:
    """A step of a batch within the limit; None where that is too little."""
    found = peak_within(subject.build, subject.at(setting), limit_mib)
    return None if found is None else Fit(setting.batch, found.mib, found.seconds / setting.batch)


def memory(
    setting: Setting, rounds: int, advance: Callable[[int, int], None], limit_mib: float | None = None
) -> list[dict[str, Any]]:
    """Peaks of a frame and of a training step, and the largest batch of ours, with and without checkpointing, and of naive's."""
    limit = SHARE * free_mib(setting.device) if limit_mib is None else limit_mib
    if math.isinf(limit):
        raise RequestError("this machine does not say how much memory is free; give --memory GIB.")
    fp32 = inference.WHOLE["fp32"], inference.NAIVE["fp32"]
    steps = training.subject("fp32"), training.subject("fp32", naive=True)
    cases = [Case("inference-memory", *fp32, tolerance=1e-4), Case("training-memory", *steps, tolerance=1e-4)]
    rows = measure_cases(cases, setting, rounds, advance)
    nothing = WorkError(f"not even one frame can be trained within {limit:.0f} MiB; give more with --memory GIB.")
    theirs = largest_batch(steps[1], setting, limit)
    if theirs is None:
        raise nothing
    for name, step in (
        ("largest-batch", steps[0]),
        ("largest-batch-checkpointed", training.subject("fp32", checkpointing=True)),
    ):
        ours = largest_batch(step, setting, limit)
        if ours is None:
            raise nothing
        rows.append(
            {
                "name": name + setting.suffix, "ratio": ours.seconds / theirs.seconds, "baseline": steps[1].name,
                "seconds": ours.seconds, "baseline_seconds": theirs.seconds, "peak_mib": ours.peak_mib,
                "baseline_peak_mib": theirs.peak_mib, "batch": ours.batch, "baseline_batch": theirs.batch,
                "limit_mib": round(limit, 1),
                "conditions": f"{setting.with_(batch=ours.batch).describe()}; {step.about}, within {limit:.0f} MiB; seconds "
                "per frame of one step of the largest batch, not in turns",
            }
        )  # fmt: skip
    return rows
