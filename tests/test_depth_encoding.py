"""Depth cameras: inverse and log depth, normals, gravity and HHA of a scene whose heights and angles are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlesam.config import build
from mlesam.errors import DataError, RequestError
from mlesam.sensors.depth import (
    DepthEncoder,
    gravity_of,
    hha,
    hha_8bit,
    inverse_depth,
    log_depth,
    normals_of,
    points_of,
)
from mlesam.sensors.files import write_array

WIDTH, HEIGHT, CAMERA_HEIGHT = 120, 90, 1.4
MATRIX = np.array([[100.0, 0, 58.5], [0, 102.0, 44.0], [0, 0, 1]])
CAMERA = SimpleNamespace(size=(WIDTH, HEIGHT), matrix=MATRIX, distortion=None)
FLOOR, WALL, SIDE, CEILING = range(4)
INTO_SURFACE = np.array([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # in the room's axes, y down
DISTANCE = (CAMERA_HEIGHT, 6.0, 2.0, 1.6)


def room(pitch: float = 8.0, roll: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of a room seen by a tilted camera, which of its planes each pixel shows, and the turn from room to camera."""
    pitched = cv2.Rodrigues(np.array([np.radians(pitch), 0, 0]))[0]
    rolled = cv2.Rodrigues(np.array([0, 0, np.radians(roll)]))[0]
    turn = rolled @ pitched
    depth, shown = np.full((HEIGHT, WIDTH), np.inf), np.zeros((HEIGHT, WIDTH), int)
    inverse = np.linalg.inv(MATRIX)
    for v in range(HEIGHT):
        for u in range(WIDTH):
            ray = inverse @ (u, v, 1)
            for plane in range(4):
                towards = INTO_SURFACE[plane] @ turn.T @ ray
                if towards > 1e-9 and DISTANCE[plane] / towards < depth[v, u]:
                    depth[v, u], shown[v, u] = DISTANCE[plane] / towards, plane
    return depth, shown, turn


ROOM, SHOWN, TURN = room()
GRAVITY = TURN @ (0, 1, 0)


def away_from_edges(radius: int) -> np.ndarray:
    """Pixels whose whole neighbourhood shows one plane."""
    side = np.ones((2 * radius + 1, 2 * radius + 1))
    shown = SHOWN.astype(np.float32)
    return cv2.dilate(shown, side) == cv2.erode(shown, side)


def degrees_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=-1), -1, 1)))


# ---------------------------------------------------------------- one channel


def test_inverse_and_log_depth_of_known_distances() -> None:
    depth = np.array([[0.5, 1.0, 4.0], [0.0, np.nan, -1.0], [np.inf, 100.0, 2.0]])
    expected = [[2.0, 1.0, 0.25], [np.nan] * 3, [np.nan, 0.01, 0.5]]
    np.testing.assert_allclose(inverse_depth(depth), expected, rtol=1e-7)
    np.testing.assert_allclose(log_depth(depth)[[0, 0, 2], [1, 2, 2]], [0, 1.3862944, 0.6931472], rtol=1e-6)
    assert np.isnan(log_depth(depth)).sum() == 4
    assert inverse_depth(depth).dtype == log_depth(depth).dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_a_ratio_of_distances_is_a_difference_of_log_depths(near: float, far: float) -> None:
    values = log_depth(np.array([[near, far]]))[0]
    assert values[1] - values[0] == pytest.approx(np.log(far / near), abs=2e-6)
    np.testing.assert_allclose(inverse_depth(np.array([[near, far]]))[0] * (near, far), 1, rtol=1e-6)


# ---------------------------------------------------------------- geometry


def test_points_project_back_to_their_pixels() -> None:
    points = points_of(ROOM, MATRIX)
    pixels = cv2.projectPoints(points.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), MATRIX, np.zeros(5))[0][:, 0]
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    np.testing.assert_allclose(pixels, np.stack([u, v], axis=-1).reshape(-1, 2), atol=1e-9)
    np.testing.assert_array_equal(points[..., 2], ROOM)


def test_normals_of_planes_are_exact_away_from_edges() -> None:
    normals = normals_of(ROOM, MATRIX, 3)
    inside = away_from_edges(3)
    assert all((SHOWN[inside] == plane).sum() > 50 for plane in range(4))
    expected = (INTO_SURFACE @ TURN.T)[SHOWN]
    assert degrees_between(normals, expected)[inside].max() < 1e-4
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, rtol=1e-12)
    assert ((normals * points_of(ROOM, MATRIX)).sum(axis=-1) > 0)[inside].all()  # away from the camera


