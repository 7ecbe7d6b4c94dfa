"""Evaluating a run: the data, the protocol, and the result stored inside the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlesam.config import DataConfig, read_yaml
from mlesam.data.dataset import Dataset, Frame, open_dataset
from mlesam.data.faulty import BrokenFrames
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.data.reading import resolve_classes
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.evaluation.faulted import Faults
from mlesam.evaluation.protocols import Cases, Condition, Protocol, Subsets
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.evaluation.published import EntireMissing, Noisy, RandomMissing
from mlesam.evaluation.results import metrics
from mlesam.model.checkpoints import replace_file
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec

PROTOCOLS = ("subsets", "emm", "rmm", "nm", "cases", "faults")
ALL = "all"
FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: the content of ``metrics.json``, and each frame's confusion matrices behind it.

    ``left_out`` names the frames of the split that have no label or none of the run's sensors.
    """

    metrics: dict[str, Any]
    conditions: list[Condition]
    frames: list[Frame]
    left_out: list[str]


def evaluate(
    run: Run,
    *,
    protocol: str = "subsets",
    data: str | None = None,
    class_map: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    published_noise: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Test a run's model under a protocol.

    Args:
        protocol: one of ``PROTOCOLS``.
        data: another dataset than the run's own, by name.
        class_map: YAML file ``{class of that dataset: class of the run, or null to ignore it}``.
        split: default as :meth:`Dataset.default_split`.
        limit: only the first frames.
        published_noise: ``nm`` as the published scripts do it, on batches of so many frames.
        advance: called with frames done and frames in all.

    Raises:
        RequestError: no such protocol, or what :func:`open_split` refuses. DataError: the protocol needs what the data lack.
    """
    if protocol not in PROTOCOLS:
        raise RequestError(f"unknown protocol {protocol!r}{did_you_mean(protocol, (*PROTOCOLS, ALL))}")
    _check_noise(protocol, published_noise)
    return _Test.prepare(run, data, class_map, split, limit).under(protocol, published_noise, advance)


def evaluate_all(
    run: Run,
    *,
    data: str | None = None,
    class_map: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    published_noise: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Test a run's model under every protocol; the arguments are those of :func:`evaluate`.

    Returns:
        What each protocol found, and for each that the data cannot have, why not.
    """
    _check_noise(ALL, published_noise)
    test = _Test.prepare(run, data, class_map, split, limit)
    found: dict[str, Evaluation] = {}
    notes: dict[str, str] = {}
    for i, name in enumerate(PROTOCOLS):

        def count(done: int, total: int, before: int = i) -> None:
            advance(before * total + done, len(PROTOCOLS) * total)

        if name == Cases.name and not any(frame.tags for frame in test.frames):
            notes[name] = f"the {len(test.frames)} frames have no tags"
            continue
        found[name] = test.under(name, published_noise, count)
    return found, notes


def _check_noise(protocol: str, published_noise: int | None) -> None:
    if published_noise is None:
        return
    if protocol not in (Noisy.name, ALL):
        raise RequestError(f"--published-noise belongs to protocol nm, not to {protocol}; leave it out.")
    if published_noise < 1:
        raise RequestError(f"--published-noise is {published_noise}, but a batch has at least 1 frame.")


@dataclass(frozen=True)
class _Test:
    """A model and the frames it is tested on."""

    run: Run
    scored: Scored
    frames: list[Frame]
    model: MLESAM

    @staticmethod
    def prepare(run: Run, data: str | None, class_map: Path | None, split: str | None, limit: int | None) -> _Test:
        if limit is not None and limit < 1:
            raise RequestError(f"--frames is {limit}, but it must be at least 1.")
        scored = open_split(run, data, class_map, split)
        model = run.load_model().to("cuda" if torch.cuda.is_available() else "cpu")
        return _Test(run, scored, scored.frames[:limit], model)

    def under(self, name: str, published_noise: int | None, advance: Callable[[int, int], None]) -> Evaluation:
        scored, resize = self.scored, self.run.recipe.data.resize
        protocol = self._protocol(name, published_noise is not None)
        reader = EvaluationFrames(self.frames, scored.sensors, scored.classes, resize)
        loader = evaluation_loader(reader, (published_noise or 1) if name == Noisy.name else 1)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            advance(done, len(self.frames))

        modalities = tuple(scored.sensors)
        conditions = run_protocol(
            protocol, self.model, batches(loader), modalities, self.frames, count, self.run.calibration
        )
        result = metrics(
            protocol,
            conditions,
            self.frames,
            dataset=scored.dataset,
            split=scored.split,
            modalities=modalities,
            classes=self.run.classes.names,
            seed=self.run.recipe.seed,
            about=scored.about,
        )
        if name == Noisy.name and published_noise is not None:
            result["published_noise"] = published_noise
        return Evaluation(result, conditions, self.frames, scored.left_out)

    def _protocol(self, name: str, whole_batch: bool) -> Protocol:
        scored, seed = self.scored, self.run.recipe.seed
        modalities = tuple(scored.sensors)
        if name == EntireMissing.name:
            return EntireMissing(modalities)
        if name == RandomMissing.name:
            return RandomMissing(modalities, seed)
        if name == Noisy.name:
            return Noisy(scored.sensors, seed, whole_batch)
        if name == Cases.name:
            return Cases(modalities, self.frames, f"split {scored.split!r} of {scored.dataset}")
        if name == Faults.name:
            return Faults(BrokenFrames(self.frames, scored.sensors, self.run.recipe.data.resize, seed))
        return Subsets(modalities)


def store_all(run: Run, found: Mapping[str, Evaluation], notes: Mapping[str, str], out: Path | None) -> list[Path]:
    """Store every protocol's result inside the run, and all together in ``out``. Returns the paths inside the run."""
    paths = [store(run, evaluation, None) for evaluation in found.values()]
    if out is not None:
        parts = ",\n".join(f"{json.dumps(name)}: {dumps(e.metrics).rstrip()}" for name, e in found.items())
        rest = f',\n"notes": {json.dumps(notes)}' if notes else ""
        replace_file(out, f'{{"protocols": {{\n{parts}\n}}{rest}}}\n')
    return paths


def store(run: Run, evaluation: Evaluation, out: Path | None) -> Path:
    """Write ``metrics.json`` inside the run, and to ``out`` as well. Returns the path inside the run."""
    result = evaluation.metrics
    own = result["dataset"] == run.recipe.data.dataset
    other = "" if own else re.sub(r"[^A-Za-z0-9]+", "-", result["dataset"]).strip("-") + "-"
    published = "-published" if "published_noise" in result else ""
    path = run.path / FOLDER / f"{result['protocol']}{published}-{other}{result['split']}-{result['frames']}.json"
    text = dumps(result)
    replace_file(path, text)
    if out is not None:
        replace_file(out, text)
    return path


def dumps(result: dict[str, Any]) -> str:
    """``metrics.json`` as text: indented, but each row of the confusion matrix on one line."""
    text = json.dumps({**result, "confusion": None} if "confusion" in result else result, indent=2, ensure_ascii=False)
    if "confusion" in result:
        rows = ",\n".join(f"    {json.dumps(row)}" for row in result["confusion"])
        # A line break inside a name is escaped, so only the key itself can stand at the start of a line.
        text = text.replace('\n  "confusion": null', f'\n  "confusion": [\n{rows}\n  ]', 1)
    return text + "\n"


@dataclass(frozen=True)
class Scored:
    """The frames of a split that can be scored with a run, and how to read them.

    ``left_out`` names the frames without a label or without any of the run's sensors; ``about`` is what one must know who
    reads a number of this split.
    """

    dataset: str
    split: str
    frames: list[Frame]
    sensors: dict[str, SensorSpec]
    classes: Classes
    left_out: list[str]
    about: str | None = None


def open_split(run: Run, data: str | None = None, class_map: Path | None = None, split: str | None = None) -> Scored:
    """Open a split for scoring; the arguments are those of :func:`evaluate`.

    Raises:
        RequestError: no such dataset or split, or none of the run's sensors. DataError: nothing to score.
    """
    name = data or run.recipe.data.dataset
    if name is None:
        raise RequestError(f"{run.path} is an adapter and names no dataset; say which one: --data KIND:PATH.")
    own = data is None or data == run.recipe.data.dataset
    dataset = open_dataset(name, replace(run.recipe.data, sensors={}) if own else DataConfig())
    modalities = tuple(m for m in run.sensors if m in dataset.modalities)
    if not modalities:
        raise RequestError(
            f"{name} has none of the run's sensors ({', '.join(run.sensors)}), only {', '.join(dataset.modalities)}."
        )
    split = split or dataset.default_split()
    everything = dataset.frames(split)
    frames = [f for f in everything if f.label is not None and set(f.files) & set(modalities)]
    if not frames:
        raise DataError(
            f"split {split!r} of {name} has no labelled frame with one of {', '.join(modalities)}; nothing to score."
        )
    ids = {f.id for f in frames}
    classes = run.classes if own else _classes(dataset, run.classes, class_map)
    left_out = [f.id for f in everything if f.id not in ids]
    specs = {m: run.sensors[m] for m in modalities}
    return Scored(name, split, frames, specs, classes, left_out, dataset.about(split))


def _classes(dataset: Dataset, target: Classes, class_map: Path | None) -> Classes:
    """How to read another dataset's labels as the run's classes. One that declares no classes is taken to have them."""
    if class_map is None and dataset.declared.classes is None:
        return target
    found, _ = resolve_classes(dataset, dataset.frames(dataset.default_split()))
    if class_map is None:
        if found.names != target.names:
            raise RequestError(
                f"{dataset.name} has the classes {', '.join(found.names[:6])}, not those of the run "
                f"({', '.join(target.names[:6])}); say with --class-map FILE which becomes which."
            )
        return found
    mapping = read_yaml(class_map)
    for source, wanted in mapping.items():
        if source not in found.names:
            raise RequestError(
                f"{class_map} maps {source!r}, which {dataset.name} does not have{did_you_mean(source, found.names)}"
            )
        if wanted is not None and wanted not in target.names:
            raise RequestError(
                f"{class_map} maps {source!r} to {wanted!r}, which the run does not have{did_you_mean(wanted, target.names)}"
            )
    # The ids are mapped after decoding, so that raw values, palettes and the ignored value keep their meaning.
    ids = {i: target.names.index(mapping[n]) if mapping.get(n) is not None else None for i, n in enumerate(found.names)}
    return replace(found, translate=tuple(ids[i] for i in range(len(found.names))))
