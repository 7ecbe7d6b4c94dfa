"""Ablations: a grid of short trainings, each done once.

A training is kept in a folder named by a hash, see :func:`mlesam.training.grid.identity`. A grid that was
interrupted goes on where it stopped, and grids that share a folder of runs share their trainings.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlesam.errors import DataError, MlesamError, RequestError, WorkError, refuse_occupied
from mlesam.evaluation.comparison import Row, compare, dot_plot, markdown
from mlesam.evaluation.evaluate import evaluate, store
from mlesam.evaluation.metrics import mean_iou
from mlesam.model.checkpoints import load_metadata, load_tensors, replace_file, save_tensors
from mlesam.model.run import LAST, LOG, RECORD, Run
from mlesam.training.grid import SEED, VARIANT, Axes, Cell, plan
from mlesam.training.loop import train
from mlesam.training.trust import owes_trust

TABLE = "ablation"
CONFUSIONS = Path("evaluation") / "frames.safetensors"
"""Inside a run: each frame's confusion matrix (F, C, C) for every subset of the sensors."""


@dataclass(frozen=True)
class Result:
    """What a finished training of a grid gave.

    Attributes:
        confusions: ``{subset: (F, C, C)}``, the subset of all sensors last; frames: ids of the F frames.
        trainable: parameters. step_seconds: median over the steps, None for too few.
        peak_mib: the most memory that the training's process, or its GPU, held. threads: of the CPU.
    """

    confusions: dict[str, np.ndarray]
    frames: tuple[str, ...]
    split: str
    trainable: int
    step_seconds: float | None
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
    if jobs < 1:
        raise RequestError(f"--jobs is {jobs}, but it must be at least 1.")
    asked = {
        "recipe": None if recipe is None else str(recipe), "overrides": dict(overrides),
        "axes": {axis: {label: dict(fields) for label, fields in labels.items()} for axis, labels in axes.items()},
    }  # fmt: skip
    _refuse_other(out, asked)
    cells = plan(recipe, overrides, axes, runs or out / "runs")
    # What is asked for is there before its answer, so that a grid that was stopped is known by it.
    replace_file(out / f"{TABLE}.json", json.dumps({**asked, "results": []}, indent=2, ensure_ascii=False) + "\n")
    failed = run_all(cells, jobs, say)
    rows = compare(table(cells, failed), _names(cells[0])[1])
    groups, *others = [axis for axis in axes if axis != SEED] or [VARIANT]
    heads = (groups, ", ".join(others)) if others else ("", groups)
    content = {"name": cells[0].recipe.name, "command": command, **asked, "results": rows}
    replace_file(out / f"{TABLE}.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if rows:
        replace_file(out / f"{TABLE}.md", markdown(rows, heads))
        replace_file(
            out / f"{TABLE}.svg", dot_plot(rows, f"{cells[0].recipe.name}: {' and '.join(h for h in heads if h)}")
        )
    return Ablation(rows, heads, [f"{cell.name}: {failed[cell.path]}" for cell in cells if cell.path in failed])


def _refuse_other(out: Path, asked: Mapping[str, Any]) -> None:
    """RequestError where a folder holds something else, another comparison for instance."""
    known = out / f"{TABLE}.json"
    if not known.is_file():
        return refuse_occupied(out)
    try:
        before = json.loads(known.read_text(encoding="utf-8"))
    except ValueError:
        before = {}
    if any(before.get(key) != value for key, value in asked.items()):
        raise RequestError(
            f"{out} holds another comparison; choose another --out (its trainings can be used with --runs {out / 'runs'})."
        )


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
    for own in rows.values():
        results = [result for _, _, result in own]
        # A subset that no test frame has counts as little here as in an evaluation.
        subsets = [np.nanmean([float(mean_iou(c.sum(axis=0))) for c in r.confusions.values()]) for r in results]
        facts = {
            "mean_over_subsets": round(float(np.mean(subsets)), 4),
            "steps": own[0][1].recipe.training.steps, "split": results[0].split, "frames": len(results[0].frames),
            "trainable": results[0].trainable,
            "step_seconds": _median([r.step_seconds for r in results], 4),
            "peak_mib": _median([r.peak_mib for r in results], 1), "threads": results[0].threads,
            "runs": {seed: cell.path.name for seed, cell, _ in own},
        }  # fmt: skip
        group, name = _names(own[0][1])
        confusions = {seed: list(result.confusions.values())[-1] for seed, _, result in own}
        found.append(Row(group, name, confusions, results[0].frames, facts))
    return found


def _names(cell: Cell) -> tuple[str, str]:
    """Group and name of a cell's row: its label on the first axis, and those on the others; the seed is no part of either."""
    labels = [label for axis, label in cell.labels.items() if axis != SEED]
    if len(labels) < 2:
        return "", labels[0] if labels else cell.recipe.name
    return labels[0], ", ".join(labels[1:])


def _median(values: Sequence[float | None], digits: int) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), digits) if known else None


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
    if not hasattr(signal, "pthread_sigmask"):
        return pool.submit(_run, cell)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_run, cell)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(cell: Cell) -> str:
    """Train and test one cell, in a process of its own."""
    try:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with _alone(cell.path):
            return _train_and_test(cell)
    except KeyboardInterrupt:
        raise WorkError("stopped") from None
    except MlesamError:
        raise
    except Exception as error:  # out of memory, for instance: the others of the grid must not lose by it
        reason = " ".join(str(error).split()) or "no reason given"
        raise WorkError(f"{type(error).__name__}: {reason}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in this folder. The lock goes with its process, however that ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _train_and_test(cell: Cell) -> str:
    """Go on with what an interrupted grid left."""
    began = time.monotonic()
    if (cell.path / CONFUSIONS).is_file():
        return "done by another grid"
    if (cell.path / LAST).is_file():
        run = Run.load(cell.path)
        if load_metadata(cell.path / LAST)["step"] < run.recipe.training.steps or owes_trust(cell.path):  # type: ignore[operator]
            run = train(run.recipe, cell.path, resume=True)
    else:
        shutil.rmtree(cell.path, ignore_errors=True)  # of a training that was killed before its first checkpoint
        run = train(cell.recipe, cell.path, extend=cell.extends, command=f"mlesam ablate ({cell.name})")
    evaluation = evaluate(run)
    metrics = evaluation.metrics
    if metrics["summary"]["full"] is None:
        raise DataError(
            f"no pixel of split {metrics['split']} of {metrics['dataset']} is scored, so nothing can be compared; label it."
        )
    store(run, evaluation, None)
    matrices = {c.name: torch.from_numpy(c.confusions.astype(np.int32)) for c in evaluation.conditions}
    facts = {"frames": list(metrics["frame_miou"]), "split": metrics["split"], "subsets": list(matrices)}
    save_tensors(cell.path / CONFUSIONS, matrices, facts)
    return f"mIoU {100 * metrics['summary']['full']:.1f}  ({time.monotonic() - began:.0f} s)"


def read_result(path: Path) -> Result:
    """The result of a training that :func:`run_all` has done."""
    tensors, facts = load_tensors(path / CONFUSIONS)
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    events = _events(path)
    # A step after a validation waited for it, and a resumed training's clock starts again.
    pairs = [(a, b) for a, b in itertools.pairwise(events) if a["event"] == b["event"] == "step"]
    steps = [b["seconds"] - a["seconds"] for a, b in pairs if b["seconds"] >= a["seconds"]]
    peaks = [e["peak_mib"] for e in events if e.get("peak_mib")]
    return Result(
        {name: tensors[name].numpy().astype(np.int64) for name in facts["subsets"]},  # type: ignore[attr-defined]
        tuple(facts["frames"]),  # type: ignore[arg-type]
        str(facts["split"]),
        record["parameters"]["trainable"],
        statistics.median(steps) if steps else None,
        max(peaks, default=None),
        record["machine"]["threads"],
    )


def _events(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (path / LOG).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"{path / LOG} is damaged ({error}); remove the folder {path} to train it again.") from None
