"""Light and air: what the hour and the weather do to a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlesam.world.draws import Draws

CONDITIONS = ("day", "night", "fog", "rain", "glare")
ROTA = ("day", "night", "fog", "day", "night", "rain", "day", "night", "glare", "night")
"""Conditions of successive frames: a dataset of any size has all of them in these shares."""


@dataclass(frozen=True)
class Weather:
    """Light and air of one frame.

    Attributes:
        name: one of ``CONDITIONS``. sun: (3,) unit vector to the sun. direct, ambient: (3,) light by colour.
        sky: (3,) radiance of the sky. haze: extinction per metre of visible light. wet: 0..1, how wet surfaces are.
        air: degrees Celsius. warming: share of full sunshine that has warmed the surfaces.
    """

    name: str
    sun: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    sky: np.ndarray
    haze: float
    wet: float
    air: float
    warming: float

    @property
    def dark(self) -> bool:
        return self.name == "night"


def weather(name: str, draws: Draws) -> Weather:
    """Draw the light and air of a condition."""
    height = draws.uniform(0.45, 0.9)
    across = draws.uniform(-1.0, 1.0)
    forward = draws.uniform(-1.0, 1.0)
    air = draws.uniform(12.0, 24.0)
    haze = 0.0008
    direct, ambient, sky = (1.0, 0.95, 0.86), (0.28, 0.31, 0.36), (0.55, 0.70, 0.95)
    wet = warming = 0.0
    if name == "day":
        warming = draws.uniform(0.5, 1.0)
    elif name == "night":
        glow = draws.uniform(0.4, 1.2)
        direct, ambient, sky = (0.0, 0.0, 0.0), (0.0011 * glow, 0.0012 * glow, 0.0016 * glow), (0.002, 0.002, 0.003)
        air = draws.uniform(2.0, 14.0)
    elif name == "fog":
        haze = draws.uniform(0.04, 0.085)
        direct, ambient, sky = (0.06, 0.06, 0.06), (0.42, 0.43, 0.44), (0.62, 0.63, 0.64)
        air, warming = draws.uniform(4.0, 12.0), 0.1
    elif name == "rain":
        haze, wet = draws.uniform(0.008, 0.02), draws.uniform(0.5, 1.0)
        direct, ambient, sky = (0.04, 0.04, 0.04), (0.26, 0.28, 0.30), (0.38, 0.40, 0.43)
        air, warming = draws.uniform(8.0, 15.0), 0.05
    else:  # glare: a low sun ahead
        height, across, forward = draws.uniform(0.08, 0.2), draws.uniform(-0.35, 0.35), 1.0
        direct, sky, haze = (1.3, 1.05, 0.75), (0.85, 0.80, 0.75), 0.003
        warming = draws.uniform(0.3, 0.8)
    vector = np.array([across, height / max(1e-3, 1 - height), forward], dtype=np.float64)
    sun = (vector / np.sqrt((vector * vector).sum())).astype(np.float32)
    as_array = lambda color: np.array(color, dtype=np.float32)  # noqa: E731
    return Weather(name, sun, as_array(direct), as_array(ambient), as_array(sky), haze, wet, air, warming)


def clearness(haze: float, distance: np.ndarray) -> np.ndarray:
    """Share of light that comes through ``distance`` metres of air (Beer and Lambert)."""
    return np.exp(-haze * distance.astype(np.float64)).astype(np.float32)
