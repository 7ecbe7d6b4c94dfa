"""How far to trust each sensor, learned after the training: sound frames against frames broken on purpose.

The weights that see and segment stay as they are, so a model that was trained on sound frames alone can learn it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mlesam.data.dataset import Frame
from mlesam.data.faulty import earlier_values
from mlesam.data.reading import read_frame
from mlesam.data.statistics import spaced
from mlesam.data.transforms import evaluation_sample
from mlesam.errors import WorkError
from mlesam.model.checkpoints import load_metadata
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import WEIGHTS, Run, save_weights
from mlesam.sample import Batch, Sample
from mlesam.sensors.faults import SEVERITIES, random_fault
from mlesam.sensors.spec import SensorSpec
from mlesam.training.prepare import Prepared
from mlesam.training.progress import Progress

FRAMES = 256
"""Training frames that are looked at; more of them add nothing that was measured."""
Known = dict[str, list[tuple[torch.Tensor, float]]]
"""For each sensor its rows' signs and how far each row deserves to be trusted."""


def owes_trust(out: Path) -> bool:
    """Whether a run's model looks at its sensors' reliability and has not learned it yet."""
    run = Run.load(out)
    wanted = run.recipe.model.reliability and len(run.sensors) > 1 and (out / WEIGHTS).is_file()
    return wanted and not load_metadata(out / WEIGHTS).get("trust_fitted", False)


def learn_trust(prepared: Prepared, out: Path, report: Progress) -> None:
    """Fit the reliability of the chosen weights, where the model looks at it, and store them again."""
    if not owes_trust(out):
        return
    report.say("learning from broken frames how far to trust each sensor")
    chosen = load_metadata(out / WEIGHTS)
    model = Run.load(out).load_model().to("cuda" if torch.cuda.is_available() else "cpu")
    recipe = prepared.recipe
    try:
        fit_trust(model, prepared.train, prepared.sensors, recipe.data.resize, recipe.seed, recipe.training.only)
    except KeyboardInterrupt:
        raise WorkError(
            f"stopped while learning whom to trust; the weights are kept, finish with: mlesam train --out {out} --resume"
        ) from None
    save_weights(model, out / WEIGHTS, {"step": chosen["step"], "miou": chosen["miou"], "trust_fitted": True})


def fit_trust(
    model: MLESAM,
    frames: Sequence[Frame],
    sensors: Mapping[str, SensorSpec],
    resize: int | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> None:
    """Fit the reliability of a trained model's sensors.

    A sound sensor deserves 1. One with a fault of severity s deserves 1 - s / 5, and at most the share of the sound picture's
    variance that the broken one still explains: a stale picture of another street deserves nothing at any severity. Every
    sensor of every frame is broken once, by a random fault that training may use, beside all other sensors or some of them.

    Args:
        frames: to train on, in their order. resize: as in the recipe. only: the sensors to fit; None: all.
    """
    model.eval()
    known: Known = {m: [] for m in model.reliability if only is None or m in only}
    if not known:
        return
    device = next(model.parameters()).device
    with torch.inference_mode():
        for index in spaced(range(len(frames)), FRAMES):
            rng = np.random.default_rng([seed, index])
            sample = read_frame(frames[index], sensors)
            sound = evaluation_sample(sample, sensors, resize)
            clean = model.encode(Batch.stack([sound]).to(device))
            if len(clean.modalities) < 2:
                continue  # nothing to be weighed against
            _note(model, clean, {}, rng, known)
            earlier = partial(earlier_values, frames, sensors, index)
            for modality in clean.modalities:
                fault = random_fault([modality], sensors, rng, earlier=True)
                values = fault.apply(
                    sample.images[modality], sensors[modality], seed=int(rng.integers(2**31)), earlier=earlier
                )
                assert values is not None
                image = evaluation_sample(Sample({modality: values}), sensors, resize)
                broken = model.encode(Batch.stack([image]).to(device))
                left = min(
                    1 - fault.severity / SEVERITIES[-1], explained(sound.images[modality], image.images[modality])
                )
                _note(model, Features.join([clean, broken]), {modality: left}, rng, known)
    for modality, rows in known.items():
        if rows:
            signs = torch.stack([s for s, _ in rows])
            model.reliability[modality].fit(signs, torch.tensor([t for _, t in rows]), seed)  # type: ignore[operator]


def explained(sound: torch.Tensor, broken: torch.Tensor) -> float:
    """Share of the variance of a picture that another one explains: their squared correlation, 0 where it is negative."""
    a, b = (x.double().flatten() - x.double().mean() for x in (sound, broken))
    return max(0.0, float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12))) ** 2


def _note(
    model: MLESAM, features: Features, broken: Mapping[str, float], rng: np.random.Generator, known: Known
) -> None:
    """What a scene shows of its sensors: half of the scenes with all of them, half with some.

    Args:
        broken: the sensor that is broken, if any, and what it deserves.
    """
    present = list(features.modalities)
    if rng.random() < 0.5:
        count = int(rng.integers(2, len(present) + 1))
        drawn = [present[i] for i in rng.permutation(len(present))]
        features = features.select([*broken, *(m for m in drawn if m not in broken)][:count])
    features, _ = model.chosen(features)
    if len(features.segments) < 2:
        return  # nothing is left to be weighed against
    signs = model.signs(features).float().cpu()
    for segment in features.segments:
        if segment.modality in known:
            trust = broken.get(segment.modality, 1.0)
            known[segment.modality] += [(row, trust) for row in signs[segment.start : segment.stop]]
