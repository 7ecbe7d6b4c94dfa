"""Thermal cameras: radiometric counts to degrees Celsius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.files import EXTENSIONS, read_array

ZERO_CELSIUS = 273.15
COLDEST = -100.0
"""Degrees Celsius. A picture whose median is below was read with the wrong scale: no scene on Earth is that cold."""


@dataclass(frozen=True)
class Planck:
    """A FLIR camera's own calibration; ``exiftool -Planck*`` prints it for a radiometric JPEG."""

    r1: float = math.nan
    b: float = math.nan
    f: float = math.nan
    o: float = math.nan
    """``PlanckO`` as exiftool prints it, mostly negative. FLIR's GigE manuals write S - O and give it the other sign."""
    r2: float = 1.0
    """1 in FLIR's GigE manuals, whose R is R1 / R2."""

    def __post_init__(self) -> None:
        for name in ("r1", "b", "f", "r2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"planck.{name} is {value}; give the camera's own constant, above 0.")
        if not math.isfinite(self.o):
            raise RequestError(f"planck.o is {self.o}; give the camera's own constant.")

    def counts(self, celsius: float) -> float:
        """What a black body of this temperature gives: R1 / (R2 (exp(B / T) - F)) - O."""
        return self.r1 / (self.r2 * (math.exp(self.b / (celsius + ZERO_CELSIUS)) - self.f)) - self.o


def linear_temperature(counts: np.ndarray, scale: float = 0.01, offset: float = -ZERO_CELSIUS) -> np.ndarray:
    """Counts that are linear in temperature to degrees Celsius: scale x counts + offset.

    FLIR's TLinear: 0.01 K per count (Lepton, Duo) or 0.04 K (Ax5 and Duo Pro R at high resolution; 0.4 K at low), from
    absolute zero.

    Returns:
        Float32 of the same shape. Counts of 0 say that nothing was measured and become NaN.
    """
    return np.where(counts > 0, counts * np.float64(scale) + offset, np.nan).astype(np.float32)


def planck_temperature(
    counts: np.ndarray,
    planck: Planck,
    emissivity: float = 1.0,
    reflected: float = 20.0,
    transmission: float = 1.0,
    atmosphere: float = 20.0,
) -> np.ndarray:
    """Counts that are linear in radiance to degrees Celsius.

    The camera sees S = e t S_object + (1 - e) t S_reflected + (1 - t) S_atmosphere, where each S is what a black body of that
    temperature gives; then T = B / ln(R1 / (R2 (S_object + O)) + F). Sources: the measurement formula of FLIR's user manuals,
    and the constants as exiftool names them.

    Args:
        counts: any shape, raw values as the sensor gave them (16 bits, or 14).
        planck: the camera's constants.
        emissivity: e of what is looked at, above 0 to 1. Skin 0.98, asphalt 0.95, bare metal 0.1 to 0.3.
        reflected: apparent temperature of what it reflects, in degrees Celsius.
        transmission: t of the air (and of a window) in between, above 0 to 1.
        atmosphere: temperature of the air, in degrees Celsius.

    Returns:
        Float32 of the same shape; NaN for counts of 0 and for those no temperature can give.
    """
    seen = np.asarray(counts, dtype=np.float64)
    beside = (1 - emissivity) * transmission * planck.counts(reflected) + (1 - transmission) * planck.counts(atmosphere)
    radiance = (seen - beside) / (emissivity * transmission) + planck.o
    radiance = np.where((seen > 0) & (radiance > 0), radiance, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        kelvin = planck.b / np.log(planck.r1 / (planck.r2 * radiance) + planck.f)
    return np.where(kelvin > 0, kelvin - ZERO_CELSIUS, np.nan).astype(np.float32)


@dataclass(frozen=True)
class ThermalEncoder:
    """Radiometric pictures to degrees Celsius.

    A saturated pixel keeps its temperature, which is then the least that it can have: the hottest thing in a picture must not
    turn into a hole. ``saturated: hole`` makes it one.
    """

    kind: ClassVar[str] = "thermal"
    suffixes: ClassVar[tuple[str, ...]] = EXTENSIONS

    formula: Literal["linear", "planck"] = "linear"
    scale: float = 0.01
    """``linear``: degrees per count."""
    offset: float = -ZERO_CELSIUS
    """``linear``: degrees Celsius of count 0."""
    planck: Planck | None = None
    """``planck``: the camera's constants ``{r1, b, f, o, r2}``."""
    emissivity: float = 1.0
    reflected: float = 20.0
    """Degrees Celsius."""
    transmission: float = 1.0
    atmosphere: float = 20.0
    """Degrees Celsius."""
    bits: int = 16
    """Of the sensor; the largest count is 2^bits - 1. Many 16-bit files hold 14."""
    saturated: Literal["keep", "hole"] = "keep"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise RequestError(f"scale is {self.scale} degrees per count; it must be above 0.")
        if self.formula == "planck" and self.planck is None:
            raise RequestError("formula is planck, but the constants are missing; give planck: {r1, b, f, o, r2}.")
        for name in ("emissivity", "transmission"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise RequestError(f"{name} is {value}; it must be above 0 and at most 1.")
        for name in ("offset", "reflected", "atmosphere"):
            value = getattr(self, name)
            if not -ZERO_CELSIUS <= value < math.inf:
                raise RequestError(f"{name} is {value} degrees Celsius; it must be above absolute zero.")
        if not 8 <= self.bits <= 16:
            raise RequestError(f"bits is {self.bits}; it must be between 8 and 16.")

    @property
    def channels(self) -> tuple[str, ...]:
        return ("temperature",)

    @property
    def spec(self) -> dict[str, Any]:
        return {"like": "thermal", "unit": "degrees Celsius"}

    def read(self, path: Path) -> np.ndarray:
        """``(H, W)`` counts as stored, uint16 (uint8 or float32 where the file holds these)."""
        stored = read_array(path, channels=1)
        if stored.ndim != 2:
            raise DataError(
                f"{path} has the shape {stored.shape}; radiometric counts have one channel, pictures of them three."
            )
        if stored.dtype == np.uint8:
            raise DataError(
                f"{path} holds 8-bit values, a picture without temperatures; export the radiometric 16-bit counts."
            )
        return stored

    def encode(self, raw: np.ndarray, camera: Any = None) -> np.ndarray:
        """``(H, W, 1)`` float32, degrees Celsius; NaN where nothing was measured. ``camera`` is not needed."""
        largest = 2**self.bits - 1
        highest = np.fmax.reduce(raw, axis=None, initial=0)  # NaN are passed over
        if highest > largest:
            raise DataError(
                f"the thermal picture holds counts up to {highest:g}, but {self.bits} bits end at {largest}; "
                "correct bits (are the two bytes of each count swapped?)."
            )
        if self.planck is not None and self.formula == "planck":
            celsius = planck_temperature(
                raw, self.planck, self.emissivity, self.reflected, self.transmission, self.atmosphere
            )
        else:
            celsius = linear_temperature(raw, self.scale, self.offset)
        if self.saturated == "hole":
            celsius[raw >= largest] = np.nan
        measured = celsius[np.isfinite(celsius)]
        if len(measured) and np.median(measured) < COLDEST:
            raise DataError(
                f"half of the thermal picture is below {np.median(measured):.0f} degrees Celsius, which no scene is; "
                "correct scale and offset (0.01 or 0.04 K per count?) or the Planck constants."
            )
        return celsius[..., None]
