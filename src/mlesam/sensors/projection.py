"""Points in space to a picture on the camera plane, in which the nearest point hides those behind it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera, Transform
from mlesam.sensors.motion import ConstantTwist, InterpolatedPoses

Motion = ConstantTwist | InterpolatedPoses
Keep = Literal["nearest", "strongest"]

FORWARD_LEFT_UP = Transform.from_parts([[0, -1, 0], [0, 0, -1], [1, 0, 0]], [0, 0, 0])
"""From the axes of most LiDARs and vehicles (x forward, y left, z up) to those of a camera that looks forward."""


def project_points(
    points: np.ndarray,
    camera: Camera,
    to_camera: Transform,
    *,
    nearest: float = 1.0,
    dilate: int = 1,
    keep: Keep = "nearest",
    times: np.ndarray | None = None,
    motion: Motion | None = None,
) -> np.ndarray:
    """Points of a sensor as a picture on the camera plane.

    A point falls on the pixel whose middle is nearest. Dropped are points behind the camera, outside the picture, or with
    a value that is not finite. Where several points fall on one pixel, the one nearest to the sensor is kept, and of equally
    near ones the first.

    Args:
        points: ``(N, 3 + K)``: x, y, z in metres in the sensor's axes, z up, and K further values, as a rule intensity.
        camera: the picture's size, matrix and lens.
        to_camera: from the sensor's axes to the camera's.
        nearest: metres; points nearer to the sensor are dropped (the vehicle itself, dust on the window).
        dilate: side in pixels of the square that a point paints, centred on it; a side of 2 reaches one pixel to the right and
            down, 4 two pixels to the right and down and one to the left and up. Where squares overlap, the point that would be
            kept on one pixel is kept, with all of its values.
        keep: ``strongest`` keeps the largest of the first further value instead, and of equally strong points the first.
        times: ``(N,)`` seconds, when each point was measured; needed for ``motion``.
        motion: of the sensor. The points are brought to the time of the exposure before anything else.

    Returns:
        ``(H, W, 2 + K)`` float32: range (m, distance from the sensor), the K further values, height (m, z in the sensor's
        axes). NaN where nothing was measured.

    Raises:
        RequestError: a ``dilate`` below 1, or ``motion`` without ``times``.
        DataError: points of another shape, or times that do not belong to the exposure.
    """
    if dilate < 1:
        raise RequestError(f"dilate is {dilate}, but it must be at least 1 pixel.")
    if points.ndim != 2 or points.shape[1] < (4 if keep == "strongest" else 3):
        raise DataError(f"points have the shape {points.shape}; they need (N, 3 or more): x, y, z and further values.")
    xyz = points[:, :3]
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are dropped at the end
        if motion is not None:
            if times is None or len(times) != len(points):
                raise RequestError("motion needs the time of each point; give as many times, in seconds, as points.")
            xyz = motion.at_exposure(xyz, times)
        # Half of the points of a spinning sensor lie behind the camera: they go first, by one row of the transform.
        (*forward, offset) = to_camera.matrix[2]
        chosen = np.flatnonzero(xyz @ np.array(forward) + offset > 0)
        xyz = xyz[chosen].astype(np.float64)
        pixels, inside = _pixels(xyz, camera, to_camera)
        chosen, pixels, xyz = chosen[inside], pixels[inside], xyz[inside]

        values = np.empty((len(chosen), points.shape[1] - 1), dtype=np.float32)
        values[:, 0] = np.sqrt(np.einsum("ij,ij->i", xyz, xyz))
        values[:, 1:-1] = points[chosen, 3:]
        values[:, -1] = xyz[:, 2]
    usable = (values[:, 0] >= nearest) & np.isfinite(values).all(axis=1)
    if not usable.all():
        pixels, values = pixels[usable], values[usable]
    return _paint(pixels, values, values[:, 0] if keep == "nearest" else -values[:, 1], camera.size, dilate)


def _pixels(xyz: np.ndarray, camera: Camera, to_camera: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Flat index of the pixel of each point, and the rows of those that are inside the picture."""
    width, height = camera.size
    uv, _ = camera.project(to_camera.apply(xyz))
    uv += 0.5
    np.floor(uv, out=uv)
    u, v = uv[:, 0], uv[:, 1]
    inside = np.flatnonzero((u >= 0) & (u < width) & (v >= 0) & (v < height))  # NaN is not inside
    flat = np.zeros(len(xyz), dtype=np.intp)
    flat[inside] = v[inside] * width + u[inside]
    return flat, inside


