"""The conditions that every result under ``benchmarks/results/`` names."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from mlesam.bench.result import machine

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


def options_of(text: str | None, name: str, plot: str | None = None) -> argparse.ArgumentParser:
    """The options of a benchmark that trains: where runs, result and plot lie, how many trainings at a time, and how short.

    Args:
        text: the script's description. name: of its result. plot: of its plot, where it draws one.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    if plot is not None:
        parser.add_argument("--plot", type=Path, default=ROOT / "docs" / f"{plot}.svg")
    parser.add_argument(
        "--jobs", type=int, default=2, help="trainings or tests at a time, the cores shared between them"
    )
    parser.add_argument("--steps", type=int, help="fewer steps, to try the command")
    return parser


def shortened(options: argparse.Namespace) -> dict[str, str]:
    """The fields of a recipe that ``--steps`` changes."""
    return {} if options.steps is None else {"training.steps": str(options.steps)}


def conditions(device: str = "cpu") -> dict[str, str]:
    """``commit`` (``-dirty`` where code or recipes differ from it), ``machine`` and ``date``.

    Args:
        device: that worked.
    """
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--untracked-files=no", "--", "src", "recipes", "benchmarks/*.py"):
        commit += "-dirty"
    return {
        "commit": commit,
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()
