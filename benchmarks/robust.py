"""One model for every subset of its sensors: ``python benchmarks/robust.py``.

Four sensors, three seeds. For each of the 15 subsets a specialist is trained on that subset alone, with the same steps, learning
rate and model, and no sensor ever left out. One model of all four, trained to lose sensors, is tested on the same 15 subsets.
Its regret is the specialist's mIoU minus its own. Beside it, what each ingredient buys: the model with four subsets a step, with
one of them taken away or added.

Writes ``benchmarks/results/robust-world.json`` and ``docs/robust.svg``, and prints the tables of docs/results.md. Trainings are
kept in ``runs/ablation`` and done once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions, options_of, shortened
from experts import RECIPE, SEEDS, SENSORS, say, stop_on
from intervals import score
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import Row, compare, dot_plot
from mlesam.evaluation.markup import percent
from mlesam.evaluation.protocols import subsets
from mlesam.model.checkpoints import replace_file
from mlesam.training.ablation import Result, read_result, run_all
from mlesam.training.grid import Cell, plan

EVERYONE = tuple(SENSORS.strip("[]").split(", "))
FULL = "+".join(EVERYONE)
COMMON = {"model.rank": "16", "training.lr": "2.0e-3", "model.align": "true", "model.rescale": "true"}
"""The rate is the best on val of those that benchmarks/experts.py tried for four sensors."""
ROBUST = {"training.modality_dropout": "0.5", "training.subsets": "4"}
WITHOUT = {"training.modality_dropout": "0", "training.subsets": "1"}
"""What a specialist is trained with."""
EIGHT = {"training.subsets": "8"}
OURS, BASE, NOTHING = "ours: eight subsets a step", "four subsets a step", "none of it, as in the paper"
INGREDIENTS: dict[str, dict[str, str]] = {
    BASE: {},
    OURS: EIGHT,
    "four, without aligners": {"model.align": "false"},
    "four, without rescaling": {"model.rescale": "false"},
    "two subsets a step": {"training.subsets": "2"},
    "one subset a step": {"training.subsets": "1"},
    "no sensor left out in training": WITHOUT,
    NOTHING: {**WITHOUT, "model.align": "false", "model.rescale": "false"},
    "four, and a loss of every sensor alone": {"training.sensor_loss": "0.5"},
    "four, and self-distillation": {"training.distill": "1.0"},
}


def specialists(overrides: Mapping[str, str], runs: Path) -> list[Cell]:
    names = {"+".join(s): {"data.modalities": f"[{', '.join(s)}]"} for s in subsets(EVERYONE)}
    axes = {"sensors": names, "seed": {seed: {"seed": seed} for seed in SEEDS}}
    return plan(RECIPE, {**COMMON, **WITHOUT, **overrides}, axes, runs)


def variants(overrides: Mapping[str, str], runs: Path) -> list[Cell]:
    """The robust model, and the one with four subsets a step with and without each ingredient."""
    base = {**COMMON, **ROBUST, "data.modalities": SENSORS}
    # A field that an ingredient changes may not stand in what all have in common.
    changes = {name: {**base, **own} for name, own in INGREDIENTS.items()}
    axes = {"variant": changes, "seed": {seed: {"seed": seed} for seed in SEEDS}}
    return plan(RECIPE, overrides, axes, runs)


def regrets(special: Mapping[tuple[str, str], Result], ours: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row for each subset and seed."""
    rows = []
    for (name, seed), result in special.items():
        own, other = score([ours[seed].confusions[name]]), score([result.confusions[name]])
        rows.append(
            {
                "present": name.split("+"), "seed": int(seed), "miou": round(own, 4), "specialist": round(other, 4),
                "regret": round(other - own, 4),
            }
        )  # fmt: skip
    return rows


