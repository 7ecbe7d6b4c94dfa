"""What a training will take: memory and time of small real steps, scaled to the recipe's crop and batch.

Forward pass, losses and backward pass run on one frame and then on two, on crops that this machine can bear. Autograd says
which tensors it keeps for the backward pass. What the second frame adds grows with frames and pixels; the rest (weights in
another precision) stays. benchmarks/estimate.py says how far that holds.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlesam.config import TrainingConfig
from mlesam.model.foundation import Foundation
from mlesam.model.mlesam import MLESAM
from mlesam.sample import IGNORE, Batch
from mlesam.training.step import Step, led_pass

AFFORDABLE = {"cpu": 1e13, "cuda": 2e15}
"""Largest (weights of the foundation) x (pixels of a frame over all its sensors) that one measured frame may have. On one CPU
core that is some seconds; a GPU is measured at the recipe's own crop, since a small one would leave it idle."""


@dataclass(frozen=True)
class Cost:
    """One measured step: bytes that autograd keeps, parameters and buffers left out; seconds on the clock; the loss."""

    saved: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a training on this machine, for frames that have every sensor.

    Attributes:
        crop: side in pixels of the recipe's crop. measured: of the one that was measured.
        weights, gradients, optimizer: bytes, whatever the batch: all parameters and buffers; of the trained ones, a gradient
            and AdamW's two moments, in float32.
        fixed, frame: bytes kept for the backward pass, whatever the batch, and for each further frame of a micro-batch.
        seconds: of forward and backward pass, for each frame.
        loss: of the step on two frames.
    """

    crop: int
    measured: int
    weights: int
    gradients: int
    optimizer: int
    fixed: int
    frame: int
    seconds: float
    loss: float

    @property
    def activations(self) -> int:
        """Bytes kept for the backward pass of a single frame."""
        return self.fixed + self.frame

    def memory(self, frames: int) -> int:
        """Bytes for micro-batches of ``frames`` on one device, without what an operation needs while it runs."""
        return self.weights + self.gradients + self.optimizer + self.fixed + frames * self.frame

    def step_seconds(self, frames: int) -> float:
        """Seconds of an optimiser step of ``frames``, in as many micro-batches as may be, on one such machine."""
        return frames * self.seconds


def measuring_crop(foundation: Foundation, sensors: int, crop: int, device: str) -> int:
    """The recipe's crop where a step of one frame is affordable, else the largest that is and fills whole windows.

    Args:
        sensors: of a frame. crop: side in pixels. device: key of ``AFFORDABLE``.
    """
    weights = sum(p.numel() for p in foundation.parameters())
    side = math.isqrt(int(AFFORDABLE[device] / (weights * sensors)))
    if crop <= max(side, foundation.tile):
        return crop
    return max(1, side // foundation.tile) * foundation.tile


def estimate(step: Step, frames: Sequence[Batch], crop: int, measured: int, autocast: bool) -> Estimate:
    """Measure a step and scale it.

    Args:
        step: on the device, in training mode. Its gradients are dropped. frames: a batch of one frame and one of two like
            it, with labels, crops of at least ``measured`` pixels, on the device.
        crop, measured: sides in pixels. autocast: whether the training computes in bfloat16 where it can.
    """
    one, two = (measure(step, part(batch, measured), autocast) for batch in frames)
    step.zero_grad(set_to_none=True)
    model = step.model
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    stride = model.foundation.stride
    growth = (_whole(crop, stride) / _whole(measured, stride)) ** 2
    added = max(0, two.saved - one.saved)
    return Estimate(
        crop=crop,
        measured=measured,
        weights=sum(_bytes(t) for t in _own(model)),
        gradients=trained,
        optimizer=2 * trained,
        fixed=max(0, one.saved - added),
        frame=round(added * growth),
        # The first step also pays for what is set up once, and either may be held up by other work.
        seconds=min(one.seconds, two.seconds / 2) * growth,
        loss=two.loss,
    )


def measure(step: Step, batch: Batch, autocast: bool) -> Cost:
    """Losses and gradients of one batch, as in a training with every pass that the recipe asks for."""
    device = next(step.model.parameters()).device
    _wait(device)
    began = time.monotonic()
    with saved_bytes(step.model) as saved, torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        led = led_pass(step.model, batch, np.random.default_rng(0))
        loss = step(batch, passes(batch, step.config), led)["loss"]
    if loss.requires_grad:
        loss.backward()
    _wait(device)
    return Cost(saved[0], time.monotonic() - began, float(loss.detach()))


@contextmanager
def saved_bytes(model: MLESAM) -> Iterator[list[int]]:
    """Inside, autograd's tensors are watched. Afterwards the list holds the bytes of their storages, each counted once, without
    the model's own parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in _own(model)}
    # Storages are held until the end: the address of a freed one would come again and be counted once for two.
    seen: dict[int, torch.UntypedStorage] = {}
    found: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen.setdefault(storage.data_ptr(), storage)
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found.append(sum(storage.nbytes() for storage in seen.values()))


def passes(batch: Batch, config: TrainingConfig) -> list[dict[str, Tensor]]:
    """Rows of the further passes of a step (``training.subsets``), each with as many sensors as are left on average."""
    modalities, count = batch.modalities, len(batch.modalities)
    if not config.modality_dropout or count < 2:
        return []
    kept = min(count - 1, max(1, round(count * (1 - config.modality_dropout))))
    chosen = [[modalities[(first + i) % count] for i in range(kept)] for first in range(config.subsets)]
    return [{m: torch.ones_like(batch.frames[m], dtype=torch.bool) for m in names} for names in chosen]


def part(batch: Batch, side: int) -> Batch:
    """Of every picture and label a square of ``side`` pixels, around the middle of what is scored."""
    assert batch.labels is not None
    scored = (batch.labels != IGNORE).nonzero()[:, 1:].float()
    sizes = batch.labels.shape[-2:]
    middles = scored.mean(dim=0).tolist() if len(scored) else [have / 2 for have in sizes]
    top, left = (
        min(max(0, round(middle - side / 2)), have - side) for middle, have in zip(middles, sizes, strict=True)
    )

    def cut(values: Tensor) -> Tensor:
        return values[..., top : top + side, left : left + side].contiguous()

    broken = batch.broken
    if broken is not None:
        broken = replace(broken, images={m: cut(image) for m, image in broken.images.items()})
    return replace(batch, images={m: cut(x) for m, x in batch.images.items()}, labels=cut(batch.labels), broken=broken)


def machine(device: torch.device) -> str:
    """What this machine computes on, as a person would call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def _own(model: MLESAM) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _whole(side: int, stride: int) -> int:
    return math.ceil(side / stride) * stride


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # kernels run on after the call that started them
        torch.cuda.synchronize(device)
