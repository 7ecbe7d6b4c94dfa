"""``mlesam bench``: suites, presets and sizes one after the other, into one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mlesam.bench.naive import need_peft
from mlesam.bench.result import content, show, write
from mlesam.bench.setting import Setting
from mlesam.bench.suites import SUITES
from mlesam.config import PRESETS
from mlesam.errors import RequestError, did_you_mean

ALL = "all"
STRIDE = 32
"""Sides of the pictures are multiples of it: the code of ``transformers`` pads nothing."""


@dataclass(frozen=True)
class Request:
    """What to measure. None and empty: as the suite has it.

    Attributes:
        suite: a name, or ``all``. presets, sizes: every combination is measured. memory: GiB that a search for the largest
            batch may take.
    """

    suite: str = "inference"
    presets: tuple[str, ...] = ("tiny",)
    sizes: tuple[int, ...] = ()
    rounds: int | None = None
    threads: int | None = None
    device: str | None = None
    memory: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.suite != ALL and self.suite not in SUITES:
            raise RequestError(f"there is no suite {self.suite!r}{did_you_mean(self.suite, (*SUITES, ALL))}")
        for preset in self.presets:
            if preset not in PRESETS:
                raise RequestError(f"--preset {preset!r} is none of the foundations that need no download"
                                   f"{did_you_mean(preset, PRESETS)}")  # fmt: skip
        rules = [
            *(("size", size, size >= STRIDE and size % STRIDE == 0, f"a multiple of {STRIDE}") for size in self.sizes),
            ("rounds", self.rounds, self.rounds is None or self.rounds >= 1, "at least 1"),
            ("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1"),
            ("memory", self.memory, self.memory is None or self.memory > 0, "above 0 GiB"),
            ("seed", self.seed, self.seed >= 0, "at least 0"),
        ]
        for name, value, holds, rule in rules:
            if not holds:
                raise RequestError(f"--{name} is {value}, but it must be {rule}.")
        if self.device is not None:
            _check_device(self.device)

    @staticmethod
    def parse(preset: str, size: str | None, **others: Any) -> Request:
        """Presets and sizes with commas between them; the rest as it is."""
        try:
            sizes = tuple(int(part) for part in size.split(",")) if size else ()
        except ValueError:
            raise RequestError(f"--size is {size!r}, but it must be whole numbers with commas between them.") from None
        return Request(presets=tuple(preset.split(",")), sizes=sizes, **others)

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(SUITES) if self.suite == ALL else (self.suite,)

    def setting(self, suite: str, preset: str, size: int) -> Setting:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        threads = self.threads or torch.get_num_threads()
        return Setting(preset, size, batch=SUITES[suite].batch, device=device, threads=threads, seed=self.seed)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = device
    if kind not in ("cpu", "cuda"):
        raise RequestError(f"--device is {device!r}, but it must be cpu or cuda.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"--device is {device!r}, and torch finds no GPU here; leave it out.")


def bench(
    request: Request,
    out: Path | None,
    command: str,
    console: Console,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure, print and write.

    Args:
        out: the JSON file; None: ``runs/bench/SUITE.json``. advance: called with rounds done and in all.

    Returns:
        What was written.

    Raises:
        RequestError: PEFT is missing. WorkError: two implementations that should be equal are not.
    """
    if any(SUITES[name].naive for name in request.suites):
        need_peft()
    rows: list[dict[str, Any]] = []
    device = "cpu"
    for name in request.suites:
        suite = SUITES[name]
        for preset in request.presets:
            for size in request.sizes or (suite.size,):
                setting = request.setting(name, preset, size)
                device = setting.device
                rounds = request.rounds or suite.rounds
                if why := suite.left_out(setting):
                    console.print(why, soft_wrap=True, highlight=False)
                limit = None if request.memory is None else 1024 * request.memory
                own = suite.rows(setting, rounds, advance, limit)
                show(own, console)
                rows += own
    result = content("bench" if request.suite == ALL else f"bench-{request.suite}", command, request.seed, device, rows)
    written = write(out or Path("runs") / "bench" / f"{request.suite}.json", result)
    console.print(f"written to {', '.join(map(str, written))}", soft_wrap=True, markup=False, highlight=False)
    return result
