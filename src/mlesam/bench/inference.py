"""Suite ``inference``: one frame through the whole model and through its parts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mlesam.bench.case import Case, Subject
from mlesam.bench.measure import Run
from mlesam.bench.naive import Naive
from mlesam.bench.setting import PRECISIONS, Setting
from mlesam.model.features import Features
from mlesam.model.foundation import LEVEL_STRIDES
from mlesam.model.mlesam import MLESAM

EQUAL = {"fp32": 1e-4, "bf16": 0.1}
"""How far ours may be from naive's, by precision."""


def whole(setting: Setting, precision: str) -> Run:
    """Pictures to logits at the pictures' size."""
    model, batch = setting.model(), setting.frames()

    @torch.inference_mode()
    def run() -> Tensor:
        with setting.autocast(precision):
            return model(batch).logits

    return run


def naive(setting: Setting, precision: str) -> Run:
    """The same by transformers and PEFT, sensor by sensor."""
    model, batch = Naive(setting.model()), setting.frames()

    @torch.inference_mode()
    def run() -> Tensor:
        with setting.autocast(precision):
            return model(batch).logits

    return run


def floor(setting: Setting, precision: str = "fp32") -> Run:
    """The frozen trunk and neck alone, on as many rows of three channels as there are sensors."""
    foundation = setting.model().foundation
    rows = torch.cat([image.mean(1, keepdim=True).expand(-1, 3, -1, -1) for image in setting.images().values()])

    @torch.inference_mode()
    def run() -> Tensor:
        with setting.autocast(precision):
            return foundation(rows)[-1]

    return run


def fused(setting: Setting, precision: str = "fp32") -> Run:
    """Pictures to the fused maps: everything before the heads."""
    model, batch = setting.model(), setting.frames()

    @torch.inference_mode()
    def run() -> Tensor:
        with setting.autocast(precision):
            return fuse(model, model.encode(batch))[-1]

    return run


def fuse(model: MLESAM, features: Features) -> list[Tensor]:
    """The fused maps, as ``decode`` gives them to the heads."""
    height, width = features.size
    trust = model.trust(features)
    return [
        router(
            level, (-(-height // stride), -(-width // stride)), features.segments, list(features.frames), features.count, trust
        )[0]
        for stride, router, level in zip(LEVEL_STRIDES, model.routers, features.levels, strict=True)
    ]  # fmt: skip


WHOLE = {
    p: Subject(f"whole-{p}", f"pictures to logits, {p}, all sensors in one pass", partial(whole, precision=p), p)
    for p in PRECISIONS
}
THEIRS = "transformers' SAM2 with PEFT LoRA, a pass for each sensor"
NAIVE = {p: Subject(f"naive-{p}", f"{THEIRS}, {p}, heads as ours", partial(naive, precision=p), p) for p in PRECISIONS}
FLOOR = Subject("floor-fp32", "the frozen trunk and neck alone on the stacked rows, fp32", floor)
UNMERGED = Subject("unmerged", "pictures to fused maps with the experts as products of their own, fp32", fused)


def cases() -> list[Case]:
    """Cases of the suite, by the names that its results have."""
    fp32, bf16 = (EQUAL[p] for p in PRECISIONS)
    return [
        Case("whole-fp32", WHOLE["fp32"], NAIVE["fp32"], tolerance=fp32),
        Case("whole-bf16", WHOLE["bf16"], NAIVE["fp32"], (NAIVE["bf16"],), tolerance=bf16),
        Case("experts-unmerged", UNMERGED, FLOOR),
    ]
