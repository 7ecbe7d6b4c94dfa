"""A drive along one street: coherent frames with poses and times, and sensors that run at rates of their own."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property

import numpy as np

from mlesam.world.draws import Draws
from mlesam.world.geometry import Camera
from mlesam.world.layouts import FASTEST, Street
from mlesam.world.render import Rig, WorldFrame, crowded, expose
from mlesam.world.scene import COLUMN, Scene, bent, slope
from mlesam.world.weather import ROTA, Weather, weather

FRAMES_PER_SECOND = 30
SIGHT = 180.0
"""Metres ahead that are drawn: what comes into sight there is a few pixels large, so that nothing pops up."""
EVERY = {"rgb": 1, "depth": 2, "lidar": 3, "event": 1, "thermal": 4, "hyperspectral": 6}
"""Each sensor measures in one of so many frames: 30, 15, 10, 30, 7.5 and 5 times a second."""


class Drive:
    """Frames 0 to ``frames - 1`` of a drive. Any frame can be rendered on its own, in any order.

    Args:
        seed: street and speed. frames: length, which decides where on the street the drive begins. size: side of the
            pictures in pixels. city: asset pool. condition: weather; None: drawn from the seed.
        rig: the cameras and the LiDAR.
    """

    def __init__(
        self, seed: int, frames: int, size: int, city: int = 0, condition: str | None = None, rig: Rig | None = None
    ) -> None:
        self.seed, self.frames, self.size, self.rig = seed, frames, size, rig or Rig()
        draws = Draws(seed, "drive", city)
        self.weather: Weather = weather(condition or draws.choice(ROTA), draws)
        self.speed = draws.uniform(6.0, 10.0)
        self.sway = draws.uniform(0.2, 0.5), draws.uniform(0.0, 1.0)
        self.height = draws.uniform(1.5, 2.1)
        self.pitch = draws.uniform(-0.08, -0.02)
        # The street bends around its origin, so the drive lies around it too.
        self.start = -self.speed * frames / FRAMES_PER_SECOND / 2
        self.street = Street(city, (seed, "drive"), draws.uniform(15.0, 27.0) - self.start)

    def camera(self, index: int) -> Camera:
        """Where the camera is and looks in a frame: along the lane, swaying a little."""
        seconds = index / FRAMES_PER_SECOND
        z = self.start + self.speed * seconds
        width, phase = self.sway
        # A triangle wave, smoothed by squaring, instead of a sine, which is not the same on every machine.
        turn = (0.12 * seconds + phase) % 1.0
        wave = 16 * turn * (0.5 - turn) if turn < 0.5 else -16 * (turn - 0.5) * (1.0 - turn)
        rise = slope(self.street.bend, z)
        x = self.street.lane + bent(self.street.bend, z) + width * wave
        yaw = rise / math.sqrt(1 + rise * rise)
        return Camera((x, self.height, z), yaw, self.pitch, (self.size, self.size), self.rig.focal * self.size)

    @cached_property
    def met(self) -> set[int]:
        """Objects that the camera would run into somewhere; they are left out of the whole drive."""
        found: set[int] = set()
        for index in range(0, self.frames, 3):
            scene = self._around(index)
            moved = Scene(scene.at(index / FRAMES_PER_SECOND), scene.ground, scene.lamps, scene.pool)
            found |= set(crowded(moved, self.camera(index)).tolist())
        return found

    def _around(self, index: int) -> Scene:
        """What may be in sight, also traffic that has come from further away since the drive began."""
        come = FASTEST * index / FRAMES_PER_SECOND
        return self.street.near(self.camera(index).position[2], 22.0 + come, SIGHT + come)

    def frame(self, index: int, wanted: Collection[str]) -> WorldFrame:
        """One frame with those of the wanted sensors that measure in it."""
        return self.view(index, measuring(index, wanted))

    def view(self, index: int, wanted: Collection[str]) -> WorldFrame:
        """One frame with all of the wanted sensors, whatever their rates."""
        camera = self.camera(index)
        scene = self._around(index)
        keep = ~np.isin(scene.parts[:, COLUMN["instance"]], sorted(self.met))
        scene = Scene(scene.parts[keep], scene.ground, scene.lamps, scene.pool)
        draws = Draws(self.seed, "exposure", index)
        return expose(
            scene, camera, self.weather, index / FRAMES_PER_SECOND, self.camera(index - 1), self.rig, draws,
            wanted, None,
        )  # fmt: skip

    def description(self, sensors: Collection[str]) -> dict[str, object]:
        """What ``drive.json`` says: rates, and for each frame its time, the camera's pose and the sensors that measured."""
        rows = []
        for index in range(self.frames):
            camera = self.camera(index)
            rows.append({
                "id": f"drive_{index:05d}", "seconds": round(index / FRAMES_PER_SECOND, 6),
                "pose": [round(float(v), 6) for v in camera.pose().ravel()], "sensors": list(measuring(index, sensors)),
            })  # fmt: skip
        camera = self.camera(0)
        return {
            "frames_per_second": FRAMES_PER_SECOND,
            "every": {sensor: EVERY[sensor] for sensor in sensors},
            "focal_pixels": camera.focal,
            "pose": "4x4 camera to world by rows; the camera's axes are right, up and forward; metres",
            "weather": self.weather.name,
            "frames": rows,
        }


def measuring(index: int, wanted: Collection[str]) -> tuple[str, ...]:
    """The sensors that measure in a frame; in the first one all do."""
    return tuple(sensor for sensor in wanted if index % EVERY[sensor] == 0)
