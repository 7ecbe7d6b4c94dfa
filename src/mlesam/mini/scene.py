"""Street scenes of the procedural world for the miniatures: one instant of a drive, seen by cameras and rays of any kind.

The world's own frames are square and of five conditions. The benchmarks have other pictures, weathers and sensors, so this
file goes one level below them, to what decides a pixel: ray casting and surfaces. Nothing here changes a frame of the world.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from mlesam.world import sensors
from mlesam.world.devices import CameraModel
from mlesam.world.draws import Draws
from mlesam.world.geometry import GROUND, SKY, Camera, Hits, Shadows, cut, look
from mlesam.world.layouts import Street
from mlesam.world.render import crowded
from mlesam.world.scene import CLASSES, COLUMN, Scene, bent, slope
from mlesam.world.shading import Surfaces, radiance, surfaces
from mlesam.world.weather import Weather, weather

THINGS = (*CLASSES, "marking", "lorry")
"""What a label can tell apart: the world's classes, and two that its classes hide (paint on the road, vans and lorries)."""
PAINT = 0.35
"""Infrared reflectance between asphalt (0.15) and the paint on it (0.6)."""
CAMERA = CameraModel(noise=0.3)
"""A colour camera with less noise than the world's: noise does not compress, and a miniature is to stay small."""


@dataclass(frozen=True)
class View:
    """What one camera sees: surfaces of each pixel, and the light that arrives, (3, H, W), 1 is white."""

    seen: Surfaces
    light: np.ndarray


@dataclass(frozen=True)
class Instant:
    """One instant of a drive along a street.

    Attributes:
        scene: what stands around. air: light and weather. position: (3,) metres, of the colour camera. yaw: sine of the angle
            between the street and where the vehicle heads. speed: m/s straight ahead. shadows: where the sun reaches.
        draws: the frame's own random numbers. turn_rate: rad/s to the left. pivot: metres forward, left and up of the colour
            camera; that point goes where the vehicle heads while the vehicle turns, and others are moved sideways.
    """

    scene: Scene
    air: Weather
    position: tuple[float, float, float]
    yaw: float
    speed: float
    shadows: Shadows | None
    draws: Draws
    turn_rate: float = 0.0
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def axes(self) -> np.ndarray:
        """(3, 3) vehicle to world; columns forward, left, up. The vehicle stands level."""
        cos = math.sqrt(1 - self.yaw * self.yaw)
        return np.array([[self.yaw, -cos, 0], [0, 0, 1], [cos, self.yaw, 0]])

    def camera(
        self,
        size: tuple[int, int],
        focal: float,
        pitch: float,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        turn: float = 0.0,
        seconds: float = 0.0,
    ) -> Camera:
        """A camera on the vehicle.

        Args:
            size: height and width in pixels. focal: in pixels. pitch: sine of the angle upwards. offset: metres forward, left
                and up of the colour camera. turn: radians to the right. seconds: after the instant.
        """
        x, y, z = (np.array(self.position) + self.axes() @ self.moved(offset, seconds)).tolist()
        return Camera((x, y, z), math.sin(math.asin(self.yaw) + turn - self.turn_rate * seconds), pitch, size, focal)

    def moved(self, offset: tuple[float, float, float], seconds: np.ndarray | float) -> np.ndarray:
        """(3, ...) metres in the vehicle's axes of the instant: where a point of the vehicle is ``seconds`` after it."""
        seconds = np.asarray(seconds, dtype=np.float64)
        still = np.zeros_like(seconds)
        if not self.turn_rate:
            return np.stack([self.speed * seconds + offset[0], still + offset[1], still + offset[2]])
        angle = self.turn_rate * seconds
        radius = self.speed / self.turn_rate
        x, y = offset[0] - self.pivot[0], offset[1] - self.pivot[1]
        forward = self.pivot[0] + radius * np.sin(angle) + x * np.cos(angle) - y * np.sin(angle)
        left = self.pivot[1] + radius * (1 - np.cos(angle)) + x * np.sin(angle) + y * np.cos(angle)
        return np.stack([forward, left, still + offset[2]])

    def view(self, camera: Camera, seconds: float = 0.0) -> View:
        """What a camera sees; traffic is where it is ``seconds`` after the instant."""
        parts = self.scene.at(seconds)
        seen = surfaces(self.scene, look(camera, parts), parts, self.air, self.shadows)
        return View(seen, radiance(self.scene, seen, self.air))

    def picture(self, view: View, draws: Draws, fault: str | None = None) -> np.ndarray:
        """(H, W, 3) uint8: what the colour camera makes of a view. fault: one of the world's faults of ``rgb``."""
        return sensors.rgb(view.light, view.seen, self.air, CAMERA, draws, fault)

    def cast(self, offset: tuple[float, float, float], rays: np.ndarray, seconds: np.ndarray | float = 0.0) -> Surfaces:
        """What rays of any pattern meet. Traffic stands still meanwhile, the vehicle does not.

        Args:
            offset: where they start, metres forward, left and up of the colour camera. rays: (3, H, W) unit vectors in the
                vehicle's axes of when each starts. seconds: (H, W), when that is, after the instant.

        Returns:
            Surfaces whose ``hits.depth`` is the range in metres along each ray, inf where it meets the sky.
        """
        axes = self.axes()
        shape = rays.shape[1:]
        seconds = np.broadcast_to(seconds, shape)
        start = self.moved(offset, seconds)
        if self.turn_rate:
            cos, sin = np.cos(self.turn_rate * seconds), np.sin(self.turn_rate * seconds)
            rays = np.stack([cos * rays[0] - sin * rays[1], sin * rays[0] + cos * rays[1], rays[2]])
        origin = (np.tensordot(axes, start, 1) + np.array(self.position)[:, None, None]).astype(np.float32)
        direction = np.tensordot(axes, rays, 1).astype(np.float32)
        parts = self.scene.at(0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            depth = np.where(direction[1] < -1e-6, -origin[1] / direction[1], np.inf).astype(np.float32)
            part = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int32)
            for row in range(len(parts)):
                o = tuple(origin[axis] - parts[row, axis] for axis in range(3))
                cut(parts[row], o, tuple(direction), depth, part, row)
        x, y, z = (np.array(self.position) + axes @ np.array(offset)).tolist()
        camera = Camera(
            (x, y, z), self.yaw, 0.0, (shape[0], shape[1]), float(shape[1])
        )  # its focal length picks textures
        hits = Hits(depth, part, (direction[0], direction[1], direction[2]), camera)
        return surfaces(self.scene, hits, parts, self.air, self.shadows)

    def things(self, seen: Surfaces) -> np.ndarray:
        """(H, W) uint8 indices into :data:`THINGS`."""
        found = seen.label.copy()
        found[(found == THINGS.index("road")) & (seen.infrared > PAINT)] = THINGS.index("marking")
        wide = self.scene.parts[:, COLUMN["hx"]] > 0.95  # a van's body and cab; a car is 0.88 m to either side
        on_part = seen.hits.part >= 0
        lorry = on_part & wide[np.where(on_part, seen.hits.part, 0)] & (found == THINGS.index("vehicle"))
        found[lorry] = THINGS.index("lorry")
        return found


