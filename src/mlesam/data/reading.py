"""From a frame's files to a sample, and what a dataset leaves unsaid: sensor specs and classes, read off its files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlesam.data.dataset import Dataset, Frame, default_colors
from mlesam.data.statistics import measure, spaced, with_statistics
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sample import IGNORE, Classes, Sample
from mlesam.sensors.spec import SensorSpec, canonical_order, sensor_spec

STATISTICS_FRAMES = 64
"""Frames that mean and standard deviation are measured on, evenly spaced over the train split."""
MOST_CLASSES = 255
"""Largest id that is taken for a class without being declared."""
MATCHED_FRAMES = 3
"""Frames that channels and number type are read off, by majority."""
GREY_FRAMES = 16
"""Frames that must all be grey before a sensor saved as colour is taken for one of one channel."""


def read_frame(frame: Frame, sensors: Mapping[str, SensorSpec], classes: Classes | None = None) -> Sample:
    """Read a frame's files.

    Args:
        sensors: which modalities to read; a frame may lack some.
        classes: how to read the label; None leaves it out.

    Returns:
        A sample with values in each sensor's unit (NaN: nothing measured), not yet normalised.

    Raises:
        DataError: unreadable files, sensors or labels of different size, label ids out of range, no sensor at all.
    """
    images, sizes = {}, {}
    for modality in canonical_order(m for m in frame.files if m in sensors):
        path = frame.files[modality]
        images[modality] = sensors[modality].encode(frame.read(modality, sensors[modality].channels), str(path))
        sizes[str(path)] = tuple(images[modality].shape[-2:])
    if not images:
        raise DataError(f"frame {frame.id!r} has no file of {', '.join(sensors)}; it needs at least one.")
    label = None
    if classes is not None and frame.label is not None:
        label = torch.from_numpy(decode_label(frame.read_label(label_colors(classes)), classes, str(frame.label)))
        sizes[str(frame.label)] = tuple(label.shape)
    check_sizes(sizes)
    sample = Sample(images, label, frame.id, frame.tags)
    return sample if frame.squash is None else squashed(sample, frame.squash, sensors)


def squashed(sample: Sample, side: int, sensors: Mapping[str, SensorSpec]) -> Sample:
    """Sensors and label brought to ``side`` x ``side`` pixels.

    A label pixel is the one at ``floor(i * size / side)``, which is what ``nearest`` means in torchvision and OpenCV, and so in
    the published evaluations that squash.
    """
    images = {m: resized(x, (side, side), sensors[m].interpolation) for m, x in sample.images.items()}
    label = sample.label
    if label is not None:
        label = torch.nn.functional.interpolate(label[None, None].float(), size=(side, side), mode="nearest")[
            0, 0
        ].long()
    return dataclasses.replace(sample, images=images, label=label)


def check_sizes(sizes: Mapping[str, tuple[int, ...]]) -> None:
    """DataError that names the files and sizes (height, width) where they are not all the same."""
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} is {w}x{h}" for name, (h, w) in sizes.items())
        raise DataError(f"the sensors do not fit each other: {named}; align and resize them to one size first.")


def decode_label(raw: np.ndarray, classes: Classes, path: Path | str) -> np.ndarray:
    """Stored label values to class ids.

    Args:
        raw: ``(H, W)`` ids, or ``(H, W, 3)`` colours of the classes.

    Returns:
        ``(H, W)`` int64 with ids 0 to C - 1, and ``IGNORE`` where not scored.
    """
    ids = _decode_colors(raw, classes, path) if raw.ndim == 3 else _decode_ids(raw, classes, path)
    if classes.translate:
        # IGNORE is -1, so the last entry of the table stands for it.
        ids = np.array([IGNORE if t is None else t for t in classes.translate] + [IGNORE], dtype=np.int64)[ids]
    return ids


def _decode_ids(raw: np.ndarray, classes: Classes, path: Path | str) -> np.ndarray:
    count = len(classes.names)
    ids = raw.astype(np.int64)
    if classes.label_map and raw.dtype in (np.uint8, np.uint16):
        table = np.array([classes.label_map.get(v, v) for v in range(int(ids.max()) + 1)], dtype=np.int64)
        ids = table[ids]
    elif classes.label_map:  # TIFF values may be negative or very large, and cannot index a table
        values, inverse = np.unique(ids, return_inverse=True)
        ids = np.array([classes.label_map.get(int(v), int(v)) for v in values])[inverse].reshape(ids.shape)
    ignored = ids == classes.ignore
    wrong = ~ignored & ((ids >= count) | (ids < 0))
    if wrong.any():
        values = sorted({int(v) for v in np.unique(raw[wrong])})
        shown = ", ".join(str(v) for v in values[:5]) + (" ..." if len(values) > 5 else "")
        raise DataError(
            f"{path} holds the label id {shown}, but there are {count} classes (0 to {count - 1}) and {classes.ignore} "
            "is ignored; correct the file, the classes, or map it with label_map."
        )
    ids[ignored] = IGNORE
    return ids


def label_colors(classes: Classes) -> tuple[tuple[int, int, int], ...]:
    """Every colour that a label picture may hold."""
    return classes.colors if classes.ignore_color is None else (*classes.colors, classes.ignore_color)


def _decode_colors(raw: np.ndarray, classes: Classes, path: Path | str) -> np.ndarray:
    if raw.dtype != np.uint8 or raw.shape[2] != 3:
        raise DataError(
            f"{path} stores {raw.dtype} values in {raw.shape[2]} channels; store ids in one channel, or 8-bit RGB colours."
        )
    code = (raw[..., 0].astype(np.int64) << 16) | (raw[..., 1].astype(np.int64) << 8) | raw[..., 2]
    known = {(r << 16) | (g << 8) | b: i for i, (r, g, b) in enumerate(classes.colors)}
    if len(known) < len(classes.colors):
        raise DataError(f"{path} stores colours, but two classes have the same one; give every class its own.")
    if classes.ignore_color is not None:
        red, green, blue = classes.ignore_color
        known.setdefault((red << 16) | (green << 8) | blue, IGNORE)
    values, inverse = np.unique(code, return_inverse=True)
    unknown = [v for v in values if int(v) not in known]
    if unknown:
        color = [int(unknown[0]) >> 16, (int(unknown[0]) >> 8) & 255, int(unknown[0]) & 255]
        raise DataError(
            f"{path} holds the colour {color}, which no class has; list the classes' colours in dataset.yaml, "
            "name an ignore_color, or store ids."
        )
    return np.array([known[int(v)] for v in values], dtype=np.int64)[inverse].reshape(code.shape)


# ---------------------------------------------------------------- what the dataset leaves unsaid


def choose_modalities(dataset: Dataset, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The requested sensors in canonical order, or all; RequestError for one that the dataset does not have."""
    for modality in wanted or ():
        if modality not in dataset.modalities:
            raise RequestError(f"{dataset.name} has no sensor {modality!r}{did_you_mean(modality, dataset.modalities)}")
    if wanted is not None and not wanted:
        raise RequestError(f"no sensor was chosen; name at least one of {', '.join(dataset.modalities)}.")
    return canonical_order(set(wanted) if wanted else dataset.modalities)


