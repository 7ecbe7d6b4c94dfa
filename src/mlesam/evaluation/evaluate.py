"""Evaluating a run: the data, the protocol, and the result stored inside the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlesam.data.dataset import Frame
from mlesam.data.faulty import BrokenFrames
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.errors import RequestError, did_you_mean
from mlesam.evaluation.faulted import Faults
from mlesam.evaluation.protocols import Cases, Condition, Protocol, Subsets
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.evaluation.published import EntireMissing, Noisy, RandomMissing
from mlesam.evaluation.results import metrics
from mlesam.evaluation.scored import Scored, open_split
from mlesam.evaluation.stored import FOLDER, dumps, stem, write_tables
from mlesam.evaluation.views import Viewer, Views
from mlesam.model.checkpoints import replace_file
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sensors.faults import SEVERITIES

PROTOCOLS = ("subsets", "emm", "rmm", "nm", "cases", "faults")
ALL = "all"


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
    class_map: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    published_noise: int | None = None,
    severities: Sequence[int] | None = None,
    modalities: Sequence[str] | None = None,
    views: Views | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Test a run's model under a protocol.

    Args:
        protocol: one of ``PROTOCOLS``.
        data: another dataset than the run's own, by name.
        class_map: how that dataset's classes are scored: a map of the package by name, or a YAML file (docs/protocols.md).
        split: default as :meth:`Dataset.default_split`.
        limit: only the first frames.
        published_noise: ``nm`` as the published scripts do it, on batches of so many frames.
        severities: of the faults, 1 to 5. None: all.
        modalities: only these of the run's sensors. None: all that the dataset has.
        views: how each frame is looked at; with windows, at its native size. None: once, as it is.
        advance: called with frames done and frames in all.

    Raises:
        RequestError: no such protocol, or what :func:`open_split` refuses. DataError: the protocol needs what the data lack.
    """
    if protocol not in PROTOCOLS:
        raise RequestError(f"unknown protocol {protocol!r}{did_you_mean(protocol, (*PROTOCOLS, ALL))}")
    special = _Special.of(protocol, published_noise, severities)
    test = _Test.prepare(run, data, class_map, split, limit, modalities, views, special)
    return test.under(protocol, advance)


