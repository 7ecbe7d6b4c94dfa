"""An evaluation, and an ablation, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_TAGS = 4


def table(metrics: dict[str, Any], console: Console) -> None:
    """One row per condition: mIoU over all frames, and over the frames of each tag (the four most frequent)."""
    longest = max((len(row["name"]) for row in metrics["results"]), default=0)
    room = max(0, console.width - longest - 35) // 16  # names of sensors come first, tags take what is left
    tags = sorted(metrics["tags"], key=lambda t: -metrics["tags"][t]["frames"])[: min(MOST_TAGS, room)]
    title = (
        f"{metrics['dataset']}, split {metrics['split']}, {metrics['frames']} frames, protocol {metrics['protocol']}"
    )
    view = Table(title=escape(title), title_justify="left")
    view.add_column("sensors", no_wrap=True, min_width=longest)
    view.add_column("mIoU", justify="right")
    view.add_column("pixel accuracy", justify="right")
    view.add_column("frames", justify="right")
    for tag in tags:
        view.add_column(escape(f"mIoU {tag} ({metrics['tags'][tag]['frames']})"), justify="right")
    for i, row in enumerate(metrics["results"]):
        own = [_percent(metrics["tags"][tag]["results"][i]["miou"]) for tag in tags]
        view.add_row(
            escape(row["name"]), _percent(row["miou"]), _percent(row["pixel_accuracy"]), str(row["frames"]), *own
        )
    console.print(view)
    summary = metrics["summary"]
    console.print(
        f"mean over subsets {_percent(summary['mean'])}, all sensors {_percent(summary['full'])}, "
        f"worst subset {_percent(summary['worst'])} (mIoU in %)",
        highlight=False,
    )


def comparison(rows: Sequence[Mapping[str, Any]], heads: tuple[str, str], console: Console) -> None:
    """The rows of an ablation: mIoU with its interval, and the difference to the first row of the group with its own."""
    view = Table(title="mIoU in %, 95 % bootstrap intervals in brackets", title_justify="left")
    groups = len({row["group"] for row in rows}) > 1
    for head in (*([heads[0]] if groups else []), heads[1]):
        view.add_column(escape(head), overflow="fold")
    wide = console.width >= 100  # names come first
    for head in ("mIoU", "to the first", *(("trainable", "s per step") if wide else ())):
        view.add_column(head, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row["group"]):
            view.add_section()
        group = row["group"] if row["group"] != last else ""
        last = row["group"]
        gain, reach = row["difference"], row["difference_interval"]
        view.add_row(
            *([escape(group)] if groups else []),
            escape(row["name"]),
            f"{_percent(row['miou'])} [{_percent(row['interval'][0])}, {_percent(row['interval'][1])}]",
            "" if gain is None else f"{100 * gain:+.1f} [{100 * reach[0]:+.1f}, {100 * reach[1]:+.1f}]",
            *(
                (f"{row['trainable']:,}", "" if row["step_seconds"] is None else f"{row['step_seconds']:.3f}")
                if wide
                else ()
            ),
        )
    console.print(view)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
