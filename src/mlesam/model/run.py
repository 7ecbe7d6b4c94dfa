"""A run, the directory a training wrote, and an adapter, what is shared of it: read back.

A run's ``recipe.yaml`` is the resolved recipe (classes, colours and complete sensor specs included), ``model.safetensors`` the
chosen weights, ``last.safetensors`` what ``--resume`` needs, ``run.json`` versions and command, ``log.jsonl`` the log,
``calibration.json`` the temperatures, where there was a val split to fit them on.
An adapter's ``config.json`` holds what of the recipe is needed for using it, and names the foundation by its hash.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlesam
from mlesam.config import PRESETS, Recipe, build, plain, read_yaml
from mlesam.errors import DataError, RequestError
from mlesam.model.calibration import Calibration, read_calibration
from mlesam.model.checkpoints import fit_or_raise, load_tensors, save_tensors
from mlesam.model.hub import fetch_folder, is_hub_id
from mlesam.model.mlesam import MLESAM, belongs_to
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec, canonical_order

RECIPE, WEIGHTS, LAST, RECORD, LOG = "recipe.yaml", "model.safetensors", "last.safetensors", "run.json", "log.jsonl"
CALIBRATION = "calibration.json"
ADAPTER, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
FORMAT = "mlesam adapter 1"
"""First words of an adapter's config. The number is raised when an older package could not read it."""
BEFORE = {"align": False, "rescale": False, "reliability": False}
"""How models were built before a recipe could say so, where that is not today's default."""


@dataclass(frozen=True)
class Run:
    """A run or an adapter, and its resolved recipe.

    Attributes:
        weights: name of the file with the chosen weights. any_foundation: use them on a foundation that they were not
            trained on.
    """

    path: Path
    recipe: Recipe
    weights: str = WEIGHTS
    any_foundation: bool = False

    @staticmethod
    def load(
        path: str | Path, *, foundation: str | None = None, any_foundation: bool = False, revision: str | None = None
    ) -> Run:
        """Read a run directory, an adapter directory, or an adapter on the Hub.

        Args:
            path: a directory, or a Hub id ``owner/name``.
            foundation: where the foundation is, instead of what the run names: a preset, Hub id, folder or ``.pt`` file.
            any_foundation: take it even if its hash is not that of the one trained on.
            revision: branch, tag or commit on the Hub.

        Raises:
            RequestError: there is neither. DataError: it is there and cannot be read.
        """
        folder = Path(path)
        if (folder / RECIPE).is_file():
            run = Run(folder, build(Recipe, _with_old_defaults(read_yaml(folder / RECIPE))))
        elif (folder / CONFIG).is_file():
            run = Run(folder, _adapter_recipe(folder / CONFIG), ADAPTER)
        elif is_hub_id(str(path)) and not folder.parent.is_dir():  # runs/street is a path where there is a folder runs
            folder = _from_hub(str(path), revision)
            run = Run(folder, _adapter_recipe(folder / CONFIG), ADAPTER)
        else:
            raise RequestError(
                f"{path} is no run and no adapter: it has no {RECIPE} and no {CONFIG}; give the directory that "
                "`mlesam train` or `mlesam export` wrote."
            )
        if not run.recipe.data.classes or not run.recipe.data.sensors:
            raise DataError(f"{folder} is not resolved: it names no classes or sensors; train the run again.")
        if foundation is not None:
            model = dataclasses.replace(run.recipe.model, foundation=foundation, revision=None)
            run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, model=model))
        return dataclasses.replace(run, any_foundation=any_foundation)

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

    @property
    def calibration(self) -> Calibration | None:
        """Its temperatures; None in runs without a val split and in those of older versions. DataError: damaged."""
        if self.weights == ADAPTER:
            return read_calibration(self.path / CONFIG, "calibration")
        return read_calibration(self.path / CALIBRATION)

    def build_model(self) -> MLESAM:
        """The model of this run, with fresh weights. RequestError where the foundation is not here."""
        name = self.recipe.model.foundation
        if self.weights == ADAPTER and not (name in PRESETS or Path(name).exists() or is_hub_id(name)):
            raise RequestError(
                f"{self.path} belongs to the foundation {name!r}, which lay on its author's machine; say where yours is: "
                "foundation=PATH (--foundation PATH)."
            )
        channels = {m: spec.channels for m, spec in self.sensors.items()}
        return MLESAM(channels, len(self.classes.names), self.recipe.model, self.recipe.seed)

    def load_model(self) -> MLESAM:
        """The model with the chosen weights, in evaluation mode."""
        weights = self.path / self.weights
        if not weights.is_file():
            why = (
                "let the training reach its first validation" if self.weights == WEIGHTS else "copy the whole directory"
            )
            raise DataError(f"{self.path} holds no {self.weights} yet; {why}.")
        model = self.build_model()
        load_weights(model, weights, any_foundation=self.any_foundation)
        return model.eval()