@pytest.mark.parametrize("radius", [1, 3])
def test_normals_are_those_of_a_plane_fitted_pixel_by_pixel(radius: int) -> None:
    """Noise, holes and borders: the same least squares, solved by numpy for the points of one window after the other."""
    rng = np.random.default_rng(7)
    depth = ROOM[20:50, 30:66] * rng.normal(1, 0.004, (30, 36))
    depth[rng.random(depth.shape) < 0.25] = 0
    depth[7:12, 8:19] = np.nan
    depth[9, 10:17] = 3.0  # one line of pixels carries no plane where the radius is 1
    normals = normals_of(depth, MATRIX, radius)
    inverse = np.linalg.inv(MATRIX)
    checked = 0
    for v in range(30):
        for u in range(36):
            rows, columns = slice(max(v - radius, 0), v + radius + 1), slice(max(u - radius, 0), u + radius + 1)
            places = np.argwhere(depth[rows, columns] > 0) + np.array([rows.start, columns.start])
            rays = np.array([inverse @ (column, row, 1) for row, column in places]).reshape(-1, 3)
            if not depth[v, u] > 0 or np.linalg.matrix_rank(rays) < 3:
                assert np.isnan(normals[v, u]).all()
                continue
            fitted = np.linalg.lstsq(rays, 1 / depth[places[:, 0], places[:, 1]], rcond=None)[0]
            np.testing.assert_allclose(normals[v, u], fitted / np.linalg.norm(fitted), atol=1e-8)
            checked += 1
    assert checked > 500
    assert (np.isnan(normals[9, 12]).all()) == (radius == 1)


def test_pixels_on_one_slanted_line_carry_no_plane() -> None:
    depth = np.zeros((HEIGHT, WIDTH))
    steps = np.arange(80)
    depth[steps, steps + 20] = ROOM[steps, steps + 20]
    depth[steps[:40] * 2, steps[:40]] = ROOM[steps[:40] * 2, steps[:40]]
    assert np.isnan(normals_of(depth[:, 60:], MATRIX, 3)).all()


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (8, 5), (-20, 10), (30, -15)])
def test_gravity_is_found_from_floors_and_walls(pitch: float, roll: float) -> None:
    depth, _, turn = room(pitch, roll)
    found = gravity_of(normals_of(depth, MATRIX, 10))
    assert degrees_between(found, turn @ (0, 1, 0)) < 1.0
    assert np.linalg.norm(found) == pytest.approx(1)
    finer = gravity_of(normals_of(depth, MATRIX, 3))
    assert degrees_between(finer, turn @ (0, 1, 0)) < 0.5


def test_gravity_survives_noise_and_holes() -> None:
    rng = np.random.default_rng(2)
    depth = 1 / (1 / ROOM + rng.normal(0, 0.002, ROOM.shape))  # stereo: even noise of disparity, 1 % at 5 m
    depth[rng.random(ROOM.shape) < 0.3] = np.nan
    assert degrees_between(gravity_of(normals_of(depth, MATRIX, 10)), GRAVITY) < 1.0


def test_a_scene_without_normals_keeps_the_first_estimate() -> None:
    assert gravity_of(np.full((4, 5, 3), np.nan)).tolist() == [0, 1, 0]
    assert gravity_of(np.full((4, 3), np.nan), start=(0, 2, 0)).tolist() == [0, 1, 0]


# ---------------------------------------------------------------- HHA


def test_hha_of_a_room_is_what_the_room_is() -> None:
    values = hha(ROOM, MATRIX, GRAVITY)
    assert values.dtype == np.float32
    world = points_of(ROOM, MATRIX) @ TURN  # the room's axes
    np.testing.assert_allclose(values[..., 0], 1 / ROOM, rtol=1e-6)
    np.testing.assert_allclose(values[..., 1], CAMERA_HEIGHT - world[..., 1], atol=1e-5)
    assert np.abs(values[..., 1][SHOWN == FLOOR]).max() < 1e-5
    np.testing.assert_allclose(values[..., 1][SHOWN == CEILING], 3.0, atol=1e-5)
    inside = away_from_edges(3)
    for plane, angle in ((FLOOR, 0), (WALL, 90), (SIDE, 90), (CEILING, 180)):
        np.testing.assert_allclose(values[..., 2][inside & (plane == SHOWN)], angle, atol=1e-4)


def test_hha_with_estimated_gravity_is_nearly_that() -> None:
    known, found = hha(ROOM, MATRIX, GRAVITY), hha(ROOM, MATRIX)
    assert np.abs(found[..., 1] - known[..., 1]).max() < 0.1
    assert np.abs(found[..., 2] - known[..., 2])[away_from_edges(3)].max() < 1.0


