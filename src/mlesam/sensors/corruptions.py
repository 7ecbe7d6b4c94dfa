"""What each fault does to a sensor's values. The table of faults, with their severities, is :mod:`mlesam.sensors.faults`.

Every function takes values ``(C, H, W)`` float32 in the sensor's unit (NaN: nothing measured), the spec, the physical
parameter of the severity, and a generator of random numbers. It returns new values and leaves its input as it is. Numbers
are drawn before the parameter is looked at: a worse severity is then the same fault, only worse.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.sensors.spec import SensorSpec

FRAME_REACH = 3.0
"""Standard deviations that stand for the range of a sensor whose frames are normalised one by one, or have no range."""


def limits(spec: SensorSpec) -> tuple[float, float]:
    """Smallest and largest value, in the unit that the values are in."""
    if spec.normalize == "frame":
        return -FRAME_REACH, FRAME_REACH
    low, high = spec.range
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    reach = FRAME_REACH * max(spec.std)
    return max(low, min(spec.mean) - reach), min(high, max(spec.mean) + reach)


def spread(spec: SensorSpec) -> Tensor:
    """(C or 1, 1, 1): the sensor's usual standard deviation."""
    return (torch.ones(1) if spec.normalize == "frame" else torch.tensor(spec.std))[:, None, None]


def middle(spec: SensorSpec) -> Tensor:
    """(C or 1, 1, 1): the sensor's usual mean."""
    return (torch.zeros(1) if spec.normalize == "frame" else torch.tensor(spec.mean))[:, None, None]


def darkest(spec: SensorSpec) -> Tensor:
    """(C or 1, 1, 1): what the sensor reads without a signal: three standard deviations below its mean, but in its range. A
    thermal camera can measure far colder than anything it is ever shown."""
    return (middle(spec) - 3 * spread(spec)).clamp(min=limits(spec)[0])


def airlight(spec: SensorSpec) -> float | Tensor:
    """What fog and drops look like: bright to a colour camera, a little above its mean to any other."""
    low, high = limits(spec)
    return low + 0.8 * (high - low) if spec.photometric == "color" else middle(spec) + spread(spec)


def sparse(spec: SensorSpec) -> bool:
    """Whether most pixels are empty: returns of a LiDAR, events."""
    return spec.photometric == "sparse"


def nothing(spec: SensorSpec) -> float:
    """The value of a pixel that has lost its measurement: NaN, but 0 for a sensor that knows no "nothing measured".

    A dense camera cannot say that it measured nothing: its dead pixels read the lowest value.
    """
    if spec.missing is not None:
        return math.nan
    if sparse(spec):
        return 0.0
    return math.nan if spec.interpolation == "nearest" else limits(spec)[0]


def measured(values: Tensor, spec: SensorSpec) -> Tensor:
    """(1, H, W) bool: pixels that hold a measurement; for sparse sensors, those that are not 0 either."""
    found = torch.isfinite(values)
    return (found & (values != 0)).any(dim=0, keepdim=True) if sparse(spec) else found.any(dim=0, keepdim=True)


