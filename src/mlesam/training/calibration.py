"""The last thing a training does: it fits the temperatures of the kept weights on val."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mlesam.config import plain
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.data.statistics import spaced
from mlesam.errors import WorkError
from mlesam.evaluation.calibrate import FRAMES, calibrate
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import CALIBRATION, WEIGHTS, Run
from mlesam.training.prepare import Prepared
from mlesam.training.progress import Progress


def owes_calibration(prepared: Prepared, out: Path) -> bool:
    """Whether a run has a val split and no temperatures yet."""
    return bool(prepared.val) and not (out / CALIBRATION).is_file()


def calibrate_run(prepared: Prepared, out: Path, report: Progress) -> None:
    """Write ``calibration.json`` for the weights that were kept, or say why there is none."""
    if not prepared.val:
        report.say("no val split: probabilities are not calibrated")
        return
    if not (out / WEIGHTS).is_file():  # no validation found anything to score
        report.say("no pixel of val is scored: no weights are kept and probabilities are not calibrated")
        return
    model = Run.load(out).load_model().to("cuda" if torch.cuda.is_available() else "cpu")
    chosen = spaced(prepared.val, FRAMES)
    present = [m for m in model.modalities if any(m in frame.files for frame in chosen)]
    frames = EvaluationFrames(chosen, prepared.sensors, prepared.classes, prepared.recipe.data.resize)
    try:
        found = calibrate(model, batches(evaluation_loader(frames)), present, len(chosen), prepared.recipe.seed)
    except KeyboardInterrupt:
        raise WorkError(
            f"stopped while calibrating; the weights are kept, finish with: mlesam train --out {out} --resume"
        ) from None
    if found is None:
        report.say(f"no pixel of {len(chosen)} val frames is scored: probabilities are not calibrated")
        return
    replace_file(out / CALIBRATION, json.dumps(plain(found), indent=2) + "\n")
    alone = "".join(f", {m} alone {found.temperature([m]):.2f}" for m in present if len(present) > 1)
    before, after = found.nll or (0.0, 0.0)
    report.say(
        f"calibrated on {len(chosen)} val frames: temperature {found.temperature(present):.2f} with all sensors{alone}; "
        f"negative log-likelihood {before:.3f}, now {after:.3f}"
    )