def _paint(pixels: np.ndarray, values: np.ndarray, cost: np.ndarray, size: tuple[int, int], dilate: int) -> np.ndarray:
    """The picture in which each pixel holds the values of least cost, of equal ones the first. No cost may be NaN."""
    width, height = size
    least = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(least, pixels, cost)
    winners = np.flatnonzero(least[pixels] == cost)
    if dilate == 1:
        picture = np.full((height * width, values.shape[1]), np.nan, dtype=np.float32)
        # NumPy assigns in order, so that of equal points the first comes last and stays.
        winners = winners[::-1]
        picture[pixels[winners]] = values[winners]
        return picture.reshape(height, width, -1)

    import cv2

    # The rank of a point, by cost and order, instead of its cost: the least rank in a window also says whose it is.
    winners = winners[_order(cost[winners])]
    nobody = len(winners)
    exact = np.float32 if nobody < 2**24 else np.float64  # every rank must be a number of its own
    ranks = np.full(height * width, nobody, dtype=exact)
    ranks[pixels[winners[::-1]]] = np.arange(nobody, dtype=exact)[::-1]
    del least
    ranks = cv2.erode(ranks.reshape(height, width), np.ones((dilate, dilate), dtype=np.uint8))
    ranked = np.full((nobody + 1, values.shape[1]), np.nan, dtype=np.float32)
    ranked[:-1] = values[winners]
    picture = np.empty((height, width, values.shape[1]), dtype=np.float32)
    for top in range(0, height, 32):  # a few rows at a time: whole numbers for all would be the largest array here
        some = slice(top, top + 32)
        np.take(ranked, ranks[some].astype(np.intp), axis=0, out=picture[some], mode="clip")
    return picture


def _order(cost: np.ndarray) -> np.ndarray:
    """``np.argsort(cost, kind="stable")`` of float32, in half the time: cost and index in one whole number, sorted as such."""
    bits = (cost + 0.0).view(np.int32)  # -0 becomes 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # below 0 the bits of a float count downwards
    keys = bits.astype(np.int64) << 32 | np.arange(len(cost))
    keys.sort()
    return keys & 0xFFFFFFFF


def no_point_inside(points: np.ndarray, camera: Camera, to_camera: Transform, nearest: float) -> DataError:
    """The error for a calibration that brings no point into the picture: counts, what to check, and what would help."""

    def count(transform: Transform) -> int:
        return len(_pixels(xyz, camera, transform)[1])

    xyz = points[np.isfinite(points).all(axis=1), :3].astype(np.float64)
    inside, front = count(to_camera), int((to_camera.apply(xyz)[:, 2] > 0).sum())
    turned_back = Transform.from_parts(to_camera.rotation.T, to_camera.translation)
    mends = [
        ("the inverse transform", "give the one from the sensor to the camera", to_camera.inverse()),
        ("the transposed rotation", "give R of 'camera point = R sensor point + t'", turned_back),
        ("a turn from x forward, y left, z up", "give the rotation from the sensor's own axes", to_camera @ FORWARD_LEFT_UP),
    ]  # fmt: skip
    counts = [count(transform) for _, _, transform in mends]
    name, mend, _ = mends[int(np.argmax(counts))]
    (_, _, cx), (_, _, cy), _ = camera.matrix
    width, height = camera.size
    if inside:
        advice = f"all of those are nearer than {nearest:g} m, check nearest and the unit of the points"
    elif max(abs(cx / width - 0.5), abs(cy / height - 0.5)) > 0.25:
        advice = (
            f"the camera's matrix has its principal point at ({cx:.0f}, {cy:.0f}), far from the picture's middle: it seems to "
            "belong to pictures of another size"
        )
    elif max(counts) >= 0.05 * len(xyz):
        advice = f"with {name} {max(counts):,} would fall inside: {mend}"
    else:
        advice = (
            "check the axes (a camera's: x right, y down, z forward), the transform's direction and the camera's matrix"
        )
    return DataError(
        f"of {len(points):,} points {front:,} lie in front of the camera and {inside:,} inside its {width} x {height} picture; "
        f"{advice}."
    )
