"""The three containers everything passes through: Sample (one scene), Batch (scenes stacked by sensor), Prediction.

A sensor that is missing is an absent key, never zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mlesam.errors import DataError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


IGNORE = -1
"""The label value for "not scored" inside the package, whatever the files use."""


@dataclass(frozen=True)
class Classes:
    """What the label files hold.

    Attributes:
        names, colors: by class id. ignore: label value that is not scored. label_map: raw value -> class id.
        ignore_color: RGB colour that is not scored, in label files that are pictures of colours.
        translate: by class id, the id that another model uses for it (None: not scored). Empty: as they are.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    label_map: dict[int, int] = field(default_factory=dict)
    translate: tuple[int | None, ...] = ()
    ignore_color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Sample:
    """One scene.

    Attributes:
        images: ``{modality: (C, H, W) float32}``, normalised; an absent sensor is an absent key.
        label: ``(H, W)`` int64 class ids, or None.
        id: the frame's name.
        tags: for instance ``("night", "fog")``.
        broken: ``{modality: (image, severity)}``, what a training frame's sensor would have shown with a fault (1 to 5).
    """

    images: dict[str, Tensor]
    label: Tensor | None = None
    id: str = ""
    tags: tuple[str, ...] = ()
    broken: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """What some sensors of a training batch would have shown with a fault.

    Attributes:
        images: ``{modality: (n, C, H, W)}``. frames: ``{modality: (n,) int64}``, the frames of the batch they belong to.
        severities: ``{modality: (n,) int64}``, 1 to 5.
    """

    images: dict[str, Tensor]
    frames: dict[str, Tensor]
    severities: dict[str, Tensor]

    @staticmethod
    def stack(samples: Sequence[Sample]) -> Broken | None:
        """Of all samples together; None where nothing is broken."""
        rows: dict[str, list[tuple[int, Tensor, int]]] = {}
        for index, sample in enumerate(samples):
            for modality, (image, severity) in sample.broken.items():
                rows.setdefault(modality, []).append((index, image, severity))
        if not rows:
            return None
        return Broken(
            {m: torch.stack([image for _, image, _ in own]) for m, own in rows.items()},
            {m: torch.tensor([index for index, _, _ in own]) for m, own in rows.items()},
            {m: torch.tensor([severity for _, _, severity in own]) for m, own in rows.items()},
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Broken:
        """With every tensor changed."""
        return Broken(*({m: change(t) for m, t in own.items()} for own in (self.images, self.frames, self.severities)))


@dataclass(frozen=True)
class Batch:
    """Scenes stacked sensor by sensor. A frame takes up rows only for the sensors it has.

    Attributes:
        images: ``{modality: (n, C, H, W)}`` with one row per frame that has the sensor.
        frames: ``{modality: (n,) int64}``, which frame of the batch each row belongs to, in rising order.
        labels: ``(B, H, W)`` int64, or None.
        ids, tags: one entry per frame.
        broken: in training, copies of sensors with a fault; None where there are none.
    """

    images: dict[str, Tensor]
    frames: dict[str, Tensor]
    ids: tuple[str, ...]
    labels: Tensor | None = None
    tags: tuple[tuple[str, ...], ...] = ()
    broken: Broken | None = None

    @staticmethod
    def stack(samples: Sequence[Sample]) -> Batch:
        """Stack samples of one size. Raises DataError where a sensor's size differs or a frame has no sensor."""
        rows: dict[str, list[Tensor]] = {}
        frames: dict[str, list[int]] = {}
        sizes: dict[tuple[int, int], str] = {}
        for index, sample in enumerate(samples):
            if not sample.images:
                raise DataError(f"frame {sample.id!r} has no sensor at all; every frame needs at least one.")
            for modality, image in sample.images.items():
                rows.setdefault(modality, []).append(image)
                frames.setdefault(modality, []).append(index)
                sizes.setdefault((image.shape[-2], image.shape[-1]), f"{modality} of frame {sample.id!r}")
        if len(sizes) > 1:
            what = ", ".join(f"{name} is {w}x{h}" for (h, w), name in sizes.items())
            raise DataError(f"a batch needs one size, but {what}; resize the files or use a batch of one.")
        for modality, images in rows.items():
            counts = sorted({image.shape[0] for image in images})
            if len(counts) > 1:
                raise DataError(
                    f"{modality} has {counts[0]} channels in one frame and {counts[1]} in another; use one."
                )
        labelled = [s.label for s in samples if s.label is not None]
        if len({label.shape for label in labelled}) > 1:
            raise DataError("the labels of a batch need one size; use a batch of one.")
        return Batch(
            images={m: torch.stack(r) for m, r in rows.items()},
            frames={m: torch.tensor(f) for m, f in frames.items()},
            ids=tuple(s.id for s in samples),
            labels=torch.stack(labelled) if len(labelled) == len(samples) else None,
            tags=tuple(s.tags for s in samples),
            broken=Broken.stack(samples),
        )

    @staticmethod
    def of(images: Mapping[str, Tensor], labels: Tensor | None = None) -> Batch:
        """A batch in which every frame has every given sensor: ``{modality: (B, C, H, W)}``."""
        if not images:
            raise RequestError("no sensor was given; a batch needs at least one.")
        count = len(next(iter(images.values())))
        device = next(iter(images.values())).device
        frames = {m: torch.arange(len(x), device=device) for m, x in images.items()}
        if any(len(x) != count for x in images.values()):
            raise RequestError("every sensor must have one row per frame; use Batch.stack for frames that lack some.")
        return Batch(dict(images), frames, tuple(str(i) for i in range(count)), labels, ((),) * count)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = next(iter(self.images.values())).shape[-2:]
        return int(height), int(width)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: t.to(device, non_blocking=non_blocking) for m, t in tensors.items()}

        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        broken = None if self.broken is None else self.broken.each(lambda t: t.to(device, non_blocking=non_blocking))
        return replace(self, images=move(self.images), frames=move(self.frames), labels=labels, broken=broken)

    def pin_memory(self) -> Batch:
        labels = None if self.labels is None else self.labels.pin_memory()
        broken = None if self.broken is None else self.broken.each(Tensor.pin_memory)
        images, frames = ({m: t.pin_memory() for m, t in own.items()} for own in (self.images, self.frames))
        return replace(self, images=images, frames=frames, labels=labels, broken=broken)

    def keep(self, rows: Mapping[str, Tensor]) -> Batch:
        """Only these rows: ``{modality: (n,) bool}`` over each sensor's rows. Sensors left out are absent."""
        left = [m for m in self.images if m in rows and bool(rows[m].any())]
        images, frames = ({m: own[m][rows[m]] for m in left} for own in (self.images, self.frames))
        return replace(self, images=images, frames=frames)

    def with_broken(self) -> Batch:
        """With the broken sensors in the place of the sound ones."""
        images = dict(self.images)
        for modality, own in (self.broken.images if self.broken else {}).items():
            at = torch.isin(self.frames[modality], self.broken.frames[modality])  # type: ignore[union-attr]
            images[modality] = images[modality].index_put((torch.nonzero(at)[:, 0],), own)
        return replace(self, images=images, broken=None)

    def select(self, modalities: Iterable[str]) -> Batch:
        """The batch with only these sensors (absent ones are no error: a frame may lack them)."""
        keep = [m for m in self.images if m in set(modalities)]
        return replace(self, images={m: self.images[m] for m in keep}, frames={m: self.frames[m] for m in keep})