def normals(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def uniforms(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def pixels(share: float, length: int) -> int:
    """A share of a side in whole pixels: at least one, but less than the side."""
    return min(max(1, round(share * length)), length - 1)


# ---------------------------------------------------------------- noise


def gaussian(values: Tensor, spec: SensorSpec, sigma: float, rng: np.random.Generator) -> Tensor:
    """Noise of ``sigma`` standard deviations on what was measured."""
    noisy = values + sigma * spread(spec) * normals(rng, *values.shape)
    return torch.where(measured(values, spec), noisy, values)


def salt_and_pepper(values: Tensor, spec: SensorSpec, density: float, rng: np.random.Generator) -> Tensor:
    """A share of the pixels reads the highest or the lowest value, one as often as the other."""
    draw = uniforms(rng, *values.shape[-2:])
    high = uniforms(rng, *values.shape[-2:]) < 0.5
    low_value, high_value = limits(spec)
    return values.masked_fill((draw < density) & ~high, low_value).masked_fill((draw < density) & high, high_value)


def event_noise(values: Tensor, spec: SensorSpec, rate: float, rng: np.random.Generator) -> Tensor:
    """Background activity: a share of the pixels of each channel reports up to three standard deviations of events."""
    fires = uniforms(rng, *values.shape) < rate
    count = uniforms(rng, *values.shape) * 3 * spread(spec)
    return torch.where(fires, torch.fmax(values, count), values)


# ---------------------------------------------------------------- blur and what hides the view


def motion_blur(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """The mean along a line at any angle, a share of the longer side long; what was not measured takes no part."""
    kernel = _line(share * max(values.shape[-2:]), float(rng.uniform(0, math.pi)))

    def along(channels: Tensor) -> Tensor:
        smeared = [cv2.filter2D(c.numpy(), -1, kernel, borderType=cv2.BORDER_REPLICATE) for c in channels]
        return torch.from_numpy(np.stack(smeared))

    known = torch.isfinite(values)
    total, weight = along(torch.where(known, values, 0.0)), along(known.to(values.dtype))
    return torch.where(known, total / weight.clamp(min=1e-3), values)


def _line(length: float, angle: float) -> np.ndarray:
    """A filter kernel that sums to 1: a line of any length in pixels, whose points count for the four pixels around them."""
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    along = np.linspace(-length / 2, length / 2, 4 * math.ceil(length) + 1)
    y, x = reach + along * math.sin(angle), reach + along * math.cos(angle)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
        np.add.at(kernel, (top + down, left + right), part)
    return kernel / kernel.sum()


def fog(values: Tensor, spec: SensorSpec, clear: float, rng: np.random.Generator) -> Tensor:
    """A bright veil in banks: where it is thickest, the share ``clear`` of the contrast is left."""
    height, width = values.shape[-2:]
    banks = F.interpolate(uniforms(rng, 1, 1, 4, 4), size=(height, width), mode="bilinear", align_corners=True)[0]
    left = clear + (1 - clear) * 0.35 * banks
    return values * left + airlight(spec) * (1 - left)


def rain(values: Tensor, spec: SensorSpec, density: float, rng: np.random.Generator) -> Tensor:
    """Bright slanted streaks in front of a thin veil. ``density``: share of the pixels in which a streak begins."""
    height, width = values.shape[-2:]
    starts = uniforms(rng, height, width) < density
    slant = float(rng.uniform(-0.4, 0.4))
    streaks = torch.zeros(1, height, width)
    for step in range(max(2, height // 12)):
        streaks = torch.maximum(streaks, moved(starts[None].float(), step, round(slant * step), 0.0))
    veil = torch.clamp(0.45 * streaks + 4 * density, max=0.85)
    return values * (1 - veil) + airlight(spec) * veil


def low_resolution(values: Tensor, spec: SensorSpec, factor: float, rng: np.random.Generator) -> Tensor:
    """Every block of ``factor`` x ``factor`` pixels shows its first one."""
    height, width = values.shape[-2:]
    rows, columns = (torch.arange(n) // int(factor) * int(factor) for n in (height, width))
    return values[:, rows][:, :, columns]


# ---------------------------------------------------------------- geometry


def moved(values: Tensor, dy: int, dx: int, fill: float | None) -> Tensor:
    """Shift by whole pixels, down and to the right; what comes in is ``fill``, or the picture's edge (None)."""
    height, width = values.shape[-2:]
    rows, columns = torch.arange(height) - dy, torch.arange(width) - dx
    shifted = values[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    if fill is None:
        return shifted
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    return shifted.masked_fill(~inside, fill)


def edge(spec: SensorSpec) -> float | None:
    """What comes into a picture that is moved: a camera's edge goes on, other sensors have nothing there."""
    return nothing(spec) if spec.interpolation == "nearest" else None


def shift(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """Up, down, left or right by a share of that side."""
    dy, dx = ((0, 1), (0, -1), (1, 0), (-1, 0))[int(rng.integers(4))]
    reach = pixels(share, values.shape[-2] if dy else values.shape[-1])
    return moved(values, dy * reach, dx * reach, edge(spec))


def rotation(values: Tensor, spec: SensorSpec, degrees: float, rng: np.random.Generator) -> Tensor:
    """About the centre of the picture, one way or the other."""
    angle = math.radians(degrees) * (1 if rng.random() < 0.5 else -1)
    height, width = values.shape[-2:]
    y = torch.arange(height, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    from_y = math.cos(angle) * y[:, None] - math.sin(angle) * x[None] + (height - 1) / 2
    from_x = math.sin(angle) * y[:, None] + math.cos(angle) * x[None] + (width - 1) / 2
    if spec.interpolation == "bilinear" and bool(torch.isfinite(values).all()):
        scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        grid = torch.stack([from_x, from_y], dim=-1) * scale - 1
        return F.grid_sample(values[None], grid[None], padding_mode="border", align_corners=True)[0]
    rows, columns = from_y.round().long(), from_x.round().long()
    turned = values[:, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    fill = edge(spec)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return turned if fill is None else turned.masked_fill(~inside, fill)


def lidar_jitter(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """Every row of pixels, taken for a beam, is moved sideways by normally distributed steps of ``share`` of the width."""
    height, width = values.shape[-2:]
    steps = (normals(rng, height, 1) * share * width).round().long()
    columns = torch.arange(width)[None] - steps
    jittered = values.gather(2, columns.clamp(0, width - 1).expand(len(values), -1, -1))
    return jittered.masked_fill((columns < 0) | (columns >= width), nothing(spec))


# ---------------------------------------------------------------- loss


def dead_rows(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """A share of the rows reads nothing."""
    height = values.shape[-2]
    order = torch.from_numpy(rng.permutation(height))
    dead = torch.zeros(height, dtype=torch.bool)
    dead[order[: pixels(share, height)]] = True
    return values.masked_fill(dead[:, None], nothing(spec))


def beam_loss(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """Of the rows of pixels that hold returns, taken for beams, a share loses all of them."""
    hit = torch.nonzero(measured(values, spec)[0].any(dim=1))[:, 0]
    lost = hit[torch.from_numpy(rng.permutation(len(hit)))][: math.ceil(share * len(hit))]
    dead = torch.zeros(values.shape[-2], dtype=torch.bool)
    dead[lost] = True
    return values.masked_fill(dead[:, None], nothing(spec))


def depth_holes(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """Blocks of about a sixteenth of the height, a share of all, measure nothing."""
    height, width = values.shape[-2:]
    block = max(1, height // 16)
    draw = uniforms(rng, -(-height // block), -(-width // block))
    # By rank and not by a threshold: the share is then met in every frame.
    rank = draw.flatten().argsort().argsort().reshape(draw.shape)
    hole = rank < round(share * draw.numel())
    hole = hole.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width]
    return values.masked_fill(hole, nothing(spec))


# ---------------------------------------------------------------- level


def _covered(values: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """(H, W) bool: a share of the frame, counted from one of its sides."""
    height, width = values.shape[-2:]
    side = int(rng.integers(4))
    length = height if side < 2 else width
    index = torch.arange(length) if side % 2 == 0 else torch.arange(length).flip(0)
    inside = index < math.ceil(share * length)
    return inside[:, None].expand(height, width) if side < 2 else inside[None].expand(height, width)


def black(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """A share of the frame, from one side, is covered: it reads the lowest value, or nothing."""
    return values.masked_fill(_covered(values, share, rng), nothing(spec))


def saturated(values: Tensor, spec: SensorSpec, share: float, rng: np.random.Generator) -> Tensor:
    """A share of the frame, from one side, is blinded: it reads the highest value."""
    return values.masked_fill(_covered(values, share, rng), limits(spec)[1])


def exposure(values: Tensor, spec: SensorSpec, factor: float, rng: np.random.Generator) -> Tensor:
    """The signal times ``factor``; a dark picture has the noise of the few photons it caught."""
    dark = darkest(spec)
    signal = (values - dark) * factor
    if factor < 1:
        # Shot noise: its variance goes with the signal, here that of 400 photons at full scale.
        signal = signal + normals(rng, *values.shape) * ((limits(spec)[1] - dark) * signal.clamp(min=0) / 400).sqrt()
    return dark + signal


def thermal_drift(values: Tensor, spec: SensorSpec, reach: float, rng: np.random.Generator) -> Tensor:
    """A ramp across the width, from 0 to ``reach`` standard deviations, and a tenth of that as noise of the columns."""
    width = values.shape[-1]
    ramp = torch.linspace(0, 1, width)
    ramp = ramp.flip(0) if rng.random() < 0.5 else ramp
    return values + reach * spread(spec) * (ramp + 0.1 * normals(rng, width))


def scale_error(values: Tensor, spec: SensorSpec, factor: float, rng: np.random.Generator) -> Tensor:
    """All distances times ``factor``, or divided by it."""
    return values * (factor if rng.random() < 0.5 else 1 / factor)
