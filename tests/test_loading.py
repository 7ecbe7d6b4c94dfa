"""What a step sees depends on seed, epoch and index alone: not on workers, processes, parts or interruptions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlesam.config import DataConfig
from mlesam.data import open_dataset
from mlesam.data.loading import (
    EvaluationFrames,
    StepSampler,
    TrainingFrames,
    batches,
    collate,
    evaluation_loader,
    training_loader,
)
from mlesam.errors import DataError, RequestError
from mlesam.sample import Batch, Classes, Sample
from mlesam.sensors import BUILTIN

SENSORS = {m: BUILTIN[m] for m in ("rgb", "depth", "thermal")}
CLASSES = Classes(("ground", "near", "far"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
CONFIG = DataConfig(crop=32)


def steps(frames: int = 10, batch: int = 4, start: int = 0, stop: int = 12, seed: int = 0, **how) -> list:
    return list(StepSampler(frames, batch, seed, start, stop, **how))


def flat(micro_batches: list) -> list[tuple[int, int]]:
    return [address for micro in micro_batches for address in micro]


# ---------------------------------------------------------------- which frames a step sees


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 25])
def test_every_epoch_visits_every_frame_once(batch: int) -> None:
    addresses = flat(steps(10, batch, stop=100 // batch))
    epochs = [epoch for epoch, _ in addresses]
    assert epochs == sorted(epochs)
    whole = [e for e, n in Counter(epochs).items() if n == 10]
    assert len(whole) >= 7
    for epoch in whole:
        assert sorted(index for e, index in addresses if e == epoch) == list(range(10))


def test_epochs_are_shuffled_and_differ() -> None:
    addresses = flat(steps(20, 4, stop=15))
    orders = [[i for e, i in addresses if e == epoch] for epoch in range(3)]
    assert list(range(20)) not in orders
    assert orders[0] != orders[1] != orders[2]


def test_the_seed_decides_the_order() -> None:
    assert steps(seed=1) == steps(seed=1)
    assert steps(seed=1) != steps(seed=2)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 11, 12])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_going_on_from_a_step_gives_exactly_the_tail(start: int, accumulate: int) -> None:
    whole = steps(accumulate=accumulate)
    assert steps(start=start, accumulate=accumulate) == whole[start * accumulate :]
    assert len(StepSampler(10, 4, 0, start, 12, accumulate)) == (12 - start) * accumulate


def test_a_longer_training_starts_like_a_shorter_one() -> None:
    assert steps(stop=20)[:12] == steps(stop=12)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_parts_of_a_step_are_the_step(accumulate: int) -> None:
    whole, parts = steps(batch=6), steps(batch=6, accumulate=accumulate)
    assert {len(part) for part in parts} == {6 // accumulate}
    assert [flat(parts[i * accumulate : (i + 1) * accumulate]) for i in range(12)] == whole


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_part_without_overlap(world: int, accumulate: int) -> None:
    alone = steps(batch=8, accumulate=accumulate)
    shares = [steps(batch=8, accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    for micro, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert {len(part) for part in parts} == {len(micro) // world}
        assert sorted(flat(list(parts))) == sorted(micro)
        assert len(set(flat(list(parts)))) == len(set(micro))


def test_the_sampler_can_be_walked_twice() -> None:
    sampler = StepSampler(10, 4, 0, 2, 9)
    assert list(sampler) == list(sampler)


# ---------------------------------------------------------------- loaders


@pytest.fixture
def training(dataset: Path) -> TrainingFrames:
    (dataset / "depth/train/train2.png").unlink()  # mixed presence
    frames = open_dataset(f"folder:{dataset}").frames("train")
    return TrainingFrames(frames, SENSORS, CLASSES, CONFIG, seed=0)


def loaded(frames: TrainingFrames, workers: int = 0, start: int = 0, stop: int = 4, **how) -> list[Batch]:
    sampler = StepSampler(len(frames.frames), 4, 0, start, stop, **how)
    return list(batches(training_loader(frames, sampler, workers)))


def same(first: Batch, second: Batch) -> bool:
    """Bit for bit."""
    return (
        first.ids == second.ids
        and first.tags == second.tags
        and list(first.images) == list(second.images)
        and all(torch.equal(first.images[m], second.images[m]) for m in first.images)
        and all(torch.equal(first.frames[m], second.frames[m]) for m in first.images)
        and torch.equal(first.labels, second.labels)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit_of_any_batch(workers: int, training: TrainingFrames) -> None:
    alone, helped = loaded(training), loaded(training, workers)
    assert len(alone) == len(helped) == 4
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert not same(alone[0], alone[1])


def test_a_resumed_loader_gives_the_same_batches(training: TrainingFrames) -> None:
    whole, tail = loaded(training), loaded(training, start=2)
    assert all(same(a, b) for a, b in zip(whole[2:], tail, strict=True))


def test_a_frame_is_cropped_anew_in_every_epoch(training: TrainingFrames) -> None:
    first, again, later = training[0, 3], training[0, 3], training[1, 3]
    assert isinstance(first, Sample)
    assert all(torch.equal(first.images[m], again.images[m]) for m in SENSORS)
    assert not torch.equal(first.images["rgb"], later.images["rgb"])


def test_two_frames_of_one_epoch_are_cropped_apart(training: TrainingFrames) -> None:
    twice = TrainingFrames([training.frames[0]] * 2, SENSORS, CLASSES, CONFIG, seed=0)
    assert not torch.equal(twice[0, 0].images["rgb"], twice[0, 1].images["rgb"])


def test_processes_and_parts_see_the_samples_of_a_whole_step(training: TrainingFrames) -> None:
    """Seen one by one, every sample is the same, however the step is shared out."""

    def by_id(found: list[Batch]) -> dict[str, torch.Tensor]:
        return {i: b.images["rgb"][n] for b in found for n, i in enumerate(b.ids)}

    whole = by_id(loaded(training, stop=1))
    shares = [b for rank in (0, 1) for b in loaded(training, stop=1, rank=rank, world=2)]
    parts = loaded(training, stop=1, accumulate=2)
    for other in (by_id(shares), by_id(parts)):
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[i], whole[i]) for i in whole)


def test_a_batch_knows_which_frame_has_which_sensor(training: TrainingFrames) -> None:
    for batch in loaded(training):
        lacking = [n for n, i in enumerate(batch.ids) if i == "train2"]
        assert batch.frames["depth"].tolist() == [n for n in range(4) if n not in lacking]
        assert batch.frames["rgb"].tolist() == [0, 1, 2, 3]
        assert len(batch.images["depth"]) == len(batch.frames["depth"])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_in_a_worker_arrives_as_its_one_sentence(workers: int, dataset: Path) -> None:
    path = dataset / "rgb/train/train1.png"
    path.write_bytes(path.read_bytes()[:200])
    frames = open_dataset(f"folder:{dataset}").frames("train")
    with pytest.raises(DataError) as error:
        loaded(TrainingFrames(frames, SENSORS, CLASSES, CONFIG, seed=0), workers)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert error.value.exit_status == 1


def test_what_came_before_an_error_is_still_given(dataset: Path) -> None:
    (dataset / "rgb/val/val1.png").write_bytes(b"")
    frames = open_dataset(f"folder:{dataset}").frames("val")
    found = batches(evaluation_loader(EvaluationFrames(frames, SENSORS, CLASSES, None)))
    assert next(found).ids == ("val0",)
    with pytest.raises(DataError, match=r"val1\.png"):
        next(found)


# ---------------------------------------------------------------- evaluation


def evaluated(
    dataset: Path,
    batch: int = 1,
    workers: int = 0,
    resize: int | None = None,
    classes: Classes | None = CLASSES,
) -> list[Batch]:
    frames = open_dataset(f"folder:{dataset}").frames("test")
    return list(batches(evaluation_loader(EvaluationFrames(frames, SENSORS, classes, resize), batch, workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_whole_frames_in_order(workers: int, dataset: Path) -> None:
    found = evaluated(dataset, batch=2, workers=workers)
    assert [b.ids for b in found] == [("test0", "test1"), ("test2",)]
    assert found[0].tags == (("night",), ())
    stored = np.asarray(Image.open(dataset / "labels/test/test1.png"))
    np.testing.assert_array_equal(found[0].labels[1], stored)
    assert found[0].images["rgb"].shape == (2, 3, 48, 64)


def test_frames_of_different_sizes_are_grouped_and_none_is_lost(dataset: Path) -> None:
    for folder in ("rgb", "depth", "thermal", "labels"):
        path = dataset / folder / "test/test1.png"
        with Image.open(path) as picture:
            array = np.asarray(picture)
        Image.fromarray(np.ascontiguousarray(array[:40, :50])).save(path)
    found = evaluated(dataset, batch=3)
    assert [b.ids for b in found] == [("test0", "test2"), ("test1",)]
    assert [b.size for b in found] == [(48, 64), (40, 50)]
    assert [tuple(b.labels.shape[1:]) for b in found] == [(48, 64), (40, 50)]


def test_labels_of_different_sizes_are_grouped_also_where_the_frames_are_not(dataset: Path) -> None:
    """Resized frames of 48 x 64 and 96 x 128 have one size, and their labels have two."""
    for folder in ("rgb", "depth", "thermal", "labels"):
        path = dataset / folder / "test/test1.png"
        with Image.open(path) as picture:
            array = np.asarray(picture).repeat(2, 0).repeat(2, 1)
        Image.fromarray(array).save(path)
    found = evaluated(dataset, batch=3, resize=36)
    assert [b.size for b in found] == [(36, 48), (36, 48)]
    assert [tuple(b.labels.shape) for b in found] == [(2, 48, 64), (1, 96, 128)]


def test_resized_frames_keep_their_labels_size(dataset: Path) -> None:
    batch = evaluated(dataset, resize=96)[0]
    assert batch.size == (96, 128)
    assert tuple(batch.labels.shape) == (1, 48, 64)


def test_frames_without_labels_are_given_without_them(dataset: Path) -> None:
    (dataset / "labels/test/test1.png").unlink()
    found = evaluated(dataset, batch=3)
    assert [(b.ids, b.labels is None) for b in found] == [(("test0", "test2"), False), (("test1",), True)]
    assert [b.labels for b in evaluated(dataset, classes=None)] == [None, None, None]


def test_collate_lets_an_error_through() -> None:
    error = DataError("broken")
    sample = Sample({"rgb": torch.zeros(3, 4, 4)})
    assert collate([sample, error]) is error
    assert [len(b) for b in collate([sample, sample])] == [2]


# ---------------------------------------------------------------- batches


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="frame 'a' has no sensor at all"):
        Batch.stack([Sample({}, id="a")])
    with pytest.raises(RequestError, match="no sensor was given"):
        Batch.of({})


def test_a_batch_of_two_sizes_is_refused_with_both() -> None:
    samples = [Sample({"rgb": torch.zeros(3, 4, 6)}, id="a"), Sample({"rgb": torch.zeros(3, 8, 6)}, id="b")]
    with pytest.raises(DataError, match=r"rgb of frame 'a' is 6x4, rgb of frame 'b' is 6x8"):
        Batch.stack(samples)


def test_a_batch_of_two_channel_counts_is_refused() -> None:
    samples = [Sample({"fog": torch.zeros(n, 4, 4)}, id=str(n)) for n in (2, 3)]
    with pytest.raises(DataError, match="fog has 2 channels in one frame and 3 in another"):
        Batch.stack(samples)


def test_a_selected_batch_has_only_the_chosen_sensors() -> None:
    samples = [
        Sample({"rgb": torch.zeros(3, 4, 4), "depth": torch.ones(1, 4, 4)}, id="a"),
        Sample({"depth": torch.full((1, 4, 4), 2.0)}, id="b"),
    ]
    batch = Batch.stack(samples).select(["depth", "lidar"])
    assert batch.modalities == ("depth",)
    assert batch.frames["depth"].tolist() == [0, 1]
    assert batch.images["depth"][:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert len(batch) == 2
