"""A miniature of DELIVER: 1042 x 1042 pictures of five kinds and labels, in five weathers with five failures.

What the files hold follows the loaders of CMNeXt (github.com/jamycheung/DELIVER) and CAFuser. Where those say nothing:

- ``depth``: reported as one channel of 8 bits with values from 1 to 255 (one sample); the unit is not documented. DGFusion
  takes the values for metres, and so does this file: metres, at least 1, 255 in the sky.
- ``lidar``: 8 bits; DGFusion's and CAFuser's dilation needs 0 where nothing came back, a user of the dataset reports values up
  to 100. Here: whole metres, at least 1, in one channel. The original's number of channels is not documented.
- ``event``: colours as in CARLA's own drawing of its event camera, brighter blue and darker red, on black.
- ``semantic``: the id in the red channel; green and blue are 0 and alpha is 255, as CARLA saves its segmentation camera.
- Maps: MAP_1 and MAP_6 are known to be in train, MAP_7 and MAP_10 are all of test. The maps of val are made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlesam.data.deliver import CLASSES
from mlesam.mini.pictures import nearest, smooth, sources, write_png
from mlesam.mini.scene import Instant, View, instant, small_objects, table
from mlesam.world import sensors
from mlesam.world.devices import LidarModel
from mlesam.world.draws import Draws
from mlesam.world.geometry import Camera
from mlesam.world.render import INSTANT

WEATHERS = ("cloud", "fog", "night", "rain", "sun")
CASES: dict[str, str | None] = {
    "motionblur": "motion-blur", "overexposure": "over-exposure", "underexposure": "under-exposure",
    "lidarjitter": "lidar-jitter", "eventlowres": None,
}  # fmt: skip
"""Failures, and the world's fault that shows them; events of low resolution are a smaller picture."""
MAPS = {"train": (1, 2, 4, 6), "val": (3, 5), "test": (7, 10)}
STEP = 50
"""Frame numbers are those of the simulation, of which every fiftieth is kept."""
SIZE = 1042
LOW_EVENTS = 512
SMALL = 261
"""Side of what is rendered, a quarter."""
FOCAL, PITCH = 0.55, -0.04
"""Focal length in picture widths, and the sine of the camera's pitch."""
LIDAR = LidarModel(beams=64, step=0.008)
NAMES: dict[str, str | None] = {
    "sky": "Sky", "road": "Road", "sidewalk": "SideWalk", "grass": "Terrain", "building": "Building", "wall": "Wall",
    "hedge": "Vegetation", "tree": "Vegetation", "pole": "Pole", "sign": "TrafficSign", "vehicle": "Cars",
    "pedestrian": "Pedestrian", "clutter": "Dynamic", "marking": "RoadLine", "lorry": "Truck",
}  # fmt: skip
UNLABELED, IGNORED = 0, 255
"""Raw label values that are no class. Ids start at 1."""


@dataclass(frozen=True)
class Shot:
    """One frame: where its files go, and what it shows."""

    split: str
    weather: str
    scene: str
    number: int
    case: str | None
    key: tuple[int | str, ...]
    ahead: float

    def path(self, root: Path, folder: str, word: str) -> Path:
        """``ROOT/folder/weather/split/scene/number_word_front.png``; the folder ``hha`` has the word ``depth``."""
        return root / folder / self.weather / self.split / self.scene / f"{self.number:06d}_{word}_front.png"


def shots(seed: int) -> list[Shot]:
    """Every weather in every split with one scene that is well and one that has a failure; train has two frames of the first."""
    found = []
    for turn, (split, maps) in enumerate(MAPS.items()):
        for place, weather in enumerate(WEATHERS):
            for case in (None, list(CASES)[(place + turn) % len(CASES)]):
                key = (seed, "deliver", split, weather, case or "well")
                draws = Draws("mini", "name", *key)
                scene = f"MAP_{draws.choice(maps)}_point{1 + draws.integer(120)}{f'_{case}' if case else ''}"
                first = STEP * (1 + draws.integer(2400))
                for more in range(2 if split == "train" and case is None else 1):
                    found.append(Shot(split, weather, scene, first + STEP * more, case, key, 4.0 * more))
    return found


def write(root: Path, seed: int, advance: Callable[[int, int], None]) -> dict[str, int]:
    """Write the miniature; returns the frames of each split."""
    jobs = shots(seed)
    for done, shot in enumerate(jobs, 1):
        write_shot(root, shot)
        advance(done, len(jobs))
    return {split: sum(shot.split == split for shot in jobs) for split in MAPS}


