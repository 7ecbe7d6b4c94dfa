"""Where things stand: streets for the dataset, yards for pre-training the foundation."""

from __future__ import annotations

import math

import numpy as np

from mlesam.world.draws import Draws
from mlesam.world.scene import ID, MATERIAL, Builder, Ground, Scene, bent, slope, tinted

CHUNK = 30.0
"""Metres of street that are drawn as one piece, so that a street has no end."""
FASTEST = 9.0
"""Metres per second of the fastest traffic."""
YARDS = 1_000_000
"""Asset pools from here on belong to pre-training."""


class Street:
    """A street of one city, which ends at a building across it; ``near(z)`` is the part of it that a camera at z can see.

    Args:
        city: asset pool. seed: layout. end: metres along the street at which it ends.
    """

    def __init__(self, city: int, seed: tuple[int | str, ...], end: float) -> None:
        self.city, self.seed, self.end = city, seed, end
        self._pieces: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        draws = Draws(city, "street", *seed)
        self.road = draws.uniform(2.7, 3.3)
        self.walk = draws.uniform(1.7, 2.6)
        self.verge = draws.uniform(1.6, 2.8)
        self.bend = draws.uniform(-0.0012, 0.0012)
        self.crosswalk = draws.uniform(7.0, 30.0) if draws.chance(0.4) else -1e6
        palette = Draws(city, "ground", draws.integer(8))
        road = tinted(palette, (0.16, 0.16, 0.17), 0.25)
        walk = tinted(palette, palette.choice(((0.36, 0.34, 0.32), (0.30, 0.30, 0.31), (0.38, 0.30, 0.26))), 0.25)
        green = tinted(palette, (0.17, 0.26, 0.09), 0.25)
        self.surfaces = np.array([
            (ID["road"], MATERIAL["asphalt"], *road), (ID["sidewalk"], MATERIAL["slabs"], *walk),
            (ID["grass"], MATERIAL["grass"], *green),
        ], dtype=np.float32)  # fmt: skip

    @property
    def lane(self) -> float:
        """Offset of the right lane's middle."""
        return self.road / 2

    def near(self, z: float, before: float = 22.0, ahead: float = 75.0) -> Scene:
        pieces = range(int(np.floor((z - before) / CHUNK)), int(np.floor((z + ahead) / CHUNK)) + 1)
        scenes = [self._piece(index) for index in pieces] + [self._last_houses()]
        outer = self.road + self.walk
        edges = np.array([-outer, -self.road, self.road, outer], dtype=np.float32)
        ground = Ground(self.surfaces[[2, 1, 0, 1, 2]], edges, None, self.bend, self.crosswalk)
        parts, lamps = (np.concatenate(arrays) for arrays in zip(*scenes, strict=True))
        return Scene(parts, ground, lamps, self.city)

    def _piece(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Parts and lamps of a piece of the street; a drive asks for the same one in many frames."""
        if index not in self._pieces:
            builder = Builder(self.city)
            draws = Draws(self.city, "chunk", *self.seed, index + 1000)
            builder.count = (index + 1000) * 200
            start = index * CHUNK
            for side in (-1.0, 1.0):
                self._frontage(builder, draws, start, side)
                self._sidewalk(builder, draws, start, side)
            self._traffic(builder, draws, start)
            builder.drop_beyond(self.end - 1.5)
            self._pieces[index] = builder.arrays()
        return self._pieces[index]

    def _last_houses(self) -> tuple[np.ndarray, np.ndarray]:
        builder = Builder(self.city)
        draws = Draws(self.city, "end", *self.seed)
        for side in (-1.0, 0.0, 1.0):
            width = draws.uniform(9.0, 11.0)
            builder.building(draws, self._x(20.0 * side, self.end), self.end + 4.0, width, 4.0)
        return builder.arrays()

    def _x(self, offset: float, z: float) -> float:
        return offset + bent(self.bend, z)

    def _frontage(self, builder: Builder, draws: Draws, start: float, side: float) -> None:
        """Walls, hedges and what stands behind them."""
        line = self.road + self.walk + self.verge
        z = start
        while z < start + CHUNK - 3:
            length = draws.uniform(5.0, 10.0)
            if draws.chance(0.85):
                middle = z + length / 2
                rise = slope(self.bend, middle)
                norm = math.sqrt(1 + rise * rise)
                builder.barrier(draws, self._x(side * line, middle), middle, length / 2 - 0.2, (1 / norm, rise / norm))
            z += length
        z = start
        while z < start + CHUNK - 4:
            length = draws.uniform(7.0, 13.0)
            setback = line + draws.uniform(1.0, 4.5)
            middle = z + length / 2
            if draws.chance(0.72):
                builder.building(draws, self._x(side * (setback + 5.0), middle), middle, 5.0, length / 2 - 0.3)
            else:
                builder.tree(draws, self._x(side * (setback + draws.uniform(0.5, 2.0)), middle), middle)
            z += length

    def _sidewalk(self, builder: Builder, draws: Draws, start: float, side: float) -> None:
        kerb, back = self.road, self.road + self.walk
        at = lambda: start + draws.uniform(0.0, CHUNK)  # noqa: E731
        z = at()
        builder.lamp(draws, self._x(side * (kerb + 0.4), z), z, -side)
        for _ in range(1 + draws.integer(2)):
            z = at()
            builder.tree(draws, self._x(side * (back + draws.uniform(0.4, self.verge - 0.4)), z), z)
        for _ in range(1 + draws.integer(2)):
            z = at()
            builder.sign(draws, self._x(side * (kerb + draws.uniform(0.4, 0.8)), z), z)
        for _ in range(1 + draws.integer(4)):
            z = at()
            builder.figure(draws, self._x(side * (kerb + draws.uniform(0.7, self.walk)), z), z, alive=True)
        if draws.chance(0.5):
            z = at()
            builder.figure(draws, self._x(side * (back + draws.uniform(-0.4, 0.5)), z), z, alive=False)
        for _ in range(1 + draws.integer(3)):
            z = at()
            builder.clutter(draws, self._x(side * (kerb + draws.uniform(0.4, self.walk)), z), z)
        if draws.chance(0.45):
            z = at()
            builder.vehicle(draws, self._x(side * (kerb - 1.0), z), z, (side, 0.0), 0.0, running=False)

    def _traffic(self, builder: Builder, draws: Draws, start: float) -> None:
        for side, probability in ((1.0, 0.35), (-1.0, 0.6)):
            if draws.chance(probability):
                z = start + draws.uniform(0.0, CHUNK)
                speed = draws.uniform(3.0, FASTEST)
                builder.vehicle(draws, self._x(side * self.lane, z), z, (side, 0.0), speed, running=True)
        if draws.chance(0.25):  # someone crosses
            z = start + draws.uniform(0.0, CHUNK)
            builder.figure(draws, self._x(draws.uniform(-self.road, self.road), z), z, alive=True)


def yard(pool: int, seed: tuple[int | str, ...]) -> Scene:
    """A place without streets: surfaces in patches, and objects of all kinds at any spot and angle."""
    draws = Draws(pool, "yard", *seed)
    builder = Builder(pool)
    names = ("asphalt", "slabs", "grass", "gravel", "wood", "plaster")
    surfaces = []
    count = 5 + draws.integer(8)
    for _ in range(count):
        own = Draws(pool, "patch", draws.integer(24))
        grey = own.uniform(0.08, 0.5)
        color = tuple(grey * own.uniform(0.7, 1.3) for _ in range(3))
        surfaces.append((ID["road"], MATERIAL[own.choice(names)], *color))
    seeds = np.array([(draws.uniform(-14, 14), draws.uniform(-2, 40)) for _ in range(count)], dtype=np.float32)
    for _ in range(3 + draws.integer(5)):
        x, z = draws.uniform(-22, 22), draws.uniform(9, 55)
        builder.building(draws, x, z, draws.uniform(2.0, 6.0), draws.uniform(2.0, 6.0))
    for _ in range(22 + draws.integer(14)):
        share = draws.uniform()
        z = 2.5 + 34 * share * math.sqrt(share)
        x = draws.uniform(-0.75, 0.75) * (z + 2)
        angle = draws.choice(((1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.0, 1.0), (0.8, -0.6), (0.6, -0.8)))
        kind = draws.integer(8)
        if kind == 0:
            builder.vehicle(draws, x, z, angle, 0.0, draws.chance(0.5))
        elif kind == 1:
            builder.barrier(draws, x, z, draws.uniform(1.0, 4.0), angle)
        elif kind == 2:
            builder.tree(draws, x, z)
        elif kind == 3:
            builder.lamp(draws, x, z, draws.choice((-1.0, 1.0)))
        elif kind == 4:
            builder.sign(draws, x, z)
        elif kind == 5:
            builder.figure(draws, x, z, alive=True)
        else:
            builder.clutter(draws, x, z)
    return builder.scene(Ground(np.array(surfaces, dtype=np.float32), None, seeds))
