"""What stands on the page, in order, and the sections about sensors, conditions and classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlesam.evaluation.about import recipe, training
from mlesam.evaluation.certainty import confidence
from mlesam.evaluation.charts import bar, diverging, dots, heat, legend, scroll, stacked
from mlesam.evaluation.facts import Facts, difference
from mlesam.evaluation.markup import Html, Section, change, css_color, h, percent, section
from mlesam.evaluation.robustness import robustness
from mlesam.evaluation.tiles import pictures

MANY = 12
"""Rows beyond which a group of subsets is folded."""
TALL = 40
"""Rows beyond which a table scrolls in its own box."""


# ---------------------------------------------------------------- subsets and conditions


def subsets(facts: Facts) -> Section:
    """mIoU of every subset, grouped by how many sensors are in."""
    tag = facts.second
    values = [r["miou"] for r in facts.rows] + (
        [facts.row(r["present"], tag)["miou"] for r in facts.rows] if tag else []
    )
    top = math.ceil(10 * max((v for v in values if v is not None), default=1.0) + 1e-9) / 10
    sizes = sorted({len(r["present"]) for r in facts.rows}, reverse=True)
    groups = [_group(facts, [r for r in facts.rows if len(r["present"]) == n], n, tag, top) for n in sizes]
    costs = {m: c for m in facts.modalities if (c := facts.cost(m)) is not None}
    lead = "One model, tested with every subset of its sensors on the same frames."
    if len(facts.modalities) == 1:
        lead = "With one sensor there is one subset."
    lead += f" Bars end at {percent(top)} %."
    if costs and min(costs.values()) < 0:
        dear, cheap = min(costs, key=lambda m: costs[m]), max(costs, key=lambda m: costs[m])
        lead += f" Of all sensors, {dear} is missed most ({change(costs[dear])} points)"
        lead += f" and {cheap} least ({change(costs[cheap])})." if cheap != dear else "."
    names = {"all frames": "var(--bar)"} | (
        {f"{tag} ({facts.metrics['tags'][tag]['frames']} frames)": "var(--bar2)"} if tag else {}
    )
    key = h("div", legend(facts.colors), legend(names), class_="keys")
    return section(
        "subsets", "Subsets", lead, key, h("div", groups, class_="groups"), heading="Every subset of the sensors"
    )


def _group(facts: Facts, rows: list[dict[str, Any]], count: int, tag: str | None, top: float) -> Html:
    ranked = sorted(rows, key=lambda r: -(r["miou"] if r["miou"] is not None else -1))
    body = []
    for row in ranked:
        bars = [bar(row["miou"], top)]
        if tag is not None:
            bars.append(bar(facts.row(row["present"], tag)["miou"], top, "second"))
        body.append(h("tr", h("th", dots(row["present"], facts.modalities, facts.colors), scope="row"), h("td", bars)))
    every = count == len(facts.modalities)
    title = (
        "the only sensor"
        if every and count == 1
        else f"all {count}"
        if every
        else f"{count} sensors"
        if count > 1
        else "one sensor"
    )
    table = h("table", h("caption", title), h("tbody", body), class_="subsets")
    if len(rows) <= MANY:
        return table
    best, worst = percent(ranked[0]["miou"]), percent(ranked[-1]["miou"])
    return h("details", h("summary", f"{title}: {len(rows)} subsets, {worst} to {best}"), table)


def conditions(facts: Facts) -> Section | None:
    """Subset by condition as a heat map."""
    if not facts.tags:
        return None
    tags = facts.metrics["tags"]
    names: list[str | None] = [None, *facts.tags]
    table = {(tuple(r["present"]), t): facts.row(r["present"], t)["miou"] for r in facts.rows for t in names}
    known = [v for v in table.values() if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    columns = [
        h("th", t or "all", h("small", facts.metrics["frames"] if t is None else tags[t]["frames"]), scope="col")
        for t in names
    ]
    body = []
    for row in sorted(facts.rows, key=lambda r: (-len(r["present"]), -(r["miou"] or 0))):
        present = tuple(row["present"])
        cells = [heat(table[present, t], low, high) for t in names]
        body.append(h("tr", h("th", dots(present, facts.modalities, facts.colors), scope="row"), cells))
    head = h("thead", h("tr", h("th", "sensors", h("small", "frames"), scope="col"), columns))
    lead = (
        "mIoU of every subset (rows) under every condition that frames are tagged with (columns, with their number of "
        f"frames). Strong colours are high; they reach from {percent(low)} to {percent(high)}. Few frames make a shaky number."
    )
    content = scroll(
        h("table", head, h("tbody", body), class_="heat"),
        "mIoU by subset and condition",
        "tall" if len(body) > TALL else "",
    )
    return section(
        "conditions", "Conditions", lead, legend(facts.colors), content, heading="Subsets under each condition"
    )


def trust(facts: Facts) -> Section | None:
    """The router's shares by condition."""
    if len(facts.modalities) == 1:
        return None
    entries: list[tuple[str, int, dict[str, float | None]]] = [
        ("all frames", facts.full["frames"], facts.full["weights"])
    ]
    for tag in facts.tags:
        row = facts.row(facts.modalities, tag)
        entries.append((tag, row["frames"], row["weights"]))
    body = [
        h(
            "tr",
            h("th", name, h("small", f"{count} frame{'s' if count != 1 else ''}"), scope="row"),
            h("td", stacked(shares, facts.colors)),
        )
        for name, count, shares in entries
    ]
    lead = (
        "How the router divides its trust when all sensors are there, in %: each sensor's effective share in the fused "
        "feature maps, averaged over frames and pyramid levels. A bar always fills 100 %."
    )
    moved = _most_moved(facts)
    table = h("table", h("tbody", body), class_="trust")
    return section(
        "trust", "Trust", f"{lead}{moved}", legend(facts.colors), table, heading="How far each sensor is trusted"
    )