def evaluate_all(
    run: Run,
    *,
    data: str | None = None,
    class_map: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    published_noise: int | None = None,
    severities: Sequence[int] | None = None,
    modalities: Sequence[str] | None = None,
    views: Views | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Test a run's model under every protocol; the arguments are those of :func:`evaluate`.

    Returns:
        What each protocol found, and for each that the data cannot have, why not.
    """
    special = _Special.of(ALL, published_noise, severities)
    test = _Test.prepare(run, data, class_map, split, limit, modalities, views, special)
    found: dict[str, Evaluation] = {}
    notes: dict[str, str] = {}
    for i, name in enumerate(PROTOCOLS):

        def count(done: int, total: int, before: int = i) -> None:
            advance(before * total + done, len(PROTOCOLS) * total)

        if name == Cases.name and not any(frame.tags for frame in test.frames):
            notes[name] = f"the {len(test.frames)} frames have no tags"
            continue
        found[name] = test.under(name, count)
    return found, notes


@dataclass(frozen=True)
class _Special:
    """What of a protocol is not as usual: see :func:`evaluate`."""

    published_noise: int | None
    severities: tuple[int, ...]

    @staticmethod
    def of(protocol: str, published_noise: int | None, severities: Sequence[int] | None) -> _Special:
        if published_noise is not None:
            if protocol not in (Noisy.name, ALL):
                raise RequestError(f"--published-noise belongs to protocol nm, not to {protocol}; leave it out.")
            if published_noise < 1:
                raise RequestError(f"--published-noise is {published_noise}, but a batch has at least 1 frame.")
        if severities is None:
            return _Special(published_noise, SEVERITIES)
        if protocol not in (Faults.name, ALL):
            raise RequestError(f"--severities belongs to protocol faults, not to {protocol}; leave it out.")
        chosen = tuple(sorted(set(severities)))
        if not chosen or not set(chosen) <= set(SEVERITIES) or len(chosen) < len(severities):
            named = ",".join(map(str, severities))
            raise RequestError(
                f"--severities is {named!r}, but it must name some of 1, 2, 3, 4, 5, each once, as in 1,5."
            )
        return _Special(published_noise, chosen)

    def facts(self, protocol: str) -> dict[str, Any]:
        """The fields of ``metrics.json`` that say so."""
        if protocol == Noisy.name and self.published_noise is not None:
            return {"published_noise": self.published_noise}
        if protocol == Faults.name and self.severities != SEVERITIES:
            return {"severities": list(self.severities)}
        return {}


@dataclass(frozen=True)
class _Test:
    """A model, the frames it is tested on, and how it looks at them."""

    run: Run
    scored: Scored
    frames: list[Frame]
    model: MLESAM
    views: Views
    special: _Special

    @staticmethod
    def prepare(
        run: Run,
        data: str | None,
        class_map: str | Path | None,
        split: str | None,
        limit: int | None,
        modalities: Sequence[str] | None,
        views: Views | None,
        special: _Special,
    ) -> _Test:
        if limit is not None and limit < 1:
            raise RequestError(f"--frames is {limit}, but it must be at least 1.")
        scored = open_split(run, data, class_map, split, modalities)
        model = run.load_model().to("cuda" if torch.cuda.is_available() else "cpu")
        return _Test(run, scored, scored.frames[:limit], model, views or Views(), special)

    @property
    def resize(self) -> int | None:
        """Short side that frames are brought to; windows are cut out of them at their native size."""
        return self.run.recipe.data.resize if self.views.window is None else None

    def unusual(self, name: str) -> dict[str, Any]:
        """The fields of ``metrics.json`` that say how this differs from the plain evaluation of a whole split."""
        scored, found = self.scored, self.special.facts(name)
        if not self.views.plain:
            found["views"] = self.views.facts()
        if scored.class_map is not None:
            found["class_map"] = scored.class_map.facts()
        if scored.chosen:
            found["chosen"] = list(scored.sensors)
        if len(self.frames) < scored.whole:
            found["split_frames"] = scored.whole
        if scored.miniature:
            found["miniature"] = True
        return found

    def under(self, name: str, advance: Callable[[int, int], None]) -> Evaluation:
        scored = self.scored
        protocol = self._protocol(name)
        reader = EvaluationFrames(self.frames, scored.sensors, scored.classes, self.resize)
        loader = evaluation_loader(reader, (self.special.published_noise or 1) if name == Noisy.name else 1)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            advance(done, len(self.frames))

        modalities, mapped = tuple(scored.sensors), scored.class_map
        conditions = run_protocol(
            protocol,
            self.model,
            batches(loader),
            modalities,
            self.frames,
            count,
            self.run.calibration,
            Viewer(self.model, self.views, scored.sensors),
            None if mapped is None else mapped.counts_as,
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
            special=self.unusual(name),
            reached=None if mapped is None else mapped.reached,
        )
        return Evaluation(result, conditions, self.frames, scored.left_out)

    def _protocol(self, name: str) -> Protocol:
        scored, seed = self.scored, self.run.recipe.seed
        modalities = tuple(scored.sensors)
        if name == EntireMissing.name:
            return EntireMissing(modalities)
        if name == RandomMissing.name:
            return RandomMissing(modalities, seed)
        if name == Noisy.name:
            return Noisy(scored.sensors, seed, self.special.published_noise is not None)
        if name == Cases.name:
            return Cases(modalities, self.frames, f"split {scored.split!r} of {scored.dataset}")
        if name == Faults.name:
            return Faults(BrokenFrames(self.frames, scored.sensors, self.resize, seed), self.special.severities)
        return Subsets(modalities)


def store_all(run: Run, found: Mapping[str, Evaluation], notes: Mapping[str, str], out: Path | None) -> list[Path]:
    """Store every protocol's result inside the run, and all together in ``out``. Returns the paths inside the run."""
    paths = [store(run, evaluation, None) for evaluation in found.values()]
    if out is not None:
        write_tables(run, [evaluation.metrics for evaluation in found.values()], out)
        parts = ",\n".join(f"{json.dumps(name)}: {dumps(e.metrics).rstrip()}" for name, e in found.items())
        rest = f',\n"notes": {json.dumps(notes)}' if notes else ""
        replace_file(out, f'{{"protocols": {{\n{parts}\n}}{rest}}}\n')
    return paths


def store(run: Run, evaluation: Evaluation, out: Path | None) -> Path:
    """Write ``metrics.json`` and its tables inside the run, and to ``out`` as well. Returns the path inside the run."""
    path = run.path / FOLDER / f"{stem(evaluation.metrics, run)}.json"
    text = dumps(evaluation.metrics)
    for place in (path, *([] if out is None else [out])):
        replace_file(place, text)
        write_tables(run, [evaluation.metrics], place)
    return path
