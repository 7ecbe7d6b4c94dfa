"""What each sensor of the world measures, with its own weaknesses, as the arrays that are written to files.

The sensors differ on purpose. The camera sees colour and texture, and little at night. Stereo depth is dense, needs light and
texture, and is coarse far away. LiDAR is sparse and needs no light. The event camera sees what moves against the picture. The
thermal camera sees warmth and no paint.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from mlesam.world.devices import CameraModel, LidarModel
from mlesam.world.draws import Draws
from mlesam.world.geometry import SKY, Camera
from mlesam.world.scene import MATERIALS
from mlesam.world.shading import Surfaces
from mlesam.world.weather import Weather, clearness

DEPTH_RANGE = 60.0
"""Metres; beyond it stereo depth says nothing."""
LIDAR_RANGE = 100.0
"""Metres that full scale of LiDAR's range channel stands for."""
HEIGHT_LOW, HEIGHT_SPAN = -2.0, 14.0
"""Metres above the road that LiDAR's height channel starts at and covers."""
THERMAL_LOW, THERMAL_SPAN = -40.0, 120.0
"""Degrees Celsius that a thermal file starts at and covers."""
EVENT_STEP = 24
"""Grey levels per event."""


@cache
def _response(contrast: float) -> np.ndarray:
    """sRGB-like curve from 12-bit linear light to 8 bits, bent into an S around its middle."""
    linear = np.arange(4096) / 4095
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    curve = curve + contrast * curve * (1 - curve) * (2 * curve - 1)
    return np.rint(255 * curve).astype(np.uint8)


def develop(light: np.ndarray, contrast: float = 0.0) -> np.ndarray:
    """(3, H, W) linear light, 1 is white, to an (H, W, 3) uint8 picture."""
    index = np.clip(light * np.float32(4095) + np.float32(0.5), 0, 4095).astype(np.int32)
    return np.moveaxis(_response(contrast)[index], 0, -1)


def soften(image: np.ndarray) -> np.ndarray:
    """The blur of a lens: (..., H, W) with weights 1 2 1 along both axes."""
    for axis in (-1, -2):
        image = np.moveaxis(image, axis, 0)
        padded = np.concatenate([image[:1], image, image[-1:]])
        image = np.float32(0.5) * image + np.float32(0.25) * (padded[:-2] + padded[2:])
        image = np.moveaxis(image, 0, axis)
    return image


def rgb(
    light: np.ndarray, seen: Surfaces, weather: Weather, model: CameraModel, draws: Draws, fault: str | None = None
) -> np.ndarray:
    """(H, W, 3) uint8: auto-exposed, with the noise that comes with it."""
    light = soften(light)
    if model.softness:
        light = light + np.float32(model.softness) * (soften(light) - light)
    if weather.name == "glare":
        light = light + _bloom(seen.hits.camera, weather)
    if weather.name == "rain":
        light = _streaks(light, draws)
    if model.vignette:
        light = light * _vignette(light.shape[-2], light.shape[-1], model.vignette)
    level = float(light.mean(dtype=np.float64))
    gain = min(model.level / max(level, 1e-6), 9.0) * draws.uniform(0.85, 1.15)
    if fault == "motion-blur":
        light = _smeared(light, max(3, light.shape[-1] // 14))
    gain *= {"over-exposure": 4.5, "under-exposure": 0.12}.get(fault or "", 1.0)
    signal = light * np.float32(gain)
    noise = np.float32(0.004) + np.float32(0.0022) * np.float32(gain)
    noise = (noise + np.float32(0.02) * np.sqrt(np.maximum(signal, 0))) * np.float32(model.noise)
    signal = (signal + draws.normals(*signal.shape) * noise) * np.array(model.white, np.float32)[:, None, None]
    return develop(signal, model.contrast)


def _vignette(height: int, width: int, lost: float) -> np.ndarray:
    """(H, W) share of the light that comes through: all in the middle, ``lost`` less in the corners."""
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / height) - 1
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / width) - 1
    return 1 - np.float32(lost / 2) * ((y * y)[:, None] + (x * x)[None, :])


def _bloom(camera: Camera, weather: Weather) -> np.ndarray:
    """Light scattered in the lens around a low sun."""
    right, up, forward = camera.rotation().T
    ahead = float((weather.sun * forward).sum())
    u = float((weather.sun * right).sum()) / max(ahead, 0.05)
    v = float((weather.sun * up).sum()) / max(ahead, 0.05)
    height, width = camera.size
    x = (np.arange(width, dtype=np.float32) - width / 2) / np.float32(camera.focal) - np.float32(u)
    y = (height / 2 - np.arange(height, dtype=np.float32)) / np.float32(camera.focal) - np.float32(v)
    square = (x * x)[None, :] + (y * y)[:, None]
    spot = np.float32(0.03) / (square + np.float32(0.01)) + np.float32(0.25) / (square + np.float32(0.5))
    return (spot[None] * weather.direct[:, None, None] * np.float32(0.9)).astype(np.float32)


