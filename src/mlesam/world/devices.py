"""The cameras and LiDARs that the world can be seen with. Number 0 is the one that the world was frozen with.

Another device changes its own sensor's files and nothing else: streets, labels and the other sensors stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlesam.world.draws import Draws


@dataclass(frozen=True)
class CameraModel:
    """A colour camera.

    Attributes:
        white: factors of red, green and blue. level: mean of the picture that the exposure aims at, 1 is white.
        contrast: how far the response bends into an S; below 0 it is flatter. noise: times that of camera 0.
        softness: how much of a further blur is mixed in; below 0 edges are sharpened. vignette: share of the light that is
            lost in the corners.
    """

    white: tuple[float, float, float] = (1.0, 1.0, 1.0)
    level: float = 0.22
    contrast: float = 0.0
    noise: float = 1.0
    softness: float = 0.0
    vignette: float = 0.0


@dataclass(frozen=True)
class LidarModel:
    """A spinning LiDAR: ``beams`` rows between two elevations (sines), one return every ``step`` of azimuth (tangent).

    Attributes:
        noise: metres, standard deviation of a range. reach: how weak a return it notices, times LiDAR 0. gain: of the
            intensity that it reports.
    """

    beams: int = 40
    low: float = -0.40
    high: float = 0.22
    step: float = 0.016
    noise: float = 0.02
    reach: float = 1.0
    gain: float = 1.0


def camera_model(number: int) -> CameraModel:
    if number == 0:
        return CameraModel()
    draws = Draws("camera", number)
    return CameraModel(
        white=(draws.uniform(0.75, 1.3), 1.0, draws.uniform(0.75, 1.3)),
        level=draws.uniform(0.14, 0.34),
        contrast=draws.uniform(-0.5, 0.8),
        noise=draws.uniform(0.7, 3.0),
        softness=draws.uniform(-0.6, 1.0),
        vignette=draws.uniform(0.0, 0.5),
    )


def lidar_model(number: int) -> LidarModel:
    if number == 0:
        return LidarModel()
    draws = Draws("lidar", number)
    return LidarModel(
        beams=draws.choice((16, 24, 32, 64, 96)),
        low=draws.uniform(-0.45, -0.28),
        high=draws.uniform(0.08, 0.30),
        step=draws.uniform(0.008, 0.03),
        noise=draws.uniform(0.01, 0.08),
        reach=draws.uniform(0.4, 1.8),
        gain=draws.uniform(0.6, 1.5),
    )
