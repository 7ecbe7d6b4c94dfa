"""Other worlds than the one trained on: ``python benchmarks/carryover.py``.

Four-sensor models (the one of benchmarks/robust.py, three seeds) are tested where one thing is different: another city, another
colour camera, another LiDAR, two of each; and from day to night, where models trained by day alone are tested at night beside
those trained in all weathers. Models with ``model.reliability`` stand beside those without. Every subset of the sensors. A
camera or a LiDAR changes nothing but its own pictures, so differences are paired by frame as well as by seed; cities and
weathers have frames of their own, which are drawn apart.

Writes ``benchmarks/results/carryover.json`` and ``docs/carryover.svg``, and prints the table of docs/results.md. Trainings are
kept in ``runs/ablation``, shared with benchmarks/robust.py and trust.py; trainings, worlds and tests are done once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, command, conditions, options_of, shortened
from experts import RECIPE, SEEDS, say, stop_on
from fusion import BASE
from intervals import estimate, score, signed
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import dot_plot
from mlesam.evaluation.markup import percent
from mlesam.model.checkpoints import replace_file
from mlesam.training.ablation import run_all
from mlesam.training.grid import Cell, plan
from retest import Retest, Tested, run_tests
from robust import EVERYONE

WORLD = "world:frames=300,size=128"
OTHERS = ("1", "2")
"""Numbers of the other cities, cameras and LiDARs."""
ALL, DAY, TRUST = "all weathers", "day alone", "all weathers, with trust"
TRAINED = {
    ALL: {"data.dataset": WORLD},
    DAY: {"data.dataset": f"{WORLD},weather=day"},
    TRUST: {"data.dataset": WORLD, "model.reliability": "true"},
}
"""Trust has learned from broken sensors what looks strange; another device may look so as well."""


@dataclass(frozen=True)
class Case:
    """A model on a dataset, or on several whose results are averaged.

    Attributes:
        against: name of the case that the difference is to. same_frames: whether that one shows the same scenes.
        changed: the sensor whose pictures alone are others than there.
    """

    name: str
    trained: str
    datasets: tuple[str, ...]
    against: str | None = None
    same_frames: bool = False
    changed: str | None = None


def worlds(thing: str) -> dict[str, str]:
    return {number: f"{WORLD},{thing}={number}" for number in OTHERS}


SAME, SAME_TRUST = "the world trained on", "the world trained on, with trust"
CITIES, CAMERAS, LIDARS = (worlds(thing) for thing in ("city", "camera", "lidar"))
MEAN = f"mean of {len(OTHERS)}"
CASES: dict[str, list[Case]] = {
    "the same": [Case(SAME, ALL, (WORLD,))],
    "another city": [
        Case(f"another city, {MEAN}", ALL, tuple(CITIES.values()), SAME),
        *(Case(f"city {n}", ALL, (data,), SAME) for n, data in CITIES.items()),
    ],
    "another camera": [
        Case(f"another camera, {MEAN}", ALL, tuple(CAMERAS.values()), SAME, True, "rgb"),
        *(Case(f"camera {n}", ALL, (data,), SAME, True, "rgb") for n, data in CAMERAS.items()),
    ],
    "another LiDAR": [
        Case(f"another LiDAR, {MEAN}", ALL, tuple(LIDARS.values()), SAME, True, "lidar"),
        *(Case(f"LiDAR {n}", ALL, (data,), SAME, True, "lidar") for n, data in LIDARS.items()),
    ],
    "with trust": [
        Case(SAME_TRUST, TRUST, (WORLD,), SAME, True),
        Case(f"another city, with trust, {MEAN}", TRUST, tuple(CITIES.values()), SAME_TRUST),
        Case(f"another camera, with trust, {MEAN}", TRUST, tuple(CAMERAS.values()), SAME_TRUST, True, "rgb"),
        Case(f"another LiDAR, with trust, {MEAN}", TRUST, tuple(LIDARS.values()), SAME_TRUST, True, "lidar"),
    ],
    "day and night": [
        Case("trained in all weathers, by day", ALL, (f"{WORLD},weather=day",)),
        Case("trained in all weathers, at night", ALL, (f"{WORLD},weather=night",), "trained in all weathers, by day"),
        Case("trained by day, by day", DAY, (f"{WORLD},weather=day",), "trained in all weathers, by day", True),
        Case("trained by day, at night", DAY, (f"{WORLD},weather=night",), "trained in all weathers, at night", True),
        Case("the same, against by day", DAY, (f"{WORLD},weather=night",), "trained by day, by day"),
    ],
}


def tests_of(case: Case, paths: Mapping[str, Mapping[str, Path]]) -> dict[str, list[Retest]]:
    """``{seed: [a test for each dataset]}``; a model's own world was tested when it was trained."""
    own = TRAINED[case.trained]["data.dataset"]
    return {
        seed: [Retest(path, None if data == own else data) for data in case.datasets]
        for seed, path in paths[case.trained].items()
    }


