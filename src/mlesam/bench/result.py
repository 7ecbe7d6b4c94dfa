"""What a benchmark found: with its conditions as JSON, as a table on the terminal, and as plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import mlesam
from mlesam.bench.plots import Line, lines
from mlesam.model.checkpoints import replace_file


def content(name: str, command: str, seed: int, device: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A result with where, when and on which code it was found; the command without the place that it is written to."""
    told = re.sub(r" --out[ =](?:'[^']*'|\S+)", "", command)
    return {
        "name": name, "command": told, "commit": commit(), "machine": machine(device),
        "date": datetime.date.today().isoformat(), "seed": seed, "results": list(rows),
    }  # fmt: skip


def commit() -> str:
    """Of the checkout that this package runs from (``-dirty`` where the code differs from it); without one, its version."""
    source = Path(mlesam.__file__).parent
    found = _git(source, "rev-parse", "--short", "HEAD") if _git(source, "ls-files", "__init__.py") else ""
    if not found:
        return f"mlesam {mlesam.__version__}"
    return found + ("-dirty" if _git(source, "status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=folder, check=False)
    except OSError:  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(device: str) -> str:
    """Processor, GPU and torch, as a person would call them."""
    info = Path("/proc/cpuinfo")
    found = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in found if line.startswith("model name")]
    parts = [f"{os.cpu_count()} CPU cores ({names[0] if names else platform.machine()})"]
    if torch.device(device).type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def write(path: Path, result: Mapping[str, Any]) -> list[Path]:
    """The JSON, and beside it a plot for each axis of ``scaling``. Returns what was written."""
    replace_file(path, json.dumps(result, indent=2) + "\n")
    written = [path]
    rows = [row for row in result["results"] if "axis" in row]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        plot = path.with_name(f"{path.stem}-{axis}.svg")
        unit = "times " + ", ".join(dict.fromkeys(row["baseline"] for row in rows if row["axis"] == axis))
        replace_file(plot, lines(_lines(rows, axis), f"Time of a frame over {axis}", axis, unit))
        written.append(plot)
    return written


def _lines(rows: Sequence[Mapping[str, Any]], axis: str) -> list[Line]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["axis"] == axis:
            found.setdefault(row["name"].partition("@")[2], []).append((row["value"], row["ratio"]))
    return [Line(name, points) for name, points in found.items()]


WIDE = 110


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as a table; further baselines of a row stand below it."""
    wide = console.width >= WIDE  # else what fits: names whole rather than columns cut
    title = "ratio = time / baseline's time" + ("; in brackets the least and the greatest of a round" if wide else "")
    view = Table(title=title, title_justify="left")
    heads = ("ratio", "baseline", "ms", "baseline's", "peak MiB", "baseline's")[: None if wide else 3]
    view.add_column("result", no_wrap=True)
    for head in heads:
        text = head == "baseline"  # what is broken where there is no room at all; numbers are not
        view.add_column(head, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        for name, own in ((row["name"], row), *(("", other) for other in row.get("against", {}).values())):
            _, low, high = own.get("ratio_by_round", (None, None, None))
            cells = (
                f"{own['ratio']:.3f}" + (f" [{low:.2f}, {high:.2f}]" if wide and low is not None else ""),
                escape(own["baseline"]),
                f"{1e3 * own['seconds']:,.1f}",
                f"{1e3 * own['baseline_seconds']:,.1f}",
                *("-" if v is None else f"{v:,.0f}" for v in (own["peak_mib"], own["baseline_peak_mib"])),
            )
            view.add_row(escape(name), *cells[: len(heads)])
    console.print(view)
    for row in rows:
        if "batch" in row:
            within = f"within {row['limit_mib']:,.0f} MiB: {row['batch']}, naive {row['baseline_batch']}"
            line = f"{row['name'].partition('@')[0]} {within}"
            console.print(line, highlight=False)