def instant(key: tuple[int | str, ...], kind: str, dark: bool, ahead: float = 0.0, height: float = 1.6) -> Instant:
    """A vehicle somewhere on a street of its own, which the key names.

    Args:
        kind: sun, clear, cloud, fog, rain or snow. dark: at night. ahead: metres along the street from where the street's
            first frame was. height: of the colour camera, metres.
    """
    draws = Draws("mini", *key)
    air = conditions(kind, dark, draws)
    start = draws.uniform(2.0, 18.0)
    street = Street(draws.integer(1000), ("mini", *key), start + draws.uniform(22.0, 34.0))
    z = start + ahead
    rise = slope(street.bend, z)
    position = (street.lane + bent(street.bend, z) + draws.uniform(-0.4, 0.4), height, z)
    yaw = rise / math.sqrt(1 + rise * rise) + draws.uniform(-0.03, 0.03)
    speed = draws.uniform(5.0, 11.0)
    scene = street.near(z)
    if kind == "snow":
        scene = dataclasses.replace(scene, ground=dataclasses.replace(scene.ground, surfaces=_snowed(scene)))
    level = Camera(position, yaw, 0.0, (8, 8), 4.0)
    keep = ~np.isin(scene.parts[:, COLUMN["instance"]], crowded(scene, level))
    scene = dataclasses.replace(scene, parts=scene.parts[keep])
    shadows = None
    if air.direct.any():
        center = np.array([position[0], 2.0, z + 22.0], dtype=np.float32)
        shadows = Shadows.cast(air.sun, center, scene.at(0.0))
    return Instant(scene, air, position, yaw, speed, shadows, Draws("mini", *key, round(100 * ahead)))


def conditions(kind: str, dark: bool, draws: Draws) -> Weather:
    """Light and air of a benchmark's weather, put together from the world's conditions."""
    base = {"sun": "day", "clear": "day", "cloud": "day", "fog": "fog", "rain": "rain", "snow": "rain"}[kind]
    air = weather(base, draws)
    night = weather("night", draws)
    as_color = lambda *color: np.array(color, dtype=np.float32)  # noqa: E731
    if kind == "cloud":
        air = dataclasses.replace(
            air, direct=as_color(0.03, 0.03, 0.03), ambient=as_color(0.40, 0.42, 0.45), sky=as_color(0.58, 0.60, 0.64)
        )
    elif kind == "snow":
        air = dataclasses.replace(air, name="snow", wet=0.2, haze=0.012, sky=as_color(0.55, 0.56, 0.58), air=-2.0)
    if dark:
        air = dataclasses.replace(night, haze=max(air.haze, night.haze), wet=air.wet, air=min(air.air, night.air))
    return air


def _snowed(scene: Scene) -> np.ndarray:
    """The ground's surfaces under snow: the sidewalk and the grass white, the road with slush."""
    covered = scene.ground.surfaces.copy()
    road = covered[:, 0] == THINGS.index("road")
    share = np.where(road, np.float32(0.35), np.float32(0.85))[:, None]
    covered[:, 2:5] += share * (np.array([0.80, 0.82, 0.86], dtype=np.float32) - covered[:, 2:5])
    return covered


def small_objects(instance: np.ndarray, count: int) -> list[int]:
    """Instance numbers of the smallest objects that still show: for what a dataset leaves without a class."""
    numbers, pixels = np.unique(instance[instance >= 0], return_counts=True)
    order = np.argsort(pixels, kind="stable")
    return [int(numbers[i]) for i in order if pixels[i] >= 12][:count]


def table(names: dict[str, str | None], classes: dict[str, tuple[int, int, int]], ignore: int) -> np.ndarray:
    """(len(THINGS),) uint8: class id of every thing, by names; None gives ``ignore``."""
    ids = {name: i for i, name in enumerate(classes)}
    return np.array([ignore if names[thing] is None else ids[str(names[thing])] for thing in THINGS], dtype=np.uint8)


__all__ = ["THINGS", "Instant", "View", "conditions", "instant", "small_objects", "table"]