def row_of(
    group: str, case: Case, results: Mapping[str, list[Tested]], to: Mapping[str, list[Tested]] | None
) -> dict[str, Any]:
    """All sensors, the mean over subsets, every subset, and the router's weights."""
    if case.changed is not None and to is not None:
        unchanged(results, to, case.changed)

    def compared(of: Callable[[Mapping[str, list[Tested]]], dict[str, list[np.ndarray]]]) -> dict[str, Any]:
        return estimate(of(results), None if to is None else of(to), same_frames=case.same_frames)

    full, mean = compared(all_sensors), compared(every_subset)
    names = next(iter(results.values()))[0].confusions
    tests = [t for own in results.values() for t in own]
    return {
        "group": group, "name": case.name, "trained": TRAINED[case.trained], "tested_on": list(case.datasets),
        **full, "difference_to": case.against,
        "paired_by": None if to is None else ["seed", "frame"] if case.same_frames else ["seed"],
        "mean_over_subsets": mean["miou"], "mean_interval": mean["interval"],
        "mean_difference": mean.get("difference"), "mean_difference_interval": mean.get("difference_interval"),
        "subsets": {n: round(float(np.mean([score([t.confusions[n]]) for t in tests])), 4) for n in names},
        "weights": {m: round(float(np.mean([t.weights[m] for t in tests])), 4) for m in tests[0].weights},
    }  # fmt: skip


def all_sensors(results: Mapping[str, list[Tested]]) -> dict[str, list[np.ndarray]]:
    return {seed: [test.full for test in own] for seed, own in results.items()}


def every_subset(results: Mapping[str, list[Tested]]) -> dict[str, list[np.ndarray]]:
    return {seed: [c for test in own for c in test.confusions.values()] for seed, own in results.items()}


def unchanged(results: Mapping[str, list[Tested]], to: Mapping[str, list[Tested]], changed: str) -> None:
    """Without the other device every result is the same, to the pixel; else this is not what it is called."""
    for seed, own in results.items():
        for test in own:
            for name, matrices in test.confusions.items():
                if changed not in name.split("+") and not np.array_equal(matrices, to[seed][0].confusions[name]):
                    raise SystemExit(f"another {changed} changed the result of {name}, which does not have it")


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of docs/results.md."""
    heads = [
        "",
        "all four sensors",
        "difference",
        "mean over 15 subsets",
        "difference",
        *(f"{m} alone" for m in EVERYONE),
    ]
    heads.append(f"weights of {', '.join(EVERYONE)}")
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for row in rows:
        mean = percent(row["mean_over_subsets"]), signed(row, "mean_difference")
        cells = [row["name"], percent(row["miou"]), signed(row), *mean]
        cells += [percent(row["subsets"][m]) for m in EVERYONE]
        cells.append(" ".join(f"{row['weights'][m]:.2f}" for m in EVERYONE))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = options_of(__doc__, "carryover", "carryover").parse_args()
    overrides = shortened(options)
    paths = trained(overrides, options.runs, options.jobs)
    tests = {case.name: tests_of(case, paths) for group in CASES.values() for case in group}
    run_tests([test for own in tests.values() for several in own.values() for test in several], options.jobs)
    results = {
        name: {seed: [test.result() for test in several] for seed, several in own.items()}
        for name, own in tests.items()
    }
    rows = [
        row_of(group, case, results[case.name], results[case.against] if case.against else None)
        for group, own in CASES.items()
        for case in own
    ]
    recipe = load_recipe(RECIPE, overrides)
    first = results[SAME][SEEDS[0]][0]
    content = {
        "name": "carryover", "command": command("carryover"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "split": "test", "frames": len(first.frames), "recipe": str(RECIPE.relative_to(ROOT)), **BASE,
            "steps": recipe.training.steps, "batch": recipe.training.batch,
            "interval": "95 %, bootstrap over frames and seeds; differences are paired by seed, and by frame where the frames "
            "show the same scenes; else the frames of the two are drawn apart",
        },
        "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    replace_file(options.plot, dot_plot(rows, "Other worlds than the one trained on (all four sensors)"))
    say(summary(rows))


def trained(
    overrides: Mapping[str, str], runs: Path, jobs: int, names: Sequence[str] = tuple(TRAINED)
) -> dict[str, dict[str, Path]]:
    """``{what it was trained on: {seed: folder}}``."""
    axes = {"trained": {n: {**BASE, **TRAINED[n]} for n in names}, "seed": {seed: {"seed": seed} for seed in SEEDS}}
    cells: list[Cell] = plan(RECIPE, overrides, axes, runs)
    stop_on(run_all(cells, jobs, say))
    found: dict[str, dict[str, Path]] = {}
    for cell in cells:
        found.setdefault(cell.labels["trained"], {})[cell.labels["seed"]] = cell.path
    return found


if __name__ == "__main__":
    main()
