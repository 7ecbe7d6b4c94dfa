"""A moving sensor: where each point is seen from at the exposure, by hand, by matrix exponential and by slerp."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation, Slerp

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Transform
from mlesam.sensors.motion import ConstantTwist, InterpolatedPoses


def test_driving_straight_moves_a_point_by_the_way_driven_since() -> None:
    """20 m/s forward. A wall seen at 30 m 0.05 s before the exposure is then 29 m away; seen 0.05 s after it, 31 m."""
    motion = ConstantTwist((20, 0, 0), (0, 0, 0), 100.0)
    points = np.array([[30.0, 1, 2], [30, 1, 2], [30, 1, 2]])
    moved = motion.at_exposure(points, np.array([99.95, 100.0, 100.05]))
    np.testing.assert_allclose(moved, [[29, 1, 2], [30, 1, 2], [31, 1, 2]], atol=1e-9)


def test_turning_left_moves_the_world_to_the_right() -> None:
    motion = ConstantTwist((0, 0, 0), (0, 0, math.pi / 2), 0.0)
    moved = motion.at_exposure(np.array([[10.0, 0, 0]]), np.array([-1.0]))
    np.testing.assert_allclose(moved, [[0, -10, 0]], atol=1e-9)


def test_a_circle_driven_for_a_quarter_turn() -> None:
    """Radius 2 m, a quarter a second: the exposure's pose lies 2 m ahead and 2 m left of the pose 1 s before."""
    motion = ConstantTwist((math.pi, 0, 0), (0, 0, math.pi / 2), 0.0)
    np.testing.assert_allclose(
        motion.at_exposure(np.array([[2.0, 2, 0.5]]), np.array([-1.0])), [[0, 0, 0.5]], atol=1e-9
    )


def test_a_constant_twist_is_the_exponential_of_its_matrix() -> None:
    v, w = np.array([12.0, -1.0, 0.4]), np.array([0.1, -0.3, 0.8])
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = np.cross(np.eye(3), w)
    matrix[:3, 3] = v
    rng = np.random.default_rng(0)
    points, times = rng.normal(0, 20, (20, 3)), rng.uniform(-0.9, 0.9, 20)
    moved = ConstantTwist(tuple(v), tuple(w), 0.0).at_exposure(points, times)
    for point, time, result in zip(points, times, moved, strict=True):
        np.testing.assert_allclose(result, (expm(matrix * time) @ [*point, 1])[:3], atol=1e-9)


def test_two_poses_are_interpolated_as_by_slerp() -> None:
    rng = np.random.default_rng(1)
    turns = Rotation.from_rotvec([[0.1, 0.2, 1.0], [0.15, 0.1, 1.9]])
    places = np.array([[4.6e5, 5.2e6, 400.0], [4.6e5 + 3, 5.2e6 - 1, 400.2]])  # metres of a map
    poses = [Transform.from_parts(r.as_matrix(), t) for r, t in zip(turns, places, strict=True)]
    motion = InterpolatedPoses(poses[0], poses[1], (10.0, 10.4), 10.3)
    points, times = rng.normal(0, 20, (20, 3)), rng.uniform(10.0, 10.4, 20)
    moved = motion.at_exposure(points, times)
    slerp = Slerp([10.0, 10.4], turns)

    def pose(time: float) -> tuple[np.ndarray, np.ndarray]:
        share = (time - 10.0) / 0.4
        return slerp(time).as_matrix(), (1 - share) * places[0] + share * places[1]

    r0, t0 = pose(10.3)
    for point, time, result in zip(points, times, moved, strict=True):
        r, t = pose(time)
        np.testing.assert_allclose(result, r0.T @ (r @ point + t - t0), atol=1e-6)


def test_poses_without_a_turn_are_a_straight_way() -> None:
    second = Transform.from_parts(np.eye(3), (2, 0, 0))
    motion = InterpolatedPoses(Transform.from_parts(np.eye(3), (0, 0, 0)), second, (0.0, 0.1), 0.1)
    np.testing.assert_allclose(motion.at_exposure(np.array([[9.0, 1, 0]]), np.array([0.0])), [[7, 1, 0]])


def test_times_of_another_clock_or_unit_are_refused() -> None:
    motion = ConstantTwist((15, 0, 0), (0, 0, 0), 1_660_000_000.0)
    for times in (np.array([1.66e15]), np.array([3.2]), np.array([np.nan])):
        with pytest.raises(DataError, match="give both in seconds of the same clock"):
            motion.at_exposure(np.ones((1, 3)), times)
    here = Transform.from_parts(np.eye(3), (0, 0, 0))
    with pytest.raises(RequestError, match="first pose must be earlier"):
        InterpolatedPoses(here, here, (1.0, 1.0), 1.0)
    back = Transform.from_parts(np.diag([-1.0, -1.0, 1.0]), (0, 0, 0))
    with pytest.raises(RequestError, match="differ by 180 degrees"):
        InterpolatedPoses(here, back, (0.0, 1.0), 1.0)
