"""Predictions as files: class maps, overlays and one ``prediction.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlesam.data.dataset import KINDS, Dataset, Frame, open_dataset
from mlesam.data.faulty import earlier_values
from mlesam.data.folder import FolderDataset
from mlesam.data.recorded import RecordedFrame
from mlesam.errors import DataError, RequestError
from mlesam.inference.segmenter import Segmenter
from mlesam.model.checkpoints import replace_file
from mlesam.sensors.faults import SensorFault
from mlesam.sensors.files import EXTENSIONS
from mlesam.sensors.rig import Rig

SUMMARY = "prediction.json"


def open_source(source: str) -> Dataset:
    """A dataset (``KIND:PATH``), or a plain folder of ``<modality>/<id>.<ext>`` or of the splits of a dataset."""
    return open_dataset(source) if source.partition(":")[0] in KINDS else _plain_folder(source)


def find_frames(dataset: Dataset, split: str | None = None) -> list[Frame]:
    """The frames of a split, labelled or not; without ``split`` those of all of them."""
    if split is not None:
        return dataset.frames(split)
    if not isinstance(dataset, FolderDataset):
        return [frame for name in dataset.splits() for frame in dataset.frames(name)]
    splits = dataset.splits()
    if not splits:
        return dataset.loose_frames()
    frames = {frame.id: frame for name in splits for frame in dataset.all_frames(name) if frame.files}
    return list(frames.values())


def given_frame(paths: Mapping[str, Path], calibration: str | None = None) -> Frame:
    """A frame of single files, by sensor. ``calibration``: the rig of those that are recordings."""
    name = next(iter(paths.values())).stem
    if calibration is None:
        return Frame(name, paths)
    rig = Rig.load(calibration)
    rig.check_given(paths)
    return RecordedFrame(name, paths, rig=rig)


def _plain_folder(source: str) -> FolderDataset:
    from mlesam.config import DataConfig

    root = Path(source)
    if root.is_dir() and not any(p.is_dir() for p in root.iterdir()) and _holds_files(root):
        raise RequestError(
            f"{root} holds files but no sensor folders; put them into {root}/<modality>/, for example {root}/rgb/."
        )
    return FolderDataset(root, DataConfig())


def _holds_files(root: Path) -> bool:
    return any(p.suffix.lower() in EXTENSIONS for p in root.iterdir())


def predict_frames(
    segmenter: Segmenter,
    frames: Sequence[Frame],
    out: Path,
    *,
    modalities: Iterable[str] | None = None,
    faults: Sequence[SensorFault] = (),
    run: str = "",
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Segment frames and write ``labels/<id>.png`` (class ids), ``overlays/<id>.png``, ``confidence/<id>.png`` (8 bits of
    grey, 255 times the confidence) and ``prediction.json``.

    Args:
        modalities: use only these sensors. None: all that a frame and the model have.
        faults: what is made to go wrong with the sensors of every frame; earlier frames are those before it in ``frames``.

    Returns:
        The content of ``prediction.json``. Frames without any usable sensor are listed under ``skipped``.
    """
    if (out / SUMMARY).exists():
        raise RequestError(f"{out} already holds a prediction; choose another --out.")
    chosen = set(segmenter.sensors) if modalities is None else set(modalities)
    for fault in faults:
        fault.check(segmenter.sensors)
    lost = {fault.sensor for fault in faults if fault.fault.removes}
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for index, frame in enumerate(frames):
        if not set(frame.files) & (chosen - lost):
            skipped.append(frame.id)
            advance(1)
            continue
        earlier = partial(earlier_values, frames, segmenter.sensors, index)
        prediction = segmenter.frame(frame, chosen - lost, faults=faults, earlier=earlier)
        name = f"{frame.id}.png"
        _save_png(out / "labels" / name, Image.fromarray(_png_ids(prediction.labels)))
        _save_png(out / "overlays" / name, prediction.overlay())
        confidence = prediction.confidence
        _save_png(out / "confidence" / name, Image.fromarray(np.rint(255 * confidence).astype(np.uint8)))
        height, width = prediction.labels.shape
        share = np.bincount(prediction.labels.ravel(), minlength=len(prediction.classes)) / prediction.labels.size
        rows.append(
            {
                "id": frame.id,
                "size": [width, height],
                "present": list(prediction.weights),
                "weights": {m: round(w, 6) for m, w in prediction.weights.items()},
                "classes": {c: round(float(s), 6) for c, s in zip(prediction.classes, share, strict=True) if s > 0},
                "mean_confidence": round(float(confidence.mean(dtype=np.float64)), 6),
                "labels": f"labels/{name}",
                "overlay": f"overlays/{name}",
                "confidence": f"confidence/{name}",
            }
        )
        advance(1)
    if not rows:
        raise DataError(
            f"none of the frames has a file of {', '.join(sorted(chosen - lost)) or 'any sensor'}, the sensors to use; "
            "name the sensor folders after them."
        )
    summary = {
        "run": run,
        "classes": list(segmenter.classes.names),
        "colors": [list(c) for c in segmenter.classes.colors],
        "calibrated": segmenter.calibration is not None,
        "frames": rows,
        "skipped": skipped,
        **({"faults": [str(fault) for fault in faults]} if faults else {}),
    }
    replace_file(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _png_ids(labels: np.ndarray) -> np.ndarray:
    """PNG has no signed numbers: beyond 256 classes ids are stored as 16-bit unsigned."""
    return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)


def _save_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    image.save(temporary, format="PNG")
    temporary.replace(path)
