"""Protocols: fixed ways to test with missing, noisy or broken sensors. Here what they share, ``subsets`` and ``cases``.

A protocol is a list of rows, and for each batch the features that each row is decoded from. The loop over them is the same for
all: :func:`run`. The sensors meet only in the router, so a protocol sends each sensor through the trunk once for each state
that it tests it in, however many rows that state takes part in. docs/protocols.md says what each protocol does and where it
comes from.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mlesam.data.dataset import Frame
from mlesam.errors import DataError
from mlesam.evaluation.confidence import Confidences
from mlesam.evaluation.metrics import confusion_matrix
from mlesam.evaluation.views import Look, Viewer
from mlesam.model.calibration import Calibration
from mlesam.model.features import Features
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Batch

DELIVER_CASES = (
    "cloud", "fog", "night", "rain", "sun",
    "motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres",
)  # fmt: skip
"""DELIVER's cases, in the order of its paper: they come first, any others follow by name."""

Encoder = MLESAM | Look
"""What a protocol encodes its batches with: the model, or the model behind a view."""


@dataclass(frozen=True)
class Row:
    """What one row of a result tests.

    Attributes:
        present: sensors whose data are as they should be. A frame that has none of them is left out of the row.
        given: sensors that the model is given, with whatever data (None: those that are present).
        details: further fields of the row in ``metrics.json``.
        reference: what other rows are compared with; takes no part in mean and worst.
    """

    name: str
    present: tuple[str, ...]
    given: tuple[str, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = False

    @property
    def sensors(self) -> tuple[str, ...]:
        return self.present if self.given is None else self.given


@dataclass(frozen=True)
class Condition:
    """A row tested: for each frame its confusion matrix and whom the router trusted.

    Attributes:
        confusions: (F, C, C) int32. counted: (F,) bool, False where a frame has none of the sensors.
        shares: (F, M) float64, each sensor's effective share in the fused maps, averaged over levels. The columns are all
            the sensors that the protocol tests, in its order. A row sums to 1, and is 0 where the frame is not counted.
        confidences: where the protocol asks for them.
    """

    row: Row
    confusions: np.ndarray
    counted: np.ndarray
    shares: np.ndarray
    confidences: Confidences | None = None

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def present(self) -> tuple[str, ...]:
        return self.row.present


class Protocol(ABC):
    """A way to test.

    Attributes:
        name: as on the command line. rows: in the order of the result; the last one has all sensors as they should be.
        confidence: whether its rows say what the model's confidence is worth.
    """

    name: str
    rows: list[Row]
    confidence = False

    @abstractmethod
    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        """For each row that a batch takes part in, its number and what it is decoded from. Frames keep their numbers.

        Which rows these are depends on the batch's sensors alone; what is encoded is whole frames, whatever a view shows of them.
        """

    def finish(self, conditions: list[Condition]) -> list[Condition]:
        """Rows that need no decoding of their own."""
        return conditions

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Fields of ``summary`` besides mean, full and worst. ``rows``: as in ``metrics.json``."""
        return {}


class Subsets(Protocol):
    """Every non-empty subset of the sensors; a sensor outside the subset is absent, not zero."""

    name = "subsets"
    confidence = True

    def __init__(self, modalities: Sequence[str]) -> None:
        self.rows = [Row("+".join(subset), subset) for subset in subsets(modalities)]

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        features = model.encode(batch)
        for i, row in enumerate(self.rows):
            if set(row.present) & set(features.modalities):
                yield i, features.select(row.present)


class Cases(Protocol):
    """One row for each tag, with all sensors, over the tag's own frames."""

    name = "cases"

    def __init__(self, modalities: Sequence[str], frames: Sequence[Frame], where: str) -> None:
        """``where``: what the frames are called in messages. DataError where no frame has a tag."""
        tags = {tag for frame in frames for tag in frame.tags}
        if not tags:
            raise DataError(
                f"{where} has no tags, and protocol cases has a row for each; list the ids of a tag's frames in "
                "ROOT/tags/<tag>.txt (docs/data.md), or choose another protocol."
            )
        chosen = [c for c in DELIVER_CASES if c in tags] + sorted(tags - set(DELIVER_CASES))
        self.own = [np.array([tag in frame.tags for frame in frames]) for tag in chosen]
        present, nothing = tuple(modalities), {"fault": None, "severity": None}
        self.rows = [Row(tag, present, details=nothing) for tag in chosen]
        self.rows.append(Row("all frames", present, details=nothing, reference=True))

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        yield len(self.rows) - 1, model.encode(batch)

    def finish(self, conditions: list[Condition]) -> list[Condition]:
        full = conditions[-1]
        cases = [replace(full, row=r, counted=full.counted & o) for r, o in zip(self.rows, self.own, strict=False)]
        return [*cases, full]


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets: single sensors first, the full set last."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


@torch.inference_mode()
def run(
    protocol: Protocol,
    model: MLESAM,
    batches: Iterable[Batch],
    modalities: Sequence[str],
    frames: Sequence[Frame],
    advance: Callable[[int], None] = lambda done: None,
    calibration: Calibration | None = None,
    viewer: Viewer | None = None,
    counts_as: Sequence[int] | None = None,
) -> list[Condition]:
    """Test a model under a protocol.

    Args:
        batches: the frames, in any grouping; every one with a label.
        modalities: the sensors that the protocol tests.
        advance: called with the number of frames done since the last call.
        calibration: the run's temperatures, for protocols that look at the confidence.
        viewer: how each frame is looked at. None: once, as it is.
        counts_as: for each class the one that its answer counts as, see :mod:`mlesam.data.class_maps`.
    """
    viewer = viewer or Viewer(model)
    classes = model.num_classes
    device = next(model.parameters()).device
    same = None if counts_as is None else torch.tensor(counts_as, device=device)
    index = {frame.id: i for i, frame in enumerate(frames)}
    columns = [model.modalities.index(m) for m in modalities]
    found = [
        Condition(
            row,
            np.zeros((len(frames), classes, classes), dtype=np.int32),
            np.zeros(len(frames), dtype=bool),
            np.zeros((len(frames), len(modalities))),
            Confidences(calibration and calibration.temperature(row.sensors)) if protocol.confidence else None,
        )
        for row in protocol.rows
    ]
    for batch in batches:
        batch = batch.to(device)
        if batch.labels is None:
            raise DataError(f"frame {batch.ids[0]!r} has no label; only labelled frames can be scored.")
        size = (batch.labels.shape[-2], batch.labels.shape[-1])
        for number, seen in viewer.features(protocol.features, batch):
            condition = found[number]
            covered = having(batch, condition.present)
            if not bool(covered.any()):
                continue
            given = seen if bool(covered.all()) else [features.of_frames(covered) for features in seen]
            outputs = [model.decode(features) for features in given]
            asked = calibration if protocol.confidence else None
            scale = None if asked is None else asked.temperatures(given[0])
            logits, calibrated = viewer.merged(outputs, batch.size, size, scale)
            predicted = logits.argmax(dim=1)
            if same is not None:
                predicted = same[predicted]
            shares = torch.stack([output.shares.double().mean(dim=1)[:, columns] for output in outputs])
            share = shares.mean(dim=0).cpu().numpy()
            for row, position in enumerate(torch.nonzero(covered)[:, 0].tolist()):
                frame = index[batch.ids[position]]
                matrix = confusion_matrix(predicted[row], batch.labels[position], classes)
                condition.confusions[frame] = matrix.cpu().numpy()
                condition.counted[frame] = True
                condition.shares[frame] = share[row]
                if condition.confidences is not None:
                    tags, label = frames[frame].tags, batch.labels[position]
                    condition.confidences.add(tags, logits[row], predicted[row], label, calibrated=calibrated[row])
        advance(len(batch))
    return protocol.finish(found)


def having(batch: Batch, modalities: Iterable[str]) -> torch.Tensor:
    """(B,) bool: which frames of a batch have one of these sensors."""
    found = torch.zeros(len(batch), dtype=torch.bool, device=next(iter(batch.images.values())).device)
    for modality in modalities:
        if modality in batch.frames:
            found[batch.frames[modality]] = True
    return found


def predict(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, h, w) logits to (B, H, W) class ids at the label's own size."""
    return at_size(logits, size).argmax(dim=1)
