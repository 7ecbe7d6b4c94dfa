"""A run: the directory a training wrote, read back.

``recipe.yaml`` is the resolved recipe (classes, colours and complete sensor specs included), ``model.safetensors`` the
chosen weights, ``last.safetensors`` what ``--resume`` needs, ``run.json`` versions and command, ``log.jsonl`` the log.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mlesam.config import Recipe, build, load_recipe, plain
from mlesam.errors import DataError, RequestError
from mlesam.model.checkpoints import fit_or_raise, load_tensors, save_tensors
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec, canonical_order

RECIPE, WEIGHTS, LAST, RECORD, LOG = "recipe.yaml", "model.safetensors", "last.safetensors", "run.json", "log.jsonl"


@dataclass(frozen=True)
class Run:
    """A run directory and its resolved recipe."""

    path: Path
    recipe: Recipe

    @staticmethod
    def load(path: str | Path) -> Run:
        """Read a run directory; RequestError where there is none."""
        path = Path(path)
        if not (path / RECIPE).is_file():
            raise RequestError(f"{path} is no run: it has no {RECIPE}; give the directory that `mlesam train` wrote.")
        run = Run(path, load_recipe(path / RECIPE))
        if not run.recipe.data.classes or not run.recipe.data.sensors:
            raise DataError(f"{path / RECIPE} is not resolved: it names no classes or sensors; train the run again.")
        return run

    @property
    def sensors(self) -> dict[str, SensorSpec]:
        specs = self.recipe.data.sensors
        return {m: build(SensorSpec, specs[m], f"sensors.{m}") for m in canonical_order(specs)}

    @property
    def classes(self) -> Classes:
        data = self.recipe.data
        return Classes(
            data.classes or (),
            data.colors or (),
            255 if data.ignore is None else data.ignore,
            data.label_map or {},
            ignore_color=data.ignore_color,
        )

    def build_model(self) -> MLESAM:
        """The model of this run, with fresh weights."""
        channels = {m: spec.channels for m, spec in self.sensors.items()}
        return MLESAM(channels, len(self.classes.names), self.recipe.model, self.recipe.seed)

    def load_model(self) -> MLESAM:
        """The model with the chosen weights, in evaluation mode."""
        weights = self.path / WEIGHTS
        if not weights.is_file():
            raise DataError(f"{self.path} holds no {WEIGHTS} yet; let the training reach its first validation.")
        model = self.build_model()
        load_weights(model, weights)
        return model.eval()


def save_weights(model: MLESAM, path: Path, metadata: dict[str, object]) -> None:
    """Write what the training changed, and the hash of the foundation it belongs to."""
    state = model.state_dict()
    tensors = {name: state[name] for name in model.saved_names}
    save_tensors(path, tensors, {**metadata, "foundation_sha256": model.foundation_sha256})


def load_weights(model: MLESAM, path: Path, prefix: str = "") -> dict[str, object]:
    """Load what :func:`save_weights` wrote; every tensor must fit. Returns the metadata."""
    tensors, metadata = load_tensors(path, prefix)
    state = model.state_dict()
    fit_or_raise(tensors, {name: tuple(state[name].shape) for name in model.saved_names}, str(path))
    recorded = metadata.get("foundation_sha256")
    if recorded != model.foundation_sha256 and model.config.train != "all":
        raise DataError(
            f"{path} was trained on another foundation than {model.foundation.source} (sha256 {str(recorded)[:12]}..., not "
            f"{model.foundation_sha256[:12]}...); use the foundation it was trained with."
        )
    model.load_state_dict(tensors, strict=False)
    return metadata


def start_from(model: MLESAM, run: Run) -> list[str]:
    """Take over experts, stems, routers and the class-free layers of a trained run; class layers stay new.

    Returns:
        The sensors that were taken over.
    """
    tensors, metadata = load_tensors(run.path / WEIGHTS)
    if run.recipe.model.train != "all" and metadata.get("foundation_sha256") != model.foundation_sha256:
        raise DataError(
            f"{run.path} was trained on another foundation; set model.foundation and seed as in its recipe."
        )
    old = {m: spec.channels for m, spec in run.sensors.items()}
    shared = [m for m in model.modalities if old.get(m) == model.channels[m]]
    if not shared:
        raise RequestError(
            f"{run.path} has the sensors {', '.join(old)}, and this recipe none of them with as many channels."
        )
    new_classes = ("mask_head.mask_tokens", "mask_head.hypernetworks", "pyramid_head.classify")
    others = tuple(
        prefix
        for m in {*old, *model.modalities} - set(shared)
        for prefix in (f"experts.{m}.", f"stems.{m}.", f"scorers.{m}.")
    )
    state = model.state_dict()
    wanted = {n: state[n] for n in state if n in model.saved_names or n in tensors}
    chosen = {
        n: tuple(t.shape)
        for n, t in wanted.items()
        if not n.startswith(new_classes) and not any(o in f"{n}." for o in others)
    }  # fmt: skip
    given = {
        n: t for n, t in tensors.items() if not n.startswith(new_classes) and not any(o in f"{n}." for o in others)
    }
    fit_or_raise(given, chosen, f"{run.path / WEIGHTS} (--init)")
    model.load_state_dict(given, strict=False)
    return shared


def resolved(recipe: Recipe, dataset: str, sensors: dict[str, SensorSpec], classes: Classes) -> Recipe:
    """The recipe with everything that was derived written into it."""
    data = dataclasses.replace(
        recipe.data,
        dataset=dataset,
        modalities=tuple(sensors),
        classes=classes.names,
        colors=classes.colors,
        ignore=classes.ignore,
        ignore_color=classes.ignore_color,
        label_map=classes.label_map,
        sensors={m: plain(spec) for m, spec in sensors.items()},
    )
    return dataclasses.replace(recipe, data=data)
