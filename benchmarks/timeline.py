"""Pictures of sensors that come and go: one drive, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlesam.evaluation.charts import nice_ticks
from mlesam.evaluation.markup import Html, h

LEFT, WIDTH, HEIGHT, GAP = 64, 640, 150, 46
"""Pixels: left margin, width and height of a panel, and the space above it, where its title stands."""
SENSORS = ("#2a6fbb", "#c9772b", "#5b9a4b", "#a6493f", "#7a5ea8", "#5a6775")
LINES = ("#9aa5b1", "#2a6fbb", "#c9772b")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2733}.title{font-weight:600}.tick{font-size:11px;fill:#5a6775}"
    ".page{fill:#fff}.grid{stroke:#e3e8ee}polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}"
)


def timeline(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    weights: tuple[str, np.ndarray],
    sensors: Sequence[str],
    frames_per_second: int,
) -> Html:
    """Panels over the seconds of a drive: each frame's mIoU, and below them the router's weights.

    Args:
        panels: by title, up to three lines by name, mIoU of each frame; the first one is drawn in grey.
        weights: title, and (F, M) share of each sensor.
    """
    top = max(max(values) for lines in panels.values() for values in lines.values())
    ticks = nice_ticks(0.0, 100 * top, 5)
    drawn: list[Html] = []
    for number, (title, lines) in enumerate(panels.items()):
        bottom = _bottom(number)
        colors = dict(zip(lines, LINES, strict=False))
        marks = [
            h("polyline", points=_points(values, 100 / ticks[-1], bottom), style=f"stroke:{colors[name]}")
            for name, values in lines.items()
        ]
        drawn.append(h("g", _frame(f"{title}: mIoU, %", ticks, bottom), marks, _legend(colors, bottom)))
    title, given = weights
    bottom = _bottom(len(panels))
    edges = np.concatenate([np.zeros((len(given), 1)), np.cumsum(given, axis=1)], axis=1)
    areas = [
        h("polygon", points=f"{_points(edges[:, i + 1], 1.0, bottom)} {_points(edges[:, i], 1.0, bottom, back=True)}",
          style=f"fill:{SENSORS[i]};fill-opacity:.75")
        for i in range(len(sensors))
    ]  # fmt: skip
    frame = _frame(f"{title}, %", [0, 25, 50, 75, 100], bottom)
    drawn.append(h("g", frame, areas, _legend(dict(zip(sensors, SENSORS, strict=False)), bottom)))
    height = bottom + 44
    seconds = len(given) / frames_per_second
    steps = [t for t in nice_ticks(0.0, seconds, 6) if t <= seconds]
    axis = [
        h("text", f"{t:g}", x=f"{LEFT + WIDTH * t / seconds:.1f}", y=bottom + 16, text_anchor="middle", class_="tick")
        for t in steps
    ]
    note = h("text", "seconds", x=LEFT + WIDTH, y=bottom + 34, text_anchor="end", class_="tick")
    width = LEFT + WIDTH + 24
    label = "A drive, frame by frame: accuracy and weights while sensors come and go"
    return h(
        "svg", h("style", Html(STYLE)), h("rect", width=width, height=height, class_="page"), drawn, axis, note,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=label,
    )  # fmt: skip


def _bottom(panel: int) -> int:
    return (panel + 1) * (HEIGHT + GAP)


def _points(values: Sequence[float] | np.ndarray, scale: float, bottom: int, back: bool = False) -> str:
    """Steps: a value holds from its frame to the next, so that a sensor that leaves is seen to leave at once."""
    places = LEFT + WIDTH * np.arange(len(values) + 1) / len(values)
    pairs = [
        (x, bottom - HEIGHT * scale * float(v))
        for i, v in enumerate(values)
        for x in (places[i], places[i + 1])
    ]  # fmt: skip
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (reversed(pairs) if back else pairs))


def _frame(title: str, ticks: Sequence[float], bottom: int) -> list[Html]:
    marks = [h("text", title, x=LEFT, y=bottom - HEIGHT - 12, class_="title")]
    for tick in ticks:
        y = f"{bottom - HEIGHT * tick / ticks[-1]:.1f}"
        marks.append(h("line", x1=LEFT, x2=LEFT + WIDTH, y1=y, y2=y, class_="grid"))
        marks.append(h("text", f"{tick:g}", x=LEFT - 8, y=f"{float(y) + 4:.1f}", text_anchor="end", class_="tick"))
    return marks


def _legend(colors: Mapping[str, str], bottom: int) -> list[Html]:
    """At the right end of the title's line."""
    x, marks = float(LEFT + WIDTH), []
    for name, color in reversed(list(colors.items())):
        marks.append(h("text", name, x=f"{x:.1f}", y=bottom - HEIGHT - 12, text_anchor="end"))
        x -= 7.2 * len(name) + 14
        marks.append(h("rect", x=f"{x:.1f}", y=bottom - HEIGHT - 21, width=10, height=10, fill=color))
        x -= 14
    return marks
