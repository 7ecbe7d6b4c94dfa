"""Real cracks, before and after training for the loss of sensors: ``python benchmarks/crack_robust.py``.

RGB, thermal infrared and depth of ``recipes/crack.yaml``, on the pre-trained nano foundation with experts, three seeds. "Before"
is the paper's model, trained on all sensors alone; "after" has aligners, rescaling, trust, and passes with sensors left out.
All seven subsets, over the test frames in the light and in the dark, and whom the router trusts in each.

Writes ``benchmarks/results/crack-robust.json`` and prints the table of docs/results.md. The frames are not part of this
project; the recipe says where they are expected. Trainings are kept in ``runs/ablation`` and done once.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions, options_of, shortened
from experts import PAPER, SEEDS, say, stop_on
from intervals import estimate, signed
from mlesam.evaluation.evaluate import Evaluation, evaluate
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run
from mlesam.training.ablation import run_all
from mlesam.training.grid import plan
from robust import ROBUST

RECIPE = ROOT / "recipes" / "crack.yaml"
COMMON = {
    "data.dataset": f"folder:{ROOT.parent / 'shared' / 'data' / 'crack'}", "data.workers": "0", "model.foundation": "nano",
    "model.train": "experts", "model.rank": "16", "training.lr": "2.0e-3", "training.batch": "4", "training.steps": "300",
    "training.validate_every": "100",
}  # fmt: skip
BEFORE, AFTER = "before", "after"
VARIANTS = {
    BEFORE: {**PAPER, "model.reliability": "false", "training.modality_dropout": "0"},
    AFTER: {"model.align": "true", "model.rescale": "true", "model.reliability": "true", **ROBUST},
}


def rows_of(name: str, found: dict[int, Evaluation], before: dict[int, Evaluation]) -> list[dict[str, Any]]:
    """A row for each subset and light, means over the seeds, and the difference to ``before``, paired by seed and frame."""
    first = next(iter(found.values()))
    dark = np.array(["dark" in frame.tags for frame in first.frames])
    rows = []
    for light, chosen in (("all", np.ones_like(dark)), ("bright", ~dark), ("dark", dark)):
        for i, condition in enumerate(first.conditions):
            own, other = ({str(s): [e.conditions[i].confusions[chosen]] for s, e in x.items()} for x in (found, before))
            shares = np.mean([e.conditions[i].shares[chosen].mean(axis=0) for e in found.values()], axis=0)
            rows.append(
                {
                    "name": name, "light": light, "present": list(condition.present), "frames": int(chosen.sum()),
                    **estimate(own, None if found is before else other),
                    "weights": {m: round(float(w), 4) for m, w in zip(first.metrics["modalities"], shares, strict=True)},
                }
            )  # fmt: skip
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    value = {(r["name"], r["light"], "+".join(r["present"])): r for r in rows}
    lines = [
        "| sensors | " + " | ".join(f"{light}, before | after | difference" for light in ("bright", "dark")) + " |",
        f"|---|{'--:|' * 6}",
    ]
    for subset in dict.fromkeys("+".join(r["present"]) for r in rows):
        cells = []
        for light in ("bright", "dark"):
            pair = [value[name, light, subset] for name in VARIANTS]
            cells += [*(f"{100 * row['miou']:.1f}" for row in pair), signed(pair[1])]
        lines.append(f"| {subset.replace('+', ' + ')} | {' | '.join(cells)} |")
    full = "+".join(rows[-1]["present"])
    for name in VARIANTS:
        for light in ("bright", "dark"):
            lines.append(f"weights {name}, {light}: {value[name, light, full]['weights']}")
        means = [
            np.mean([r["miou"] for r in rows if (r["name"], r["light"]) == (name, x)])
            for x in ("all", "bright", "dark")
        ]
        lines.append(f"mean over subsets {name}: " + ", ".join(f"{100 * m:.1f}" for m in means))
    return "\n".join(lines)


def main() -> None:
    options = options_of(__doc__, "crack-robust").parse_args()
    base = {**COMMON, **shortened(options)}
    axes = {"variant": VARIANTS, "seed": {seed: {"seed": seed} for seed in SEEDS}}
    cells = plan(RECIPE, base, axes, options.runs)
    stop_on(run_all(cells, options.jobs, say))
    found: dict[str, dict[int, Evaluation]] = {}
    for cell in cells:
        tested = evaluate(Run.load(cell.path), split="test")
        found.setdefault(cell.labels["variant"], {})[cell.recipe.seed] = tested
    rows = [row for name, own in found.items() for row in rows_of(name, own, found[BEFORE])]
    content = {
        "name": "crack-robust", "command": command("crack_robust"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "dataset": "cracks, RGB + thermal + depth, 400x400 (github.com/teng2023, commit d107320)", "split": "test",
            **{k: v for k, v in base.items() if k != "data.dataset"}, "changes": VARIANTS,
        },
        "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    say(summary(rows))


if __name__ == "__main__":
    main()
