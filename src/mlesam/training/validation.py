"""What every validation looks at, so that a training that goes wrong shows it early."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from mlesam.evaluation.metrics import confusion_matrix, mean_iou, number
from mlesam.evaluation.protocols import predict
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Batch

COLLAPSED = 0.5
"""A head or a sensor has collapsed when it falls below this share of its own best value so far."""


@torch.inference_mode()
def validate(model: MLESAM, batches: Iterable[Batch], reduce: Any = lambda tensor: tensor) -> dict[str, Any]:
    """mIoU with all sensors, of each head alone, of each sensor alone, and how the router spreads its trust.

    Args:
        batches: labelled frames; this process's share of them.
        reduce: sums a tensor over all processes.

    Returns:
        ``miou``, ``heads``, ``sensors``, ``weights`` (mean effective share), ``entropy`` (of the shares, 1: evenly
        spread, 0: one sensor has it all), ``constant`` (sensors that alone predict one class everywhere).
    """
    device = next(model.parameters()).device
    names = ["all", "mask", "pyramid", *model.modalities]
    counts = torch.zeros(len(names), model.num_classes, model.num_classes, dtype=torch.int64, device=device)
    shares = torch.zeros(len(model.modalities), dtype=torch.float64, device=device)
    spread = torch.zeros(3, dtype=torch.float64, device=device)  # frames, frames with several sensors, their entropy
    for batch in batches:
        batch = batch.to(device)
        labels = batch.labels
        assert labels is not None  # the loader of a labelled split
        size = (labels.shape[-2], labels.shape[-1])
        features = model.encode(batch)
        output = model.decode(features)
        for i, logits in enumerate((output.combined, output.mask_logits, output.pyramid_logits)):
            counts[i] += confusion_matrix(predict(output.at_input_size(logits), size), labels, model.num_classes)
        share = output.shares.double()
        shares += share.mean(dim=1).sum(dim=0)
        present = (share[:, 0] > 0).sum(dim=1)
        entropy = -(share * torch.log(share.clamp(min=1e-12))).sum(dim=2).mean(dim=1)
        several = present > 1
        spread += torch.stack(
            [
                torch.tensor(float(len(batch)), dtype=torch.float64, device=device),
                several.sum().double(),
                (entropy[several] / torch.log(present[several].double())).sum(),
            ]
        )
        for modality in features.modalities:
            part = features.select([modality])
            covered = part.covered()
            part = part if bool(covered.all()) else part.of_frames(covered)
            predicted = predict(model.decode(part).logits, size)
            counts[names.index(modality)] += confusion_matrix(predicted, labels[covered], model.num_classes)
    counts, shares, spread = reduce(counts), reduce(shares), reduce(spread)
    confusions = counts.cpu().numpy()
    values = {name: number(float(mean_iou(c))) for name, c in zip(names, confusions, strict=True)}
    predicted_classes = (confusions.sum(axis=1) > 0).sum(axis=1)
    true_classes = (confusions[0].sum(axis=1) > 0).sum()
    frames, several, entropy_sum = spread.tolist()
    return {
        "miou": values["all"],
        "heads": {head: values[head] for head in ("mask", "pyramid")},
        "sensors": {m: values[m] for m in model.modalities},
        "weights": {m: round(float(s) / max(frames, 1), 6) for m, s in zip(model.modalities, shares, strict=True)},
        "entropy": round(entropy_sum / several, 6) if several else None,
        "constant": [m for m in model.modalities if true_classes > 1 and predicted_classes[names.index(m)] == 1],
    }


def collapses(now: dict[str, Any], earlier: list[dict[str, Any]]) -> list[str]:
    """Sentences about what has collapsed since the earlier validations, or by itself."""
    found = []
    for group, what in (("heads", "the {} head alone"), ("sensors", "{} alone")):
        for name, value in now[group].items():
            best = max((v[group][name] or 0.0 for v in earlier), default=0.0)
            if value is not None and value < COLLAPSED * best:
                found.append(f"{what.format(name)} fell to mIoU {value:.3f} from {best:.3f}")
    miou = now["miou"]
    for head, value in now["heads"].items():
        if value is not None and miou and value < COLLAPSED * miou:
            found.append(f"the {head} head alone has mIoU {value:.3f}, far below the {miou:.3f} of both together")
    if earlier:  # at the first validation a sensor may well not have learned anything yet
        found += [f"{m} alone predicts one class everywhere" for m in now["constant"]]
    if now["entropy"] is not None and now["entropy"] < 0.1:
        top = max(now["weights"], key=now["weights"].get)
        found.append(f"the router trusts {top} alone (entropy {now['entropy']:.2f} of 1)")
    weak = [m for m, w in now["weights"].items() if w < 0.02 and not math.isclose(w, 0.0, abs_tol=1e-9)]
    return found + [f"the router hardly uses {m} (share {now['weights'][m]:.3f})" for m in weak]
