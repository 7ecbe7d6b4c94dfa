"""LiDAR: a picture holds what a loop over the points would put there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera, Transform
from mlesam.sensors.motion import ConstantTwist
from mlesam.sensors.points import PointsEncoder, project_points
from mlesam.sensors.projection import FORWARD_LEFT_UP, _order

CAMERA = Camera(((20, 0, 15.5), (0, 20, 11.5), (0, 0, 1)), (32, 24))
HERE = Transform.from_parts(FORWARD_LEFT_UP.rotation, (0, 0, 0))
COLUMNS = ("x", "y", "z", "intensity")


def cloud(count: int = 200, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Points all around the sensor, many on the same pixels; ranges repeat."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = np.empty((count, 4))
    points[:, :3] = direction * rng.integers(0, 12, (count, 1))
    points[:, 3] = rng.uniform(0, 1, count)
    return points.astype(dtype)


def by_loop(points, camera, to_camera, nearest=1.0, dilate=1, strongest=False) -> np.ndarray:
    """The slow and obvious way."""
    width, height = camera.size
    picture = np.full((height, width, 3), np.nan, np.float32)
    least: dict[tuple[int, int], float] = {}
    for x, y, z, intensity in points.astype(np.float64):
        distance = np.float32(math.sqrt(x * x + y * y + z * z))
        (u, v), depth = (a[0] for a in camera.project(to_camera.apply(np.array([[x, y, z]]))))
        if not depth > 0 or distance < nearest or math.isnan(u):
            continue
        column, row = math.floor(u + 0.5), math.floor(v + 0.5)
        if not (0 <= column < width and 0 <= row < height):
            continue
        cost = -np.float32(intensity) if strongest else distance
        for i in range(row - (dilate - 1) // 2, row + dilate // 2 + 1):
            for j in range(column - (dilate - 1) // 2, column + dilate // 2 + 1):
                if 0 <= i < height and 0 <= j < width and cost < least.get((i, j), math.inf):
                    least[i, j] = cost
                    picture[i, j] = distance, intensity, z
    return picture


# ---------------------------------------------------------------- the picture


def test_one_point_by_hand() -> None:
    """5 m ahead, 1 m to the left, 0.5 m up: left of the middle and above it."""
    picture = project_points(np.array([[5, 1, 0.5, 0.7]]), CAMERA, HERE)
    assert picture.shape == (24, 32, 3)
    assert picture.dtype == np.float32
    row, column = 10, 12  # 11.5 - 20 * 0.5 / 5 = 9.5, which is the edge of pixel 10; 15.5 - 20 / 5 = 11.5
    np.testing.assert_array_equal(np.argwhere(np.isfinite(picture[..., 0])), [[row, column]])
    np.testing.assert_allclose(picture[row, column], [math.sqrt(26.25), 0.7, 0.5], rtol=1e-6)


def test_the_picture_reaches_to_the_edges_of_its_pixels_and_no_further() -> None:
    for v, u, inside in (
        (-0.5, -0.5, True), (-0.51, 3, False), (3, -0.51, False), (23.49, 31.49, True), (23.5, 3, False), (3, 31.5, False),
    ):  # fmt: skip
        x, y = (u - 15.5) / 20, (v - 11.5) / 20
        picture = project_points(np.array([[8, -8 * x, -8 * y, 1]]), CAMERA, HERE)
        assert np.isfinite(picture).any() == inside, (u, v)


def test_the_nearest_point_hides_those_behind_it() -> None:
    ray = np.array([[8, 0, 0, 0.8], [4, 0, 0, 0.4], [6, 0, 0, 0.6]])
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        picture = project_points(ray[order], CAMERA, HERE)
        np.testing.assert_allclose(picture[np.isfinite(picture)], [4, 0.4, 0], rtol=1e-6)


def test_of_equally_near_points_the_first_is_kept() -> None:
    """NumPy does not promise which of several assignments to one place stays; this holds that it is the last."""
    count = 50_000
    same = np.tile([[5.0, 0, 0, 0]], (count, 1))
    same[:, 3] = np.arange(count)
    for dilate in (1, 3):
        picture = project_points(same, CAMERA, HERE, dilate=dilate)
        assert set(picture[..., 1][np.isfinite(picture[..., 1])]) == {0.0}


def test_points_behind_the_camera_do_not_appear() -> None:
    picture = project_points(np.array([[-5, 0.1, 0.1, 1], [0, 1, 1, 1], [-5, 0, 0, 1]]), CAMERA, HERE)
    assert np.isnan(picture).all()


def test_points_nearer_than_nearest_do_not_appear() -> None:
    points = np.array([[0.99, 0, 0, 1], [1.0, 0.5, 0, 1]])
    assert np.isfinite(project_points(points, CAMERA, HERE)[..., 0]).sum() == 1
    assert np.isfinite(project_points(points, CAMERA, HERE, nearest=0)[..., 0]).sum() == 2
    assert np.isfinite(project_points(points, CAMERA, HERE, nearest=2)[..., 0]).sum() == 0


def test_range_and_height_are_the_sensors_own_wherever_the_camera_stands() -> None:
    aside = Transform.from_parts(FORWARD_LEFT_UP.rotation, (0.3, -0.4, -1.0))  # camera 1 m ahead
    picture = project_points(np.array([[5, 0.3, -0.4, 1]]), CAMERA, aside)
    values = picture[np.isfinite(picture[..., 0])][0]
    np.testing.assert_allclose(values, [math.sqrt(25.25), 1, -0.4], rtol=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([1, 1, 2, 3, 4, 5]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_picture_is_what_a_loop_over_the_points_makes(seed: int, count: int, dilate: int, strongest: bool) -> None:
    points = cloud(count, seed)
    turned = Transform.from_parts(
        Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix() @ FORWARD_LEFT_UP.rotation, (0.2, -0.1, 0.3)
    )
    picture = project_points(points, CAMERA, turned, dilate=dilate, keep="strongest" if strongest else "nearest")
    np.testing.assert_array_equal(picture, by_loop(points, CAMERA, turned, 1.0, dilate, strongest))


def test_a_crowded_picture_through_a_lens_is_what_a_loop_makes() -> None:
    camera = Camera(CAMERA.matrix, CAMERA.size, (-0.3, 0.1, 0.01, -0.01, 0.0))
    points = cloud(1500, 7, "float64")
    for dilate in (1, 2):
        picture = project_points(points, camera, HERE, dilate=dilate)
        np.testing.assert_array_equal(picture, by_loop(points, camera, HERE, 1.0, dilate))
        assert np.isfinite(picture[..., 0]).mean() > 0.2


def test_a_wide_point_keeps_its_values_together_and_hides_what_is_farther() -> None:
    near, far = [4, 0, 0, 0.1], [8, -8 / 20, 0, 0.9]  # one pixel further right
    picture = project_points(np.array([far, near]), CAMERA, HERE, dilate=3)
    rows = np.isfinite(picture[..., 0])
    assert rows.sum() == 12
    assert {tuple(v) for v in np.round(picture[rows], 3)} == {
        (np.float32(4.0), np.float32(0.1), np.float32(0.0)),
        (np.round(np.float32(math.hypot(8, 0.4)), 3), np.float32(0.9), np.float32(0.0)),
    }
    assert (picture[rows][:, 0] == 4).sum() == 9


def test_values_that_are_not_finite_leave_no_trace() -> None:
    points = np.array([
        [np.nan, 0, 0, 1], [5, np.inf, 0, 1], [np.inf, 0, 0, 1], [5, 0, -np.inf, 1], [5, 0, 0, np.nan], [5, 0, 0, np.inf],
        [5, 0, 0, 1e300], [1e300, 0, 0, 1],
    ])  # fmt: skip
    assert np.isnan(project_points(points, CAMERA, HERE)).all()
    motion = ConstantTwist((1, 0, 0), (0, 0, 1), 0)
    assert np.isnan(project_points(points, CAMERA, HERE, times=np.zeros(8), motion=motion)).all()
    assert np.isnan(project_points(points[:0], CAMERA, HERE)).all()


def test_points_without_intensity_and_with_more_values() -> None:
    points = np.array([[5.0, 0, 1, 0.5, 7.0]])
    assert project_points(points[:, :3], CAMERA, HERE).shape == (24, 32, 2)
    picture = project_points(points, CAMERA, HERE)
    np.testing.assert_allclose(picture[np.isfinite(picture[..., 0])][0], [math.sqrt(26), 0.5, 7, 1], rtol=1e-6)


def test_projecting_changes_no_caller_array() -> None:
    points = cloud(100, 3)
    before = points.copy()
    motion = ConstantTwist((5, 0, 0), (0, 0, 0.1), 0.0)
    project_points(points, CAMERA, HERE, dilate=2, times=np.zeros(100), motion=motion)
    np.testing.assert_array_equal(points, before)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(RequestError, match="dilate is 0"):
        project_points(cloud(), CAMERA, HERE, dilate=0)
    with pytest.raises(DataError, match=r"have the shape \(5, 2\)"):
        project_points(np.zeros((5, 2)), CAMERA, HERE)
    with pytest.raises(RequestError, match="needs the time of each point"):
        project_points(cloud(), CAMERA, HERE, motion=ConstantTwist((1, 0, 0), (0, 0, 0), 0))
    with pytest.raises(RequestError, match="as many times"):
        project_points(cloud(), CAMERA, HERE, motion=ConstantTwist((1, 0, 0), (0, 0, 0), 0), times=np.zeros(3))


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_order_of_costs_is_that_of_a_stable_sort(costs: list[float]) -> None:
    array = np.array(costs + costs[::2] + [0.0, -0.0], dtype=np.float32)
    np.testing.assert_array_equal(_order(array), np.argsort(array, kind="stable"))


def test_a_picture_of_a_moving_sensor_is_that_of_the_moved_points() -> None:
    points, times = cloud(400, 5, "float64"), np.linspace(-0.05, 0.05, 400)
    motion = ConstantTwist((15, 0, 0), (0, 0, 0.4), 0.0)
    moved = points.copy()
    moved[:, :3] = motion.at_exposure(points[:, :3], times)
    picture = project_points(points, CAMERA, HERE, times=times, motion=motion)
    np.testing.assert_array_equal(picture, project_points(moved, CAMERA, HERE))
    assert not np.array_equal(picture, project_points(points, CAMERA, HERE), equal_nan=True)


# ---------------------------------------------------------------- the encoder


def encoder(**changes: object) -> PointsEncoder:
    return PointsEncoder(**{"rotation": HERE.rotation.tolist(), "translation": (0, 0, 0), **changes})  # type: ignore[arg-type]


def test_the_encoder_projects_its_columns() -> None:
    points = cloud(500, 2, "float64")
    expected = project_points(points, CAMERA, HERE, nearest=2.0, dilate=2)
    assert encoder().channels == ("range (m)", "intensity", "height (m)")
    np.testing.assert_array_equal(encoder(nearest=2.0, dilate=2).encode(points, CAMERA), expected)
    mixed = np.concatenate([np.full((500, 1), 9.0), points[:, [3, 2, 1, 0]], np.full((500, 1), np.nan)], axis=1)
    columns = ("ring", "intensity", "z", "y", "x", "unused")
    np.testing.assert_array_equal(encoder(nearest=2.0, dilate=2, columns=columns).encode(mixed, CAMERA), expected)


def test_a_lidar_without_intensity_has_two_channels() -> None:
    two = encoder(columns=("x", "y", "z"))
    assert two.channels == ("range (m)", "height (m)")
    assert two.encode(cloud()[:, :3], CAMERA).shape == (24, 32, 2)


def test_the_encoder_corrects_for_motion_with_its_time_column() -> None:
    points, times = cloud(400, 5, "float64"), np.linspace(99.95, 100.05, 400)
    motion = ConstantTwist((15, 0, 0), (0, 0, 0.4), 100.0)
    timed = encoder(columns=(*COLUMNS, "time"))
    expected = project_points(points, CAMERA, HERE, times=times, motion=motion)
    np.testing.assert_array_equal(timed.encode(np.column_stack([points, times]), CAMERA, motion), expected)
    with pytest.raises(RequestError, match="motion needs the time of each point, but columns is"):
        encoder().encode(points, CAMERA, motion)


def test_a_recording_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"the shape \(200, 3\), but columns names 4 \(x, y, z, intensity\)"):
        encoder().encode(cloud()[:, :3], CAMERA)
    with pytest.raises(DataError, match="holds no point"):
        encoder().encode(cloud(0), CAMERA)
    with pytest.raises(RequestError, match="give the rig one"):
        encoder().encode(cloud(), None)


UPWARD = Rotation.from_euler("x", 90, degrees=True).as_matrix()
AHEAD = np.random.default_rng(1).uniform((10, -1, -1, 0), (40, 1, 1, 1), (2000, 4))


@pytest.mark.parametrize(
    ("rotation", "translation", "camera", "expected"),
    [
        (UPWARD @ HERE.rotation, (0.0, 0.0, 0.0), CAMERA, "check the axes (a camera's: x right, y down, z forward)"),
        (HERE.rotation.T, (-1.0, 0.2, 0.3), CAMERA, "would fall inside: give the one from the sensor to the camera"),
        (np.eye(3), (0.0, 0.0, 0.0), CAMERA, "with a turn from x forward, y left, z up"),
        (
            HERE.rotation,
            (0.0, 0.0, 0.0),
            Camera(((20, 0, 80), (0, 20, 60), (0, 0, 1)), CAMERA.size),
            "principal point at (80, 60), far from the picture's middle: it seems to belong to pictures of another size",
        ),
    ],
)  # fmt: skip
def test_a_calibration_that_shows_nothing_says_what_to_check(rotation, translation, camera, expected) -> None:
    with pytest.raises(DataError) as error:
        encoder(rotation=rotation.tolist(), translation=translation).encode(AHEAD, camera)
    front = (AHEAD[:, :3] @ rotation[2] + translation[2] > 0).sum()
    start = f"of {len(AHEAD):,} points {front:,} lie in front of the camera and 0 inside its 32 x 24 picture; "
    assert str(error.value).startswith(start)
    assert expected in str(error.value)


def test_points_that_are_all_too_near_are_no_fault_of_the_calibration() -> None:
    with pytest.raises(DataError, match=r"and 1 inside its .* are nearer than 1 m, check nearest and the unit"):
        encoder().encode(np.array([[0.02, 0, 0, 1]]), CAMERA)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rotation": np.diag([1.0, 1.0, -1.0])}, "the rotation mirrors"),
        ({"columns": ("x", "y", "intensity")}, "must name x, y and z"),
        ({"columns": ("x", "y", "z", "z")}, "every column once"),
        ({"nearest": -1.0}, "nearest is -1.0"),
        ({"dilate": 0}, "dilate is 0"),
    ],
)
def test_wrong_options_are_refused(changes: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        encoder(**changes)
    assert expected in str(error.value)
