"""From what each pixel shows to how bright, how warm and how reflective it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlesam.world.geometry import BOX, CYLINDER, GROUND, SKY, Hits, Shadows, ground_surface
from mlesam.world.scene import (
    BOARD,
    BODY,
    COLUMN,
    ID,
    MATERIALS,
    STRIPES,
    TEXTURE_OF,
    WINDOWS,
    Scene,
    bent,
)
from mlesam.world.textures import LEVELS, SPAN, TILE, texture_stack
from mlesam.world.weather import Weather, clearness

_MATERIAL_TABLE = np.array(
    [(m.contrast, m.infrared, m.sun, m.night, m.rough) for m in MATERIALS.values()], dtype=np.float32
)
HEADLIGHT = np.float32(9.0)
LAMP = np.float32(5.0)


@dataclass(frozen=True)
class Surfaces:
    """What each pixel shows, surface by surface; all (H, W), colours (3, H, W).

    Attributes:
        hits: depth and part. label, instance: int. distance: metres along the ray. facing: cosine between the ray and
            the surface's normal. albedo: reflectance 0..1. normal: unit vectors. glow: light of its own.
        infrared: reflectance for LiDAR. warmth: kelvin above the air that the object brings along.
        sun, night: kelvin above the air from sunshine and at night. rough: metres of relief. position: world coordinates.
        sunlight: cosine of the sun on the surface, 0 in the shade.
    """

    hits: Hits
    label: np.ndarray
    instance: np.ndarray
    distance: np.ndarray
    facing: np.ndarray
    albedo: np.ndarray
    normal: tuple[np.ndarray, np.ndarray, np.ndarray]
    glow: np.ndarray
    infrared: np.ndarray
    warmth: np.ndarray
    sun: np.ndarray
    night: np.ndarray
    rough: np.ndarray
    position: tuple[np.ndarray, np.ndarray, np.ndarray]
    sunlight: np.ndarray


def surfaces(scene: Scene, hits: Hits, parts: np.ndarray, weather: Weather, shadows: Shadows | None) -> Surfaces:
    """Colour, texture and temperature of everything that is seen."""
    shape = hits.depth.shape
    table = np.concatenate([parts, np.zeros((2, parts.shape[1]), dtype=np.float32)])  # rows for the ground and the sky
    flat = table.ravel()
    base = (hits.part % len(table)) * table.shape[1]
    base = base.astype(np.int32)
    known: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name not in known:
            known[name] = flat.take(base + COLUMN[name], mode="clip")
        return known[name]

    is_sky, is_ground = hits.part == SKY, hits.part == GROUND
    x, y, z = hits.points()

    # Where on the part, in the part's own axes.
    px, py, pz = x - get("cx"), y - get("cy"), z - get("cz")
    cos, sin = get("cos"), get("sin")
    lx, lz = cos * px - sin * pz, sin * px + cos * pz
    hx, hy, hz = (np.where(h > 0, h, np.float32(1.0)) for h in (get("hx"), get("hy"), get("hz")))
    kind = get("kind")
    ax, ay, az = np.abs(lx) / hx, np.abs(py) / hy, np.abs(lz) / hz
    on_x, on_y = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
    is_box, is_cylinder = (kind == BOX) & ~is_ground & ~is_sky, kind == CYLINDER
    round_y = np.where(is_cylinder, np.float32(0.0), py / (hy * hy))
    nx = np.where(is_box, np.sign(lx) * on_x, lx / (hx * hx))
    ny = np.where(is_box, np.sign(py) * on_y, round_y)
    nz = np.where(is_box, np.sign(lz) * ~(on_x | on_y), lz / (hz * hz))
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-12)
    nx, ny, nz = nx / length, ny / length, nz / length
    nx, nz = cos * nx + sin * nz, cos * nz - sin * nx
    flat_ground = is_ground | is_sky
    nx, ny, nz = np.where(flat_ground, 0, nx), np.where(flat_ground, 1, ny), np.where(flat_ground, 0, nz)
    nx, ny, nz = nx.astype(np.float32), ny.astype(np.float32), nz.astype(np.float32)

    # Coordinates of the surface in metres: along it (s) and up (t).
    s = np.where(is_box, np.where(on_x, lz, lx), lx + np.float32(0.7) * lz)
    t = np.where(is_box & on_y, lz, py)
    s, t = np.where(is_ground, x, s), np.where(is_ground, z, t)

    # Materials and colours; the ground's depend on the place.
    surface = ground_surface(scene.ground, x, z)
    ground = scene.ground.surfaces
    material = np.where(is_ground, ground[:, 1].take(surface), get("material")).astype(np.int32)
    label = np.where(is_ground, ground[:, 0].take(surface), get("label")).astype(np.uint8)
    label[is_sky] = ID["sky"]
    instance = np.where(is_ground, -1 - surface, get("instance").astype(np.int32))
    instance[is_sky] = -1000
    color = [np.where(is_ground, ground[:, 2 + i].take(surface), get("rgb"[i])) for i in range(3)]
    contrast, infrared, sun, night, rough = (_MATERIAL_TABLE[:, i].take(material) for i in range(5))

    # Texture, from the blur level that fits the pixel's footprint on the surface.
    rx, ry, rz = hits.rays
    stretch = np.sqrt(rx * rx + ry * ry + rz * rz)
    distance = np.where(is_sky, np.float32(1000.0), hits.depth) * stretch
    facing = np.abs(rx * nx + ry * ny + rz * nz) / stretch
    texture = TEXTURE_OF[material]
    span = SPAN[texture]
    footprint = distance / np.float32(hits.camera.focal) / np.maximum(facing, np.float32(0.2)) * (TILE / span)
    level = np.zeros(shape, dtype=np.int32)
    for limit in (1.0, 2.0, 4.0, 8.0)[: LEVELS - 1]:
        level += footprint > limit
    stack = texture_stack(scene.pool)
    shift = get("key") * np.float32(0.37)
    u = np.floor((s / span + shift) * TILE).astype(np.int32) & (TILE - 1)
    v = np.floor(t / span * TILE).astype(np.int32) & (TILE - 1)
    grain = stack.ravel().take(((texture * LEVELS + level) * TILE + v) * TILE + u, mode="clip").astype(np.float32)
    grain = np.float32(1.0) + contrast * (grain - np.float32(128.0)) / np.float32(127.0)
    grain = np.maximum(grain, np.float32(0.15))

    glow = np.zeros(shape, dtype=np.float32)
    color, glow, infrared, warmth = _patterns(
        get, s, t, ax, ay, py, on_x, on_y, is_box, color, glow, infrared, get("heat"), weather
    )
    if scene.ground.edges is not None:
        _paint_road(scene, x, z, is_ground & (label == ID["road"]), color, infrared)
    albedo = np.stack([np.clip(c * grain, 0.0, 0.95) for c in color]).astype(np.float32)
    if weather.wet:
        albedo *= np.where(is_ground, np.float32(1 - 0.45 * weather.wet), np.float32(1 - 0.15 * weather.wet))
    straight = np.maximum(nx * weather.sun[0] + ny * weather.sun[1] + nz * weather.sun[2], 0)
    if shadows is not None:
        straight = straight * shadows.lit(x, y, z)
    return Surfaces(hits, label, instance, distance, facing, albedo, (nx, ny, nz), glow, infrared * np.minimum(grain, 1.4),
                    warmth, sun, night, rough, (x, y, z), straight)  # fmt: skip


def _patterns(get, s, t, ax, ay, py, on_x, on_y, is_box, color, glow, infrared, heat, weather: Weather):
    """Facades, car bodies, signs and barriers."""
    pattern = np.where(is_box, get("pattern"), 0)
    second = [get(name) for name in ("r2", "g2", "b2")]
    own = get("glow")
    # Windows in a grid of 2.4 m by 3 m.
    column, row = np.floor(s / np.float32(2.4)), np.floor((t + np.float32(100.0)) / np.float32(3.0))
    inside_s = s / np.float32(2.4) - column
    inside_t = (t + np.float32(100.0)) / np.float32(3.0) - row
    pane = (inside_s > 0.28) & (inside_s < 0.72) & (inside_t > 0.3) & (inside_t < 0.75) & ~on_y
    windows = (pattern == WINDOWS) & pane
    # Which of them are lit at night: a hash of the building and the place in the grid.
    code = (
        get("key").astype(np.int64) * 7919 + column.astype(np.int64) * 104729 + row.astype(np.int64) * 1299709
    ) & 0xFFFF
    lit = windows & ((code * 40503 >> 4 & 0xFF) < 60)
    # A car: glass at the top of its ends, dark wheels, lights.
    end = ~on_x & ~on_y
    wheels = (ay > 0.25) & (py < 0) & on_x & (np.abs(np.abs(s) - np.float32(1.35)) < 0.42)
    lights = end & (np.abs(ax - np.float32(0.75)) < 0.2) & (np.abs(py) < 0.16)
    body = pattern == BODY
    dark = body & wheels
    face = (pattern == BOARD) & end & (ax < 0.78) & (ay < 0.78)
    inner = face & ((ax < 0.5) & (ay < 0.22) | (ax < 0.18) & (ay < 0.55))
    stripe = (pattern == STRIPES) & (np.floor((s + t) / np.float32(0.3)).astype(np.int64) % 2 == 0)
    use_second = windows | (face & ~inner) | stripe
    color = [np.where(use_second, b, np.where(dark, np.float32(0.03), a)) for a, b in zip(color, second, strict=True)]
    infrared = np.where(windows, np.float32(0.08), np.where(dark, np.float32(0.05), infrared))
    night = weather.dark
    glow = np.where(pattern == WINDOWS, np.where(lit, np.float32(0.35 * night), 0), own)
    glow = np.where(body, np.where(lights & (own > 0), np.float32(1.5 if night else 0.0), 0), glow).astype(np.float32)
    if not night:
        glow = glow * np.float32(0.05)
    warm_window = np.where(lit & night, np.float32(3.0), np.where(windows, np.float32(-2.0), heat))
    # A running engine warms the front of a car, and what is below it.
    warmth = np.where(body & end, heat * np.float32(1.3), warm_window)
    return color, glow, infrared, warmth


def _paint_road(
    scene: Scene, x: np.ndarray, z: np.ndarray, road: np.ndarray, color: list, infrared: np.ndarray
) -> None:
    """Lane markings and a crosswalk, painted in place."""
    ground = scene.ground
    assert ground.edges is not None
    offset = x - bent(np.float32(ground.bend), z)
    half = ground.edges[2]
    dash = z - np.float32(6.0) * np.floor(z / np.float32(6.0))
    middle = (np.abs(offset) < 0.08) & (dash < 3.0)
    side = np.abs(np.abs(offset) - (half - np.float32(0.25))) < 0.07
    ahead = np.abs(z - np.float32(ground.crosswalk)) < 1.6
    bars = ahead & ((offset + 50) - np.floor((offset + 50) / np.float32(1.1)) * np.float32(1.1) < 0.55)
    paint = road & (middle | side | bars)
    for channel in color:
        channel[paint] = 0.62
    infrared[paint] = 0.6


def radiance(scene: Scene, seen: Surfaces, weather: Weather) -> np.ndarray:
    """(3, H, W) light that arrives at the camera, 1 is a white surface in full sun."""
    _, ny, _ = seen.normal
    sky = seen.hits.part == SKY
    upward = np.float32(0.6) + np.float32(0.4) * ny
    light = [upward * weather.ambient[i] for i in range(3)]
    if weather.direct.any():
        light = [part + seen.sunlight * weather.direct[i] for i, part in enumerate(light)]
    if weather.dark:
        local = _headlights(seen) + _lamps(scene, seen)
        light = [part + local * np.float32(tint) for part, tint in zip(light, (1.0, 0.88, 0.70), strict=True)]
    glow = seen.glow
    image = np.stack([seen.albedo[i] * light[i] + glow * np.float32(w) for i, w in enumerate((1.0, 0.85, 0.6))])
    clear = clearness(weather.haze, np.where(sky, np.float32(1000.0), seen.distance))
    haze = weather.sky * np.float32(0.9)
    ry = seen.hits.rays[1]
    shade = np.float32(0.75) + np.clip(ry, -0.5, 0.5) * np.float32(-0.5)
    for i in range(3):
        image[i] = np.where(sky, weather.sky[i] * shade, image[i] * clear + haze[i] * (1 - clear))
    return image.astype(np.float32)


def _headlights(seen: Surfaces) -> np.ndarray:
    """The camera's own vehicle lights what is ahead, down to the road and not far up."""
    rx, ry, _ = seen.hits.rays
    straight = np.abs(rx) + np.abs(ry + np.float32(0.08)) * np.float32(1.8)
    cone = np.maximum(np.float32(1.0) - straight * straight * np.float32(2.0), 0)
    return HEADLIGHT * cone * np.maximum(seen.facing, np.float32(0.15)) / (seen.distance * seen.distance + 20)