def test_the_height_of_the_camera_replaces_the_lowest_point() -> None:
    known = hha(ROOM, MATRIX, GRAVITY)[..., 1]
    above = np.where(known < 0.5, np.nan, ROOM)
    lowest = hha(above, MATRIX, GRAVITY)[..., 1]
    true = hha(above, MATRIX, GRAVITY, camera_height=CAMERA_HEIGHT)[..., 1]
    np.testing.assert_allclose(true[known >= 0.5], known[known >= 0.5], atol=1e-5)
    np.testing.assert_allclose((true - lowest)[known >= 0.5], 0.5, atol=0.05)
    assert np.nanpercentile(lowest, 1) == pytest.approx(0, abs=1e-4)


def test_holes_stay_holes() -> None:
    depth = ROOM.copy()
    depth[10:20, 30:50] = 0
    depth[40, 40] = np.nan
    values = hha(depth, MATRIX)
    hole = ~(depth > 0)
    assert np.isnan(values[hole]).all()
    assert np.isfinite(values[~hole]).all()
    with pytest.raises(DataError, match="no measurement at all"):
        hha(np.zeros((8, 8)), MATRIX)


def test_the_8bit_scale_is_the_published_one() -> None:
    physical = np.array(
        [[[1 / 2.0, 1.25, 90.0], [1 / 0.5, 3.0, 0.0], [np.nan, np.nan, np.nan], [1 / 31.0, -0.2, 180.0]]]
    )
    expected = [[155, 125, 128], [255, 255, 38], [np.nan] * 3, [10, 0, 218]]
    np.testing.assert_allclose(hha_8bit(physical.astype(np.float32))[0], expected, rtol=1e-6)


# ---------------------------------------------------------------- the encoder


def test_the_encoder_reads_millimetres_and_metres(tmp_path: Path) -> None:
    stored = np.round(1000 * ROOM).astype(np.uint16)
    stored[0, :5] = 0
    write_array(tmp_path / "a.png", stored)
    write_array(tmp_path / "a.npy", np.where(stored == 0, np.nan, stored / 1000).astype(np.float32))
    for name in ("a.png", "a.npy"):
        for encoding, make in (("metric", lambda d: d), ("inverse", lambda d: 1 / d), ("log", np.log)):
            encoder = build(DepthEncoder, {"encoding": encoding})
            values = encoder.encode(encoder.read(tmp_path / name))
            assert values.shape == (HEIGHT, WIDTH, len(encoder.channels))
            assert np.isnan(values[0, :5]).all()
            np.testing.assert_allclose(values[1:, :, 0], make(stored[1:] / 1000), rtol=1e-5, atol=1e-6)


def test_the_encoder_makes_hha_with_a_camera_alone() -> None:
    encoder = build(DepthEncoder, {"encoding": "hha"})
    assert encoder.channels == ("disparity", "height", "angle")
    values = encoder.encode(ROOM.astype(np.float32), CAMERA)
    assert np.nanmin(values) >= 0
    assert np.nanmax(values) <= 255
    assert np.median(values[..., 2][SHOWN == WALL]) == pytest.approx(128, abs=1)
    given_all = build(
        DepthEncoder,
        {"encoding": "hha", "hha_units": "physical", "gravity": GRAVITY.tolist(), "camera_height": CAMERA_HEIGHT},
    )
    physical = given_all.encode(ROOM.astype(np.float32), CAMERA)
    np.testing.assert_allclose(physical, hha(ROOM, MATRIX, GRAVITY, CAMERA_HEIGHT), atol=2e-2)
    with pytest.raises(RequestError, match="HHA needs the depth camera's matrix"):
        encoder.encode(ROOM)
    with pytest.raises(DataError, match="120 x 90 pixels and its camera 640 x 480"):
        encoder.encode(ROOM, SimpleNamespace(size=(640, 480), matrix=MATRIX))


def test_what_is_out_of_reach_is_a_hole() -> None:
    encoder = build(DepthEncoder, {"nearest": 0.3, "farthest": 10})
    values = encoder.encode(np.array([[200, 300, 10_000, 10_001, 65535, 0]], np.uint16))
    np.testing.assert_allclose(values[0, :, 0], [np.nan, 0.3, 10, np.nan, np.nan, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"encoding": "disparity"}, "depth.encoding is 'disparity'"),
        ({"scale": 0}, "depth: scale is 0.0 m"),
        ({"nearest": 5, "farthest": 2}, "depth: nearest is 5.0 m and farthest 2.0 m"),
        ({"nearest": -1}, "nearest must be at least 0"),
        ({"gravity": [0, 0, 0]}, "depth: gravity is [0.0, 0.0, 0.0]"),
        ({"gravity": [0, 1]}, "depth.gravity"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        build(DepthEncoder, values, "depth")
    assert expected in str(error.value)


def test_a_colour_picture_is_no_depth_map(tmp_path: Path) -> None:
    write_array(tmp_path / "a.png", np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DataError, match="one channel"):
        DepthEncoder().read(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"it needs \(H, W\)"):
        inverse_depth(np.zeros((4, 5, 1)))
