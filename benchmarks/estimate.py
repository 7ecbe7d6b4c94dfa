"""How far what ``mlesam train --dry-run`` estimates holds: ``python benchmarks/estimate.py``, ten minutes on one CPU core.

A step is estimated from the small crops that a dry run would take, and then run at its real crop: bytes that autograd keeps,
seconds, and by how much the memory of the process grew at most. And what is estimated for the benchmarks' recipes, by number of
sensors. Every case has a process of its own. Random weights and pictures. Needs Linux, which tells the memory of a process.
Writes ``benchmarks/results/estimate.json`` and prints the tables of docs/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from conditions import ROOT, conditions
from mlesam import MLESAM, Batch, ModelConfig
from mlesam.config import TrainingConfig
from mlesam.model.checkpoints import replace_file
from mlesam.training.estimate import Estimate, estimate, measure, measuring_crop
from mlesam.training.step import Step

SENSORS = ("rgb", "depth", "event", "lidar")
CLASSES = 25
CASES = [
    # foundation, sensors, crop, frames of a micro-batch, precision
    ("nano", 4, 512, 2, "fp32"),
    ("nano", 4, 512, 2, "bf16"),
    ("tiny", 1, 1024, 1, "fp32"),
    ("tiny", 3, 640, 2, "bf16"),
    ("base_plus", 1, 1024, 1, "fp32"),
    ("base_plus", 1, 1024, 2, "bf16"),
    ("base_plus", 4, 512, 2, "bf16"),
    ("base_plus", 2, 1024, 1, "bf16"),
    ("large", 1, 1024, 1, "bf16"),
]
MEASURED = {"nano": 128}
"""A dry run would take nano at 512 pixels as it is; here it is scaled as well."""


RECIPE = ("base_plus", 1024, "bf16")
"""Foundation and crop of the benchmarks' recipes, and what a GPU computes in."""


def batch(sensors: int, frames: int, side: int) -> Batch:
    torch.manual_seed(0)
    images = {m: torch.randn(frames, 3, side, side) for m in SENSORS[:sensors]}
    return Batch.of(images, torch.randint(0, CLASSES, (frames, side, side)))


def estimated(foundation: str, sensors: int, crop: int, precision: str) -> tuple[Step, Estimate]:
    """A step, and what is estimated of it from small crops."""
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # of the one thread: other work on the machine does not count
    torch.manual_seed(0)
    config = ModelConfig(foundation=foundation, train="experts")
    step = Step(MLESAM(dict.fromkeys(SENSORS[:sensors], 3), CLASSES, config), TrainingConfig()).train()
    side = MEASURED.get(foundation) or measuring_crop(step.model.foundation, sensors, crop, "cpu")
    return step, estimate(step, [batch(sensors, n, side) for n in (1, 2)], crop, side, precision == "bf16")


def case(foundation: str, sensors: int, crop: int, frames: int, precision: str) -> dict[str, object]:
    """One step estimated and run."""
    step, found = estimated(foundation, sensors, crop, precision)
    real = batch(sensors, frames, crop)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory starts anew
    cost = measure(step, real, precision == "bf16")
    kept = found.fixed + frames * found.frame
    return {
        "name": f"{foundation}, {sensors} x {crop} pixels, {frames} frame{'s' if frames > 1 else ''}, {precision}",
        "foundation": foundation, "sensors": sensors, "crop": crop, "frames": frames, "precision": precision,
        "measured_crop": found.measured,
        "kept_mib": round(cost.saved / 2**20, 1), "estimated_kept_mib": round(kept / 2**20, 1),
        "kept_ratio": round(kept / cost.saved, 3),
        "growth_mib": round(_memory("VmHWM") - before, 1),
        "estimated_growth_mib": round((kept + found.gradients) / 2**20, 1),
        "seconds": round(cost.seconds, 2), "estimated_seconds": round(found.step_seconds(frames), 2),
        "seconds_ratio": round(found.step_seconds(frames) / cost.seconds, 3),
    }  # fmt: skip


def recipe(sensors: int) -> dict[str, object]:
    """What is estimated for a recipe of so many sensors."""
    foundation, crop, precision = RECIPE
    step, found = estimated(foundation, sensors, crop, precision)
    return {
        "name": f"recipe of {sensors} sensor{'s' if sensors > 1 else ''}", "foundation": foundation, "sensors": sensors,
        "crop": crop, "precision": precision, "measured_crop": found.measured,
        "trainable": sum(p.numel() for p in step.model.parameters() if p.requires_grad),
        "estimated_mib": {str(frames): round(found.memory(frames) / 2**20, 1) for frames in (1, 2, 4, 8)},
    }  # fmt: skip


def _memory(name: str) -> float:
    """MiB, from the kernel's record of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "estimate.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        kind, _, index = options.one.partition(":")
        print(json.dumps(case(*CASES[int(index)]) if kind == "case" else recipe(int(index))))
        return
    rows, recipes = [], []
    for one in [f"case:{i}" for i in range(len(CASES))] + [f"recipe:{n}" for n in range(1, len(SENSORS) + 1)]:
        words = [sys.executable, __file__, "--one", one]
        found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
        (rows if one.startswith("case") else recipes).append(found)
        print(found, flush=True)
    result = {
        "name": "estimate", "command": "python benchmarks/estimate.py", **conditions(), "seed": 0,
        "conditions": {
            "threads": 1, "seconds": "processor time", "pictures": "random", "classes": CLASSES, "rank": 32,
            "training.subsets": 2,
        },
        "results": rows + recipes,
    }  # fmt: skip
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    print("| step | measured at | kept, GiB | estimated | ratio | process grew by, GiB | seconds | estimated | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        print(
            f"| {r['name']} | {r['measured_crop']} | {r['kept_mib'] / 1024:.2f} | {r['estimated_kept_mib'] / 1024:.2f} | "
            f"{r['kept_ratio']:.2f} | {r['growth_mib'] / 1024:.2f} | {r['seconds']:.1f} | {r['estimated_seconds']:.1f} | "
            f"{r['seconds_ratio']:.2f} |"
        )
    print("| sensors | trained parameters | 1 frame at a time | 2 | 4 | 8 |")
    print("|--:|--:|--:|--:|--:|--:|")
    for r in recipes:
        sizes = " | ".join(f"{mib / 1024:.1f}" for mib in r["estimated_mib"].values())
        print(f"| {r['sensors']} | {r['trainable']:,} | {sizes} |")


if __name__ == "__main__":
    main()
