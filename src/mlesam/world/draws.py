"""Random numbers whose values no library version changes.

The world is frozen, but NumPy promises only the raw bits of a seeded PCG64, not what its distributions make of them.
Single numbers come from SplitMix64 (Steele, Lea and Flood 2014), arrays from PCG64's bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Draws:
    """A stream of random numbers named by a key of whole numbers and texts: ``Draws(7, "street", 3)``."""

    def __init__(self, *key: int | str) -> None:
        self._state = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
        self._bits: np.random.PCG64 | None = None

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return low + (high - low) * (((z ^ (z >> 31)) >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """0 to count - 1."""
        return int(self.uniform() * count)

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(len(options))]

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def uniforms(self, *shape: int) -> np.ndarray:
        """float32 array in [0, 1)."""
        return (self._raw(shape) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def normals(self, *shape: int) -> np.ndarray:
        """float32 array, mean 0 and variance 1: the sum of four 16-bit numbers, which ends at 3.46 on either side."""
        parts = self._raw(shape).view(np.uint16).reshape(*shape, 4)
        total = parts[..., 0].astype(np.float32) + parts[..., 1] + parts[..., 2] + parts[..., 3]
        return (total - np.float32(131070.0)) * np.float32(1 / 37837.2)

    def _raw(self, shape: tuple[int, ...]) -> np.ndarray:
        if self._bits is None:
            self._bits = np.random.PCG64(np.random.SeedSequence(self._state))
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)
