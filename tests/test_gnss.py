"""What a receiver writes of the vehicle's motion, seen from its sensors: by hand, by exponential, and by MUSES' own formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from conftest import corrected_as_by_the_sdk
from mlesam.errors import DataError
from mlesam.sensors.camera import Transform
from mlesam.sensors.gnss import Drive, read_motion

ROOF = Transform.from_parts(np.diag([1, -1, -1]), [2.0, 0.5, -0.3])
"""A sensor with x forward, y left, z up, 2 m ahead of the receiver and half a metre to its right."""


def write(path: Path, speed: int = 0, rates: tuple[int, int, int] = (0, 0, 0)) -> list[int]:
    """A line as of MUSES: mm/s in place 23, 1e-5 degrees a second in places 17 to 19, and other numbers in all other places."""
    numbers = [1000 + place for place in range(28)]
    numbers[17:20], numbers[23] = rates, speed
    path.write_text(" ".join(map(str, numbers)) + "\n")
    return numbers


def test_driving_straight_is_the_speed_over_ground(tmp_path: Path) -> None:
    """13.5 m/s. What a sensor on the roof saw 30 m ahead 0.1 s before the exposure is then at 28.65 m."""
    write(tmp_path / "a.txt", 13_500)
    motion = Drive(tmp_path / "a.txt", 50.0, {"lidar": ROOF}).motion("lidar")
    assert motion is not None
    np.testing.assert_allclose(motion.velocity, (13.5, 0, 0), atol=1e-12)
    np.testing.assert_allclose(
        motion.at_exposure(np.array([[30.0, 1, 2]]), np.array([49.9])), [[28.65, 1, 2]], atol=1e-9
    )


def test_a_turn_to_the_right_swings_a_sensor_that_stands_ahead(tmp_path: Path) -> None:
    """Headings grow clockwise: 90 degrees a second, on the spot. The sensor is swung along a quarter circle around the receiver:
    what stood straight ahead of the receiver a second ago is at its left, and the sensor 2 m ahead and 0.5 m right of it."""
    write(tmp_path / "a.txt", 0, (0, 0, 9_000_000))
    motion = Drive(tmp_path / "a.txt", 1.0, {"radar": ROOF}).motion("radar")
    assert motion is not None
    np.testing.assert_allclose(motion.angular_velocity, (0, 0, -math.pi / 2), atol=1e-12)
    np.testing.assert_allclose(motion.velocity, (-math.pi / 4, -math.pi, 0), atol=1e-12)
    # 10 m ahead of the receiver, at its height: (8, 0.5, -0.3) of the sensor. Then (0, 10) left of the receiver.
    np.testing.assert_allclose(
        motion.at_exposure(np.array([[8.0, 0.5, -0.3]]), np.array([0.0])), [[-2, 10.5, -0.3]], atol=1e-9
    )


def test_any_motion_is_that_of_the_receiver_carried_to_the_sensor(tmp_path: Path) -> None:
    """Point to receiver, exponential of the receiver's twist, back to the sensor."""
    rates = (1_200_000, -700_000, 2_500_000)
    write(tmp_path / "a.txt", 17_250, rates)
    mount = Transform.from_parts(Rotation.from_euler("xyz", [170, -8, 25], degrees=True).as_matrix(), [1.3, -0.4, -0.9])
    motion = Drive(tmp_path / "a.txt", 7.0, {"lidar": mount}).motion("lidar")
    assert motion is not None
    twist = np.zeros((4, 4))
    twist[:3, :3] = np.cross(np.eye(3), -np.radians(np.array(rates) / 1e5)).T
    twist[0, 3] = 17.25
    rng = np.random.default_rng(0)
    points, times = rng.normal(0, 20, (20, 3)), rng.uniform(6.5, 7.5, 20)
    for point, time, found in zip(points, times, motion.at_exposure(points, times), strict=True):
        carried = np.linalg.inv(mount.array) @ expm(twist * (time - 7.0)) @ mount.array @ [*point, 1]
        np.testing.assert_allclose(found, carried[:3], atol=1e-9)


def test_it_agrees_with_the_formula_of_muses_sdk(tmp_path: Path) -> None:
    """The SDK turns the way driven by the whole angle instead of by half of it on average: 3 mm at 10 degrees a second."""
    numbers = write(tmp_path / "a.txt", 14_000, (40_000, -60_000, 1_000_000))
    mount = Transform.from_parts(Rotation.from_euler("x", 178, degrees=True).as_matrix(), [0.7, 0.1, -0.4])
    motion = Drive(tmp_path / "a.txt", 100.0, {"lidar": mount}).motion("lidar")
    assert motion is not None
    rng = np.random.default_rng(1)
    points, times = rng.normal(0, 25, (200, 3)), rng.uniform(99.95, 100.05, 200)
    found = motion.at_exposure(points, times)
    official = corrected_as_by_the_sdk(points, times, 100.0, mount.array, numbers)
    apart = np.linalg.norm(found - official, axis=1)
    assert apart.max() < 0.005
    assert np.linalg.norm(official - points, axis=1).max() > 0.5  # so the test can tell


def test_only_the_first_line_counts_and_other_sensors_have_no_motion(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", 3000)
    (tmp_path / "a.txt").write_text((tmp_path / "a.txt").read_text() + "more\n")
    assert read_motion(tmp_path / "a.txt", 0.0).velocity == (3.0, 0.0, 0.0)
    assert Drive(tmp_path / "a.txt", 0.0, {"lidar": ROOF}).motion("event") is None


def test_what_is_no_line_of_a_receiver_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DataError, match=r"there is no file .*a\.txt.*unpack the dataset's gnss files again"):
        read_motion(path, 0.0)
    for content, message in (
        (b"1 2 3\n", r"a\.txt has 3 numbers in its first line, but the receiver writes 28"),
        (b"", "has 0 numbers"),
        (b"1.5 " * 28, "does not begin with a line of whole numbers"),
        (b"\xff\xfe\x00", "does not begin with a line of whole numbers"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_motion(path, 0.0)
    for speed, rate, message in (
        (-1, 0, r"gSpeed -1 .*0 to 100000 mm/s"),
        (200_000, 0, "gSpeed 200000"),
        (0, 40_000_000, "angular rates 0, 0, 40000000"),
    ):
        write(path, speed, (0, 0, rate))
        with pytest.raises(DataError, match=message):
            read_motion(path, 0.0)
