"""Everything a training needs before its first step: data, resolved recipe, model. Nothing is written here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from mlesam.config import RANDOM_PRESETS, Recipe
from mlesam.data.dataset import Dataset, Frame, open_dataset
from mlesam.data.reading import choose_modalities, resolve_classes, resolve_sensors
from mlesam.errors import DataError, RequestError
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import RECIPE, Run, resolved, start_from
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec


@dataclass(frozen=True)
class Prepared:
    """A resolved recipe with the data it names."""

    recipe: Recipe
    dataset: Dataset
    sensors: dict[str, SensorSpec]
    classes: Classes
    train: list[Frame]
    val: list[Frame]
    notes: list[str]

    def model(self, init: Path | None = None) -> MLESAM:
        """The model, drawn from the recipe's seed; ``init`` names a run to start from."""
        torch.manual_seed(self.recipe.seed)
        channels = {m: spec.channels for m, spec in self.sensors.items()}
        model = MLESAM(channels, len(self.classes.names), self.recipe.model, self.recipe.seed)
        if init is not None:
            start_from(model, Run.load(init))
        return model


def prepare(recipe: Recipe) -> Prepared:
    """Open the recipe's dataset and derive what the recipe leaves open."""
    if recipe.data.dataset is None:
        raise RequestError("no dataset was named; give --data folder:PATH, or data.dataset in the recipe.")
    dataset = open_dataset(recipe.data.dataset, recipe.data)
    modalities = choose_modalities(dataset, recipe.data.modalities)
    if "train" not in dataset.splits():
        raise RequestError(
            f"{dataset.name} has no train split (found: {', '.join(dataset.splits()) or 'none'}); training needs "
            "<modality>/train/ folders or splits/train.txt."
        )
    train = labelled(dataset.frames("train"), modalities, "train")
    notes = []
    val: list[Frame] = []
    if "val" in dataset.splits():
        val = labelled(dataset.frames("val"), modalities, "val")
    else:
        notes.append("no val split: the weights of the last step are kept, not the best ones")
    classes, note = resolve_classes(dataset, train)
    sensors, inferred = resolve_sensors(dataset, modalities, train)
    notes += ([note] if note else []) + inferred
    if recipe.model.train == "auto":
        random = recipe.model.foundation in RANDOM_PRESETS
        recipe = dataclasses.replace(
            recipe, model=dataclasses.replace(recipe.model, train="all" if random else "experts")
        )
        if random:
            notes.append(
                f"the foundation {recipe.model.foundation} starts from random weights, so all of it is trained"
            )
    return Prepared(resolved(recipe, dataset.name, sensors, classes), dataset, sensors, classes, train, val, notes)


def labelled(frames: list[Frame], modalities: tuple[str, ...], split: str) -> list[Frame]:
    """The frames with the chosen sensors' files. DataError where one has no label or none of the sensors."""
    unlabelled = [f.id for f in frames if f.label is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(frames)} frames of split {split!r} have no label, first {', '.join(unlabelled[:3])}; "
            "add the label files or take the frames out."
        )
    blind = [f.id for f in frames if not set(f.files) & set(modalities)]
    if blind:
        raise DataError(
            f"{len(blind)} of {len(frames)} frames of split {split!r} have no file of {', '.join(modalities)}, first "
            f"{', '.join(blind[:3])}; add a sensor with data.modalities or take the frames out."
        )
    return frames


def refuse_existing(out: Path) -> None:
    """A run is never written over."""
    if (out / RECIPE).exists():
        raise RequestError(f"{out} already holds a run; choose another --out, or go on with it by --resume.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} exists and is not empty; choose a new directory with --out.")