def _with_old_defaults(stored: Any) -> Any:
    """The values of a stored recipe, which may be older than some fields of the model."""
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        return {**stored, "model": {**BEFORE, **stored["model"]}}
    return stored


def _adapter_recipe(path: Path) -> Recipe:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); copy the adapter again.") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path} is of the format {found!r}, and this mlesam {mlesam.__version__} reads {FORMAT!r}; give an adapter, or "
            "the package that wrote it."
        )
    try:
        return build(Recipe, _with_old_defaults(config.get("recipe")))
    except RequestError as error:
        raise DataError(f"{path}: {error}") from None


def _from_hub(name: str, revision: str | None) -> Path:
    """The files of an adapter on the Hub, from this machine's cache where they are there already."""
    try:
        folder = fetch_folder(name, revision)
    except DataError as error:
        raise DataError(f"there is no run or adapter {name} here, and none can be had from the Hub: {error}") from error
    if not (folder / ADAPTER).is_file():
        raise DataError(
            f"{name} on the Hub is no mlesam adapter: it lacks {ADAPTER}; give one that `mlesam export` wrote."
        )
    return folder


def save_weights(model: MLESAM, path: Path, metadata: dict[str, object]) -> None:
    """Write what the training changed, and which foundation it belongs to: family and hash."""
    state = model.state_dict()
    tensors = {name: state[name] for name in model.saved_names}
    foundation = {"foundation_sha256": model.foundation_sha256, "foundation_family": model.foundation.family}
    save_tensors(path, tensors, {**metadata, **foundation})


def load_weights(model: MLESAM, path: Path, prefix: str = "", any_foundation: bool = False) -> dict[str, object]:
    """Load what :func:`save_weights` wrote; every tensor must fit. Returns the metadata.

    Args:
        any_foundation: load them onto a foundation of the same shape that they were not trained on.
    """
    tensors, metadata = load_tensors(path, prefix)
    state = model.state_dict()
    fit_or_raise(tensors, {name: tuple(state[name].shape) for name in model.saved_names}, str(path))
    if not any_foundation:
        _same_foundation(model, metadata, path, "" if prefix else ", or say any_foundation (--any-foundation)")
    model.load_state_dict(tensors, strict=False)
    return metadata


def take_over(model: MLESAM, run: Run) -> None:
    """Load a run into a model that has further sensors; every tensor that the run has must fit, and only the new sensors'
    own stay as they were drawn."""
    tensors, metadata = load_tensors(run.path / run.weights)
    _same_foundation(model, metadata, run.path / run.weights)
    new = {name for m in model.modalities if m not in run.sensors for name in model.own_names(m)}
    state = model.state_dict()
    expected = {name: tuple(state[name].shape) for name in model.saved_names if name not in new}
    fit_or_raise(tensors, expected, f"{run.path / run.weights} (--extend)")
    model.load_state_dict(tensors, strict=False)


def _same_foundation(model: MLESAM, metadata: Mapping[str, object], what: Path, otherwise: str = "") -> None:
    recorded = metadata.get("foundation_sha256")
    if recorded != model.foundation_sha256 and model.config.train != "all":
        raise DataError(
            f"{what} was trained on another foundation than {model.foundation.source} (sha256 {str(recorded)[:12]}..., not "
            f"{model.foundation_sha256[:12]}...); use the one it was trained with{otherwise}."
        )


def start_from(model: MLESAM, run: Run) -> list[str]:
    """Take over experts, stems, aligners, routers and the class-free layers of a trained run; class layers stay new.

    Returns:
        The sensors that were taken over.
    """
    tensors, metadata = load_tensors(run.path / run.weights)
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
    others = {*old, *model.modalities} - set(shared)

    def kept(name: str) -> bool:
        return not name.startswith(new_classes) and not any(belongs_to(name, m) for m in others)

    state = model.state_dict()
    wanted = {n: state[n] for n in state if n in model.saved_names or n in tensors}
    chosen = {n: tuple(t.shape) for n, t in wanted.items() if kept(n)}
    given = {n: t for n, t in tensors.items() if kept(n)}
    fit_or_raise(given, chosen, f"{run.path / run.weights} (--init)")
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
