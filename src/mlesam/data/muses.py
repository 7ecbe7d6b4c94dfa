"""MUSES: driving in clear weather, fog, rain and snow, by day and at night (Broedermann et al., arXiv 2401.12761).

``ROOT/{frame_camera,lidar,radar,event_camera}/{train,val,test}/{clear,fog,rain,snow}/{day,night}/<stem>_<sensor>.<ext>`` as
recorded, with ``calib.json``; and ``ROOT/projected_to_rgb/...`` as the official scripts project them. Both are read: recordings
are projected here, see docs/sensors/. The labels of test are with the benchmark server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from mlesam.config import DataConfig
from mlesam.data.benchmark import SPLITS, Benchmark, Options, by_frame
from mlesam.data.dataset import Frame, Submission
from mlesam.errors import DataError, RequestError
from mlesam.sensors.archives import AnyPath, readable
from mlesam.sensors.files import read_array
from mlesam.sensors.gnss import Drive
from mlesam.sensors.rig import MUSES_SIZE, Rig, load_mounts, read_json

CLASSES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0), "vegetation": (107, 142, 35), "terrain": (152, 251, 152),
    "sky": (70, 130, 180), "person": (220, 20, 60), "rider": (255, 0, 0), "car": (0, 0, 142),
    "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100), "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}  # fmt: skip
"""Class names and colours by train id: those of Cityscapes. Source: github.com/timbroed/MUSES."""

FOLDERS = {"rgb": "frame_camera", "lidar": "lidar", "event": "event_camera", "radar": "radar"}
SPECS = {
    "lidar": {"channels": 3, "unit": "m, 1, m", "range": [-1000.0, 1000.0], "missing": 0.0, "dtype": "float32"},
    "radar": {"channels": 3, "unit": "m, 1, 1", "range": [0.0, 1000.0], "missing": 0.0, "dtype": "float32"},
    "event": {"channels": 2, "unit": "events", "range": [0.0, 255.0], "dtype": "float32"},
}
PUBLISHED = {"train": {"": 1500}, "val": {"": 250}, "test": {"": 750}}
ENLARGED = {"lidar": 2, "radar": 9}
"""Sides in pixels of a point, as in the official scripts."""
PROJECTED = "projected_to_rgb"
WEATHERS, TIMES = ("clear", "fog", "rain", "snow"), ("day", "night")
MOVING = ("lidar", "radar")
"""Sensors whose recordings take so long that the vehicle moves meanwhile."""
EXPOSURE = ("frame_camera_exposure_start_timestamp_us", "frame_camera_exposure_end_timestamp_us")
"""Of a scene in ``meta.json``: microseconds on the clock of LiDAR and radar, whose files hold seconds."""
SUBMISSION = Submission(
    server="https://www.codabench.org/competitions/14005/",
    split="test",
    frames=PUBLISHED["test"][""],
    classes=tuple(CLASSES),
    size=MUSES_SIZE,
    folder="labelTrainIds",
    largest=200_000_000,
)
"""The semantic benchmark. CAFuser, whose authors run it, says to zip the folder ``labelTrainIds`` that its evaluator writes:
train ids as ``<stem>.png``, for example ``REC0006_frame_042430.png`` (github.com/timbroed/CAFuser, README.md and
``cafuser/evaluation/muses_sem_evaluator.py``). MUSES' SDK says nothing of it. The page on Codabench was not at hand; as others
quote it, it asks for that folder, for names that begin with the stem, for one picture of 1920 x 1080 for every image of test, and
for at most 200 MB, here 200e6 bytes (github.com/gist-ailab/drone-MemorySAM, ``tools/verify_submission.py``; they report a scored
submission of these names). Both write no 255, and here it is refused."""


@dataclass(frozen=True)
class MusesFrame(Frame):
    """Recordings are projected into the camera's picture, projections are decoded; both give the same units.

    Attributes:
        drive: how the vehicle moved, where that is to be corrected.
    """

    rig: Rig | None = field(default=None, compare=False, repr=False)
    drive: Drive | None = field(default=None, compare=False, repr=False)

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        if modality == "rgb":
            return super().read(modality, channels)
        path = self.files[modality]
        if PROJECTED in path.parts:
            return decode_projected(path, modality)
        assert self.rig is not None
        return self.rig.encode(modality, path, None if self.drive is None else self.drive.motion(modality))


def decode_projected(path: AnyPath, modality: str) -> np.ndarray:
    """A file of the official projection as (H, W, C) float32; all channels 0 where nothing was measured.

    LiDAR: range (m), intensity, height above the sensor (m). Radar: range (m), intensity, 0. Event: counts of positive and of
    negative events. The PNG files of LiDAR and radar hold (value + 100) * 150 in 16 bits, and all PNG files are written with
    the channels in OpenCV's order, the last one first.
    """
    if path.suffix == ".npz":
        try:
            with np.load(readable(path), allow_pickle=False) as stored:
                array = stored[stored.files[0]]
        except (ValueError, OSError, KeyError, IndexError) as error:
            raise DataError(f"{path} cannot be decoded ({error}); project it again.") from error
    else:
        array = read_array(path, 3)
        if path.suffix == ".png":
            array = array[..., ::-1]
            if modality != "event":
                array = array.astype(np.float32) / 150 - 100
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"{path} has the shape {array.shape}, but a projected file has three channels; project it again."
        )
    array = array.astype(np.float32)
    return array[..., :2] if modality == "event" else array


@dataclass(frozen=True)
class MusesOptions(Options):
    """What may stand behind ``muses:ROOT?``."""

    source: Literal["auto", "raw", "projected"] = "auto"
    """``raw``: the recordings, projected here. ``projected``: the files of the official scripts. ``auto``: for each sensor
    the projected files where there are any."""
    enlarge: bool = True
    """Points that are projected here grow to the sizes of the official scripts: 2 pixels for LiDAR, 9 for radar."""
    motion: bool = False
    """Points that are projected here are brought from where the vehicle was when each was measured to where it was at the
    camera's exposure, with the speed and turn of ``gnss``. The official script does so with ``--motion_compensation`` alone."""