def resolve_classes(dataset: Dataset, frames: Sequence[Frame]) -> tuple[Classes, str | None]:
    """The declared classes, or as many as the train labels hold, with a note that says so."""
    declared = dataset.declared
    ignore = 255 if declared.ignore is None else declared.ignore
    label_map = declared.label_map or {}
    names, note = declared.classes, None
    if names is None:
        top = -1
        for frame in frames:
            if frame.label is not None:
                raw = frame.read_label()
                if raw.ndim == 3:
                    raise RequestError(f"{frame.label} stores colours; list classes and colors in dataset.yaml.")
                ids = {label_map.get(int(v), int(v)) for v in np.unique(raw)} - {ignore}
                top = max([top, *ids])
        if top > MOST_CLASSES:
            raise RequestError(
                f"the labels of {dataset.name} hold the id {top}; declare the classes in dataset.yaml, and ignore or "
                "label_map for ids that are none."
            )
        names = tuple(f"class {i}" for i in range(top + 1))
        note = f"classes: {len(names)}, read off the labels (name them in dataset.yaml)"
    if len(names) < 2:
        hint = (
            ""
            if declared.classes
            else f" (are {ignore}s in the labels a class? then map them: label_map: {{{ignore}: 1}})"
        )
        raise RequestError(f"{dataset.name} has {len(names)} classes; declare at least 2 in dataset.yaml{hint}.")
    colors = declared.colors or default_colors(len(names))
    if len(colors) != len(names):
        raise RequestError(
            f"{dataset.name} has {len(colors)} colours for {len(names)} classes; declare both in one place, one colour per class."
        )
    return Classes(names, colors, ignore, label_map, ignore_color=declared.ignore_color), note


def resolve_sensors(
    dataset: Dataset, modalities: Sequence[str], frames: Sequence[Frame]
) -> tuple[dict[str, SensorSpec], list[str]]:
    """Complete specs for the chosen sensors, and a note for each thing that was inferred.

    What is declared stands. Channels and number type are read off the files; mean and standard deviation are measured on
    the train split, except for colour cameras, which keep the statistics SAM2 was trained with.
    """
    specs, notes = {}, []
    for modality in modalities:
        spec, seen, inferred = match_sensor(dataset, modality, frames)
        unsaid = [name for name in ("mean", "std") if name not in dataset.sensor(modality)]
        if spec.photometric != "color" and unsaid:
            picked = spaced(seen, STATISTICS_FRAMES)
            spec = with_statistics(spec, measure(modality, spec, picked), unsaid)
            inferred.append(f"{' '.join(_elided(spec, name) for name in unsaid)} ({len(picked)} train frames)")
        specs[modality] = spec
        if inferred:
            notes.append(f"{modality}: {', '.join(inferred)}")
    return specs, notes


