"""From the event camera's pixels to another camera's: computed once for every pixel, looked up for every event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlesam.errors import DataError


@dataclass(frozen=True)
class PixelTable:
    """Where each pixel of the event camera lies in another picture."""

    source: tuple[int, int]
    """(width, height) of the event camera."""
    size: tuple[int, int]
    """(width, height) of the picture that events are moved to."""
    index: np.ndarray
    """``(source height * source width,)`` int32: row * width + column in that picture; width * height outside of it."""
    seen: np.ndarray
    """``(height, width)`` bool: where that picture lies in the event camera's field of view."""


def rectification(
    source: tuple[int, int],
    matrix: np.ndarray,
    distortion: np.ndarray | None,
    rotation: np.ndarray,
    target: tuple[int, int],
    target_matrix: np.ndarray,
) -> PixelTable:
    """The event camera's pixels in the plane of another camera, as if everything were infinitely far away.

    u' ~ K' R undistort(K, d, u). The two cameras' distance is left out, since events have no depth: a point at Z metres is
    off by f b / Z pixels, f the focal length of the target in pixels and b the distance in metres. MUSES projects its
    event camera this way (stereo rectification and back).

    Args:
        source, target: (width, height) of the event camera and of the other one.
        matrix, target_matrix: 3x3 camera matrices K and K', in pixels.
        distortion: OpenCV's coefficients of the event camera, None for none. The other picture is taken as undistorted.
        rotation: 3x3, R: from the event camera's axes to the other camera's.

    Returns:
        A table; pixels go to the nearest pixel. What is behind the other camera, or where the distortion cannot be undone, goes
        outside.
    """
    import cv2

    matrix, target_matrix, rotation = (np.asarray(m, dtype=np.float64) for m in (matrix, target_matrix, rotation))
    lens = None if distortion is None else np.asarray(distortion, dtype=np.float64)
    pixels = _grid(*source)
    rays = cv2.undistortPoints(pixels[:, None], matrix, lens)[:, 0]
    if lens is not None:
        rays = _undistorted(rays, pixels, matrix, lens)
    turned = _homogeneous(rays) @ (target_matrix @ rotation).T
    with np.errstate(divide="ignore", invalid="ignore"):
        places = turned[:, :2] / turned[:, 2:]
    places[~(turned[:, 2] > 0)] = np.nan

    across, down = cv2.initUndistortRectifyMap(matrix, lens, rotation, target_matrix, target, cv2.CV_32FC1)
    seen = _inside(np.stack([across.ravel(), down.ravel()], axis=1), source)
    back = _homogeneous(_grid(*target)) @ (np.linalg.inv(target_matrix).T @ rotation)  # R^-1 K'^-1 u', as rows
    # Far outside of its field of view a distortion polynomial folds back into the picture, and so does what is behind.
    reach = np.nanmax(np.square(rays).sum(axis=1))
    seen &= (back[:, 2] > 0) & (np.square(back[:, :2]).sum(axis=1) <= 1.02 * reach * np.square(back[:, 2]))
    return PixelTable(source, target, _index(places, target), seen.reshape(target[1], target[0]))


def table_from_map(places: np.ndarray, target: tuple[int, int]) -> PixelTable:
    """A table from a given map.

    Args:
        places: ``(H, W, 2)``, the column and row that each pixel of the event camera goes to, as in DSEC's
            ``rectify_maps.h5``. NaN: nowhere.
        target: (width, height) of the picture that it leads to.
    """
    import cv2

    places = np.asarray(places, dtype=np.float64)
    if places.ndim != 3 or places.shape[2] != 2:
        raise DataError(
            f"a rectify map has the shape {places.shape}; it needs (H, W, 2), column and row for every pixel."
        )
    index = _index(places.reshape(-1, 2), target)
    reached = np.zeros(target[0] * target[1] + 1, np.uint8)
    reached[index] = 1
    # A map that magnifies leaves gaps between the pixels that it reaches; these are seen all the same.
    reached = cv2.morphologyEx(reached[:-1].reshape(target[1], target[0]), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return PixelTable((places.shape[1], places.shape[0]), target, index, reached > 0)


def _grid(width: int, height: int) -> np.ndarray:
    """``(height * width, 2)`` float64: column and row of every pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2).astype(np.float64)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _project(rays: np.ndarray, matrix: np.ndarray, lens: np.ndarray | None) -> np.ndarray:
    """Pixels of rays (x / z, y / z), with distortion."""
    import cv2

    zero = np.zeros(3)
    return cv2.projectPoints(_homogeneous(rays)[:, None], zero, zero, matrix, lens)[0][:, 0]


def _undistorted(rays: np.ndarray, pixels: np.ndarray, matrix: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """Rays whose distorted pixels are ``pixels``, from OpenCV's as a start: it stops after a few iterations. NaN: none found."""
    focal = matrix[[0, 1], [0, 1]]
    todo = np.arange(len(rays))
    for _ in range(30):
        missed = pixels[todo] - _project(rays[todo], matrix, lens)
        todo, missed = (kept[~(np.abs(missed).max(axis=1) < 1e-4)] for kept in (todo, missed))
        if not len(todo):
            return rays
        rays[todo] += missed / focal
    rays[todo[~(np.abs(pixels[todo] - _project(rays[todo], matrix, lens)).max(axis=1) < 0.25)]] = np.nan
    return rays


def _inside(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether the nearest pixel is one of the picture."""
    return np.all((places >= -0.5) & (places < np.array(size) - 0.5), axis=1)


def _index(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    inside = _inside(places, size)
    whole = np.floor(np.where(inside[:, None], places, 0) + 0.5).astype(np.int64)
    return np.where(inside, whole[:, 1] * size[0] + whole[:, 0], size[0] * size[1]).astype(np.int32)
