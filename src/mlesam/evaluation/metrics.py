"""One metric: a confusion matrix in int64 over the whole split, at the label's own size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlesam.sample import IGNORE


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts, rows truth and columns prediction; pixels labelled ``IGNORE`` do not count.

    Args:
        predicted, truth: integer tensors of one shape.
    """
    scored = truth != IGNORE
    code = truth[scored].long() * num_classes + predicted[scored].long()
    return torch.bincount(code, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: np.ndarray, reached: Sequence[bool] | None = None) -> np.ndarray:
    """(..., C, C) counts to (..., C) intersection over union; NaN for a class in neither truth nor prediction.

    Args:
        reached: which classes another dataset's labels can say, see :mod:`mlesam.data.class_maps`. Elsewhere the IoU is NaN: it
            could only be 0. A prediction of such a class still counts against the class that is there. None: all.
    """
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - hit
    counted = union > 0 if reached is None else (union > 0) & np.asarray(reached)
    return np.divide(hit, union, out=np.full_like(hit, np.nan), where=counted)


def mean_iou(confusion: np.ndarray, reached: Sequence[bool] | None = None) -> np.ndarray:
    """(..., C, C) counts to (...) mean IoU over the classes that occur; NaN where none does."""
    iou = class_iou(confusion, reached)
    occurs = ~np.isnan(iou)
    count = occurs.sum(axis=-1)
    total = np.where(occurs, iou, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def scores(confusion: np.ndarray, classes: Sequence[str], reached: Sequence[bool] | None = None) -> dict[str, Any]:
    """mIoU, IoU by class and pixel accuracy as ``metrics.json`` holds them; what does not exist is null.

    ``miou_absent_as_zero`` counts a class that does not occur as 0, the rule of CMNeXt and its successors.
    """
    iou = class_iou(confusion, reached)
    total = int(confusion.sum())
    zeros = np.nan_to_num(iou if reached is None else iou[np.asarray(reached)])
    return {
        "miou": number(float(mean_iou(confusion, reached))),
        "iou": {name: number(float(v)) for name, v in zip(classes, iou, strict=True)},
        "pixel_accuracy": number(int(np.trace(confusion)) / total) if total else None,
        "miou_absent_as_zero": number(float(zeros.mean())) if total else None,
    }


def number(value: float) -> float | None:
    """JSON has no NaN: null says that there is no such number."""
    return None if math.isnan(value) else round(value, 6)


def block_bootstrap(
    confusions: np.ndarray, block: int, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the mean IoU when neighbouring frames are alike.

    Args:
        confusions: (F, C, C), one matrix per frame, in recording order.
        block: consecutive frames that are drawn together (circular block bootstrap, Politis and Romano 1992).

    Returns:
        Lower and upper bound.
    """
    low, high = np.nanquantile(resampled(confusions, block, seed, draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    confusions: np.ndarray, others: np.ndarray, block: int, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the mean IoU of ``confusions`` less that of ``others``, on the same frames drawn together."""
    difference = resampled(confusions, block, seed, draws) - resampled(others, block, seed, draws)
    low, high = np.nanquantile(difference, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(confusions: np.ndarray, block: int, seed: int, draws: int) -> np.ndarray:
    """(draws,) mean IoU of frames drawn anew; the same seed draws the same frames."""
    frames = len(confusions)
    block = max(1, min(block, frames))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, frames, size=(draws, math.ceil(frames / block)))
    picked = ((starts[..., None] + np.arange(block)) % frames).reshape(draws, -1)[:, :frames]
    counts = np.zeros((draws, frames))
    np.add.at(counts, (np.arange(draws)[:, None], picked), 1.0)
    flat = counts @ confusions.reshape(frames, -1).astype(np.float64)
    return mean_iou(flat.reshape(draws, *confusions.shape[1:]))
