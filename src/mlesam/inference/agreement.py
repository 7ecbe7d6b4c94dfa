"""Whether an exported model gives what the model gives that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlesam.errors import WorkError
from mlesam.inference.exported import Exported

Scene = Mapping[str, Tensor]
"""``{modality: (C, H, W)}`` float32 in the sensors' units, NaN where nothing was measured."""


@dataclass(frozen=True)
class Tolerance:
    """What an export may differ from the model by.

    Attributes:
        largest: greatest difference of any probability. mean: the mean over pixels of the probability that went to another
            class. labels: least share of pixels with the same label, over real frames.
    """

    largest: float
    mean: float
    labels: float


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-4, 0.999),
    "bf16": Tolerance(1.0, 0.01, 0.98),
    "int8": Tolerance(1.0, 0.05, 0.95),
}


def arrays(scene: Scene) -> dict[str, np.ndarray]:
    """A scene as what an exported model takes, a batch of one."""
    return {m: x[None].numpy() for m, x in scene.items()}


@torch.inference_mode()
def differences(module: nn.Module, exported: Exported, scenes: Sequence[Scene]) -> dict[str, float]:
    """What an exported model gives beside the module that it was made of, over all scenes: the greatest difference of logits,
    probabilities and shares, the mean probability that went to another class, and the share of equal labels."""
    worst = {"logits": 0.0, "probabilities": 0.0, "weights": 0.0}
    moved, equal = 0.0, 0.0
    for scene in scenes:
        expected, shares = module(*(x[None] for x in scene.values()))
        logits, weights = (torch.from_numpy(np.array(v)) for v in exported.run(arrays(scene)))
        apart = (logits.softmax(1) - expected.softmax(1)).abs()
        for key, value in (("logits", logits - expected), ("probabilities", apart), ("weights", weights - shares)):
            worst[key] = max(worst[key], float(value.abs().max().nan_to_num(float("inf"))))
        moved += float(apart.sum(dim=1).mean()) / 2 / len(scenes)
        equal += float((logits.argmax(1) == expected.argmax(1)).float().mean()) / len(scenes)
    return {**worst, "moved": moved, "equal_labels": equal}


def refuse_differences(checked: Mapping[str, Any], tolerance: Tolerance, out: Path) -> None:
    """WorkError where an export is not what it was made of. Low precision is judged on real frames where there are some: on noise
    a trained model is nowhere sure."""
    precise = tolerance.largest < 1
    for what, inputs in (("random", "random inputs"), ("real", "real inputs"), ("one_thread", "one thread")):
        found = checked.get(what)
        if found is None or (what == "random" and "real" in checked and not precise):
            continue
        rules = [
            ("probabilities", found["probabilities"] <= tolerance.largest),
            ("moved", found["moved"] <= tolerance.mean),
        ]
        if what == "real":
            rules.append(("equal_labels", found["equal_labels"] >= tolerance.labels))
        wrong = [f"{name} {found[name]:.3g}" for name, fits in rules if not fits]
        if wrong:
            raise WorkError(
                f"{out} is not written: on {inputs} the exported model differs from the run's ({', '.join(wrong)}; allowed "
                f"are {tolerance.largest:g}, {tolerance.mean:g} and labels {tolerance.labels:g}); choose another precision or "
                "format."
            )


def summary(checked: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each kind of input that an export was checked on."""
    for what, name in (("random", "random numbers"), ("real", f"{checked.get('frames')} frames")):
        if what in checked:
            found = checked[what]
            yield (
                f"checked in {checked['precision']} on {name}: logits within {found['logits']:.1e}, probabilities within "
                f"{found['probabilities']:.1e}, labels of {found['equal_labels']:.2%} of the pixels equal"
            )
