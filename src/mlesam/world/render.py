"""One instant of the world, as every sensor sees it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from mlesam.world import sensors
from mlesam.world.devices import CameraModel, LidarModel
from mlesam.world.draws import Draws
from mlesam.world.geometry import Camera, Shadows, look
from mlesam.world.layouts import YARDS, Street, yard
from mlesam.world.scene import COLUMN, Scene, bent
from mlesam.world.shading import radiance, surfaces, temperature
from mlesam.world.weather import ROTA, Weather, weather

VERSION = 2
"""Raised when a frame's bytes change. Results on different versions cannot be compared."""
HASH = "ca1221dfcd6a5d6aa7a1fd3b35b8d0c3c7737ee4b65d22b1401c5c89be3d6023"
"""What :func:`fingerprint` gives for this version. The world is frozen: later experiments compare on it."""
SENSORS = ("rgb", "depth", "lidar", "event", "thermal")
FAULTS = {
    "motion-blur": "rgb", "over-exposure": "rgb", "under-exposure": "rgb", "lidar-jitter": "lidar",
    "event-low-resolution": "event", "depth-misaligned": "depth", "thermal-drift": "thermal",
}  # fmt: skip
"""What goes wrong with a sensor in some frames. The fault is a tag of the frame."""
FAULT_EVERY = 9
"""One frame in so many has a sensor at fault (counted so that faults meet every weather)."""
INSTANT = 1 / 30
"""Seconds between the two instants that events compare."""


@dataclass(frozen=True)
class Rig:
    """The cameras and the LiDAR. ``focal``: in picture widths (0.95 is a horizontal angle of 55 degrees), of all sensors."""

    focal: float = 0.95
    camera: CameraModel = field(default_factory=CameraModel)
    lidar: LidarModel = field(default_factory=LidarModel)


@dataclass(frozen=True)
class WorldFrame:
    """One rendered frame.

    Attributes:
        images: ``{sensor: array}`` as the files hold it. label: (H, W) uint8 class ids. instances: (H, W) int32, one number
            per object and per surface of the ground. tags: condition, and the fault if there is one.
        pose: (4, 4) camera to world, columns right, up, forward, position.
    """

    images: dict[str, np.ndarray]
    label: np.ndarray
    instances: np.ndarray
    tags: tuple[str, ...]
    pose: np.ndarray


