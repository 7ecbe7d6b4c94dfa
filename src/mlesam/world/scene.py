"""What stands in the world: classes, materials, and scenes put together from the assets of a pool.

Metres; x right, y up, z forward along the street. A scene is a table of parts (boxes, ellipsoids, upright cylinders) on
a ground of several surfaces. Parts of one object share an instance number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlesam.world.draws import Draws
from mlesam.world.textures import KINDS

CLASSES: dict[str, tuple[int, int, int]] = {
    "sky": (110, 160, 220), "road": (90, 70, 110), "sidewalk": (215, 120, 195), "grass": (140, 200, 90),
    "building": (125, 125, 130), "wall": (190, 155, 110), "hedge": (45, 120, 85), "tree": (25, 85, 35),
    "pole": (235, 200, 60), "sign": (245, 130, 35), "vehicle": (45, 70, 200), "pedestrian": (220, 40, 60),
    "clutter": (120, 225, 220),
}  # fmt: skip
"""Class names with their colours, in the order of the ids."""
ID = {name: i for i, name in enumerate(CLASSES)}

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
PLAIN, WINDOWS, BODY, BOARD, STRIPES = range(5)
"""Patterns that shading paints over a part: a facade, a car's body, a sign's face, a barrier."""

FIELDS = (
    "cx", "cy", "cz", "hx", "hy", "hz", "cos", "sin", "kind", "label", "instance", "material",
    "r", "g", "b", "r2", "g2", "b2", "pattern", "heat", "glow", "vx", "vz", "key",
)  # fmt: skip
"""Columns of the table of parts: centre, half size, yaw, what it is, two colours, own warmth in kelvin, light, speed."""
COLUMN = {name: i for i, name in enumerate(FIELDS)}


@dataclass(frozen=True)
class Material:
    """How a surface looks to each sensor.

    Attributes:
        texture, contrast: kind of texture and how strongly it shows. infrared: reflectance beyond 700 nm (LiDAR, NIR).
        sun, night: kelvin above the air when the sun falls on it straight, and at night. rough: metres of relief.
    """

    texture: str
    contrast: float
    infrared: float
    sun: float
    night: float
    rough: float = 0.0


MATERIALS: dict[str, Material] = {
    "asphalt": Material("grain", 1.0, 0.15, 18.0, 6.0),
    "slabs": Material("slabs", 1.0, 0.34, 11.0, 3.0),
    "grass": Material("grass", 1.0, 0.55, 4.0, -4.0, 0.03),
    "gravel": Material("grain", 1.6, 0.25, 12.0, 2.0, 0.02),
    "brick": Material("bricks", 1.0, 0.40, 10.0, 4.0),
    "plaster": Material("plaster", 1.0, 0.45, 9.0, 3.0),
    # A wall and a hedge have the same shapes, colours and warmth. A camera tells them apart by texture alone, and a laser,
    # which needs no daylight for it, by how brightly leaves shine beyond 700 nm.
    "render": Material("plaster", 0.6, 0.30, 6.0, 0.0),
    "hedge": Material("leaves", 1.5, 0.75, 6.0, 0.0, 0.12),
    "leaves": Material("leaves", 1.0, 0.55, 4.0, -1.0, 0.25),
    "bark": Material("planks", 1.0, 0.30, 5.0, 0.0, 0.02),
    "metal": Material("paint", 1.0, 0.30, 9.0, -3.0),
    "paint": Material("paint", 1.0, 0.35, 10.0, -4.0),
    "retro": Material("paint", 1.0, 0.95, 7.0, -3.0),
    "cloth": Material("plaster", 1.0, 0.40, 4.0, 0.0),
    "wood": Material("planks", 1.0, 0.40, 6.0, 0.0),
}
MATERIAL = {name: i for i, name in enumerate(MATERIALS)}
TEXTURE_OF = np.array([KINDS.index(m.texture) for m in MATERIALS.values()], dtype=np.int32)


def bent(bend: Any, z: Any) -> Any:
    """How far to the right a street's middle line has moved at ``z``: a parabola that goes on straight after 60 m.

    Args:
        z: metres, a number or an array of float32, which the result then is as well.
    """
    curved = np.minimum(np.abs(z), np.float32(60.0))
    if not isinstance(z, np.ndarray):
        curved = min(abs(z), 60.0)
    return bend * np.sign(z) * curved * (2 * np.abs(z) - curved)


def slope(bend: float, z: float) -> float:
    """Rise of :func:`bent` at ``z``: metres to the right per metre ahead."""
    return 2 * bend * min(abs(z), 60.0)


@dataclass(frozen=True)
class Ground:
    """Surfaces of the plane y = 0.

    ``edges`` and ``surfaces`` describe a street: offsets from its middle line where one surface ends and the next begins.
    ``seeds`` (K, 2) describe a yard instead: every point has the surface of the nearest seed.
    Each surface is (label, material, red, green, blue). ``bend`` moves the middle line, see :func:`bent`.
    """

    surfaces: np.ndarray
    edges: np.ndarray | None = None
    seeds: np.ndarray | None = None
    bend: float = 0.0
    crosswalk: float = -1e6


@dataclass(frozen=True)
class Scene:
    """Everything that stays the same while the camera moves through it.

    Attributes:
        parts: (N, len(FIELDS)) float32. ground: surfaces underfoot. lamps: (K, 3) positions of street lights.
        pool: asset pool, which also names the textures.
    """

    parts: np.ndarray
    ground: Ground
    lamps: np.ndarray
    pool: int

    def at(self, seconds: float) -> np.ndarray:
        """The parts where they are at a time; what moves along a street follows its bend."""
        moved = self.parts.copy()
        now = self.parts[:, COLUMN["cz"]]
        then = now + self.parts[:, COLUMN["vz"]] * np.float32(seconds)
        bend = np.float32(self.ground.bend)
        moved[:, COLUMN["cz"]] = then
        moved[:, COLUMN["cx"]] += self.parts[:, COLUMN["vx"]] * np.float32(seconds) + (
            bent(bend, then) - bent(bend, now)
        )
        return moved


class Builder:
    """Collects parts. Every asset is drawn from its pool by number, so pools share no asset."""

    def __init__(self, pool: int) -> None:
        self.pool = pool
        self.rows: list[list[float]] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.count = 0

    def asset(self, kind: str, draws: Draws, variants: int = 12) -> Draws:
        """One of the pool's variants of a kind of object; the placing draws choose which."""
        return Draws(self.pool, kind, draws.integer(variants))

    def part(
        self, kind: int, center: tuple[float, float, float], half: tuple[float, float, float], label: str,
        material: str, color: tuple[float, float, float], *, heading: tuple[float, float] = (1.0, 0.0),
        second: tuple[float, float, float] | None = None, pattern: int = PLAIN, heat: float = 0.0, glow: float = 0.0,
        velocity: tuple[float, float] = (0.0, 0.0), key: int = 0,
    ) -> None:  # fmt: skip
        self.rows.append(
            [*center, *half, *heading, kind, ID[label], self.count, MATERIAL[material], *color, *(second or color), pattern,
             heat, glow, *velocity, key]
        )  # fmt: skip

    def done(self) -> None:
        """The parts so far are one object; the next part begins another."""
        self.count += 1

    def drop_beyond(self, z: float) -> None:
        """Without the objects that reach beyond a place along the street."""
        end, own = COLUMN["cz"], COLUMN["instance"]
        beyond = {row[own] for row in self.rows if row[end] + row[COLUMN["hz"]] > z}
        self.rows = [row for row in self.rows if row[own] not in beyond]
        self.lamps = [lamp for lamp in self.lamps if lamp[2] <= z]

    # ------------------------------------------------------------ assets

    def building(self, draws: Draws, x: float, z: float, half_x: float, half_z: float) -> None:
        own = self.asset("building", draws)
        color = own.choice(((0.45, 0.20, 0.15), (0.55, 0.50, 0.42), (0.35, 0.36, 0.38), (0.60, 0.42, 0.28)))
        color = tinted(own, color, 0.15)
        height = draws.uniform(2.5, 7.0)
        glass = tinted(own, (0.10, 0.13, 0.17), 0.3)
        material = own.choice(("brick", "plaster"))
        self.part(BOX, (x, height, z), (half_x, height, half_z), "building", material, color, second=glass,
                  pattern=WINDOWS, glow=1.0, key=draws.integer(1000))  # fmt: skip
        self.done()

    def barrier(self, draws: Draws, x: float, z: float, half_z: float, heading: tuple[float, float]) -> None:
        """A wall or a hedge: the same body, another surface."""
        own = self.asset("barrier", draws)
        color = tinted(own, own.choice(((0.17, 0.25, 0.12), (0.24, 0.26, 0.14), (0.25, 0.26, 0.17))), 0.2)
        height = own.uniform(0.8, 1.25)
        label = "hedge" if draws.chance(0.5) else "wall"
        material = "hedge" if label == "hedge" else "render"
        self.part(BOX, (x, height, z), (0.45, height, half_z), label, material, color, heading=heading)
        self.done()

    def tree(self, draws: Draws, x: float, z: float) -> None:
        own = self.asset("tree", draws)
        green = tinted(own, (0.13, 0.24, 0.08), 0.3)
        trunk, crown = own.uniform(1.0, 1.4), own.uniform(1.4, 2.2)
        self.part(CYLINDER, (x, trunk, z), (0.24, trunk, 0.24), "tree", "bark", tinted(own, (0.20, 0.14, 0.09), 0.2))
        for _ in range(1 + own.integer(3)):
            dx, dz = own.uniform(-0.6, 0.6), own.uniform(-0.6, 0.6)
            size = crown * own.uniform(0.75, 1.0)
            self.part(ELLIPSOID, (x + dx, 2 * trunk + 0.7 * crown + own.uniform(-0.3, 0.6), z + dz),
                      (size, 0.9 * size, size), "tree", "leaves", tinted(own, green, 0.1))  # fmt: skip
        self.done()

    def lamp(self, draws: Draws, x: float, z: float, toward: float) -> None:
        own = self.asset("lamp", draws)
        height = own.uniform(2.4, 3.0)
        grey = tinted(own, (0.22, 0.23, 0.24), 0.3)
        self.part(CYLINDER, (x, height, z), (0.22, height, 0.22), "pole", "metal", grey)
        self.part(BOX, (x + 0.6 * toward, 2 * height, z), (0.7, 0.13, 0.16), "pole", "metal", grey)
        self.part(BOX, (x + 1.0 * toward, 2 * height - 0.12, z), (0.25, 0.05, 0.12), "pole", "metal", (0.8, 0.8, 0.7),
                  glow=4.0, heat=8.0)  # fmt: skip
        self.lamps.append((x + 1.0 * toward, 2 * height - 0.3, z))
        self.done()

    def sign(self, draws: Draws, x: float, z: float) -> None:
        own = self.asset("sign", draws)
        height = own.uniform(1.1, 1.35)
        side = own.uniform(0.5, 0.7)
        face = own.choice(((0.70, 0.06, 0.06), (0.05, 0.15, 0.60), (0.75, 0.62, 0.05)))
        self.part(CYLINDER, (x, height, z), (0.16, height, 0.16), "pole", "metal", (0.3, 0.3, 0.31))
        self.done()
        self.part(BOX, (x, 2 * height + 0.6 * side, z - 0.08), (side, side, 0.03), "sign", "retro", face,
                  second=(0.85, 0.85, 0.83), pattern=BOARD)  # fmt: skip
        self.done()

    def vehicle(
        self, draws: Draws, x: float, z: float, heading: tuple[float, float], speed: float, running: bool
    ) -> None:
        own = self.asset("vehicle", draws)
        color = tinted(own, own.choice(((0.55, 0.55, 0.57), (0.06, 0.06, 0.07), (0.45, 0.05, 0.05), (0.06, 0.12, 0.38),
                                        (0.75, 0.75, 0.74))), 0.2)  # fmt: skip
        velocity = (heading[1] * speed, heading[0] * speed)
        glass = (0.05, 0.06, 0.08)
        heat = 12.0 if running else 0.0
        forward = lambda d: (x + heading[1] * d, z + heading[0] * d)  # noqa: E731
        if own.chance(0.3):  # a van or a lorry
            length, height = own.uniform(2.4, 3.6), own.uniform(1.05, 1.4)
            self._box(forward(-0.4), 0.35 + height, (1.1, height, length), "paint", color, heading, glass, BODY, 0.3 * heat,
                      velocity)  # fmt: skip
            self._box(
                forward(length + 0.1), 0.95, (1.0, 0.65, 0.55), "paint", color, heading, glass, BODY, heat, velocity
            )
        else:
            length = own.uniform(1.9, 2.3)
            self._box(forward(0.0), 0.65, (0.88, 0.42, length), "paint", color, heading, glass, BODY, heat, velocity)
            self._box(forward(-0.25), 1.3, (0.78, 0.30, 0.55 * length), "paint", glass, heading, color, PLAIN, 0.4 * heat,
                      velocity)  # fmt: skip
        self.done()

    def _box(self, place, height, half, material, color, heading, second, pattern, heat, velocity) -> None:
        self.part(BOX, (place[0], height, place[1]), half, "vehicle", material, color, heading=heading, second=second,
                  pattern=pattern, heat=heat, glow=1.0 if heat else 0.0, velocity=velocity)  # fmt: skip

    def figure(self, draws: Draws, x: float, z: float, alive: bool) -> None:
        """A pedestrian, or a mannequin of the same shape and clothes that is as cold as its surroundings."""
        own = self.asset("figure", draws)
        label, heat = ("pedestrian", 1.0) if alive else ("clutter", 0.0)
        tall = own.uniform(0.85, 1.05)
        coat, trousers = (tinted(own, (own.uniform(0.05, 0.6), own.uniform(0.05, 0.5), own.uniform(0.05, 0.6)), 0.1)
                          for _ in range(2))  # fmt: skip
        skin = tinted(own, own.choice(((0.55, 0.38, 0.28), (0.30, 0.18, 0.12))), 0.1)
        pace = draws.uniform(-1.6, 1.6) if draws.chance(0.8) else 0.0
        velocity = (0.25 * pace, pace) if alive else (0.0, 0.0)
        self.part(BOX, (x, 0.42 * tall, z), (0.20, 0.42 * tall, 0.15), label, "cloth", trousers, heat=7.0 * heat,
                  velocity=velocity)  # fmt: skip
        self.part(ELLIPSOID, (x, 1.12 * tall, z), (0.33, 0.36 * tall, 0.22), label, "cloth", coat, heat=9.0 * heat,
                  velocity=velocity)  # fmt: skip
        self.part(ELLIPSOID, (x, 1.58 * tall, z), (0.15, 0.18, 0.16), label, "cloth", skin, heat=14.0 * heat,
                  velocity=velocity)  # fmt: skip
        self.done()

    def clutter(self, draws: Draws, x: float, z: float) -> None:
        own = self.asset("clutter", draws)
        color = tinted(
            own, own.choice(((0.10, 0.28, 0.14), (0.45, 0.30, 0.10), (0.60, 0.46, 0.08), (0.60, 0.25, 0.04))), 0.25
        )
        turn = draws.choice(((1.0, 0.0), (0.8, 0.6), (0.6, -0.8)))
        shape = own.integer(4)
        if shape == 0:  # a bin
            height = own.uniform(0.55, 0.75)
            self.part(CYLINDER, (x, height, z), (0.5, height, 0.5), "clutter", "metal", color)
            self.part(ELLIPSOID, (x, 2 * height, z), (0.5, 0.16, 0.5), "clutter", "metal", color)
        elif shape == 1:  # a road barrier
            self.part(BOX, (x, 0.75, z), (1.0, 0.45, 0.08), "clutter", "wood", (0.75, 0.10, 0.06), heading=turn,
                      second=(0.85, 0.85, 0.82), pattern=STRIPES)  # fmt: skip
            self.part(BOX, (x, 0.16, z), (0.9, 0.16, 0.06), "clutter", "wood", (0.3, 0.3, 0.3), heading=turn)
        elif shape == 2:  # crates
            side = own.uniform(0.5, 0.7)
            self.part(BOX, (x, side, z), (side, side, side), "clutter", "wood", color, heading=turn)
            self.part(BOX, (x + 0.1, 2.6 * side, z), (0.7 * side, 0.6 * side, 0.7 * side), "clutter", "wood", color)
        else:  # bags
            self.part(ELLIPSOID, (x, 0.44, z), (0.62, 0.52, 0.56), "clutter", "cloth", color)
            self.part(ELLIPSOID, (x + 0.7, 0.34, z + 0.1), (0.48, 0.40, 0.48), "clutter", "cloth", color)
        self.done()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Parts (N, len(FIELDS)) and lamps (K, 3), float32."""
        parts = np.array(self.rows, dtype=np.float32).reshape(-1, len(FIELDS))
        return parts, np.array(self.lamps, dtype=np.float32).reshape(-1, 3)

    def scene(self, ground: Ground) -> Scene:
        parts, lamps = self.arrays()
        return Scene(parts, ground, lamps, self.pool)


def tinted(draws: Draws, color: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
    """A colour near the given one."""
    lighter = 1 + draws.uniform(-spread, spread)
    red, green, blue = (min(0.9, c * lighter * (1 + draws.uniform(-spread, spread) / 2)) for c in color)
    return red, green, blue
