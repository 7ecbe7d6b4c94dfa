"""Finished trainings tested again, on other data or with another answer of the heads. Each test is done once and kept inside the
run."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mlesam.config import DataConfig
from mlesam.data.dataset import open_dataset
from mlesam.evaluation.evaluate import FOLDER, evaluate
from mlesam.model.checkpoints import load_tensors, save_tensors
from mlesam.model.run import Run
from mlesam.training.ablation import CONFUSIONS

Job = TypeVar("Job")


@dataclass(frozen=True)
class Tested:
    """``{subset: (F, C, C)}`` with all sensors last, ids of the F frames, and each sensor's mean share with all sensors."""

    confusions: dict[str, np.ndarray]
    frames: tuple[str, ...]
    weights: dict[str, float]

    @property
    def full(self) -> np.ndarray:
        return list(self.confusions.values())[-1]


@dataclass(frozen=True)
class Retest:
    """A training of a grid, and what differs from how it was tested there: the dataset, ``model.combine``, or nothing."""

    path: Path
    data: str | None = None
    combine: str | None = None

    @property
    def file(self) -> Path:
        if self.data is None and self.combine is None:
            return self.path / CONFUSIONS
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.data or ''} {self.combine or ''}").strip("-")
        return self.path / FOLDER / f"retest-{words}.safetensors"

    def run(self) -> None:
        run = Run.load(self.path)
        if self.combine is not None:
            model = replace(run.recipe.model, combine=self.combine)
            run = replace(run, recipe=replace(run.recipe, model=model))
        found = evaluate(run, data=self.data)
        matrices = {c.name: torch.from_numpy(c.confusions.astype(np.int32)) for c in found.conditions}
        weights = found.metrics["results"][-1]["weights"]
        save_tensors(
            self.file, matrices, {"subsets": list(matrices), "frames": [f.id for f in found.frames], "weights": weights}
        )

    def result(self) -> Tested:
        tensors, facts = load_tensors(self.file)
        confusions = {name: tensors[name].numpy().astype(np.int64) for name in facts["subsets"]}  # type: ignore[attr-defined]
        weights = facts.get("weights") or _own_weights(self.path)
        return Tested(confusions, tuple(facts["frames"]), dict(weights))  # type: ignore[call-overload]


def _own_weights(path: Path) -> dict[str, float]:
    """Of the test that belongs to the training."""
    stored = next((path / FOLDER).glob("subsets-test-*.json"))
    return json.loads(stored.read_text())["results"][-1]["weights"]


def run_tests(tests: Iterable[Retest], jobs: int) -> None:
    """Those that are not done yet, ``jobs`` at a time."""
    waiting = [test for test in dict.fromkeys(tests) if not test.file.is_file()]
    if not waiting:
        return
    for data in dict.fromkeys(test.data for test in waiting if test.data is not None):
        open_dataset(data, DataConfig())  # a world is rendered here, once
    in_processes(_run, waiting, jobs)


def _run(test: Retest) -> str:
    test.run()
    return f"tested {test.path.name}: {test.data or test.combine}"


def in_processes(do: Callable[[Job], str], given: Sequence[Job], jobs: int) -> None:
    """``do`` for each of what is given, ``jobs`` at a time, the cores shared between them; prints what it returns."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        for number, said in enumerate(pool.map(do, given), 1):
            print(f"[{number}/{len(given)}] {said}", flush=True)
