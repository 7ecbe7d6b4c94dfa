"""The frames of a split that a run can be scored on, its own dataset's or another's, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlesam.config import DataConfig
from mlesam.data.class_maps import ClassMap, read_class_map
from mlesam.data.dataset import Dataset, Frame, open_dataset
from mlesam.data.reading import choose_modalities, resolve_classes
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.model.run import Run
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec


@dataclass(frozen=True)
class Scored:
    """The frames of a split that can be scored with a run, and how to read them.

    ``left_out`` names the frames without a label or without any of the run's sensors; ``about`` is what one must know who
    reads a number of this split. ``whole`` is how many frames the split has: the published number where there is one, else
    those that can be scored. ``chosen``: not all sensors that it could be tested with. ``miniature``: the dataset only stands in
    for the published one.
    """

    dataset: str
    split: str
    frames: list[Frame]
    sensors: dict[str, SensorSpec]
    classes: Classes
    left_out: list[str]
    about: str | None = None
    class_map: ClassMap | None = None
    whole: int = 0
    chosen: bool = False
    miniature: bool = False


def open_split(
    run: Run,
    data: str | None = None,
    class_map: str | Path | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
) -> Scored:
    """Open a split for scoring; the arguments are those of :func:`evaluate`.

    Raises:
        RequestError: no such dataset or split, none of the run's sensors, one that means something else there, or classes that
        are not mapped. DataError: nothing to score.
    """
    name = data or run.recipe.data.dataset
    if name is None:
        raise RequestError(f"{run.path} is an adapter and names no dataset; say which one: --data KIND:PATH.")
    own = data is None or data == run.recipe.data.dataset
    if own and class_map is not None:
        raise RequestError(f"--class-map is for another dataset than the run's own, {name}; name that with --data.")
    dataset = open_dataset(name, replace(run.recipe.data, sensors={}) if own else DataConfig())
    everyone = [m for m in run.sensors if m in dataset.modalities]
    chosen = _sensors(run, dataset, own, everyone, modalities)
    split = split or dataset.default_split()
    everything = dataset.frames(split)
    frames = [f for f in everything if f.label is not None and set(f.files) & set(chosen)]
    if not frames:
        raise DataError(
            f"split {split!r} of {name} has no labelled frame with one of {', '.join(chosen)}; nothing to score."
        )
    ids = {f.id for f in frames}
    classes, mapped = (run.classes, None) if own else _classes(dataset, run.classes, class_map)
    left_out = [f.id for f in everything if f.id not in ids]
    return Scored(
        name,
        split,
        frames,
        chosen,
        classes,
        left_out,
        dataset.about(split),
        mapped,
        len(frames) if dataset.miniature() else dataset.published.get(split, {}).get("", len(frames)),
        len(chosen) < len(everyone),
        dataset.miniature(),
    )


def _sensors(
    run: Run, dataset: Dataset, own: bool, everyone: Sequence[str], modalities: Sequence[str] | None
) -> dict[str, SensorSpec]:
    """The chosen ones of the sensors that run and dataset both have, as the run reads them."""
    if not everyone:
        raise RequestError(
            f"{dataset.name} has none of the run's sensors ({', '.join(run.sensors)}), only {', '.join(dataset.modalities)}."
        )
    for modality in modalities or ():
        if modality not in run.sensors:
            raise RequestError(f"{run.path} has no sensor {modality!r}{did_you_mean(modality, run.sensors)}")
    chosen = choose_modalities(dataset, modalities) if modalities is not None else tuple(everyone)
    specs = {m: run.sensors[m] for m in chosen}
    misfits = {} if own else _misfits(dataset, specs)
    if misfits:
        modality, why = next(iter(misfits.items()))
        rest = ",".join(m for m in specs if m not in misfits)
        mend = f"choose those that fit with --modalities {rest}" if rest else "no other sensor fits either"
        raise RequestError(f"{modality} of {dataset.name} {why}; {mend}.")
    return specs


def _misfits(dataset: Dataset, specs: Mapping[str, SensorSpec]) -> dict[str, str]:
    """Sensors that the dataset declares to be something else than what the run learned, and why.

    The run's specs read the other dataset's files too, so numbers in another unit would pass for its own.
    """
    found = {}
    for modality, spec in specs.items():
        declared = dataset.sensor(modality)
        for key, learned in (("channels", spec.channels), ("unit", spec.unit)):
            if key in declared and declared[key] != learned:
                found[modality] = f"has the {key} {declared[key]!r}, but the run learned it with {learned!r}"
    return found


def _classes(dataset: Dataset, target: Classes, class_map: str | Path | None) -> tuple[Classes, ClassMap | None]:
    """How to read another dataset's labels as the run's classes. One that declares no classes is taken to have them."""
    if class_map is None and dataset.declared.classes is None:
        return target, None
    found, _ = resolve_classes(dataset, dataset.frames(dataset.default_split()))
    if class_map is None:
        if found.names != target.names:
            raise RequestError(
                f"{dataset.name} has the classes {', '.join(found.names[:6])}, not those of the run "
                f"({', '.join(target.names[:6])}); say with --class-map FILE which becomes which."
            )
        return found, None
    mapped = read_class_map(class_map, dataset.name, found.names, target.names)
    # The ids are mapped after decoding, so that raw values, palettes and the ignored value keep their meaning.
    return replace(found, translate=mapped.translate), mapped
