"""How sensors and heads are joined: ``python benchmarks/fusion.py``.

The paper's second experiment (routing on and off), its third (one head against two), and two questions that it leaves open:
how many sensors the router should keep, and which way of computing the weights is best. Four sensors, equal steps, differences
paired by seed and frame, with all sensors and as the mean over their 15 subsets. Three seeds where an answer depends on it;
groups called "one seed" only show where to look.

Writes ``benchmarks/results/fusion.json`` and ``docs/fusion.svg``, and prints the table of docs/results.md. Trainings are kept
in ``runs/ablation``, shared with benchmarks/robust.py, and done once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions, options_of, shortened
from experts import PAPER, RECIPE, SEEDS, SENSORS, say, stop_on
from intervals import estimate, score, signed
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import Row, compare, dot_plot
from mlesam.evaluation.markup import percent
from mlesam.model.checkpoints import replace_file
from mlesam.training.ablation import read_result, run_all
from mlesam.training.grid import Cell, plan
from retest import Retest, Tested, run_tests
from robust import COMMON, ROBUST, WITHOUT

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
    answers: Mapping[str, str] = field(default_factory=dict)


QUESTIONS = {
    "routing": Question({"mean + routed": {}, "mean alone": MEAN, "routed alone": ROUTED}),
    "routing, all as in the paper, one seed": Question({
        "mean + routed": PUBLISHED, "mean alone": {**PUBLISHED, **MEAN}, "routed alone": {**PUBLISHED, **ROUTED},
    }, ONE_SEED),
    "heads, trained so": Question({
        "both": {},
        "mask head alone": {"training.pyramid_loss": "0", "model.combine": "mask"},
        "pyramid head alone": {"training.mask_loss": "0", "model.combine": "pyramid"},
    }),
    "heads, both trained, who answers": Question(
        {"mean of logits": {}},
        answers={"mean of probabilities": "probabilities", "mask head": "mask", "pyramid head": "pyramid"},
    ),
    "sensors kept, one seed": Question({"all four": {}, **{f"k = {k}": {"model.top_k": str(k)} for k in (3, 2, 1)}}, ONE_SEED),
    "weights": Question({
        "one per frame": {},
        "one per frame, not rescaled": {"model.rescale": "false"},
        "none (mean)": MEAN,
        "one per pixel": {"model.router": "pixel"},
    }),
}  # fmt: skip
"""``k = 4`` of four sensors is ``all four``, to the bit."""


def cells_of(group: str, question: Question, overrides: Mapping[str, str], runs: Path) -> list[Cell]:
    """The trainings of a question; equal ones of two questions are one."""
    # A field that a variant changes may not stand in what all have in common.
    changes = {name: {**BASE, **own} for name, own in question.variants.items()}
    seeds = {seed: {"seed": seed} for seed in question.seeds}
    return plan(RECIPE, overrides, {"group": {group: {}}, "variant": changes, "seed": seeds}, runs)


def retests(question: Question, cells: list[Cell]) -> dict[str, dict[str, Retest]]:
    """``{variant: {seed: test}}``, the trained ones as they are, then those that answer otherwise."""
    found: dict[str, dict[str, Retest]] = {}
    for cell in cells:
        found.setdefault(cell.labels["variant"], {})[cell.labels["seed"]] = Retest(cell.path)
    first = found[next(iter(question.variants))]
    for name, combine in question.answers.items():
        found[name] = {seed: Retest(test.path, combine=combine) for seed, test in first.items()}
    return found


def rows_of(group: str, tests: Mapping[str, Mapping[str, Retest]]) -> list[dict[str, Any]]:
    """Every variant compared with the first, with all sensors and over all subsets."""
    results = {name: {seed: test.result() for seed, test in own.items()} for name, own in tests.items()}
    rows = []
    for name, own in results.items():
        paths = {seed: test.path for seed, test in tests[name].items()}
        some = next(iter(own.values()))
        weights = {m: round(float(np.mean([r.weights[m] for r in own.values()])), 4) for m in some.weights}
        training = read_result(next(iter(paths.values())))
        facts = {"trainable": training.trainable, "weights": weights, "runs": {s: p.name for s, p in paths.items()}}
        rows.append(Row(group, name, {seed: r.full for seed, r in own.items()}, some.frames, facts))
    first = next(iter(results.values()))
    return [{**row, **over_subsets(results[row["name"]], first)} for row in compare(rows)]


def over_subsets(tested: Mapping[str, Tested], first: Mapping[str, Tested]) -> dict[str, Any]:
    """The mean over subsets, its interval and its difference to the first variant; and the mIoU of each subset."""
    own, other = ({seed: list(r.confusions.values()) for seed, r in results.items()} for results in (tested, first))
    found = estimate(own, None if tested is first else other)
    names = next(iter(tested.values())).confusions
    return {
        "mean_over_subsets": found["miou"], "mean_interval": found["interval"],
        "mean_difference": found.get("difference"), "mean_difference_interval": found.get("difference_interval"),
        "subsets": {n: round(float(np.mean([score([r.confusions[n]]) for r in tested.values()])), 4) for n in names},
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
    parser = options_of(__doc__, "fusion", "fusion")
    parser.add_argument("--only", nargs="+", metavar="GROUP", choices=list(QUESTIONS), default=list(QUESTIONS))
    options = parser.parse_args()
    asked = {group: QUESTIONS[group] for group in options.only}
    overrides = shortened(options)
    cells = {group: cells_of(group, question, overrides, options.runs) for group, question in asked.items()}
    stop_on(run_all([cell for own in cells.values() for cell in own], options.jobs, say))
    tests = {group: retests(question, cells[group]) for group, question in asked.items()}
    run_tests([test for group in tests.values() for own in group.values() for test in own.values()], options.jobs)
    rows = [row for group, own in tests.items() for row in rows_of(group, own)]
    first = read_result(next(iter(cells.values()))[0].path)
    recipe = load_recipe(RECIPE, overrides)
    content = {
        "name": "fusion", "command": command("fusion"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "dataset": recipe.data.dataset, "split": first.split, "frames": len(first.frames),
            "recipe": str(RECIPE.relative_to(ROOT)), **BASE, "steps": recipe.training.steps, "batch": recipe.training.batch,
            "changes": {
                group: {**question.variants, **{n: {"model.combine": c} for n, c in question.answers.items()}}
                for group, question in asked.items()
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
