"""Time in turns, so that whatever else the machine does falls on all alike, and peak memory in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlesam.bench.setting import Setting
from mlesam.errors import WorkError

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
    """Seconds of each round of each: A B C A B C ...

    Args:
        advance: called with rounds done and in all.
    """
    now = time.process_time if setting.counts_cpu_time else time.perf_counter
    clock: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + WARM_UP):
        for name, run in runs.items():
            setting.wait()
            began = now()
            run()
            setting.wait()
            if number >= WARM_UP:
                clock[name].append(now() - began)
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


# ---------------------------------------------------------------- memory


def peak_mib(build: Build, setting: Setting) -> float:
    """The most memory that one subject holds at a time, in MiB: its weights, its inputs and its work, without the interpreter
    and its libraries. Measured in a fresh process, so that none hides in another's peak.

    Raises:
        WorkError: the process died, as it does where memory is short.
    """
    return in_child(_peak_mib, build, setting)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process. WorkError if the process dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise WorkError("a process of the benchmark died; it may have run out of memory.") from None


def _peak_mib(build: Build, setting: Setting) -> float:
    torch.set_num_threads(setting.threads)
    return peak_of(build, setting)[1]


def peak_of(build: Build, setting: Setting, calls: int = 2) -> tuple[Run, float]:
    """Build in this process and run; what was built, and the peak in MiB."""
    _warm(setting)
    cuda = torch.device(setting.device).type == "cuda"
    before = torch.cuda.memory_allocated(setting.device) / 2**20 if cuda else resident_mib()
    run = build(setting)
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    else:
        forget_peak()  # of building, which may hold weights twice
    for _ in range(calls):
        run()
    after = torch.cuda.max_memory_allocated(setting.device) / 2**20 if cuda else peak_resident_mib()
    return run, round(max(0.0, after - before), 1)


def _warm(setting: Setting) -> None:
    """Load what is loaded once for all: libraries, threads, kernels."""
    x = torch.randn(1, 3, 32, 32, device=setting.device, requires_grad=True)
    layer = torch.nn.Conv2d(3, 8, 3, device=setting.device)
    torch.nn.functional.gelu(layer(x).flatten(1)).square().mean().backward()
    setting.wait()


def resident_mib() -> float:
    """What this process holds now."""
    return _status("VmRSS") or _max_rss_mib()


def peak_resident_mib() -> float:
    """The most that this process held, since :func:`forget_peak` on Linux.

    ``ru_maxrss`` would not do there: a process that another one started begins with what that one held.
    """
    return _status("VmHWM") or _max_rss_mib()


def data_mib() -> float:
    """What this process may write to, touched or not: what ``RLIMIT_DATA`` counts. 0 where the system does not say."""
    return _status("VmData")


def forget_peak() -> None:
    """Let the peak start from now, on Linux."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


def _status(field: str) -> float:
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _max_rss_mib() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
