"""What calibration is worth, and which form of it: ``python benchmarks/confidence.py RUN``.

RUN is a calibrated run, for the documentation that of ``mlesam demo``. Four ways to choose the temperatures are compared on every
subset of the sensors, all pixels of the test split: none, one for all subsets, base and absent sensors as the run stores them,
and one for each subset. All are fitted on val. Writes ``benchmarks/results/confidence.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conditions import ROOT, conditions
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.evaluation.calibrate import fit
from mlesam.evaluation.confidence import BINS, calibration_error, histogram
from mlesam.evaluation.evaluate import open_split
from mlesam.evaluation.protocols import subsets
from mlesam.model.checkpoints import replace_file
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import IGNORE

PIXELS = 200
"""Of each val frame, for the two forms that are fitted here."""
Subset = tuple[str, ...]


@torch.inference_mode()
def frames(run: Run, model: MLESAM, split: str) -> Iterator[tuple[Subset, Tensor, Tensor]]:
    """For each frame and subset (N, C) logits and (N,) labels of all scored pixels."""
    scored = open_split(run, split=split)
    reader = EvaluationFrames(scored.frames, scored.sensors, scored.classes, run.recipe.data.resize)
    for batch in batches(evaluation_loader(reader)):
        assert batch.labels is not None
        known = batch.labels[0] != IGNORE
        features = model.encode(batch)
        for subset in subsets(model.modalities):
            logits = at_size(model.decode(features.select(subset)).logits, batch.labels.shape[-2:])
            yield subset, logits[0][:, known].T, batch.labels[0][known]


def ways(run: Run, model: MLESAM) -> dict[str, dict[Subset, float]]:
    """Temperature by way and subset."""
    rng, found = np.random.default_rng(run.recipe.seed), []
    for subset, logits, labels in frames(run, model, "val"):
        picked = torch.from_numpy(rng.permutation(len(labels))[:PIXELS])
        found.append((subset, logits[picked].clone(), labels[picked].clone()))

    def one(chosen: list[tuple[Subset, Tensor, Tensor]]) -> float:
        logits, labels = (torch.cat([entry[i] for entry in chosen]) for i in (1, 2))  # type: ignore[misc]
        return math.exp(fit(logits, labels, torch.zeros(len(labels), 1, dtype=torch.bool))[0])

    calibration, every = run.calibration, subsets(model.modalities)
    if calibration is None:
        raise SystemExit(f"{run.path} is not calibrated; do it with: mlesam train --out {run.path} --resume")
    single = one(found)
    return {
        "none": dict.fromkeys(every, 1.0),
        "one for all subsets": dict.fromkeys(every, single),
        "base and absent sensors": {s: calibration.temperature(s) for s in every},
        "one for each subset": {s: one([entry for entry in found if entry[0] == s]) for s in every},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "confidence.json")
    options = parser.parse_args()
    run = Run.load(options.run)
    model = run.load_model()
    chosen = ways(run, model)
    counts = {(way, s): np.zeros((3, BINS)) for way in chosen for s in chosen[way]}
    likelihood = dict.fromkeys(counts, 0.0)
    for subset, logits, labels in frames(run, model, "test"):
        right = logits.argmax(dim=1) == labels
        for way, temperatures in chosen.items():
            log = (logits / temperatures[subset]).log_softmax(dim=1)
            counts[way, subset] += histogram(log.amax(dim=1).exp(), right)
            likelihood[way, subset] += float(F.nll_loss(log, labels, reduction="sum"))
    rows: list[dict[str, Any]] = []
    for way, temperatures in chosen.items():
        for s, temperature in temperatures.items():
            pixels = float(counts[way, s][0].sum())
            error, nll = calibration_error(counts[way, s]), likelihood[way, s] / pixels
            row = {"name": way, "sensors": "+".join(s), "temperature": round(temperature, 4)}
            rows.append({**row, "ece": round(error, 5), "nll": round(nll, 5), "pixels": int(pixels)})
    print(f"{'temperatures':<26}{'ECE, all':>10}{'mean':>8}{'worst':>8}{'NLL, mean':>11}")
    for way in chosen:
        own = [r for r in rows if r["name"] == way]
        errors = [100 * r["ece"] for r in own]
        print(
            f"{way:<26}{errors[-1]:>10.1f}{np.mean(errors):>8.1f}{max(errors):>8.1f}{np.mean([r['nll'] for r in own]):>11.3f}"
        )
    result = {
        "name": "confidence",
        "command": "python benchmarks/confidence.py RUN",
        **conditions(),
        "seed": run.recipe.seed,
    }
    facts = {"recipe": run.recipe.name, "steps": run.recipe.training.steps, "split": "test", "results": rows}
    replace_file(options.result, json.dumps({**result, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
