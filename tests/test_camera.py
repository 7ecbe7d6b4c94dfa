"""Where a point in space appears in a picture, against OpenCV and by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlesam.errors import RequestError
from mlesam.sensors.camera import Camera, Transform

K = ((1500.0, 0.0, 950.0), (0.0, 1480.0, 545.0), (0.0, 0.0, 1.0))
SIZE = (1920, 1080)
LENSES = {
    "pinhole": (),
    "four": (-0.31, 0.12, 0.0011, -0.0007),
    "five": (-0.31, 0.12, 0.0011, -0.0007, -0.02),
    "eight": (0.21, -0.05, 0.0003, 0.0004, 0.01, 0.45, -0.02, 0.012),
}


def rotation(vector: tuple[float, float, float]) -> np.ndarray:
    return cv2.Rodrigues(np.array(vector))[0]


def in_view(count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 80, count)
    return np.stack([depth * rng.uniform(-0.6, 0.6, count), depth * rng.uniform(-0.35, 0.35, count), depth], axis=1)


# ---------------------------------------------------------------- projection


def test_points_by_hand() -> None:
    uv, depth = Camera(K, SIZE).project(np.array([[0, 0, 10], [2, 0, 10], [0, -1, 4], [3, 3, 1]]))
    np.testing.assert_allclose(uv, [[950, 545], [950 + 300, 545], [950, 545 - 370], [950 + 4500, 545 + 4440]])
    np.testing.assert_array_equal(depth, [10, 10, 4, 1])


@pytest.mark.parametrize("lens", LENSES)
def test_a_lens_bends_as_in_opencv(lens: str) -> None:
    points = in_view()
    uv, _ = Camera(K, SIZE, LENSES[lens]).project(points)
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.array(K), np.array(LENSES[lens]))
    np.testing.assert_allclose(uv, expected[:, 0], rtol=0, atol=1e-8)


def test_skew_moves_a_column_by_its_height() -> None:
    uv, _ = Camera(((1500, 12, 950), (0, 1480, 545), (0, 0, 1)), SIZE).project(np.array([[0.0, 1.0, 2.0]]))
    np.testing.assert_allclose(uv, [[950 + 6, 545 + 740]])


@pytest.mark.parametrize("lens", LENSES)
def test_a_point_behind_the_camera_has_no_place_but_a_depth(lens: str) -> None:
    points = np.array([[0.0, 0.0, -5.0], [1.0, 1.0, 0.0], [0.1, 0.1, 1e-300], [0.0, 0.0, 5.0], [np.nan, 0, 5]])
    uv, depth = Camera(K, SIZE, LENSES[lens]).project(points)
    np.testing.assert_array_equal(np.isnan(uv).any(axis=1)[[0, 1, 3, 4]], [True, True, False, True])
    np.testing.assert_array_equal(depth, points[:, 2])


def test_a_strong_lens_folds_nothing_back_into_the_picture() -> None:
    """k1 = -0.3 turns round at r = 1.054: OpenCV's formula puts a point 80 degrees aside back near the middle."""
    camera = Camera(K, SIZE, (-0.3, 0.0, 0.0, 0.0))
    aside = np.array([[np.tan(np.radians(degrees)), 0, 1] for degrees in (30, 46, 47, 61, 80)])
    folded, _ = cv2.projectPoints(aside, np.zeros(3), np.zeros(3), np.array(K), np.array(camera.distortion))
    assert 0 < folded[3, 0, 0] < SIZE[0]
    uv, _ = camera.project(aside)
    np.testing.assert_array_equal(np.isnan(uv[:, 0]), [False, False, True, True, True])
    assert camera.squared_radius_limit == pytest.approx(1 / 0.9)


@given(st.lists(st.floats(-0.4, 0.4), min_size=8, max_size=8))
@settings(max_examples=30, deadline=None)
def test_up_to_its_limit_a_lens_keeps_the_order_of_radii(coefficients: list[float]) -> None:
    coefficients[2:4] = [0.0, 0.0]  # the limit is that of the radial part
    camera = Camera(((1, 0, 0), (0, 1, 0), (0, 0, 1)), (10, 10), tuple(coefficients))
    limit = min(np.sqrt(camera.squared_radius_limit), 6.0)
    radii = np.linspace(0, limit, 400)[:-1]
    uv, _ = camera.project(np.stack([radii, np.zeros_like(radii), np.ones_like(radii)], axis=1))
    assert (np.diff(uv[:, 0]) > -1e-12).all()


def test_a_lens_that_is_one_to_one_everywhere_has_no_limit() -> None:
    assert Camera(K, SIZE, (0.1, 0.0, 0.0, 0.0)).squared_radius_limit == np.inf
    assert Camera(K, SIZE).squared_radius_limit == np.inf


# ---------------------------------------------------------------- other sizes


