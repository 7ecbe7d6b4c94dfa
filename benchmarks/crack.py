"""Train recipes/crack.yaml and report it once on the test split: ``python benchmarks/crack.py --out runs/crack``.

Writes ``benchmarks/results/crack.json``: mIoU of all seven subsets over all test frames and over those tagged ``dark``,
with a 95 % block-bootstrap interval (neighbouring frames often show the same crack). The frames are not part of this
project; the recipe says where they are expected.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from conditions import conditions
from mlesam.config import load_recipe
from mlesam.evaluation.evaluate import evaluate, store
from mlesam.evaluation.metrics import block_bootstrap, mean_iou, paired_bootstrap
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import LOG, Run

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 5
"""Consecutive frames drawn together; runs of the same crack are mostly this long or shorter."""


def rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per subset, for all test frames (tag null) and for the dark ones, and how the router shares its trust."""
    found = evaluate(run, split="test")
    store(run, found, None)
    tags: dict[str | None, np.ndarray] = {None: np.ones(len(found.frames), dtype=bool)}
    tags["dark"] = np.array(["dark" in frame.tags for frame in found.frames])
    table = []
    for tag, chosen in tags.items():
        for condition in found.conditions:
            confusions = condition.confusions[chosen]
            low, high = block_bootstrap(confusions, BLOCK)
            table.append(
                {
                    "present": list(condition.present),
                    "frames": int(chosen.sum()),
                    "tag": tag,
                    "miou": round(float(mean_iou(confusions.sum(axis=0))), 4),
                    "interval": [round(low, 4), round(high, 4)],
                }
            )
        nothing = found.conditions[0].confusions[chosen].sum(axis=(0, 2))  # all pixels of each true class
        never = np.zeros((2, 2), dtype=np.int64)
        never[:, 0] = nothing
        print(f"predicting no crack anywhere ({tag or 'all'}): mIoU {float(mean_iou(never)):.4f}")
    # The gain over RGB alone, drawn on the same blocks: frames differ more than models do.
    return table, paired_gain(found.conditions, tags["dark"])


def paired_gain(conditions: Any, chosen: np.ndarray) -> dict[str, Any]:
    """mIoU of all sensors less that of RGB alone on the chosen frames, with the interval of the difference."""
    by_name = {c.present: c.confusions[chosen] for c in conditions}
    full, rgb = by_name[conditions[-1].present], by_name[("rgb",)]
    low, high = paired_bootstrap(full, rgb, BLOCK)
    gain = float(mean_iou(full.sum(axis=0)) - mean_iou(rgb.sum(axis=0)))
    return {"tag": "dark", "gain_over_rgb": round(gain, 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "crack", help="the run's directory")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "crack.json")
    options = parser.parse_args()
    os.chdir(ROOT)
    recipe = load_recipe(Path("recipes/crack.yaml"))
    began = time.monotonic()
    command = [sys.executable, "-m", "mlesam", "train", "recipes/crack.yaml", "--out", str(options.out)]
    subprocess.run(command, check=True)  # the command a user types
    run = Run.load(options.out)
    seconds = time.monotonic() - began
    table, gain = rows(run)
    events = [json.loads(line) for line in (run.path / LOG).read_text().splitlines()]
    validations = [e for e in events if e["event"] == "validation"]
    best = max(validations, key=lambda e: e["miou"])
    result = {
        "name": "crack",
        "command": "python benchmarks/crack.py",
        **conditions(),
        "seed": recipe.seed,
        "conditions": {
            "dataset": "cracks, RGB + thermal + depth, 400x400 (github.com/teng2023, commit d107320)",
            "split": "test, reported once; weights chosen on val",
            "train_seconds": round(seconds),
            "steps": recipe.training.steps,
            "chosen_step": best["step"],
            "val_miou": best["miou"],
            "val_trust": best["weights"],
            "interval": f"95 %, circular block bootstrap, blocks of {BLOCK} frames, 2000 draws",
        },
        "results": table,
        "dark_gain": gain,
    }
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    for row in table:
        print(f"{row['tag'] or 'all':5} {'+'.join(row['present']):24} {row['miou']:.3f}  {row['interval']}")
    print(f"dark, all sensors against rgb alone: {gain['gain_over_rgb']:+.3f}  {gain['interval']}")
    print(f"training took {seconds / 60:.1f} minutes; written to {options.result}")


if __name__ == "__main__":
    main()
