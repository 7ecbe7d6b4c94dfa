"""The procedural world: where things are, what the five sensors know about them, and that it never changes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from mlesam.errors import RequestError
from mlesam.world import WorldOptions, render, sensors
from mlesam.world.devices import CameraModel, LidarModel, camera_model, lidar_model
from mlesam.world.draws import Draws
from mlesam.world.drive import Drive
from mlesam.world.geometry import GROUND, SKY, Camera, Hits, Shadows, look
from mlesam.world.layouts import YARDS, Street
from mlesam.world.render import FAULTS, HASH, SENSORS, Rig, WorldFrame, expose, fingerprint, render_frame, render_yard
from mlesam.world.scene import (
    BOX,
    CLASSES,
    COLUMN,
    CYLINDER,
    ELLIPSOID,
    ID,
    MATERIAL,
    MATERIALS,
    Builder,
    Ground,
    Scene,
    bent,
)
from mlesam.world.shading import Surfaces, radiance, surfaces, temperature
from mlesam.world.textures import KINDS
from mlesam.world.weather import CONDITIONS, Weather, weather

BOUND = 3.47
"""No noise of the world is further from its mean than so many standard deviations."""
GREY = (0.4, 0.4, 0.4)
PLAIN_GROUND = Ground(np.array([[ID["road"], MATERIAL["asphalt"], 0.2, 0.2, 0.2]], np.float32), None, np.zeros((1, 2)))


def column(parts: np.ndarray, name: str) -> np.ndarray:
    return parts[:, COLUMN[name]]


def placed(*parts: dict) -> Scene:
    """A scene of hand-placed parts, each an object of its own, on a ground of one surface."""
    builder = Builder(0)
    for part in parts:
        part = {"kind": BOX, "label": "clutter", "material": "plaster", "color": GREY, **part}
        builder.part(**part)
        builder.done()
    return builder.scene(PLAIN_GROUND)


def box(center: tuple[float, float, float], half: tuple[float, float, float], **more) -> dict:
    return {"center": center, "half": half, **more}


def camera_at(position: tuple[float, float, float], yaw: float = 0.0, pitch: float = 0.0, size: int = 64) -> Camera:
    return Camera(position, yaw, pitch, (size, size), 0.72 * size)


def sight(scene: Scene, camera: Camera, air: Weather, seconds: float = 0.0) -> Surfaces:
    """What the sensors of a frame are told."""
    parts = scene.at(seconds)
    shadows = None
    if air.direct.any():
        x, _, z = camera.position
        shadows = Shadows.cast(air.sun, np.array([x, 2, z + 22], np.float32), parts)
    return surfaces(scene, look(camera, parts), parts, air, shadows)


def frame_of(
    scene: Scene,
    camera: Camera,
    air: Weather,
    wanted: Collection[str] = SENSORS,
    *,
    before: Camera | None = None,
    fault: str | None = None,
    key: int = 0,
) -> WorldFrame:
    return expose(scene, camera, air, 0.0, before or camera, Rig(), Draws(key, "test"), wanted, fault)


def air_of(name: str, key: int = 1) -> Weather:
    return weather(name, Draws(key, "air"))


def street_view(number: int, size: int = 96) -> tuple[Scene, Camera]:
    """A real street and a camera in its lane."""
    drive = Drive(number, 60, size)
    camera = dataclasses.replace(drive.camera(0), pitch=-0.05)
    scene = drive.street.near(camera.position[2])
    keep = ~np.isin(column(scene.parts, "instance"), render.crowded(scene, camera))
    return dataclasses.replace(scene, parts=scene.parts[keep]), camera


@pytest.fixture(scope="module")
def street() -> tuple[Scene, Camera]:
    return street_view(3)


@pytest.fixture(scope="module")
def frames() -> list[WorldFrame]:
    """The first frames of a split, by turns in all weathers, without any sensor's picture."""
    return [render_frame(0, "train", index, 48, wanted=()) for index in range(30)]


# ---------------------------------------------------------------- geometry