def write_shot(root: Path, shot: Shot) -> None:
    """Write one frame's six files."""
    size = (SIZE, SIZE)
    now = at(shot)
    view = now.view(camera(now))
    base = now.draws.integer(2**31)
    fault = CASES[shot.case] if shot.case else None
    picture = now.picture(view, Draws(base, "rgb"), fault)
    image = smooth(picture, size)
    if Draws(*shot.key, "alpha").chance(0.5):
        image = np.dstack([image, np.full(size, 255, dtype=np.uint8)])
    write_png(shot.path(root, "img", "rgb"), image)
    write_png(shot.path(root, "depth", "depth"), nearest(depth(view), size))
    write_png(shot.path(root, "hha", "depth"), nearest(hha(view), size))
    write_png(shot.path(root, "lidar", "lidar"), lidar(now, view, Draws(base, "lidar"), fault))
    side = LOW_EVENTS if shot.case == "eventlowres" else SIZE
    write_png(shot.path(root, "event", "event"), nearest(events(now, view, Draws(base, "event")), (side, side)))
    write_png(shot.path(root, "semantic", "semantic"), nearest(semantic(now, view), size))


def at(shot: Shot) -> Instant:
    """The instant that a frame shows. Night is a weather of its own."""
    dark = shot.weather == "night"
    return instant(shot.key, "sun" if dark else shot.weather, dark, shot.ahead)


def camera(now: Instant, seconds: float = 0.0) -> Camera:
    """Where the camera is, or was a moment before."""
    return now.camera((SMALL, SMALL), FOCAL * SMALL, PITCH, seconds=seconds)


def depth(view: View) -> np.ndarray:
    """(H, W) uint8 metres along the camera's axis, 1 to 255; the sky is 255. The doubt is the module's docstring's."""
    return np.clip(np.rint(view.seen.hits.depth), 1, 255).astype(np.uint8)


def hha(view: View) -> np.ndarray:
    """(H, W, 3) uint8: disparity, height and angle (Gupta et al., ECCV 2014), with the scale of Depth2HHA-python.

    Disparity is 31000 / centimetres of depth; height is centimetres above the road; angle is degrees between the normal and
    straight up, plus 38. All end at 255. The sky has disparity 0.
    """
    metres = np.where(np.isfinite(view.seen.hits.depth), view.seen.hits.depth, np.float32(1e6))
    disparity = 310.0 / np.maximum(metres, 0.1)
    height = 100.0 * view.seen.position[1]
    angle = np.degrees(np.arccos(np.clip(view.seen.normal[1], -1, 1))) + 38.0
    return np.clip(np.rint(np.dstack([disparity, height, angle])), 0, 255).astype(np.uint8)


def lidar(now: Instant, view: View, draws: Draws, fault: str | None) -> np.ndarray:
    """(SIZE, SIZE) uint8: metres of each return in the one pixel it falls on, 0 elsewhere."""
    measured = sensors.lidar(view.seen, now.air, LIDAR, draws, fault)
    metres = measured[..., 0] * (sensors.LIDAR_RANGE / 65535)
    row, column = np.nonzero(measured[..., 0])
    where = sources(SIZE, SMALL)  # the middle of what each rendered pixel becomes
    image = np.zeros((SIZE, SIZE), dtype=np.uint8)
    image[where[row], where[column]] = np.clip(np.rint(metres[row, column]), 1, 255)
    return image


def events(now: Instant, view: View, draws: Draws) -> np.ndarray:
    """(H, W, 3) uint8: 255 in blue where it got brighter, in red where it got darker."""
    before = now.view(camera(now, -INSTANT), -INSTANT).light
    counts = sensors.events(before, view.light, now.air, draws)
    return np.where(counts[..., ::-1] > 0, 255, 0).astype(np.uint8)


def semantic(now: Instant, view: View) -> np.ndarray:
    """(H, W, 4) uint8: raw id 1 to 25 in red. The smallest object is unlabeled, the second smallest ignored."""
    raw = table(NAMES, CLASSES, IGNORED)[now.things(view.seen)] + np.uint8(1)
    for value, number in zip((UNLABELED, IGNORED), small_objects(view.seen.instance, 2), strict=False):
        raw[view.seen.instance == number] = value
    nothing = np.zeros_like(raw)
    return np.dstack([raw, nothing, nothing, np.full_like(raw, 255)])


__all__ = ["CASES", "MAPS", "WEATHERS", "shots", "write", "write_shot"]
