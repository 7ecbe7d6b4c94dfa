"""A moving sensor measures its points one after another: where each was, seen from where the sensor is at one time.

A spinning LiDAR needs 0.1 s for a turn and a spinning radar 0.25 s; at 15 m/s that is 1.5 m and 4 m of driving within one
recording. Times are in seconds of one clock. What else moves is not corrected.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Row3, Transform

MAX_GAP = 1.0
"""Seconds between a point and the exposure. More is no sweep of a sensor but another clock or another unit."""


@dataclass(frozen=True)
class ConstantTwist:
    """Constant velocities, in the sensor's own axes."""

    velocity: Row3
    """Of the sensor over the ground, m/s. A car that drives forward with x forward: ``(15, 0, 0)``."""
    angular_velocity: Row3
    """rad/s about the sensor's axes, by the right hand: with z up, above 0 turns left."""
    time: float
    """The camera's exposure: its middle, seconds."""

    def at_exposure(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Points in the sensor's axes of the time of the exposure.

        A point measured at t is exp(twist (t - time)) p: the integral of the rotation also bends the path of the sensor.

        Args:
            points: ``(N, 3)`` metres, each in the sensor's axes of its own time. times: ``(N,)`` seconds.

        Returns:
            ``(N, 3)`` float64 metres.

        Raises:
            DataError: times that lie more than ``MAX_GAP`` from the exposure.
        """
        points, elapsed = np.asarray(points, dtype=np.float64), _elapsed(times, self.time)
        velocity, turn = np.array(self.velocity, dtype=np.float64), np.array(self.angular_velocity, dtype=np.float64)
        speed = float(np.linalg.norm(turn))
        if speed < 1e-12:
            return points + elapsed[:, None] * velocity
        k = _cross(turn / speed)
        angle = speed * elapsed
        path = (
            elapsed[:, None] * velocity
            + ((1 - np.cos(angle)) / speed)[:, None] * (k @ velocity)
            + (elapsed - np.sin(angle) / speed)[:, None] * (k @ k @ velocity)
        )
        return _turned(points, k, angle) + path

    def seen_from(self, mount: Transform) -> ConstantTwist:
        """The same motion in the axes of another sensor of the vehicle, which a turn moves sideways where it stands aside.

        Args:
            mount: from that sensor's axes to these.
        """
        turn = np.array(self.angular_velocity)
        velocity = mount.rotation.T @ (np.array(self.velocity) + np.cross(turn, mount.translation))
        angular_velocity = mount.rotation.T @ turn
        return dataclasses.replace(
            self, velocity=tuple(velocity.tolist()), angular_velocity=tuple(angular_velocity.tolist())
        )


@dataclass(frozen=True)
class InterpolatedPoses:
    """Two known poses; between them the sensor goes straight and turns evenly about one axis (slerp), and so beyond them."""

    first: Transform
    """Sensor to world at the first time."""
    second: Transform
    times: tuple[float, float]
    """Of the two poses, seconds."""
    time: float
    """The camera's exposure: its middle, seconds."""

    def __post_init__(self) -> None:
        if not self.times[0] < self.times[1]:
            raise RequestError(f"times is {list(self.times)}; the first pose must be earlier than the second.")
        angle = float(np.linalg.norm(_rotation_vector((self.first.inverse() @ self.second).rotation)))
        if angle > 3.0:  # at half a turn the axis is no longer determined
            raise RequestError(
                f"the poses differ by {np.degrees(angle):.0f} degrees; give two that are closer in time."
            )

    def at_exposure(self, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        """As :meth:`ConstantTwist.at_exposure`."""
        points, elapsed = np.asarray(points, dtype=np.float64), _elapsed(times, self.time)
        span = self.times[1] - self.times[0]
        between = self.first.inverse() @ self.second
        vector = _rotation_vector(between.rotation)
        angle = float(np.linalg.norm(vector))
        share = elapsed / span
        shift = share[:, None] * between.translation  # along the first pose's axes
        if angle < 1e-12:
            return points + shift
        k = _cross(vector / angle)
        already = np.full(1, -angle * (self.time - self.times[0]) / span)
        back = _turned(np.eye(3), k, already)  # rows: what the first pose's axes are at the exposure
        return _turned(points, k, angle * share) + shift @ back


def _elapsed(times: np.ndarray, exposure: float) -> np.ndarray:
    elapsed = np.asarray(times, dtype=np.float64) - exposure
    if len(elapsed) and not np.abs(elapsed).max() <= MAX_GAP:
        raise DataError(
            f"the points' times run from {np.min(times):.6f} to {np.max(times):.6f} and the exposure is at {exposure:.6f}, more "
            f"than {MAX_GAP:g} s apart; give both in seconds of the same clock."
        )
    return elapsed


def _cross(axis: np.ndarray) -> np.ndarray:
    """The matrix of the cross product with an axis."""
    x, y, z = axis
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def _turned(points: np.ndarray, k: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: each point turned by its own angle about one axis, given as its cross product."""
    sideways = points @ k.T
    return points + np.sin(angles)[:, None] * sideways + (1 - np.cos(angles))[:, None] * (sideways @ k.T)


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle of a rotation below half a turn."""
    skew = np.array([
        rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1],
    ]) / 2  # fmt: skip
    sine = float(np.linalg.norm(skew))
    angle = float(np.arctan2(sine, (np.trace(rotation) - 1) / 2))
    return skew * (angle / sine) if sine > 1e-12 else skew if angle < 1 else np.array([angle, 0.0, 0.0])
