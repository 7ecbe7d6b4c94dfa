"""Exported models: one set of sensors at one size as a file that runs without this package, checked before it is written.

A graph cannot decide anew which sensors are there, so each set is a file of its own. What has to be done to a sensor's numbers
is inside: values in its unit go in, NaN where nothing was measured; calibrated logits and each sensor's share come out.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mlesam
from mlesam.config import DataConfig
from mlesam.data.dataset import Frame, open_dataset
from mlesam.data.reading import resized
from mlesam.data.statistics import spaced
from mlesam.data.transforms import at_short_side
from mlesam.errors import MlesamError, RequestError, WorkError, did_you_mean
from mlesam.inference.agreement import TOLERANCES, Scene, arrays, differences, refuse_differences, summary
from mlesam.inference.exported import Exported, load_exported, plain_spec
from mlesam.inference.formats import FORMAT, OUTPUTS, PACKAGES, PRECISIONS, SUFFIXES, convert, needed, open_torch
from mlesam.inference.segmenter import Segmenter
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sensors.spec import SensorSpec, canonical_order

CHECKED_FRAMES, RANGE_FRAMES = 4, 32
"""Frames that an export is checked on, and train frames that the ranges of int8 are measured on."""


class FixedSensors(nn.Module):
    """A model for one set of sensors, from values in their units to calibrated logits (1, K, H, W) and shares (1, M).

    Args:
        sensors: of the set, in canonical order: that of the arguments of :meth:`forward` and of the shares.
        temperature: what the logits are divided by.
    """

    def __init__(self, model: MLESAM, sensors: Mapping[str, SensorSpec], temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.sensors = dict(sensors)
        self.temperature = temperature

    def forward(self, *values_1CHW: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(self.sensors.items(), values_1CHW, strict=True)
        output = self.model({m: spec.normalized(spec.measured(x[0]))[None] for (m, spec), x in pairs})
        columns = [self.model.modalities.index(m) for m in self.sensors]
        shares = output.shares.mean(dim=1)
        own = shares if len(columns) == shares.shape[1] else torch.stack([shares[:, c] for c in columns], dim=1)
        return output.logits / self.temperature, own


def export_model(
    segmenter: Segmenter,
    out: str | Path,
    format: str = "onnx",
    *,
    modalities: Sequence[str] | None = None,
    size: tuple[int, int] = (256, 256),
    precision: str = "fp32",
    frames: Sequence[Scene] = (),
    ranges: Sequence[Scene] = (),
    name: str = "",
) -> dict[str, Any]:
    """Export a segmenter's model for one set of sensors at one size.

    Args:
        out: a new file that ends as ``SUFFIXES`` says; an OpenVINO model has a ``.bin`` beside it.
        format: ``onnx``, ``openvino`` or ``torch``. precision: one of the format's ``PRECISIONS``.
        modalities: the set. None: all of the model's. size: height and width.
        frames: real scenes of this size, to check on beside random numbers. ranges: for int8, such scenes of the train split.
        name: what the model is called in the file.

    Returns:
        What the file says of itself, with the errors under ``checked``.

    Raises:
        RequestError: a wrong format, precision, sensor, size or name, or a package is not installed.
        WorkError: the exported model does not give what the model gives; nothing is written.
    """
    out = Path(out)
    check_request(out, format, precision)
    sensors = chosen_sensors(segmenter.sensors, modalities)
    if min(size) < 32:
        raise RequestError(f"the size is {size[1]}x{size[0]} pixels, but each side needs at least 32.")
    if precision == "int8" and not ranges:
        raise RequestError(
            "int8 needs frames to measure ranges on; give a dataset with a train split (--data KIND:PATH)."
        )
    check_model(segmenter.model, sensors)
    temperature = None if segmenter.calibration is None else segmenter.calibration.temperature(sensors)
    model = copy.deepcopy(segmenter.model).cpu()
    module = FixedSensors(model, sensors, temperature or 1.0).eval()
    noise = random_scene(sensors, size)
    example = {m: x[None] for m, x in noise.items()}
    model.merge()  # what is exported is the merged model, and what it is held against the plain one
    save = convert(format, module, example, precision, [arrays(scene) for scene in ranges])
    model.unmerge()
    about = {
        "format": FORMAT, "mlesam": mlesam.__version__, "name": name, "precision": precision,
        "modalities": list(sensors), "height": size[0], "width": size[1], "resize": segmenter.resize,
        "sensors": {m: plain_spec(spec) for m, spec in sensors.items()},
        "classes": list(segmenter.classes.names), "colors": [list(c) for c in segmenter.classes.colors],
        "temperature": temperature, "outputs": list(OUTPUTS),
    }  # fmt: skip
    folder = out.with_name(f".{out.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        draft = folder / f"draft{out.suffix}"
        save(draft, about)
        exported = Exported(draft, *open_torch(draft)) if format == "torch" else load_exported(draft)
        checked: dict[str, Any] = {"precision": exported.precision, "random": differences(module, exported, [noise])}
        if frames:
            checked |= {"frames": len(frames), "real": differences(module, exported, frames)}
        if format != "torch":  # a runtime may choose other code then, which has been wrong
            checked["one_thread"] = differences(module, load_exported(draft, threads=1), (frames or [noise])[:1])
        refuse_differences(checked, TOLERANCES[precision], out)
        del exported
        final = folder / "final" / out.name
        final.parent.mkdir()
        save(final, {**about, "checked": checked})
        for path in sorted(final.parent.iterdir(), key=lambda p: p.name == out.name):  # the named one last
            os.replace(path, out.with_name(path.name))
    except OSError as error:
        raise WorkError(f"{out} cannot be written ({error}); make room or choose another place.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**about, "checked": checked}


def export_run(
    run: Run,
    out: Path,
    format: str = "onnx",
    *,
    modalities: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    data: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """:func:`export_model` of a run or an adapter, checked on frames of its dataset where that can be opened.

    Args:
        size: height and width. None: those of the dataset's frames as the run sees them, else the crop it was trained on.
        data: another dataset than the run's own, by name. say: is told what was chosen and how it came out.
    """
    check_request(out, format, precision)
    sensors = chosen_sensors(run.sensors, modalities)
    found = _frames(run, data, sensors, say)
    height, width = size or _usual_size(run, sensors, found["test"])
    say(f"{' + '.join(sensors)} at {width}x{height} pixels, {format} in {precision}")
    tested, trained = (
        [_scene(frame, sensors, run.recipe.data.resize, (height, width)) for frame in spaced(found[split], most)]
        for split, most in (("test", CHECKED_FRAMES), ("train", RANGE_FRAMES if precision == "int8" else 0))
    )
    resize, calibration = run.recipe.data.resize, run.calibration
    segmenter = Segmenter(run.load_model(), run.sensors, run.classes, resize, "cpu", calibration)
    about = export_model(
        segmenter, out, format, modalities=list(sensors), size=(height, width), precision=precision,
        frames=tested, ranges=trained, name=run.recipe.name,
    )  # fmt: skip
    for line in summary(about["checked"]):
        say(line)
    files = [path for path in (out, out.with_suffix(".bin")) if path.exists()]
    say(f"model written to {out}, {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB")
    return about


def check_request(out: Path, format: str, precision: str) -> None:
    """Refuse what cannot be meant or done, before anything takes time."""
    if format not in SUFFIXES:
        raise RequestError(f"unknown format {format!r}{did_you_mean(format, SUFFIXES)}")
    if precision not in PRECISIONS[format]:
        raise RequestError(f"{format} is exported in {' or '.join(PRECISIONS[format])}, not in {precision!r}.")
    if out.suffix != SUFFIXES[format]:
        raise RequestError(f"a file of the format {format} ends with {SUFFIXES[format]}, and --out is {out}.")
    for package in (*PACKAGES[format], *(("nncf",) if precision == "int8" else ())):
        needed(package)
    for path in (out, out.with_suffix(".bin")) if format == "openvino" else (out,):
        if path.exists():
            raise RequestError(f"{path} exists; choose another --out.")


def chosen_sensors(sensors: Mapping[str, SensorSpec], modalities: Sequence[str] | None) -> dict[str, SensorSpec]:
    """The specs of a set of sensors (None: all) in canonical order."""
    for modality in modalities or ():
        if modality not in sensors:
            raise RequestError(f"this model has no sensor {modality!r}{did_you_mean(modality, sensors)}")
    chosen = canonical_order(set(sensors if modalities is None else modalities))
    for modality in chosen:
        if modality in OUTPUTS:
            raise RequestError(f"an exported model has an output called {modality}; the sensor needs another name.")
    if not chosen:
        raise RequestError(f"no sensor was chosen; name at least one of {', '.join(sensors)}.")
    return {m: sensors[m] for m in chosen}


def check_model(model: MLESAM, sensors: Collection[str]) -> None:
    """Refuse a model whose computation a fixed graph cannot hold."""
    if len(model.looks) and len(sensors) > model.config.look_keep:
        keep = model.config.look_keep
        raise RequestError(
            f"this model leaves all but {keep} of a frame's sensors behind (model.look), which changes from frame to frame and "
            f"with it the graph; export {keep} sensors at most (--modalities A,B)."
        )
    if next(model.foundation.parameters()).dtype != torch.float32:
        raise RequestError(
            "this model computes in another precision than float32; load it with precision fp32 to export it."
        )


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT``, or one number for a square, to height and width."""
    words = text.lower().split("x")
    if not (len(words) in (1, 2) and all(word.isdecimal() for word in words)):
        raise RequestError(
            f"--size is {text!r}; write WIDTHxHEIGHT in pixels, as in 640x480, or one number for a square."
        )
    return int(words[-1]), int(words[0])