def _elided(spec: SensorSpec, name: str) -> str:
    values = getattr(spec, name)
    return f"{name} {', '.join(f'{v:.4g}' for v in values[:4])}{' ...' if len(values) > 4 else ''}"


def match_sensor(
    dataset: Dataset, modality: str, frames: Sequence[Frame], split: str = "train"
) -> tuple[SensorSpec, list[Frame], list[str]]:
    """A sensor's spec but for its statistics, the frames that have it, and what of the spec was read off their files.

    Raises:
        RequestError: no frame has the sensor, or the files do not fit what is declared.
    """
    seen = [f for f in frames if modality in f.files]
    if not seen:
        raise RequestError(f"no {split} frame of {dataset.name} has a {modality} file; leave this sensor out.")
    spec, inferred = _match_files(modality, dataset.sensor(modality), seen)
    return spec, seen, inferred


@dataclass(frozen=True)
class _Kind:
    """What a file stores: channels, number type, and whether its colour channels are all the same."""

    channels: int
    dtype: np.dtype
    grey: bool

    @staticmethod
    def of(frame: Frame, modality: str, channels: int | None) -> _Kind:
        array = frame.read(modality, channels)
        grey = array.ndim == 3 and bool((array[..., :1] == array[..., :3]).all())
        return _Kind(1 if array.ndim == 2 else array.shape[2], array.dtype, grey)


def _match_files(
    modality: str, declared: Mapping[str, object], frames: Sequence[Frame]
) -> tuple[SensorSpec, list[str]]:
    spec = sensor_spec(modality, declared)
    if spec.colormap is not None:
        return spec, []
    known = spec.channels if "channels" in declared else None
    # One odd file is not taken for the rule, even where it is the first.
    kinds = {f.files[modality]: _Kind.of(f, modality, known) for f in spaced(frames, MATCHED_FRAMES)}
    (channels, dtype), _ = Counter((k.channels, k.dtype) for k in kinds.values()).most_common(1)[0]
    path = next(p for p, k in kinds.items() if (k.channels, k.dtype) == (channels, dtype))
    # One frame without a return, or in the dark, is black in all channels and does not make the sensor a grey one.
    grey = kinds[path].grey and all(_Kind.of(f, modality, known).grey for f in spaced(frames, GREY_FRAMES))
    changes: dict[str, object] = {}
    inferred = []
    if "channels" not in declared and spec.photometric != "color":
        found = channels
        if channels in (3, 4) and grey:
            found = 1
        elif channels == 4 and path.suffix.lower() == ".png":
            found = 3  # in other formats a fourth channel is a band and no alpha
        changes["channels"] = found
        inferred.append(f"{found} channel{'s' if found > 1 else ''}")
    if "dtype" not in declared and spec.photometric != "color":
        changes["dtype"] = dtype.name
        inferred.append(dtype.name)
    if dtype == np.uint8 and spec.scale is not None and "scale" not in declared:
        changes |= {"scale": None, "unit": "1"}  # the built-in unit belongs to 16-bit files
        if "range" not in declared:
            changes["range"] = (0.0, 1.0)
        inferred.append("as a fraction of full scale")
    if dtype == np.float32 and spec.unit == "1" and "range" not in declared:
        changes["range"] = (float("-inf"), float("inf"))
    for name in ("mean", "std"):
        if name not in declared and "channels" in changes and len(getattr(spec, name)) not in (1, changes["channels"]):
            changes[name] = getattr(spec, name)[:1]
    try:
        return dataclasses.replace(spec, **changes), inferred  # type: ignore[arg-type]
    except RequestError as error:
        raise RequestError(f"sensors.{modality}, with what {path} holds: {error}") from None


def resized(values: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """``(C, H, W)`` to another size. Empty pixels (NaN) stay empty and do not leak into their neighbours."""
    if tuple(values.shape[-2:]) == size:
        return values
    resample = torch.nn.functional.interpolate
    if interpolation == "nearest":
        return resample(values[None], size=size, mode="nearest-exact")[0]
    shrinks = size[0] < values.shape[-2] or size[1] < values.shape[-1]

    def smooth(x: Tensor) -> Tensor:
        return resample(x[None], size=size, mode="bilinear", align_corners=False, antialias=shrinks)[0]

    measured = torch.isfinite(values)
    if bool(measured.all()):
        return smooth(values)
    share = smooth(measured.float())
    return torch.where(share > 0.5, smooth(torch.where(measured, values, 0.0)) / share.clamp(min=1e-6), float("nan"))
