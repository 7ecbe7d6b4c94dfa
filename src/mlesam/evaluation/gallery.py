"""A few frames of a split, as every sensor sees them and as the model segments them with and without each sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlesam.data.dataset import Frame
from mlesam.data.reading import read_frame
from mlesam.data.transforms import evaluation_sample
from mlesam.evaluation.metrics import confusion_matrix, mean_iou, number
from mlesam.evaluation.pictures import class_picture, error_picture, sensor_picture
from mlesam.evaluation.protocols import predict
from mlesam.evaluation.scored import Scored
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import Batch

QUANTILES = (0.5, 0.1, 0.9, 0.3, 0.7)
"""Where the frames stand in the order of mIoU, when there are no tags to choose them by."""


@dataclass(frozen=True)
class Segmented:
    """One prediction of a frame: class map, errors, and the sensors' shares.

    ``miou`` and ``wrong`` (share of the scored pixels) are None where no pixel is scored.
    """

    labels: np.ndarray
    errors: np.ndarray
    miou: float | None
    wrong: float | None
    shares: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """A frame's pictures, all ``(h, w, 3)`` uint8.

    Attributes:
        reason: why it was chosen, for instance ``night``. sensors: without a key where the frame lacks the sensor.
        without: by sensor, the prediction when it is lost; no key where the frame lacks it or has nothing else.
    """

    frame: Frame
    reason: str
    sensors: dict[str, np.ndarray]
    truth: np.ndarray
    full: Segmented
    without: dict[str, Segmented]


def choose(frames: Mapping[str, float | None], tags: Mapping[str, list[str]], most: int) -> dict[str, str]:
    """Frames that stand for the others: for each of the most frequent tags the one whose mIoU is the tag's median.

    Args:
        frames: mIoU by frame id. tags: frame ids by tag.

    Returns:
        ``{frame id: reason}``, at most ``most``. Without tags, frames at quantiles of mIoU.
    """
    known = sorted((f for f in frames if frames[f] is not None), key=lambda f: (frames[f], f))
    chosen: dict[str, str] = {}
    groups = [(tag, ids) for tag in sorted(tags, key=lambda t: (-len(tags[t]), t)) if (ids := tags[tag])]
    for tag, ids in groups[:most]:
        own = [f for f in known if f in set(ids)]
        # A frame that already stands for another tag makes way for its nearest neighbour.
        order = sorted(range(len(own)), key=lambda i: abs(i - (len(own) - 1) / 2))
        pick = next((own[i] for i in order if own[i] not in chosen), None)
        if pick is not None:
            chosen[pick] = tag
    if not groups:
        for q in QUANTILES[:most] if known else ():
            pick = known[round(q * (len(known) - 1))]
            chosen.setdefault(pick, "median frame" if q == 0.5 else f"{round(100 * q)}th percentile")
    return chosen


@torch.inference_mode()
def show(model: MLESAM, run: Run, scored: Scored, frame: Frame, reason: str, side: int) -> Shown:
    """Draw one frame, its longer side at most ``side`` pixels. The model must be in evaluation mode.

    Raises:
        DataError: files that cannot be read.
    """
    sample = read_frame(frame, scored.sensors, scored.classes)
    assert sample.label is not None  # only labelled frames are scored
    truth = sample.label.numpy()
    batch = Batch.stack([evaluation_sample(sample, scored.sensors, run.recipe.data.resize)])
    features = model.encode(batch.to(next(model.parameters()).device))

    def segment(part: Features) -> Segmented:
        output = model.decode(part)
        labels = predict(output.logits, (truth.shape[0], truth.shape[1]))[0].cpu()
        confusion = confusion_matrix(labels, torch.from_numpy(truth), model.num_classes).numpy()
        shares = output.shares[0].mean(dim=0).tolist()
        return Segmented(
            class_picture(labels.numpy(), run.classes.colors, side),
            error_picture(labels.numpy(), truth, side),
            number(float(mean_iou(confusion))),
            1 - float(np.trace(confusion) / confusion.sum()) if confusion.any() else None,
            {m: shares[model.modalities.index(m)] for m in part.modalities},
        )

    present = features.modalities
    return Shown(
        frame,
        reason,
        {m: sensor_picture(m, sample.images[m].numpy(), scored.sensors[m], side) for m in present},
        class_picture(truth, run.classes.colors, side),
        segment(features),
        {m: segment(features.select([o for o in present if o != m])) for m in present if len(present) > 1},
    )


def frames_by_tag(frames: list[Frame]) -> dict[str, list[str]]:
    """Frame ids by tag."""
    found: dict[str, list[str]] = {}
    for frame in frames:
        for tag in frame.tags:
            found.setdefault(tag, []).append(frame.id)
    return found


def draw(run: Run, scored: Scored, metrics: Mapping[str, Any], most: int, side: int) -> list[Shown]:
    """The frames of an evaluation that its report shows. Needs its ``frame_miou``."""
    values = metrics["frame_miou"]
    frames = {f.id: f for f in scored.frames if f.id in values}
    chosen = choose({f: values[f] for f in frames}, frames_by_tag(list(frames.values())), most)
    model = run.load_model().to("cuda" if torch.cuda.is_available() else "cpu")
    return [show(model, run, scored, frames[f], reason, side) for f, reason in chosen.items()]
