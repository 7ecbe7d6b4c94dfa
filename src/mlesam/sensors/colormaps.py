"""Turning false-colour exports back into the scalar they were drawn from.

Many cameras export a picture of the measurement instead of the measurement: depth in "jet", thermal in "iron". The
inverse is a nearest-colour search along the declared colour map. A pixel whose colour is far from every colour of the
map (black holes, burnt-in logos) holds no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mlesam.errors import RequestError, did_you_mean

Stops = tuple[tuple[float, float, float], ...]

# Iron, as FLIR cameras export it. The maker publishes no table, so these are colours along the palette, read off exported
# pictures. Temperature grows along the list; spacing follows the distance of the colours, so the result is monotone in
# temperature and not radiometric.
_IRON: Stops = (
    (0, 0, 16), (1, 5, 44), (5, 2, 76), (14, 1, 94), (25, 1, 107), (36, 1, 118), (50, 1, 131), (62, 1, 141),
    (78, 1, 149), (95, 1, 156), (114, 1, 161), (136, 3, 162), (159, 10, 157), (186, 24, 139), (207, 44, 115),
    (226, 65, 85), (237, 85, 62), (246, 104, 40), (251, 132, 17), (254, 159, 4), (254, 184, 3), (254, 202, 11),
    (254, 213, 24), (254, 222, 39), (254, 228, 57), (254, 234, 75), (254, 238, 95), (253, 243, 115), (251, 247, 137),
    (250, 250, 159), (248, 253, 182), (247, 254, 206), (245, 254, 230), (244, 254, 251),
)  # fmt: skip

COLORMAPS = ("jet", "iron", "hot", "gray")
_FAR = 60.0
"""RGB distance beyond which a colour is not on the map (JPEG noise stays below about 40)."""


@lru_cache(maxsize=16)
def lookup_table(colormap: str | Stops) -> np.ndarray:
    """``(256, 3)`` float64 colours from the map's low end to its high end.

    Args:
        colormap: a name in ``COLORMAPS``, or at least two RGB colours (0-255) at equal steps.
    """
    t = np.linspace(0.0, 1.0, 256)
    if colormap == "jet":  # MATLAB's jet: three trapezoids around blue, green and red
        channels = [np.clip(1.5 - np.abs(4 * t - center), 0, 1) for center in (3.0, 2.0, 1.0)]
        return np.stack(channels, axis=1) * 255
    if colormap == "hot":
        return np.stack([np.clip(8 * t / 3, 0, 1), np.clip(8 * t / 3 - 1, 0, 1), np.clip(4 * t - 3, 0, 1)], 1) * 255
    if colormap == "gray":
        return np.repeat(t[:, None] * 255, 3, axis=1)
    if colormap == "iron":
        stops = np.asarray(_IRON, dtype=np.float64)
        position = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(stops, axis=0), axis=1))])
        position /= position[-1]
    elif isinstance(colormap, str):
        raise RequestError(f"unknown colour map {colormap!r}{did_you_mean(colormap, COLORMAPS)}")
    else:
        if len(colormap) < 2 or any(len(stop) != 3 or not all(0 <= v <= 255 for v in stop) for stop in colormap):
            raise RequestError(f"a colour map is a name or at least two RGB colours (0-255), not {colormap!r}.")
        stops = np.asarray(colormap, dtype=np.float64)
        position = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(t, position, stops[:, c]) for c in range(3)], axis=1)


@lru_cache(maxsize=4)
def _inverse_table(colormap: str | Stops) -> np.ndarray:
    """``(64, 64, 64)`` float32: the scalar for each colour of a 6-bit grid, NaN where no colour of the map is near."""
    table = lookup_table(colormap)
    axis = np.arange(64) * 4 + 1.5
    result = np.empty((64, 64, 64), dtype=np.float32)
    green_blue = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    distance_gb = ((green_blue[:, None, :] - table[None, :, 1:]) ** 2).sum(axis=-1)
    for i, red in enumerate(axis):
        distance = distance_gb + (red - table[None, :, 0]) ** 2
        nearest = distance.argmin(axis=1)
        near = np.take_along_axis(distance, nearest[:, None], axis=1)[:, 0] <= _FAR**2
        result[i] = np.where(near, nearest / 255.0, np.nan).reshape(64, 64)
    return result


def scalar_from_colors(picture: np.ndarray, colormap: str | Sequence[Sequence[float]]) -> np.ndarray:
    """Invert a colour map.

    Args:
        picture: ``(H, W, 3)`` uint8.
        colormap: name or RGB stops, see :func:`lookup_table`.

    Returns:
        ``(H, W)`` float32 in 0..1 along the map, within about 0.008; NaN where the colour is not on the map.
    """
    key = colormap if isinstance(colormap, str) else tuple(tuple(float(v) for v in stop) for stop in colormap)
    cell = picture >> 2
    return _inverse_table(key)[cell[..., 0], cell[..., 1], cell[..., 2]]  # type: ignore[arg-type]
