"""Suite ``stream``: a frame in which one sensor is new and the others stand in, against one in which all are."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from mlesam.bench.case import Case, Subject
from mlesam.bench.inference import WHOLE, whole
from mlesam.bench.measure import Run
from mlesam.bench.setting import Setting
from mlesam.inference.stream import SensorMemory

RATE = 30
"""Frames a second."""


def stream(setting: Setting, reliability: bool = True) -> Run:
    """The first sensor measures in every frame; the others have measured once, the very same as the baseline sees."""
    changes = () if reliability else (("reliability", False),)
    setting = setting.with_(changes=(*setting.changes, *changes))
    model, batch = setting.model().merge(), setting.frames()
    memory = SensorMemory(model, max_age=None)
    new = batch.select(batch.modalities[:1])
    clock = itertools.count(1)
    with torch.inference_mode():
        memory.keep(model.encode(batch), time=0.0)

    @torch.inference_mode()
    def run() -> Tensor:
        time = next(clock) / RATE
        memory.keep(model.encode(new), time=time)
        return model.decode(*memory.recall(time)).logits

    return run


def cases() -> list[Case]:
    """Nothing has moved, so both must say the same."""
    one = Subject("stream-1of4", "one sensor is new, the others stand in, fp32", stream)
    plain = Subject("stream-plain", "the same without reliability, fp32", partial(stream, reliability=False))
    all_plain = Subject("whole-plain", "the whole without reliability, fp32", partial(whole, reliability=False))
    return [
        Case("stream-1of4", one, WHOLE["fp32"], tolerance=1e-4),
        Case("stream-1of4-plain", plain, all_plain, tolerance=1e-4),
    ]
