"""Sensors that come later: ``python benchmarks/extension.py``.

Trains RGB and depth, extends the run by thermal, then by LiDAR, then by a 16-band camera, and compares it with all five
trained at once: with the steps of one stage, and with the steps of all four together. Every subset of the sensors, on streets
never trained on, three seeds. Writes ``benchmarks/results/extension.json`` and prints the table of docs/results.md.
Trainings are kept in ``runs/extension`` and done once.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions
from experts import PAPER
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import Row, compare
from mlesam.evaluation.markup import percent
from mlesam.evaluation.metrics import mean_iou
from mlesam.model.checkpoints import replace_file
from mlesam.training.ablation import Result, read_result, run_all
from mlesam.training.grid import Cell

RECIPE = ROOT / "recipes" / "ablation.yaml"
DATASET = "world:frames=300,size=128,hyperspectral=true"
STAGES = (("rgb", "depth"), ("thermal",), ("lidar",), ("hyperspectral",))
SEEDS = (0, 1, 2)
ONCE, LONG = "all at once", "all at once, four times the steps"


def trained(runs: Path, jobs: int, steps: int) -> dict[str, dict[str, Result]]:
    """``{stage: {seed: result}}``; a stage is named by its sensors."""
    done: dict[str, dict[str, Path]] = {}

    def stage(name: str, sensors: tuple[str, ...], before: str | None = None, times: int = 1) -> None:
        cells = []
        for seed in SEEDS:
            fields = {"data.dataset": DATASET, "data.modalities": f"[{', '.join(sensors)}]", "seed": str(seed)}
            recipe = load_recipe(RECIPE, {**PAPER, **fields, "training.steps": str(steps * times)})
            path = runs / f"{name.replace(' ', '-').replace(',', '')}-{steps * times}-steps-{seed}"
            extends = None if before is None else done[before][str(seed)]
            cells.append(Cell({"stage": name, "seed": str(seed)}, recipe, path, extends))
        failed = run_all(cells, jobs, lambda text: print(text, flush=True))
        if failed:
            raise SystemExit(f"{len(failed)} trainings failed: {failed}")
        done[name] = {cell.labels["seed"]: cell.path for cell in cells}

    sensors: tuple[str, ...] = ()
    before = None
    for new in STAGES:
        sensors += new
        stage("+".join(sensors), sensors, before)
        before = "+".join(sensors)
    stage(ONCE, sensors)
    stage(LONG, sensors, times=len(STAGES))
    return {name: {seed: read_result(path) for seed, path in own.items()} for name, own in done.items()}


def rows_of(results: dict[str, dict[str, Result]]) -> list[dict[str, Any]]:
    """For each subset of the sensors, every stage that can be tested on it. The differences are to training all at once."""
    subsets = list(next(iter(results[ONCE].values())).confusions)
    order = [LONG, ONCE, *(name for name in results if name not in (ONCE, LONG))]
    rows = [
        Row(
            subset,
            name,
            {seed: result.confusions[own] for seed, result in results[name].items()},
            next(iter(results[name].values())).frames,
            {"present": subset.split("+"), "trained_on": name},
        )
        for subset in subsets
        for name in order
        if (own := matching(subset, next(iter(results[name].values())).confusions)) is not None
    ]
    return compare(rows, LONG)


def matching(subset: str, known: dict[str, np.ndarray]) -> str | None:
    """The subset under the name that another run has for it; the order of its sensors may differ."""
    wanted = set(subset.split("+"))
    return next((name for name in known if set(name.split("+")) == wanted), None)


def unchanged(results: dict[str, dict[str, Result]]) -> int:
    """How many results of old sensors an extension left as they were; a single one that differs ends the command."""
    stages = [own for name, own in results.items() if name not in (ONCE, LONG)]
    count = 0
    for before, after in itertools.pairwise(stages):
        for seed, old in before.items():
            for subset, matrices in old.confusions.items():
                name = matching(subset, after[seed].confusions)
                if name is None or not np.array_equal(matrices, after[seed].confusions[name]):
                    raise SystemExit(f"an extension changed the result of {subset}, seed {seed}")
                count += 1
    return count


def means(results: dict[str, dict[str, Result]]) -> list[dict[str, Any]]:
    """For each stage: mIoU with all of its sensors and the mean over their subsets, beside the same sensors of a model that was
    trained on all five at once."""
    found = []
    for name in (n for n in results if n not in (ONCE, LONG)):
        entry: dict[str, Any] = {"sensors": name.split("+")}
        for label, source in (("extended", name), ("at_once", ONCE), ("at_once_long", LONG)):
            full, mean = [], []
            for seed, own in results[name].items():
                chosen = [matching(s, results[source][seed].confusions) for s in own.confusions]
                scores = [float(mean_iou(results[source][seed].confusions[c].sum(axis=0))) for c in chosen if c]
                full.append(scores[-1])
                mean.append(float(np.mean(scores)))
            entry[label] = {"full": round(float(np.mean(full)), 4), "mean_over_subsets": round(float(np.mean(mean)), 4)}
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "extension")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "extension.json")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, the cores shared between them")
    parser.add_argument("--steps", type=int, help="fewer steps, to try the command")
    options = parser.parse_args()
    steps = options.steps or load_recipe(RECIPE).training.steps
    results = trained(options.runs, options.jobs, steps)
    same = unchanged(results)
    rows, summary = rows_of(results), means(results)
    first = next(iter(results[ONCE].values()))
    content = {
        "name": "extension", "command": command("extension"), **conditions(), "seeds": list(SEEDS),
        "conditions": {
            "dataset": DATASET, "split": first.split, "frames": len(first.frames), "recipe": str(RECIPE.relative_to(ROOT)),
            "steps": {"each stage": steps, ONCE: steps, LONG: len(STAGES) * steps},
            "trainable": {name: next(iter(own.values())).trainable for name, own in results.items()},
            "interval": "95 %, bootstrap over frames and seeds; differences are to the first of the group, paired by both",
        },
        "results_of_old_sensors_compared_and_found_identical": same,
        "summary": summary,
        "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    print(f"{same} results of old sensors compared before and after: identical")
    print("| sensors | one after the other | at once, a stage's steps | at once, all steps | means over subsets |")
    print("|---|--:|--:|--:|--:|")
    for entry in summary:
        full = [percent(entry[key]["full"]) for key in ("extended", "at_once", "at_once_long")]
        mean = " / ".join(percent(entry[key]["mean_over_subsets"]) for key in ("extended", "at_once", "at_once_long"))
        print(f"| {' + '.join(entry['sensors'])} | {' | '.join(full)} | {mean} |")


if __name__ == "__main__":
    main()
