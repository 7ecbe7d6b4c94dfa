"""The protocols of arXiv 2503.18445: sensors that are zero (EMM), zero in places (RMM), or noisy (NM).

All three change the normalised tensors and give the model every sensor: what is zero counts as present.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlesam.evaluation.metrics import number
from mlesam.evaluation.protocols import Encoder, Protocol, Row, subsets
from mlesam.evaluation.results import mean_of
from mlesam.model.experts import Segment
from mlesam.model.features import Features
from mlesam.sample import Batch
from mlesam.sensors.faults import generator, kind
from mlesam.sensors.spec import SensorSpec

CHANCES = (0.2, 0.1, 0.05)
"""Probabilities p that a sensor is missing, for the expected mIoU."""
DROPS = (0.25, 0.5, 0.75)
"""RMM: share of a sensor's numbers that are set to zero."""
LEVELS = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}
"""NM: density of salt and pepper, standard deviation of the Gaussian noise."""


def aggregates(rows: Sequence[Mapping[str, Any]], sensors: int) -> dict[str, Any]:
    """``miou_avg`` and ``miou_e`` over the sets of missing sensors, as EMM defines them.

    mIoU_Avg is the plain mean; mIoU_E(p) weighs a set S of missing sensors by p^|S| (1 - p)^(M - |S|). All sensors missing
    is no set. A row without a mIoU takes no part.

    Args:
        rows: with ``present`` and ``miou``, one for each set. sensors: M.
    """
    known = [(sensors - len(row["present"]), row["miou"]) for row in rows if row["miou"] is not None]

    def expected(p: float) -> float | None:
        weights = [p**missing * (1 - p) ** (sensors - missing) for missing, _ in known]
        total = sum(w * miou for w, (_, miou) in zip(weights, known, strict=True))
        return number(total / sum(weights)) if known else None

    return {"miou_avg": mean_of([m for _, m in known]), "miou_e": {str(p): expected(p) for p in CHANCES}}


def filled(batch: Batch, model: Encoder, modalities: Sequence[str]) -> Batch:
    """The batch with zeros for every sensor that a frame lacks."""
    everyone = torch.arange(len(batch), device=next(iter(batch.images.values())).device)
    images = {}
    for modality in modalities:
        own = batch.images.get(modality)
        if own is None or len(own) < len(batch):
            full = next(iter(batch.images.values())).new_zeros(len(batch), model.channels[modality], *batch.size)
            if own is not None:
                full[batch.frames[modality]] = own
            own = full
        images[modality] = own
    return replace(batch, images=images, frames=dict.fromkeys(images, everyone))


class EntireMissing(Protocol):
    """EMM: each set of sensors is set to zero, all others are as they should be."""

    name = "emm"

    def __init__(self, modalities: Sequence[str]) -> None:
        everyone = tuple(modalities)
        self.modalities = everyone
        self.rows = [
            Row("+".join(s), s, everyone, {"fault": "zero-filled" if s != everyone else None, "severity": None})
            for s in subsets(modalities)
        ]
        self._zeros: dict[tuple[int, int], Features] = {}

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        clean = model.encode(filled(batch, model, self.modalities))
        zeros = self._zero(model, batch, clean.size)
        for i, row in enumerate(self.rows):
            yield i, Features.join([zeros, clean.select(row.present)])

    def _zero(self, model: Encoder, batch: Batch, seen: tuple[int, int]) -> Features:
        """Zeros are the same for all frames, views and windows of one size: they go through the trunk once.

        Args:
            seen: height and width of what the trunk sees of the batch.
        """
        if seen not in self._zeros:
            image = next(iter(batch.images.values()))
            one = {m: image.new_zeros(1, model.channels[m], *batch.size) for m in self.modalities}
            self._zeros[seen] = model.encode(Batch.of(one))
        one, count = self._zeros[seen], len(batch)
        everyone = torch.arange(count, device=one.frames[0].device)
        segments = tuple(Segment(s.modality, i * count, (i + 1) * count) for i, s in enumerate(one.segments))
        levels = tuple(level.repeat_interleave(count, dim=0) for level in one.levels)
        signs, scores = (None if t is None else t.repeat_interleave(count, dim=0) for t in (one.signs, one.scores))
        frames = (everyone,) * len(segments)
        images = None if one.images is None else tuple(x.repeat_interleave(count, dim=0) for x in one.images)
        return replace(
            one, levels=levels, segments=segments, frames=frames, count=count, signs=signs, scores=scores, images=images
        )

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return aggregates(rows, len(self.modalities))


