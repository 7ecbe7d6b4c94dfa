"""Suite ``data``: loading of training frames against what a training step consumes of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mlesam.bench.case import Case, Subject, measure_cases
from mlesam.bench.measure import Run
from mlesam.bench.setting import Setting
from mlesam.bench.training import training
from mlesam.config import load_recipe
from mlesam.data.loading import StepSampler, TrainingFrames, batches, training_loader
from mlesam.training.estimate import measuring_crop
from mlesam.training.prepare import prepare
from mlesam.world import WorldOptions, write_world

FRAMES = 10
"""Of the dataset that is read, seven of them for training. They are read over and over, so the disk is not measured."""
SENSORS = "[rgb, depth, event, lidar]"
WORKERS, BATCHES = 2, 8


def loading(setting: Setting, folder: str, workers: int, count: int) -> Run:
    """Decoded, transformed and stacked batches of a dataset; ``count`` of them in one go."""
    overrides = {"data.dataset": f"folder:{folder}", "data.crop": str(setting.size), "data.modalities": SENSORS}
    prepared = prepare(load_recipe(None, overrides))
    frames = TrainingFrames(prepared.train, prepared.sensors, prepared.classes, prepared.recipe.data, setting.seed)

    def run() -> None:
        sampler = StepSampler(len(prepared.train), setting.batch, setting.seed, 0, count)
        for _ in batches(training_loader(frames, sampler, workers)):
            pass

    return run


def data(setting: Setting, rounds: int, advance: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """One row: seconds of loading a frame against seconds of training on it, on crops that the machine can bear.

    Where one thread's CPU time is counted, loading happens in this process; else in two others, as in a training.
    """
    foundation = setting.model().foundation
    side = measuring_crop(foundation, setting.sensors, setting.size, torch.device(setting.device).type)
    share = (side / setting.size) ** 2
    workers, count = (0, 1) if setting.counts_cpu_time else (WORKERS, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_world(root, WorldOptions(frames=FRAMES, size=setting.size, seed=setting.seed))
        where = f"{workers} workers" if workers else "in one process"
        load = Subject(
            "loading", f"frames read from PNG, cropped, changed and stacked, {where}; per frame",
            partial(loading, folder=str(root), workers=workers, count=count), units=count * setting.batch,
        )  # fmt: skip
        scaled = (
            ""
            if side == setting.size
            else f", on crops of {side} pixels and scaled by pixels: a lower bound of its time"
        )
        step = Subject(
            "training", f"a training step, fp32, per frame{scaled}",
            partial(training, precision="fp32"), units=setting.batch * share, varied={"size": side},
        )  # fmt: skip
        return measure_cases([Case("loading", load, step)], setting, rounds, advance)
