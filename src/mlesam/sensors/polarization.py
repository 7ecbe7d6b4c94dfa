"""Polarisation cameras: four polariser angles to how much of the light is polarised, and which way.

A polariser at the angle a lets through I(a) = (S0 + S1 cos 2a + S2 sin 2a) / 2 (Malus' law for partly polarised light). Four
angles 0, 45, 90, 135 degrees give S0, S1, S2; their ratio gives the degree (DoLP) and the angle (AoLP) of linear polarisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.files import EXTENSIONS, read_array

ANGLES = (0, 45, 90, 135)
SONY = (90, 45, 135, 0)
"""Rows of the 2x2 pattern of Sony's IMX250MZR and its relatives: 90 45 over 135 0."""


def demosaic(raw: np.ndarray, pattern: tuple[int, ...] = SONY, method: str = "bilinear") -> np.ndarray:
    """One picture of a sensor whose pixels have polarisers of four angles, to four pictures.

    Args:
        raw: ``(H, W)`` with even sides, linear in light (no gamma).
        pattern: polariser angles of the top left 2x2 pixels, row by row.
        method: ``bilinear`` keeps the size: a missing pixel is the mean of its two or four nearest neighbours of the same angle.
            ``superpixel`` halves it: 2x2 pixels become one, though they look in directions half a pixel apart.
            With either, edges of the scene look polarised, as the four pixels see different sides of them.

    Returns:
        ``(4, H, W)`` or ``(4, H / 2, W / 2)`` float32 in the order 0, 45, 90, 135 degrees.
    """
    import cv2

    if sorted(pattern) != list(ANGLES):
        raise RequestError(f"pattern is {list(pattern)}; it must hold 0, 45, 90 and 135 once each, as in {list(SONY)}.")
    if raw.ndim != 2 or raw.shape[0] % 2 or raw.shape[1] % 2 or 0 in raw.shape:
        raise DataError(f"the mosaic has the shape {raw.shape}; it needs one channel and an even height and width.")
    places = [divmod(pattern.index(angle), 2) for angle in ANGLES]
    if method == "superpixel":
        return np.stack([raw[row::2, column::2] for row, column in places]).astype(np.float32)
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
    planes = []
    for row, column in places:
        plane = np.zeros(raw.shape, np.float32)
        plane[row::2, column::2] = raw[row::2, column::2]
        # Mirroring about the outermost pixels keeps the pattern's rhythm beyond the border.
        planes.append(cv2.filter2D(plane, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))
    return np.stack(planes)


def stokes(pictures: np.ndarray) -> np.ndarray:
    """Four pictures to the linear Stokes parameters, by least squares.

    Args:
        pictures: ``(4, ...)`` at 0, 45, 90, 135 degrees, linear in light.

    Returns:
        ``(3, ...)`` float64: S0 = (I0 + I45 + I90 + I135) / 2, S1 = I0 - I90, S2 = I45 - I135, in the pictures' unit.
    """
    if len(pictures) != 4:
        raise DataError(f"there are {len(pictures)} pictures; polarisation needs four, at 0, 45, 90 and 135 degrees.")
    i0, i45, i90, i135 = np.asarray(pictures, dtype=np.float64)
    return np.stack([(i0 + i45 + i90 + i135) / 2, i0 - i90, i45 - i135])


def degree(parameters: np.ndarray, dark: float = 0.0) -> np.ndarray:
    """DoLP, sqrt(S1^2 + S2^2) / S0 of ``(3, ...)``: float32 from 0 to 1; NaN where S0 is ``dark`` or below.

    Noise makes it too large, most where there is little light, and above 1 it is cut to 1.
    """
    s0, s1, s2 = parameters
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(s0 > dark, np.minimum(np.hypot(s1, s2) / s0, 1), np.nan).astype(np.float32)


def angle(parameters: np.ndarray, dark: float = 0.0) -> np.ndarray:
    """AoLP, atan2(S2, S1) / 2 of ``(3, ...)``: float32 radians from 0 to pi, against the polariser of 0 degrees; NaN where
    S0 is ``dark`` or below or the light is not polarised at all.

    It jumps between 0 and pi, which are the same polarisation: no input for a network, see :func:`angle_vector`.
    """
    s0, s1, s2 = parameters
    radians = (np.arctan2(s2, s1) / 2).astype(np.float32)
    radians = np.where(radians < 0, radians + np.float32(math.pi), radians)
    radians = np.where(radians < np.float32(math.pi), radians, np.float32(0))  # what rounding brought to pi
    return np.where((s0 > dark) & (np.hypot(s1, s2) > 0), radians, np.float32("nan"))


def angle_vector(parameters: np.ndarray, dark: float = 0.0) -> np.ndarray:
    """``(2, ...)`` float32: sin 2 AoLP and cos 2 AoLP, from -1 to 1.

    Twice the angle, since an angle and that angle + 180 degrees are the same polarisation: these two change smoothly where the
    angle, its sine and its cosine jump. NaN as in :func:`angle`.
    """
    s0, s1, s2 = parameters
    length = np.hypot(s1, s2)
    with np.errstate(divide="ignore", invalid="ignore"):
        vector = np.stack([s2, s1]) / length
    return np.where((s0 > dark) & (length > 0), vector, np.nan).astype(np.float32)