class RandomMissing(Protocol):
    """RMM: the same sets, with a random part of each of their sensors set to zero, by pixel and by channel.

    A sensor's zeros depend on (seed, frame, sensor, share) alone. They are the same in every set that it is in.
    """

    name = "rmm"

    def __init__(self, modalities: Sequence[str], seed: int) -> None:
        self.modalities, self.seed = tuple(modalities), seed
        chosen = [(drop, subset) for drop in DROPS for subset in subsets(modalities)]
        self.rows = [
            Row("+".join(s), s, self.modalities, {"fault": "random-zeros", "severity": None, "drop": drop})
            for drop, s in chosen
        ]

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        whole = filled(batch, model, self.modalities)
        clean = model.encode(whole)
        part = {}
        for drop in DROPS:
            images = {m: self._dropped(x, m, batch.ids, drop) for m, x in whole.images.items()}
            part[drop] = model.encode(replace(whole, images=images))
        for i, row in enumerate(self.rows):
            yield i, Features.join([part[row.details["drop"]], clean.select(row.present)])

    def _dropped(self, image: Tensor, modality: str, ids: Sequence[str], drop: float) -> Tensor:
        draws = [generator(self.seed, i, modality, "rmm", str(drop)).random(image.shape[1:]) < drop for i in ids]
        return image.masked_fill(torch.from_numpy(np.stack(draws)).to(image.device), 0.0)

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        def own(drop: float) -> dict[str, Any]:
            return aggregates([row for row in rows if row["drop"] == drop], len(self.modalities))

        return {"drops": {str(drop): own(drop) for drop in DROPS}}


def noisy(image: Tensor, density: float, sigma: float, rng: np.random.Generator) -> Tensor:
    """Salt and pepper, then Gaussian noise.

    Half of ``density`` times the number of elements is set to the largest value of the tensor, then as many to the smallest.
    Places are drawn with replacement, each axis by itself, so somewhat fewer are hit.

    Args:
        image: (n, C, H, W), normalised. sigma: 0 for none.
    """
    result = image.clone()
    count = int(density * image.numel() / 2)
    for value in (image.max(), image.min()):
        place = tuple(torch.from_numpy(rng.integers(0, n, count)).to(image.device) for n in image.shape)
        result[place] = value
    if sigma:
        noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
        result = result + sigma * torch.from_numpy(noise).to(image.device)
    return result


class Noisy(Protocol):
    """NM: all sensors, with salt and pepper on each and Gaussian noise on all but event cameras.

    Args:
        whole_batch: as the published scripts do it: largest and smallest value, and the places of the noise, are those of
            a whole batch at once, so the result depends on its size. Otherwise each frame by itself.
    """

    name = "nm"

    def __init__(self, sensors: Mapping[str, SensorSpec], seed: int, whole_batch: bool = False) -> None:
        self.seed, self.whole_batch = seed, whole_batch
        everyone = tuple(sensors)
        self.gaussian = {m: kind(spec, m) != "events" for m, spec in sensors.items()}
        self.rows = [Row(n, everyone, details={"fault": "noise", "severity": n}) for n in LEVELS]
        self.rows.append(Row("clean", everyone, details={"fault": None, "severity": None}, reference=True))

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        for i, name in enumerate(LEVELS):
            images = {m: self._changed(x, m, name, batch) for m, x in batch.images.items()}
            yield i, model.encode(replace(batch, images=images))
        yield len(LEVELS), model.encode(batch)

    def _changed(self, image: Tensor, modality: str, name: str, batch: Batch) -> Tensor:
        density, sigma = LEVELS[name]
        sigma = sigma if self.gaussian[modality] else 0.0
        if not len(image):
            return image
        ids = [batch.ids[i] for i in batch.frames[modality].tolist()]
        if self.whole_batch:
            return noisy(image, density, sigma, generator(self.seed, modality, name, *ids))
        parts = [
            noisy(x[None], density, sigma, generator(self.seed, modality, name, i))
            for x, i in zip(image, ids, strict=True)
        ]
        return torch.cat(parts)
