"""``mlesam doctor``: checks an installation, a dataset, a recipe, a run or a checkpoint, and lists every fault it finds.

Returns 1 where there are faults and 0 where there are none or only notes; a target that is nothing of these is a
RequestError. What is heavy is imported by the check that needs it, so that a broken package can be reported.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from mlesam.checks.findings import Findings
from mlesam.checks.show import reading, show_facts, show_findings, show_groups, show_sensors, show_summary, title
from mlesam.config import DataConfig, Recipe, build, load_recipe, override, read_yaml
from mlesam.errors import MlesamError, RequestError, did_you_mean

if TYPE_CHECKING:
    from mlesam.data.dataset import Dataset

Kind = Literal["recipe", "dataset", "run", "checkpoint"]
WEIGHT_FILES = (".pt", ".pth", ".safetensors", ".bin")
TAKES = "doctor takes a recipe (.yaml), a dataset (folder:PATH), a run, a SAM2 checkpoint, or nothing"


def doctor(
    target: str | None,
    overrides: dict[str, str],
    console: Console,
    *,
    parity: bool = False,
    image: Path | None = None,
    out: Path | None = None,
    stats: bool = False,
    split: str | None = None,
    frames: int | None = None,
) -> int:
    """Check what ``target`` names and print the result.

    Args:
        target: recipe, dataset, run or checkpoint. None: the installation.
        overrides: ``{"section.key": "text"}`` on top of the recipe, or of the defaults for a dataset.
        parity: run SAM2 weights (``target`` may also be a preset or any Hub id) and hold them against ``transformers``.
        image: with ``parity``, the picture of the published scores. out: with ``parity``, where the result goes as JSON.
        stats: measure the sensors of the recipe or dataset instead, band by band.
        split: with ``stats``, the split to measure. None: train.
        frames: with ``stats``, files of each sensor to measure, evenly spaced. None: all.

    Returns:
        Exit status: 1 with faults, else 0.

    Raises:
        RequestError: the target is none of these, or the options do not apply to it.
    """
    if not parity and (image is not None or out is not None):
        raise RequestError(f"--{'out' if image is None else 'image'} goes with --parity; add it.")
    if parity and target is None:
        raise RequestError("--parity runs SAM2 weights; give a .pt file, a transformers folder, a Hub id or a preset.")
    kind = None if target is None or parity else kind_of(target)
    if overrides and kind not in ("recipe", "dataset"):
        raise RequestError(
            f"--{next(iter(overrides))} sets a field of a recipe; it goes with a recipe or a dataset only."
        )
    if stats:
        if kind not in ("recipe", "dataset"):
            raise RequestError(
                "--stats measures a dataset's sensors; name a recipe or a dataset, such as folder:data/mine."
            )
        return _stats(str(target), kind, overrides, split or "train", frames, console)
    if split is not None or frames is not None:
        raise RequestError("--split and --frames go with --stats; without it, all splits are checked.")
    if target is None:
        from mlesam.checks.installation import check_installation

        title("installation", "", console)
        findings: Findings = check_installation()
        show_facts(findings.facts, console)  # type: ignore[attr-defined]
    elif parity:
        findings = _parity(target, image, out, console)
    elif kind == "recipe":
        findings = _recipe(Path(target), overrides, console)
    elif kind == "dataset":
        findings = _dataset(target, load_recipe(None, overrides).data, console)
    else:
        findings = _weights(target, kind == "run", console)
    show_findings(findings, console)
    return 1 if findings.faults else 0


def kind_of(target: str) -> Kind:
    """What a target is, by its name and by what lies there."""
    path = Path(target)
    if path.is_dir():
        return _kind_of_folder(path)
    if path.is_file():
        if path.name == "dataset.yaml":
            raise RequestError(f"{target} describes a dataset; check it with: mlesam doctor folder:{path.parent}")
        if path.suffix.lower() in (".yaml", ".yml"):
            return "recipe"
        if path.suffix == ".safetensors" and (path.parent / "recipe.yaml").is_file():
            raise RequestError(f"{target} belongs to a run; check it with: mlesam doctor {path.parent}")
        with path.open("rb") as file:
            head = file.read(4)
        if path.suffix.lower() in WEIGHT_FILES or head[:2] == b"\x80\x02" or head == b"PK\x03\x04":
            return "checkpoint"
        raise RequestError(f"{target} is nothing that can be checked; {TAKES}.")
    if ":" in target:
        return "dataset"
    if target.count("/") == 1:
        from mlesam.model.hub import cached_folder, is_hub_id

        if is_hub_id(target) and cached_folder(target) is not None:
            return "checkpoint"
    raise RequestError(f"there is no {target!r}; {TAKES}.")


def _kind_of_folder(path: Path) -> Kind:
    if (path / "recipe.yaml").is_file() or (path / "run.json").is_file():
        return "run"
    if (path / "adapter.safetensors").is_file():
        raise RequestError(
            f"{path} is an adapter, which is checked whenever it is loaded; try it: mlesam predict {path}"
        )
    if (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return "checkpoint"
    if any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()):
        raise RequestError(f"{str(path)!r} does not say what kind of dataset it is; write folder:{path}.")
    raise RequestError(f"the folder {path} holds no recipe, no weights and no dataset; {TAKES}.")


# ---------------------------------------------------------------- the targets


def _dataset(name: str, config: DataConfig, console: Console) -> Findings:
    findings = Findings()
    path = name.partition(":")[2]
    try:
        dataset = _open(name, config, findings)
    except RequestError as error:
        if not path or not Path(path).is_dir():
            raise
        title("dataset", name, console)
        findings.fault("dataset", str(error))  # the dataset is there, but what it declares is wrong
        findings.note("dataset", "the files were not checked, since the dataset cannot be opened")
        return findings
    title("dataset", name, console)
    _data(dataset, config, findings, console)
    return findings


def _open(name: str, config: DataConfig, findings: Findings) -> Dataset:
    """Open a dataset although a recipe declares sensors that it does not have; those become faults."""
    from mlesam.data.dataset import open_dataset

    found = open_dataset(name, dataclasses.replace(config, sensors={})).modalities
    for modality in config.sensors:
        if modality not in found:
            findings.fault(
                "unknown sensors",
                f"a sensor {modality!r} is declared, but {name} has none{did_you_mean(modality, found)}",
            )
    return open_dataset(
        name, dataclasses.replace(config, sensors={m: s for m, s in config.sensors.items() if m in found})
    )


def _data(dataset: Dataset, config: DataConfig, findings: Findings, console: Console) -> bool:
    """Check the files; True where they have no fault."""
    from mlesam.checks.dataset import check_dataset

    with reading(console) as advance:
        checked = check_dataset(dataset, config.modalities, advance)
    show_summary(checked.summary, console)
    findings.add(checked)
    return not checked.faults


def _recipe(path: Path, overrides: dict[str, str], console: Console) -> Findings:
    title("recipe", str(path), console)
    findings = Findings()
    try:
        values = read_yaml(path)
    except RequestError as error:
        findings.fault("recipe", str(error))
        return findings
    values.setdefault("name", path.stem)
    for key, text in overrides.items():
        override(values, key, text)
    recipe = _build(values, findings)
    if recipe is None:
        return findings
    model, training, data = recipe.model, recipe.training, recipe.data
    facts = [
        ("model", f"{model.foundation}, training {model.train}, rank {model.rank}, fusion {model.fusion}"),
        (
            "training",
            f"{training.steps:,} steps of {training.batch} frames, crops of {data.crop} pixels, seed {recipe.seed}",
        ),
    ]
    _foundation(recipe, facts, findings, console)
    if training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        findings.fault(
            "packages",
            "training.tensorboard needs the package tensorboard; install mlesam[tensorboard], or set it to false.",
        )
    if data.dataset is None:
        findings.note("dataset", "the recipe names no dataset, so no data were checked; give --data.dataset KIND:PATH")
        return findings
    console.print()
    title("dataset", data.dataset, console)
    try:
        dataset = _open(data.dataset, data, findings)
    except MlesamError as error:
        findings.fault("dataset", str(error))
        return findings
    whole = _data(dataset, data, findings, console)
    if "train" not in dataset.splits():
        findings.fault(
            "splits", "there is no train split; training needs <modality>/train/ folders or splits/train.txt."
        )
    elif whole:  # with faulty files, the specs would stop at the first of them
        _sensors(dataset, data, findings, console)
    return findings


def _build(values: dict[str, Any], findings: Findings) -> Recipe | None:
    """The recipe without its wrong keys, each of which becomes a fault; None where no key can be blamed."""
    values = copy.deepcopy(values)
    while True:
        try:
            return build(Recipe, values)
        except RequestError as error:
            findings.fault("recipe", str(error))
            wrong = _culprit(values, str(error))
            if wrong is None:
                return None
            section, key = wrong
            del (values if section is None else values[section])[key]


def _culprit(values: dict[str, Any], message: str) -> tuple[str | None, Any] | None:
    """The key without which this message goes away: within a section if possible, else at the top."""
    fields = [(section, key) for section, inner in values.items() if isinstance(inner, dict) for key in inner]
    for section, key in [*fields, *((None, key) for key in values)]:
        rest = copy.deepcopy(values)
        del (rest if section is None else rest[section])[key]
        try:
            build(Recipe, rest)
        except RequestError as error:
            if str(error) == message:
                continue
        return section, key
    return None


def _foundation(recipe: Recipe, facts: list[tuple[str, str]], findings: Findings, console: Console) -> None:
    from mlesam.checks.weights import check_foundation
    from mlesam.config import RANDOM_PRESETS

    checked = check_foundation(recipe.model.foundation, recipe.model.revision)
    show_facts([*facts, *checked.facts], console)
    findings.add(checked)
    if recipe.model.foundation in RANDOM_PRESETS and recipe.model.train == "experts":
        findings.note(
            "foundation",
            f"the preset {recipe.model.foundation} has random weights, and train: experts keeps them frozen; for SAM2's own, "
            "name a Hub id, a folder or a .pt file, or set train: all",
        )


def _sensors(dataset: Dataset, data: DataConfig, findings: Findings, console: Console) -> None:
    """What a training would take each sensor's numbers for, and what it would refuse beyond the files themselves."""
    from mlesam.data.reading import choose_modalities, resolve_sensors

    try:
        modalities = choose_modalities(dataset, data.modalities)
        specs, _ = resolve_sensors(dataset, modalities, dataset.frames("train"))
    except MlesamError as error:
        findings.fault("sensors", str(error))
        return
    show_sensors(specs, console)