def _streaks(light: np.ndarray, draws: Draws) -> np.ndarray:
    height, width = light.shape[-2:]
    seeds = draws.uniforms(height, width) > 0.995
    streaks = np.zeros((height, width), dtype=np.float32)
    for shift in range(max(2, height // 20)):
        streaks[shift:] += seeds[: height - shift]
    return light + np.float32(0.07) * np.minimum(streaks, 1)


def _smeared(image: np.ndarray, length: int) -> np.ndarray:
    total = np.zeros_like(image)
    for shift in range(length):
        total += np.roll(image, shift - length // 2, axis=-1)
    return total / np.float32(length)


def depth(seen: Surfaces, picture: np.ndarray, draws: Draws, fault: str | None = None) -> np.ndarray:
    """(H, W) uint16 millimetres along the camera's forward axis; 0 where the stereo camera finds no match.

    Args:
        picture: what the colour camera saw; without light and texture there is nothing to match.
    """
    metres = np.minimum(seen.hits.depth, np.float32(1000))
    height, width = metres.shape
    noisy = metres + draws.normals(height, width) * (np.float32(0.0022) * metres * metres + np.float32(0.01))
    grey = picture.astype(np.float32).mean(axis=2)
    brightness = np.clip(grey / np.float32(70), 0, 1)
    saturated = np.clip((np.float32(253) - grey) / np.float32(8), 0, 1)
    found = brightness * saturated * np.float32(0.98)
    block = max(2, height // 48)
    draw = np.repeat(np.repeat(draws.uniforms(-(-height // block), -(-width // block)), block, 0), block, 1)[
        :height, :width
    ]
    # Left of a near edge the second camera looks past it.
    behind = metres - np.minimum(metres, np.roll(metres, -max(1, width // 64), axis=1))
    valid = (draw < found) & (behind < 1.5) & (metres < DEPTH_RANGE) & (noisy > 0.2)
    if fault == "depth-misaligned":
        noisy, valid = (np.roll(a, (height // 16, width // 12), axis=(0, 1)) for a in (noisy, valid))
    return np.where(valid, np.clip(noisy, 0, 65.0) * np.float32(1000) + np.float32(0.5), 0).astype(np.uint16)


def lidar(seen: Surfaces, weather: Weather, model: LidarModel, draws: Draws, fault: str | None = None) -> np.ndarray:
    """(H, W, 3) uint16: range, intensity and height above the road, 0 where nothing came back.

    Each return is drawn into the pixel that it falls on; of several in one pixel the nearest stays.
    """
    camera = seen.hits.camera
    height, width = camera.size
    right, up, forward = camera.rotation().T
    sine = (
        model.low
        + (model.high - model.low) * (np.arange(model.beams, dtype=np.float32) + draws.uniform()) / model.beams
    )
    reach = 1.2 * width / 2 / camera.focal
    tangent = np.arange(-reach, reach, model.step, dtype=np.float32) + np.float32(model.step * draws.uniform())
    # The sensor stands upright, whatever the camera's pitch.
    fx, fz = forward[0], forward[2]
    norm = np.sqrt(fx * fx + fz * fz)
    fx, fz = fx / norm, fz / norm
    flat = np.sqrt(1 + tangent * tangent)[None, :]
    rise = (sine / np.sqrt(1 - sine * sine))[:, None] * flat
    wx, wz = fx + tangent * fz, fz - tangent * fx
    depth = wx * forward[0] + wz * forward[2] + rise * forward[1]
    u = (wx * right[0] + wz * right[2] + rise * right[1]) / depth
    v = (wx * up[0] + wz * up[2] + rise * up[1]) / depth
    if fault == "lidar-jitter":
        v = v + draws.normals(model.beams, 1) * np.float32(0.035)
        u = u + draws.normals(model.beams, 1) * np.float32(0.02)
    column = np.floor(u * np.float32(camera.focal) + np.float32(width / 2)).astype(np.int64)
    row = np.floor(np.float32(height / 2) - v * np.float32(camera.focal)).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = (row * width + column)[inside]
    pixel = pixel[seen.hits.part.ravel()[pixel] != SKY]
    distance = seen.distance.ravel()[pixel]
    facing, infrared, rough = (a.ravel()[pixel] for a in (seen.facing, seen.infrared, seen.rough))
    count = len(pixel)
    noise = draws.normals(count)
    measured = distance + noise * np.float32(model.noise) + np.abs(draws.normals(count)) * rough
    clear = clearness(2 * weather.haze, distance)
    strength = infrared * (np.float32(0.3) + np.float32(0.7) * facing) * clear
    seen_from = np.float32(2600 * model.reach)
    returned = strength / (distance * distance + 1) * seen_from * (np.float32(0.6) + draws.uniforms(count)) > 1
    returned &= draws.uniforms(count) > 0.02 + 0.25 * weather.wet
    if weather.haze > 0.005:  # droplets close to the sensor
        false = draws.uniforms(count) < 0.5 * weather.haze
        measured = np.where(false, np.float32(1.5) + 8 * draws.uniforms(count), measured)
        strength = np.where(false, np.float32(0.08), strength)
        returned |= false
    if fault == "lidar-jitter":
        returned &= draws.uniforms(count) > 0.3
    returned &= measured < LIDAR_RANGE
    kept = np.flatnonzero(returned)
    order = kept[np.argsort(-measured[kept], kind="stable")]  # of several in one pixel the nearest is drawn last
    pixel, measured = pixel[order], measured[order]
    strength, distance = strength[order], distance[order]
    level = np.float32(camera.position[1]) + (seen.position[1].ravel()[pixel] - np.float32(camera.position[1])) * (
        measured / distance
    )
    image = np.zeros((height * width, 3), dtype=np.uint16)
    intensity = np.clip(strength * np.float32(0.9 * model.gain) + np.float32(0.02) * draws.normals(len(pixel)), 0.01, 1)
    values = (measured / np.float32(LIDAR_RANGE), intensity, (level - np.float32(HEIGHT_LOW)) / np.float32(HEIGHT_SPAN))
    for channel, value in enumerate(values):
        image[pixel, channel] = np.clip(value, 1e-4, 1) * np.float32(65535)
    return image.reshape(height, width, 3)


def events(before: np.ndarray, now: np.ndarray, weather: Weather, draws: Draws, fault: str | None = None) -> np.ndarray:
    """(H, W, 3) uint8: events that got brighter in the first channel, darker in the third, between two instants.

    Args:
        before, now: (3, H, W) light at the two instants.
    """
    threshold = 0.18
    logs = []
    for light in (before, now):
        grey = 0.3 * light[0].astype(np.float64) + 0.6 * light[1] + 0.1 * light[2]
        logs.append(np.log(np.maximum(grey, 0) + 0.0005))
    change = (logs[1] - logs[0]) / threshold
    height, width = change.shape
    change = change + 0.28 * draws.normals(height, width) * (1.7 if weather.dark else 1.0)
    if fault == "event-low-resolution":
        block = max(2, height // 32)
        rows, columns = (np.arange(n) // block * block for n in (height, width))
        change = change[rows][:, columns]
    count = np.floor(np.abs(change)).clip(0, 10).astype(np.uint8) * np.uint8(EVENT_STEP)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.where(change > 0, count, 0)
    image[..., 2] = np.where(change < 0, count, 0)
    return image


def thermal(celsius: np.ndarray, draws: Draws, fault: str | None = None) -> np.ndarray:
    """(H, W) uint16: temperature from ``THERMAL_LOW`` over ``THERMAL_SPAN``, softened and with 0.12 K noise."""
    celsius = soften(celsius)
    height, width = celsius.shape
    celsius = celsius + np.float32(0.12) * draws.normals(height, width)
    if fault == "thermal-drift":
        slope = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        celsius = (
            celsius + np.float32(draws.uniform(5.0, 9.0)) * (1 + slope) + draws.normals(1, width) * np.float32(0.8)
        )
    value = (celsius - np.float32(THERMAL_LOW)) / np.float32(THERMAL_SPAN)
    return (np.clip(value, 0, 1) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)


BANDS = 16
WAVELENGTHS = np.linspace(450, 900, BANDS)
"""Nanometres of the hyperspectral bands."""


def hyperspectral(light: np.ndarray, seen: Surfaces, draws: Draws) -> np.ndarray:
    """(H, W, 16) uint16: the visible bands follow the camera's colours, those beyond 700 nm each material's own reflectance.

    Leaves have the steep rise at 700 nm (the red edge) that paint of the same colour lacks.
    """
    light = soften(light)
    grey = light.mean(axis=0)
    shown = seen.albedo.mean(axis=0)
    level = grey / np.maximum(shown, np.float32(0.02))  # how much light there is, without the surface's colour
    material = np.array([m.infrared for m in MATERIALS.values()]).max()
    infrared = np.minimum(seen.infrared, np.float32(material)) * np.minimum(level, 3)
    leafy = (seen.rough > 0.02).astype(np.float32)
    infrared = infrared * (np.float32(0.7) + np.float32(0.9) * leafy)
    gain = np.float32(0.22 / max(float(grey.mean(dtype=np.float64)), 0.02))
    height, width = grey.shape
    cube = np.empty((height, width, BANDS), dtype=np.uint16)
    for band, wavelength in enumerate(WAVELENGTHS):
        weights = [max(0.0, 1 - abs(wavelength - center) / 75) for center in (620.0, 545.0, 465.0)]
        edge = min(max((wavelength - 670) / 60, 0.0), 1.0)
        total = sum(weights)
        visible = sum(np.float32(w / total) * light[i] for i, w in enumerate(weights)) if total else light[0]
        value = (visible * np.float32(1 - edge) + infrared * np.float32(edge)) * gain
        value = value + draws.normals(height, width) * np.float32(0.01)
        cube[..., band] = np.clip(value, 0, 1) * np.float32(65535)
    return cube
