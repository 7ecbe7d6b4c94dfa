"""How much a confidence is worth: calibration error, and accuracy over the pixels that the model is surest of.

Both come from a histogram of the pixels by confidence, which takes as much memory for a million frames as for one. The
confidence of a pixel is its largest probability; pixels without a label do not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlesam.evaluation.metrics import number
from mlesam.sample import IGNORE

BINS = 1500
"""Bins of equal width between 0 and 1, a multiple of ``ECE_BINS``. Pixels of one bin count as equally sure."""
ECE_BINS = 15
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def histogram(confidence: Tensor, right: Tensor, bins: int = BINS) -> np.ndarray:
    """(N,) confidences and (N,) bool to (3, bins) float64: pixels, right ones, and the sum of their confidences.

    Bin k holds the confidences in (k / bins, (k + 1) / bins], as in Guo et al. 2017 (equation 2).
    """
    precise = confidence.double()
    place = (torch.ceil(precise * bins).long() - 1).clamp(0, bins - 1)
    weights = (torch.ones_like(precise), right.double(), precise)
    return np.stack([torch.bincount(place, weights=w, minlength=bins).cpu().numpy() for w in weights])


def coarse(counts: np.ndarray) -> np.ndarray:
    """(3, bins) to (3, ECE_BINS), exactly."""
    return counts.reshape(3, ECE_BINS, -1).sum(axis=-1)


def calibration_error(counts: np.ndarray) -> float:
    """Expected calibration error, 0 to 1: by how much confidence and accuracy differ in a bin, in the mean over the pixels.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (equation 3), with 15 bins; NaN where there are no pixels.
    """
    pixels, right, confidence = coarse(counts)
    return float(np.abs(right - confidence).sum() / pixels.sum()) if pixels.any() else float("nan")


def selective_accuracy(counts: np.ndarray, coverages: Sequence[float] = COVERAGES) -> list[float]:
    """Accuracy over the most confident pixels, by their share of all pixels (above 0, up to 1); NaN without pixels.

    Where the share ends inside a bin, the part of the bin that is in has the accuracy of the whole bin.
    """
    pixels, right = _surest_first(counts)
    kept = pixels[-1] * np.asarray(coverages)
    return [float(r / k) if k else float("nan") for r, k in zip(np.interp(kept, pixels, right), kept, strict=True)]


def risk_coverage_area(counts: np.ndarray) -> float:
    """Area under the share of wrong pixels among the surest, over coverages from 0 to 1 (AURC, Geifman et al. 2019).

    The curve is that of :func:`selective_accuracy`, and the area under it exact. With n pixels in a bin, e of them wrong,
    N and E in the bins before it, a bin gives the integral of (E + e x / n) / (N + x) over x from 0 to n. 0 is the best.
    """
    pixels, right = _surest_first(counts)
    if not pixels[-1]:
        return float("nan")
    wrong = pixels - right
    before, n, errors = pixels[:-1], np.diff(pixels), np.diff(wrong)
    known = n > 0
    before, n, errors, earlier = before[known], n[known], errors[known], wrong[:-1][known]
    grown = np.log1p(np.divide(n, before, out=np.zeros_like(n), where=before > 0))
    return float((errors + (earlier - errors * before / n) * grown).sum() / pixels[-1])


def _surest_first(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative numbers of pixels and of right ones, from 0, the surest bin first."""
    pixels, right = (np.concatenate([[0.0], np.cumsum(row[::-1])]) for row in counts[:2])
    return pixels, right


def reliability(counts: np.ndarray) -> dict[str, list[float | None]]:
    """A reliability diagram: for each of 15 bins the share of the pixels, their mean confidence, and their accuracy."""
    pixels, right, confidence = coarse(counts)

    def mean(total: np.ndarray) -> list[float | None]:
        return [number(float(t / n)) if n else None for t, n in zip(total, pixels, strict=True)]

    share = [number(float(n / pixels.sum())) if pixels.any() else None for n in pixels]
    return {"share": share, "confidence": mean(confidence), "accuracy": mean(right)}


class Confidences:
    """The histograms of one row of a result, over all frames (None) and over the frames of each tag.

    Args:
        temperature: of the row's sensors; None where the run is not calibrated.
    """

    def __init__(self, temperature: float | None = None) -> None:
        self.temperature = temperature
        self.before: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros((3, ECE_BINS)))
        self.after: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros((3, BINS)))

    def add(
        self,
        tags: Iterable[str],
        logits: Tensor,
        predicted: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        calibrated: Tensor | None = None,
    ) -> None:
        """Count a frame: (C, H, W) logits, (H, W) predictions and labels, and the temperature of the sensors it has.

        ``calibrated``: (C, H, W) logits that the temperature was applied to already, in place of ``logits / temperature``.
        """
        if calibrated is None and temperature != 1.0:
            calibrated = logits / temperature
        scored = labels != IGNORE
        right = (predicted == labels)[scored]
        plain = logits.softmax(dim=0).amax(dim=0)[scored]
        before = after = histogram(plain, right)
        if calibrated is not None:
            after = histogram(calibrated.softmax(dim=0).amax(dim=0)[scored], right)
        for group in (None, *tags):
            self.before[group] += coarse(before)
            self.after[group] += after

    def scores(self, tag: str | None = None) -> dict[str, Any]:
        """The fields of a row in ``metrics.json``; what does not exist is null."""
        before, after = self.before[tag], self.after[tag]
        accuracies = zip(COVERAGES, selective_accuracy(after), strict=True)
        return {
            "temperature": None if self.temperature is None else round(self.temperature, 6),
            "ece": number(calibration_error(after)),
            "ece_uncalibrated": number(calibration_error(before)),
            "aurc": number(risk_coverage_area(after)),
            "selective": {str(coverage): number(accuracy) for coverage, accuracy in accuracies},
        }

    def reliability(self) -> dict[str, dict[str, list[float | None]]]:
        """Reliability diagrams over all frames."""
        return {"calibrated": reliability(self.after[None]), "uncalibrated": reliability(self.before[None])}
