"""What a training says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 30.0
"""Seconds between two plain lines."""


class Progress:
    """Progress of one training.

    Args:
        console: where to write; None: nowhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.bar: Bar | None = None
        self.total = self.first = 0
        self.began = self.spoke = 0.0

    def say(self, text: str, style: str = "") -> None:
        if self.console is not None:
            self.console.print(escape(text), style=style, soft_wrap=True, highlight=False)

    def start(self, total: int, first: int = 0) -> None:
        self.total, self.first, self.began = total, first, time.monotonic()
        self.spoke = self.began
        if self.console is not None and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
            self.bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.bar.start()
            self.bar.add_task("", total=total, completed=first, loss="")

    def advance(self, step: int, loss: float) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=step, loss=f"loss {loss:.3f}")
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            self.spoke = time.monotonic()
            left = (self.spoke - self.began) / max(1, step - self.first) * (self.total - step)
            self.say(f"step {step} of {self.total}  loss {loss:.3f}  about {duration(left)} left")

    def validated(self, step: int, result: dict[str, Any], warnings: list[str]) -> None:
        def show(value: float | None) -> str:
            return "none" if value is None else f"{value:.3f}"

        heads = ", ".join(f"{k} {show(v)}" for k, v in result["heads"].items())
        sensors = ", ".join(f"{k} {show(v)}" for k, v in result["sensors"].items())
        weights = ", ".join(f"{k} {v:.2f}" for k, v in result["weights"].items())
        self.say(f"step {step}: val mIoU {show(result['miou'])}  heads: {heads}  alone: {sensors}  trust: {weights}")
        for warning in warnings:
            self.say(f"warning: {warning}", style="yellow")

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"
