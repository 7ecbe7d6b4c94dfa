"""Views: every frame looked at several times, at other sizes, mirrored or window by window, and the answers merged.

A view stands between a protocol and the trunk: what is missing, noisy or broken is so in the whole frame, and each view sees its
part of that. Every protocol therefore works with any views. docs/protocols.md says what is averaged and where the rules come
from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mlesam.data.reading import resized
from mlesam.errors import RequestError
from mlesam.model.features import Features
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM, Output
from mlesam.sample import Batch
from mlesam.sensors.spec import SensorSpec

SMALLEST = 32
"""Pixels of a window: the stride of a foundation's coarsest map, below which nothing is seen."""
PLAIN = SensorSpec()
SCALES = (0.1, 4.0)
"""Least and greatest scale of a view."""


@dataclass(frozen=True)
class Views:
    """How often, and how, each frame is looked at. The default is once, as it is.

    Attributes:
        scales: sizes of the frame, as factors. flip: each of them mirrored left and right as well.
        window: side in pixels of the square windows that a frame is cut into; None: it is seen whole.
        stride: pixels from one window to the next; None: two thirds of a window, as is common in MMSegmentation.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        low, high = SCALES
        wrong = next((s for s in self.scales if not low <= s <= high), None)
        if wrong is not None or not self.scales:
            raise RequestError(f"--scales has {wrong}, but a scale must be between {low:g} and {high:g}.")
        if len(set(self.scales)) < len(self.scales):
            raise RequestError(f"--scales names {_listed(self.scales)}; name each scale once.")
        if self.window is None:
            if self.stride is not None:
                raise RequestError(
                    f"--stride {self.stride} is the way between windows; say their size, --window PIXELS."
                )
            return
        if self.window < SMALLEST:
            raise RequestError(f"--window is {self.window}, but a window has at least {SMALLEST} pixels.")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise RequestError(
                f"--stride is {self.stride}, but it must be between 1 and the window's {self.window} pixels, so that no pixel "
                "is left out."
            )

    @staticmethod
    def parse(scales: str | None, flip: bool = False, window: int | None = None, stride: int | None = None) -> Views:
        """From the command line; ``scales`` is for example ``"0.5,1,1.5"``."""
        if scales is None:
            return Views(flip=flip, window=window, stride=stride)
        try:
            factors = tuple(sorted(float(word) for word in scales.split(",")))
        except ValueError:
            raise RequestError(
                f"--scales is {scales!r}, but it must be numbers with commas between them, for example 0.5,1,1.5."
            ) from None
        return Views(factors, flip, window, stride)

    @property
    def plain(self) -> bool:
        """Whether each frame is seen once, as it is."""
        return not self.facts()

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        assert self.window is not None
        return self.stride if self.stride is not None else max(1, round(self.window * 2 / 3))

    def facts(self) -> dict[str, Any]:
        """The field ``views`` of ``metrics.json``; empty for plain ones."""
        found: dict[str, Any] = {}
        if self.flip or self.scales != (1.0,):
            found |= {"scales": list(self.scales), "flip": self.flip}
        if self.window is not None:
            found |= {"window": self.window, "stride": self.step}
        return found


def described(facts: Mapping[str, Any]) -> str:
    """The field ``views`` of ``metrics.json`` in words: ``"scales 0.5, 1, mirrored too"``."""
    words = []
    if "scales" in facts:
        words.append(f"scale{'s' if len(facts['scales']) > 1 else ''} {_listed(facts['scales'])}")
        words += ["mirrored too"] if facts["flip"] else []
    if "window" in facts:
        words.append(f"windows of {facts['window']} pixels every {facts['stride']}")
    return ", ".join(words)


def _listed(scales: Iterable[float]) -> str:
    return ", ".join(f"{s:g}" for s in scales)


@dataclass(frozen=True, eq=False)
class Look:
    """The model as it is behind one view: what it is given to encode is brought to the view first.

    Attributes:
        sensors: how each is brought to another size, and mirrored.
        size: height and width of the scaled frame. window: rows and columns of it that are seen, once it is mirrored.
    """

    model: MLESAM
    sensors: Mapping[str, SensorSpec]
    size: tuple[int, int]
    flip: bool
    window: tuple[slice, slice]

    @property
    def channels(self) -> dict[str, int]:
        return self.model.channels

    def encode(self, batch: Batch) -> Features:
        """As :meth:`MLESAM.encode`, of what the view shows."""
        return self.model.encode(replace(batch, images={m: self._seen(x, m) for m, x in batch.images.items()}))

    def _seen(self, images: Tensor, modality: str) -> Tensor:
        """(n, C, H, W) normalised images. A pixel that measured nothing is 0 by now, the mean, as in published code."""
        if tuple(images.shape[-2:]) != self.size:
            if not len(images):
                images = images.new_zeros(0, images.shape[1], *self.size)
            else:
                flat = resized(images.flatten(0, 1), self.size, self.sensors[modality].interpolation)
                images = flat.unflatten(0, images.shape[:2])
        if self.flip:
            images = _mirrored(images, self.sensors.get(modality, PLAIN))
        return images[..., self.window[0], self.window[1]]


def _mirrored(images: Tensor, spec: SensorSpec) -> Tensor:
    """(n, C, H, W) normalised images as :func:`mlesam.data.transforms.mirrored` would have made them before."""
    images = images.flip(-1)
    for channel in spec.mirror_negates:
        middle = (
            0.0
            if spec.normalize == "frame"
            else spec.mean[channel % len(spec.mean)] / spec.std[channel % len(spec.std)]
        )
        values = images[:, channel]
        # What measured nothing is 0 by now, and stays so.
        images[:, channel] = torch.where(values == 0, values, -values - 2 * middle)
    return images


class Viewer:
    """Runs a model through views.

    Args:
        sensors: specs of what it is given; needed for other scales than 1, and for mirroring.
    """

    def __init__(
        self, model: MLESAM, views: Views | None = None, sensors: Mapping[str, SensorSpec] | None = None
    ) -> None:
        self.model = model
        self.views = views or Views()
        self.sensors = sensors or {}
        self._looks: dict[tuple[int, int], list[list[Look]]] = {}

    def looks(self, size: tuple[int, int]) -> list[list[Look]]:
        """For frames of a size (height, width): a list for each scale and mirroring, of its windows."""
        if size not in self._looks:
            flips = (False, True) if self.views.flip else (False,)
            self._looks[size] = [self._windows(size, scale, flip) for scale in self.views.scales for flip in flips]
        return self._looks[size]

    def _windows(self, size: tuple[int, int], scale: float, flip: bool) -> list[Look]:
        height, width = (max(1, math.floor(n * scale + 0.5)) for n in size)
        rows, columns = (self._slices(n) for n in (height, width))
        return [Look(self.model, self.sensors, (height, width), flip, (r, c)) for r in rows for c in columns]

    def _slices(self, length: int) -> list[slice]:
        window = self.views.window
        if window is None or length <= window:
            return [slice(0, length)]
        step = self.views.step
        # The last window ends where the frame ends, so that every window is whole (MMSegmentation's slide_inference).
        starts = [*range(0, length - window, step), length - window]
        return [slice(start, start + window) for start in starts]

    def features(
        self, rows: Callable[[Look, Batch], Iterator[tuple[int, Features]]], batch: Batch
    ) -> Iterator[tuple[int, list[Features]]]:
        """A protocol's rows of a batch, each with the features of every view.

        All views go on row by row together: what the trunk said is kept for each view and not for each row, of which there
        may be hundreds.

        Args:
            rows: :meth:`mlesam.evaluation.protocols.Protocol.features`.
        """
        views = [rows(look, batch) for group in self.looks(batch.size) for look in group]
        for found in zip(*views, strict=True):  # which rows a batch takes part in depends on its sensors alone
            yield found[0][0], [features for _, features in found]

    def merged(
        self,
        outputs: Sequence[Output],
        seen: tuple[int, int],
        size: tuple[int, int],
        temperatures: Sequence[float] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """One answer of all views.

        Logits are averaged where windows overlap, probabilities over scales and mirroring, each brought to ``size`` before.

        Args:
            outputs: of each view, in the order of :meth:`features`. seen: size of the batch's frames. size: of the result.
            temperatures: of each frame, where its calibrated probabilities are wanted.

        Returns:
            (B, C, H, W) logits whose softmax is the answer, and for each frame (C, H, W) those with its temperature applied
            to every view before the mean. None where they are the same.
        """
        left = iter(outputs)
        answers = (_joined(group, [next(left) for _ in group], size) for group in self.looks(seen))
        if len(self.looks(seen)) == 1:
            logits = next(answers)
            asked = temperatures or [1.0] * len(logits)
            return logits, [None if t == 1.0 else logits[i] / t for i, t in enumerate(asked)]
        total, calibrated = torch.zeros(()), {}
        for logits in answers:
            total = total.to(logits.device) + logits.softmax(dim=1)
            for i, t in enumerate(temperatures or ()):
                if t != 1.0:
                    calibrated[i] = calibrated.get(i, 0.0) + (logits[i] / t).softmax(dim=0)
        count = len(self.looks(seen))
        return (total / count).log(), [
            (calibrated[i] / count).log() if i in calibrated else None for i in range(len(total))
        ]


def _joined(group: Sequence[Look], outputs: Sequence[Output], size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) logits of one scale and mirroring at ``size``, as the frame stands."""
    logits = outputs[0].logits
    if len(group) > 1:
        whole = logits.new_zeros(*logits.shape[:2], *group[0].size)
        count = logits.new_zeros(group[0].size)
        for look, output in zip(group, outputs, strict=True):
            rows, columns = look.window
            whole[..., rows, columns] += output.logits
            count[rows, columns] += 1
        logits = whole / count
    return at_size(logits.flip(-1) if group[0].flip else logits, size)
