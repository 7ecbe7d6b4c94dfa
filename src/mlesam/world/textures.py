"""Surface textures: tileable pictures of grain, slabs, leaves, bricks, each in several degrees of blur."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mlesam.world.draws import Draws

TILE = 128
"""Side of a tile in texels."""
LEVELS = 5
"""Each level is blurred twice as far as the one before, for surfaces twice as far away."""
KINDS = ("grain", "slabs", "grass", "leaves", "plaster", "bricks", "planks", "paint")
SPAN = np.array([3.0, 4.0, 2.5, 3.0, 6.0, 2.4, 2.0, 4.0], dtype=np.float32)
"""Metres that one tile covers, by kind."""


@lru_cache(maxsize=8)
def texture_stack(pool: int) -> np.ndarray:
    """All textures of an asset pool: (kinds, levels, TILE, TILE) uint8, where 128 leaves a colour as it is."""
    stack = np.empty((len(KINDS), LEVELS, TILE, TILE), dtype=np.uint8)
    for index, kind in enumerate(KINDS):
        tile = _tile(kind, Draws(pool, "texture", kind))
        for level in range(LEVELS):
            stack[index, level] = np.clip(np.rint(128 + 127 * tile), 0, 255)
            tile = _blurred(tile, 2**level)
    return stack


def _tile(kind: str, draws: Draws) -> np.ndarray:
    """(TILE, TILE) float64 around 0, within about -1..1."""
    if kind == "grain":
        return 0.22 * _noise(draws, 64) + 0.15 * _noise(draws, 128) + 0.12 * _noise(draws, 8)
    if kind == "grass":
        return 0.4 * _noise(draws, 64) + 0.2 * _noise(draws, 128) + 0.25 * _noise(draws, 16)
    if kind == "leaves":
        tufts = np.where(_noise(draws, 12) > 0.05, 0.6, -0.6)  # 25 cm: a camera sees them from across a street
        return tufts + 0.3 * _noise(draws, 64) + 0.2 * _noise(draws, 24)
    if kind == "plaster":
        return 0.10 * _noise(draws, 8) + 0.06 * _noise(draws, 32)
    if kind == "paint":
        return 0.04 * _noise(draws, 16)
    tone = 0.08 * _noise(draws, 16) + 0.08 * _noise(draws, 128)
    y, x = np.mgrid[0:TILE, 0:TILE]
    if kind == "slabs":
        side = int(draws.choice((32, 64)))
        joint = (x % side < 2) | (y % side < 2)
        shade = _per_cell(draws, y // side, x // side)
        return np.where(joint, -0.55, tone + 0.12 * shade)
    if kind == "bricks":
        row = y // 8
        joint = (y % 8 < 1) | ((x + 8 * (row % 2)) % 16 < 1)
        shade = _per_cell(draws, row, (x + 8 * (row % 2)) // 16)
        return np.where(joint, 0.35, tone + 0.3 * shade)
    joint = x % 16 < 1  # planks
    return np.where(joint, -0.6, tone + 0.2 * _per_cell(draws, 0 * y, x // 16))


def _per_cell(draws: Draws, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    values = 2.0 * draws.uniforms(16, 16).astype(np.float64) - 1.0
    return values[row % 16, column % 16]


def _noise(draws: Draws, cells: int) -> np.ndarray:
    """Smooth noise with ``cells`` random values along each side, in -1..1, that continues at the edges."""
    lattice = 2.0 * draws.uniforms(cells, cells).astype(np.float64) - 1.0
    position = np.arange(TILE) * cells / TILE
    low = position.astype(np.int64)
    share = position - low
    high = (low + 1) % cells
    rows = lattice[low] * (1 - share)[:, None] + lattice[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def _blurred(tile: np.ndarray, radius: int) -> np.ndarray:
    for axis in (0, 1):
        tile = 0.5 * tile + 0.25 * (np.roll(tile, radius, axis) + np.roll(tile, -radius, axis))
    return tile