def test_a_scaled_picture_shows_a_point_at_the_scaled_place() -> None:
    """Places are measured from the picture's corner, which lies half a pixel before the middle of the first pixel."""
    points, camera = in_view(), Camera(K, SIZE, LENSES["five"])
    whole, _ = camera.project(points)
    for size in ((960, 540), (640, 640), (3840, 2160)):
        resized = camera.resized(size)
        assert resized.size == size
        uv, _ = resized.project(points)
        np.testing.assert_allclose(uv + 0.5, (whole + 0.5) * np.array(size) / np.array(SIZE), atol=1e-9)
    assert camera.resized(SIZE) == camera


def test_a_scaled_picture_agrees_with_a_scaling_of_the_pixels() -> None:
    picture = np.zeros((20, 40), np.float32)
    camera = Camera(((20, 0, 19.5), (0, 20, 9.5), (0, 0, 1)), (40, 20))
    (u, v), *_ = camera.project(np.array([[0.42, -0.23, 1.0]]))[0]
    picture[round(v), round(u)] = 1
    small = cv2.resize(picture, (20, 10), interpolation=cv2.INTER_AREA)
    (u, v), *_ = camera.resized((20, 10)).project(np.array([[0.42, -0.23, 1.0]]))[0]
    assert small[round(v), round(u)] == small.max() > 0


# ---------------------------------------------------------------- transforms


def test_a_transform_turns_and_then_moves() -> None:
    quarter = Transform.from_parts([[0, -1, 0], [1, 0, 0], [0, 0, 1]], [10, 0, 0])
    np.testing.assert_allclose(quarter.apply(np.array([[1, 0, 0], [0, 2, 5]])), [[10, 1, 0], [8, 0, 5]])


def test_transforms_compose_and_undo() -> None:
    a = Transform.from_parts(rotation((0.3, -1.1, 2.0)), [1, 2, 3])
    b = Transform.from_parts(rotation((-0.7, 0.2, 0.1)), [-4, 0.5, 9])
    points = in_view(50)
    np.testing.assert_allclose((a @ b).apply(points), a.apply(b.apply(points)), atol=1e-12)
    np.testing.assert_allclose(a.inverse().apply(a.apply(points)), points, atol=1e-12)
    np.testing.assert_allclose((a @ a.inverse()).array, np.eye(4), atol=1e-12)


def test_a_rotation_with_three_decimals_passes_and_is_undone_exactly() -> None:
    rounded = Transform.from_parts(np.round(rotation((0.3, -1.1, 2.0)), 3), [1, 2, 3])
    points = in_view(50)
    np.testing.assert_allclose(rounded.inverse().apply(rounded.apply(points)), points, atol=1e-12)


def test_cameras_and_transforms_can_be_compared_and_hashed() -> None:
    assert Camera(np.array(K), [1920, 1080], np.zeros(5)) == Camera(K, SIZE, (0.0,) * 5)  # type: ignore[arg-type]
    assert len({Transform(np.eye(4)), Transform.from_parts(np.eye(3), np.zeros(3))}) == 1  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is refused

MIRRORED = np.diag([1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(3), "has the shape (3, 3), but it must be (4, 4)"),
        (np.full((4, 4), np.nan), "every value must be finite"),
        ([[1, 2], [3]], "must be 4 x 4 numbers"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "has the last row [0.0, 0.0, 0.0, 2.0], but it must be [0, 0, 0, 1]"),
        (np.block([[np.eye(3), np.zeros((3, 1))], [np.array([[1, 2, 3, 1]])]]), "it is transposed"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "R^T R differs from the identity by 3 (at most 0.002) and its determinant is 8"),
        (np.block([[MIRRORED, np.zeros((3, 1))], [np.eye(4)[3:]]]), "the rotation mirrors: its determinant is -1"),
    ],
)  # fmt: skip
def test_what_is_no_rigid_transform_is_refused(matrix: object, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        Transform(matrix)  # type: ignore[arg-type]
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"matrix": np.array(K).T}, "it is transposed"),
        ({"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]}, "must be [0, 0, 1]"),
        ({"matrix": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "focal lengths above 0"),
        ({"matrix": [[1, 0, 0], [3, 1, 0], [0, 0, 1]]}, "must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
        ({"matrix": [1, 2, 3]}, "has the shape (3,)"),
        ({"size": (0, 5)}, "size is [0, 5]"),
        ({"distortion": (0.1, 0.2)}, "distortion has 2 numbers"),
        ({"distortion": (0.1, 0.2, 0, float("inf"))}, "every value must be finite"),
    ],
)
def test_what_is_no_camera_is_refused(changes: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        Camera(**{"matrix": K, "size": SIZE, **changes})
    assert expected in str(error.value)
    with pytest.raises(RequestError, match="at least one pixel"):
        Camera(K, SIZE).resized((0, 10))
