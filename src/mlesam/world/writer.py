"""Writes the world as a dataset in the folder layout, whole or not at all, with as many processes as there are cores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from mlesam.errors import RequestError, WorkError
from mlesam.sensors.files import write_array
from mlesam.world.devices import camera_model, lidar_model
from mlesam.world.drive import Drive
from mlesam.world.options import WorldOptions
from mlesam.world.render import HASH, SENSORS, VERSION, Rig, WorldFrame, render_frame
from mlesam.world.scene import CLASSES

ABOUT = "world.json"
SPECS: dict[str, dict[str, object]] = {
    "rgb": {},
    # Millimetres along the camera's forward axis; 0 where the stereo camera found no match.
    "depth": {"unit": "m", "scale": 0.001, "range": [0, 65], "missing": 0, "dtype": "uint16"},
    # Range (full scale 100 m), intensity, height above the road (-2 to 12 m); 0 where no return came back.
    "lidar": {"channels": 3, "dtype": "uint16", "missing": 0},
    # Events that got brighter, nothing, events that got darker: 24 grey levels each.
    "event": {"channels": 3, "dtype": "uint8"},
    # Degrees Celsius from -40 (0) to 80 (full scale).
    "thermal": {"dtype": "uint16"},
    "hyperspectral": {"channels": 16, "dtype": "uint16"},
}
"""What the files hold, as ``dataset.yaml`` says it."""


def write_world(
    root: Path, options: WorldOptions, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, object]:
    """Render a dataset and write it to ``root``, which must not exist or be empty.

    Args:
        advance: called with frames done and frames in all.

    Returns:
        The content of ``world.json``: version and hash of the world, options, and a hash over all frames.

    Raises:
        RequestError: something is in ``root`` already. WorkError: the disk is full or cannot be written.
    """
    jobs = [(split, index) for split, count in options.splits().items() for index in range(count)]
    with written_whole(root, last=ABOUT) as temporary:
        _make_folders(temporary, options)
        digests, tags = [], {}
        for (split, index), (digest, own) in zip(jobs, _rendered(temporary, options, jobs), strict=True):
            digests.append(digest)
            for tag in own:
                tags.setdefault(tag, []).append(frame_id(options, split, index))
            advance(len(digests), len(jobs))
        about = {
            "world_version": VERSION,
            "world_hash": HASH,
            "options": dataclasses.asdict(options),
            "frames_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        }
        _write_text(temporary, options, about, tags)
    return about


@contextmanager
def written_whole(root: Path, last: str) -> Iterator[Path]:
    """A temporary directory that becomes ``root``, which must not exist or be empty, once everything is in it; or nothing does.

    Args:
        last: the file that says what the directory is; it arrives after all others.

    Raises:
        RequestError: something is in ``root`` already. WorkError: the disk is full or cannot be written, or a process was killed.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RequestError(f"{root} exists and is not empty; choose a new directory.")
    root = root.resolve()
    temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if root.exists():  # it may be somebody's current directory, which must stay what it is
            for path in sorted(temporary.iterdir(), key=lambda p: p.name == last):
                path.rename(root / path.name)
        else:
            temporary.rename(root)
    except BrokenProcessPool as error:
        raise WorkError(f"a process that rendered {root} was killed, perhaps for memory; render it again.") from error
    except OSError as error:
        raise WorkError(f"{root} cannot be written ({error}); make room or choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def frame_id(options: WorldOptions, split: str, index: int) -> str:
    return f"{'drive' if options.sequence else split}_{index:05d}"


def sensors_of(options: WorldOptions) -> tuple[str, ...]:
    return (*SENSORS, "hyperspectral") if options.hyperspectral else SENSORS


def _make_folders(root: Path, options: WorldOptions) -> None:
    for split in options.splits():
        for folder in (*sensors_of(options), "labels"):
            (root / folder / split).mkdir(parents=True)
    (root / "tags").mkdir()


def _write_text(root: Path, options: WorldOptions, about: dict[str, object], tags: dict[str, list[str]]) -> None:
    for tag, ids in tags.items():
        (root / "tags" / f"{tag}.txt").write_text("\n".join(ids) + "\n")
    described = {
        "classes": [{"name": name, "color": list(color)} for name, color in CLASSES.items()],
        "sensors": {sensor: SPECS[sensor] for sensor in sensors_of(options)},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(described, sort_keys=False, default_flow_style=None))
    (root / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    if options.sequence:
        (root / "drive.json").write_text(json.dumps(_drive(options).description(sensors_of(options)), indent=1) + "\n")


def _drive(options: WorldOptions) -> Drive:
    return Drive(options.seed, options.frames, options.size, options.city, options.weather, _rig(options))


def _rig(options: WorldOptions) -> Rig:
    return Rig(camera=camera_model(options.camera), lidar=lidar_model(options.lidar))


def _rendered(root: Path, options: WorldOptions, jobs: list[tuple[str, int]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each frame's hash and tags, in the order of the jobs."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(jobs))
    if workers == 1:
        _set_up(root, options)
        yield from map(_job, jobs)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, _set_up, (root, options)) as pool, warnings.catch_warnings():
        # The workers use no threads of their own, so a fork beside sleeping ones is safe.
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        try:
            yield from pool.map(_job, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_work: tuple[Path, WorldOptions, Drive | None] | None = None
"""What a worker process works on."""


def _set_up(root: Path, options: WorldOptions) -> None:
    global _work
    _work = (root, options, _drive(options) if options.sequence else None)


def _job(job: tuple[str, int]) -> tuple[str, tuple[str, ...]]:
    assert _work is not None
    root, options, drive = _work
    split, index = job
    sensors = sensors_of(options)
    if drive is not None:
        frame = drive.frame(index, sensors)
    else:
        frame = render_frame(
            options.seed, split, index, options.size, options.city, _rig(options), sensors, options.weather
        )
    return _write_frame(root, split, frame_id(options, split, index), frame), frame.tags


def _write_frame(root: Path, split: str, name: str, frame: WorldFrame) -> str:
    digest = hashlib.sha256()
    for folder, array in (*frame.images.items(), ("labels", frame.label)):
        digest.update(folder.encode() + np.ascontiguousarray(array).tobytes())
        extension = "png" if array.ndim == 2 or array.shape[2] <= 3 else "npy"
        write_array(root / folder / split / f"{name}.{extension}", array)
    return digest.hexdigest()


__all__ = ["SPECS", "frame_id", "sensors_of", "write_world"]
