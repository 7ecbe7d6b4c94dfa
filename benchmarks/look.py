"""What looking before computing costs and saves: ``python benchmarks/look.py``.

On the procedural world, with models of four sensors that are trained as in recipes/ablation.yaml (three seeds): mIoU on test with
all sensors; with the two that an early stage chooses (after stage 1 or 2); with the two that the router weighs most once all
maps are there, which saves nothing; with the two that are best by the frame's own label, which bounds what any choice can
reach; with the pair that is best on val, the same for every frame; with two at random; and with a model that was trained on that
pair and has no other sensors. Each frame goes through the trunk once, every choice of the first model is decoded from that; that
a pass which really leaves sensors behind gives the same is a test. The time that a frame takes if two of four sensors
go on after stage 1 is in the row ``early-k2-scored`` of ``mlesam bench``. Sensors that hand over to others that lead:
benchmarks/leaders.py.

Writes ``benchmarks/results/look.json``. Trainings are kept in ``runs/look`` and done once.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditions import ROOT, command, conditions, options_of, shortened
from experts import SEEDS, say
from mlesam import MLESAM, Batch
from mlesam.config import load_recipe
from mlesam.data.dataset import open_dataset
from mlesam.data.reading import read_frame
from mlesam.data.transforms import evaluation_sample
from mlesam.evaluation.metrics import confusion_matrix, mean_iou
from mlesam.model.checkpoints import replace_file
from mlesam.model.features import Features
from mlesam.model.heads import at_size
from mlesam.model.look import seen
from mlesam.model.run import Run
from mlesam.training.look import balanced_loss, fit_look
from mlesam.training.loop import train

RECIPE = ROOT / "recipes" / "ablation.yaml"
KEEP, STAGES = 2, (1, 2)
SENSORS = {"rgb": 3, "depth": 1, "lidar": 3, "thermal": 1}


def trained(folder: Path, seed: str, changes: dict[str, str], name: str = "") -> Run:
    """The run of a seed, trained if it is not there."""
    path = folder / f"{name}seed{seed}"
    if not path.is_dir():
        train(load_recipe(RECIPE, {**changes, "seed": seed}), path, command=command("look"))
    return Run.load(path)


def with_look(run: Run, stage: int) -> MLESAM:
    """A run's model that chooses ``KEEP`` sensors after a stage, fitted on the run's training frames."""
    recipe = run.recipe
    config = dataclasses.replace(recipe.model, look=stage, look_keep=KEEP)
    channels = {m: spec.channels for m, spec in run.sensors.items()}
    model = MLESAM(channels, len(run.classes.names), config, recipe.seed).eval()
    model.load_state_dict(run.load_model().state_dict(), strict=False)
    assert recipe.data.dataset is not None
    frames = open_dataset(recipe.data.dataset).frames("train")
    fit_look(model, frames, run.sensors, run.classes, recipe.data.resize, recipe.seed)
    return model


@torch.inference_mode()
def choices(run: Run, models: dict[int, MLESAM], split: str) -> dict[str, Any]:
    """mIoU of every way to choose, and how often each stage chose which pair."""
    assert run.recipe.data.dataset is not None
    frames = open_dataset(run.recipe.data.dataset).frames(split)
    rng = np.random.default_rng(0)
    model = next(iter(models.values()))
    pairs = [tuple(pair) for pair in combinations(run.sensors, KEEP)]
    total: dict[str, Tensor] = {}
    picked: dict[str, dict[str, int]] = {}
    for frame in frames:
        sample = evaluation_sample(read_frame(frame, run.sensors, run.classes), run.sensors, run.recipe.data.resize)
        assert sample.label is not None
        maps: list[Tensor] = []
        features = model.encode(Batch.stack([sample]), after=lambda stage, map_: maps.append(seen(map_)))  # noqa: B023
        output = model.decode(features)
        shares = output.shares[0].mean(dim=0)
        has = features.modalities
        ways: dict[str, tuple[str, ...]] = {
            "two at random": tuple(rng.permutation(list(has))[:KEEP]),
            "the router's two, all computed": tuple(
                sorted(has, key=lambda m: -float(shares[run_index(run, m)]))[:KEEP]
            ),
        }
        for stage, other in models.items():
            scores = {
                m: float(other.looks[m](maps[stage][s.start : s.stop]))
                for m, s in zip(has, features.segments, strict=True)
            }
            ways[f"after stage {stage}"] = tuple(sorted(has, key=lambda m: -scores[m])[:KEEP])
        label = sample.label[None]
        size = label.shape[1], label.shape[2]
        ways["the best two of each frame, its label known"] = min(
            combinations(has, min(KEEP, len(has))),
            key=lambda pair: balanced_loss(at_size(model.decode(features.select(pair)).logits, size), label),
        )
        ways |= {"+".join(pair): pair for pair in pairs if set(pair) & set(has)}
        for name, chosen in ways.items():
            kept = set(chosen) & set(has)
            note(total, name, model, features.select(kept), sample.label, len(run.classes.names))
            if name.startswith("after"):
                key = "+".join(m for m in run.sensors if m in kept)
                picked.setdefault(name, {}).setdefault(key, 0)
                picked[name][key] += 1
        note(total, "all", model, features, sample.label, len(run.classes.names))
    return {
        "miou": {name: round(float(mean_iou(matrix.numpy())), 4) for name, matrix in total.items()},
        "picked": picked,
    }


@torch.inference_mode()
def alone(run: Run, split: str) -> float:
    """mIoU of a run with the sensors that it was trained on."""
    assert run.recipe.data.dataset is not None
    model, total = run.load_model(), {}
    for frame in open_dataset(run.recipe.data.dataset).frames(split):
        sample = evaluation_sample(read_frame(frame, run.sensors, run.classes), run.sensors, run.recipe.data.resize)
        assert sample.label is not None
        note(total, "alone", model, model.encode(Batch.stack([sample])), sample.label, len(run.classes.names))
    return round(float(mean_iou(total["alone"].numpy())), 4)


def run_index(run: Run, modality: str) -> int:
    return list(run.sensors).index(modality)


def note(total: dict[str, Tensor], name: str, model: MLESAM, features: Features, label: Tensor, classes: int) -> None:
    logits = at_size(model.decode(features).logits, label.shape[-2:])
    found = confusion_matrix(logits[0].argmax(dim=0), label, classes)
    total[name] = total[name] + found if name in total else found


def main() -> None:
    parser = options_of(__doc__, "look")
    parser.set_defaults(runs=ROOT / "runs" / "look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"model.reliability": "true", **shortened(options)}
    results: list[dict[str, Any]] = []
    for seed in SEEDS:
        run = trained(options.runs, seed, changes)
        models = {stage: with_look(run, stage) for stage in STAGES}
        test, val = choices(run, models, "test"), choices(run, models, "val")
        fixed = max((n for n in val["miou"] if "+" in n), key=lambda n: val["miou"][n])
        pair = {**changes, "data.modalities": f"[{fixed.replace('+', ', ')}]"}
        test["miou"]["trained on the pair alone"] = alone(trained(options.runs, seed, pair, f"{fixed}-"), "test")
        row = {"seed": int(seed), "fixed_pair": fixed, **test}
        results.append(row)
        say(json.dumps(row))
    content = {
        "name": "look", "command": command("look"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {"keep": KEEP, "sensors": list(SENSORS)}, "results": results,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
