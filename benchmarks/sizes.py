"""How large everything is, for each preset: ``python benchmarks/sizes.py``.

Builds each model with four sensors and 25 classes (those of DELIVER) and random weights, counts parameters by part, and writes
an adapter to disk to see its size. Writes ``benchmarks/results/sizes.json`` and prints the table of docs/adapters.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from conditions import ROOT, conditions
from mlesam import MLESAM, ModelConfig
from mlesam.config import RANDOM_PRESETS
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import ADAPTER, save_weights

SENSORS = {"rgb": 3, "depth": 1, "lidar": 3, "event": 3}
CLASSES = 25
RANK = 32


def measure(preset: str, folder: Path) -> dict[str, object]:
    """Parameters by part and bytes on disk of one preset."""
    torch.manual_seed(0)
    model = MLESAM(SENSORS, CLASSES, ModelConfig(foundation=preset, train="experts", rank=RANK))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    save_weights(model, folder / ADAPTER, {})
    own = folder / ADAPTER
    return {
        "name": preset.removesuffix("-random"),
        "foundation": count(model.foundation),
        "expert": count(model.experts.of("rgb")),
        "stems": count(model.stems),
        "routers": count(model.routers),
        "mask_head": count(model.mask_head),
        "pyramid_head": count(model.pyramid_head),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "foundation_mib": round(
            sum(t.numel() * t.element_size() for t in model.foundation.state_dict().values()) / 2**20, 1
        ),
        "adapter_mib": round(own.stat().st_size / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "sizes.json")
    options = parser.parse_args()
    rows = []
    for preset in RANDOM_PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(preset, Path(folder)))
        print(rows[-1], flush=True)
    result = {
        "name": "sizes", "command": "python benchmarks/sizes.py", **conditions(), "seed": 0,
        "conditions": {"sensors": list(SENSORS), "classes": CLASSES, "rank": RANK, "targets": ["q", "v"], "numbers": "fp32"},
        "results": rows,
    }  # fmt: skip
    replace_file(options.result, json.dumps(result, indent=2) + "\n")
    print("| preset | foundation | one expert | routers | mask head | pyramid head | foundation, MiB | adapter, MiB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        print(
            f"| {r['name']} | {r['foundation']:,} | {r['expert']:,} | {r['routers']:,} | {r['mask_head']:,} | "
            f"{r['pyramid_head']:,} | {r['foundation_mib']} | {r['adapter_mib']} |"
        )


if __name__ == "__main__":
    main()
