"""Suite ``training``: a step of the method (forward pass, both heads' losses, backward pass, optimiser) of four sensors."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn

from mlesam.bench.case import Case, Subject
from mlesam.bench.measure import Outputs, Run
from mlesam.bench.naive import BY_HAND, PEFT, Naive
from mlesam.bench.setting import PRECISIONS, Setting
from mlesam.config import TrainingConfig
from mlesam.model.mlesam import MLESAM
from mlesam.training.estimate import passes
from mlesam.training.optimizer import make_optimizer
from mlesam.training.step import Step

EQUAL = {"fp32": 1e-4, "bf16": 0.2}
"""How far the first step's loss and gradients of what both have may be apart, by precision."""
PLAIN = 0.0
"""``training.modality_dropout`` without further passes over the heads: the method as published."""


def training(
    setting: Setting,
    precision: str,
    naive: bool = False,
    by_hand: bool = False,
    modality_dropout: float = PLAIN,
    checkpointing: bool = False,
) -> Run:
    """Training steps on one batch. The first returns its loss and the gradients of stems, aligners, router and heads."""
    model = setting.model()
    taught: nn.Module = Naive(model, trainable=True, by_hand=by_hand) if naive or by_hand else model
    config = TrainingConfig(modality_dropout=modality_dropout)
    step = Step(cast(MLESAM, taught), config).train()
    model.foundation.checkpointing = checkpointing
    optimizer = make_optimizer(step, config)
    batch = setting.frames()
    subsets = passes(batch, config)
    alike = [
        p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(("experts.", "foundation."))
    ]
    first = True

    def run() -> Outputs | None:
        nonlocal first
        with setting.autocast(precision):
            loss = step(batch, subsets)["loss"]
        loss.backward()
        found = None
        if first:
            first = False
            gradients = [p.grad.flatten() for p in alike if p.grad is not None]
            found = [loss.detach(), torch.cat(gradients)]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    return run


def subject(precision: str, **how: Any) -> Subject:
    """A step of ours, or of one of the two naive ones; ``how`` as :func:`training` has it."""
    who = "naive" if how.get("naive") else "by-hand" if how.get("by_hand") else "ours"
    about = [f"a training step, {({'naive': PEFT, 'by-hand': BY_HAND}).get(who, who)}"]
    if how.get("modality_dropout"):
        about.append("with sensors left out in two further passes over the heads")
    if how.get("checkpointing"):
        about.append("blocks computed again for the gradients")
    marks = [mark for key, mark in (("modality_dropout", "subsets"), ("checkpointing", "checkpointed")) if how.get(key)]
    name = "-".join([who, "training", precision, *marks])
    return Subject(name, ", ".join([*about, precision]), partial(training, precision=precision, **how), precision)


def cases(size: int) -> list[Case]:
    """Cases of the suite for pictures of ``size`` pixels."""
    made = []
    for precision in PRECISIONS:
        name = f"train-{size}" + ("" if precision == "fp32" else f"-{precision}")
        theirs = subject(precision, naive=True)
        others = (subject("fp32", by_hand=True) if precision == "fp32" else subject("fp32", naive=True),)
        made.append(Case(name, subject(precision), theirs, others, EQUAL[precision]))
        again = subject(precision, checkpointing=True)
        made.append(Case(f"{name}-checkpointed", again, theirs, tolerance=EQUAL[precision]))
    left_out = {"modality_dropout": TrainingConfig().modality_dropout}
    ours, theirs = subject("fp32", **left_out), subject("fp32", naive=True, **left_out)
    made.append(Case(f"train-{size}-subsets", ours, theirs, tolerance=EQUAL["fp32"]))
    return made
