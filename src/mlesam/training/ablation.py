"""Ablations: a grid of short trainings, each done once.

A training is kept in a folder named by the hash of its resolved recipe, its frames and the package's version. A grid that was
interrupted goes on where it stopped, and grids that share a folder of runs share their trainings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlesam
from mlesam.config import Recipe, load_recipe, parse_yaml, plain
from mlesam.errors import DataError, MlesamError, RequestError, WorkError, refuse_occupied
from mlesam.evaluation.comparison import Row, compare, dot_plot, markdown
from mlesam.evaluation.evaluate import evaluate, store
from mlesam.evaluation.metrics import mean_iou
from mlesam.model.checkpoints import load_tensors, replace_file, save_tensors
from mlesam.model.run import LAST, LOG, RECIPE, RECORD, Run
from mlesam.training.loop import frame_record, train
from mlesam.training.prepare import Prepared, prepare

SEED, VARIANT, TABLE = "seed", "variant", "ablation"
CONFUSIONS = Path("evaluation") / "frames.safetensors"
"""Inside a run: each frame's confusion matrix (F, C, C) for every subset of the sensors."""

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


@dataclass(frozen=True)
class Result:
    """What a finished training of a grid gave.

    Attributes:
        confusions: ``{subset: (F, C, C)}``, the subset of all sensors last; frames: ids of the F frames.
        trainable: parameters. step_seconds: median over the steps. peak_mib: the most memory that the training's process, or
            its GPU, held. threads: of the CPU.
    """

    confusions: dict[str, np.ndarray]
    frames: tuple[str, ...]
    split: str
    trainable: int
    step_seconds: float
    peak_mib: float | None
    threads: int


@dataclass(frozen=True)
class Ablation:
    """A finished grid: the rows of :func:`~mlesam.evaluation.comparison.compare`, the heads of its two first columns, and what
    failed, one sentence each."""

    rows: list[dict[str, Any]]
    heads: tuple[str, str]
    failed: list[str]


