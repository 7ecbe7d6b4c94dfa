"""What exported models cost and keep: ``python benchmarks/export.py``.

Time: a model of four sensors with random weights, exported at one size, against what people write today (the naive
implementation of ``mlesam bench``) and against itself in torch, one frame of each by turns. Times are CPU seconds of one thread,
so that other work on the machine does not count. Accuracy: a short training on the procedural world (``recipes/ablation.yaml``),
exported in each precision and tested on its test split beside the run, both through ``Segmenter``.

Writes ``benchmarks/results/export.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditions import ROOT, command, conditions
from mlesam import MLESAM, Batch, ModelConfig, Segmenter
from mlesam.bench.naive import PEFT, Naive
from mlesam.config import load_recipe
from mlesam.data.dataset import default_colors, open_dataset
from mlesam.data.reading import decode_label
from mlesam.evaluation.metrics import confusion_matrix, mean_iou
from mlesam.inference.export import export_model, export_run, random_scene
from mlesam.inference.exported import load_exported
from mlesam.inference.formats import SUFFIXES
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run
from mlesam.sample import Classes
from mlesam.sensors import sensor_spec
from mlesam.training.loop import train

SENSORS = {m: sensor_spec(m) for m in ("rgb", "depth", "lidar", "thermal")}
CLASSES, RANK, THREADS = 13, 32, 1
FORMS = (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))


def random_segmenter(preset: str) -> Segmenter:
    """Four sensors, every part of the model on, experts that are not zero."""
    config = ModelConfig(foundation=preset, train="experts", rank=RANK)
    model = MLESAM({m: spec.channels for m, spec in SENSORS.items()}, CLASSES, config)
    torch.manual_seed(0)
    for name, parameter in model.experts.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.02)
    names = tuple(f"class {i}" for i in range(CLASSES))
    return Segmenter(model, SENSORS, Classes(names, default_colors(CLASSES)), device="cpu")


def by_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, one call of each by turns after two to warm up."""
    for call in calls.values():
        call(), call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            call()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def speed(preset: str, side: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One row for each form, against the naive implementation and the merged model in torch."""
    segmenter = random_segmenter(preset)
    scene = random_scene(SENSORS, (side, side))
    inputs = {m: x[None].numpy() for m, x in scene.items()}
    batch = Batch.of({m: spec.normalized(spec.measured(scene[m]))[None] for m, spec in SENSORS.items()})
    naive = Naive(copy.deepcopy(segmenter.model)).eval()
    plain, merged = copy.deepcopy(segmenter.model), copy.deepcopy(segmenter.model).merge()

    def in_torch(model: torch.nn.Module) -> Callable[[], Any]:
        @torch.inference_mode()
        def call() -> Tensor:
            return model(batch).logits

        return call

    calls = {"naive": in_torch(naive), "torch": in_torch(plain), "torch-merged": in_torch(merged)}
    apart = {name: float((call() - calls["naive"]()).abs().max()) for name, call in calls.items()}
    print(apart, flush=True)
    checked = {}
    for format, precision in FORMS:
        name = f"{format}-{precision}"
        out = folder / f"{name}{SUFFIXES[format]}"
        began = time.process_time()
        about = export_model(segmenter, out, format, size=(side, side), precision=precision, ranges=[scene] * 2)
        exported = load_exported(out, threads=THREADS)
        size = sum(p.stat().st_size for p in (out, out.with_suffix(".bin")) if p.exists())
        checked[name] = {
            "precision": exported.precision, "export_seconds": round(time.process_time() - began, 1),
            "mib": round(size / 2**20, 1), "random": about["checked"]["random"],
        }  # fmt: skip
        calls[name] = partial(exported, inputs)
        print(name, checked[name], flush=True)

    seconds = by_turns(calls, rounds)
    return [
        {
            "name": f"{name}@{preset}-{side}", "ratio": round(seconds[name] / seconds["naive"], 3), "baseline": f"{PEFT}, fp32",
            "seconds": round(seconds[name], 4), "baseline_seconds": round(seconds["naive"], 4),
            "to_torch_merged": round(seconds[name] / seconds["torch-merged"], 3), **checked.get(name, {}),
        }
        for name in seconds
        if name != "naive"
    ]  # fmt: skip


def accuracy(run: Run, folder: Path) -> list[dict[str, Any]]:
    """mIoU on the test split, through the run and through each exported file, and the share of pixels that got the same class."""
    dataset = open_dataset(run.recipe.data.dataset or "", run.recipe.data)
    frames = dataset.frames("test")
    labels = [torch.from_numpy(decode_label(f.read_label(), run.classes, str(f.label))) for f in frames]

    def predicted(segmenter: Segmenter) -> list[np.ndarray]:
        return [segmenter.frame(frame).labels for frame in frames]

    def score(predictions: Sequence[np.ndarray]) -> float:
        count = len(run.classes.names)
        pairs = zip(predictions, labels, strict=True)
        confusion = sum(confusion_matrix(torch.from_numpy(p).long(), label, count) for p, label in pairs)
        assert isinstance(confusion, torch.Tensor)
        return float(mean_iou(confusion.numpy()))

    own = predicted(Segmenter.load(run.path, device="cpu"))
    rows: list[dict[str, Any]] = [{"name": "run", "miou": round(score(own), 5), "frames": len(frames)}]

    def note(name: str, precision: str, segmenter: Segmenter) -> None:
        found = predicted(segmenter)
        same = float(np.mean([(a == b).mean() for a, b in zip(own, found, strict=True)]))
        rows.append(
            {
                "name": name, "precision": precision, "miou": round(score(found), 5),
                "points_lost": round(100 * (score(own) - score(found)), 3), "equal_labels": round(same, 5),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)

    note("torch-bf16", "bf16", Segmenter.load(run.path, device="cpu", precision="bf16"))
    for format, precision in FORMS:
        out = folder / f"run-{format}-{precision}{SUFFIXES[format]}"
        about = export_run(run, out, format, precision=precision)
        note(f"{format}-{precision}", about["checked"]["precision"], Segmenter.load(out))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "export.json")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "export", help="the trained run, kept and found again"
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if not (options.runs / "run.json").is_file():
        train(load_recipe(ROOT / "recipes" / "ablation.yaml"), options.runs)
    run = Run.load(options.runs)
    with tempfile.TemporaryDirectory() as folder:
        scores = accuracy(run, Path(folder))
        rows = speed(options.preset, options.size, options.rounds, Path(folder))
    result = {
        "name": "export", "command": command("export"), **conditions(), "seed": run.recipe.seed,
        "conditions": {
            "speed": {
                "sensors": list(SENSORS), "classes": CLASSES, "rank": RANK, "batch": 1, "threads": THREADS,
                "weights": "random", "time": f"median CPU seconds of {options.rounds} rounds, one call of each by turns",
                "versions": versions(),
            },
            "accuracy": {
                "dataset": run.recipe.data.dataset, "split": "test", "sensors": list(run.sensors),
                "steps": run.recipe.training.steps, "foundation": run.recipe.model.foundation,
            },
        },
        "results": rows, "accuracy": scores,
    }  # fmt: skip
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    print("| form | seconds | of naive | of torch, merged | MiB |\n|---|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['name']} | {row['seconds']:.3f} | {row['ratio']:.2f} | {row['to_torch_merged']:.2f} | {row.get('mib', '')} |"
        )
    print("| form | mIoU | points lost | labels equal |\n|---|--:|--:|--:|")
    for row in scores:
        print(f"| {row['name']} | {row['miou']:.4f} | {row.get('points_lost', '')} | {row.get('equal_labels', '')} |")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")}


if __name__ == "__main__":
    main()
