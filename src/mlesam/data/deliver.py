"""DELIVER: 25 classes in CARLA streets, five weathers, five ways in which a sensor fails (Zhang et al., arXiv 2303.01480).

``ROOT/{img,hha,depth,lidar,event,semantic}/{cloud,fog,night,rain,sun}/{train,val,test}/<scene>/<frame>_<word>_front.png``,
1042 x 1042 pixels. A scene whose name ends in ``_lidarjitter`` (or another case) has that fault.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from mlesam.data.benchmark import SPLITS, Benchmark, Options, by_frame
from mlesam.data.dataset import Frame
from mlesam.sensors.archives import AnyPath
from mlesam.sensors.files import image_size, read_array

CLASSES: dict[str, tuple[int, int, int]] = {
    "Building": (70, 70, 70), "Fence": (100, 40, 40), "Other": (55, 90, 80), "Pedestrian": (220, 20, 60),
    "Pole": (153, 153, 153), "RoadLine": (157, 234, 50), "Road": (128, 64, 128), "SideWalk": (244, 35, 232),
    "Vegetation": (107, 142, 35), "Cars": (0, 0, 142), "Wall": (102, 102, 156), "TrafficSign": (220, 220, 0),
    "Sky": (70, 130, 180), "Ground": (81, 0, 81), "Bridge": (150, 100, 100), "RailTrack": (230, 150, 140),
    "GroundRail": (180, 165, 180), "TrafficLight": (250, 170, 30), "Static": (110, 190, 160),
    "Dynamic": (170, 120, 50), "Water": (45, 60, 150), "Terrain": (145, 170, 100), "TwoWheeler": (0, 0, 230),
    "Bus": (0, 60, 100), "Truck": (0, 0, 70),
}  # fmt: skip
"""Class names and colours by id, 0 to 24 (the label files hold 1 to 25). Source: github.com/jamycheung/DELIVER."""

CASES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
"""Faults, as the last part of a scene's name."""
WORDS = {"img": "rgb", "hha": "depth", "depth": "depth", "lidar": "lidar", "event": "event", "semantic": "semantic"}
"""What the files of a folder are called: those of ``hha`` say ``depth``."""


SENSORS = {"rgb": "img", "depth": "hha", "lidar": "lidar", "event": "event"}
HHA = {"unit": "1", "range": [0.0, 1.0], "scale": None, "missing": None, "interpolation": "bilinear"}
"""Horizontal disparity, height and angle as a picture: a fraction of full scale, dense."""
# 0 is unlabelled and 255 void; both become 255, which is ignored.
LABEL_MAP = {0: 255, **{i: i - 1 for i in range(1, 26)}}
PUBLISHED = {
    "train": {
        "": 3983, "motionblur": 600, "overexposure": 200, "underexposure": 199, "lidarjitter": 199, "eventlowres": 200,
    },
    "val": {"": 2005},
    "test": {
        "": 1897, "cloud": 379, "fog": 379, "night": 379, "rain": 380, "sun": 380, "motionblur": 300,
        "overexposure": 100, "underexposure": 100, "lidarjitter": 99, "eventlowres": 100,
    },
}  # fmt: skip
"""Frames as in public logs and file lists."""
ABOUT = {
    "val": "The split that most publications report, at 1024 x 1024 pixels, labels as well (?squash=1024).",
    "test": "Most publications report val, where the same model scores far higher; a number of test is compared with test alone.",
}


class DeliverFrame(Frame):
    """Event pictures of the low-resolution case are brought to the camera's size; ids are the label's first channel."""

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        array = super().read(modality, channels)
        if modality == "event" and "eventlowres" in self.tags:
            reference = self.label if self.label is not None else self.files.get("rgb")
            if reference is not None:
                height, width = image_size(reference)
                array = cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return array

    def read_label(self, colors: Collection[tuple[int, int, int]] = ()) -> np.ndarray:
        assert self.label is not None
        raw = read_array(self.label)
        return raw if raw.ndim == 2 else raw[..., 0]


@dataclass(frozen=True)
class DeliverOptions(Options):
    """What may stand behind ``deliver:ROOT?``."""

    depth: Literal["hha", "raw"] = "hha"
    """Which pictures the sensor depth has: those of the folder hha, as in all published results, or of the folder depth."""


class Deliver(Benchmark):
    """``deliver:ROOT``; ROOT is the folder, zip or tar that holds ``img`` and ``semantic``."""

    kind = "deliver"
    title = "DELIVER"
    source = "https://github.com/jamycheung/DELIVER"
    folders = SENSORS
    needed = ("img", "semantic")
    classes = CLASSES
    label_map = LABEL_MAP
    published = PUBLISHED
    option_type = DeliverOptions

    def _find_modalities(self) -> Iterable[str]:
        assert isinstance(self.options, DeliverOptions)
        if self.options.depth == "raw":
            self.folders = {**SENSORS, "depth": "depth"}
        else:
            self.specs = {"depth": HHA}
        return super()._find_modalities()

    def splits(self) -> tuple[str, ...]:
        weathers = [p for p in (self.root / "img").iterdir() if p.is_dir()]
        return tuple(split for split in SPLITS if any((weather / split).is_dir() for weather in weathers))

    def default_split(self) -> str:
        """The literature reports val."""
        return "val" if "val" in self.splits() else super().default_split()

    def about(self, split: str) -> str | None:
        return ABOUT.get(split)

    def _list_frames(self, split: str) -> Iterable[Frame]:
        files = {m: self._files(self.folders[m], split) for m in self.modalities}
        labels = self._files("semantic", split)
        for name, own, label in by_frame(files, labels):
            weather, scene, _ = name.split("/")
            case = scene.rpartition("_")[2]
            yield DeliverFrame(name, own, label, (weather, *((case,) if case in CASES else ())))

    def _files(self, folder: str, split: str) -> dict[str, AnyPath]:
        """Files of a folder by ``<weather>/<scene>/<frame>``."""
        pattern = re.compile(rf"(.+)_{WORDS[folder]}_front\.png")
        found = {}
        for weather in (self.root / folder).iterdir():
            if not (weather / split).is_dir():
                continue
            for scene in (weather / split).iterdir():
                for path in scene.iterdir() if scene.is_dir() else ():
                    match = pattern.fullmatch(path.name)
                    if match and not path.name.startswith("."):
                        found[f"{weather.name}/{scene.name}/{match[1]}"] = path
        return found
