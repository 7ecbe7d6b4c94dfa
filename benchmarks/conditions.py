"""The conditions that every result under ``benchmarks/results/`` names."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def command(name: str) -> str:
    """How this result was made, with the options that change it: where files lie is left out."""
    places, words, given = (
        ("--runs", "--result", "--plot", "--folder"),
        ["python", f"benchmarks/{name}.py"],
        sys.argv[1:],
    )
    while given:
        word = given.pop(0)
        if word in places:
            given.pop(0)
        else:
            words.append(word)
    return " ".join(words)


def conditions() -> dict[str, str]:
    """``commit`` (``-dirty`` where code or recipes differ from it), ``machine`` and ``date``."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--untracked-files=no", "--", "src", "recipes", "benchmarks/*.py"):
        commit += "-dirty"
    machine = f"{os.cpu_count()} CPU cores ({_processor()}), torch {torch.__version__}"
    return {
        "commit": commit,
        "machine": machine,
        "date": datetime.date.today().isoformat(),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
