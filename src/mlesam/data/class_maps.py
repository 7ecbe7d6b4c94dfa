"""Class maps: how the classes of one dataset are scored with a model that knows another's.

A YAML file with a line for **every** class of the dataset: the class of the run that answers it, a list of several where any of
them is right, or null where it is not to be scored. A class that is left out is an error and no guess. The maps that come with
the package, with a reason for every class, are in ``data/maps``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mlesam.config import parse_yaml, read_yaml
from mlesam.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class ClassMap:
    """A checked map.

    Attributes:
        name: as given: that of a map of the package, or a path.
        answers: for each class of the dataset, in its order, the classes of the run that are right. It is scored as the first;
            empty: it is not scored.
        target: the run's classes.
    """

    name: str
    answers: dict[str, tuple[str, ...]]
    target: tuple[str, ...]

    @property
    def translate(self) -> tuple[int | None, ...]:
        """By class id of the dataset: the run's id that it is scored as, or None."""
        return tuple(self.target.index(a[0]) if a else None for a in self.answers.values())

    @property
    def counts_as(self) -> tuple[int, ...]:
        """By class id of the run: the id that its answer counts as. Only a class that is an alternative counts as another."""
        alternatives = {other: a[0] for a in self.answers.values() for other in a[1:]}
        return tuple(self.target.index(alternatives.get(name, name)) for name in self.target)

    @property
    def reached(self) -> tuple[bool, ...]:
        """By class id of the run: whether any class of the dataset is scored as it. The others have no IoU."""
        scored = {a[0] for a in self.answers.values() if a}
        return tuple(name in scored for name in self.target)

    def facts(self) -> dict[str, Any]:
        """The field ``class_map`` of ``metrics.json``: the map as its file has it."""
        return {
            "name": self.name,
            "classes": {n: None if not a else a[0] if len(a) == 1 else list(a) for n, a in self.answers.items()},
        }


def shipped() -> tuple[str, ...]:
    """Names of the maps that come with the package."""
    folder = resources.files("mlesam.data").joinpath("maps")
    return tuple(sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")))


def read_class_map(name: str | Path, dataset: str, source: Sequence[str], target: Sequence[str]) -> ClassMap:
    """Read a map and hold it against the classes on both sides.

    Args:
        name: one of :func:`shipped`, or a path. dataset: what the dataset is called in messages.
        source: its classes. target: the run's.

    Raises:
        RequestError: there is no such map, it leaves a class out, names one that does not exist, or says two things at once.
    """
    values = _read(name)
    for key in values:
        if key not in source:
            raise RequestError(f"{name} maps {key!r}, which {dataset} does not have{did_you_mean(key, source)}")
    missing = [n for n in source if n not in values]
    if missing:
        raise RequestError(
            f"{name} says nothing about {', '.join(missing)}; it needs a line for every class of {dataset}, with null for one "
            "that is not to be scored."
        )
    answers = {n: _answers(name, n, values[n], target) for n in source}
    if not any(answers.values()):
        raise RequestError(f"{name} maps every class to null, so nothing would be scored; name a class of the run.")
    _refuse_contradiction(name, answers)
    return ClassMap(str(name), answers, tuple(target))


def _read(name: str | Path) -> dict[str, Any]:
    if str(name) in shipped():
        return parse_yaml(resources.files("mlesam.data").joinpath(f"maps/{name}.yaml").read_text(encoding="utf-8"))
    if not Path(name).is_file():
        raise RequestError(
            f"there is no file {name}, and no class map of that name comes with the package{did_you_mean(str(name), shipped())}"
        )
    return read_yaml(Path(name))


def _answers(name: str | Path, source: str, value: Any, target: Sequence[str]) -> tuple[str, ...]:
    wanted = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    for answer in wanted:
        if answer not in target:
            raise RequestError(
                f"{name} maps {source!r} to {answer!r}, which the run does not have{did_you_mean(answer, target)}"
            )
    if len(set(wanted)) < len(wanted) or value == []:
        raise RequestError(f"{name} maps {source!r} to {value!r}; name each class once, or write null.")
    return wanted


def _refuse_contradiction(name: str | Path, answers: dict[str, tuple[str, ...]]) -> None:
    """An answer can count as one class only: what is an alternative of one is neither a class of its own nor another's."""
    scored = {a[0]: n for n, a in answers.items() if a}
    counts: dict[str, tuple[str, str]] = {}
    for source, wanted in answers.items():
        for other in wanted[1:]:
            first, by = counts.setdefault(other, (wanted[0], source))
            if other in scored or first != wanted[0]:
                raise RequestError(
                    f"{name} lets {other!r} count as {wanted[0]!r} (for {source!r}), but {scored.get(other, by)!r} is "
                    f"scored as {other if other in scored else first!r}; an answer counts as one class, so use one list for both."
                )
