"""Peak memory, each in a process of its own, so that none hides in another's and none takes the machine down."""

from __future__ import annotations

import gc
import math
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlesam.bench.measure import Build
from mlesam.bench.setting import Setting
from mlesam.errors import WorkError

SPARED = 0.1
"""Of the memory that is free, what no process of a benchmark gets."""
UNTOUCHED = 128.0
"""MiB that allocators and threads map beyond what they use; what is used is compared with the limit itself."""


@dataclass(frozen=True)
class Peak:
    """The most memory held at a time, in MiB: weights, inputs and work, without the interpreter and its libraries. And the
    seconds of the last call."""

    mib: float
    seconds: float


def peak_mib(build: Build, setting: Setting) -> float:
    """The peak of a subject. WorkError where there is not enough memory."""
    free = free_mib(setting.device)
    found = peak_within(build, setting, (1 - SPARED) * free)
    if found is None:
        raise WorkError(f"{setting.describe()} needs more than the {free:,.0f} MiB that are free; make --size smaller.")
    return found.mib


def peak_within(build: Build, setting: Setting, limit_mib: float) -> Peak | None:
    """The peak in a fresh process to which the system gives no more than the limit; None where that is too little."""
    try:
        return in_child(measure_peak, build, setting, limit_mib)
    except WorkError:  # the process died of it
        return None


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process. WorkError if the process dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise WorkError(
                f"the process of {function.__name__} died, most likely for want of memory; make --size smaller."
            ) from None


def measure_peak(build: Build, setting: Setting, limit_mib: float = math.inf) -> Peak | None:
    """Build and run twice in this process, which has the limit from then on."""
    torch.set_num_threads(setting.threads)
    _warm(setting)
    _limit(setting.device, limit_mib)
    try:
        found = _measure(build, setting)
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:
        if "memory" not in str(error) or "illegal memory access" in str(error):
            raise
        return None
    return found if found.mib <= limit_mib else None


def _measure(build: Build, setting: Setting) -> Peak:
    cuda = torch.device(setting.device).type == "cuda"
    before = torch.cuda.memory_allocated(setting.device) / 2**20 if cuda else resident_mib()
    run = build(setting)
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    else:
        forget_peak()  # of building, which may hold weights twice
    run()
    setting.wait()
    began = setting.now()
    run()
    setting.wait()
    seconds = setting.now() - began
    after = torch.cuda.max_memory_allocated(setting.device) / 2**20 if cuda else peak_resident_mib()
    return Peak(round(max(0.0, after - before), 1), seconds)


def _warm(setting: Setting) -> None:
    """Load what is loaded once for all: libraries, threads, kernels."""
    x = torch.randn(1, 3, 32, 32, device=setting.device, requires_grad=True)
    layer = torch.nn.Conv2d(3, 8, 3, device=setting.device)
    torch.nn.functional.gelu(layer(x).flatten(1)).square().mean().backward()
    setting.wait()


# ---------------------------------------------------------------- what the system says and allows


def free_mib(device: str) -> float:
    """Memory that nothing uses now, of the GPU or of the machine; infinity where the machine does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    free = _field("/proc/meminfo", "MemAvailable")
    files = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if all(path.is_file() for path in files):
        most, used = (path.read_text(encoding="utf-8").strip() for path in files)
        free = free if most == "max" else min(free or math.inf, (int(most) - int(used)) / 2**20)
    return free or math.inf


def resident_mib() -> float:
    """What this process holds now."""
    return _field("/proc/self/status", "VmRSS") or _max_rss_mib()


def peak_resident_mib() -> float:
    """The most that this process held, since :func:`forget_peak` on Linux.

    ``ru_maxrss`` would not do there: a process that another one started begins with what that one held.
    """
    return _field("/proc/self/status", "VmHWM") or _max_rss_mib()


def forget_peak() -> None:
    """Let the peak start from now, on Linux."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


def _limit(device: str, mib: float) -> None:
    """Let the system give this process so much more memory than now, and hardly more."""
    if math.isinf(mib):
        return
    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**20
        chosen = torch.device(device).index  # this call alone wants it, also where it is the current one
        index = torch.cuda.current_device() if chosen is None else chosen
        torch.cuda.set_per_process_memory_fraction(min(1.0, mib / total), index)
        return
    now = _field("/proc/self/status", "VmData")  # what RLIMIT_DATA counts: what may be written to, touched or not
    if now:
        import resource

        most = int((now + mib + UNTOUCHED) * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _field(path: str, name: str) -> float:
    """A line ``name: N kB`` in MiB; 0 where there is none."""
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def _max_rss_mib() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
