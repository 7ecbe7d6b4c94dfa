"""Sheets of captioned pictures for the documentation, with the scales that their colours stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlesam.evaluation.pictures import EMPTY, INFERNO, VIRIDIS
from mlesam.sensors.colormaps import lookup_table

Color = tuple[int, int, int]
INK, PAPER, DARK, PALE = (34, 38, 44), (255, 255, 255), (24, 26, 30), (235, 235, 235)
SIGNED: tuple[Color, ...] = ((40, 90, 200), (120, 165, 235), (240, 240, 240), (240, 150, 100), (200, 60, 30))
"""Blue below 0, white at 0, red above."""
GREY: tuple[Color, ...] = ((0, 0, 0), (255, 255, 255))
MAPS = {"viridis": VIRIDIS, "inferno": INFERNO, "signed": SIGNED, "grey": GREY}
GAP, LINE = 4, 17
"""Pixels between two pictures, and of a line of text."""
BAR = 12
"""Pixels of a colour scale's height."""
UNSEEN = ((112, 116, 124), (158, 162, 170))
"""Stripes where nothing was measured, in pictures whose dark colours are numbers."""


def font(size: int = 12) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def tile(picture: np.ndarray, text: str, width: int, height: int | None = None) -> Image.Image:
    """A picture (H, W, 3) uint8 with a caption above it; small ones are enlarged pixel by pixel."""
    height = width if height is None else height
    shrinks = picture.shape[0] > height
    how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    canvas = Image.new("RGB", (width, height + LINE), DARK)
    canvas.paste(Image.fromarray(picture).resize((width, height), how), (0, LINE))
    write(canvas, text, 4, 1, PALE, width - 6)
    return canvas


def write(canvas: Image.Image, text: str, x: int, y: int, color: Color, room: int | None = None) -> None:
    """A line of text, smaller where it needs more than ``room`` pixels; ValueError before a caption is cut off."""
    sizes = (12, 11, 10, 9)
    fits = next((s for s in sizes if room is None or font(s).getlength(text) <= room), None)
    if fits is None:
        raise ValueError(f"the caption {text!r} does not fit into {room} pixels")
    ImageDraw.Draw(canvas).text((x, y + 12 - fits), text, fill=color, font=font(fits))


def with_scale(image: Image.Image, low: str, high: str, colors: str | np.ndarray) -> Image.Image:
    """A tile with a colour scale below it: what its two ends say, and a colour map or (N, 3) colours in between."""
    width, height = image.size
    canvas = Image.new("RGB", (width, height + LINE + 1), PAPER)
    canvas.paste(image, (0, 0))
    left, right = (round(font().getlength(text)) for text in (low, high))
    table = lookup_table(MAPS[colors]) if isinstance(colors, str) else colors
    long = width - left - right - 16
    bar = np.repeat(table[None, np.linspace(0, len(table) - 1, long).astype(int)], BAR, axis=0).astype(np.uint8)
    canvas.paste(Image.fromarray(bar), (left + 7, height + 3))
    ImageDraw.Draw(canvas).rectangle((left + 6, height + 2, left + 7 + long, height + 3 + BAR), outline=UNSEEN[0])
    write(canvas, low, 2, height + 1, INK)
    write(canvas, high, width - right - 3, height + 1, INK)
    return canvas


def without_scale(image: Image.Image, text: str = "") -> Image.Image:
    """A tile with a line of text, or an empty one, where others have a scale."""
    canvas = Image.new("RGB", (image.width, image.height + LINE + 1), PAPER)
    canvas.paste(image, (0, 0))
    write(canvas, text, 2, image.height + 1, INK, image.width - 4)
    return canvas


def sheet(rows: Sequence[Sequence[Image.Image]], footer: Sequence[str] = ()) -> Image.Image:
    """Tiles in rows, each row of one height, and lines of text below them."""
    heights = [row[0].height for row in rows]
    across = max(sum(tile.width + GAP for tile in row) - GAP for row in rows)
    down = sum(height + GAP for height in heights) - GAP
    canvas = Image.new("RGB", (across, down + (LINE * len(footer) + GAP if footer else 0)), PAPER)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture in row:
            canvas.paste(picture, (x, y))
            x += picture.width + GAP
        y += height + GAP
    for number, text in enumerate(footer):
        write(canvas, text, 3, down + GAP + LINE * number, INK, across - 6)
    return canvas


def legend(colors: Mapping[str, Color], width: int) -> Image.Image:
    """Names of classes behind squares of their colours, in as many lines as they need."""
    places, x, line = [], 3, 0
    for name in colors:
        long = round(font().getlength(name)) + 28
        if x + long > width:
            x, line = 3, line + 1
        places.append((x, line * LINE))
        x += long
    canvas = Image.new("RGB", (width, (line + 1) * LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for (name, color), (x, y) in zip(colors.items(), places, strict=True):
        draw.rectangle((x, y + 3, x + 11, y + 14), fill=tuple(color), outline=INK)
        write(canvas, name, x + 16, y + 1, INK)
    return canvas


def below(*images: Image.Image) -> Image.Image:
    """One under the other."""
    canvas = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), PAPER)
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height
    return canvas


def colored(values: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """(H, W) numbers in a colour map from ``low`` to ``high``; NaN dark, or striped where the map has dark colours itself."""
    measured = np.isfinite(values)
    scaled = np.clip((np.where(measured, values, low) - low) / (high - low), 0, 1)
    drawn = lookup_table(MAPS[name]).astype(np.uint8)[np.rint(scaled * 255).astype(np.uint8)]
    if name in ("viridis", "signed"):
        drawn[~measured] = EMPTY
    else:
        rows, columns = np.nonzero(~measured)
        width = max(2, round(4 * max(values.shape) / 240))
        drawn[rows, columns] = np.array(UNSEEN, dtype=np.uint8)[(rows + columns) // width % 2]
    return drawn


def enlarged(values: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """Sparse (H, W) measurements, NaN elsewhere, as squares of ``side`` pixels; of several the larger or smaller one."""
    sign = -1.0 if nearest else 1.0
    filled = np.where(np.isfinite(values), sign * values, -np.inf).astype(np.float32)
    spread = cv2.dilate(filled, np.ones((side, side), np.uint8))
    return np.where(np.isfinite(spread), sign * spread, np.nan)


def over(picture: np.ndarray, drawn: np.ndarray, where: np.ndarray, dim: float = 0.45) -> np.ndarray:
    """Measurements on top of the camera's picture, which is darkened and grey."""
    grey = picture.mean(axis=2, keepdims=True) * dim
    return np.where(where[..., None], drawn, np.repeat(grey, 3, axis=2)).astype(np.uint8)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=70, method=6)
    print(f"{path.name}: {image.width} x {image.height} pixels, {path.stat().st_size / 1000:.0f} kB", flush=True)