def axes(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, up and forward from the angles themselves."""
    yaw, pitch = math.asin(camera.yaw), math.asin(camera.pitch)
    forward = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    return right, np.cross(forward, right), forward


def directions(camera: Camera) -> np.ndarray:
    """(H, W, 3) float64 rays of length 1 along the camera's axis."""
    height, width = camera.size
    right, up, forward = axes(camera)
    u = (np.arange(width) + 0.5 - width / 2) / camera.focal
    v = (height / 2 - np.arange(height) - 0.5) / camera.focal
    return forward + u[None, :, None] * right + v[:, None, None] * up


def first_entry(row: np.ndarray, origin: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """Where rays enter a part, inf where they do not: face by face for a box, by the quadratic formula otherwise."""
    named = {name: float(row[i]) for name, i in COLUMN.items()}
    cos, sin = named["cos"], named["sin"]
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    o = turn @ (origin - np.array([named["cx"], named["cy"], named["cz"]]))
    d = ray @ turn.T
    half = np.array([named["hx"], named["hy"], named["hz"]])
    best = np.full(ray.shape[:-1], np.inf)
    if named["kind"] == BOX:
        for axis in range(3):
            for side in (-1, 1):
                t = (side * half[axis] - o[axis]) / d[..., axis]
                place = o + t[..., None] * d
                others = [a for a in range(3) if a != axis]
                on_face = (np.abs(place[..., others]) <= half[others]).all(-1)
                best = np.where(on_face & (side * d[..., axis] < 0) & (t > 0.15), np.minimum(best, t), best)
        return best
    used = [0, 1, 2] if named["kind"] == ELLIPSOID else [0, 2]
    p, q = o[used] / half[used], d[..., used] / half[used]
    a, b, c = (q * q).sum(-1), 2 * (q @ p), p @ p - 1
    inside = b * b - 4 * a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a)
    met = (inside > 0) & (t > 0.15)
    if named["kind"] == CYLINDER:
        met &= np.abs(o[1] + t * d[..., 1]) <= half[1]
    return np.where(met, t, np.inf)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def brute_force(camera: Camera, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and part of every pixel, from every part for every ray."""
    ray, origin = directions(camera), np.array(camera.position)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(ray[..., 1] < -1e-6, -origin[1] / ray[..., 1], np.inf)
        part = np.where(np.isfinite(depth), GROUND, SKY)
        for index, row in enumerate(parts):
            t = first_entry(row, origin, ray)
            part[t < depth] = index
            depth = np.minimum(depth, t)
    return depth, part


def assert_same_picture(camera: Camera, parts: np.ndarray) -> np.ndarray:
    hits = look(camera, parts)
    depth, part = brute_force(camera, parts)
    same = hits.part == part
    assert (~same).sum() <= 0.004 * same.size, f"{(~same).sum()} of {same.size} pixels show another part"
    near = same & (depth < 200)
    np.testing.assert_allclose(hits.depth[near], depth[near], rtol=1e-3, atol=1e-3)
    assert np.isinf(hits.depth[part == SKY][hits.part[part == SKY] == SKY]).all()
    return part


AROUND = [
    pytest.param([box((1.4, 1.0, 0.0), (0.3, 1.0, 20.0))], id="a wall beside the camera, from behind it to far ahead"),
    pytest.param([box((-1.2, 1.0, -0.5), (0.9, 1.0, 0.9))], id="a box that ends just ahead of the camera's shoulder"),
    pytest.param([box((0.0, 4.0, 0.0), (6.0, 1.0, 9.0))], id="a roof over the camera"),
    pytest.param([box((0.0, 0.3, 0.0), (5.0, 0.3, 5.0))], id="a step that the camera stands on"),
    pytest.param([box((0.0, 1.6, 0.0), (3.0, 3.0, 3.0)), box((0, 1, 8), (1, 1, 1))], id="a box around the camera"),
    pytest.param([box((0.0, 1.0, -6.0), (2.0, 1.0, 1.0))], id="a box behind the camera"),
    pytest.param([box((0.0, 1.0, 6.0), (1.5, 0.5, 0.7), heading=(0.6, 0.8))], id="a turned box"),
    pytest.param([box((1.2, 1.0, 0.6), (1.0, 0.5, 3.0), heading=(0.8, -0.6))], id="a turned box beside the camera"),
    pytest.param(
        [box((0.4, 1.5, 7.0), (0.8, 0.5, 1.5), kind=ELLIPSOID, heading=(0.8, 0.6)), box((0, 1, 9), (2, 1, 0.2))],
        id="an ellipsoid before a box",
    ),
    pytest.param([box((1.1, 1.5, 0.3), (0.9, 1.0, 0.9), kind=ELLIPSOID)], id="an ellipsoid beside the camera"),
    pytest.param([box((0.5, 1.0, 3.0), (0.3, 1.2, 0.3), kind=CYLINDER)], id="a cylinder"),
    pytest.param([box((-0.5, 1.0, 0.4), (0.35, 1.0, 0.35), kind=CYLINDER)], id="a cylinder beside the camera"),
]


@pytest.mark.parametrize("parts", AROUND)
@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.3, -0.25), (-0.5, 0.2)])
def test_a_pixel_shows_the_first_part_on_its_ray(parts: list[dict], yaw: float, pitch: float) -> None:
    assert_same_picture(camera_at((0.0, 1.6, 0.0), yaw, pitch, 48), placed(*parts).parts)


@pytest.mark.parametrize("seed", range(6))
def test_a_crowd_of_parts_all_around_the_camera_is_seen_as_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = (BOX, ELLIPSOID, CYLINDER)
    turns = ((1.0, 0.0), (0.6, 0.8), (0.8, -0.6), (-1.0, 0.0), (0.28, 0.96))
    parts = [
        box(
            tuple(rng.uniform((-5, 0, -5), (5, 3, 9))),
            tuple(rng.uniform(0.1, 1.2, 3)),
            kind=(kind := kinds[rng.integers(3)]),
            heading=(1.0, 0.0) if kind == CYLINDER else turns[rng.integers(5)],
        )
        for _ in range(40)
    ]
    for part in parts:
        if part["kind"] == CYLINDER:  # upright and round
            part["half"] = (part["half"][0], part["half"][1], part["half"][0])
    camera = camera_at((0.0, 1.5, 0.0), rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.3), 48)
    shown = assert_same_picture(camera, placed(*parts).parts)
    assert len(np.unique(shown)) > 5


def test_a_street_is_seen_as_by_brute_force() -> None:
    scene, camera = street_view(3, size=64)
    shown = assert_same_picture(camera, scene.parts)
    assert len(np.unique(shown)) > 20


def test_the_ground_is_as_far_as_the_cameras_height_over_the_rays_slope() -> None:
    camera = camera_at((0.0, 1.8, 0.0), 0.0, -0.1, 48)
    depth = look(camera, placed(box((0.0, 1.0, -9.0), (1.0, 1.0, 1.0))).parts).depth
    down = math.asin(0.1)
    for row in (24, 30, 40, 47):
        angle = down + math.atan((row + 0.5 - 24) / camera.focal)  # of the ray below the horizon
        along_the_ray = 1.8 / math.sin(angle)
        assert depth[row, 24] == pytest.approx(along_the_ray * math.cos(angle - down), rel=1e-4)
    # The horizon lies where the camera's pitch puts it; above it is sky.
    horizon = 24 - camera.focal * math.tan(down)
    assert np.isinf(depth[: int(horizon), :]).all()
    assert np.isfinite(depth[int(horizon) + 1 :, :]).all()


def test_the_pose_takes_points_of_the_camera_to_the_world() -> None:
    camera = camera_at((3.0, 1.7, -2.0), 0.4, -0.2)
    right, up, forward = axes(camera)
    expected = np.column_stack([right, up, forward, camera.position])
    np.testing.assert_allclose(camera.pose()[:3], expected, atol=1e-6)
    np.testing.assert_allclose(np.stack(camera.rays(), -1), directions(camera), atol=1e-6)


# ---------------------------------------------------------------- shadows


SUNS = [(0.5, 0.6, 0.3), (-0.7, 0.5, -0.4), (0.2, 0.15, 1.0)]


@pytest.mark.parametrize("sun", SUNS)
def test_a_shadow_falls_where_trigonometry_says(sun: tuple[float, float, float]) -> None:
    toward = np.array(sun) / np.linalg.norm(sun)
    center, half = np.array([1.0, 2.5, 22.0]), np.array([1.5, 0.5, 1.0])
    parts = placed(box(tuple(center), tuple(half))).parts
    shadows = Shadows.cast(toward.astype(np.float32), np.array([0, 2, 22], np.float32), parts)
    x, z = np.meshgrid(np.arange(-22.0, 22.0, 0.21), np.arange(4.0, 40.0, 0.21))
    ground = np.stack([x, np.zeros_like(x), z], -1)

    def shaded(margin: float) -> np.ndarray:
        """Points whose way to the sun meets the box, made larger by a margin: between the heights of its two faces
        the way moves sideways from one end of this range to the other."""
        ways = [ground + (center[1] + s * (half[1] + margin)) / toward[1] * toward for s in (-1, 1)]
        t0, t1 = np.zeros(x.shape), np.ones(x.shape)
        for axis in (0, 2):
            a, b = (way[..., axis] - center[axis] for way in ways)
            bound = half[axis] + margin
            step = np.where(np.abs(b - a) < 1e-12, 1e-12, b - a)
            low, high = (
                np.minimum((-bound - a) / step, (bound - a) / step),
                np.maximum((-bound - a) / step, (bound - a) / step),
            )
            t0, t1 = np.maximum(t0, low), np.minimum(t1, high)
        return t0 <= t1

    lit = shadows.lit(*(ground[..., i].astype(np.float32) for i in range(3)))
    surely_dark, surely_lit = shaded(-0.35), ~shaded(0.35)
    assert surely_dark.sum() > 5
    assert (lit[surely_dark] == 0).all()
    assert (lit[surely_lit] == 1).all()
    middle = center - center[1] / toward[1] * toward  # the shadow of the box's centre
    assert shadows.lit(*(np.array([v], np.float32) for v in middle))[0] == 0


def test_what_stands_between_the_sun_and_the_shade_is_itself_lit() -> None:
    toward = np.array([0.48, 0.6, 0.64], np.float32)
    parts = placed(box((0.0, 1.0, 22.0), (1.0, 1.0, 1.0))).parts
    shadows = Shadows.cast(toward, np.array([0, 2, 22], np.float32), parts)
    at = lambda *p: float(shadows.lit(*(np.array([v], np.float32) for v in p))[0])  # noqa: E731
    assert at(0.0, 2.0, 22.0) == 1  # the box's top
    assert at(-1.5, 0.0, 20.5) == 0  # behind it
    assert at(1.8, 0.0, 23.8) == 1  # before it
    assert at(500.0, 0.0, 22.0) == 1  # off the map
    step = placed(box((0.0, 0.5, 22.0), (1.0, 0.5, 1.0))).parts
    shadows = Shadows.cast(toward, np.array([0, 2, 22], np.float32), step)
    assert at(-1.2, 0.0, 20.9) == 0  # at the foot of what is only a metre high


def test_only_the_side_towards_the_sun_has_sunlight() -> None:
    air = dataclasses.replace(air_of("day"), sun=np.array([0.6, 0.64, 0.48], np.float32))
    scene = placed(box((0.0, 1.5, 10.0), (2.0, 1.5, 2.0), label="building"))
    seen = sight(scene, camera_at((0.0, 1.7, 0.0)), air)
    front = seen.label == ID["building"]  # it looks towards -z, away from the sun
    assert front.sum() > 100
    assert (seen.sunlight[front] == 0).all()
    ground = seen.label == ID["road"]
    assert seen.sunlight[ground].max() == pytest.approx(0.64, abs=0.01)  # cosine on a level ground
    assert (seen.sunlight[ground] == 0).any()


# ---------------------------------------------------------------- sensors


def test_depth_is_the_distance_along_the_axis_in_millimetres_or_zero(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    stored = frame_of(scene, camera, air_of("day")).images["depth"]
    truth, _ = brute_force(camera, scene.parts)
    seen = look(camera, scene.parts)
    assert stored.dtype == np.uint16
    valid = stored > 0
    assert valid.mean() > 0.5
    assert not valid[seen.part == SKY].any()
    assert not valid[truth > sensors.DEPTH_RANGE * 1.01].any()
    sure = valid & np.isclose(seen.depth, truth, atol=1e-2)  # not the few pixels at edges
    error = stored[sure] / 1000 - truth[sure]
    spread = 0.0022 * truth[sure] ** 2 + 0.01  # a stereo camera's error grows with the square of the distance
    assert (np.abs(error) <= BOUND * spread + 0.011).all()
    assert np.std(error / spread) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(error / spread)) < 0.1


def test_stereo_depth_fails_where_there_is_nothing_to_match(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    seen = sight(scene, camera, air_of("day"))
    shape = (*camera.size, 3)
    black, white, grey = (np.full(shape, level, np.uint8) for level in (0, 255, 120))
    share = [(sensors.depth(seen, picture, Draws(1)) > 0).mean() for picture in (black, white, grey)]
    assert share[0] == share[1] == 0
    assert share[2] > 0.4


def test_lidar_measures_range_and_height(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    seen = sight(scene, camera, air_of("day"))
    cloud = frame_of(scene, camera, air_of("day"), ("lidar",)).images["lidar"]
    assert cloud.dtype == np.uint16
    returned = cloud[..., 0] > 0
    assert returned.sum() > 300
    assert (cloud[~returned] == 0).all()
    assert not returned[seen.hits.part == SKY].any()
    ray = directions(camera)
    truth = seen.hits.depth * np.linalg.norm(ray, axis=-1)
    off = cloud[..., 0] / 65535 * 100 - truth
    rough = seen.rough
    low, high = -BOUND * 0.02 - 0.005, BOUND * (0.02 + rough) + 0.005
    assert ((off >= low) & (off <= high))[returned].all()
    even = returned & (rough == 0)
    assert np.std(off[even]) == pytest.approx(0.02, rel=0.15)
    # Height above the road of the place on the ray that is as far as was measured.
    measured = cloud[..., 0] / 65535 * 100
    height = camera.position[1] + measured * ray[..., 1] / np.linalg.norm(ray, axis=-1)
    stored = cloud[..., 2] / 65535 * 14 - 2
    np.testing.assert_allclose(stored[returned], height[returned], atol=0.01)


@pytest.mark.parametrize("name", CONDITIONS)
def test_lidar_has_no_return_from_the_sky(name: str) -> None:
    """Droplets of fog and rain send back returns of their own, but not where there is nothing behind them."""
    scene, camera = placed(box((0.0, 1.0, -9.0), (1.0, 1.0, 1.0))), camera_at((0.0, 1.7, 0.0))
    cloud = frame_of(scene, camera, air_of(name), ("lidar",)).images["lidar"]
    sky = look(camera, scene.parts).part == SKY
    assert sky.mean() > 0.4
    assert not cloud[sky].any()
    assert cloud[~sky].any()


def test_lidar_is_sparse() -> None:
    """No more than the returns of its beams, and fewer than one pixel in ten of a picture of the usual size."""
    scene, camera = street_view(5, size=256)
    share = (frame_of(scene, camera, air_of("day"), ("lidar",)).images["lidar"][..., 0] > 0).mean()
    model = LidarModel()
    most = model.beams * math.ceil(1.2 / 0.72 / model.step)
    assert 0.005 < share <= most / 256**2 < 0.1


def test_lidar_needs_no_light_and_cameras_do() -> None:
    def measured(number: int, name: str) -> dict[str, np.ndarray]:
        scene, camera = street_view(number)
        return frame_of(scene, camera, air_of(name, number), ("rgb", "depth", "lidar")).images

    views = [(measured(number, "day"), measured(number, "night")) for number in range(4)]
    for day, night in views:
        returns = [(images["lidar"][..., 0] > 0) for images in (day, night)]
        assert returns[1].sum() == pytest.approx(returns[0].sum(), rel=0.03)
        assert (returns[0] & returns[1]).sum() > 0.9 * returns[0].sum()
        assert (night["depth"] > 0).mean() < 0.95 * (day["depth"] > 0).mean()
        assert night["rgb"].mean() < 0.8 * day["rgb"].mean()
        assert (night["rgb"] < 25).mean() > (day["rgb"] < 25).mean() + 0.1
    lost = [1 - sum((night[s] > 0).mean() for _, night in views) / sum((day[s] > 0).mean() for day, _ in views)
            for s in ("depth", "lidar")]  # fmt: skip
    assert lost[0] > 0.15
    assert abs(lost[1]) < 0.03


def test_of_several_returns_in_one_pixel_the_nearest_stays() -> None:
    # In a small picture many returns share a pixel. With all of a surface at one distance only noise tells them apart,
    # so that the nearest of many is nearer than the surface almost everywhere.
    scene = placed(box((0.0, 10.0, 10.1), (30.0, 10.0, 0.1), material="retro"))
    seen = sight(scene, camera_at((0.0, 1.7, 0.0), size=32), air_of("day"))
    dense = LidarModel(beams=400, step=0.004)
    cloud = sensors.lidar(seen, air_of("day"), dense, Draws(2))
    wall = (cloud[..., 0] > 0) & (seen.hits.part == 0)
    off = (cloud[..., 0] / 65535 * 100 - seen.distance)[wall]
    assert wall.sum() > 100
    assert np.mean(off < 0) > 0.98
    assert np.mean(off) < -0.02


def test_thermal_is_temperature_on_the_stated_scale(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    for name in ("day", "night", "rain"):
        air = air_of(name)
        celsius = temperature(sight(scene, camera, air), air)
        stored = frame_of(scene, camera, air, ("thermal",)).images["thermal"]
        measured = stored / 65535 * 120 - 40
        # A lens mixes a pixel with its neighbours, so compare where these are alike.
        around = np.stack([np.roll(celsius, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        alike = (np.ptp(around, axis=0) < 0.05)[1:-1, 1:-1]
        error = (measured - celsius)[1:-1, 1:-1][alike]
        assert alike.mean() > 0.1
        assert np.abs(error).max() < BOUND * 0.12 + 0.06
        assert np.std(error) == pytest.approx(0.12, rel=0.2)


def test_sunshine_warms_and_people_are_warmer_than_their_surroundings() -> None:
    builder = Builder(0)
    builder.figure(Draws(4), 0.0, 6.0, alive=True)
    scene = builder.scene(PLAIN_GROUND)
    camera = camera_at((0.0, 1.5, 0.0))
    for name in CONDITIONS:
        air = air_of(name)
        seen = sight(scene, camera, air)
        celsius = temperature(seen, air)
        person, ground = seen.label == ID["pedestrian"], seen.label == ID["road"]
        assert person.sum() > 20
        assert np.isfinite(celsius).all()
        assert celsius[person].mean() > air.air + 3
        assert celsius[seen.hits.part == SKY].mean() < celsius[ground].mean()
    day = dataclasses.replace(air_of("day"), sun=np.array([0.6, 0.64, 0.48], np.float32))
    seen = sight(placed(box((0.0, 3.0, 12.0), (2.0, 0.5, 2.0))), camera, day)
    celsius = temperature(seen, day)
    ground = (seen.label == ID["road"]) & (seen.distance < 30)
    assert celsius[ground & (seen.sunlight > 0.6)].mean() > celsius[ground & (seen.sunlight == 0)].mean() + 1


def test_without_motion_there_is_hardly_an_event(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    parts = scene.parts.copy()
    parts[:, [COLUMN["vx"], COLUMN["vz"]]] = 0
    still = dataclasses.replace(scene, parts=parts)
    x, y, z = camera.position
    earlier = dataclasses.replace(camera, position=(x, y, z - 0.3))
    for name in ("day", "rain"):
        resting = frame_of(still, camera, air_of(name), ("event",)).images["event"]
        driving = frame_of(still, camera, air_of(name), ("event",), before=earlier).images["event"]
        assert resting.any(-1).mean() < 0.005
        assert driving.any(-1).mean() > max(0.03, 10 * resting.any(-1).mean())
    crossing = placed(box((0.0, 1.0, 8.0), (0.5, 1.0, 0.5), color=(0.8, 0.8, 0.8), velocity=(8.0, 0.0)))
    image = frame_of(crossing, camera_at((0.0, 1.5, 0.0)), air_of("day"), ("event",)).images["event"]
    rows, columns = np.nonzero(image.any(-1))
    assert len(rows) > 5
    assert columns.min() > 16  # only where the box is
    assert columns.max() < 48


@pytest.mark.parametrize("name", ["day", "night", "glare"])
def test_an_event_has_the_sign_of_the_change_of_light(street: tuple[Scene, Camera], name: str) -> None:
    scene, camera = street
    air = air_of(name)
    x, y, z = camera.position
    earlier = dataclasses.replace(camera, position=(x - 0.1, y, z - 0.3))
    image = frame_of(scene, camera, air, ("event",), before=earlier).images["event"]
    assert image.dtype == np.uint8
    assert (image[..., 1] == 0).all()
    assert not ((image[..., 0] > 0) & (image[..., 2] > 0)).any()
    assert (image % sensors.EVENT_STEP == 0).all()
    # The sun's map of the second instant serves both, so the first is looked at under it.
    moved = scene.at(-render.INSTANT)
    center = np.array([x, 2, z + 22], np.float32)
    shadows = Shadows.cast(air.sun, center, scene.parts) if air.direct.any() else None
    first = radiance(scene, surfaces(scene, look(earlier, moved), moved, air, shadows), air)
    now = radiance(scene, surfaces(scene, look(camera, scene.parts), scene.parts, air, shadows), air)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (now + 0.001) / (first + 0.001)
    brighter, darker = (ratio > 1.9).all(0), (ratio < 1 / 1.9).all(0)
    assert brighter.sum() > 20
    assert darker.sum() > 20
    assert (image[brighter, 2] == 0).all()
    assert (image[brighter, 0] > 0).mean() > 0.95
    assert (image[darker, 0] == 0).all()
    assert (image[darker, 2] > 0).mean() > 0.95


def test_a_device_is_named_by_its_number_and_0_is_the_usual_one() -> None:
    assert (camera_model(0), lidar_model(0)) == (CameraModel(), LidarModel())
    for model in (camera_model, lidar_model):
        assert model(7) == model(7)
        assert len({model(number) for number in range(20)}) == 20


@pytest.mark.parametrize("number", range(8))
def test_every_camera_shows_more_light_brighter_and_black_and_white_as_they_are(number: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 4096, dtype=np.float32), (3, 1, 4096))
    shown = sensors.develop(ramp, camera_model(number).contrast)[0, :, 0]
    assert (np.diff(shown.astype(int)) >= 0).all()
    assert (shown[0], shown[-1]) == (0, 255)


def test_a_vignette_darkens_the_corners_and_another_white_balance_tints(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    air = air_of("day")

    def picture(**fields: Any) -> np.ndarray:
        rig = Rig(camera=CameraModel(noise=0.0, **fields))
        return (
            expose(scene, camera, air, 0.0, camera, rig, Draws(0, "test"), ("rgb",), None).images["rgb"].astype(float)
        )

    plain, dark = picture(), picture(vignette=0.5)
    corners, middle = np.ix_((0, 1, -2, -1), (0, 1, -2, -1)), np.s_[40:56, 40:56]
    assert dark[corners].mean() < plain[corners].mean() - 5
    assert dark[middle].mean() > plain[middle].mean()  # the exposure makes up for what is lost
    warm = picture(white=(1.3, 1.0, 0.8))
    assert warm[..., 0].mean() > plain[..., 0].mean() + 5
    assert np.array_equal(warm[..., 1], plain[..., 1])
    assert warm[..., 2].mean() < plain[..., 2].mean() - 5


def test_fog_takes_contrast_away_with_distance_as_beer_and_lambert_say() -> None:
    def contrast(haze: float, distance: float) -> tuple[float, float]:
        """Difference in light and in warmth between a white, warm board and a black, cold one."""
        boards = [
            box((side * 1.1, 1.5, distance + 0.1), (1.0, 1.5, 0.1), color=color, heat=heat, material="paint")
            for side, color, heat in ((-1, (0.8, 0.8, 0.8), 20.0), (1, (0.05, 0.05, 0.05), 0.0))
        ]
        air = dataclasses.replace(air_of("fog"), haze=haze)
        scene = placed(*boards)
        seen = sight(scene, camera_at((0.0, 1.5, 0.0), size=96), air)
        light, warmth = radiance(scene, seen, air).mean(0), temperature(seen, air)
        middle = np.abs(seen.position[1] - 1.5) < 1  # away from edges
        first, second = (middle & (seen.hits.part == i) for i in (0, 1))
        return float(light[first].mean() - light[second].mean()), float(warmth[first].mean() - warmth[second].mean())

    distances, haze = (10.0, 20.0, 40.0), 0.06
    clear, foggy = ([contrast(h, distance) for distance in distances] for h in (0.0, haze))
    light, warmth = ([f[i] / c[i] for f, c in zip(foggy, clear, strict=True)] for i in (0, 1))
    assert light == pytest.approx([math.exp(-haze * d) for d in distances], rel=0.03)
    assert 1 > warmth[0] > warmth[1] > warmth[2]
    assert all(w > seen for w, seen in zip(warmth, light, strict=True))  # long waves see further through fog


def test_fog_hides_what_is_far_from_the_camera(street: tuple[Scene, Camera]) -> None:
    scene, camera = street
    spread = {}
    for name in ("day", "fog"):
        image = frame_of(scene, camera, air_of(name), ("rgb",)).images["rgb"].astype(float)
        seen = sight(scene, camera, air_of(name))
        for reach, low, high in (("near", 0, 10), ("far", 30, 80)):
            shown = (seen.distance > low) & (seen.distance < high)
            assert shown.sum() > 100
            spread[name, reach] = float(image[shown].std())
    assert spread["fog", "far"] < 0.5 * spread["day", "far"]
    assert spread["fog", "far"] / spread["day", "far"] < spread["fog", "near"] / spread["day", "near"]


def test_hyperspectral_bands_tell_leaves_from_green_paint() -> None:
    green = (0.15, 0.3, 0.1)
    scene = placed(
        box((-1.2, 1.5, 6.0), (1.0, 1.5, 0.1), material="leaves", color=green),
        box((1.2, 1.5, 6.0), (1.0, 1.5, 0.1), material="paint", color=green),
    )
    camera = camera_at((0.0, 1.5, 0.0))
    cube = frame_of(scene, camera, air_of("day"), ("hyperspectral",)).images["hyperspectral"]
    assert cube.shape == (64, 64, 16)
    assert cube.dtype == np.uint16
    part = look(camera, scene.parts).part
    leaves, paint = (cube[part == i].astype(float).mean(0) for i in (0, 1))
    rise = [spectrum[13:].mean() / spectrum[4:8].mean() for spectrum in (leaves, paint)]
    assert rise[0] > 1.5 * rise[1]


# ---------------------------------------------------------------- different knowledge


def test_walls_and_hedges_have_the_same_bodies_and_colours() -> None:
    bodies: dict[int, set] = {ID["wall"]: set(), ID["hedge"]: set()}
    for number in range(600):
        builder = Builder(0)
        builder.barrier(Draws(number, "barrier"), 0.0, 0.0, 3.0, (1.0, 0.0))
        row = np.array(builder.rows[0])
        kept = ("kind", "hx", "hy", "hz", "r", "g", "b", "heat", "glow", "pattern", "vx", "vz")
        bodies[int(row[COLUMN["label"]])].add(tuple(row[COLUMN[name]] for name in kept))
    assert bodies[ID["wall"]] == bodies[ID["hedge"]]
    assert len(bodies[ID["wall"]]) > 5


def test_walls_and_hedges_differ_in_texture_for_a_camera_and_in_infrared_and_roughness_for_a_laser() -> None:
    wall, hedge = MATERIALS["render"], MATERIALS["hedge"]
    assert (wall.sun, wall.night) == (hedge.sun, hedge.night)
    scenes = [
        placed(box((0.0, 0.8, 5.0), (8.0, 0.8, 0.45), label=label, material=material, color=(0.24, 0.26, 0.14)))
        for label, material in (("wall", "render"), ("hedge", "hedge"))
    ]
    camera = camera_at((0.0, 1.5, 0.0), 0.0, -0.1, 96)
    air = dataclasses.replace(air_of("day"), sun=np.array([0.48, 0.64, -0.6], np.float32))  # on their fronts
    seen = [sight(scene, camera, air) for scene in scenes]
    face = (seen[0].hits.part == 0) & (np.abs(seen[0].normal[2]) > 0.9) & (np.abs(seen[0].position[1] - 0.8) < 0.5)
    variance, color, warmth, relief, strength = [], [], [], [], []
    for scene, view in zip(scenes, seen, strict=True):
        images = frame_of(scene, camera, air).images
        # What two exposures have in common is the surface, without their noise.
        pictures = [frame_of(scene, camera, air, ("rgb",), key=key).images["rgb"][face].astype(float) for key in (1, 2)]
        first, second = (picture - picture.mean(0) for picture in pictures)
        variance.append((first * second).mean())
        color.append(pictures[0].mean(0))
        warmth.append((images["thermal"][face] / 65535 * 120 - 40).mean())
        returned = face & (images["lidar"][..., 0] > 0)
        relief.append(np.std(images["lidar"][returned, 0] / 65535 * 100 - view.distance[returned]))
        strength.append(images["lidar"][returned, 1].mean())
    assert np.array_equal(seen[0].hits.depth, seen[1].hits.depth)
    assert variance[1] > 3 * variance[0]
    assert color[0] == pytest.approx(color[1], rel=0.1)
    assert relief[1] > 2 * relief[0]
    assert strength[1] > 1.4 * strength[0]
    assert warmth[0] == pytest.approx(warmth[1], abs=0.3)


def test_a_pedestrian_and_a_mannequin_differ_in_temperature_only() -> None:
    scenes = []
    for alive in (True, False):
        builder = Builder(0)
        builder.figure(Draws(4, "figure"), 0.3, 6.0, alive)
        scenes.append(builder.scene(PLAIN_GROUND))
    differ = (scenes[0].parts != scenes[1].parts).any(axis=0)
    assert {name for name, i in COLUMN.items() if differ[i]} <= {"label", "heat", "vx", "vz"}
    assert set(column(scenes[0].parts, "label")) == {ID["pedestrian"]}
    assert set(column(scenes[1].parts, "label")) == {ID["clutter"]}
    assert (column(scenes[1].parts, "heat") == 0).all()
    camera = camera_at((0.0, 1.5, 0.0))
    for name in ("day", "night"):
        alive, dummy = (frame_of(s, camera, air_of(name), ("rgb", "depth", "lidar", "thermal")).images for s in scenes)
        for sensor in ("rgb", "depth", "lidar"):
            assert np.array_equal(alive[sensor], dummy[sensor]), sensor
        figure = look(camera, scenes[0].parts).part >= 0
        difference = (alive["thermal"].astype(float) - dummy["thermal"]) / 65535 * 120
        assert figure.sum() > 20
        assert difference[figure].mean() > 3
        assert np.abs(difference[: camera.size[0] // 4]).max() < 0.01


# ---------------------------------------------------------------- what there is to see


def test_every_condition_occurs(frames: list[WorldFrame]) -> None:
    assert set(CONDITIONS) == {frame.tags[0] for frame in frames[:10]}
    assert [frame.tags[0] for frame in frames[:10]] == [frame.tags[0] for frame in frames[10:20]]


def test_classes_occur_with_a_share_worth_mentioning(frames: list[WorldFrame]) -> None:
    labels = np.stack([frame.label for frame in frames])
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert labels.dtype == np.uint8
    assert labels.max() < len(CLASSES)
    assert (share > 0.002).sum() >= 10, dict(zip(CLASSES, share.round(4), strict=True))
    assert (share > 0).all()
    assert share.max() < 0.5
    in_frames = {name: sum((frame.label == i).any() for frame in frames) for name, i in ID.items()}
    assert min(in_frames[name] for name in ("sky", "road", "building")) > 20, in_frames


def test_an_object_has_one_class_and_surfaces_have_no_objects_number(frames: list[WorldFrame]) -> None:
    split_objects = {"sign", "pole"}
    for frame in frames:
        for number in np.unique(frame.instances):
            held = {list(CLASSES)[i] for i in np.unique(frame.label[frame.instances == number])}
            assert len(held) == 1 or held <= split_objects, (number, held)
            if number < 0:
                assert held <= {"sky", "road", "sidewalk", "grass"}
    counts = Counter(np.unique(frames[0].instances).tolist())
    assert sum(number >= 0 for number in counts) > 5


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["day", "night"])
def test_a_fault_changes_its_own_sensor_and_no_other(fault: str, name: str) -> None:
    scene, camera = street_view(4, size=64)
    x, y, z = camera.position
    earlier = dataclasses.replace(camera, position=(x, y, z - 0.3))
    wanted = (*SENSORS, "hyperspectral")
    good = frame_of(scene, camera, air_of(name), wanted, before=earlier)
    bad = frame_of(scene, camera, air_of(name), wanted, before=earlier, fault=fault)
    changed = {s for s in wanted if not np.array_equal(good.images[s], bad.images[s])}
    assert changed == {FAULTS[fault]}
    assert np.array_equal(good.label, bad.label)
    assert good.tags == (name,)
    assert bad.tags == (name, fault)
    share = (good.images[FAULTS[fault]] != bad.images[FAULTS[fault]]).mean()
    assert share > 0.01


def test_faults_do_what_their_names_say() -> None:
    scene, camera = street_view(4, size=64)
    x, y, z = camera.position
    earlier = dataclasses.replace(camera, position=(x, y, z - 0.3))

    def image(fault: str | None, sensor: str, key: int = 0) -> np.ndarray:
        frame = frame_of(scene, camera, air_of("day"), (sensor,), before=earlier, fault=fault, key=key)
        return frame.images[sensor].astype(float)

    plain = image(None, "rgb")

    def steps(fault: str | None, axis: int) -> float:
        """Steps from pixel to pixel that two exposures have in common, which their noise has not."""
        first, second = (
            np.diff(image(fault, "rgb", key) / image(fault, "rgb", key).mean(), axis=axis) for key in (1, 2)
        )
        return float((first * second).mean())

    assert steps("motion-blur", 1) / steps("motion-blur", 0) < 0.8 * steps(None, 1) / steps(None, 0)  # sideways
    assert (image("over-exposure", "rgb") > 250).mean() > 0.2 > (plain > 250).mean()
    assert image("under-exposure", "rgb").mean() < 0.6 * plain.mean()
    assert (image("lidar-jitter", "lidar") > 0).sum() < 0.9 * (image(None, "lidar") > 0).sum()
    coarse = image("event-low-resolution", "event")
    assert np.array_equal(coarse[::2, ::2], coarse[1::2, 1::2])  # blocks of two in a picture of 64
    drift = image("thermal-drift", "thermal") - image(None, "thermal")
    assert drift[:, -16:].mean() - drift[:, :16].mean() > 4 / 120 * 65535  # several kelvin, from left to right
    depth, shifted = image(None, "depth"), image("depth-misaligned", "depth")
    assert np.array_equal(shifted, np.roll(depth, (4, 5), (0, 1)))


def test_every_fault_occurs_and_meets_every_weather() -> None:
    every, number = render.FAULT_EVERY, len(FAULTS)
    met: dict[str, set[str]] = {fault: set() for fault in FAULTS}
    for index in range(every - 1, 10 * every * number, every):
        condition, fault = render_frame(0, "train", index, 32, wanted=()).tags
        met[fault].add(condition)
    assert all(conditions == set(CONDITIONS) for conditions in met.values()), met
    assert all(len(render_frame(0, "train", index, 32, wanted=()).tags) == 1 for index in (0, 7, 9))


@pytest.mark.parametrize("index", [1, 5, 8, 17, 26, 35, 44, 53, 62])
def test_leaving_sensors_out_changes_nothing_for_the_others(index: int) -> None:
    everything = (*SENSORS, "hyperspectral")
    whole = render_frame(0, "val", index, 48, wanted=everything)
    assert tuple(whole.images) == everything
    for sensor in everything:
        alone = render_frame(0, "val", index, 48, wanted=(sensor,))
        assert list(alone.images) == [sensor]
        assert np.array_equal(alone.images[sensor], whole.images[sensor]), sensor
        assert np.array_equal(alone.label, whole.label)


def test_the_picture_holds_the_same_street_at_every_size() -> None:
    small, large = (render_frame(0, "test", 0, size, wanted=()).label for size in (48, 96))
    agree = [(large[dy::2, dx::2] == small) for dy in (0, 1) for dx in (0, 1)]
    assert np.any(agree, axis=0).mean() > 0.97


def test_seeds_splits_frames_and_cities_are_different_streets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[tuple[float, ...]]] = []

    def recorded(camera: Camera, parts: np.ndarray) -> Hits:
        seen.append({tuple(row) for row in parts[:, :6].tolist()})
        return look(camera, parts)

    monkeypatch.setattr(render, "look", recorded)
    names = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "val", 0, 0), (0, "train", 10, 0), (0, "train", 0, 1)]
    views = [render_frame(*name[:3], 48, city=name[3], wanted=()).label for name in names]
    for i, j in itertools.combinations(range(len(names)), 2):
        assert (views[i] != views[j]).mean() > 0.1, (names[i], names[j])
        assert not seen[i] & seen[j], (names[i], names[j])  # nothing stands at the same place


def assets(city: int, number: int) -> set[float]:
    """Heights of the tree trunks of a street: each is a tree of the city's asset pool."""
    parts = Drive(number, 600, 32, city).street.near(0.0, 60.0, 120.0).parts
    trunks = (column(parts, "label") == ID["tree"]) & (column(parts, "kind") == CYLINDER)
    return set(column(parts, "hy")[trunks].tolist())


def test_streets_of_a_city_share_assets_and_cities_share_none() -> None:
    first, second, abroad = assets(0, 1), assets(0, 2), assets(1, 1)
    assert min(len(first), len(second), len(abroad)) > 3
    assert first & second
    assert not (first | second) & abroad


def test_pre_training_uses_assets_that_no_city_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []

    def recorded(pool: int, seed: tuple[int | str, ...]) -> Scene:
        pools.append(pool)
        return original(pool, seed)

    original = render.yard
    monkeypatch.setattr(render, "yard", recorded)
    for seed, index in ((0, 0), (0, 70), (2, 3)):
        render_yard(seed, index, 32)
    assert len(set(pools)) == 3
    for pool in pools:
        assert pool >= YARDS
        with pytest.raises(RequestError, match=f"city is {pool}"):
            WorldOptions(city=pool)
    assert WorldOptions(city=YARDS - 1).city < min(pools)


def test_a_yard_has_pictures_and_many_objects() -> None:
    frames = [render_yard(0, index, 64) for index in range(8)]
    assert {frame.tags[0] for frame in frames} == set(CONDITIONS)
    for frame in frames:
        assert list(frame.images) == ["rgb"]
        assert frame.images["rgb"].shape == (64, 64, 3)
        assert frame.images["rgb"].std() > 3
        assert len(np.unique(frame.instances)) > 6
    for one, other in itertools.pairwise(frames):
        assert (one.instances != other.instances).mean() > 0.1


def test_no_object_fills_the_picture(frames: list[WorldFrame]) -> None:
    """Whatever stands so close ahead that hardly anything else would be seen is left out."""
    share = lambda numbers: np.bincount(numbers[numbers >= 0], minlength=1).max() / numbers.size  # noqa: E731
    assert max(share(frame.instances) for frame in frames) < 0.75
    camera, filled = camera_at((0.0, 1.8, 0.0), 0.0, -0.05, 32), []
    for model in range(12):
        for z in np.arange(1.0, 14.0, 0.5):
            builder = Builder(0)
            builder.vehicle(Draws(model, "vehicle"), 0.3, float(z), (1.0, 0.0), 0.0, running=True)
            scene = builder.scene(PLAIN_GROUND)
            if not len(render.crowded(scene, camera)):
                covered = (look(camera, scene.parts).part >= 0).mean()
                if covered > 0.75:
                    filled.append((model, float(z), round(float(covered), 2)))
    assert not filled, f"(vehicle, metres to its middle, share of the picture): {filled}"


@pytest.mark.parametrize(("turn", "met"), [((1.0, 0.0), False), ((0.0, 1.0), True), ((0.6, 0.8), True)])
def test_an_object_is_in_the_way_as_far_as_it_reaches_when_turned(turn: tuple[float, float], met: bool) -> None:
    """A barrier 8 m long, its middle 3 m to the right: across the camera's path only when it is turned."""
    builder = Builder(0)
    builder.barrier(Draws(1, "barrier"), 3.0, 3.0, 4.0, turn)
    found = render.crowded(builder.scene(PLAIN_GROUND), camera_at((0.0, 1.8, 0.0)))
    assert (len(found) > 0) == met


def test_traffic_keeps_its_lane_where_the_street_bends() -> None:
    street = Street(0, (4, "bend"), 200.0)
    street.bend = 0.0012
    scene = street.near(0.0, 90.0, 90.0)
    moving = column(scene.parts, "vz") != 0
    assert moving.sum() > 10
    offsets = [
        parts[moving, COLUMN["cx"]] - bent(np.float32(street.bend), parts[moving, COLUMN["cz"]])
        for parts in (scene.at(0.0), scene.at(3.0))
    ]
    sideways = 3 * column(scene.parts, "vx")[moving]  # who walks leaves the line of the street a little
    np.testing.assert_allclose(offsets[1] - offsets[0], sideways, atol=1e-3)
    assert (np.abs(scene.at(3.0) - scene.at(0.0))[moving][:, COLUMN["cx"]] > 0.3).any()


# ---------------------------------------------------------------- draws


def test_single_numbers_follow_splitmix64() -> None:
    draws = Draws(0)
    draws._state = 1234567  # the published test vector starts here
    expected = (
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    )  # fmt: skip
    assert [draws.uniform() for _ in expected] == [(value >> 11) / 2**53 for value in expected]


def test_draws_are_spread_as_they_say() -> None:
    draws = Draws(1, "spread")
    single = np.array([draws.uniform() for _ in range(20_000)])
    many = draws.uniforms(200, 300)
    assert many.dtype == np.float32
    assert many.shape == (200, 300)
    for values in (single, many.ravel()):
        assert 0 <= values.min() < 0.001
        assert 0.999 < values.max() < 1
        assert values.mean() == pytest.approx(0.5, abs=0.01)
        assert values.var() == pytest.approx(1 / 12, abs=0.002)
        assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0, abs=0.03)
    normal = draws.normals(300, 400)
    assert normal.dtype == np.float32
    assert normal.mean() == pytest.approx(0, abs=0.01)
    assert normal.var() == pytest.approx(1, abs=0.015)
    assert np.abs(normal).max() <= BOUND
    assert [np.mean(np.abs(normal) < n) for n in (1, 2)] == pytest.approx([0.683, 0.954], abs=0.02)
    assert Counter(draws.integer(4) for _ in range(8000)).keys() == {0, 1, 2, 3}
    assert sum(draws.chance(0.25) for _ in range(8000)) == pytest.approx(2000, rel=0.1)
    assert all(2 <= draws.uniform(2, 5) < 5 for _ in range(1000))
    assert draws.normals(0).shape == (0,)


def test_every_key_is_a_stream_of_its_own_and_always_the_same() -> None:
    keys = [(), (0,), (1,), ("0",), (0, 1), (1, 0), (0, "a"), ("a", 0), (0, 0), (-1,)]
    streams = {key: tuple(Draws(*key).uniform() for _ in range(1)) for key in keys}
    assert len(set(streams.values())) == len(keys)
    arrays = {key: Draws(*key).uniforms(4).tobytes() for key in keys}
    assert len(set(arrays.values())) == len(keys)
    for key in keys:
        assert Draws(*key).uniform() == streams[key][0]
        assert Draws(*key).uniforms(4).tobytes() == arrays[key]


def test_textures_are_drawn_once_for_each_pool_and_continue_at_their_edges() -> None:
    from mlesam.world.textures import texture_stack

    stack, other = texture_stack(0), texture_stack(1)
    for kind, own, foreign in zip(KINDS, stack.astype(float), other.astype(float), strict=True):
        assert not np.array_equal(own, foreign), kind
        assert own[0].std() > 1
        assert own[-1].std() < own[0].std()  # blurred
        assert own[0].mean() == pytest.approx(128, abs=45)
        for axis in (0, 1):
            steps = np.abs(np.diff(own[1], axis=axis)).mean(axis=1 - axis)
            seam = np.abs(np.take(own[1], 0, axis) - np.take(own[1], -1, axis)).mean()
            assert seam < 1.5 * steps.max(), kind  # no more than at a joint within the tile


# ---------------------------------------------------------------- frozen


def test_a_frame_is_always_the_same() -> None:
    first, second = (render_frame(2, "train", 8, 48, wanted=(*SENSORS, "hyperspectral")) for _ in range(2))
    for sensor, image in first.images.items():
        assert np.array_equal(image, second.images[sensor])
    assert np.array_equal(first.label, second.label)


def test_the_world_is_frozen() -> None:
    found = fingerprint()
    assert found == HASH, (
        f"the world of version {render.VERSION} draws other bytes ({found}) than when it was frozen ({HASH or 'no hash'}). If "
        "nobody meant to change it, find what did: the code of mlesam.world, or another NumPy. If the change is meant, raise "
        f"VERSION in mlesam/world/render.py, set HASH to the new value, and say in docs/decisions.md that results on the "
        "earlier version cannot be compared."
    )
