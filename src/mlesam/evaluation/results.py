"""The content of ``metrics.json``: what a protocol found, as rows over all frames and over the frames of each tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlesam.data.dataset import Frame
from mlesam.evaluation.metrics import mean_iou, number, scores
from mlesam.evaluation.protocols import Condition, Protocol
from mlesam.evaluation.views import described


def metrics(
    protocol: Protocol,
    conditions: Sequence[Condition],
    frames: Sequence[Frame],
    *,
    dataset: str,
    split: str,
    modalities: Sequence[str],
    classes: Sequence[str],
    seed: int,
    about: str | None = None,
    special: Mapping[str, Any] | None = None,
    reached: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """The content of ``metrics.json``: over all frames, and again for each tag over its own frames.

    The last condition is the one with all sensors: ``confusion`` (C x C counts, rows truth), ``frame_miou`` (by frame id) and,
    where the protocol looks at the confidence, ``reliability`` are its.

    Args:
        special: fields that say how the evaluation differs from the plain one, such as ``views``.
        reached: the classes that can be scored, where the dataset has others than the model (:func:`class_iou`).
    """
    everything = np.ones(len(frames), dtype=bool)
    tags = sorted({tag for frame in frames for tag in frame.tags})
    result: dict[str, Any] = {
        "dataset": dataset,
        "split": split,
        **({} if about is None else {"about": about}),
        "frames": len(frames),
        "modalities": list(modalities),
        "classes": list(classes),
        "protocol": protocol.name,
        "seed": seed,
        **(special or {}),
        **_table(protocol, conditions, everything, classes, modalities, None, reached),
        "tags": {},
    }
    for tag in tags:
        own = np.array([tag in frame.tags for frame in frames])
        table = _table(protocol, conditions, own, classes, modalities, tag, reached)
        result["tags"][tag] = {"frames": int(own.sum()), **table}
    full = conditions[-1]
    result["frame_miou"] = {
        frame.id: number(float(value)) for frame, value in zip(frames, mean_iou(full.confusions, reached), strict=True)
    }
    result["confusion"] = full.confusions.sum(axis=0, dtype=np.int64).tolist()
    if full.confidences is not None:
        result["reliability"] = full.confidences.reliability()
    return result


def _table(
    protocol: Protocol,
    conditions: Sequence[Condition],
    own: np.ndarray,
    classes: Sequence[str],
    modalities: Sequence[str],
    tag: str | None,
    reached: Sequence[bool] | None,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for condition in conditions:
        chosen = own & condition.counted
        score = scores(condition.confusions[chosen].sum(axis=0, dtype=np.int64), classes, reached)
        # A frame that lacks a sensor gives it no trust, so the means of a row sum to 1 as each frame's shares do.
        mean = condition.shares[chosen].mean(axis=0) if chosen.any() else np.full(len(modalities), np.nan)
        given = condition.row.sensors
        weights = {m: number(float(w)) for m, w in zip(modalities, mean, strict=True) if m in given}
        row = {"name": condition.name, "present": list(condition.present), **condition.row.details}
        sure = {} if condition.confidences is None else condition.confidences.scores(tag)
        rows.append({**row, **score, "weights": weights, "frames": int(chosen.sum()), **sure})
    full = rows[-1]["miou"]
    if conditions[-1].row.details:  # every protocol but `subsets`
        for row in rows:
            row["ratio"] = round(row["miou"] / full, 6) if row["miou"] is not None and full else None
    tested = [r["miou"] for r, c in zip(rows, conditions, strict=True) if not c.row.reference]
    known = [miou for miou in tested if miou is not None]
    summary = {"mean": mean_of(known), "full": full, "worst": min(known, default=None)}
    return {"results": rows, "summary": {**summary, **protocol.summary(rows)}}


def title(metrics: Mapping[str, Any]) -> str:
    """What a number of this result depends on, in one line."""
    frames = f"{metrics['frames']} frames"
    if "split_frames" in metrics:
        frames = f"part of the split: {metrics['frames']} of {metrics['split_frames']} frames"
    words = [metrics["dataset"], f"split {metrics['split']}", frames, f"protocol {metrics['protocol']}"]
    if "published_noise" in metrics:
        words.append(f"published noise on batches of {metrics['published_noise']}")
    if "severities" in metrics:
        words.append(f"severities {', '.join(map(str, metrics['severities']))} alone")
    if "views" in metrics:
        words.append(described(metrics["views"]))
    if "class_map" in metrics:
        words.append(f"class map {metrics['class_map']['name']}")
    if "miniature" in metrics:
        words.append(MINIATURE)
    return ", ".join(words)


MINIATURE = "miniature: numbers for the machinery only"


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of the values that exist."""
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 6) if known else None
