"""``mlesam train --dry-run``: everything a training would meet, checked before it costs hours. Nothing is written."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from mlesam.checks.dataset import check_dataset
from mlesam.config import Recipe
from mlesam.data.loading import (
    EvaluationFrames,
    StepSampler,
    TrainingFrames,
    batches,
    evaluation_loader,
    training_loader,
)
from mlesam.model.run import Run
from mlesam.training.optimizer import make_optimizer
from mlesam.training.prepare import prepare
from mlesam.training.progress import Progress, duration
from mlesam.training.step import Step


def dry_run(recipe: Recipe, init: Path | None, report: Progress, extend: Path | None = None) -> int:
    """Check every file of the data, build the model, train one step in memory and run one validation frame.

    Returns:
        0 where a training would run, 1 where the data have faults, which are all listed.
    """
    prepared = prepare(recipe, None if extend is None else Run.load(extend))
    for note in prepared.notes:
        report.say(note)
    findings = check_dataset(prepared.dataset, tuple(prepared.sensors))
    for note in findings.notes:
        report.say(f"note: {note}")
    for fault in findings.faults:
        report.say(f"fault: {fault}", style="red")
    if findings.faults:
        report.say(f"{len(findings.faults)} faults; mend them and run this again.")
        return 1
    model = prepared.model(init)
    config = prepared.recipe.training
    data = prepared.recipe.data
    report.say(model.parameter_summary())
    report.say(f"foundation: {model.foundation.source}")
    report.say(
        f"{config.steps} steps of {config.batch} frames, {config.steps * config.batch / len(prepared.train):.1f} epochs of "
        f"{len(prepared.train)} train frames; {len(prepared.val)} val frames; sensors {', '.join(prepared.sensors)}; "
        f"classes {', '.join(prepared.classes.names)}"
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(model.to(device), config).train()
    optimizer = make_optimizer(model, config)
    frames = TrainingFrames(prepared.train, prepared.sensors, prepared.classes, data, recipe.seed)
    sampler = StepSampler(len(prepared.train), config.batch, recipe.seed, 0, 1, config.accumulate)
    began, loss = time.monotonic(), 0.0
    for batch in batches(training_loader(frames, sampler, workers=0)):
        part = step(batch.to(device))["loss"] / config.accumulate
        if part.requires_grad:
            part.backward()
        loss += float(part.detach())
    optimizer.step()
    seconds = time.monotonic() - began
    report.say(f"one step: loss {loss:.3f}, {seconds:.1f} s; about {duration(seconds * config.steps)} in all")
    if prepared.val:
        checked = EvaluationFrames(prepared.val[:1], prepared.sensors, prepared.classes, data.resize)
        with torch.inference_mode():
            for batch in batches(evaluation_loader(checked)):
                model.eval()(batch.to(device))
    report.say("all checks passed; nothing was written.")
    return 0
