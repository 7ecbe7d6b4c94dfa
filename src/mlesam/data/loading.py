"""Loaders. What a training step sees depends on (seed, epoch, index) alone, never on workers or interruptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from mlesam.config import DataConfig
from mlesam.data.dataset import Frame
from mlesam.data.faulty import earlier_values
from mlesam.data.reading import read_frame
from mlesam.data.transforms import evaluation_sample, training_sample
from mlesam.errors import MlesamError
from mlesam.sample import Batch, Classes, Sample
from mlesam.sensors.spec import SensorSpec


class TrainingFrames(TorchDataset):
    """Random crops, addressed by (epoch, index). An error is returned rather than raised: see :func:`batches`."""

    def __init__(
        self,
        frames: Sequence[Frame],
        sensors: Mapping[str, SensorSpec],
        classes: Classes,
        config: DataConfig,
        seed: int,
    ) -> None:
        self.frames, self.sensors, self.classes = frames, sensors, classes
        self.config, self.seed = config, seed

    def __getitem__(self, address: tuple[int, int]) -> Sample | MlesamError:
        epoch, index = address
        try:
            sample = read_frame(self.frames[index], self.sensors, self.classes)
            rng = np.random.default_rng([self.seed, epoch, index])
            earlier = partial(earlier_values, self.frames, self.sensors, index)
            return training_sample(sample, self.sensors, self.config, rng, earlier)
        except MlesamError as error:
            return error


class StepSampler(Sampler):
    """Micro-batches of (epoch, index) for the steps ``start`` to ``stop``, over as many shuffled epochs as that takes.

    Every process computes the same global order and takes its own share of each micro-batch.
    """

    def __init__(
        self,
        frames: int,
        batch: int,
        seed: int,
        start: int,
        stop: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.frames, self.batch, self.seed = frames, batch, seed
        self.start, self.stop, self.accumulate, self.rank, self.world = start, stop, accumulate, rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        size = self.batch // self.accumulate
        for micro in range(self.start * self.accumulate, self.stop * self.accumulate):
            addresses = []
            for position in range(micro * size, (micro + 1) * size):
                if position // self.frames != epoch:
                    epoch = position // self.frames
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.frames)
                addresses.append((epoch, int(order[position % self.frames])))
            yield addresses[self.rank :: self.world]


class EvaluationFrames(TorchDataset):
    """Whole frames in order."""

    def __init__(
        self, frames: Sequence[Frame], sensors: Mapping[str, SensorSpec], classes: Classes | None, resize: int | None
    ) -> None:
        self.frames, self.sensors, self.classes, self.resize = frames, sensors, classes, resize

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample | MlesamError:
        try:
            sample = read_frame(self.frames[index], self.sensors, self.classes)
            return evaluation_sample(sample, self.sensors, self.resize)
        except MlesamError as error:
            return error


def collate(samples: Sequence[Sample | MlesamError]) -> list[Batch] | MlesamError:
    """Batches of equal size, in order of first appearance; an error passes through."""
    groups: dict[tuple, list[Sample]] = {}
    for sample in samples:
        if isinstance(sample, MlesamError):
            return sample
        image = next(iter(sample.images.values()))
        label = None if sample.label is None else tuple(sample.label.shape)
        groups.setdefault((tuple(image.shape[-2:]), label), []).append(sample)
    return [Batch.stack(group) for group in groups.values()]


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader. An error in a worker is raised here as it was, without the worker's traceback."""
    for item in loader:
        if isinstance(item, MlesamError):
            raise item
        yield from item


def training_loader(dataset: TrainingFrames, sampler: StepSampler, workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(dataset: EvaluationFrames, batch: int = 1, workers: int = 0) -> DataLoader:
    return DataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=collate)
