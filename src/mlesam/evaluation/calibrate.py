"""Fitting the temperatures of :mod:`mlesam.model.calibration` on a validation split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.evaluation.protocols import subsets
from mlesam.model.calibration import Calibration
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM
from mlesam.sample import IGNORE, Batch
from mlesam.sensors.faults import generator

FRAMES = 64
"""Most frames that a fit looks at."""
SETS = 15
"""Most sets of sensors that a fit looks at: as many as four sensors have."""
DECODES = 3 * FRAMES
"""Most passes through the heads. Beyond it a frame is seen with all sensors, and with the other sets by turns."""
PIXELS = 2**16
"""Most pixels that are kept, over all passes. Neighbours are alike: few of many frames say as much as all of them."""
PRIOR = 1e-4
"""Weight of the squared parameters beside the mean NLL in nats. It decides only what the data leave open: sensors that were
never seen together, or logits without any error, whose best temperature would be 0."""


def calibrate(
    model: MLESAM, batches: Iterable[Batch], modalities: Sequence[str], frames: int, seed: int
) -> Calibration | None:
    """Fit a model's temperatures by making the labels of some frames as likely as possible.

    Args:
        model: in evaluation mode.
        batches: the frames, one in each batch, with labels.
        modalities: the sensors that occur in them. frames: how many they are, at most ``FRAMES``.
        seed: what the choice of pixels and of sets depends on.

    Returns:
        The calibration, or None where no pixel is scored.
    """
    logits, labels, absent = sampled(model, batches, chosen_sets(modalities, seed), frames, seed)
    if not len(labels):
        return None
    base, gains = fit(logits, labels, absent)
    found = Calibration(round(base, 6), {m: round(g, 6) for m, g in zip(model.modalities, gains, strict=True)})
    kinds, which = torch.unique(absent.long(), dim=0, return_inverse=True)
    present = [[m for m, gone in zip(model.modalities, kind, strict=True) if not gone] for kind in kinds.tolist()]
    temperatures = torch.tensor([found.temperature(own) for own in present])[which]
    nll = [float(F.cross_entropy(z, labels)) for z in (logits, logits / temperatures[:, None])]
    return replace(found, frames=frames, pixels=len(labels), nll=(round(nll[0], 6), round(nll[1], 6)))


def chosen_sets(modalities: Sequence[str], seed: int) -> list[tuple[str, ...]]:
    """All subsets where they are at most ``SETS``; else all sensors, each one alone, and subsets drawn at random."""
    everyone = tuple(modalities)
    if 2 ** len(everyone) - 1 <= SETS:
        return subsets(everyone)
    found = [everyone, *((m,) for m in everyone)][:SETS]
    rng = generator(seed, "calibration")
    while len(found) < SETS:
        kept = rng.random(len(everyone)) < 0.5
        drawn = tuple(m for m, k in zip(everyone, kept, strict=True) if k)
        if drawn and drawn not in found:
            found.append(drawn)
    return found


@torch.no_grad()
def sampled(
    model: MLESAM, batches: Iterable[Batch], sets: Sequence[tuple[str, ...]], frames: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of pixels drawn at random, at the label's size; a frame's pixels are the same in every set of sensors.

    Returns:
        (N, C) float32 logits, (N,) int64 labels, and (N, M) bool, which of the model's sensors were absent.
    """
    device = next(model.parameters()).device
    everyone = max(sets, key=len)
    others = [own for own in sets if own != everyone]
    turns = max(0, min(len(others), DECODES // frames - 1))
    pixels = PIXELS // (frames * (turns + 1))
    logits, labels = [torch.zeros(0, model.num_classes)], [torch.zeros(0, dtype=torch.int64)]
    absent = [torch.zeros(0, len(model.modalities), dtype=torch.bool)]
    for number, batch in enumerate(batches):
        batch = batch.to(device)
        assert batch.labels is not None  # the loader of a labelled split
        truth = batch.labels[0].flatten()
        scored = torch.nonzero(truth != IGNORE)[:, 0]
        drawn = generator(seed, "calibration", batch.ids[0]).permutation(len(scored))[:pixels]
        picked = scored[torch.from_numpy(drawn).to(device)]
        if not len(picked):
            continue
        size = (batch.labels.shape[-2], batch.labels.shape[-1])
        features = model.encode(batch)
        turn = [everyone, *(others[(number * turns + i) % len(others)] for i in range(turns))]
        had = {tuple(m for m in features.modalities if m in own) for own in turn}  # what the frame lacks is in no set
        for present in sorted(had - {()}):
            full = at_size(model.decode(features.select(present)).logits, size)
            logits.append(full[0].flatten(1)[:, picked].T.float().cpu())
            labels.append(truth[picked].cpu())
            absent.append(torch.tensor([m not in present for m in model.modalities]).expand(len(picked), -1))
    return torch.cat(logits), torch.cat(labels), torch.cat(absent)


def fit(logits: Tensor, labels: Tensor, absent: Tensor) -> tuple[float, list[float]]:
    """The temperatures that make labels most likely: log T = base + the sum of the gains of the absent sensors.

    Args:
        logits: (N, C). labels: (N,) int64. absent: (N, M) bool.

    Returns:
        The base and M gains. The gain of a sensor that was always there, or never, is 0.
    """
    kinds, which = torch.unique(absent.long(), dim=0, return_inverse=True)
    varies = (kinds.amax(dim=0) > kinds.amin(dim=0)).double()
    design = torch.cat([torch.ones(len(kinds), 1), kinds * varies], dim=1).double()
    precise = logits.double()
    parameters = torch.zeros(design.shape[1], dtype=torch.float64, requires_grad=True)
    # Few numbers and a smooth function: quasi-Newton steps on all pixels at once, until nothing moves any more.
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=100, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scaled = precise * torch.exp(-(design @ parameters))[which, None]
        value = F.cross_entropy(scaled, labels) + PRIOR * parameters.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    base, *gains = parameters.tolist()
    return base, gains
