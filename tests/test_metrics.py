"""The one metric. torchmetrics and scipy are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from mlesam.evaluation.metrics import (
    block_bootstrap,
    class_iou,
    confusion_matrix,
    mean_iou,
    number,
    paired_bootstrap,
    scores,
)
from mlesam.sample import IGNORE

CLASSES = 6
NAMES = [f"class{i}" for i in range(CLASSES)]


def random_maps(seed: int, absent: tuple[int, ...] = (4,), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Prediction and truth (3, 20, 30) that agree on most pixels; ``absent`` classes are in neither."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([c for c in range(CLASSES) if c not in absent])
    truth = kinds[torch.randint(len(kinds), (3, 20, 30), generator=generator)]
    other = kinds[torch.randint(len(kinds), truth.shape, generator=generator)]
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, other)
    truth = truth.masked_fill(torch.rand(truth.shape, generator=generator) < ignored, IGNORE)
    return predicted, truth


@pytest.mark.parametrize("ignored", [0.0, 0.2, 0.95])
@pytest.mark.parametrize("absent", [(), (4,), (0, 1, 5)])
def test_miou_iou_and_accuracy_are_those_of_torchmetrics(absent: tuple[int, ...], ignored: float) -> None:
    predicted, truth = random_maps(1, absent, ignored)
    confusion = confusion_matrix(predicted, truth, CLASSES)
    oracle = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE)(predicted, truth)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, oracle)
    found = scores(confusion.numpy(), NAMES)
    by_class = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORE)(predicted, truth)
    for c, name in enumerate(NAMES):
        if c in absent:
            assert found["iou"][name] is None
        else:
            assert found["iou"][name] == pytest.approx(by_class[c].item(), abs=2e-6)
    occurring = [by_class[c].item() for c in range(CLASSES) if c not in absent]
    assert found["miou"] == pytest.approx(sum(occurring) / len(occurring), abs=2e-6)
    macro = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=IGNORE)(predicted, truth)
    assert found["miou"] == pytest.approx(macro.item(), abs=2e-6)
    accuracy = MulticlassAccuracy(CLASSES, average="micro", ignore_index=IGNORE)(predicted, truth)
    assert found["pixel_accuracy"] == pytest.approx(accuracy.item(), abs=2e-6)
    assert found["miou_absent_as_zero"] == pytest.approx(sum(occurring) / CLASSES, abs=2e-6)


def test_a_case_counted_by_hand() -> None:
    truth = torch.tensor([[0, 0, 0, 1], [1, IGNORE, 2, IGNORE]])
    predicted = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 0]])
    confusion = confusion_matrix(predicted, truth, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert scores(confusion.numpy(), ["a", "b", "c", "d"]) == {
        "miou": number((2 / 4 + 1 / 3 + 1) / 3),
        "iou": {"a": 0.5, "b": number(1 / 3), "c": 1.0, "d": None},
        "pixel_accuracy": number(4 / 6),
        "miou_absent_as_zero": number((2 / 4 + 1 / 3 + 1) / 4),
    }


def test_a_class_that_is_only_predicted_or_only_missed_counts_as_zero() -> None:
    predicted, truth = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 0])
    iou = class_iou(confusion_matrix(predicted, truth, 4).numpy())
    np.testing.assert_allclose(iou, [1 / 3, 0.0, 0.0, np.nan])
    assert mean_iou(confusion_matrix(predicted, truth, 4).numpy()) == pytest.approx(1 / 9)


def test_where_nothing_is_scored_every_number_is_null() -> None:
    truth = torch.full((4, 4), IGNORE)
    found = scores(confusion_matrix(torch.zeros_like(truth), truth, 2).numpy(), ["a", "b"])
    assert found == {"miou": None, "iou": {"a": None, "b": None}, "pixel_accuracy": None, "miou_absent_as_zero": None}


def test_counts_beyond_32_bits_stay_exact() -> None:
    confusion = np.array([[3_000_000_000, 1], [0, 2_147_483_648]], dtype=np.int64)
    total = np.stack([confusion] * 4).sum(axis=0)
    assert class_iou(total)[0] == pytest.approx(12e9 / (12e9 + 4), abs=0, rel=1e-12)


def test_the_metric_is_over_the_whole_split_and_not_the_mean_of_its_frames() -> None:
    predicted, truth = random_maps(2)
    frames = np.stack([confusion_matrix(p, t, CLASSES).numpy() for p, t in zip(predicted, truth, strict=True)])
    # A frame that is all wrong but small in scored pixels must weigh little.
    wrong = torch.full((5, 5), 0), torch.full((5, 5), 1)
    frames = np.concatenate([frames, confusion_matrix(*wrong, CLASSES).numpy()[None]])
    metric = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=IGNORE)
    metric.update(predicted, truth)
    metric.update(*wrong)
    whole = float(mean_iou(frames.sum(axis=0)))
    assert whole == pytest.approx(metric.compute().item(), abs=1e-6)
    assert float(mean_iou(frames).mean()) < whole - 0.05


def test_mean_iou_takes_any_number_of_matrices_at_once() -> None:
    stack = np.stack([confusion_matrix(*random_maps(s, (s % CLASSES,)), CLASSES).numpy() for s in range(4)]).reshape(
        2, 2, 6, 6
    )
    together = mean_iou(stack)
    assert together.shape == (2, 2)
    for i, j in np.ndindex(2, 2):
        assert together[i, j] == pytest.approx(float(mean_iou(stack[i, j])))
    assert np.isnan(mean_iou(np.zeros((3, 3), dtype=np.int64)))


# ---------------------------------------------------------------- confidence intervals


def frames_with(accuracies: np.ndarray, pixels: int = 1000) -> np.ndarray:
    """One 2x2 matrix per frame, with the given share of right pixels in each class."""
    right = np.round(accuracies * pixels).astype(np.int64)
    return np.stack([np.array([[r, pixels - r], [pixels - r, r]]) for r in right])


@pytest.mark.parametrize("block", [1, 5, 100])
def test_frames_that_are_all_alike_leave_no_doubt(block: int) -> None:
    low, high = block_bootstrap(frames_with(np.full(20, 0.8)), block)
    assert low == high == pytest.approx(0.8 / 1.2)


def test_the_interval_grows_with_the_variance_of_the_frames_and_shrinks_with_their_number() -> None:
    noise = np.random.default_rng(0).standard_normal(400)

    def width(spread: float, frames: int) -> float:
        low, high = block_bootstrap(frames_with(np.clip(0.7 + spread * noise[:frames], 0, 1)), 4)
        assert low < high
        return high - low

    assert width(0.02, 50) < width(0.05, 50) < width(0.1, 50)
    assert width(0.1, 400) < width(0.1, 100) < width(0.1, 25)


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    """Ten scenes of ten equal frames are ten observations and not a hundred."""
    scenes = np.repeat(0.7 + 0.1 * np.random.default_rng(1).standard_normal(10), 10)
    matrices = frames_with(scenes)
    (low, high), (naive_low, naive_high) = block_bootstrap(matrices, 10), block_bootstrap(matrices, 1)
    assert (high - low) > 2 * (naive_high - naive_low)


def test_a_block_is_made_of_neighbours_and_goes_round_at_the_end() -> None:
    """Good and bad frames by turns: every block of two holds one of each, wherever it begins."""
    matrices = frames_with(np.tile([0.5, 0.9], 15))
    low, high = block_bootstrap(matrices, 2)
    assert low == high == pytest.approx(float(mean_iou(matrices.sum(axis=0))))
    low, high = block_bootstrap(matrices, 1)
    assert high - low > 0.05


def test_with_blocks_of_one_frame_it_is_the_ordinary_bootstrap_of_scipy() -> None:
    matrices = frames_with(np.clip(0.7 + 0.1 * np.random.default_rng(2).standard_normal(60), 0, 1))

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return mean_iou(matrices[index.astype(int)].sum(axis=index.ndim - 1 if axis == -1 else axis))

    oracle = bootstrap(
        (np.arange(60),),
        statistic,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(3),
        vectorized=True,
    ).confidence_interval
    low, high = block_bootstrap(matrices, 1, draws=4000)
    assert low == pytest.approx(oracle.low, abs=0.003)
    assert high == pytest.approx(oracle.high, abs=0.003)
    assert low < float(mean_iou(matrices.sum(axis=0))) < high


def test_the_same_seed_gives_the_same_interval_and_a_higher_level_a_wider_one() -> None:
    matrices = frames_with(np.linspace(0.5, 0.9, 30))
    assert block_bootstrap(matrices, 3, seed=1) == block_bootstrap(matrices, 3, seed=1)
    assert block_bootstrap(matrices, 3, seed=1) != block_bootstrap(matrices, 3, seed=2)
    low, high = block_bootstrap(matrices, 3, level=0.5)
    wide_low, wide_high = block_bootstrap(matrices, 3, level=0.99)
    assert wide_low < low < high < wide_high


def test_a_paired_difference_is_certain_where_unpaired_scores_are_not() -> None:
    """Frames differ far more than the two models do, which are 0.05 apart on every one of them."""
    shares = np.clip(0.6 + 0.15 * np.random.default_rng(2).standard_normal(60), 0.2, 0.9)
    better, worse = frames_with(shares + 0.05), frames_with(shares)
    low, high = paired_bootstrap(better, worse, 1)
    gain = float(mean_iou(better.sum(axis=0)) - mean_iou(worse.sum(axis=0)))
    assert 0 < low <= gain <= high
    alone = block_bootstrap(better, 1)
    assert (high - low) < 0.2 * (alone[1] - alone[0])
    assert paired_bootstrap(worse, better, 1) == pytest.approx((-high, -low))
    assert paired_bootstrap(better, better, 1) == (0, 0)
