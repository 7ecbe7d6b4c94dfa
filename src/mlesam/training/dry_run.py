"""``mlesam train --dry-run``: everything a training would meet, checked before it costs hours. Nothing is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from mlesam.checks.dataset import Summary, check_dataset
from mlesam.checks.findings import counted
from mlesam.config import Recipe
from mlesam.data.dataset import Frame
from mlesam.data.loading import EvaluationFrames, TrainingFrames
from mlesam.errors import MlesamError
from mlesam.model.hub import cached_folder, is_hub_id
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.model.sam2 import HUB_PRESETS
from mlesam.sample import Batch, Sample
from mlesam.training.estimate import Estimate, estimate, machine, measuring_crop
from mlesam.training.loop import precision
from mlesam.training.prepare import Prepared, prepare
from mlesam.training.progress import Progress, duration
from mlesam.training.step import Step

PAPER = 20_800_000
"""Trainable parameters that arXiv 2412.04220 reports, about, for four sensors on Hiera-B+ (docs/recipes.md)."""


def dry_run(recipe: Recipe, init: Path | None, report: Progress, extend: Path | None = None) -> int:
    """Check every file of the data, build the model, and measure what a training will take.

    A published SAM2 that is not in the Hub's cache here is replaced by random weights of its size, since shapes, memory and time
    do not depend on what the weights are.

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
    say_data(prepared, findings.summary, report)
    model = build_model(prepared, init, report)
    say_parameters(model, report)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers = precision(prepared.recipe.training, prepared.recipe.model.foundation, device)
    found = take_steps(prepared, model.to(device), numbers == "bf16")
    if not math.isfinite(found.loss):
        report.say(f"fault: the loss of the first step is {found.loss}; look at the sensors' values.", style="red")
        return 1
    say_cost(prepared, found, "bf16" if numbers == "bf16" else "fp32", machine(device), report)
    report.say("all checks passed; nothing was written.")
    return 0


def build_model(prepared: Prepared, init: Path | None, report: Progress) -> MLESAM:
    """The recipe's model, on random weights of the same size where the Hub's are not on this machine."""
    config = prepared.recipe.model
    fresh = init is None and prepared.extends is None  # a run to start from fits its own foundation alone
    size = HUB_PRESETS.get(config.foundation) if fresh and is_hub_id(config.foundation) else None
    if size is not None and cached_folder(config.foundation, config.revision) is None:
        report.say(
            f"{config.foundation} is not in the Hub's cache on this machine (a training would fetch it); this dry run takes "
            f"random weights of the same size, {size}."
        )
        drawn = dataclasses.replace(config, foundation=size, revision=None)
        prepared = dataclasses.replace(prepared, recipe=dataclasses.replace(prepared.recipe, model=drawn))
    return prepared.model(init)


def take_steps(prepared: Prepared, model: MLESAM, autocast: bool) -> Estimate:
    """Training frames as a training sees them, small steps on the middle of their crops, and one validation frame."""
    data = prepared.recipe.data
    device = next(model.parameters()).device
    # Memory has to suffice for the most that can come: frames with every sensor, each with a broken copy.
    most = dataclasses.replace(data, faults=1.0 if data.faults else 0.0)
    index = fullest(prepared.train, tuple(prepared.sensors))
    frames = TrainingFrames(prepared.train, prepared.sensors, prepared.classes, most, prepared.recipe.seed)
    samples = [_read(frames[epoch, index]) for epoch in range(2)]  # two crops of one frame
    batches = [Batch.stack(samples[:count]).to(device) for count in (1, 2)]
    side = measuring_crop(model.foundation, len(batches[0].modalities), data.crop, device.type)
    step = Step(model, prepared.recipe.training).train()
    try:
        found = estimate(step, batches, data.crop, side, autocast)
    except torch.OutOfMemoryError:  # a GPU that two such frames do not fit
        side = min(side, model.foundation.tile)
        step.zero_grad(set_to_none=True)
        found = estimate(step, batches, data.crop, side, autocast)
    if prepared.val:
        index = fullest(prepared.val, tuple(prepared.sensors))
        whole = _read(EvaluationFrames(prepared.val, prepared.sensors, prepared.classes, data.resize)[index])
        part = {m: image[None, :, :side, :side].to(device) for m, image in whole.images.items()}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            model.eval()(part)
    return found


