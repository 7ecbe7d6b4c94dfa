"""Whom the router trusts when a sensor lies: ``python benchmarks/trust.py``.

The robust model of benchmarks/robust.py with ``model.reliability``, three seeds. Each sensor is broken in turn by every fault it
can have, at severity 5, while the others stay sound: does its weight fall, and is a lying sensor no worse than a missing one
(two points are allowed)? The same trained weights are tested without trust, and with one seed a model that also saw broken
sensors in training. Last, the rank correlation of the weights with what leaving the sensor out costs.

Writes ``benchmarks/results/trust.json`` and prints the table of docs/results.md. Trainings are kept in ``runs/ablation`` and done
once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from conditions import ROOT, command, conditions, options_of, shortened
from experts import RECIPE, SEEDS, SENSORS, say, stop_on
from intervals import score
from mlesam.data.faulty import BrokenFrames
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.evaluation.evaluate import open_split
from mlesam.evaluation.faulted import Faults
from mlesam.evaluation.protocols import Condition, Protocol, Subsets
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.model.checkpoints import replace_file
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.training.ablation import run_all
from mlesam.training.grid import Cell, plan
from robust import COMMON, ROBUST

SEVERITY = 5
ALLOWED = 0.02
"""By how much a lying sensor may be worse than a missing one."""
TRUST, WITHOUT, TRAINED = "trust", "the same weights without trust", "trust, and broken sensors in training"


def cells_of(extra: dict[str, str], seeds: Sequence[str], runs: Path) -> list[Cell]:
    base = {**COMMON, **ROBUST, "data.modalities": SENSORS, "model.reliability": "true", **extra}
    return plan(RECIPE, base, {"seed": {seed: {"seed": seed} for seed in seeds}}, runs)


def rank_correlation(points: Sequence[dict[str, float]]) -> float:
    """Spearman's, of the weights with what the sensor is worth."""
    return round(float(spearmanr([p["weight"] for p in points], [p["gain"] for p in points]).statistic), 4)  # type: ignore


def tested(run: Run, model: MLESAM, frames: int | None) -> dict[str, Any]:
    """Each broken sensor's weight and mIoU beside those of a sound and of a missing one; and the mean over subsets."""
    scored = open_split(run)
    chosen, sensors = scored.frames[:frames], scored.sensors

    def conditions_of(protocol: Protocol) -> list[Condition]:
        reader = EvaluationFrames(chosen, sensors, scored.classes, run.recipe.data.resize)
        return run_protocol(protocol, model, batches(evaluation_loader(reader)), tuple(sensors), chosen)

    # Faults in time go back in the whole split, whatever part of it is tested.
    source = BrokenFrames(scored.frames, sensors, run.recipe.data.resize, run.recipe.seed)
    found = conditions_of(Faults(source, (SEVERITY,)))
    names, clean = list(sensors), found[-1]
    weights = clean.shares.mean(axis=0)
    missing: dict[str, float] = {
        c.row.details["sensor"]: score([c.confusions]) for c in found if c.row.details["fault"] == "dropped"
    }
    rows = []
    for condition in found[:-1]:
        sensor, fault = condition.row.details["sensor"], condition.row.details["fault"]
        if fault == "dropped":
            continue
        own, column = score([condition.confusions]), names.index(sensor)
        weight = float(condition.shares.mean(axis=0)[column])
        rows.append(
            {
                "sensor": sensor, "fault": fault, "seen": condition.row.details["seen"],
                "miou": round(own, 4), "without_the_sensor": round(missing[sensor], 4),
                "weight": round(weight, 4), "weight_when_sound": round(float(weights[column]), 4),
                "falls": weight < float(weights[column]), "no_worse_than_missing": own >= missing[sensor] - ALLOWED,
            }
        )  # fmt: skip
    whole = [score([c.confusions]) for c in conditions_of(Subsets(names))]
    sound = [
        {"weight": float(w), "gain": score([clean.confusions]) - missing[m]}
        for m, w in zip(names, weights, strict=True)
    ]
    points = [*sound, *({"weight": r["weight"], "gain": r["miou"] - r["without_the_sensor"]} for r in rows)]
    return {
        "clean": round(score([clean.confusions]), 4), "mean_over_subsets": round(float(np.mean(whole)), 4),
        "lost": round(1 - float(np.mean([row["miou"] for row in rows])) / score([clean.confusions]), 4),
        "falls": sum(row["falls"] for row in rows), "no_worse": sum(row["no_worse_than_missing"] for row in rows),
        "cases": len(rows),
        "rank_correlation": rank_correlation(points),
        "rank_correlation_sound": rank_correlation(sound),
        "rows": rows,
    }  # fmt: skip


def failures(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases of the model with trust that fail on average over the seeds."""
    own = [r["rows"] for r in results if r["name"] == TRUST]
    found = []
    for same in zip(*own, strict=True):
        keys = ("weight", "weight_when_sound", "miou", "without_the_sensor")
        mean = {key: round(float(np.mean([row[key] for row in same])), 4) for key in keys}
        falls = mean["weight"] < mean["weight_when_sound"]
        if not falls or mean["miou"] < mean["without_the_sensor"] - ALLOWED:
            found.append({"sensor": same[0]["sensor"], "fault": same[0]["fault"], "falls": falls, **mean})
    return found


def summary(results: list[dict[str, Any]]) -> str:
    lines = [
        "|  | seeds | sound | mean of 15 subsets | lost to a fault | weight falls | no worse than missing | rank correlation |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(r["name"] for r in results):
        own = [r for r in results if r["name"] == name]
        mean = {key: float(np.mean([r[key] for r in own])) for key in own[0] if isinstance(own[0][key], (int, float))}
        clean, subsets, lost = (100 * mean[key] for key in ("clean", "mean_over_subsets", "lost"))
        lines.append(
            f"| {name} | {len(own)} | {clean:.1f} | {subsets:.1f} | {lost:.1f} % "
            f"| {mean['falls']:.1f} of {own[0]['cases']} | {mean['no_worse']:.1f} of {own[0]['cases']} "
            f"| {mean['rank_correlation']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__, "trust")
    parser.add_argument("--frames", type=int, help="fewer test frames, to try the command")
    options = parser.parse_args()
    cells = cells_of(shortened(options), SEEDS, options.runs)
    more = cells_of({"data.faults": "0.5", **shortened(options)}, SEEDS[:1], options.runs)
    stop_on(run_all([*cells, *more], options.jobs, say))
    results = []
    for name, own in ((TRUST, cells), (WITHOUT, cells), (TRAINED, more)):
        for cell in own:
            run = Run.load(cell.path)
            model = run.load_model()
            if name == WITHOUT:
                model.reliability = nn.ModuleDict()
            results.append({"name": name, "seed": cell.recipe.seed, **tested(run, model, options.frames)})
            say(f"{name}, seed {cell.recipe.seed}: { ({k: v for k, v in results[-1].items() if k != 'rows'}) }")
    content = {
        "name": "trust", "command": command("trust"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "recipe": str(RECIPE.relative_to(ROOT)), **COMMON, **ROBUST, "severity": SEVERITY, "allowed": ALLOWED,
            "frames": options.frames or "all of the split test",
            "rank correlation": "Spearman, over each sensor sound and broken: its weight, and mIoU minus that without it",
        },
        "failures": failures(results), "results": results,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    say(summary(results))
    for case in content["failures"]:
        say(str(case))


if __name__ == "__main__":
    main()
