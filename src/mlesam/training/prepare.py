"""Everything a training needs before its first step: data, resolved recipe, model. Nothing is written here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from mlesam.config import RANDOM_PRESETS, Recipe, build
from mlesam.data.dataset import Dataset, Frame, open_dataset
from mlesam.data.reading import choose_modalities, resolve_classes, resolve_sensors
from mlesam.errors import DataError, RequestError, did_you_mean, refuse_occupied
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import RECIPE, Run, resolved, start_from, take_over
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec, canonical_order


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
    extends: Run | None = None

    def model(self, init: Path | None = None) -> MLESAM:
        """The model, drawn from the recipe's seed; ``init`` names a run to start from."""
        torch.manual_seed(self.recipe.seed)
        channels = {m: spec.channels for m, spec in self.sensors.items()}
        model = MLESAM(channels, len(self.classes.names), self.recipe.model, self.recipe.seed)
        model.foundation.checkpointing = self.recipe.training.checkpointing
        if init is not None:
            start_from(model, Run.load(init))
        if self.extends is not None:
            take_over(model, self.extends)
        if self.recipe.training.only is not None:
            model.train_only(self.recipe.training.only)
        return model


def prepare(recipe: Recipe, extends: Run | None = None) -> Prepared:
    """Open the recipe's dataset and derive what the recipe leaves open.

    Args:
        extends: a trained run that gets the dataset's further sensors. Model, classes and the sensors it has are the run's.
    """
    if recipe.data.dataset is None:
        raise RequestError("no dataset was named; give --data folder:PATH, or data.dataset in the recipe.")
    resting = _resting(recipe)
    present = {m: spec for m, spec in recipe.data.sensors.items() if m not in resting}
    dataset = open_dataset(recipe.data.dataset, dataclasses.replace(recipe.data, sensors=present))
    wanted = recipe.data.modalities
    modalities = choose_modalities(dataset, None if wanted is None else [m for m in wanted if m not in resting])
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
    known = {} if extends is None else extends.sensors
    sensors, inferred = resolve_sensors(dataset, [m for m in modalities if m not in known], train)
    notes += ([note] if note else []) + inferred
    if extends is not None:
        recipe = _extended(recipe, extends, tuple(sensors), classes, dataset.name)
        notes.append(f"extending {extends.path} ({', '.join(known)}) by {', '.join(sensors)}; all else stays as it is")
    sensors = {**known, **resting, **sensors}
    sensors = {m: sensors[m] for m in canonical_order(sensors)}
    if extends is None and recipe.training.only is not None:
        for modality in recipe.training.only:
            if modality not in sensors:
                raise RequestError(f"training.only names {modality!r}{did_you_mean(modality, sensors)}")
    if recipe.model.train == "auto":
        random = recipe.model.foundation in RANDOM_PRESETS
        recipe = dataclasses.replace(
            recipe, model=dataclasses.replace(recipe.model, train="all" if random else "experts")
        )
        if random:
            notes.append(
                f"the foundation {recipe.model.foundation} starts from random weights, so all of it is trained"
            )
    return Prepared(
        resolved(recipe, dataset.name, sensors, classes), dataset, sensors, classes, train, val, notes, extends
    )


def _resting(recipe: Recipe) -> dict[str, SensorSpec]:
    """Sensors of an extended model that are not trained now and that the data do not have."""
    only, specs = recipe.training.only, recipe.data.sensors
    if only is None or recipe.data.dataset is None:
        return {}
    found = open_dataset(recipe.data.dataset, dataclasses.replace(recipe.data, sensors={})).modalities
    left = {*(recipe.data.modalities or ())} - {*only, *found}
    return {m: build(SensorSpec, specs[m], f"sensors.{m}") for m in left if m in specs}


def _extended(recipe: Recipe, run: Run, new: tuple[str, ...], classes: Classes, dataset: str) -> Recipe:
    """The recipe of an extension: the run's model, and a training of the new sensors alone."""
    old = run.recipe
    if not new:
        raise RequestError(
            f"{dataset} has no sensor that {run.path} lacks ({', '.join(run.sensors)}); choose a new one with data.modalities."
        )
    if classes.names != run.classes.names:
        raise RequestError(
            f"{dataset} has the classes {', '.join(classes.names[:6])}, and {run.path} has {', '.join(run.classes.names[:6])}; "
            "an extension keeps the classes (other classes: --init)."
        )
    for field in dataclasses.fields(recipe.model):
        value = getattr(recipe.model, field.name)
        if value not in (field.default, getattr(old.model, field.name)):
            raise RequestError(
                f"model.{field.name} is {value!r}, but {run.path} was trained with {getattr(old.model, field.name)!r}; an "
                "extension keeps the model, so leave it out."
            )
    if old.model.experts == "shared":
        raise RequestError(
            f"the sensors of {run.path} share one expert, so none can be added without changing the others."
        )
    if not old.model.rank and not old.model.align and old.model.fusion == "mean":
        raise RequestError(
            f"{run.path} has neither experts nor aligners nor a router, so there is nothing to train for a new sensor."
        )
    if old.model.foundation in RANDOM_PRESETS and recipe.seed != old.seed:
        raise RequestError(
            f"seed is {recipe.seed}, but the random foundation of {run.path} was drawn from {old.seed}; use that."
        )
    return dataclasses.replace(
        recipe,
        model=old.model,
        data=dataclasses.replace(recipe.data, resize=recipe.data.resize or old.data.resize),
        training=dataclasses.replace(recipe.training, only=new),
    )


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
    refuse_occupied(out)