def _stats(target: str, kind: Kind, overrides: dict[str, str], split: str, most: int | None, console: Console) -> int:
    """Measure the sensors of a dataset; 1 where files stop it, and then there is nothing to paste."""
    from mlesam.checks.bands import measure_sensors, show_bands, show_block
    from mlesam.data.dataset import open_dataset
    from mlesam.data.reading import choose_modalities

    if most is not None and most < 1:
        raise RequestError(f"--frames is {most}, but it must be at least 1.")
    data = load_recipe(Path(target) if kind == "recipe" else None, overrides).data
    name = data.dataset if kind == "recipe" else target
    if name is None:
        raise RequestError(f"{target} names no dataset to measure; give --data.dataset KIND:PATH.")
    dataset = open_dataset(name, data)
    modalities = choose_modalities(dataset, data.modalities)
    frames = dataset.frames(split)
    where = f"{dataset.name}, split {split}"
    title("statistics of", where, console)
    findings = Findings()
    with reading(console) as advance:
        measured = measure_sensors(dataset, modalities, frames, split, most, findings, advance)
    for sensor in measured:
        show_bands(sensor, console)
    if findings.faults:
        show_findings(findings, console)
        return 1
    show_block(measured, where, console)
    return 0


def _weights(target: str, is_run: bool, console: Console) -> Findings:
    from mlesam.checks.run import check_run
    from mlesam.checks.weights import check_checkpoint
    from mlesam.model.hub import cached_folder

    title("run" if is_run else "checkpoint", target, console)
    path = Path(target)
    if not path.exists():
        path = cached_folder(target) or path
    findings = check_run(path) if is_run else check_checkpoint(path)
    show_facts(findings.facts, console)
    show_groups(findings.groups, console)
    return findings


def _parity(target: str, image: Path | None, out: Path | None, console: Console) -> Findings:
    """Check weights by their names and shapes and then, where these are right, by what they compute."""
    from mlesam.checks.parity import check_parity
    from mlesam.checks.weights import check_foundation
    from mlesam.config import PRESETS
    from mlesam.model.checkpoints import replace_file
    from mlesam.model.hub import fetch_folder, is_hub_id

    if is_hub_id(target) and not Path(target).exists():
        fetch_folder(target)
    elif target not in PRESETS and kind_of(target) != "checkpoint":
        raise RequestError(f"--parity runs SAM2 weights, and {target} is a {kind_of(target)}; give its foundation.")
    elif target.endswith(".safetensors"):
        target = str(Path(target).parent)
    title("checkpoint", target, console)
    weights = check_foundation(target)
    show_facts(weights.facts, console)
    show_groups(weights.groups, console)
    if weights.faults:
        weights.note("parity", "nothing was computed, since the weights are faulty")
        return weights
    console.print()
    title("parity with transformers", "", console)
    findings = check_parity(target, weights, image, lambda what, value: show_facts([(f"{what:<12}", value)], console))
    if out is not None:
        replace_file(out, json.dumps(findings.record, indent=2) + "\n")
    return findings
