"""How sensors and heads are joined: ``python benchmarks/fusion.py``.

The paper's second experiment (routing on and off), its third (one head against two), and two questions that it leaves open:
how many sensors the router should keep, and which way of computing the weights is best. Four sensors, equal steps, differences
paired by seed and frame, with all sensors and as the mean over their 15 subsets. Three seeds where an answer depends on it;
groups called "one seed" only show where to look.

Writes ``benchmarks/results/fusion.json`` and ``docs/fusion.svg``, and prints the table of docs/results.md. Trainings are kept
in ``runs/ablation``, shared with benchmarks/robust.py, and done once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions
from experts import PAPER, RECIPE, SEEDS, SENSORS, say, stop_on
from intervals import estimate, signed
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import Row, compare, dot_plot
from mlesam.evaluation.evaluate import FOLDER, evaluate
from mlesam.evaluation.markup import percent
from mlesam.evaluation.metrics import mean_iou
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run
from mlesam.training.ablation import read_result, run_all
from mlesam.training.grid import Cell, plan
from robust import COMMON, FULL, ROBUST, WITHOUT

BASE = {**COMMON, **ROBUST, "data.modalities": SENSORS}
"""The model of benchmarks/robust.py: four sensors with an expert each, trained to lose some of them."""
PUBLISHED = {**WITHOUT, **PAPER}
"""As in the paper, which never leaves a sensor out in training."""
ONE_SEED = SEEDS[:1]
MEAN, ROUTED = {"model.fusion": "mean"}, {"model.fusion": "routed"}


@dataclass(frozen=True)
class Question:
    """One group of the result. Differences are to the first variant.

    Attributes:
        variants: ``{name: what it changes}``; no change is the model of benchmarks/robust.py.
        answers: ``{name: model.combine}`` of the first variant's runs, tested again without training.
    """

    variants: Mapping[str, Mapping[str, str]]
    seeds: tuple[str, ...] = SEEDS
    answers: Mapping[str, str] | None = None


QUESTIONS = {
    "routing": Question({"mean + routed": {}, "mean alone": MEAN, "routed alone": ROUTED}),
    "routing, all as in the paper": Question({
        "mean + routed": PUBLISHED, "mean alone": {**PUBLISHED, **MEAN}, "routed alone": {**PUBLISHED, **ROUTED},
    }),
    "heads, trained so": Question({
        "both": {},
        "mask head alone": {"training.pyramid_loss": "0", "model.combine": "mask"},
        "pyramid head alone": {"training.mask_loss": "0", "model.combine": "pyramid"},
    }),
    "heads, both trained, who answers": Question(
        {"mean of logits": {}},
        answers={"mean of probabilities": "probabilities", "mask head": "mask", "pyramid head": "pyramid"},
    ),
    "sensors kept": Question({"all four": {}, "one": {"model.top_k": "1"}}),
    "sensors kept, one seed": Question({"all four": {}, **{f"k = {k}": {"model.top_k": str(k)} for k in (3, 2, 1)}}, ONE_SEED),
    "sensors kept, routed alone, one seed": Question(
        {"all four": ROUTED, **{f"k = {k}": {**ROUTED, "model.top_k": str(k)} for k in (3, 2, 1)}}, ONE_SEED
    ),
    "weights": Question({
        "one per frame": {},
        "one per pixel": {"model.router": "pixel"},
        "one per frame, not rescaled": {"model.rescale": "false"},
        "none (mean)": MEAN,
    }),
    "weights, one seed": Question({
        "one per frame": {},
        "one per pixel, not rescaled": {"model.router": "pixel", "model.rescale": "false"},
        "one per frame, with signs of faults": {"model.reliability": "true"},
        "none (mean), not rescaled": {**MEAN, "model.rescale": "false"},
    }, ONE_SEED),
}  # fmt: skip
"""``k = 4`` of four sensors is ``all four``, to the bit."""


def cells_of(group: str, question: Question, overrides: Mapping[str, str], runs: Path) -> list[Cell]:
    """The trainings of a question; equal ones of two questions are one."""
    # A field that a variant changes may not stand in what all have in common.
    changes = {name: {**BASE, **own} for name, own in question.variants.items()}
    seeds = {seed: {"seed": seed} for seed in question.seeds}
    return plan(RECIPE, overrides, {"group": {group: {}}, "variant": changes, "seed": seeds}, runs)


def answered(path: Path, combine: str) -> dict[str, np.ndarray]:
    """``{subset: (F, C, C)}`` of a finished training when its heads are joined in another way."""
    run = Run.load(path)
    recipe = replace(run.recipe, model=replace(run.recipe.model, combine=combine))
    return {c.name: c.confusions for c in evaluate(replace(run, recipe=recipe)).conditions}


def weights(path: Path) -> dict[str, float]:
    """Each sensor's share in the fused maps with all sensors, averaged over the test frames."""
    stored = next((path / FOLDER).glob("subsets-*.json"))
    return json.loads(stored.read_text())["results"][-1]["weights"]


