"""Ray casting: which part each pixel shows, how far it is, and where on the part the ray arrives.

Each part is tested only in the window of the picture that its bounding box covers; everything after that is one
operation over all pixels. Arrays are float32, and only operations that IEEE 754 rounds exactly (+ - * / and square root) decide
what a pixel shows, so that every processor draws the same picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlesam.world.scene import BOX, COLUMN, CYLINDER, ELLIPSOID, Ground, bent

NEAR = np.float32(0.15)
GROUND, SKY = -2, -1
"""Rows that stand for the ground and the sky, behind the parts in the table (negative indices)."""

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float32)
_EDGES = np.array([(i, j) for i in range(8) for j in range(i + 1, 8) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) metres. yaw, pitch: sines of the angles to the right and upwards.
        size: height and width in pixels. focal: in pixels.
    """

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    size: tuple[int, int]
    focal: float

    def rotation(self) -> np.ndarray:
        """(3, 3), columns are the camera's right, up and forward in world coordinates."""
        sin_y, sin_p = self.yaw, self.pitch
        cos_y, cos_p = math.sqrt(1 - sin_y * sin_y), math.sqrt(1 - sin_p * sin_p)
        return np.array([
            [cos_y, -sin_y * sin_p, sin_y * cos_p],
            [0.0, cos_p, sin_p],
            [-sin_y, -cos_y * sin_p, cos_y * cos_p],
        ], dtype=np.float32)  # fmt: skip

    def pose(self) -> np.ndarray:
        """(4, 4) camera to world: the rotation's columns and the position."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation(), self.position
        return pose

    def rays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World directions (H, W) by axis, with length 1 along the camera's forward axis: ray parameter = depth."""
        height, width = self.size
        u = ((np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / np.float32(self.focal))[None, :]
        v = ((np.float32(height / 2 - 0.5) - np.arange(height, dtype=np.float32)) / np.float32(self.focal))[:, None]
        r = self.rotation()
        x, y, z = (r[i, 0] * u + r[i, 1] * v + r[i, 2] for i in range(3))
        return x, np.broadcast_to(y, x.shape) if y.shape != x.shape else y, z


@dataclass(frozen=True)
class Hits:
    """What each pixel shows.

    Attributes:
        depth: (H, W) metres along the camera's forward axis, inf in the sky. part: (H, W) row of the table of parts, or
            ``GROUND`` or ``SKY``. rays: directions, three (H, W). camera: where they start.
    """

    depth: np.ndarray
    part: np.ndarray
    rays: tuple[np.ndarray, np.ndarray, np.ndarray]
    camera: Camera

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World coordinates (H, W) by axis of what each pixel shows; the sky is put 1000 m away."""
        depth = np.where(np.isfinite(self.depth), self.depth, np.float32(1000.0))
        ox, oy, oz = (np.float32(p) for p in self.camera.position)
        x, y, z = self.rays
        return ox + depth * x, oy + depth * y, oz + depth * z


def look(camera: Camera, parts: np.ndarray) -> Hits:
    """Cast a ray through every pixel."""
    rays = camera.rays()
    oy = np.float32(camera.position[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[1] < -1e-6, -oy / rays[1], np.float32(np.inf)).astype(np.float32)
    depth = ground
    part = np.where(np.isfinite(ground), GROUND, SKY).astype(np.int32)
    windows = _windows(camera, parts)
    origin = np.array(camera.position, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in np.flatnonzero((windows[:, 1] > windows[:, 0]) & (windows[:, 3] > windows[:, 2])):
            top, bottom, left, right = windows[i]
            window = np.s_[top:bottom, left:right]
            d = tuple(r[window] for r in rays)
            o = origin - parts[i, :3]
            cut(parts[i], o, d, depth[window], part[window], int(i))
    return Hits(depth, part, rays, camera)


def cut(row: np.ndarray, o: Any, d: Any, depth: np.ndarray, part: np.ndarray, index: int) -> None:
    """Intersect one part with rays and enter it where it is nearest so far; ``depth`` and ``part`` are changed in place.

    Args:
        o: starts of the rays relative to the part's centre, by axis. d: directions by axis. Either may be numbers.
    """
    cos, sin = row[COLUMN["cos"]], row[COLUMN["sin"]]
    if sin != 0 or cos != 1:
        o = (cos * o[0] - sin * o[2], o[1], sin * o[0] + cos * o[2])
        d = (cos * d[0] - sin * d[2], d[1], sin * d[0] + cos * d[2])
    hx, hy, hz = row[COLUMN["hx"]], row[COLUMN["hy"]], row[COLUMN["hz"]]
    kind = int(row[COLUMN["kind"]])
    if kind == BOX:
        enter, leave = None, None
        for axis, half in enumerate((hx, hy, hz)):
            inverse = np.float32(1.0) / d[axis]
            middle, reach = -o[axis] * inverse, half * np.abs(inverse)
            low, high = middle - reach, middle + reach
            enter = low if enter is None else np.maximum(enter, low)
            leave = high if leave is None else np.minimum(leave, high)
        hit = (leave >= enter) & (enter > NEAR) & (enter < depth)  # type: ignore[operator]
        t = enter
    elif kind == ELLIPSOID:
        p = (o[0] / hx, o[1] / hy, o[2] / hz)
        q = (d[0] / hx, d[1] / hy, d[2] / hz)
        a = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
        b = p[0] * q[0] + p[1] * q[1] + p[2] * q[2]
        c = p[0] * p[0] + p[1] * p[1] + p[2] * p[2] - np.float32(1.0)
        under = b * b - a * c
        t = (-b - np.sqrt(np.maximum(under, 0))) / a
        hit = (under > 0) & (t > NEAR) & (t < depth)
    else:  # an upright cylinder without its ends, which are never seen from a street
        a = d[0] * d[0] + d[2] * d[2]
        b = o[0] * d[0] + o[2] * d[2]
        c = o[0] * o[0] + o[2] * o[2] - hx * hx
        under = b * b - a * c
        t = (-b - np.sqrt(np.maximum(under, 0))) / a
        height = o[1] + t * d[1]
        hit = (under > 0) & (t > NEAR) & (t < depth) & (np.abs(height) <= hy)
    np.copyto(depth, t, where=hit)  # type: ignore[arg-type]
    part[hit] = index


def _windows(camera: Camera, parts: np.ndarray) -> np.ndarray:
    """(N, 4) top, bottom, left, right of the pixels that each part's bounding box covers; empty where out of sight."""
    rotation = camera.rotation()
    half = parts[:, None, 3:6] * _CORNERS
    cos, sin = parts[:, None, COLUMN["cos"]], parts[:, None, COLUMN["sin"]]
    local = np.stack(
        [cos * half[..., 0] + sin * half[..., 2], half[..., 1], cos * half[..., 2] - sin * half[..., 0]], -1
    )
    world = parts[:, None, :3] + local - np.array(camera.position, dtype=np.float32)
    wx, wy, wz = world[..., 0], world[..., 1], world[..., 2]
    x, y, z = (r[0] * wx + r[1] * wy + r[2] * wz for r in rotation.T)
    # Edges that cross the near plane are cut there, so that what stands beside the camera gets a tight window too.
    za, zb = z[:, _EDGES[:, 0]], z[:, _EDGES[:, 1]]
    crosses = (za < NEAR) != (zb < NEAR)
    share = np.where(crosses, (NEAR - za) / np.where(crosses, zb - za, 1), 0)
    cut_x = x[:, _EDGES[:, 0]] + share * (x[:, _EDGES[:, 1]] - x[:, _EDGES[:, 0]])
    cut_y = y[:, _EDGES[:, 0]] + share * (y[:, _EDGES[:, 1]] - y[:, _EDGES[:, 0]])
    ahead = z >= NEAR
    depth = np.where(ahead, z, 1)
    u = np.concatenate([np.where(ahead, x / depth, np.nan), np.where(crosses, cut_x / NEAR, np.nan)], axis=1)
    v = np.concatenate([np.where(ahead, y / depth, np.nan), np.where(crosses, cut_y / NEAR, np.nan)], axis=1)
    height, width = camera.size
    seen = np.asarray(np.isfinite(u).any(axis=1))
    low, high = np.where(seen[:, None], 0, np.inf), np.where(seen[:, None], 0, -np.inf)
    u_low, u_high = np.nanmin(np.where(seen[:, None], u, low), 1), np.nanmax(np.where(seen[:, None], u, high), 1)
    v_low, v_high = np.nanmin(np.where(seen[:, None], v, low), 1), np.nanmax(np.where(seen[:, None], v, high), 1)
    focal = camera.focal
    edges = np.stack([
        np.floor(height / 2 - focal * v_high), np.ceil(height / 2 - focal * v_low),
        np.floor(width / 2 + focal * u_low), np.ceil(width / 2 + focal * u_high),
    ], axis=1)  # fmt: skip
    edges = np.where(seen[:, None], edges, 0)
    return np.clip(edges, 0, [height, height, width, width]).astype(np.int64)


@dataclass(frozen=True)
class Shadows:
    """A depth map seen from the sun: which places it reaches.

    Attributes:
        depth: (S, S) distance along the sun's rays to the first part, inf where there is none. right, up, toward: axes
            of the map in world coordinates. center: (3,) its middle. span: metres that it covers.
    """

    depth: np.ndarray
    right: np.ndarray
    up: np.ndarray
    toward: np.ndarray
    center: np.ndarray
    span: float

    @staticmethod
    def cast(sun: np.ndarray, center: np.ndarray, parts: np.ndarray, span: float = 64.0, size: int = 224) -> Shadows:
        """``sun`` (3,) points to the sun, with length 1."""
        right = np.array([sun[2], 0.0, -sun[0]], dtype=np.float32)
        right = right / np.sqrt((right * right).sum())
        up = np.array([
            sun[1] * right[2] - sun[2] * right[1], sun[2] * right[0] - sun[0] * right[2], sun[0] * right[1] - sun[1] * right[0],
        ], dtype=np.float32)  # fmt: skip
        step = np.float32(span / size)
        depth = np.full((size, size), np.inf, dtype=np.float32)
        index = np.zeros((size, size), dtype=np.int32)
        far = np.float32(100.0)
        relative = parts[:, :3] - center
        reach = np.sqrt((parts[:, 3:6] ** 2).sum(axis=1))
        across = (relative * right).sum(axis=1)
        along = (relative * up).sum(axis=1)
        grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(span / 2)
        low_x, high_x = ((across + s * reach + span / 2) / step for s in (-1, 1))
        low_y, high_y = ((along + s * reach + span / 2) / step for s in (-1, 1))
        direction = tuple(np.float32(-s) for s in sun)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for i in range(len(parts)):
                left, end = max(0, int(low_x[i])), min(size, int(high_x[i]) + 1)
                top, bottom = max(0, int(low_y[i])), min(size, int(high_y[i]) + 1)
                if left >= end or top >= bottom:
                    continue
                x, y = grid[None, left:end], grid[top:bottom, None]
                o = tuple(right[a] * x + up[a] * y + (far * sun[a] - relative[i, a]) for a in range(3))
                cut(parts[i], o, direction, depth[top:bottom, left:end], index[top:bottom, left:end], i)
        return Shadows(depth, right, up, sun, center, span)

    def lit(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """1 where the sun reaches a point, 0 where something stands between; soft over one cell of the map."""
        size = len(self.depth)
        rx, ry, rz = x - self.center[0], y - self.center[1], z - self.center[2]
        scale = np.float32(size / self.span)
        middle = np.float32(size / 2 - 0.5)
        u = (rx * self.right[0] + rz * self.right[2]) * scale + middle
        v = (rx * self.up[0] + ry * self.up[1] + rz * self.up[2]) * scale + middle
        distance = np.float32(100.0 - 0.25) - (rx * self.toward[0] + ry * self.toward[1] + rz * self.toward[2])
        left, top = np.floor(u), np.floor(v)
        share_u, share_v = u - left, v - top
        i, j = np.clip(top, 0, size - 2).astype(np.int32), np.clip(left, 0, size - 2).astype(np.int32)
        flat = self.depth.ravel()
        cell = i * size + j
        corners = [(flat[cell + o] > distance) for o in (0, 1, size, size + 1)]
        upper = corners[0] + share_u * (corners[1].astype(np.float32) - corners[0])
        lower = corners[2] + share_u * (corners[3].astype(np.float32) - corners[2])
        inside = (u >= 0) & (u < size - 1) & (v >= 0) & (v < size - 1)
        return np.where(inside, upper + share_v * (lower - upper), np.float32(1.0))


def ground_surface(ground: Ground, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Index of the surface at points of the ground."""
    if ground.seeds is not None:
        nearest = np.zeros(x.shape, dtype=np.int32)
        best = np.full(x.shape, np.inf, dtype=np.float32)
        for k, (sx, sz) in enumerate(ground.seeds):
            distance = (x - sx) * (x - sx) + (z - sz) * (z - sz)
            closer = distance < best
            nearest[closer] = k
            np.copyto(best, distance, where=closer)
        return nearest
    assert ground.edges is not None
    offset = x - bent(np.float32(ground.bend), z)
    index = np.zeros(x.shape, dtype=np.int32)
    for edge in ground.edges:
        index += offset > edge
    return index


__all__ = ["BOX", "CYLINDER", "ELLIPSOID", "GROUND", "SKY", "Camera", "Hits", "Shadows", "ground_surface", "look"]
