"""A result as tables for a paper: rows by sensors, per class, per case, and beside it what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlesam.evaluation.peers import published, rule
from mlesam.evaluation.results import MINIATURE, title
from mlesam.evaluation.typeset import Sheet, Table


@dataclass(frozen=True)
class Setting:
    """What a result's numbers depend on beside what ``metrics.json`` says.

    Attributes:
        foundation: name of the frozen model. sensors: that the run was trained with.
        resize: short side in pixels that frames are brought to, see :class:`mlesam.config.DataConfig`.
    """

    foundation: str
    sensors: tuple[str, ...]
    resize: int | None = None


def sheet(metrics: Mapping[str, Any], setting: Setting) -> Sheet:
    """All tables of one result, the content of ``metrics.json``."""
    made = {"rmm": _by_drop, "faults": _by_fault}.get(metrics["protocol"], _by_row)(metrics)
    tables = [made, _by_class(metrics), *_by_case(metrics)]
    tables += published(metrics, setting.foundation, setting.sensors, setting.resize)
    return Sheet(title(metrics), tuple(tables), tuple(_notes(metrics, setting)))


def _notes(metrics: Mapping[str, Any], setting: Setting) -> list[str]:
    how = rule(metrics, setting.resize)
    found = [f"mIoU and IoU in %. mlesam on {setting.foundation}; {how}; seed {metrics['seed']}."]
    if "miniature" in metrics:
        found.append(f"{MINIATURE.capitalize()}.")
    if "split_frames" in metrics:
        found.append(f"Part of the split: the first {metrics['frames']} of {metrics['split_frames']} frames.")
    if "about" in metrics:
        found.append(metrics["about"])
    if "class_map" in metrics:
        ignored = [name for name, answer in metrics["class_map"]["classes"].items() if answer is None]
        left_out = f"; not scored: {', '.join(ignored)}" if ignored else ""
        found.append(f"Another dataset's classes, by the class map {metrics['class_map']['name']}{left_out}.")
    return found


def _by_row(metrics: Mapping[str, Any]) -> Table:
    """One row per condition."""
    first = {"cases": "case", "nm": "noise"}.get(metrics["protocol"], "sensors")
    rows = metrics["results"]
    ratios = any("ratio" in row for row in rows)
    sure = any("ece" in row for row in rows)
    heads = (first, "mIoU", *(["of full"] if ratios else []), "pixel accuracy", *(["ECE"] if sure else []), "frames")
    cells = tuple(
        (
            row["name"],
            percent(row["miou"]),
            *([percent(row["ratio"])] if ratios else []),
            percent(row["pixel_accuracy"]),
            *([percent(row["ece"])] if sure else []),
            str(row["frames"]),
        )
        for row in rows
    )
    summary = metrics["summary"]
    notes = [
        f"Mean {percent(summary['mean'])}, all sensors {percent(summary['full'])}, worst {percent(summary['worst'])}."
    ]
    if "miou_e" in summary:
        expected = ", ".join(f"{percent(v)} at p = {p}" for p, v in summary["miou_e"].items())
        notes.append(f"mIoU_Avg {percent(summary['miou_avg'])}; mIoU_E {expected}.")
    return Table(f"mIoU by {first}", heads, cells, tuple(notes))


def _by_drop(metrics: Mapping[str, Any]) -> Table:
    """RMM: sets of whole sensors by the share of zeros in all others."""
    rows = metrics["results"]
    found = {(row["name"], row["drop"]): percent(row["miou"]) for row in rows}
    drops = list(dict.fromkeys(row["drop"] for row in rows))
    cells = tuple((name, *(found[name, drop] for drop in drops)) for name in dict.fromkeys(row["name"] for row in rows))
    notes = tuple(
        f"Share {drop}: mIoU_Avg {percent(own['miou_avg'])}." for drop, own in metrics["summary"]["drops"].items()
    )
    return Table(
        "mIoU by whole sensors and share of zeros in all others", ("whole sensors", *map(str, drops)), cells, notes
    )


def _by_fault(metrics: Mapping[str, Any]) -> Table:
    """Faults by sensor: the share of the clean mIoU that is left, mean over the severities."""
    left: dict[tuple[str, str], list[float]] = {}
    for row in metrics["results"]:
        if row["fault"] is not None and row["ratio"] is not None:
            left.setdefault((row["fault"], row["sensor"]), []).append(row["ratio"])
    sensors = metrics["modalities"]
    unseen = {row["fault"] for row in metrics["results"] if row["fault"] is not None and not row["seen"]}
    cells = []
    for fault in metrics["summary"]["degradation"]["faults"]:
        means = [left.get((fault, sensor)) for sensor in sensors]
        name = f"{fault}, never trained with" if fault in unseen else fault
        cells.append((name, *(percent(None if own is None else sum(own) / len(own)) for own in means)))
    lost = metrics["summary"]["degradation"]
    notes = (
        f"mIoU in % of the clean one, {percent(metrics['summary']['full'])}, mean over severities. Lost in the mean: "
        f"{percent(lost['mean'])}; faults that training may use {percent(lost['seen'])}, others {percent(lost['unseen'])}.",
    )
    return Table("What is left with one sensor at fault", ("fault", *sensors), tuple(cells), notes)


def _by_class(metrics: Mapping[str, Any]) -> Table:
    """IoU of each class: of sets of sensors, each sensor alone and all of them; of faults, the clean row; else every row."""
    rows = metrics["results"]
    if metrics["protocol"] in ("rmm", "faults"):
        rows = rows[-1:]
    elif metrics["protocol"] in ("subsets", "emm"):
        rows = [row for row in rows[:-1] if len(row["present"]) == 1] + rows[-1:]
    cells = [(name, *(percent(row["iou"][name]) for row in rows)) for name in metrics["classes"]]
    cells.append(("mean", *(percent(row["miou"]) for row in rows)))
    return Table("IoU by class", ("class", *(row["name"] for row in rows)), tuple(cells), (NO_IOU,))


NO_IOU = "–: in neither labels nor predictions, or not scored; left out of the mean."


def _by_case(metrics: Mapping[str, Any]) -> Sequence[Table]:
    """mIoU by condition over the frames of each tag, for protocols whose rows are sets of sensors."""
    tags = metrics["tags"]
    if not tags or metrics["protocol"] not in ("subsets", "emm"):
        return ()
    cells = [
        (row["name"], *(percent(tags[tag]["results"][i]["miou"]) for tag in tags), percent(row["miou"]))
        for i, row in enumerate(metrics["results"])
    ]
    cells.append(("frames", *(str(tags[tag]["frames"]) for tag in tags), str(metrics["frames"])))
    return (Table("mIoU by case", ("sensors", *tags, "all"), tuple(cells)),)


def percent(value: float | None) -> str:
    """With two decimals, as publications have it."""
    return "–" if value is None else f"{100 * value:.2f}"