def ablate(
    recipe: Path | None,
    overrides: Mapping[str, str],
    axes: Axes,
    out: Path,
    runs: Path | None = None,
    jobs: int = 1,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Ablation:
    """Train every combination, each once, and compare them.

    Args:
        recipe: YAML file that all have in common (None: the default recipe), overrides: fields on top of it.
        out: gets ``ablation.json``, ``ablation.md`` and ``ablation.svg``; written anew when the command is given again.
        runs: folder of the trainings, ``out/runs`` where it is None. jobs: trainings at a time.
        say: told of every training as it ends.
    """
    if not (out / f"{TABLE}.json").is_file() and not (out / "runs").is_dir():
        refuse_occupied(out)
    cells = plan(recipe, overrides, axes, runs or out / "runs")
    failed = run_all(cells, jobs, say)
    rows = compare(table(cells, failed))
    groups, *others = [axis for axis in axes if axis != SEED] or [VARIANT]
    heads = (groups, ", ".join(others)) if others else ("", groups)
    content = {
        "name": cells[0].recipe.name, "command": command, "axes": {a: list(labels) for a, labels in axes.items()},
        "steps": cells[0].recipe.training.steps, "results": rows,
    }  # fmt: skip
    replace_file(out / f"{TABLE}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if rows:
        replace_file(out / f"{TABLE}.md", markdown(rows, heads))
        replace_file(
            out / f"{TABLE}.svg", dot_plot(rows, f"{cells[0].recipe.name}: {' and '.join(h for h in heads if h)}")
        )
    return Ablation(rows, heads, [f"{cell.name}: {failed[cell.path]}" for cell in cells if cell.path in failed])


def table(cells: Sequence[Cell], failed: Mapping[Path, str] | None = None) -> list[Row]:
    """The finished trainings as rows to compare: seeds of one variant together, groups by the first axis."""
    rows: dict[tuple[str, ...], list[tuple[str, Cell, Result]]] = {}
    for cell in cells:
        if cell.path not in (failed or {}):
            labels = tuple(label for axis, label in cell.labels.items() if axis != SEED)
            rows.setdefault(labels, []).append(
                (cell.labels.get(SEED, str(cell.recipe.seed)), cell, read_result(cell.path))
            )
    found = []
    for labels, own in rows.items():
        results = [result for _, _, result in own]
        subsets = [np.mean([float(mean_iou(c.sum(axis=0))) for c in r.confusions.values()]) for r in results]
        peaks = [r.peak_mib for r in results if r.peak_mib is not None]
        facts = {
            "mean_over_subsets": round(float(np.mean(subsets)), 4),
            "split": results[0].split, "frames": len(results[0].frames), "trainable": results[0].trainable,
            "step_seconds": round(statistics.median(r.step_seconds for r in results), 4),
            "peak_mib": round(statistics.median(peaks), 1) if peaks else None, "threads": results[0].threads,
            "runs": {seed: cell.path.name for seed, cell, _ in own},
        }  # fmt: skip
        group, name = ("", labels[0]) if len(labels) == 1 else (labels[0] if labels else "", ", ".join(labels[1:]))
        confusions = {seed: list(result.confusions.values())[-1] for seed, _, result in own}
        found.append(Row(group, name or own[0][1].recipe.name, confusions, results[0].frames, facts))
    return found


def axes(vary: Iterable[str], variants: Iterable[Sequence[str]]) -> Axes:
    """The axes of ``--vary`` and ``--variant``; ``seed`` is always the last."""
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
    axis = {_label(item): {key: json.dumps(item)} for item in items}
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
    cells = []
    for labels in itertools.product(*axes.values()):
        chosen = dict(zip(axes, labels, strict=True))
        changes: dict[str, str] = {}
        for axis, label in chosen.items():
            twice = changes.keys() & axes[axis][label].keys()
            if twice:
                raise RequestError(f"{min(twice)} is varied on two axes; give it on one.")
            changes |= axes[axis][label]
        own = load_recipe(recipe, {**overrides, **changes})
        prepared = prepare(own)
        cells.append(Cell(chosen, own, runs / identity(prepared)))
    return cells


def identity(prepared: Prepared) -> str:
    """Name of a training's folder: a hash of what its recipe changes, of its frames, and of the package's version.

    Fields at their default are left out, so that a field that is new in the package makes no training another one.
    """
    values = _changed(plain(prepared.recipe), plain(Recipe()))
    values.pop("name", None)
    content = [values, frame_record(prepared), mlesam.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict) and key in ("data", "model", "training"):
            found[key] = _changed(value, default)
        elif value != default:
            found[key] = value
    return found


def run_all(cells: Iterable[Cell], jobs: int = 1, say: Callable[[str], None] = lambda text: None) -> dict[Path, str]:
    """Train and test every cell that is not done yet, ``jobs`` at a time.

    Returns:
        ``{folder: reason}`` of the trainings that failed; the others are done.
    """
    if jobs < 1:
        raise RequestError(f"--jobs is {jobs}, but it must be at least 1.")
    names = {cell.path: cell for cell in cells}  # two cells of one recipe are one training
    waiting = {path: cell for path, cell in names.items() if not (path / CONFUSIONS).is_file()}
    if len(waiting) < len(names):
        say(f"{len(names) - len(waiting)} of {len(names)} trainings are done already")
    failed: dict[Path, str] = {}
    threads = os.environ.get("OMP_NUM_THREADS")
    if jobs > 1 and threads is None:  # read by the processes that are started below
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    # A process for each training, so that its memory is its own.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    queue, running, number = list(waiting.values()), {}, len(names) - len(waiting)
    try:
        while queue or running:
            while queue and len(running) < jobs:  # what waits in the pool could not be stopped
                cell = queue.pop(0)
                running[_start(pool, cell)] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, number = running.pop(future), number + 1
                try:
                    text = future.result()
                except MlesamError as error:
                    failed[cell.path] = str(error)
                    text = f"failed: {error}"
                say(f"[{number}/{len(names)}] {cell.name}: {text}")
    except BrokenProcessPool:
        raise WorkError(
            "the process of a training was killed, perhaps for want of memory; give the command again, with fewer --jobs."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    return failed


def _start(pool: ProcessPoolExecutor, cell: Cell) -> Future[str]:
    """Begin a cell. Its process inherits the mask: Ctrl-C must not meet it while it imports, before it can say what it means."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_run, cell)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(cell: Cell) -> str:
    """Train and test one cell, in a process of its own; go on with what an interrupted grid left."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return _train_and_test(cell)
    except KeyboardInterrupt:
        raise WorkError("stopped") from None


def _train_and_test(cell: Cell) -> str:
    began = time.monotonic()
    if (cell.path / LAST).is_file():
        run = Run.load(cell.path)
        if load_tensors(cell.path / LAST, "none of them")[1]["step"] < run.recipe.training.steps:  # type: ignore[operator]
            run = train(run.recipe, cell.path, resume=True)
    else:
        for name in (RECIPE, RECORD, LOG):  # of a training that was stopped before its first checkpoint
            (cell.path / name).unlink(missing_ok=True)
        run = train(cell.recipe, cell.path, extend=cell.extends, command=f"mlesam ablate ({cell.name})")
    evaluation = evaluate(run)
    store(run, evaluation, None)
    matrices = {c.name: torch.from_numpy(c.confusions.astype(np.int32)) for c in evaluation.conditions}
    metrics = evaluation.metrics
    facts = {"frames": list(metrics["frame_miou"]), "split": metrics["split"], "subsets": list(matrices)}
    save_tensors(cell.path / CONFUSIONS, matrices, facts)
    return f"mIoU {100 * metrics['summary']['full']:.1f}  ({time.monotonic() - began:.0f} s)"


def read_result(path: Path) -> Result:
    """The result of a training that :func:`run_all` has done."""
    tensors, facts = load_tensors(path / CONFUSIONS)
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    events = _events(path)
    clock = [e["seconds"] for e in events if e["event"] == "step"]
    peaks = [e["peak_mib"] for e in events if e.get("peak_mib")]
    steps = [b - a for a, b in itertools.pairwise(clock) if b >= a]  # a resumed training's clock starts again
    return Result(
        {name: tensors[name].numpy().astype(np.int64) for name in facts["subsets"]},  # type: ignore[attr-defined]
        tuple(facts["frames"]),  # type: ignore[arg-type]
        str(facts["split"]),
        record["parameters"]["trainable"],
        statistics.median(steps) if steps else clock[-1],
        max(peaks, default=None),
        record["machine"]["threads"],
    )


def _events(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (path / LOG).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"{path / LOG} is damaged ({error}); remove the folder {path} to train it again.") from None
