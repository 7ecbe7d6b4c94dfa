"""An evaluation, and an ablation, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlesam.evaluation.results import title

MOST_TAGS = 4
SHOWN = (3, 5)
"""Severities of the matrix of faults."""


def table(metrics: dict[str, Any], console: Console) -> None:
    """One result, in the form that its protocol can be read in, and what it comes to in one line."""
    protocol, summary = metrics["protocol"], metrics["summary"]
    show = {"rmm": _drops, "faults": _faults}.get(protocol, _rows)
    console.print(show(metrics, escape(title(metrics)), console))
    means = {
        "subsets": ("mean over subsets", "worst subset"),
        "cases": ("mean over cases", "worst case"),
        "faults": ("mean over faults", "worst"),
    }
    mean, worst = means.get(protocol, ("mean", "worst"))
    lines = [
        f"{mean} {_percent(summary['mean'])}, all sensors {_percent(summary['full'])}, "
        f"{worst} {_percent(summary['worst'])} (mIoU in %)"
    ]
    if any("ece" in row for row in metrics["results"]):
        lines.append(_calibration(metrics["results"]))
    if protocol == "emm":
        lines.append(_aggregates(summary))
    for drop, own in summary.get("drops", {}).items():
        lines.append(f"drop {drop}: {_aggregates(own)}")
    if "degradation" in summary:
        lost = summary["degradation"]
        lines.append(
            f"mean loss of mIoU {_percent(lost['mean'])} % of the clean one: {_percent(lost['seen'])} % with faults that "
            f"training may use, {_percent(lost['unseen'])} % with those held out (*)"
        )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _rows(metrics: dict[str, Any], title: str, console: Console) -> Table:
    """One row per condition: mIoU over all frames, and over the frames of each tag (the four most frequent)."""
    first = "case" if metrics["protocol"] == "cases" else "level" if metrics["protocol"] == "nm" else "sensors"
    ratios = metrics["protocol"] != "subsets"
    longest = max((len(row["name"]) for row in metrics["results"]), default=0)
    sure = any("ece" in row for row in metrics["results"])
    taken = longest + 35 + (8 if ratios else 0) + (14 if sure else 0)
    room = max(0, console.width - taken) // 16  # names come first, tags take what is left
    tags = sorted(metrics["tags"], key=lambda t: -metrics["tags"][t]["frames"])[: min(MOST_TAGS, room)]
    tags = [] if metrics["protocol"] == "cases" else tags
    view = Table(title=title, title_justify="left")
    view.add_column(first, no_wrap=True, min_width=longest)
    for head in ("mIoU", *(["of full"] if ratios else []), "pixel accuracy", *(["ECE"] if sure else []), "frames"):
        view.add_column(head, justify="right")
    for tag in tags:
        view.add_column(escape(f"mIoU {tag} ({metrics['tags'][tag]['frames']})"), justify="right")
    for i, row in enumerate(metrics["results"]):
        view.add_row(
            escape(row["name"]),
            _percent(row["miou"]),
            *([_percent(row["ratio"])] if ratios else []),
            _percent(row["pixel_accuracy"]),
            *([_ece(row)] if sure else []),
            str(row["frames"]),
            *[_percent(metrics["tags"][tag]["results"][i]["miou"]) for tag in tags],
        )
    return view


def _ece(row: Mapping[str, Any]) -> str:
    now = _percent(row["ece"])
    return now if row["temperature"] is None else f"{_percent(row['ece_uncalibrated'])} → {now}"


def _calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    what = "ECE: expected calibration error in %, by how much confidence and accuracy differ in the mean"
    calibrated = any(row["temperature"] is not None for row in rows)
    return f"{what}; before → after calibration on val" if calibrated else f"{what}; the run is not calibrated"


def _drops(metrics: dict[str, Any], title: str, console: Console) -> Table:
    """RMM: sets of sensors by the share of zeros in all others."""
    drops = list(dict.fromkeys(row["drop"] for row in metrics["results"]))
    view = Table(title=title, title_justify="left", caption="mIoU in %; heads: share of zeros in all others")
    view.add_column("whole sensors", overflow="fold")
    for drop in drops:
        view.add_column(str(drop), justify="right")
    found = {(row["name"], row["drop"]): _percent(row["miou"]) for row in metrics["results"]}
    for name in dict.fromkeys(row["name"] for row in metrics["results"]):
        view.add_row(escape(name), *[found[name, drop] for drop in drops])
    return view


def _faults(metrics: dict[str, Any], title: str, console: Console) -> Table:
    """Fault by sensor, at two severities, as the share of the clean mIoU that is left."""
    found = {(r["fault"], r["sensor"], r["severity"]): r["ratio"] for r in metrics["results"] if r["fault"]}
    held_out = {r["fault"] for r in metrics["results"] if r["fault"] and not r["seen"]}
    view = Table(
        title=title, title_justify="left", caption=f"mIoU in % of the clean one, at severity {SHOWN[0]} and {SHOWN[1]}"
    )
    view.add_column("fault", no_wrap=True)
    for modality in metrics["modalities"]:
        view.add_column(escape(modality), justify="right", no_wrap=True)
    for fault in metrics["summary"]["degradation"]["faults"]:
        cells = []
        for modality in metrics["modalities"]:
            pair = [found.get((fault, modality, s), ...) for s in SHOWN]
            cells.append("".join(f"{'-' if v is None else f'{100 * v:.0f}':>4}" for v in pair if v is not ...))
        view.add_row(fault + (" *" if fault in held_out else ""), *cells)
    return view


def _aggregates(summary: Mapping[str, Any]) -> str:
    expected = ", ".join(f"{_percent(v)} at p = {p}" for p, v in summary["miou_e"].items())
    return f"mIoU_Avg {_percent(summary['miou_avg'])}, mIoU_E {expected}"


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
