"""Suite ``training``: a step of the method (forward pass, both heads' losses, backward pass, optimiser) of four sensors."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mlesam.bench.case import Case, Subject
from mlesam.bench.measure import Run
from mlesam.bench.naive import Naive
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


def training(setting: Setting, precision: str, naive: bool = False, modality_dropout: float = PLAIN) -> Run:
    """Training steps on one batch. The first returns its loss and the gradients of stems, aligners, router and heads."""
    model = setting.model()
    taught: nn.Module = Naive(model, trainable=True) if naive else model
    config = TrainingConfig(modality_dropout=modality_dropout)
    step = Step(cast(MLESAM, taught), config).train()
    optimizer = make_optimizer(step, config)
    batch = setting.frames()
    subsets = passes(batch, config)
    alike = [
        p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(("experts.", "foundation."))
    ]
    first = True

    def run() -> Tensor | None:
        nonlocal first
        with setting.autocast(precision):
            loss = step(batch, subsets)["loss"]
        loss.backward()
        found = None
        if first:
            first = False
            gradients = [p.grad.flatten() for p in alike if p.grad is not None]
            found = torch.cat([loss.detach()[None], *gradients]).clone()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    return run


def subject(precision: str, naive: bool = False, modality_dropout: float = PLAIN) -> Subject:
    passes = ", with sensors left out in two further passes over the heads" if modality_dropout else ""
    what = "transformers' SAM2 with PEFT LoRA, a pass for each sensor" if naive else "all sensors in one pass"
    name = f"{'naive' if naive else 'ours'}-training-{precision}{'-subsets' if modality_dropout else ''}"
    build = partial(training, precision=precision, naive=naive, modality_dropout=modality_dropout)
    return Subject(name, f"a training step, {what}{passes}, {precision}", build, precision)


def cases(size: int) -> list[Case]:
    """Cases of the suite for pictures of ``size`` pixels."""
    made = []
    for precision in PRECISIONS:
        name = f"train-{size}" + ("" if precision == "fp32" else f"-{precision}")
        others = () if precision == "fp32" else (subject("fp32", naive=True),)
        made.append(Case(name, subject(precision), subject(precision, naive=True), others, EQUAL[precision]))
    default = TrainingConfig().modality_dropout
    subsets = [subject("fp32", naive, default) for naive in (False, True)]
    made.append(Case(f"train-{size}-subsets", subsets[0], subsets[1], tolerance=EQUAL["fp32"]))
    return made
