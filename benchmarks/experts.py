"""What experts are worth, and what their rank does: ``python benchmarks/experts.py``.

The paper's first experiment and its rank question, on the procedural world with the frozen nano: for four sensors and for each
sensor alone, no experts, one LoRA for all sensors, a LoRA each with ranks from 4 to the narrowest block's width, and training
everything. Equal steps, three seeds, differences paired by seed and frame. First each method gets its learning rate: the best
of five on val, with four sensors and seed 0. Then, on a machine that should be quiet, steps are timed in turns.

Writes ``benchmarks/results/experts.json`` and ``docs/experts.svg``, and prints the table of docs/results.md. Trainings are
kept in ``runs/ablation`` and done once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from conditions import ROOT, command, conditions, options_of, shortened
from mlesam.config import load_recipe
from mlesam.evaluation.comparison import compare, dot_plot
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import LOG
from mlesam.training.ablation import run_all, table
from mlesam.training.grid import plan

RECIPE = ROOT / "recipes" / "ablation.yaml"
RANKS = (4, 8, 16, 32, 48)
RATES = ("1.25e-4", "2.5e-4", "5.0e-4", "1.0e-3", "2.0e-3", "4.0e-3", "8.0e-3")
"""Training everything tries the first five, the others the last five."""
PAPER = {"model.align": "false", "model.rescale": "false"}
"""The method as it is published, without what came to it later."""
SEEDS = ("0", "1", "2")
SENSORS = "[rgb, depth, lidar, thermal]"
FROZEN, ONE, ALL = "frozen, no experts", "one LoRA for all, rank 16", "everything trained"
METHODS: dict[str, dict[str, str]] = {
    FROZEN: {"model.rank": "0"},
    ONE: {"model.experts": "shared", "model.rank": "16"},
    "a LoRA each, rank 16": {"model.rank": "16"},
    ALL: {"model.rank": "0", "model.train": "all"},
}
BASE = "a LoRA each, rank 16"
"""What the others are compared with."""


def say(text: str) -> None:
    print(text, flush=True)


def validated(path: Path) -> float:
    """Best mIoU on val of a run."""
    return float(json.loads((path / LOG).read_text().splitlines()[-1])["best_miou"])


def choose_rates(runs: Path, jobs: int, overrides: dict[str, str]) -> dict[str, dict[str, float]]:
    """mIoU on val of each method by learning rate."""
    cells = []
    for name, changes in METHODS.items():
        rates = RATES[:5] if name == ALL else RATES[2:]
        axes = {"method": {name: changes}, "training.lr": {rate: {"training.lr": rate} for rate in rates}}
        cells += plan(RECIPE, overrides, axes, runs)
    stop_on(run_all(cells, jobs, say))
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        found.setdefault(cell.labels["method"], {})[cell.labels["training.lr"]] = validated(cell.path)
    return found


def stop_on(failed: dict[Path, str]) -> None:
    if failed:
        raise SystemExit(f"{len(failed)} trainings failed: {failed}")


def methods(rates: dict[str, dict[str, float]]) -> dict[str, dict[str, str]]:
    """Every variant with its learning rate; all ranks have that of rank 16."""
    best = {name: max(own, key=own.__getitem__) for name, own in rates.items()}
    for name, own in rates.items():
        if best[name] in (next(iter(own)), list(own)[-1]):
            say(f"warning: the best rate of {name}, {best[name]}, is at an end of those tried")
    chosen = {name: {**changes, "training.lr": best[name]} for name, changes in METHODS.items()}
    ranks = {f"a LoRA each, rank {r}": {**chosen[BASE], "model.rank": str(r)} for r in RANKS}
    return {**{n: c for n, c in chosen.items() if n not in (BASE, ALL)}, **ranks, ALL: chosen[ALL]}


# ---------------------------------------------------------------- speed and memory of a step


def trainer(changes: dict[str, str], folder: str):
    from mlesam.training.loop import Trainer
    from mlesam.training.prepare import prepare
    from mlesam.training.progress import Progress

    prepared = prepare(load_recipe(RECIPE, {**PAPER, **changes}))
    return Trainer(prepared, prepared.model(), Path(folder), Progress())


def stepping(changes: dict[str, str], folder: str):
    """A function that takes one training step."""
    from mlesam.data.loading import batches

    own = trainer(changes, folder)
    stream = batches(own._training_loader())
    return lambda: own._one_step(stream)


def in_turns(variants: dict[str, dict[str, str]], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each variant, one step of each by turns."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: stepping(changes, folder) for name, changes in variants.items()}
        clock: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 2):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                if number > 1:
                    clock[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in clock.items()}


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def memory(changes: dict[str, str]) -> tuple[float, float]:
    """MiB of a process of its own before its first step, and the most that it held during five."""
    with tempfile.TemporaryDirectory() as folder:
        step = stepping(changes, folder)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here (Linux)
        for _ in range(5):
            step()
        return before, _status("VmHWM")


def cost(variants: dict[str, dict[str, str]], rounds: int) -> list[dict[str, Any]]:
    """Speed results by the project's rule, against the frozen foundation without experts."""
    seconds = in_turns(variants, rounds)
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name, changes in variants.items():
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(memory, (changes,))
    base = FROZEN
    return [
        {
            "name": name, "ratio": round(seconds[name] / seconds[base], 3), "baseline": base,
            "seconds": round(seconds[name], 4), "baseline_seconds": round(seconds[base], 4),
            "peak_mib": round(peaks[name][1], 1), "baseline_peak_mib": round(peaks[base][1], 1),
            "before_first_step_mib": round(peaks[name][0], 1),
            "conditions": f"training step, batch 2, crop 96, four sensors, {torch.get_num_threads()} threads, {rounds} rounds",
        }
        for name in variants
    ]  # fmt: skip


