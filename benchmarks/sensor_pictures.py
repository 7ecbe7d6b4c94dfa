"""Draws the pictures of docs/sensors: ``python benchmarks/sensor_pictures.py``. From a raw recording to what a model takes.

LiDAR, radar, events, the rig, polarisation and near infrared are of the miniatures that ``mlesam mini muses`` and ``mlesam mini
mcubes`` write, which are recordings in the benchmarks' encodings (a temporary folder, 100 MB, or ``--data DIR``, kept there).
Depth, thermal, colour and spectral pictures are frames of the procedural world itself, seed 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from conditions import ROOT
from dataset_pictures import chosen, miniature
from drawing import (
    DARK,
    INK,
    PAPER,
    below,
    colored,
    enlarged,
    legend,
    over,
    save,
    sheet,
    tile,
    with_scale,
    without_scale,
    write,
)
from mlesam.data.dataset import Frame, open_dataset
from mlesam.data.mcubes import LEFT
from mlesam.data.transforms import photometric
from mlesam.evaluation.pictures import EMPTY, VIRIDIS, class_picture
from mlesam.inference.segmenter import false_color
from mlesam.sensors.camera import Camera
from mlesam.sensors.colormaps import lookup_table
from mlesam.sensors.depth import DepthEncoder
from mlesam.sensors.events import EventsEncoder
from mlesam.sensors.files import read_array
from mlesam.sensors.points import PointsEncoder
from mlesam.sensors.polarization import ANGLES, SONY, PolarizationEncoder, doubled
from mlesam.sensors.radar import RadarEncoder
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import sensor_spec
from mlesam.sensors.spectral import SpectralEncoder
from mlesam.sensors.thermal import ThermalEncoder
from mlesam.world.render import SENSORS, WorldFrame, render_frame
from mlesam.world.scene import CLASSES
from mlesam.world.sensors import THERMAL_LOW, THERMAL_SPAN, WAVELENGTHS

WIDE, HIGH, SQUARE = 320, 180, 240
"""Pixels of a tile: of the MUSES miniature, and of square pictures."""
MUSES = "From the miniature that `mlesam mini muses` writes: a procedural world in the recordings of MUSES."
MCUBES = "From the miniature that `mlesam mini mcubes` writes: a procedural world in the files of MCubeS."
WORLD = "From the procedural world (`mlesam world`), seed 0."
NEAR = lookup_table(VIRIDIS)[::-1]
"""Colours of a range scale, which begins at the near end, yellow."""
DETAIL = slice(385, 475), slice(1050, 1210)
"""Rows and columns that are shown enlarged: a sign before a house."""


def ranges(metres: np.ndarray, near: float = 2.0, far: float = 80.0) -> np.ndarray:
    """Distances in even steps of their logarithm, near ones yellow."""
    return colored(-np.log(metres), -np.log(far), -np.log(near), "viridis")


def muses(data: Path) -> tuple[Frame, Rig, np.ndarray]:
    """A frame in clear weather by day, the calibration, and the camera's picture."""
    root = miniature("muses", data)
    frame = chosen(open_dataset(f"muses:{root}?source=raw").frames("train"), "clear", "day")
    return frame, Rig.load(root / "calib.json"), read_array(Path(str(frame.files["rgb"])))


