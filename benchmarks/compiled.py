"""What ``torch.compile`` costs and buys: ``python benchmarks/compiled.py``.

Four sensors, one frame, experts merged, random weights: the compiled pass against the plain one, one call of each by turns, in
float32 and bfloat16. On a CPU times are CPU seconds of one thread, on a GPU (``--device cuda``, where the pass becomes a CUDA
graph) of the clock; compilation counts all processes that it starts.

Torch's cache of compiled code is left out. Writes ``benchmarks/results/compiled.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config

from conditions import ROOT, command, conditions
from mlesam.bench.case import difference
from mlesam.bench.measure import compared, in_turns
from mlesam.bench.setting import PRECISIONS, Setting
from mlesam.inference.compiled import Compiled
from mlesam.model.checkpoints import replace_file


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@torch.inference_mode()
def measured(setting: Setting, precision: str, rounds: int) -> dict[str, Any]:
    model, images = setting.model().merge(), setting.images()
    if precision == "bf16":
        model.compute_in(torch.bfloat16)
    compiled = Compiled(model)
    began, cpu = time.perf_counter(), spent()
    first = compiled(images)[0]
    cost = {"compile_seconds": round(time.perf_counter() - began, 1), "compile_cpu_seconds": round(spent() - cpu, 1)}
    error = difference(first, model(images).logits)
    clock = in_turns({"compiled": lambda: compiled(images), "plain": lambda: model(images).logits}, rounds, setting)
    return {
        "name": f"whole-compiled-{precision}{setting.suffix}", **compared(clock["compiled"], clock["plain"]),
        "baseline": f"the same without torch.compile, {precision}", "error": error, **cost,
        "conditions": f"{setting.describe()}; experts merged; median of {rounds} rounds in turns",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "compiled.json")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._inductor.config.force_disable_caches = True
    torch.backends.cudnn.allow_tf32 = False  # float32 is meant
    setting = Setting(options.preset, options.size, device=options.device, threads=1)
    rows = []
    for precision in PRECISIONS:
        rows.append(measured(setting, precision, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    about = conditions(options.device)
    result = {"name": "compiled", "command": command("compiled"), **about, "seed": 0, "results": rows}
    replace_file(options.result, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
