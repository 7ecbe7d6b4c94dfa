"""Where the time of a frame goes: ``python benchmarks/stages.py``, some minutes on one CPU core.

Every operation of the model is on the clock, by the part of the model and the stage of the trunk it works for, with four sensors,
tiny and base_plus, at 256 and 512 pixels. Operations alone: what Python does between them is not in it. On a CPU one thread's own
time counts, so that other work on the machine does not.

Writes ``benchmarks/results/stages.json`` and ``docs/stages.svg``, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from conditions import ROOT, command, conditions
from mlesam.bench.plots import stacked_bars
from mlesam.bench.setting import PRECISIONS, Setting
from mlesam.bench.stages import PARTS, profile
from mlesam.model.checkpoints import replace_file


def summary(rows: list[dict[str, Any]]) -> str:
    """Milliseconds by part; the first line is their sum, the second what trunk and neck take of it by themselves."""
    lines = [f"| ms | {' | '.join(row['name'].partition('@')[2] for row in rows)} |", f"|---|{'--:|' * len(rows)}"]
    for title, key in (("all", "milliseconds"), ("trunk and neck", "floor")):
        lines.append(f"| **{title}** | {' | '.join(f'{row[key]:,.0f}' for row in rows)} |")
    for part in PARTS:
        if any(part in row["parts"] for row in rows):
            cells = [f"{row['parts'].get(part, 0.0):,.1f}" for row in rows]
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["tiny", "base_plus"])
    parser.add_argument("--size", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "stages.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "stages.svg")
    options = parser.parse_args()
    settings = [
        Setting(preset, size, device=options.device, threads=options.threads)
        for preset in options.preset
        for size in options.size
    ]
    rows = [profile(setting, options.rounds, options.precision) for setting in settings]
    about = conditions(options.device)
    content = {"name": "stages", "command": command("stages"), **about, "seed": 0, "results": rows}
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    bars = {row["name"].partition("@")[2]: row["parts"] for row in rows}
    title = f"Where the time of a frame goes (four sensors, {options.precision}, {options.device})"
    replace_file(options.plot, stacked_bars(bars, title, "ms"))
    print(summary(rows))


if __name__ == "__main__":
    main()