def from_above(x: np.ndarray, y: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(HIGH, WIDE, 3): x metres forward of the sensor, which is at the bottom, and y to its left; 50 m ahead."""
    scale = HIGH / 50
    row, column = np.rint(HIGH - 1 - x * scale).astype(int), np.rint(WIDE / 2 - y * scale).astype(int)
    inside = (row >= 0) & (row < HIGH) & (column >= 0) & (column < WIDE)
    seen = np.full((HIGH, WIDE), -np.inf, np.float32)
    np.maximum.at(seen, (row[inside], column[inside]), values[inside].astype(np.float32))
    return colored(enlarged(np.where(np.isfinite(seen), seen, np.nan), 2), low, high, "viridis")


def lidar(data: Path) -> Image.Image:
    frame, rig, camera = muses(data)
    encoder = rig.sensors["lidar"]
    assert isinstance(encoder, PointsEncoder)
    raw = encoder.read(Path(str(frame.files["lidar"])))
    one, two = (dataclasses.replace(encoder, dilate=side).encode(raw, rig.camera) for side in (1, 2))
    shown = [enlarged(one[..., channel], 9, nearest=channel == 0) for channel in range(2)]

    def detail(picture: np.ndarray) -> np.ndarray:
        part = picture[DETAIL][..., 0]
        return over(camera[DETAIL], ranges(part), np.isfinite(part), 0.7)

    outlined = camera.copy()
    cv2.rectangle(outlined, (DETAIL[1].start, DETAIL[0].start), (DETAIL[1].stop, DETAIL[0].stop), (255, 60, 60), 8)
    above = from_above(raw[:, 0], raw[:, 1], raw[:, 2], -2, 6)
    scaled = lambda picture, text: with_scale(tile(picture, text, WIDE, HIGH), "2 m", "80 m", NEAR)  # noqa: E731
    return sheet([
        [
            without_scale(tile(outlined, "camera; red: what is shown enlarged", WIDE, HIGH)),
            with_scale(tile(above, f"recording: {len(raw):,} points, 50 m from above", WIDE, HIGH), "z -2 m", "6 m", "viridis"),
            scaled(ranges(shown[0]), "channel 0: range (points enlarged)"),
        ],
        [
            with_scale(tile(colored(shown[1], 0, 150, "viridis"), "channel 1: intensity", WIDE, HIGH), "0", "150", "viridis"),
            scaled(detail(one), "range over the camera, dilate: 1"),
            scaled(detail(two), "range over the camera, dilate: 2"),
        ],
    ], [MUSES])  # fmt: skip


def radar(data: Path) -> Image.Image:
    frame, rig, camera = muses(data)
    encoder = rig.sensors["radar"]
    assert isinstance(encoder, RadarEncoder)
    raw = encoder.read(Path(str(frame.files["radar"])))
    bins = raw[11 : 11 + 1368].reshape(-1, 8, raw.shape[1]).max(axis=1)[::-1]  # 60 m, eight bins in a row of pixels
    everything = dataclasses.replace(encoder, sector=(-180, 180), farthest=60.0).points(raw)[0]
    wanted = dataclasses.replace(encoder, threshold=60.0, keep="strongest", dilate=9)
    plain, strong = encoder.encode(raw, rig.camera), wanted.encode(raw, rig.camera)
    shown = enlarged(plain[..., 1], 6)
    scaled = lambda picture, text: with_scale(tile(picture, text, WIDE, HIGH), "0", "200", "viridis")  # noqa: E731
    echoes = colored(strong[..., 1], 0, 200, "viridis")
    return sheet([
        [
            without_scale(tile(camera, "camera", WIDE, HIGH)),
            scaled(colored(bins.astype(float), 0, 200, "viridis"), "recording: 400 azimuths across, 0 to 60 m up"),
            scaled(from_above(*everything[:, [0, 1, 3]].T, 0, 200), "the same, 50 m from above"),
        ],
        [
            scaled(colored(shown, 0, 200, "viridis"), "intensity, threshold: 0, keep: nearest"),
            scaled(over(camera, echoes, np.isfinite(strong[..., 1])), "threshold: 60, keep: strongest, dilate: 9"),
            with_scale(tile(ranges(strong[..., 0]), "channel 0 of that: range", WIDE, HIGH), "2 m", "80 m", NEAR),
        ],
    ], [
        "Two azimuths of this recording, yellow, are marked as not measured and left out. Bottom left: points enlarged.", MUSES,
    ])  # fmt: skip


def event(data: Path) -> Image.Image:
    frame, _, camera = muses(data)
    encoder = EventsEncoder(size=(1280, 720))
    raw = encoder.read(Path(str(frame.files["event"])))
    counts = encoder.encode(raw)
    bins = np.moveaxis(dataclasses.replace(encoder, representation="voxels").encode(raw), -1, 0)
    size = SQUARE, 135

    def signed(values: np.ndarray) -> np.ndarray:
        up, down = (cv2.dilate(np.maximum(sign * values, 0), np.ones((4, 4))) for sign in (1, -1))
        both = np.where(up >= down, up, -down)
        return colored(np.where(both == 0, np.nan, both), -1.5, 1.5, "signed")

    def count(channel: int, text: str) -> Image.Image:
        values = enlarged(np.where(counts[..., channel] > 0, counts[..., channel], np.nan), 4)
        return with_scale(tile(colored(values, 0, 3, "viridis"), text, *size), "0", "3", "viridis")

    named = [f"voxels: bin {b + 1} of 5, at {7.5 * b:g} ms" for b in range(5)]
    grid = [
        with_scale(tile(signed(v), text, *size), "-1.5", "1.5", "signed") for v, text in zip(bins, named, strict=True)
    ]
    rows = [
        [
            without_scale(tile(camera, "colour camera, beside it", *size)),
            count(0, "counts: brighter in 30 ms"), count(1, "counts: darker in 30 ms"), grid[0],
        ],
        grid[1:],
    ]  # fmt: skip
    return sheet(
        rows, [f"{len(raw):,} events in the event camera's own 1280 x 720 pixels, enlarged; no event: dark.", MUSES]
    )


def world(index: int, condition: str, *more: str) -> WorldFrame:
    return render_frame(0, "test", index, 256, wanted=(*SENSORS, *more), condition=condition)


def depth(data: Path) -> Image.Image:
    images = world(3, "day").images
    camera = Camera(size=(256, 256), matrix=((243.2, 0, 127.5), (0, 243.2, 127.5), (0, 0, 1)))

    def made(encoding: str, units: str = "physical") -> np.ndarray:
        return DepthEncoder(encoding=encoding, hha_units=units).encode(images["depth"], camera)  # type: ignore[arg-type]

    metric, inverse, log, hha, small = (
        *(made(e)[..., 0] for e in ("metric", "inverse", "log")),
        made("hha"),
        made("hha", "8bit"),
    )
    bars = [
        (metric, "metric: depth (m)", 0, 60, "0 m", "60 m"),
        (inverse, "inverse: inverse depth (1/m)", 0, 0.25, "0 1/m", "0.25 1/m"),
        (log, "log: log depth", 1, 4.1, "1 (2.7 m)", "4.1 (60 m)"),
        (hha[..., 0], "hha: disparity (1/m)", 0, 0.25, "0 1/m", "0.25 1/m"),
        (hha[..., 1], "hha: height (m)", 0, 8, "0 m", "8 m"),
        (hha[..., 2], "hha: angle (degrees)", 0, 180, "0: floor", "180: ceiling"),
    ]  # fmt: skip
    drawn = [
        with_scale(tile(colored(v, low, high, "viridis"), text, SQUARE), first, last, "viridis")
        for v, text, low, high, first, last in bars
    ]
    eight = np.where(np.isfinite(small), small, 0).astype(np.uint8)
    eight[~np.isfinite(small).all(axis=2)] = EMPTY
    return sheet(
        [
            [without_scale(tile(images["rgb"], "camera", SQUARE)), *drawn[:3]],
            [*drawn[3:], without_scale(tile(eight, "hha, 8bit: as red, green and blue", SQUARE))],
        ],
        ["Dark: nothing measured. The recording: 16-bit millimetres, 0 where stereo finds no match.", WORLD],
    )


def thermal(data: Path) -> Image.Image:
    encoder = ThermalEncoder(scale=THERMAL_SPAN / 65535, offset=THERMAL_LOW)
    rows = []
    for condition, index, low, high in (("day", 3, 10, 50), ("night", 4, -5, 25)):
        images = world(index, condition).images
        counts = images["thermal"].astype(float)
        celsius = encoder.encode(images["thermal"])[..., 0]
        span = np.percentile(counts, [1, 99])
        rows.append([
            without_scale(tile(images["rgb"], f"camera ({condition})", SQUARE)),
            with_scale(tile(colored(counts, 0, 65535, "grey"), "recording: counts", SQUARE), "0", "65535", "grey"),
            with_scale(
                tile(colored(celsius, low, high, "inferno"), "temperature", SQUARE), f"{low} °C", f"{high} °C", "inferno"
            ),
            with_scale(tile(colored(counts, *span, "grey"), "8 bits, automatic gain: refused", SQUARE), "?", "?", "grey"),
        ])  # fmt: skip
    return sheet(
        rows, [f"Counts of the world: {THERMAL_LOW:g} to {THERMAL_LOW + THERMAL_SPAN:g} °C in 16 bits. {WORLD}"]
    )


def hues(radians: np.ndarray) -> np.ndarray:
    """Angles from 0 to pi, where the circle closes; NaN dark."""
    hue = np.mod(np.nan_to_num(radians) / np.pi, 1) * 180
    flat = np.stack([hue, np.full_like(hue, 170), np.full_like(hue, 225)], axis=-1).astype(np.uint8)
    drawn = cv2.cvtColor(flat if flat.ndim == 3 else flat[None], cv2.COLOR_HSV2RGB).reshape(flat.shape)
    drawn[~np.isfinite(radians)] = EMPTY
    return drawn


def polarization(data: Path) -> Image.Image:
    root = miniature("mcubes", data)
    name = open_dataset(f"mcubes:{root}").frames("test")[0].id
    sine, cosine, degree = (
        np.load(root / f"polL_{kind}/{name}.npy")[:, LEFT:] for kind in ("aolp_sin", "aolp_cos", "dolp")
    )
    color = read_array(root / f"polL_color/{name}.png")[:, LEFT:]
    light = 0.45 * (color / np.iinfo(color.dtype).max).mean(axis=2) ** 2.2
    angle = np.arctan2(sine, cosine)
    behind = [light * (1 + np.clip(degree, 0, 1) * np.cos(2 * (np.radians(a) - angle))) for a in ANGLES]
    raw = np.zeros(light.shape, np.uint16)
    for place, a in enumerate(SONY):
        row, column = divmod(place, 2)
        raw[row::2, column::2] = np.rint(4095 * behind[ANGLES.index(a)][row::2, column::2])
    dolp, *twice = np.moveaxis(PolarizationEncoder(full=4095).encode(raw), -1, 0)
    shown = [np.moveaxis(np.stack([b] * 3), 0, -1) for b in behind]
    bright = [np.rint(255 * np.clip(b / 0.5, 0, 1) ** (1 / 2.2)).astype(np.uint8) for b in shown]
    seen = np.rint(color * (255 / np.iinfo(color.dtype).max)).astype(np.uint8)
    part = raw[700:720, 545:565] / raw[700:720, 545:565].max()
    scale = hues(np.linspace(0, np.pi * 0.999, 200))
    stored = lambda a, text: with_scale(tile(colored(a, -1, 1, "signed"), text, SQUARE), "-1", "1", "signed")  # noqa: E731
    rows = [
        [tile(b, f"behind the polariser of {a} degrees", SQUARE) for b, a in zip(bright, ANGLES, strict=True)],
        [
            without_scale(tile(colored(part, 0, 1, "grey"), "recording: 20 x 20 of its pixels", SQUARE)),
            with_scale(tile(colored(dolp, 0, 0.5, "inferno"), "DoLP", SQUARE), "0", "0.5", "inferno"),
            with_scale(tile(hues(np.arctan2(*twice) / 2), "AoLP", SQUARE), "0", "180 degrees", scale),
            without_scale(tile(seen, "colour, for comparison", SQUARE)),
        ],
        [
            stored(twice[0], "sin 2 AoLP, as a model takes it"), stored(twice[1], "cos 2 AoLP"),
            stored(sine.clip(-1, 1), "sine as MCubeS stores it: it jumps"),
            stored(doubled(sine, cosine)[0], "doubled(sin, cos) of that"),
        ],
    ]  # fmt: skip
    made = (
        "The recording was made of its colour, DoLP and AoLP by the formula of this page, and is encoded as any other."
    )
    return sheet(rows, [MCUBES, made + " Black or striped: too dark."])


def spectral(data: Path) -> Image.Image:
    frame = world(3, "day", "hyperspectral")
    cube = frame.images["hyperspectral"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.npy"
        np.save(path, cube)
        common = {"scale": 1 / 65535, "centers": tuple(WAVELENGTHS)}
        chosen_bands = SpectralEncoder(wavelengths=(450, 570, 690, 840), **common)
        bands = chosen_bands.encode(chosen_bands.read(path))
        groups = SpectralEncoder(groups=3, **common)
        thirds = np.moveaxis(groups.encode(groups.read(path)), -1, 0)
    drawn = [
        with_scale(tile(colored(bands[..., i], 0, 0.6, "grey"), text, SQUARE), "0", "0.6", "grey")
        for i, text in enumerate(chosen_bands.channels)
    ]
    colors = {
        name: color for name, color in CLASSES.items() if name in ("road", "grass", "hedge", "building", "vehicle")
    }
    lines = {n: (cube[frame.label == list(CLASSES).index(n)] / 65535).mean(axis=0) for n in colors}
    rows = [
        [without_scale(tile(frame.images["rgb"], "camera", SQUARE)), *drawn[:3]],
        [
            drawn[3], without_scale(tile(false_color(thirds), "groups: 3, as blue, green and red", SQUARE)),
            without_scale(spectra(lines, colors), "450 nm to 900 nm"),
            without_scale(tile(class_picture(frame.label, tuple(CLASSES.values()), 256), "classes", SQUARE)),
        ],
    ]  # fmt: skip
    picture = sheet(rows, ["A cube of 16 bands, values as a share of full scale, no white panel. " + WORLD])
    return below(picture, legend(colors, picture.width))


def spectra(lines: dict[str, np.ndarray], colors: dict[str, tuple[int, int, int]]) -> Image.Image:
    """Mean values of classes over the bands, from 0 to 1."""
    canvas = Image.new("RGB", (SQUARE, SQUARE + 17), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, SQUARE, 16), fill=DARK)
    write(canvas, "mean spectra of classes, 0 to 1", 4, 1, (235, 235, 235))
    draw.rectangle((2, 17, SQUARE - 3, SQUARE + 14), outline=INK)
    for name, values in lines.items():
        across = np.linspace(6, SQUARE - 8, len(values))
        places = [(float(x), SQUARE + 12 - float(v) * (SQUARE - 10)) for x, v in zip(across, values, strict=True)]
        draw.line(places, fill=colors[name], width=3)
    return canvas


def rgb(data: Path) -> Image.Image:
    spec = sensor_spec("rgb")
    picture = world(3, "day").images["rgb"]
    values = spec.encode(picture)
    channels = spec.normalized(values).numpy()
    changed = [photometric(values, spec, np.random.default_rng(seed), 1.0) for seed in (20, 13, 14, 6)]
    as_picture = lambda v: np.rint(np.moveaxis(v.numpy(), 0, -1) * 255).astype(np.uint8)  # noqa: E731
    named = zip(("red", "green", "blue"), channels, strict=True)
    rows = [
        [
            without_scale(tile(picture, "as stored, 0 to 255", SQUARE)),
            *(
                with_scale(tile(colored(c, -2.6, 2.6, "signed"), f"{n}, normalised", SQUARE), "-2.6", "2.6", "signed")
                for n, c in named
            ),
        ],
        [tile(as_picture(v), f"changed in training, draw {i + 1}", SQUARE) for i, v in enumerate(changed)],
    ]
    return sheet(rows, [WORLD])


def nir(data: Path) -> Image.Image:
    root = miniature("mcubes", data)
    dataset = open_dataset(f"mcubes:{root}")
    frame = dataset.frames("test")[0]
    spec = sensor_spec("nir", dataset.sensor("nir"))
    stored, mask, color = (
        read_array(root / f"{f}/{frame.id}.png") for f in ("NIR_warped", "NIR_warped_mask", "polL_color")
    )
    shares = stored / np.iinfo(stored.dtype).max
    values = spec.encode(frame.read("nir"))
    changed = photometric(values, spec, np.random.default_rng(3), 1.0)
    seen = np.rint(color * (255 / np.iinfo(color.dtype).max)).astype(np.uint8)
    size = SQUARE, round(SQUARE * 1024 / 1224)

    def grey(a: np.ndarray | torch.Tensor, text: str, width: int) -> Image.Image:
        return with_scale(tile(colored(np.asarray(a), 0, 1, "grey"), text, width, size[1]), "0", "1", "grey")

    cut = round(size[1] * 1032 / 1024)
    row = [
        without_scale(tile(seen, "colour, 1224 x 1024", *size)),
        grey(shares, f"NIR_warped, {8 * stored.itemsize} bits", size[0]),
        with_scale(tile(colored(mask, 0, 255, "grey"), "NIR_warped_mask", *size), "0", "255", "grey"),
    ]
    row += [grey(values[0], "what is read, 1032 wide", cut), grey(changed[0], "changed in training", cut)]
    return sheet([row], [f"Striped: nothing measured, where the mask is white. {MCUBES}"])


def rig(data: Path) -> Image.Image:
    frame, calibration, camera = muses(data)
    paths = {m: Path(str(frame.files[m])) for m in ("lidar", "radar", "event")}
    points, echoes = calibration.sensors["lidar"], calibration.sensors["radar"]
    assert isinstance(points, PointsEncoder)
    assert isinstance(echoes, RadarEncoder)
    turn, _ = cv2.Rodrigues(np.array([0, np.radians(2.0), 0]))
    turned = dataclasses.replace(points, rotation=tuple(map(tuple, turn @ np.asarray(points.rotation))), dilate=8)
    points = dataclasses.replace(points, dilate=8)
    echoes = dataclasses.replace(echoes, threshold=60.0, keep="strongest", dilate=9)
    assert calibration.camera is not None
    other = dataclasses.replace(calibration.camera.resized((1600, 900)), size=(1920, 1080))

    def cloud(encoder: PointsEncoder, lens: Camera | None, text: str) -> Image.Image:
        metres = encoder.encode(encoder.read(paths["lidar"]), lens)[..., 0]
        return tile(over(camera, ranges(metres), np.isfinite(metres)), text, WIDE, HIGH)

    strength = echoes.encode(echoes.read(paths["radar"]), calibration.camera)[..., 1]
    drawn = over(camera, colored(strength, 0, 200, "viridis"), np.isfinite(strength))
    counts = calibration.encode("event", paths["event"])
    up, down = (cv2.dilate(np.nan_to_num(counts[..., i]), np.ones((5, 5))) for i in (0, 1))
    change = np.where(np.maximum(up, down) > 0, up - down, np.nan)
    moved = over(camera, colored(change, -2, 2, "signed"), np.isfinite(change))
    return sheet(
        [
            [
                tile(camera, "camera", WIDE, HIGH),
                cloud(points, calibration.camera, "LiDAR, kind points (yellow: near)"),
                tile(drawn, "radar, kind radar (yellow: strong)", WIDE, HIGH),
            ],
            [
                tile(moved, "event camera, kind events (red: brighter)", WIDE, HIGH),
                cloud(turned, calibration.camera, "wrong: rotation off by 2 degrees"),
                cloud(points, other, "wrong: matrix of 1600 x 900 pixels"),
            ],
        ],
        ["Everything over the camera's picture, which is darkened. " + MUSES],
    )


PICTURES: dict[str, Callable[[Path], Image.Image]] = {
    "lidar": lidar, "radar": radar, "event": event, "depth": depth, "thermal": thermal, "polarization": polarization,
    "spectral": spectral, "rgb": rgb, "nir": nir, "rig": rig,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; all of them without a name")
    parser.add_argument("--data", type=Path, help="where the miniatures are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or PICTURES:
            save(PICTURES[name](options.data or Path(folder)), ROOT / "docs" / "sensors" / f"{name}.webp")


if __name__ == "__main__":
    main()
