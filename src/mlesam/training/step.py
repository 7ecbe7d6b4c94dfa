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

    The trunk runs once. The full-sensor pass and those with sensors left out are all decoded from its features.
    """

    def __init__(self, model: MLESAM, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(
        self,
        batch: Batch,
        subsets: Sequence[Mapping[str, Tensor]] = (),
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the full-sensor pass, of passes that keep the rows in each of ``subsets`` alone, and of one with the sensors
        that are broken in the place of the sound ones.

        Args:
            scores: ``{modality: (n,)}`` of the batch's rows, by which sensors go on in a model with ``model.look_lead``.
        """
        assert batch.labels is not None
        config, labels = self.config, batch.labels
        features = self.model.encode(batch) if scores is None else self.model.encode(batch, scores=scores)
        full = self.model.decode(features)
        partial = [self.model.decode(features.keep(rows)) for rows in subsets]
        if batch.broken is not None:
            partial.append(self.model.decode(Features.join([features, self._broken(batch, batch.broken)])))
        own = [self._both(output, labels) for output in (full, *partial)]
        mask, pyramid = own[0]
        if partial:  # all subsets together weigh as much as the full pass
            others = torch.stack([torch.stack(pair) for pair in own[1:]]).mean(dim=0)
            mask, pyramid = (mask + others[0]) / 2, (pyramid + others[1]) / 2
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