def render_frame(
    seed: int,
    split: str,
    index: int,
    size: int = 256,
    city: int = 0,
    rig: Rig | None = None,
    wanted: Collection[str] = SENSORS,
    condition: str | None = None,
) -> WorldFrame:
    """Frame ``index`` of a split: a street of its own, a condition by turns, a camera somewhere on the road.

    Args:
        size: side of the picture in pixels. city: asset pool. wanted: the sensors to render. condition: the weather;
            None: by turns.
    """
    rig = rig or Rig()
    draws = Draws(seed, "frame", split, index)
    air = weather(condition or ROTA[index % len(ROTA)], draws)
    z = draws.uniform(0.0, 20.0)
    street = Street(city, (seed, split, index), z + draws.uniform(15.0, 27.0))
    camera = Camera(
        (street.lane + bent(street.bend, z) + draws.uniform(-0.8, 0.8), draws.uniform(1.5, 2.1), z),
        draws.uniform(-0.22, 0.22), draws.uniform(-0.09, 0.0), (size, size), rig.focal * size,
    )  # fmt: skip
    speed = draws.uniform(4.0, 12.0) if draws.chance(0.8) else 0.0
    scene = _clear(street.near(z), camera)
    fault = list(FAULTS)[index // FAULT_EVERY % len(FAULTS)] if index % FAULT_EVERY == FAULT_EVERY - 1 else None
    return expose(scene, camera, air, 0.0, _earlier(camera, speed), rig, draws, wanted, fault)


def render_yard(seed: int, index: int, size: int) -> WorldFrame:
    """A frame for pre-training: RGB and instances in a yard, with assets that no street has."""
    draws = Draws(seed, "yard", index)
    name = ("day", "day", "day", "fog", "rain", "glare", "night", "day")[index % 8]
    camera = Camera(
        (draws.uniform(-2.0, 2.0), draws.uniform(1.2, 3.5), 0.0), draws.uniform(-0.2, 0.2), draws.uniform(-0.25, 0.02),
        (size, size), draws.uniform(0.6, 1.1) * size,
    )  # fmt: skip
    scene = _clear(yard(YARDS + 10_000 * seed + index // 64, (index,)), camera)  # new assets every few frames
    return expose(scene, camera, weather(name, draws), 0.0, camera, Rig(), draws, ("rgb",), None)


def expose(
    scene: Scene,
    camera: Camera,
    air: Weather,
    seconds: float,
    before: Camera,
    rig: Rig,
    draws: Draws,
    wanted: Collection[str],
    fault: str | None,
) -> WorldFrame:
    """Every wanted sensor at one time.

    Args:
        before: the camera one instant ago, which events compare with.
    """
    parts = scene.at(seconds)
    shadows = None
    if air.direct.any():
        center = np.array(camera.position, dtype=np.float32) * np.array([1, 0, 1], np.float32) + np.array(
            [0, 2, 22], np.float32
        )
        shadows = Shadows.cast(air.sun, center, parts)
    seen = surfaces(scene, look(camera, parts), parts, air, shadows)
    images: dict[str, np.ndarray] = {}
    own = {sensor: fault if fault and FAULTS[fault] == sensor else None for sensor in SENSORS}
    # A stream per sensor: leaving one out changes nothing for the others.
    base = draws.integer(2**31)
    light = radiance(scene, seen, air)
    if {"rgb", "depth"} & set(wanted):
        picture = sensors.rgb(light, seen, air, rig.camera, Draws(base, "rgb"), own["rgb"])
        if "rgb" in wanted:
            images["rgb"] = picture
        if "depth" in wanted:  # the stereo cameras are always the same, and have no part in the colour camera's faults
            stereo = CameraModel()
            same = own["rgb"] is None and rig.camera == stereo
            plain = picture if same else sensors.rgb(light, seen, air, stereo, Draws(base, "rgb"))
            images["depth"] = sensors.depth(seen, plain, Draws(base, "depth"), own["depth"])
    if "lidar" in wanted:
        images["lidar"] = sensors.lidar(seen, air, rig.lidar, Draws(base, "lidar"), own["lidar"])
    if "event" in wanted:
        moved = scene.at(seconds - INSTANT)
        # What moves within a thirtieth of a second moves less than a cell of the shadow map.
        first = radiance(scene, surfaces(scene, look(before, moved), moved, air, shadows), air)
        images["event"] = sensors.events(first, light, air, Draws(base, "event"), own["event"])
    if "thermal" in wanted:
        images["thermal"] = sensors.thermal(temperature(seen, air), Draws(base, "thermal"), own["thermal"])
    if "hyperspectral" in wanted:
        images["hyperspectral"] = sensors.hyperspectral(light, seen, Draws(base, "hyperspectral"))
    return WorldFrame(images, seen.label, seen.instance, (air.name, *((fault,) if fault else ())), camera.pose())


def _earlier(camera: Camera, speed: float) -> Camera:
    """Where a camera that drives straight ahead (m/s) was one instant ago."""
    forward = camera.rotation()[:, 2]
    x, y, z = camera.position
    step = speed * INSTANT
    return dataclasses.replace(camera, position=(x - step * float(forward[0]), y, z - step * float(forward[2])))


def crowded(scene: Scene, camera: Camera) -> np.ndarray:
    """Instance numbers of the objects that the camera would stand in or that would fill the picture."""
    parts = scene.parts
    x, _, z = camera.position
    half_x, half_z = parts[:, COLUMN["hx"]], parts[:, COLUMN["hz"]]
    cos, sin = np.abs(parts[:, COLUMN["cos"]]), np.abs(parts[:, COLUMN["sin"]])
    half_x, half_z = (
        cos * half_x + sin * half_z,
        sin * half_x + cos * half_z,
    )  # of a box around it, however it is turned
    reach = np.maximum(half_x, half_z)
    dx, dz = parts[:, COLUMN["cx"]] - np.float32(x), parts[:, COLUMN["cz"]] - np.float32(z)
    away = np.maximum(np.abs(dx) - half_x, np.abs(dz) - half_z)
    in_path = np.abs(dx) - half_x < 0.5
    limit = np.where(reach > 1.5, np.where(in_path, np.float32(4.5), np.float32(1.2)), np.float32(2.0))
    return np.unique(parts[away < limit, COLUMN["instance"]])


def _clear(scene: Scene, camera: Camera) -> Scene:
    keep = ~np.isin(scene.parts[:, COLUMN["instance"]], crowded(scene, camera))
    return Scene(scene.parts[keep], scene.ground, scene.lamps, scene.pool)


def fingerprint() -> str:
    """Hash over frames of every condition with every sensor, two yards and a drive: equal to ``HASH`` while nothing
    changed. Drawn anew, so that a change of the code or of a library shows itself."""
    from mlesam.world.drive import Drive  # which stands on this module

    digest = hashlib.sha256()
    sensors = (*SENSORS, "hyperspectral")
    frames = [render_frame(0, "test", index, 64, wanted=sensors) for index in range(0, 72, 4)]
    frames += [render_frame(5, "train", 8 + 9 * index, 48, city=1, wanted=sensors) for index in range(len(FAULTS))]
    frames += [render_yard(0, index, 64) for index in (0, 6)]
    frames += [Drive(3, 40, 64).frame(index, sensors) for index in (0, 36)]
    for frame in frames:
        for name, array in (*frame.images.items(), ("label", frame.label), ("instances", frame.instances)):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        digest.update(" ".join(frame.tags).encode())
    return digest.hexdigest()
