"""What fusing sensors and a pre-trained foundation are worth on the procedural world: ``python benchmarks/world.py``.

Eight trainings of equal steps on the demo's dataset: all four sensors, a specialist for each sensor alone, and all sensors on
other foundations (a random frozen trunk, and everything trained from a random start). Writes
``benchmarks/results/world.json`` with mIoU on the test frames, over all conditions and by condition, and the speed of rendering.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam2Model

from conditions import ROOT, conditions
from mlesam.demo import OPTIONS, demo_recipe
from mlesam.evaluation.evaluate import evaluate
from mlesam.evaluation.metrics import block_bootstrap, mean_iou, paired_bootstrap
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run
from mlesam.model.sam2 import preset_config
from mlesam.training.pretrain import livelier_start, save
from mlesam.world import WorldOptions, write_world
from mlesam.world.render import HASH, VERSION

SPECIALIST = "specialist "


def plans(folder: Path) -> dict[str, list[str]]:
    """Each training by name: what it changes in the demo's recipe."""
    random = ["--model.foundation", str(folder / "random-start")]
    sensors = demo_recipe({}).data.modalities or ()
    return {
        "all sensors": [],
        # A lower rate for the training of everything: at the experts' rate a random trunk does not train.
        "everything from a random start": [*random, "--model.train", "all", "--training.lr", "1.0e-3"],
        "random frozen trunk": [*random, "--model.train", "experts"],
        **{f"{SPECIALIST}{sensor}": ["--data.modalities", f"[{sensor}]"] for sensor in sensors},
    }


def random_start(folder: Path) -> None:
    """The weights that the pre-training of nano began with."""
    if not folder.exists():
        torch.manual_seed(0)
        sam2 = Sam2Model(preset_config("nano"))
        livelier_start(sam2)
        save(sam2, folder)


def train(folder: Path, name: str, changes: list[str], extra: list[str], threads: int) -> float:
    """Seconds that a training took, by the command a user types. One that is there already is kept."""
    out = folder / name.replace(" ", "-")
    if (out / "model.safetensors").is_file() and (folder / f"{out.name}.seconds").is_file():
        return float((folder / f"{out.name}.seconds").read_text())
    shutil.rmtree(out, ignore_errors=True)
    recipe = str(ROOT / "src" / "mlesam" / "demo.yaml")
    command = [
        sys.executable,
        "-m",
        "mlesam",
        "train",
        recipe,
        "--data",
        f"folder:{folder / 'data'}",
        "--out",
        str(out),
    ]
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / f"{out.name}.log").open("w") as log:
        subprocess.run([*command, *changes, *extra], check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - began
    (folder / f"{out.name}.seconds").write_text(f"{seconds:.1f}")
    print(f"{name}: trained in {seconds:.0f} s", flush=True)
    return seconds


def rendering(folder: Path) -> dict[str, Any]:
    """Frames a second at 256 pixels with all five sensors, files written; and whether two runs give the same bytes."""
    options = WorldOptions(frames=300)
    hashes, rates = [], []
    for number in range(2):
        target = folder / f"speed-{number}"
        shutil.rmtree(target, ignore_errors=True)
        began = time.monotonic()
        hashes.append(write_world(target, options)["frames_sha256"])
        rates.append(options.frames / (time.monotonic() - began))
    first, second = (folder / f"speed-{number}" for number in range(2))
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    same = all((first / p).read_bytes() == (second / p).read_bytes() for p in files) and hashes[0] == hashes[1]
    for target in (first, second):
        shutil.rmtree(target)
    return {
        "frames_per_second": [round(rate, 1) for rate in rates], "frames": options.frames, "size": options.size,
        "files_compared": len(files), "byte_identical": same,
    }  # fmt: skip


def measure(run: Run) -> dict[str | None, np.ndarray]:
    """Confusion matrices of the test frames with all of a run's sensors: over all, and by tag of the weather."""
    found = evaluate(run, split="test")
    confusions = found.conditions[-1].confusions
    tags = sorted({frame.tags[0] for frame in found.frames} if all(f.tags for f in found.frames) else ())
    weather = [tag for tag in tags if tag in ("day", "night", "fog", "rain", "glare")]
    chosen: dict[str | None, np.ndarray] = {None: confusions}
    for tag in weather:
        chosen[tag] = confusions[np.array([tag in frame.tags for frame in found.frames])]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "world", help="datasets and runs")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "world.json")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    options, extra = parser.parse_known_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    speed = rendering(folder)
    print(speed, flush=True)
    if not (folder / "data").exists():
        write_world(folder / "data", OPTIONS)
    random_start(folder / "random-start")
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {n: pool.submit(train, folder, n, c, extra, threads) for n, c in plans(folder).items()}
        seconds = {name: job.result() for name, job in jobs.items()}
    runs = {name: Run.load(folder / name.replace(" ", "-")) for name in seconds}
    found = {name: measure(run) for name, run in runs.items()}
    rows, gains = [], []
    for tag in found["all sensors"]:
        score = {name: float(mean_iou(own[tag].sum(axis=0))) for name, own in found.items()}
        for name, own in found.items():
            low, high = block_bootstrap(own[tag], 1)
            rows.append({
                "name": name, "tag": tag, "frames": len(own[tag]), "miou": round(score[name], 4),
                "interval": [round(low, 4), round(high, 4)],
            })  # fmt: skip
        best = max((name for name in score if name.startswith(SPECIALIST)), key=score.__getitem__)
        for other in (best, "random frozen trunk", "everything from a random start"):
            low, high = paired_bootstrap(found["all sensors"][tag], found[other][tag], 1)
            gain = round(score["all sensors"] - score[other], 4)
            gains.append({"over": other, "tag": tag, "gain": gain, "interval": [round(low, 4), round(high, 4)]})
    recipe = runs["all sensors"].recipe
    result = {
        "name": "world",
        "command": "python benchmarks/world.py",
        **conditions(),
        "seed": recipe.seed,
        "conditions": {
            "world": {"version": VERSION, "hash": HASH, "frames": OPTIONS.frames, "size": OPTIONS.size},
            "split": "test, streets never trained on",
            "sensors": list(recipe.data.modalities or ()),
            "steps": recipe.training.steps, "batch": recipe.training.batch, "crop": recipe.data.crop,
            "weights": "the best of the validations on val",
            "interval": "95 %, bootstrap over frames, 2000 draws; of differences paired",
            "threads": f"{options.jobs} trainings at a time, {threads} thread each",
        },
        "rendering": speed,
        "train_seconds": {name: round(value) for name, value in seconds.items()},
        "results": rows,
        "gains": gains,
    }  # fmt: skip
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(f"{row['tag'] or 'all':6} {row['name']:32} {row['miou']:.3f}  {row['interval']}")
    for row in gains:
        print(f"{row['tag'] or 'all':6} all sensors over {row['over']:32} {row['gain']:+.3f}  {row['interval']}")


if __name__ == "__main__":
    main()
