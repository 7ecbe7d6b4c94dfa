"""The suites, by name. One more is a function from (setting, rounds, ...) to rows, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlesam.bench import inference, stream, training
from mlesam.bench.case import measure_cases
from mlesam.bench.data import data
from mlesam.bench.memory import memory
from mlesam.bench.scaling import scaling
from mlesam.bench.setting import Setting

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """What ``mlesam bench --suite NAME`` does.

    Attributes:
        about: in a few words. rows: (setting, rounds, advance, limit of memory in MiB or None) to results.
        size, batch, rounds: of a setting, where the user does not say. naive: whether PEFT has to be there.
        left_out: what of it cannot be measured in a setting, and why, as a sentence; None: nothing.
    """

    about: str
    rows: Callable[[Setting, int, Callable[[int, int], None], float | None], Rows]
    size: int = 256
    batch: int = 1
    rounds: int = 15
    naive: bool = True
    left_out: Callable[[Setting], str | None] = lambda setting: None


SUITES: dict[str, Suite] = {
    "inference": Suite(
        "one frame, whole and in parts",
        lambda setting, rounds, advance, limit: measure_cases(inference.cases(setting), setting, rounds, advance),
        left_out=inference.left_out,
    ),
    "training": Suite(
        "a training step",
        lambda setting, rounds, advance, limit: measure_cases(training.cases(setting.size), setting, rounds, advance),
        batch=2,
        rounds=5,
    ),
    "stream": Suite(
        "one sensor of a frame is new",
        lambda setting, rounds, advance, limit: measure_cases(stream.cases(), setting, rounds, advance),
        naive=False,
    ),
    "scaling": Suite(
        "time over sensors, classes, pixels and rank",
        lambda setting, rounds, advance, limit: scaling(setting, rounds, advance),
        rounds=11,
        naive=False,
    ),
    "data": Suite(
        "loading of frames against training on them",
        lambda setting, rounds, advance, limit: data(setting, rounds, advance),
        size=1024,
        rounds=3,
        naive=False,
    ),
    "memory": Suite("peaks, and the largest batch that fits", memory, batch=2, rounds=3),
}