def doubled(sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """``(2, ...)`` float32: sin 2a and cos 2a of pictures that hold sin a and cos a, in any length; NaN where both are 0.

    What MCubeS stores as ``polL_aolp_sin`` and ``polL_aolp_cos`` is of the angle itself, as far as its published ranges tell
    (docs/sensors/polarization.md).
    """
    sine, cosine = np.asarray(sine, dtype=np.float64), np.asarray(cosine, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.stack([2 * sine * cosine, cosine**2 - sine**2]) / (sine**2 + cosine**2)).astype(np.float32)


@dataclass(frozen=True)
class PolarizationEncoder:
    """Recordings of a polarisation camera to degree and angle of linear polarisation."""

    kind: ClassVar[str] = "polarization"
    suffixes: ClassVar[tuple[str, ...]] = EXTENSIONS

    layout: Literal["mosaic", "stack", "files"] = "mosaic"
    """``mosaic``: one raw picture of a sensor with 2x2 polarisers. ``stack``: one file with four channels. ``files``: four
    pictures whose names end in 0, 45, 90, 135, of which the first is named."""
    pattern: tuple[int, ...] = SONY
    """``mosaic``: polariser angles of the top left 2x2 pixels, row by row."""
    order: tuple[int, ...] = ANGLES
    """``stack``: angles of the four channels."""
    demosaic: Literal["bilinear", "superpixel"] = "bilinear"
    output: tuple[Literal["intensity", "dolp", "aolp"], ...] = ("dolp", "aolp")
    """``intensity``: S0 / 2 as a share of ``full``. ``dolp``: one channel. ``aolp``: two, sin and cos of twice the angle."""
    full: float | None = None
    """Largest value of a pixel (4095 for 12 bits). None: of the file's type; 1 for floating-point files. A pixel that reaches it
    in one of the four pictures has no polarisation."""
    dark: float = 0.02
    """Share of ``full`` up to which S0 / 2 is too dark to have a polarisation."""

    def __post_init__(self) -> None:
        for name in ("pattern", "order"):
            if sorted(getattr(self, name)) != list(ANGLES):
                raise RequestError(f"{name} is {list(getattr(self, name))}; it must hold 0, 45, 90 and 135 once each.")
        if not self.output or len(set(self.output)) != len(self.output):
            raise RequestError(
                f"output is {list(self.output)}; it must name at least one of intensity, dolp, aolp, each once."
            )
        if self.full is not None and not 0 < self.full < math.inf:
            raise RequestError(f"full is {self.full}; it must be above 0.")
        if not 0 <= self.dark < 1:
            raise RequestError(f"dark is {self.dark}; it must be at least 0 and below 1, a share of the largest value.")

    @property
    def channels(self) -> tuple[str, ...]:
        names = {"intensity": ("intensity",), "dolp": ("dolp",), "aolp": ("sin 2 aolp", "cos 2 aolp")}
        return tuple(name for part in self.output for name in names[part])

    @property
    def spec(self) -> dict[str, Any]:
        turning = [i for i, name in enumerate(self.channels) if name == "sin 2 aolp"]
        return {"like": "dolp", "mirror_negates": turning}

    def read(self, path: Path) -> np.ndarray:
        """``(H, W)`` of a mosaic, else ``(H, W, 4)`` in the order 0, 45, 90, 135 degrees; as stored."""
        path = Path(path)
        if self.layout == "mosaic":
            stored = read_array(path, channels=1)
            if stored.ndim != 2:
                raise DataError(
                    f"{path} has the shape {stored.shape}; a mosaic has one channel (set layout for other files)."
                )
            return stored
        if self.layout == "stack":
            stored = read_array(path, channels=4)
            if stored.ndim != 3 or stored.shape[2] != 4:
                raise DataError(
                    f"{path} has the shape {stored.shape}; it needs four channels, one for each polariser angle."
                )
            return stored[..., [self.order.index(a) for a in ANGLES]]
        if not path.stem.endswith("0") or path.stem.endswith("90"):
            raise DataError(f"the name of {path} does not end in 0; name the picture at 0 degrees, as in scene_0.png.")
        pictures = [read_array(path.with_name(f"{path.stem[:-1]}{a}{path.suffix}"), channels=1) for a in ANGLES]
        kinds = {(picture.shape, picture.dtype.name) for picture in pictures}
        if len(kinds) > 1 or pictures[0].ndim != 2:
            found = ", ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds))
            raise DataError(f"the four pictures of {path} are {found}; they need one channel, one size and one type.")
        return np.stack(pictures, axis=-1)

    def encode(self, raw: np.ndarray, camera: Any = None) -> np.ndarray:
        """``(H, W, C)`` float32, half the size with ``superpixel``; NaN where light is too dark, too bright or not polarised.

        ``camera`` is not needed.
        """
        full = self.full or (1.0 if raw.dtype.kind == "f" else float(np.iinfo(raw.dtype).max))
        highest = np.fmax.reduce(raw, axis=None, initial=0)
        if highest > full:
            raise DataError(
                f"the polarisation picture holds values up to {highest:g}, but full is {full:g}; correct full."
            )
        if raw.ndim == 2:
            pictures = demosaic(raw, self.pattern, self.demosaic)
            # A full pixel spoils all that is interpolated from it.
            bright = demosaic((raw >= full).astype(np.float32), self.pattern, self.demosaic).max(axis=0) > 0
        else:
            pictures = np.moveaxis(raw, -1, 0)
            bright = (pictures >= full).any(axis=0)
        parameters = stokes(pictures)
        dark = 2 * self.dark * full
        parts = {
            "intensity": lambda: (parameters[:1] / (2 * full)).astype(np.float32),
            "dolp": lambda: np.where(bright, np.float32("nan"), degree(parameters, dark))[None],
            "aolp": lambda: np.where(bright, np.float32("nan"), angle_vector(parameters, dark)),
        }
        return np.moveaxis(np.concatenate([parts[part]() for part in self.output]), 0, -1)
