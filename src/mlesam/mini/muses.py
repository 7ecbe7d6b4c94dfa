"""A miniature of MUSES: raw recordings of a colour camera, LiDAR, radar, event camera and GNSS, and their calibration.

The layout, names and encodings are those of the original (github.com/timbroed/MUSES, muses.ethz.ch). Left out: reference frames,
uncertainty and detection labels, the licence, the original's README. What is not sure about the original:

- Event recordings: reported as 30 ms with the groups of DSEC; a longer download exists. Both occur here: half of the frames have
  the last 100 ms, the others the last 30 ms. Compressed with gzip; the SDK imports hdf5plugin, so the original may be not.
- ``ring``: 1 to 5, by a report. Intensity: 0 to 255. GNSS: the extension of the files.
- ``sun_level``, ``precipitation_level`` and ``precipitation_tag``: values after CAFuser's and DGFusion's use of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlesam.data.muses import CLASSES
from mlesam.mini import recordings, rig
from mlesam.mini.pictures import nearest, smooth, write_png
from mlesam.mini.projected import project_events, project_lidar, project_radar, write_projected
from mlesam.mini.scene import Instant, instant, table
from mlesam.world.draws import Draws

WEATHERS = ("clear", "fog", "rain", "snow")
TIMES = ("day", "night")
SPLITS = ("train", "val", "test")
NAMES: dict[str, str | None] = {
    "sky": "sky", "road": "road", "sidewalk": "sidewalk", "grass": "terrain", "building": "building", "wall": "wall",
    "hedge": "vegetation", "tree": "vegetation", "pole": "pole", "sign": "traffic sign", "vehicle": "car",
    "pedestrian": "person", "clutter": None, "marking": "road", "lorry": "truck",
}  # fmt: skip
"""Bins, barriers and bags are void, as in Cityscapes."""
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' ids by train id: what ``gt_labelIds`` and the panoptic labels hold."""
IGNORE, STATIC = 255, 4
"""Train id and Cityscapes id of what has no class."""
COUNTED = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""Classes whose objects the panoptic labels keep apart."""
TURNS = (0.05, 0.2)
"""rad/s, to either side: a bend of the road to a corner."""
CLOCK = 1_671_000_000_000_000
"""Microseconds since 1970 of the first frame."""


@dataclass(frozen=True)
class Shot:
    """One frame: its number in the miniature, where its files go, and what it shows."""

    index: int
    split: str
    weather: str
    time: str
    stem: str
    key: tuple[int | str, ...]

    @property
    def folder(self) -> str:
        return f"{self.split}/{self.weather}/{self.time}"

    def path(self, sensor: str, ending: str) -> str:
        """Relative to the root, for example ``lidar/train/fog/day/REC0001_frame_000001_lidar.bin``."""
        return f"{sensor}/{self.folder}/{self.stem}_{ending}"

    @property
    def exposure(self) -> tuple[int, int]:
        """Start and end, microseconds."""
        start = CLOCK + 60_000_000 * self.index
        return start, start + (20_000 if self.time == "night" else 8_000)


def shots(seed: int) -> list[Shot]:
    """One frame of every weather at day and at night in every split."""
    found = []
    for split, weather, time in itertools.product(SPLITS, WEATHERS, TIMES):
        key = (seed, "muses", split, weather, time)
        stem = f"REC{1 + len(found):04d}_frame_{Draws('mini', 'name', *key).integer(1_000_000):06d}"
        found.append(Shot(len(found), split, weather, time, stem, key))
    return found


def write(root: Path, seed: int, advance: Callable[[int, int], None], projected: str | None = None) -> dict[str, int]:
    """Write the miniature; returns the frames of each split. projected: png, npy or npz, the SDK's projections as well."""
    jobs = shots(seed)
    segments = {}
    for done, shot in enumerate(jobs, 1):
        segments[shot.stem] = write_shot(root, shot, projected)
        advance(done, len(jobs))
    write_text(root, jobs, segments)
    return {split: sum(shot.split == split for shot in jobs) for split in SPLITS}


