"""What sensors that hand over cost and save (``model.look_lead``): ``python benchmarks/leaders.py``.

On the procedural world, with models of four sensors that are trained as in recipes/ablation.yaml (three seeds): mIoU on test with
all sensors computed, and with two or three that lead while the others hand over what they saw after the first stage, or before
it. Of each model also the mean over all sets of one to four sensors, since a frame may lack some. The time that it saves is in
the rows ``early-*`` of ``mlesam bench``.

Writes ``benchmarks/results/leaders.json``. Trainings are kept in ``runs/look`` and done once.
"""

from __future__ import annotations

import json
import statistics
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from conditions import ROOT, command, conditions, options_of, shortened
from experts import SEEDS, say
from look import note, trained
from mlesam import Batch
from mlesam.data.dataset import open_dataset
from mlesam.data.reading import read_frame
from mlesam.data.transforms import evaluation_sample
from mlesam.evaluation.metrics import mean_iou
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run

LED = {
    "two lead, after stage 1": (1, ("rgb", "lidar")),
    "two lead, before stage 1": (0, ("rgb", "lidar")),
    "three lead, before stage 1": (0, ("rgb", "lidar", "thermal")),
}
"""After which stage the others are left behind, and who leads. rgb and lidar are the pair that is best on val by look.json."""


@torch.inference_mode()
def scored(run: Run) -> dict[str, float]:
    """mIoU on test with all sensors, and its mean over all sets of one or more of them."""
    assert run.recipe.data.dataset is not None
    model, total = run.load_model(), dict[str, Tensor]()
    sets = [chosen for count in range(len(run.sensors)) for chosen in combinations(run.sensors, count + 1)]
    for frame in open_dataset(run.recipe.data.dataset).frames("test"):
        sample = evaluation_sample(read_frame(frame, run.sensors, run.classes), run.sensors, run.recipe.data.resize)
        assert sample.label is not None
        features = model.encode(Batch.stack([sample]))
        for chosen in sets:
            if left := set(chosen) & set(features.modalities):
                note(total, "+".join(chosen), model, features.select(left), sample.label, len(run.classes.names))
    found = [float(mean_iou(total["+".join(chosen)].numpy())) for chosen in sets]
    return {"miou": round(found[-1], 4), "miou_over_all_sets": round(statistics.fmean(found), 4)}


def main() -> None:
    parser = options_of(__doc__, "leaders")
    parser.set_defaults(runs=ROOT / "runs" / "look")
    parser.add_argument("--seeds", nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"model.reliability": "true", **shortened(options)}
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        row: dict[str, Any] = {"seed": int(seed), "all computed": scored(trained(options.runs, seed, changes))}
        for name, (stage, lead) in LED.items():
            config = {
                "model.look": str(stage),
                "model.look_keep": str(len(lead)),
                "model.look_lead": f"[{', '.join(lead)}]",
            }
            run = trained(options.runs, seed, {**changes, **config}, f"lead{stage}-{'+'.join(lead)}-")
            row[name] = scored(run)
        results.append(row)
        say(json.dumps(row))
    content = {
        "name": "leaders", "command": command("leaders"), **conditions(), "seeds": [int(s) for s in options.seeds],
        "results": results,
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