def _most_moved(facts: Facts) -> str:
    """A sentence on the sensor whose share a condition changes most, if that is more than a point."""
    best: tuple[float, str, str] | None = None
    for tag in facts.tags:
        if facts.metrics["tags"][tag]["frames"] < 3:
            continue
        weights = facts.row(facts.modalities, tag)["weights"]
        for m in facts.modalities:
            moved = difference(weights[m], facts.full["weights"][m])
            if moved is not None and (best is None or abs(moved) > abs(best[0])):
                best = (moved, m, tag)
    if best is None or abs(best[0]) < 0.01:
        return ""
    return f" The largest shift: {best[1]} {change(best[0])} points in {best[2]}."


# ---------------------------------------------------------------- classes


def classes(facts: Facts) -> Section:
    """IoU by class, and what losing each sensor costs."""
    colors = dict(zip(facts.classes, facts.run.classes.colors, strict=True))
    iou = facts.full["iou"]
    pixels = np.asarray(facts.metrics["confusion"], dtype=np.float64).sum(axis=1)
    share = dict(zip(facts.classes, pixels / max(pixels.sum(), 1), strict=True))
    lost = {m: row for m in facts.modalities if (row := facts.without(m)) is not None}
    costs = {(c, m): difference(row["iou"][c], iou[c]) for c in facts.classes for m, row in lost.items()}
    reach = max((abs(v) for v in costs.values() if v is not None), default=0.0)
    top = math.ceil(10 * max((v for v in iou.values() if v is not None), default=1.0) - 1e-9) / 10
    body = []
    for name in sorted(facts.classes, key=lambda c: (iou[c] is None, -(iou[c] or 0))):
        swatch = h("i", class_="swatch", style=f"--c:{css_color(colors[name])}")
        cells = [diverging(costs[name, m], reach) for m in lost]
        body.append(
            h(
                "tr",
                h("th", swatch, name, scope="row"),
                h("td", bar(iou[name], top)),
                h("td", percent(share[name])),
                cells,
            )
        )
    heads = [h("th", h("i", class_="dot", style=f"--c:{facts.colors[m]}"), f"− {m}", scope="col") for m in lost]
    head = h(
        "tr",
        h("th", "class", scope="col"),
        h("th", "IoU, all sensors", scope="col"),
        h("th", "pixels", scope="col"),
        heads,
    )
    table = h("table", h("thead", head), h("tbody", body), class_="classes")
    lead = "IoU of each class with all sensors, and the share of the scored pixels that it covers."
    if lost:
        lead += " To the right, what the class loses (red) or gains (blue) in points when one sensor is missing."
    return section("classes", "Classes", lead, scroll(table, "IoU by class"), heading="Class by class")


def confusion(facts: Facts) -> Section:
    """The confusion matrix with all sensors, each row scaled to 100 %."""
    counts = np.asarray(facts.metrics["confusion"], dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    colors = facts.run.classes.colors
    marks = [h("i", class_="swatch", style=f"--c:{css_color(c)}") for c in colors]
    columns = [h("th", h("span", mark, n), scope="col") for n, mark in zip(facts.classes, marks, strict=True)]
    body = []
    for i, name in enumerate(facts.classes):
        cells = []
        for j, value in enumerate(share[i]):
            kind_ = "right" if i == j else ""
            text = percent(float(value)) if value >= 0.0005 else ""
            cells.append(heat(float(value) if total[i, 0] else None, 0.0, 1.0, text, kind_))
        body.append(h("tr", h("th", marks[i], name, scope="row"), cells))
    size = "few" if len(counts) <= 8 else "some" if len(counts) <= 20 else "many"
    head = h(
        "thead",
        h(
            "tr",
            h("th", h("small", "predicted as →"), h("small", "true class ↓"), scope="col", class_="corner"),
            columns,
        ),
    )
    off = counts * (1 - np.eye(len(counts)))
    order = np.argsort(off, axis=None)[::-1][:3]
    pairs = [np.unravel_index(k, off.shape) for k in order if off.flat[k] > 0]
    said = ", ".join(f"{facts.classes[i]} for {facts.classes[j]} ({percent(float(share[i, j]))} %)" for i, j in pairs)
    lead = "Each row is a true class and says, in %, what its pixels were taken for; the diagonal is right, blank is below 0.05."
    lead += f" Most pixels are lost by taking {said}." if said else ""
    table = h("table", head, h("tbody", body), class_=f"confusion {size}")
    return section("confusion", "Confusion", lead, scroll(table, "Confusion matrix"), heading="What is taken for what")


ORDER = (pictures, subsets, conditions, classes, confusion, trust, confidence, robustness, training, recipe)
"""A section that has nothing to say is None."""
