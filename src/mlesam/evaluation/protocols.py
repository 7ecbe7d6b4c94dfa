"""Protocols: fixed ways to test with missing sensors.

``subsets`` tests every non-empty subset of the sensors; a sensor outside the subset is absent, not zero. Each frame goes
through the trunk once: the sensors meet only in the router, so every subset is decoded from the same features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mlesam.data.dataset import Frame
from mlesam.errors import DataError
from mlesam.evaluation.metrics import confusion_matrix, mean_iou, number, scores
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Batch


@dataclass(frozen=True)
class Condition:
    """One row of a result: which sensors were there, and for each frame its confusion matrix and whom the router trusted.

    Attributes:
        confusions: (F, C, C) int64. counted: (F,) bool, False where a frame has none of the sensors.
        shares: (F, M) float64, each sensor's effective share in the fused maps, averaged over levels. The columns are all
            the sensors that the protocol tests, in its order. A row sums to 1, and is 0 where the frame is not counted.
    """

    present: tuple[str, ...]
    confusions: np.ndarray
    counted: np.ndarray
    shares: np.ndarray

    @property
    def name(self) -> str:
        return "+".join(self.present)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets: single sensors first, the full set last."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


@torch.inference_mode()
def evaluate_subsets(
    model: MLESAM,
    batches: Iterable[Batch],
    modalities: Sequence[str],
    frames: Sequence[Frame],
    advance: Callable[[int], None] = lambda done: None,
) -> list[Condition]:
    """Run the ``subsets`` protocol.

    Args:
        batches: the frames, in any grouping; every one with a label.
        modalities: the sensors whose subsets are tested.
        advance: called with the number of frames done since the last call.
    """
    classes = model.num_classes
    device = next(model.parameters()).device
    index = {frame.id: i for i, frame in enumerate(frames)}
    chosen = subsets(modalities)
    confusions = {s: np.zeros((len(frames), classes, classes), dtype=np.int64) for s in chosen}
    counted = {s: np.zeros(len(frames), dtype=bool) for s in chosen}
    shares = {s: np.zeros((len(frames), len(modalities))) for s in chosen}
    columns = [model.modalities.index(m) for m in modalities]
    for batch in batches:
        batch = batch.to(device)
        if batch.labels is None:
            raise DataError(f"frame {batch.ids[0]!r} has no label; only labelled frames can be scored.")
        features = model.encode(batch)
        for subset in chosen:
            if not set(subset) & set(features.modalities):
                continue
            part = features.select(subset)
            covered = part.covered()
            if not bool(covered.all()):
                part = part.of_frames(covered)
            output = model.decode(part)
            predicted = predict(output.logits, (batch.labels.shape[-2], batch.labels.shape[-1]))
            share = output.shares.double().mean(dim=1)[:, columns].cpu().numpy()
            for row, position in enumerate(torch.nonzero(covered)[:, 0].tolist()):
                frame = index[batch.ids[position]]
                confusions[subset][frame] = (
                    confusion_matrix(predicted[row], batch.labels[position], classes).cpu().numpy()
                )
                counted[subset][frame] = True
                shares[subset][frame] = share[row]
        advance(len(batch))
    return [Condition(s, confusions[s], counted[s], shares[s]) for s in chosen]


def predict(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, h, w) logits to (B, H, W) class ids at the label's own size."""
    if tuple(logits.shape[-2:]) != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)


def metrics(
    conditions: Sequence[Condition],
    frames: Sequence[Frame],
    *,
    dataset: str,
    split: str,
    modalities: Sequence[str],
    classes: Sequence[str],
    protocol: str,
    seed: int,
) -> dict[str, Any]:
    """The content of ``metrics.json``: over all frames, and again for each tag over its own frames.

    The last condition is the one with all sensors: ``confusion`` (C x C counts, rows truth) and ``frame_miou`` (by frame id)
    are its.
    """
    everything = np.ones(len(frames), dtype=bool)
    tags = sorted({tag for frame in frames for tag in frame.tags})
    result: dict[str, Any] = {
        "dataset": dataset,
        "split": split,
        "frames": len(frames),
        "modalities": list(modalities),
        "classes": list(classes),
        "protocol": protocol,
        "seed": seed,
        **_table(conditions, everything, classes, modalities),
        "tags": {},
    }
    for tag in tags:
        own = np.array([tag in frame.tags for frame in frames])
        result["tags"][tag] = {"frames": int(own.sum()), **_table(conditions, own, classes, modalities)}
    if conditions:
        full = conditions[-1]
        result["frame_miou"] = {
            frame.id: number(float(value)) for frame, value in zip(frames, mean_iou(full.confusions), strict=True)
        }
        result["confusion"] = full.confusions.sum(axis=0).tolist()
    return result


def _table(
    conditions: Sequence[Condition], own: np.ndarray, classes: Sequence[str], modalities: Sequence[str]
) -> dict[str, Any]:
    rows = []
    for condition in conditions:
        chosen = own & condition.counted
        score = scores(condition.confusions[chosen].sum(axis=0), classes)
        # A frame that lacks a sensor gives it no trust, so the means of a row sum to 1 as each frame's shares do.
        mean = condition.shares[chosen].mean(axis=0) if chosen.any() else np.full(len(modalities), np.nan)
        weights = {m: number(float(w)) for m, w in zip(modalities, mean, strict=True) if m in condition.present}
        row = {"name": condition.name, "present": list(condition.present), **score, "weights": weights}
        rows.append({**row, "frames": int(chosen.sum())})
    known = [row["miou"] for row in rows if row["miou"] is not None]
    full = rows[-1]["miou"] if rows else None
    summary = {
        "mean": round(sum(known) / len(known), 6) if known else None,
        "full": full,
        "worst": min(known) if known else None,
    }
    return {"results": rows, "summary": summary}
