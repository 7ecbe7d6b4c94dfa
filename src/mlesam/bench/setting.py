"""What is measured on: a model, a batch of random pictures and where it runs, all of them drawn from one seed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mlesam.config import ModelConfig
from mlesam.errors import RequestError
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Batch
from mlesam.sensors.spec import BUILTIN, canonical_order

SENSORS = ("rgb", "depth", "event", "lidar", "thermal", "radar")
"""In the order in which they come in; the first four are DELIVER's."""
PRECISIONS = ("fp32", "bf16")
NOISE = 0.02
"""Standard deviation of what starts at zero: a fresh expert adds exactly nothing, and a wrong one could not be told from it."""


@dataclass(frozen=True)
class Setting:
    """Conditions of a case.

    Attributes:
        preset: the foundation. size: side of the pictures in pixels. sensors: how many of ``SENSORS``. batch: frames.
        changes: further fields of the model's configuration.
    """

    preset: str = "tiny"
    size: int = 256
    sensors: int = 4
    classes: int = 25
    rank: int = 32
    batch: int = 1
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def suffix(self) -> str:
        """What every result's name ends with."""
        return f"@{self.preset}-{self.size}"

    @property
    def channels(self) -> dict[str, int]:
        """``{modality: channels}``, canonical order."""
        if not 1 <= self.sensors <= len(SENSORS):
            raise RequestError(f"a case has {self.sensors} sensors, but it must have 1 to {len(SENSORS)}.")
        return {m: BUILTIN[m].channels for m in canonical_order(SENSORS[: self.sensors])}

    def with_(self, **values: Any) -> Setting:
        return replace(self, **values)

    def describe(self) -> str:
        frames = f"batch {self.batch}, {self.size}x{self.size}, sensors {', '.join(self.channels)}"
        return f"{self.preset}, {frames}, {self.classes} classes, rank {self.rank}; {self.clock}"

    @property
    def counts_cpu_time(self) -> bool:
        """With a single thread its own time counts, so that other work on the machine does not."""
        return self.device == "cpu" and self.threads == 1

    def now(self) -> float:
        """Seconds on the clock that counts."""
        return time.process_time() if self.counts_cpu_time else time.perf_counter()

    @property
    def clock(self) -> str:
        if self.device != "cpu":
            return f"time on {self.device}"
        return "CPU time of 1 thread" if self.counts_cpu_time else f"time with {self.threads} CPU threads"

    def model(self) -> MLESAM:
        """The model in evaluation mode, with noise in what starts at zero: experts, aligners, biases."""
        config = ModelConfig(foundation=self.preset, rank=self.rank, **dict(self.changes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = MLESAM(self.channels, self.classes, config, self.seed)
            with torch.no_grad():
                for name, parameter in made.named_parameters():
                    if not name.startswith("foundation.") and not parameter.any():
                        nn.init.normal_(parameter, std=NOISE)
        return made.eval().to(self.device)

    def images(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.size, self.size)
        return {
            m: torch.randn(self.batch, c, *shape, generator=generator).to(self.device) for m, c in self.channels.items()
        }

    def frames(self) -> Batch:
        """The batch, with labels."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch, self.size, self.size)
        labels = torch.randint(0, self.classes, shape, generator=generator)
        return Batch.of(self.images(), labels.to(self.device))

    def autocast(self, precision: str) -> AbstractContextManager:
        """bfloat16 where a product allows it, for ``bf16``; weights stay in float32."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def wait(self) -> None:
        """Until the device has done what it was told to."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
