"""The drawings of a page: bars, dots, heat maps and lines. Pure functions from numbers to markup.

Bars and heat maps are tables, so that text keeps its size on a phone and a screen reader finds rows and columns. Lines are
SVG stretched to their box, with the labels outside of it. Colours come from the style sheet's variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlesam.evaluation.markup import Html, change, h, join, percent

POINTS = 360
"""Most points of a drawn line: more than a screen shows, few enough to keep the page light."""


@dataclass(frozen=True)
class Line:
    """A line of a chart: (N,) x and y; ``color`` is any CSS colour.

    ``style``: ``solid``, ``dashed``, ``dotted``, or ``faint`` for a line that stands behind and has no legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    style: str = "solid"


def dots(present: Sequence[str], modalities: Sequence[str], colors: Mapping[str, str]) -> Html:
    """Which sensors are in: one dot for each, filled where it is, with a line from the first to the last."""
    marks = [h("i", style=f"--c:{colors[m]}" if m in present else None) for m in modalities]
    name = " + ".join(present)
    inside = [i for i, m in enumerate(modalities) if m in present]
    ends = f"--from:{inside[0]};--to:{inside[-1]}" if inside else None
    return h("span", marks, class_="dots", role="img", aria_label=name, title=name, style=ends)


def bar(value: float | None, top: float, class_: str = "") -> Html:
    """A horizontal bar with its number; ``top`` is the value at full length."""
    if value is None:
        return h("span", h("b", "–"), class_=f"bar {class_}".strip())
    length = 100 * value / top if top else 0
    return h("span", h("b", percent(value)), class_=f"bar {class_}".strip(), style=f"--v:{length:.2f}%")


def heat(
    value: float | None, low: float, high: float, text: str | None = None, class_: str = "", **attributes: object
) -> Html:
    """A table cell whose colour is the value between ``low`` and ``high``."""
    if value is None:
        return h("td", "–", class_=f"none {class_}".strip(), **attributes)
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    classes = " ".join(c for c in ("hot" if share > 0.7 else "", class_) if c)
    return h(
        "td", percent(value) if text is None else text, class_=classes or None, style=f"--h:{share:.3f}", **attributes
    )


def diverging(value: float | None, reach: float) -> Html:
    """A table cell for a change: one colour for losses, one for gains, full at ``reach``."""
    if value is None:
        return h("td", "–", class_="none")
    share = min(abs(value) / reach, 1.0) if reach else 0.0
    classes = ("loss" if value < 0 else "gain") + (" hot" if share > 0.86 else "")
    return h("td", change(value), class_=classes, style=f"--h:{share:.3f}")


def stacked(shares: Mapping[str, float | None], colors: Mapping[str, str]) -> Html:
    """Shares that sum to 1 as one bar; parts too narrow for their number go without."""
    parts = []
    for name, share in shares.items():
        if not share:
            continue
        number = h("b", percent(share)) if share >= 0.05 else None
        parts.append(
            h("i", number, style=f"--c:{colors[name]};width:{100 * share:.2f}%", title=f"{name} {percent(share)}")
        )
    spoken = ", ".join(f"{name} {percent(share)}" for name, share in shares.items() if share is not None)
    return h("span", parts, class_="stack", role="img", aria_label=spoken)


def legend(entries: Mapping[str, str], styles: Mapping[str, str] | None = None) -> Html:
    """Names beside their colours; ``styles`` names the lines that are ``dashed`` or ``dotted``."""
    styles = styles or {}
    items = [h("li", h("i", style=f"--c:{color}", class_=styles.get(name)), name) for name, color in entries.items()]
    return h("ul", items, class_="legend")


def scroll(content: Html, label: str, class_: str = "") -> Html:
    """A box that scrolls by itself, also from the keyboard, where its content is wider than the page."""
    return h("div", content, class_=f"scroll {class_}".strip(), role="region", aria_label=label, tabindex="0")


# ---------------------------------------------------------------- lines


def line_chart(lines: Sequence[Line], label: str, scale: float = 1.0, height: int = 220) -> Html:
    """Lines over steps, y from 0.

    Args:
        label: what a screen reader says. scale: factor from values to the numbers on the y axis. height: in pixels.

    The axis ends above the largest value that is not faint.
    """
    values = [v for line in lines if line.style != "faint" for v in line.y if v is not None and math.isfinite(v)]
    steps = [x for line in lines for x in line.x]
    if not values or not steps:
        return h("p", "Nothing was recorded.", class_="note")
    left, right = 0.0, max(max(steps), 1.0)
    ticks = nice_ticks(0.0, max(values) * scale or 1.0)
    high = ticks[-1] / scale
    paths = [
        h(
            "polyline",
            points=_points(line, left, right, high),
            class_=line.style,
            style=f"stroke:{line.color}",
            vector_effect="non-scaling-stroke",
        )
        for line in sorted(lines, key=lambda line: line.style != "faint")
    ]
    grid = [
        h("line", x1="0", x2="100", y1=f"{y:.2f}", y2=f"{y:.2f}", vector_effect="non-scaling-stroke")
        for y in (100 - 100 * tick / ticks[-1] for tick in ticks)
    ]
    drawing = h(
        "svg",
        h("g", grid, class_="grid"),
        paths,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        style=f"height:{height}px",
    )
    digits = max(0, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
    rows = [h("span", f"{t:.{digits}f}", style=f"bottom:{100 * t / ticks[-1]:.2f}%") for t in ticks]
    across = [t for t in nice_ticks(left, right, 5) if left <= t <= right]
    columns = [h("span", f"{t:,.0f}", style=f"left:{100 * (t - left) / (right - left):.2f}%") for t in across]
    names = {line.name: line.color for line in lines if line.style != "faint"}
    styles = {line.name: line.style for line in lines if line.style in ("dashed", "dotted")}
    axes = [h("div", rows, class_="rows", aria_hidden="true"), h("div", columns, class_="columns", aria_hidden="true")]
    return join([legend(names, styles) if len(names) > 1 else None, h("div", drawing, axes, class_="plot")])


def _points(line: Line, left: float, right: float, high: float) -> str:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y)]
    if len(pairs) > POINTS:
        parts = np.array_split(np.asarray(pairs, dtype=np.float64), POINTS)
        pairs = [tuple(part.mean(axis=0)) for part in parts]
    place = [(100 * (x - left) / (right - left), 100 - 100 * min(y / high, 1.0)) for x, y in pairs]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in place)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Exponential mean over about ``window`` values, without the pull towards the start."""
    keep = 1 - 1 / max(window, 1)
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    rough = (high - low) / max(most - 1, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
