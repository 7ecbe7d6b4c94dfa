"""Hyperspectral cameras: cubes of any number of bands to reflectances, and to the bands that a model takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.envi import Cube, read_envi
from mlesam.sensors.files import read_array


def read_cube(path: str | Path, bands: int | None = None) -> Cube:
    """A cube of an ENVI header (``.hdr``), a TIFF or a ``.npy``; ``bands`` tells which axis of the last two holds them."""
    path = Path(path)
    if path.suffix.lower() == ".hdr":
        return read_envi(path)
    values = read_array(path, channels=bands)
    return Cube(values[..., None] if values.ndim == 2 else values)


def measured(cube: Cube, bands: list[int]) -> np.ndarray:
    """``(H, W, len(bands))`` float32: the bands of these places (from 0), scaled, NaN where nothing was measured."""
    stored = cube.values[..., bands]
    values = np.where(np.isfinite(stored), stored, np.nan).astype(np.float32)
    if cube.missing is not None:
        values[stored == cube.missing] = np.nan
    return values * np.float32(cube.scale)


def reflectance(raw: np.ndarray, white: np.ndarray, dark: np.ndarray | None = None, panel: float = 1.0) -> np.ndarray:
    """Counts to the share of the light that comes back: panel (raw - dark) / (white - dark).

    Args:
        raw: ``(H, W, B)`` counts.
        white: ``(H', W', B)`` counts of a white panel with the same exposure, averaged over its lines; W' is W (each column of
            a line scanner has its own response) or 1.
        dark: the same with the lens covered. None: 0.
        panel: reflectance of the panel, 0.99 for Spectralon.

    Returns:
        ``(H, W, B)`` float32, 0 to 1 and for glints above; NaN where the panel is no brighter than the dark.
    """
    white, dark = (_reference(name, part, raw) for name, part in (("white", white), ("dark", dark)))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = panel * (raw - dark) / (white - dark)
    return np.where(white > dark, values, np.nan).astype(np.float32)


def nearest_bands(
    wavelengths: tuple[float, ...],
    wanted: tuple[float, ...],
    tolerance: float = 20.0,
    good: tuple[bool, ...] | None = None,
) -> list[int]:
    """Places (from 0) of the good bands nearest to each wanted wavelength.

    Args:
        wavelengths, wanted, tolerance: nanometres.

    Raises:
        DataError: a wavelength that no good band is as near to as ``tolerance``, or two with the same nearest band.
    """
    centers = np.where(True if good is None else np.array(good), wavelengths, np.nan)
    found = []
    for wave in wanted:
        away = np.abs(centers - wave)
        best = int(np.nanargmin(away)) if np.isfinite(away).any() else -1
        if best < 0 or away[best] > tolerance:
            place = f"the nearest good band is at {centers[best]:g} nm" if best >= 0 else "no band is good"
            raise DataError(
                f"no band is within {tolerance:g} nm of {wave:g} nm: {place}, of {np.nanmin(wavelengths):g} to "
                f"{np.nanmax(wavelengths):g} nm; choose another wavelength or a larger tolerance."
            )
        if best in found:
            raise DataError(
                f"{wanted[found.index(best)]:g} and {wave:g} nm are both nearest to one band; choose one of them."
            )
        found.append(best)
    return found


def grouped(values: np.ndarray, groups: int) -> np.ndarray:
    """``(H, W, B)`` to ``(H, W, groups)`` float32: means of neighbouring bands, in groups of equal size as near as can be.

    A mean is of the bands that were measured; NaN where none was.
    """
    if not 1 <= groups <= values.shape[2]:
        raise DataError(f"{values.shape[2]} bands cannot make {groups} groups; choose from 1 to {values.shape[2]}.")
    means = []
    for part in np.array_split(values, groups, axis=2):
        there = np.isfinite(part)
        with np.errstate(invalid="ignore"):
            means.append(np.where(there, part, 0).sum(axis=2, dtype=np.float64) / there.sum(axis=2))
    return np.stack(means, axis=2).astype(np.float32)


@dataclass(frozen=True)
class SpectralEncoder:
    """Cubes to chosen bands. One of ``wavelengths``, ``bands`` and ``groups`` says which."""

    kind: ClassVar[str] = "spectral"
    suffixes: ClassVar[tuple[str, ...]] = (".hdr", ".tif", ".tiff", ".npy")

    wavelengths: tuple[float, ...] | None = None
    """Nanometres; the nearest band of each."""
    bands: tuple[int, ...] | None = None
    """Numbers of bands, from 1."""
    groups: int | None = None
    """Means of this many groups of neighbouring bands. As many as there are bands: every band as it is."""
    tolerance: float = 20.0
    """Nanometres that the nearest band may be away."""
    centers: tuple[float, ...] | None = None
    """Nanometres of every band, for files that do not say it."""
    white: str | None = None
    """Recording of a white panel; turns counts into reflectances."""
    dark: str | None = None
    """Recording with the lens covered."""
    panel: float = 1.0
    """Reflectance of the white panel."""
    scale: float = 1.0
    """Stored value x scale, on top of what a header says."""

    def __post_init__(self) -> None:
        chosen = [name for name in ("wavelengths", "bands", "groups") if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise RequestError(
                f"the bands are chosen by {' and '.join(chosen) or 'nothing'}; give one of wavelengths, bands, groups."
            )
        if self.wavelengths is not None and not (self.wavelengths and all(0 < w < math.inf for w in self.wavelengths)):
            raise RequestError(f"wavelengths is {list(self.wavelengths)}; it must hold nanometres above 0.")
        if self.bands is not None and not (
            self.bands and min(self.bands) >= 1 and len(set(self.bands)) == len(self.bands)
        ):
            raise RequestError(f"bands is {list(self.bands)}; it must hold numbers from 1, each once.")
        if self.groups is not None and self.groups < 1:
            raise RequestError(f"groups is {self.groups}; it must be at least 1.")
        if not self.tolerance >= 0:
            raise RequestError(f"tolerance is {self.tolerance} nm; it must be at least 0.")
        if self.dark is not None and self.white is None:
            raise RequestError("dark is given without white; reflectance needs both, or white alone.")
        for name in ("panel", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be above 0.")

    @property
    def channels(self) -> tuple[str, ...]:
        if self.wavelengths is not None:
            return tuple(f"{wave:g} nm" for wave in self.wavelengths)
        if self.bands is not None:
            return tuple(f"band {number}" for number in self.bands)
        return tuple(f"group {i + 1} of {self.groups}" for i in range(self.groups or 0))

    @property
    def spec(self) -> dict[str, Any]:
        return {}

    def read(self, path: Path) -> np.ndarray:
        """``(H, W, B)`` float32: the bands that are needed (all good ones for groups), as reflectances where ``white`` is given;
        NaN where nothing was measured."""
        cube = read_cube(path, None if self.centers is None else len(self.centers))
        bands = self._places(cube, Path(path))
        values = measured(cube, bands)
        if self.white is not None:
            white = self._reference(self.white, bands, cube)
            dark = None if self.dark is None else self._reference(self.dark, bands, cube)
            values = reflectance(values, white, dark, self.panel)
        return values * np.float32(self.scale)

    def encode(self, raw: np.ndarray, camera: Any = None) -> np.ndarray:
        """``(H, W, C)`` float32 of what :meth:`read` returned; ``camera`` is not needed."""
        return raw if self.groups is None else grouped(raw, self.groups)

    def _places(self, cube: Cube, path: Path) -> list[int]:
        count = cube.values.shape[2]
        if self.wavelengths is not None:
            centers = self.centers or cube.wavelengths
            if centers is None:
                raise DataError(
                    f"{path} does not say its bands' wavelengths; list them as centers, or choose bands by number."
                )
            if len(centers) != count:
                raise DataError(f"{path} has {count} bands, but centers has {len(centers)}; give one for each band.")
            try:
                return nearest_bands(centers, self.wavelengths, self.tolerance, cube.good)
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        if self.bands is not None:
            if max(self.bands) > count:
                raise DataError(
                    f"{path} has {count} bands, but bands names {max(self.bands)}; choose from 1 to {count}."
                )
            return [number - 1 for number in self.bands]
        return [i for i in range(count) if cube.good is None or cube.good[i]]

    def _reference(self, path: str, bands: list[int], cube: Cube) -> np.ndarray:
        reference = read_cube(path, cube.values.shape[2])
        if reference.values.shape[2] != cube.values.shape[2]:
            raise DataError(
                f"{path} has {reference.values.shape[2]} bands and the recording {cube.values.shape[2]}; "
                "record the reference with the same camera and settings."
            )
        return measured(reference, bands)


def _reference(name: str, values: np.ndarray | None, raw: np.ndarray) -> np.ndarray:
    """The mean line of a reference, ``(W or 1, B)`` float64."""
    if values is None:
        return np.zeros((1, raw.shape[2]))
    if values.ndim != 3 or values.shape[2] != raw.shape[2] or values.shape[1] not in (1, raw.shape[1]):
        raise DataError(
            f"the {name} reference has the shape {values.shape}, the recording {raw.shape}; it needs the same bands, and the "
            "same columns or one."
        )
    return values.mean(axis=0, dtype=np.float64)
