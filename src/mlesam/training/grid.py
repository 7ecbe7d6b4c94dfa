"""The trainings of an ablation: what is varied, each combination's recipe, and the folder that it is kept in."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import mlesam
from mlesam.config import Recipe, load_recipe, parse_yaml, plain
from mlesam.errors import RequestError
from mlesam.sensors.archives import AnyPath
from mlesam.training.prepare import Prepared, prepare

SEED, VARIANT = "seed", "variant"

Axes = Mapping[str, Mapping[str, Mapping[str, str]]]
"""What is varied: ``{axis: {label: {"section.key": "text"}}}``."""


@dataclass(frozen=True)
class Cell:
    """One training of a grid: its label on each axis, its recipe, the folder of its run, and the run that it extends."""

    labels: dict[str, str]
    recipe: Recipe
    path: Path
    extends: Path | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items()) or self.recipe.name


def axes(vary: Iterable[str], variants: Iterable[Sequence[str]]) -> Axes:
    """The axes of ``--vary``, then that of ``--variant``; ``seed`` is always the last."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for text in vary:
        key, axis = parse_vary(text)
        if key in found:
            raise RequestError(f"--vary names {key} twice; give all of its values at once.")
        found[key] = axis
    named: dict[str, dict[str, str]] = {}
    for words in variants:
        name, changes = parse_variant(words)
        if name in named:
            raise RequestError(f"--variant names {name!r} twice; give each its own name.")
        named[name] = changes
    if named:
        found[VARIANT] = named
    if not found:
        raise RequestError("nothing is varied; give --vary KEY=A,B,... or --variant NAME KEY=VALUE ...")
    return {axis: found[axis] for axis in sorted(found, key=lambda axis: axis == SEED)}


def parse_vary(text: str) -> tuple[str, dict[str, dict[str, str]]]:
    """``"model.rank=4,8"`` as an axis: its name and ``{label: {key: text}}``. Lists in it are written ``[rgb,depth],[rgb]``."""
    key, equals, values = text.partition("=")
    try:
        items = parse_yaml(f"[{values}]")
    except ValueError:
        items = []
    if not equals or not key or not items:
        raise RequestError(
            f"--vary {text!r} cannot be read; write a field and its values, for example model.rank=4,8,16."
        )
    axis = {_label(item): {key: _text(item)} for item in items}
    if len(axis) < len(items):
        raise RequestError(f"--vary {text!r} gives a value twice; give each once.")
    return key, axis


def parse_variant(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """``["shared", "model.experts=shared", "model.rank=8"]``: a name and the fields that it changes together."""
    name, *changes = words
    pairs = {key: value for key, equals, value in (change.partition("=") for change in changes) if equals}
    if len(pairs) < len(changes) or "=" in name:
        raise RequestError(
            f"--variant {' '.join(words)!r} cannot be read; write a name and fields, for example: shared model.experts=shared."
        )
    return name, pairs


def _text(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _label(value: object) -> str:
    if isinstance(value, list):
        return "+".join(str(v) for v in value) or "[]"
    return "none" if value is None else str(value)


def plan(recipe: Path | None, overrides: Mapping[str, str], axes: Axes, runs: Path) -> list[Cell]:
    """Every combination of the axes' labels, the last axis changing fastest. Nothing is trained yet, but every recipe is
    checked and its dataset opened.

    Args:
        recipe: YAML file that all have in common (None: the default recipe), overrides: fields on top of it.
        runs: folder of the runs.
    """
    for axis, values in axes.items():
        for key in {key for changes in values.values() for key in changes}:
            if key in overrides:
                raise RequestError(
                    f"{key} is set to {overrides[key]} and varied by {axis} as well; give one of the two."
                )
    recipes = []
    for labels in itertools.product(*axes.values()):
        chosen = dict(zip(axes, labels, strict=True))
        changes: dict[str, str] = {}
        for axis, label in chosen.items():
            twice = changes.keys() & axes[axis][label].keys()
            if twice:
                raise RequestError(f"{min(twice)} is varied on two axes; give it on one.")
            changes |= axes[axis][label]
        recipes.append((chosen, load_recipe(recipe, {**overrides, **changes})))
    return [Cell(labels, own, runs / identity(prepare(own))) for labels, own in recipes]


def identity(prepared: Prepared) -> str:
    """Name of a training's folder: a hash of what its recipe changes, of the files it reads, and of the package's version.

    Fields at their default are left out, so that a field that is new in the package makes no training another one; where a
    default changes, the version does too. A file is known by its size and the time it was written.
    """
    values = _changed(plain(prepared.recipe), plain(Recipe()))
    values.pop("name", None)
    dataset, foundation = prepared.dataset, Path(prepared.recipe.model.foundation)
    split = dataset.default_split()
    tested = dataset.frames(split) if split in dataset.splits() else []
    files = {
        f"{number} {frame.id} {name}": _stamp(path)
        for number, frames in enumerate((prepared.train, prepared.val, tested))
        for frame in frames
        for name, path in (*frame.files.items(), ("label", frame.label))
        if path is not None
    }
    weights = sorted(foundation.rglob("*")) if foundation.is_dir() else [foundation] if foundation.is_file() else []
    content = [values, files, [[str(path), *_stamp(path)] for path in weights], mlesam.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(path: AnyPath) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict) and key in ("data", "model", "training"):
            found[key] = _changed(value, default)
        elif value != default:
            found[key] = value
    return found
