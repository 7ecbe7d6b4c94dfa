"""The losses of one training step, all decoded from one pass through the trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mlesam.config import TrainingConfig
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM, Output
from mlesam.sample import Batch, Broken
from mlesam.training.loss import divergence, ohem_cross_entropy


class Step(nn.Module):
    """The losses of one micro-batch. A module of its own, so that distributed training sees a single forward pass.

    The trunk runs once. The full-sensor pass and those with sensors left out are all decoded from its features. Where sensors
    hand over to each other (``model.look_lead``) a further pass leaves some behind: what it sees depends on their company.
    """

    def __init__(self, model: MLESAM, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(
        self,
        batch: Batch,
        subsets: Sequence[Mapping[str, Tensor]] = (),
        led: Batch | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the full-sensor pass, of passes that keep the rows in each of ``subsets`` alone, and of one with the sensors
        that are broken in the place of the sound ones; and of a pass of its own that leaves sensors behind, see :func:`led_pass`.
        """
        assert batch.labels is not None
        config, labels = self.config, batch.labels
        features = self.model.encode(batch)
        full = self.model.decode(features)
        partial = [self.model.decode(features.keep(rows)) for rows in subsets]
        if batch.broken is not None:
            partial.append(self.model.decode(Features.join([features, self._broken(batch, batch.broken)])))
        pairs = [self._both(output, labels) for output in (full, *partial)]
        mask, pyramid = pairs[0]
        if partial:  # all subsets together weigh as much as the full pass
            others = torch.stack([torch.stack(pair) for pair in pairs[1:]]).mean(dim=0)
            mask, pyramid = (mask + others[0]) / 2, (pyramid + others[1]) / 2
        if led is not None:
            own = self._both(self.model.decode(self.model.encode(led, early=True)), labels)
            mask, pyramid = (mask + own[0]) / 2, (pyramid + own[1]) / 2
        losses = {"mask_loss": mask, "pyramid_loss": pyramid}
        loss = config.mask_loss * mask + config.pyramid_loss * pyramid
        # A loss that is asked for is always there: every process sums the same ones, whatever its frames lack.
        if config.distill:
            told = [divergence(full, output) for output in partial]
            losses["distill_loss"] = torch.stack(told).mean() if told else mask.new_zeros(())
            loss = loss + config.distill * losses["distill_loss"]
        if config.sensor_loss:
            alone = self._both(self.model.decode(features.apart()), labels[torch.cat(features.frames)])
            losses["sensor_loss"] = config.mask_loss * alone[0] + config.pyramid_loss * alone[1]
            loss = loss + config.sensor_loss * losses["sensor_loss"]
        return {"loss": loss, **losses}

    def _broken(self, batch: Batch, broken: Broken) -> Features:
        """The batch's broken sensors through the trunk, as rows of its frames."""
        rows = [len(images) for images in broken.images.values()]
        apart = torch.arange(sum(rows)).split(rows)
        own = Batch(broken.images, dict(zip(broken.images, apart, strict=True)), tuple(map(str, range(sum(rows)))))
        found = self.model.encode(own)
        return replace(found, frames=tuple(broken.frames[m] for m in found.modalities), count=len(batch))

    def _both(self, output: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """OHEM cross-entropy of the mask head and of the pyramid head."""
        threshold, keep = self.config.ohem_threshold, self.config.ohem_keep
        maps = (output.mask_logits, output.pyramid_logits)
        mask, pyramid = (ohem_cross_entropy(output.at_input_size(m), labels, threshold, keep) for m in maps)
        return mask, pyramid


def rows_to_keep(batch: Batch, probability: float, rng: np.random.Generator) -> dict[str, Tensor] | None:
    """Leave each frame's sensors out at random, but never all of them; None where nothing is left out."""
    present = np.zeros((len(batch), len(batch.modalities)), dtype=bool)
    for column, modality in enumerate(sorted(batch.modalities)):
        present[batch.frames[modality].cpu().numpy(), column] = True
    draws = rng.random(present.shape)
    kept = present & (draws >= probability)
    emptied = ~kept.any(axis=1)
    best = np.where(present, draws, -1.0).argmax(axis=1)  # the sensor with the luckiest draw stays
    kept[emptied, best[emptied]] = True
    if (kept == present).all():
        return None
    return {
        modality: torch.from_numpy(kept[batch.frames[modality].cpu().numpy(), column])
        for column, modality in enumerate(sorted(batch.modalities))
        if kept[batch.frames[modality].cpu().numpy(), column].any()
    }


def led_pass(model: MLESAM, batch: Batch, rng: np.random.Generator) -> Batch | None:
    """What is given to the pass in which some sensors lead and the others hand over; None where none does. Every other time it
    has the broken sensors in the place of the sound ones, since they hand over as well."""
    if not len(model.handovers):
        return None
    return batch.with_broken() if batch.broken is not None and rng.random() < 0.5 else replace(batch, broken=None)