@dataclass(frozen=True)
class Prediction:
    """What the segmenter says about one scene.

    Attributes:
        labels: ``(H, W)`` uint8 (int16 beyond 256 classes), class ids.
        probabilities: ``(C, H, W)`` float32, sums to 1 over C; calibrated where the run is (docs/confidence.md).
        weights: each present sensor's effective share in the fused maps, averaged over levels; sums to 1.
        classes, colors: names and RGB colours of the ids.
        ages: seconds since each present sensor measured, in a stream; empty elsewhere.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    weights: dict[str, float]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: np.ndarray | None = field(default=None, repr=False)
    """``(H, W, 3)`` uint8 picture that :meth:`overlay` draws on."""
    ages: dict[str, float] = field(default_factory=dict)

    @property
    def confidence(self) -> np.ndarray:
        """``(H, W)`` float32, each pixel's largest probability, 1/C to 1: the share of such pixels that should be right."""
        return self.probabilities.max(axis=0)

    def colored(self) -> Image:
        """The class map in the classes' colours, as an RGB picture."""
        from PIL import Image

        return Image.fromarray(np.asarray(self.colors, dtype=np.uint8)[self.labels])

    def overlay(self, opacity: float = 0.5) -> Image:
        """The class colours over the sensor picture, as an RGB picture of the input's size."""
        from PIL import Image

        colored = self.colored()
        if self.background is None:
            return colored
        return Image.blend(Image.fromarray(self.background), colored, opacity)
