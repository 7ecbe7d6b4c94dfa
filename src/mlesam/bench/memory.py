"""Suite ``memory``: peaks of inference and training, and the largest batch that can be trained with the memory there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlesam.bench import inference, training
from mlesam.bench.case import Case, Subject, measure_cases
from mlesam.bench.measure import data_mib, in_child, peak_of
from mlesam.bench.setting import Setting
from mlesam.errors import RequestError, WorkError

SHARE = 0.6
"""Of the memory that is free, what a search for the largest batch may take."""
UNTOUCHED = 128.0
"""MiB that allocators and threads map beyond what they use; what is used is compared with the limit itself."""
MOST = 4096
"""Frames beyond which no search goes on."""


@dataclass(frozen=True)
class Fit:
    """A batch that fits: its peak in MiB, and seconds of a step for each of its frames."""

    batch: int
    peak_mib: float
    seconds: float


def free_mib(device: str) -> float:
    """Memory that nothing uses now, of the GPU or of the machine. RequestError where the machine does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    free = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is None:
        raise RequestError("this machine does not say how much memory is free; give --memory GIB.")
    limit = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if all(path.is_file() for path in limit):
        most, used = (path.read_text(encoding="utf-8").strip() for path in limit)
        free = free if most == "max" else min(free, (int(most) - int(used)) / 2**20)
    return free


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
    """A step in a process that gets no more than the limit; None where that is too little."""
    try:
        return in_child(_attempt, subject, setting, limit_mib)
    except WorkError:  # the process died of it
        return None


def _attempt(subject: Subject, setting: Setting, limit_mib: float) -> Fit | None:
    torch.set_num_threads(setting.threads)
    _limit(setting.device, limit_mib)
    try:
        run, peak = peak_of(subject.build, setting, calls=1)
        began = time.perf_counter()
        run()
        setting.wait()
        return Fit(setting.batch, peak, (time.perf_counter() - began) / setting.batch) if peak <= limit_mib else None
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return None


def _limit(device: str, mib: float) -> None:
    """Let the system give this process so much more memory than now, and hardly more."""
    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**20
        torch.cuda.set_per_process_memory_fraction(min(1.0, mib / total), device)
        return
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = int((data_mib() + mib + UNTOUCHED) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def memory(
    setting: Setting, rounds: int, advance: Callable[[int, int], None], limit_mib: float | None = None
) -> list[dict[str, Any]]:
    """Peaks of a frame and of a training step, and the largest batch of ours and of naive's."""
    fp32 = inference.WHOLE["fp32"], inference.NAIVE["fp32"]
    steps = training.subject("fp32"), training.subject("fp32", naive=True)
    cases = [Case("inference-memory", *fp32, tolerance=1e-4), Case("training-memory", *steps, tolerance=1e-4)]
    rows = measure_cases(cases, setting, rounds, advance)
    limit = SHARE * free_mib(setting.device) if limit_mib is None else limit_mib
    ours, theirs = (largest_batch(subject, setting, limit) for subject in steps)
    if ours is None or theirs is None:
        raise WorkError(f"not even one frame can be trained within {limit:.0f} MiB; give more with --memory GIB.")
    rows.append(
        {
            "name": "largest-batch" + setting.suffix, "ratio": ours.seconds / theirs.seconds, "baseline": steps[1].name,
            "seconds": ours.seconds, "baseline_seconds": theirs.seconds, "peak_mib": ours.peak_mib,
            "baseline_peak_mib": theirs.peak_mib, "batch": ours.batch, "baseline_batch": theirs.batch,
            "limit_mib": round(limit, 1),
            "conditions": f"{setting.describe()}; a training step within {limit:.0f} MiB, fp32; seconds per frame of one "
            "step of the largest batch, not in turns",
        }
    )  # fmt: skip
    return rows