def fullest(frames: Sequence[Frame], modalities: tuple[str, ...]) -> int:
    """The first of the frames that have most of the sensors."""
    return max(range(len(frames)), key=lambda i: len(set(frames[i].files) & set(modalities)))


def parameters_by_part(model: MLESAM) -> dict[str, int]:
    """Trainable parameters of each part of the model that has any, and of each sensor's expert."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        first, second, *_ = name.split(".")
        if first == "experts":
            part = f"expert of {second}"
        elif first == "mask_head":
            part = "class tokens and their MLPs" if second in ("mask_tokens", "hypernetworks") else "mask decoder"
        else:
            part = first.replace("_", " ")
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


# ---------------------------------------------------------------- what is said


def say_data(prepared: Prepared, summary: Summary, report: Progress) -> None:
    """Sensors with their sizes, classes, frames, steps."""
    config, names = prepared.recipe.training, prepared.classes.names

    def sizes(modality: str) -> str:
        known = [f"{width}x{height}" for (height, width), _ in summary.sizes[modality].most_common()]
        more = f" and {len(known) - 1} other sizes" if len(known) > 1 else ""
        return f"{known[0]}{more}" if known else "no file"

    sensors = [f"{m} ({counted(spec.channels, 'channel')}, {sizes(m)})" for m, spec in prepared.sensors.items()]
    report.say(f"sensors: {', '.join(sensors)}; labels {sizes('labels')}")
    report.say(f"{len(names)} classes: {', '.join(names)}")
    epochs = config.steps * config.batch / len(prepared.train)
    report.say(
        f"{counted(config.steps, 'step')} of {counted(config.batch, 'frame')}, {epochs:,.1f} epochs of "
        f"{counted(len(prepared.train), 'train frame')}; {counted(len(prepared.val), 'val frame')}"
    )


def say_parameters(model: MLESAM, report: Progress) -> None:
    report.say(f"foundation: {model.foundation.source}")
    report.say(model.parameter_summary())
    report.say(", ".join(f"{part} {count:,}" for part, count in parameters_by_part(model).items()))
    config = model.config
    published = model.foundation.family == "sam2" and (model.foundation.depth, config.rank) == (24, 32)
    if published and len(model.modalities) == 4:
        report.say(f"the paper reports about {PAPER / 1e6:.1f} million for four sensors; docs/recipes.md compares")


def say_cost(prepared: Prepared, found: Estimate, numbers: str, where: str, report: Progress) -> None:
    """Memory and time, with what they were measured on."""
    config = prepared.recipe.training
    exact = found.measured == found.crop
    report.say(
        f"measured on {where}, {numbers}: one frame with all sensors, crops of {found.measured} pixels, loss {found.loss:.3f}"
        + ("" if exact else f"; scaled to {found.crop} pixels")
    )
    micro = config.batch // config.accumulate
    report.say(
        f"memory: at least {_size(found.memory(micro))} for {counted(micro, 'frame')} at a time: weights {_size(found.weights)}, "
        f"gradients {_size(found.gradients)}, optimiser {_size(found.optimizer)}, kept for the backward pass "
        f"{_size(found.fixed)} and {_size(found.frame)} for each frame; what an operation needs while it runs comes on top"
    )
    if config.batch > 1:
        parts = [a for a in range(1, config.batch + 1) if config.batch % a == 0]
        ways = [f"{a}: {_size(found.memory(config.batch // a))}" for a in parts]
        report.say(f"memory by training.accumulate: {', '.join(ways)}")
    seconds = found.step_seconds(config.batch)
    # Global attention grows with the square of the pixels, so a small crop promises too much.
    word = "about" if exact else "at least"
    report.say(
        f"time: {word} {duration(seconds)} for a step of {counted(config.batch, 'frame')} on this machine, "
        f"{duration(seconds * config.steps)} in all"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _read(sample: Sample | MlesamError) -> Sample:
    if isinstance(sample, MlesamError):
        raise sample
    return sample