def write_shot(root: Path, shot: Shot, projected: str | None = None) -> list[dict[str, object]]:
    """Write one frame's files; returns its panoptic segments, none for test."""
    now = at(shot)
    base = now.draws.integer(2**31)
    start, end = shot.exposure
    middle = (start + end) // 2
    size, focal, window = rig.frame_of(rig.RGB_SIZE, rig.RGB_SCALE, rig.RGB_K)
    view = now.view(now.camera(size, focal, np.sin(rig.PITCH)))
    picture = now.picture(view, Draws(base, "rgb"))[window]
    write_png(root / shot.path("frame_camera", "frame_camera.png"), smooth(picture, rig.RGB_SIZE))

    points = recordings.lidar(now, middle / 1e6, Draws(base, "lidar"))
    _make(root / shot.path("lidar", "lidar.bin")).write_bytes(points.tobytes())
    radar = recordings.radar(now, middle, Draws(base, "radar"))
    write_png(root / shot.path("radar", "radar.png"), radar)
    events, length = recordings.events(now, Draws(base, "events")), recordings.WINDOW
    if (shot.index + shot.index // 2) % 2:  # neither weather nor time of day tells which
        events, length = recordings.shortened(events), recordings.SHORT
    recordings.write_events(root / shot.path("event_camera", "event_camera.h5"), events, length, middle)
    _make(root / shot.path("gnss", "gnss.txt")).write_text(recordings.gnss(now, middle))
    if projected:
        for sensor, image in (
            ("lidar", project_lidar(points)), ("radar", project_radar(radar)), ("event_camera", project_events(events)),
        ):  # fmt: skip
            write_projected(root / "projected_to_rgb" / shot.path(sensor, f"{sensor}.x"), image, projected)
    if shot.split == "test":
        return []
    return _write_labels(root, shot, now.things(view.seen)[window], view.seen.instance[window])


def at(shot: Shot) -> Instant:
    """The instant that a frame shows. The vehicle turns while it drives; its GNSS receiver goes straight ahead."""
    now = instant(shot.key, shot.weather, shot.time == "night", height=rig.HEIGHT)
    draws = Draws("mini", "turn", *shot.key)
    rate = draws.uniform(*TURNS) * (1 if draws.integer(2) else -1)
    return dataclasses.replace(now, turn_rate=rate, pivot=rig.GNSS)


def _write_labels(root: Path, shot: Shot, things: np.ndarray, instance: np.ndarray) -> list[dict[str, object]]:
    train_ids = table(NAMES, CLASSES, IGNORE)[things]
    ids = np.full(256, STATIC, dtype=np.uint8)
    ids[: len(LABEL_IDS)] = LABEL_IDS
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: len(CLASSES)] = list(CLASSES.values())
    for ending, array in (
        ("gt_labelTrainIds", train_ids), ("gt_labelIds", ids[train_ids]), ("gt_labelColor", colors[train_ids]),
    ):  # fmt: skip
        write_png(root / shot.path("gt_semantic", f"{ending}.png"), nearest(array, rig.RGB_SIZE))
    numbers, segments = _segments(train_ids, instance)
    shown = np.dstack([numbers % 256, numbers // 256 % 256, numbers // 65536]).astype(np.uint8)
    write_png(root / shot.path("gt_panoptic", "gt_panoptic.png"), nearest(shown, rig.RGB_SIZE))
    return segments


def _segments(train_ids: np.ndarray, instance: np.ndarray) -> tuple[np.ndarray, list[dict[str, object]]]:
    """(H, W) segment numbers (Cityscapes id, times 1000 plus a count for objects; 0 is void), and COCO's list of them."""
    numbers = np.zeros(train_ids.shape, dtype=np.int64)
    segments: list[dict[str, object]] = []
    for train_id, name in enumerate(CLASSES):
        of_class = train_ids == train_id
        objects = np.unique(instance[of_class]) if name in COUNTED else [None]
        for count, number in enumerate(objects):
            mask = of_class if number is None else of_class & (instance == number)
            if not mask.any():
                continue
            segment = LABEL_IDS[train_id] if number is None else 1000 * LABEL_IDS[train_id] + count
            numbers[mask] = segment
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            segments.append({
                "id": segment, "category_id": LABEL_IDS[train_id], "area": int(mask.sum()) * rig.RGB_SCALE**2,
                "bbox": [int(v) * rig.RGB_SCALE for v in box], "iscrowd": 0,
            })  # fmt: skip
    return numbers, segments


def write_text(root: Path, jobs: list[Shot], segments: dict[str, list[dict[str, object]]]) -> None:
    """``calib.json``, ``meta.json`` and the lists of panoptic labels."""
    _write_json(root / "calib.json", rig.calibration())
    _write_json(root / "meta.json", {shot.stem: _meta(shot) for shot in jobs})
    categories = [
        {"id": LABEL_IDS[i], "name": name, "color": list(color), "supercategory": "", "isthing": int(name in COUNTED)}
        for i, (name, color) in enumerate(CLASSES.items())
    ]
    for split in SPLITS:
        own = [shot for shot in jobs if shot.split == split]
        described: dict[str, object] = {"images": [_image(shot) for shot in own], "categories": categories}
        if split != "test":
            described["annotations"] = [
                {"image_id": shot.stem, "file_name": _image(shot)["file_name"], "segments_info": segments[shot.stem]}
                for shot in own
            ]
        name = "test_image_info" if split == "test" else split
        _write_json(root / "gt_panoptic" / f"{name}.json", described)


def _image(shot: Shot) -> dict[str, object]:
    height, width = rig.RGB_SIZE
    file_name = f"{shot.folder}/{shot.stem}_gt_panoptic.png"
    return {
        "id": shot.stem, "file_name": file_name, "width": width, "height": height, "weather": shot.weather,
        "time_of_day": shot.time,
    }  # fmt: skip


def _meta(shot: Shot) -> dict[str, object]:
    start, end = shot.exposure
    falling = shot.weather if shot.weather in ("rain", "snow") else "none"
    entry: dict[str, object] = {
        "split": shot.split,
        "path_to_frame_camera": shot.path("frame_camera", "frame_camera.png"),
        "path_to_lidar": shot.path("lidar", "lidar.bin"),
        "path_to_radar": shot.path("radar", "radar.png"),
        "path_to_event_camera": shot.path("event_camera", "event_camera.h5"),
        "path_to_gnss": shot.path("gnss", "gnss.txt"),
        "frame_camera_exposure_start_timestamp_us": start,
        "frame_camera_exposure_end_timestamp_us": end,
        "weather": shot.weather,
        "time_of_day": shot.time,
        "ground_condition": {"rain": "wet", "snow": "snow"}.get(shot.weather, "dry"),
        "precipitation_level": "none" if falling == "none" else "moderate",
        "precipitation_tag": falling,
        "sun_level": "none" if shot.time == "night" else "sunlight" if shot.weather == "clear" else "overcast",
        "tunnel": False,
    }
    if shot.split != "test":
        entry["path_to_gt_panoptic"] = shot.path("gt_panoptic", "gt_panoptic.png")
    return entry


def _make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(path: Path, content: object) -> None:
    _make(path).write_text(json.dumps(content, indent=1) + "\n")


__all__ = ["SPLITS", "TIMES", "WEATHERS", "shots", "write", "write_shot"]