# ---------------------------------------------------------------- scenes to check on


def random_scene(sensors: Mapping[str, SensorSpec], size: tuple[int, int]) -> dict[str, Tensor]:
    """Noise around each sensor's mean, and nothing measured in one pixel of twenty."""
    generator = torch.Generator().manual_seed(0)
    scene = {}
    for modality, spec in sensors.items():
        mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
        values = mean + std * torch.randn(spec.channels, *size, generator=generator)
        scene[modality] = values.masked_fill(torch.rand(1, *size, generator=generator) < 0.05, float("nan"))
    return scene


def _frames(
    run: Run, data: str | None, sensors: Mapping[str, SensorSpec], say: Callable[[str], None]
) -> dict[str, list[Frame]]:
    """The frames that have all the sensors, of the split that is evaluated and of train; none where there is no dataset."""
    name = data or run.recipe.data.dataset
    found: dict[str, list[Frame]] = {"test": [], "train": []}
    if name is None:
        say("checked on random numbers alone: an adapter names no dataset (--data KIND:PATH)")
        return found
    config = DataConfig() if data else replace(run.recipe.data, sensors={})
    try:
        dataset = open_dataset(name, config)
        for key, split in (("test", dataset.default_split()), ("train", "train")):
            if split in dataset.splits():
                found[key] = [f for f in dataset.frames(split) if set(sensors) <= set(f.files)]
    except (MlesamError, OSError) as error:
        if data:
            raise
        say(f"checked on random numbers alone, the run's dataset cannot be opened: {error}")
    return found


def _usual_size(run: Run, sensors: Mapping[str, SensorSpec], frames: Sequence[Frame]) -> tuple[int, int]:
    """Height and width of a frame as the run sees it; without one, of the crop that it was trained on."""
    if not frames:
        return run.recipe.data.crop, run.recipe.data.crop
    height, width = next(iter(_scene(frames[0], sensors, run.recipe.data.resize).values())).shape[-2:]
    return height, width


def _scene(
    frame: Frame, sensors: Mapping[str, SensorSpec], resize: int | None, size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """A frame in its sensors' units, resized as the run does, and then to ``size`` where that is another one."""
    scene = {}
    for modality, spec in sensors.items():
        outside = replace(spec, normalize="dataset")  # a frame's own mean is taken inside the graph
        values = at_short_side(
            outside.encode(frame.read(modality, spec.channels), str(frame.files[modality])), resize, spec
        )
        scene[modality] = values if size is None else resized(values, size, spec.interpolation)
    return scene