def by_subset(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault("+".join(row["present"]), []).append(row)
    keys = ("miou", "specialist", "regret")
    return [
        {"subset": n, **{k: round(float(np.mean([r[k] for r in own])), 4) for k in keys}} for n, own in found.items()
    ]


def summary(means: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(means, key=lambda row: row["regret"])
    own = [row["miou"] for row in means]
    return {
        "mean_regret": round(float(np.mean([row["regret"] for row in means])), 4),
        "worst_regret": worst["regret"], "worst_subset": worst["subset"],
        "full_under_the_model_trained_without": means[-1]["regret"],
        "mean_over_subsets": round(float(np.mean(own)), 4), "full": own[-1],
        "mean_over_full": round(float(np.mean(own)) / own[-1], 4),
    }  # fmt: skip


def ingredients(cells: list[Cell]) -> list[dict[str, Any]]:
    """Every variant against the one with four subsets a step: with all sensors, and over the subsets."""
    grouped: dict[str, dict[str, Result]] = {}
    for cell in cells:
        grouped.setdefault(cell.labels["variant"], {})[cell.labels["seed"]] = read_result(cell.path)
    rows = []
    for name, own in grouped.items():
        means = {seed: score(list(r.confusions.values())) for seed, r in own.items()}
        first = next(iter(own.values()))
        rows.append(
            Row(
                "all four sensors",
                name,
                {seed: result.confusions[FULL] for seed, result in own.items()},
                first.frames,
                {
                    "changes": INGREDIENTS[name],
                    "mean_over_subsets": round(float(np.mean(list(means.values()))), 4),
                    "mean_over_subsets_by_seed": {seed: round(value, 4) for seed, value in means.items()},
                    "subsets": {
                        n: round(float(np.mean([score([r.confusions[n]]) for r in own.values()])), 4)
                        for n in first.confusions
                    },
                    "trainable": first.trainable, "step_seconds": first.step_seconds,
                },
            )
        )  # fmt: skip
    return compare(rows, BASE)


def tables(means: list[dict[str, Any]], found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The two tables of docs/results.md."""
    lines = ["| sensors | one model | specialist | regret |", "|---|--:|--:|--:|"]
    for row in means:
        name = row["subset"].replace("+", " + ")
        lines.append(f"| {name} | {percent(row['miou'])} | {percent(row['specialist'])} | {100 * row['regret']:+.1f} |")
    own, other = (float(np.mean([row[k] for row in means])) for k in ("miou", "specialist"))
    lines += [f"| mean | {percent(own)} | {percent(other)} | {100 * found['mean_regret']:+.1f} |", ""]
    lines += ["| trained | all four | difference | mean of 15 subsets | mean / full |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        gain = ""
        if row["difference"] is not None:
            low, high = row["difference_interval"]
            gain = f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        mean = row["mean_over_subsets"]
        lines.append(
            f"| {row['name']} | {percent(row['miou'])} | {gain} | {percent(mean)} | {mean / row['miou']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = options_of(__doc__, "robust-world", "robust").parse_args()
    overrides = shortened(options)
    alone, ours = specialists(overrides, options.runs), variants(overrides, options.runs)
    first = [cell for cell in ours if cell.labels["variant"] == OURS]
    stop_on(run_all([*first, *alone, *ours], options.jobs, say))
    special = {(cell.labels["sensors"], cell.labels["seed"]): read_result(cell.path) for cell in alone}
    rows = regrets(special, {cell.labels["seed"]: read_result(cell.path) for cell in first})
    means = by_subset(rows)
    found, bought = summary(means), ingredients(ours)
    result = read_result(first[0].path)
    recipe = load_recipe(RECIPE, overrides)
    content = {
        "name": "robust-world", "command": command("robust"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "dataset": recipe.data.dataset, "split": result.split, "frames": len(result.frames),
            "recipe": str(RECIPE.relative_to(ROOT)), "steps": recipe.training.steps, "batch": recipe.training.batch,
            **COMMON, "four subsets a step": ROBUST, "ours": {**ROBUST, **EIGHT}, "specialists": WITHOUT,
            "interval": "95 %, bootstrap over frames and seeds; differences are to four subsets a step, paired by both",
        },
        "summary": found, "subsets": means, "ingredients": bought, "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    replace_file(options.plot, dot_plot(bought, "What makes one model good with any sensors (all four present)"))
    say(tables(means, found, bought))
    say(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