def summary(result: dict[str, Any]) -> str:
    """The table of docs/results.md: mIoU by method and sensors, and what a step costs."""
    groups = list(dict.fromkeys(row["group"] for row in result["results"]))
    found = {(row["group"], row["name"]): row for row in result["results"]}
    lines = [f"| trained | {' | '.join(g.replace('+', ' + ') for g in groups)} | trainable | step | peak, MiB |"]
    lines.append(f"|---|{'--:|' * (len(groups) + 3)}")
    for cost in result["cost"]:
        cells = []
        for group in groups:
            row = found.get((group, cost["name"]))
            cells.append("" if row is None else f"{100 * row['miou']:.1f}")
            if row is not None and row["difference"] is not None and group == groups[0]:
                low, high = row["difference_interval"]
                cells[-1] += f" ({100 * row['difference']:+.1f}: {100 * low:+.1f} to {100 * high:+.1f})"
        trainable = found[groups[0], cost["name"]]["trainable"]
        lines.append(
            f"| {cost['name']} | {' | '.join(cells)} | {trainable:,} | {cost['ratio']:.2f} | {cost['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = options_of(__doc__, "experts", "experts").parse_args()
    overrides = {**PAPER, **shortened(options)}
    rates = choose_rates(options.runs, options.jobs, overrides)
    say(f"val mIoU by learning rate: {rates}")
    variants = methods(rates)
    seeds = {seed: {"seed": seed} for seed in SEEDS}
    alone = {name: changes for name, changes in variants.items() if name != ONE}  # one sensor: the same thing
    cells = []
    for names, chosen in (((SENSORS,), variants), (SENSORS.strip("[]").split(", "), alone)):
        sensors = {n.strip("[]").replace(", ", "+"): {"data.modalities": f"[{n.strip('[]')}]"} for n in names}
        cells += plan(RECIPE, overrides, {"sensors": sensors, "method": chosen, "seed": seeds}, options.runs)
    stop_on(run_all(cells, options.jobs, say))
    trained = table(cells)
    rows = compare(trained, BASE)
    same_size = compare(
        [row for row in trained if row.group == trained[0].group and row.name in (ONE, "a LoRA each, rank 4")]
    )
    recipe = load_recipe(RECIPE, overrides)
    result = {
        "name": "experts", "command": command("experts"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "dataset": recipe.data.dataset, "split": rows[0]["split"], "frames": rows[0]["frames"],
            "recipe": str(RECIPE.relative_to(ROOT)), "steps": recipe.training.steps, "batch": recipe.training.batch,
            "learning rate": {name: changes["training.lr"] for name, changes in variants.items()},
            "threads": rows[0]["threads"], "trainings at a time": options.jobs,
            "interval": "95 %, bootstrap over frames and seeds; of differences (to a LoRA each, rank 16) paired by both",
        },
        "val_miou_by_learning_rate": rates,
        "results": rows,
        "at equal parameters": same_size,
        "cost": cost(variants, 15),
    }  # fmt: skip
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    replace_file(options.plot, dot_plot(rows, "What experts are worth, and their rank (procedural world, nano)"))
    say(summary(result))


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    main()