def _lamps(scene: Scene, seen: Surfaces) -> np.ndarray:
    x, y, z = seen.position
    nx, ny, nz = seen.normal
    camera = np.array(seen.hits.camera.position, dtype=np.float32)
    total = np.zeros(x.shape, dtype=np.float32)
    near = scene.lamps[np.argsort(np.abs(scene.lamps[:, 2] - camera[2] - 12), kind="stable")[:4]]
    for lx, ly, lz in near:
        dx, dy, dz = lx - x, ly - y, lz - z
        square = dx * dx + dy * dy + dz * dz + np.float32(0.5)
        cosine = np.maximum(dx * nx + dy * ny + dz * nz, 0) / np.sqrt(square)
        total += LAMP * cosine * np.maximum(dy, 0) / np.sqrt(square) / square
    return total


def temperature(seen: Surfaces, weather: Weather) -> np.ndarray:
    """(H, W) degrees Celsius that a thermal camera sees."""
    warmed = seen.sun * np.float32(weather.warming) * (np.float32(0.25) + np.float32(0.75) * seen.sunlight)
    cooled = seen.night * np.float32(1.0 if weather.dark else 0.35 * (1 - weather.warming))
    damped = np.float32(1 - 0.6 * weather.wet)
    surface = np.float32(weather.air) + (warmed + cooled) * damped + seen.warmth * np.float32(1 - 0.2 * weather.wet)
    ry = seen.hits.rays[1]
    above = np.float32(weather.air - 28.0) + np.clip(np.float32(0.5) - ry, 0, 1) * np.float32(20.0)
    result = np.where(seen.hits.part == SKY, above, surface)
    clear = clearness(0.25 * weather.haze, np.minimum(seen.distance, np.float32(300.0)))
    return (result * clear + np.float32(weather.air) * (1 - clear)).astype(np.float32)