def rows_of(group: str, question: Question, cells: list[Cell]) -> list[dict[str, Any]]:
    """Every variant compared with the first, with all sensors and over all subsets."""
    tested: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in question.variants:
        own = {cell.labels["seed"]: cell.path for cell in cells if cell.labels["variant"] == name}
        results = {seed: read_result(path) for seed, path in own.items()}
        tested[name] = {seed: result.confusions for seed, result in results.items()}
        shares = [weights(path) for path in own.values()]
        facts[name] = {
            "trainable": next(iter(results.values())).trainable,
            "weights": {m: round(float(np.mean([share[m] for share in shares])), 4) for m in shares[0]},
            "runs": {seed: path.name for seed, path in own.items()},
        }
    first = next(iter(question.variants))
    for name, combine in (question.answers or {}).items():
        say(f"{group}: {name}")
        paths = {cell.labels["seed"]: cell.path for cell in cells}
        tested[name] = {seed: answered(path, combine) for seed, path in paths.items()}
        facts[name] = facts[first]
    frames = read_result(cells[0].path).frames
    rows = [
        Row(group, name, {seed: own[FULL] for seed, own in results.items()}, frames, facts[name])
        for name, results in tested.items()
    ]
    return [{**row, **over_subsets(tested[row["name"]], tested[first])} for row in compare(rows)]


def over_subsets(
    tested: Mapping[str, Mapping[str, np.ndarray]], first: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """The mean over subsets, its interval and its difference to the first variant; and the mIoU of each subset."""
    own, other = ({seed: list(c.values()) for seed, c in results.items()} for results in (tested, first))
    found = estimate(own, None if tested is first else other)
    names = next(iter(tested.values()))
    by_subset = {n: np.mean([float(mean_iou(c[n].sum(axis=0))) for c in tested.values()]) for n in names}
    return {
        "mean_over_subsets": found["miou"], "mean_interval": found["interval"],
        "mean_difference": found.get("difference"), "mean_difference_interval": found.get("difference_interval"),
        "subsets": {name: round(float(value), 4) for name, value in by_subset.items()},
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of docs/results.md."""
    lines = [
        "|  | seeds | all four sensors | difference | mean over 15 subsets | difference |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    last = None
    for row in rows:
        if row["group"] != last:
            last = row["group"]
            lines.append(f"| **{last}** |  |  |  |  |  |")
        lines.append(
            f"| {row['name']} | {row['seeds']} | {percent(row['miou'])} | {signed(row)} "
            f"| {percent(row['mean_over_subsets'])} | {signed(row, 'mean_difference')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "fusion.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "fusion.svg")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, the cores shared between them")
    parser.add_argument("--steps", type=int, help="fewer steps, to try the command")
    options = parser.parse_args()
    overrides = {} if options.steps is None else {"training.steps": str(options.steps)}
    cells = {group: cells_of(group, question, overrides, options.runs) for group, question in QUESTIONS.items()}
    stop_on(run_all([cell for own in cells.values() for cell in own], options.jobs, say))
    rows = [row for group, question in QUESTIONS.items() for row in rows_of(group, question, cells[group])]
    first = read_result(cells["routing"][0].path)
    recipe = load_recipe(RECIPE, overrides)
    content = {
        "name": "fusion", "command": command("fusion"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "dataset": recipe.data.dataset, "split": first.split, "frames": len(first.frames),
            "recipe": str(RECIPE.relative_to(ROOT)), **BASE, "steps": recipe.training.steps, "batch": recipe.training.batch,
            "changes": {
                group: {**question.variants, **{n: {"model.combine": c} for n, c in (question.answers or {}).items()}}
                for group, question in QUESTIONS.items()
            },
            "interval": "95 %, bootstrap over frames and seeds; differences are to the first of the group, paired by both",
        },
        "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    replace_file(
        options.plot, dot_plot(rows, "How sensors and heads are joined (procedural world, nano, all four sensors)")
    )
    say(summary(rows))


if __name__ == "__main__":
    main()