class Muses(Benchmark):
    """``muses:ROOT``; ROOT is the folder, zip or tar that holds ``frame_camera`` and ``gt_semantic``."""

    kind = "muses"
    title = "MUSES"
    source = "https://muses.ethz.ch"
    folders = FOLDERS
    needed = ("frame_camera", "gt_semantic")
    classes = CLASSES
    specs = SPECS
    published = PUBLISHED
    option_type = MusesOptions
    submission = SUBMISSION

    def __init__(self, text: str, config: DataConfig) -> None:
        super().__init__(text, config)
        assert isinstance(self.options, MusesOptions)
        if self.options.motion:
            self._check_motion()

    def _check_motion(self) -> None:
        homes = {m: home for m in MOVING if (home := self._home(m)) is not None}
        if not homes:
            raise RequestError(f"{self.name} has neither lidar nor radar to correct for motion; leave motion out.")
        for modality, home in homes.items():
            if PROJECTED in home.parts:
                raise RequestError(
                    f"{self.name} takes {modality} from {home}, and motion corrects recordings alone; add source=raw, or leave "
                    "motion out and project with --motion_compensation."
                )
        if not (self.root / "gnss").is_dir():
            raise RequestError(
                f"there is no gnss in {self.root}, which motion needs; fetch it from {self.source}, or leave motion out."
            )

    def _find_modalities(self) -> Iterable[str]:
        return [m for m in FOLDERS if self._home(m) is not None]

    def _home(self, modality: str) -> AnyPath | None:
        """The folder of a sensor's files, recorded or projected; None where there is none."""
        assert isinstance(self.options, MusesOptions)
        raw, projected = self.root / FOLDERS[modality], self.root / PROJECTED / FOLDERS[modality]
        if modality == "rgb":
            return raw
        order = {"auto": (projected, raw), "raw": (raw,), "projected": (projected,)}[self.options.source]
        return next((folder for folder in order if folder.is_dir()), None)

    @cached_property
    def rig(self) -> Rig:
        """The calibration, which recordings need."""
        assert isinstance(self.options, MusesOptions)
        rig = Rig.load(self.root / "calib.json")
        if not self.options.enlarge:
            return rig
        grown = {m: dataclasses.replace(rig.sensors[m], dilate=side) for m, side in ENLARGED.items()}  # type: ignore[type-var]
        return dataclasses.replace(rig, sensors={**rig.sensors, **grown})

    @cached_property
    def _drives(self) -> dict[str, Drive]:
        """By stem, how the vehicle moved in each scene, which ``motion`` needs."""
        mounts = load_mounts(self.root / "calib.json")
        meta = self.root / "meta.json"
        mend = "unpack it again, or leave motion out"
        scenes = read_json(meta, mend)
        try:
            return {
                stem: Drive(self.root / scene["path_to_gnss"], sum(int(scene[key]) for key in EXPOSURE) / 2e6, mounts)
                for stem, scene in scenes.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{meta} does not say {', '.join(('path_to_gnss', *EXPOSURE))} of every scene ({error!r}); {mend}."
            ) from error

    def _drive(self, name: str) -> Drive:
        stem = name.rpartition("/")[2]
        if stem not in self._drives:
            raise DataError(f"{self.root / 'meta.json'} says nothing of {stem}; unpack it again, or leave motion out.")
        return self._drives[stem]

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if (self.root / "frame_camera" / split).is_dir())

    def about(self, split: str) -> str | None:
        """Of val the literature reports two kinds of numbers that cannot be compared."""
        if split != "val":
            return None
        return "Pixels without a label (255) are left out. Some published code scores them as road; such numbers are others."

    def _list_frames(self, split: str) -> Iterable[Frame]:
        assert isinstance(self.options, MusesOptions)
        homes = {m: home for m in self.modalities if (home := self._home(m)) is not None}
        files = {m: self._files(home / split, FOLDERS[m]) for m, home in homes.items()}
        labels = self._files(self.root / "gt_semantic" / split, "gt_labelTrainIds")
        recorded = any(m != "rgb" and PROJECTED not in home.parts for m, home in homes.items())
        rig = self.rig if recorded else None
        for name, own, label in by_frame(files, labels):
            weather, time, _ = name.split("/")
            drive = self._drive(name) if self.options.motion else None
            yield MusesFrame(name, own, label, (weather, time), rig=rig, drive=drive)

    def _files(self, folder: AnyPath, word: str) -> dict[str, AnyPath]:
        """Files by ``<weather>/<time>/<stem>``."""
        found = {}
        for weather in WEATHERS:
            for time in TIMES:
                place = folder / weather / time
                for path in sorted(place.iterdir()) if place.is_dir() else ():
                    if path.stem.endswith(f"_{word}") and not path.name.startswith("."):
                        found[f"{weather}/{time}/{path.stem.removesuffix(f'_{word}')}"] = path
        return found
