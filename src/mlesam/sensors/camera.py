"""Where a point in space appears in a picture: a camera's matrix and lens, and rigid transforms between sensors.

Axes of a camera: x right, y down, z forward, metres. Pixels as in OpenCV: the middle of the first pixel is (0, 0), so the
picture reaches from -0.5 to width - 0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlesam.errors import RequestError

Row3 = tuple[float, float, float]
Matrix3 = tuple[Row3, Row3, Row3]

ROTATION_TOLERANCE = 2e-3
"""How far R^T R may be from the identity: a rotation that was written down with three decimals passes."""


def _tuples(value: Sequence | np.ndarray, shape: tuple[int, ...], what: str) -> tuple:
    """Nested tuples of floats of this shape, so that what holds them can be compared and hashed."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RequestError(f"{what} is {value!r}, but it must be {' x '.join(map(str, shape))} numbers.") from None
    if array.shape != shape:
        raise RequestError(f"{what} has the shape {array.shape}, but it must be {shape}.")
    if not np.isfinite(array).all():
        raise RequestError(f"{what} is {array.tolist()}; every value must be finite.")
    rows = array.tolist()
    return tuple(tuple(row) for row in rows) if len(shape) == 2 else tuple(rows)


@dataclass(frozen=True)
class Camera:
    """A camera: its picture's size, matrix and lens.

    Raises:
        RequestError: a matrix, size or number of coefficients that no camera has.
    """

    matrix: Matrix3
    """K in pixels: ``[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]``, for pictures of ``size``."""
    size: tuple[int, int]
    """Width and height in pixels."""
    distortion: tuple[float, ...] = ()
    """OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6]]: 0, 4, 5 or 8 numbers. Empty: the pictures are undistorted."""

    def __post_init__(self) -> None:
        matrix = _tuples(self.matrix, (3, 3), "matrix")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        object.__setattr__(self, "distortion", _tuples(self.distortion, (len(self.distortion),), "distortion"))
        if matrix[2] != (0, 0, 1):
            turned = "; it is transposed" if tuple(row[2] for row in matrix) == (0, 0, 1) else ""
            raise RequestError(f"matrix has the last row {list(matrix[2])}, but it must be [0, 0, 1]{turned}.")
        if matrix[1][0] != 0 or min(matrix[0][0], matrix[1][1]) <= 0:
            raise RequestError(
                f"matrix is {[list(row) for row in matrix]}, but it must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with "
                "focal lengths above 0."
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise RequestError(f"size is {list(self.size)}, but it must be width and height in pixels.")
        if len(self.distortion) not in (0, 4, 5, 8):
            raise RequestError(
                f"distortion has {len(self.distortion)} numbers; OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6]] are 4, 5 or 8."
            )

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points appear.

        Args:
            points: ``(N, 3)`` in the camera's axes, metres.

        Returns:
            ``(N, 2)`` float64 pixels (u right, v down), NaN for a point that the camera cannot see: behind it (z <= 0),
            or so far aside that the lens model would fold it back. And ``(N,)`` float64 depth, the points' z in metres.
            A point may lie outside the picture, see :attr:`size`.
        """
        points = np.asarray(points, dtype=np.float64)
        depth = points[:, 2]
        front = depth > 0
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.divide(points[:, 0], depth, out=np.full(len(points), np.nan), where=front)
            y = np.divide(points[:, 1], depth, out=np.full(len(points), np.nan), where=front)
            if any(self.distortion):
                x, y = self._distorted(x, y)
            (fx, skew, cx), (_, fy, cy), _ = self.matrix
            uv = np.empty((len(points), 2))
            uv[:, 0] = fx * x + cx
            uv[:, 1] = fy * y + cy
            if skew:
                uv[:, 0] += skew * y
        return uv, depth

    def _distorted(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """OpenCV's rational lens model (documentation of calib3d); NaN beyond the radius up to which it is one to one."""
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.distortion, *[0.0] * (8 - len(self.distortion)))
        s = x * x + y * y
        factor = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))
        factor = np.where(s < self.squared_radius_limit, factor, np.nan)
        return (
            x * factor + 2 * p1 * x * y + p2 * (s + 2 * x * x),
            y * factor + p1 * (s + 2 * y * y) + 2 * p2 * x * y,
        )

    @cached_property
    def squared_radius_limit(self) -> float:
        """Largest (x/z)^2 + (y/z)^2 that the lens model was made for.

        The distorted radius r n(r^2) / d(r^2) must grow with r. Where its derivative is 0 the model turns round, and what
        lies beyond would appear inside the picture again, where the lens shows something else.
        """
        k1, k2, _, _, k3, k4, k5, k6 = (*self.distortion, *[0.0] * (8 - len(self.distortion)))
        poly = np.polynomial.Polynomial  # in s = r^2
        n, d, s = poly([1, k1, k2, k3]), poly([1, k4, k5, k6]), poly([0, 1])
        slope = (n + 2 * s * n.deriv()) * d - 2 * s * n * d.deriv()  # numerator of the derivative by r
        # A leading coefficient this small matters beyond 84 degrees alone, and roots cannot be computed with it.
        roots = np.concatenate([slope.trim(1e-12).roots(), d.trim(1e-12).roots()])
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
        return float(real.min()) if len(real) else float("inf")

    def resized(self, size: tuple[int, int]) -> Camera:
        """The same camera after its pictures were scaled to another width and height (with pixel middles kept apart)."""
        width, height = size
        if min(width, height) < 1:
            raise RequestError(f"a picture cannot have the size {width} x {height}; give at least one pixel.")
        across, down = width / self.size[0], height / self.size[1]
        (fx, skew, cx), (_, fy, cy), last = self.matrix
        # The corner of the picture, -0.5, stays the corner.
        matrix = (
            (fx * across, skew * across, (cx + 0.5) * across - 0.5),
            (0.0, fy * down, (cy + 0.5) * down - 0.5),
            last,
        )
        return dataclasses.replace(self, matrix=matrix, size=(width, height))


