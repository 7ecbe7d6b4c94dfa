"""Which sensors a model may leave behind early, learned after the training from what every choice would have cost.

The weights that see and segment stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.data.dataset import Frame
from mlesam.data.faulty import earlier_values
from mlesam.data.reading import read_frame
from mlesam.data.statistics import spaced
from mlesam.data.transforms import evaluation_sample
from mlesam.errors import WorkError
from mlesam.model.checkpoints import load_metadata
from mlesam.model.heads import at_size
from mlesam.model.look import seen
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import WEIGHTS, Run, save_weights
from mlesam.sample import IGNORE, Batch, Classes, Sample
from mlesam.sensors.faults import break_sample, random_fault
from mlesam.sensors.spec import SensorSpec
from mlesam.training.prepare import Prepared
from mlesam.training.progress import Progress

FRAMES = 256
"""Training frames that are looked at."""
STEPS, RATE, DECAY = 400, 3e-3, 1e-2


def owes_look(out: Path) -> bool:
    """Whether a run's model chooses sensors early and has not learned it yet."""
    run = Run.load(out)
    model = run.recipe.model
    chosen = model.look is not None and not model.look_lead and len(run.sensors) > model.look_keep
    wanted = chosen and (out / WEIGHTS).is_file()
    return wanted and not load_metadata(out / WEIGHTS).get("look_fitted", False)


def learn_look(prepared: Prepared, out: Path, report: Progress) -> None:
    """Fit the early choice of the chosen weights, where the model has one, and store them again."""
    if not owes_look(out):
        return
    report.say("learning which sensors can be left behind early")
    chosen = load_metadata(out / WEIGHTS)
    model = Run.load(out).load_model().to("cuda" if torch.cuda.is_available() else "cpu")
    recipe = prepared.recipe
    try:
        fit_look(model, prepared.train, prepared.sensors, prepared.classes, recipe.data.resize, recipe.seed)
    except KeyboardInterrupt:
        raise WorkError(
            f"stopped while learning which sensors to keep; the weights are kept, finish with: mlesam train --out {out} --resume"
        ) from None
    kept = {name: chosen[name] for name in ("step", "miou", "trust_fitted") if name in chosen}
    save_weights(model, out / WEIGHTS, {**kept, "look_fitted": True})


def fit_look(
    model: MLESAM,
    frames: Sequence[Frame],
    sensors: Mapping[str, SensorSpec],
    classes: Classes,
    resize: int | None = None,
    seed: int = 0,
) -> None:
    """Fit a trained model's early choice: of all sets of ``look_keep`` sensors, the one with the least :func:`balanced_loss`.

    Each frame is seen as it is, and once more with a random fault of one of its sensors. Its sensors are computed once, and every
    such set of them is decoded. The score of a set is the sum of its sensors' scores; a softmax over the sets gives how likely
    each is, and what is brought down is the loss that is then to be expected.

    Args:
        frames: labelled ones to train on. resize: as in the recipe.
    """
    model.eval()
    keep = model.config.look_keep
    known: list[Known] = []
    for index in spaced(range(len(frames)), FRAMES):
        rng = np.random.default_rng([seed, index])
        sample = read_frame(frames[index], sensors, classes)
        earlier = partial(earlier_values, frames, sensors, index)
        fault = random_fault(sample.images, sensors, rng, earlier=True)
        broken = break_sample(sample, sensors, [fault], int(rng.integers(2**31)), earlier)
        for shown in (sample, broken):
            found = _prices(model, evaluation_sample(shown, sensors, resize), keep)
            known += [] if found is None else [found]
    if not known:
        return
    device = next(model.parameters()).device
    for modality, look in model.looks.items():
        rows = [views[modality] for views, _ in known if modality in views]
        if rows:
            look.fit_scale(torch.stack(rows))  # type: ignore[operator]
    parameters = list(model.looks.parameters())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for look in model.looks.values():
            look.layers[0].reset_parameters()  # type: ignore[index,operator,union-attr]  # whatever it was drawn from
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
        everyone = tuple(model.looks)
        sets, prices = _table(known, everyone, keep, device)
        views = torch.stack(
            [torch.stack([v.get(m, torch.zeros_like(next(iter(v.values())))) for m in everyone]) for v, _ in known]
        ).to(device)
        for _ in range(STEPS):
            scores = torch.stack([look(views[:, i]) for i, look in enumerate(model.looks.values())], dim=1)
            likely = (scores @ sets.T).masked_fill(prices.isinf(), float("-inf")).softmax(dim=1)
            loss = (likely * prices.nan_to_num(posinf=0.0)).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False)


Known = tuple[dict[str, Tensor], dict[tuple[str, ...], float]]
"""Of a frame what is seen of each sensor early, and the loss with each set of sensors, over the least of them."""


@torch.inference_mode()
def _prices(model: MLESAM, sample: Sample, keep: int) -> Known | None:
    device = next(model.parameters()).device
    if sample.label is None or len(sample.images) <= keep or not (sample.label != IGNORE).any():
        return None
    early: list[Tensor] = []

    def note(stage: int, map_RCHW: Tensor) -> None:
        if stage == model.config.look:
            early.append(seen(map_RCHW))

    batch = Batch.stack([sample]).to(device)
    features = model.encode(batch, after=note)
    label = sample.label[None].to(device)
    losses = {}
    for chosen in combinations(features.modalities, keep):
        logits = at_size(model.decode(features.select(chosen)).logits, label.shape[-2:])
        losses[chosen] = balanced_loss(logits, label)
    least = min(losses.values())
    views = {s.modality: early[0][s.start].cpu().clone() for s in features.segments}
    return views, {chosen: loss - least for chosen, loss in losses.items()}


def balanced_loss(logits: Tensor, label: Tensor) -> float:
    """Mean over a frame's classes of each one's cross-entropy: like the mean IoU, it is not a matter of large areas alone.

    Args:
        logits: (B, C, H, W). label: (B, H, W), not scored where it is ``IGNORE``.
    """
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").double()
    count, total = (torch.zeros(logits.shape[1], dtype=torch.float64, device=label.device) for _ in range(2))
    scored = label != IGNORE
    count.index_add_(0, label[scored], torch.ones_like(loss[scored]))
    total.index_add_(0, label[scored], loss[scored])
    return float((total[count > 0] / count[count > 0]).mean())


def _table(known: Sequence[Known], everyone: Sequence[str], keep: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(S, M) which sensors each set has, and (F, S) what it costs each frame: infinity where it cannot be had."""
    sets = list(combinations(everyone, keep))
    members = torch.tensor([[float(m in chosen) for m in everyone] for chosen in sets], device=device)
    rows = [[prices.get(chosen, float("inf")) for chosen in sets] for _, prices in known]
    return members, torch.tensor(rows, device=device)
