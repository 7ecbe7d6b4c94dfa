"""Temperatures: what logits are divided by, so that of the pixels with a confidence of 0.8 about 80 in 100 are right.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") has one number for a model. Here a model with
one sensor left is over-confident in another way than with all of them, and a number for each subset would be 2^M - 1 of
them. So log T is ``base`` plus a term for each sensor that is absent: M + 1 numbers, which give every subset its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlesam.config import build
from mlesam.errors import DataError, RequestError
from mlesam.model.features import Features

LIMITS = (0.2, 5.0)
"""Least and greatest temperature: a bound for sets of sensors far from all that were fitted."""


@dataclass(frozen=True)
class Calibration:
    """The temperature of every set of sensors, and what it was fitted on.

    Attributes:
        base: log T with all sensors. absent: by sensor, what log T gains when it is absent.
        frames, pixels: of val, that it was fitted on; a pixel counts once for each set of sensors that it was seen with.
        nll: mean negative log-likelihood of these pixels, in nats, before and after.
    """

    base: float
    absent: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    pixels: int = 0
    nll: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, value in (("base", self.base), *((f"absent.{m}", b) for m, b in self.absent.items())):
            if not math.isfinite(value):
                raise RequestError(f"{name} is {value}, but it must be finite.")

    def temperature(self, present: Iterable[str]) -> float:
        """T of a set of sensors. Sensors that it was not fitted with change nothing."""
        there = set(present)
        log = self.base + sum(gain for m, gain in self.absent.items() if m not in there)
        low, high = LIMITS
        return min(max(math.exp(min(log, 99.0)), low), high)  # 99: no overflow

    def temperatures(self, features: Features) -> list[float]:
        """Each frame's T, by the sensors that it has in ``features``."""
        present: list[list[str]] = [[] for _ in range(features.count)]
        for segment, owners in zip(features.segments, features.frames, strict=True):
            for frame in owners.tolist():
                present[frame].append(segment.modality)
        return [self.temperature(own) for own in present]


def read_calibration(path: Path, key: str | None = None) -> Calibration | None:
    """The calibration in a JSON file, or in its field ``key``. None where there is none.

    Raises:
        DataError: it is there and cannot be used.
    """
    if not path.is_file():
        return None
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if key is not None:
            if key not in values:
                return None
            values = values[key]
        if not isinstance(values, dict) or "base" not in values:
            raise ValueError("it has no 'base'")
        return build(Calibration, values, "calibration")
    except (OSError, ValueError) as error:  # a RequestError is a ValueError
        reason = str(error).rstrip(".")
        raise DataError(f"{path} holds no calibration that can be read ({reason}); copy it again.") from None