@dataclass(frozen=True)
class Transform:
    """A rigid motion: ``to = R from + t``. ``a @ b`` is first b, then a.

    Raises:
        RequestError: no 4 x 4 matrix, or one whose upper left part is no rotation.
    """

    matrix: tuple[tuple[float, ...], ...]
    """``[[R, t], [0, 0, 0, 1]]``, metres."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _tuples(self.matrix, (4, 4), "a transform"))
        if self.matrix[3] != (0, 0, 0, 1):
            turned = "; it is transposed" if tuple(row[3] for row in self.matrix) == (0, 0, 0, 1) else ""
            raise RequestError(
                f"a transform has the last row {list(self.matrix[3])}, but it must be [0, 0, 0, 1]{turned}."
            )
        check_rotation(self.rotation)

    @classmethod
    def from_parts(cls, rotation: Sequence | np.ndarray, translation: Sequence | np.ndarray) -> Transform:
        """From a 3 x 3 rotation and a translation of 3 metres."""
        rows = _tuples(rotation, (3, 3), "rotation")
        shift = _tuples(translation, (3,), "translation")
        return cls((*((*row, t) for row, t in zip(rows, shift, strict=True)), (0.0, 0.0, 0.0, 1.0)))

    @cached_property
    def array(self) -> np.ndarray:
        """``(4, 4)`` float64."""
        return np.array(self.matrix)

    @property
    def rotation(self) -> np.ndarray:
        return self.array[:3, :3]

    @property
    def translation(self) -> np.ndarray:
        return self.array[:3, 3]

    def inverse(self) -> Transform:
        back = np.linalg.inv(self.rotation)  # of a rotation with few decimals the transpose is not exactly the way back
        return Transform.from_parts(back, -back @ self.translation)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """``(N, 3)`` points, float64."""
        return np.asarray(points, dtype=np.float64) @ self.rotation.T + self.translation

    def __matmul__(self, first: Transform) -> Transform:
        return Transform.from_parts(
            self.rotation @ first.rotation, self.rotation @ first.translation + self.translation
        )


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A sensor that stands somewhere, turned somehow, beside the camera: what encoders of points have in common."""

    rotation: Matrix3
    """R of ``camera point = R sensor point + t``. The camera's axes are x right, y down, z forward; the sensor's z is up."""
    translation: Row3
    """t, metres: where the sensor stands in the camera's axes."""

    def __post_init__(self) -> None:
        _ = self.to_camera

    @cached_property
    def to_camera(self) -> Transform:
        return Transform.from_parts(self.rotation, self.translation)


def check_rotation(rotation: np.ndarray) -> None:
    """RequestError unless a 3 x 3 matrix is a rotation within ``ROTATION_TOLERANCE``."""
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    determinant = float(np.linalg.det(rotation))
    if deviation > ROTATION_TOLERANCE:
        raise RequestError(
            f"the rotation is none: R^T R differs from the identity by {deviation:.3g} (at most {ROTATION_TOLERANCE:g}) and its "
            f"determinant is {determinant:.3g}, not 1; check its numbers, their order and that nothing is scaled."
        )
    if determinant < 0:
        raise RequestError(
            f"the rotation mirrors: its determinant is {determinant:.3g}, not 1; an axis has the wrong sign, or two rows or "
            "columns are swapped."
        )
