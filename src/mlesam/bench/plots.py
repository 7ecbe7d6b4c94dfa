"""SVG pictures of their own: lines over a number, and bars made of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlesam.evaluation.charts import nice_ticks
from mlesam.evaluation.comparison import STYLE
from mlesam.evaluation.markup import Html, h

COLORS = (
    "#2a6fbb", "#d9822b", "#3a9d5d", "#b8433f", "#7a5bb5", "#8c6d4f", "#d36ba6", "#6b7785", "#a6a22c", "#2fa3a8",
    "#9ec3e6", "#f3c99a", "#a5d6b5", "#e3a19e", "#c3b3e0", "#cdbba8", "#eec1da", "#bcc5ce", "#dcd98f", "#a3d9dc",
    "#3b4550",
)  # fmt: skip
LEFT, WIDTH, HEIGHT, LETTER = 64, 420, 240, 7.2


@dataclass(frozen=True)
class Line:
    """A line through points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(drawn: Sequence[Line], title: str, x_label: str, y_label: str) -> Html:
    """Lines from (0, 0) on, with a dot where something was measured."""
    xs = nice_ticks(0.0, max(x for line in drawn for x, _ in line.points), 6)
    ys = nice_ticks(0.0, max(y for line in drawn for _, y in line.points), 6)
    top = 46.0

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * x / xs[-1], top + HEIGHT * (1 - y / ys[-1])

    marks = []
    for tick in ys:
        _, y = at(0, tick)
        marks += [
            h("line", x1=LEFT, x2=LEFT + WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"),
            h("text", f"{tick:g}", x=LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end", class_="tick"),
        ]
    for tick in xs:
        x, y = at(tick, 0)
        marks.append(h("text", f"{tick:g}", x=f"{x:.1f}", y=f"{y + 18:.1f}", text_anchor="middle", class_="tick"))
    for i, line in enumerate(drawn):
        color = COLORS[i % len(COLORS)]
        places = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(h("polyline", points=path, style=f"fill:none;stroke:{color};stroke-width:2"))
        marks += [h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, style=f"fill:{color}") for x, y in places]
        x, y = LEFT + WIDTH + 16, top + 12 + 20 * i
        marks += [h("circle", cx=x, cy=y - 4, r=4, style=f"fill:{color}"), h("text", line.name, x=x + 10, y=y)]
    bottom = top + HEIGHT + 38
    marks.append(h("text", x_label, x=LEFT + WIDTH, y=bottom, text_anchor="end", class_="tick"))
    marks.append(h("text", y_label, x=12, y=bottom, class_="tick"))
    longest = max(len(line.name) for line in drawn)
    return _page(title, LEFT + WIDTH + 40 + LETTER * longest, bottom + 14, marks)


def stacked_bars(bars: Mapping[str, Mapping[str, float]], title: str, unit: str) -> Html:
    """A bar for each name, each as long as the others, made of parts in one order; their sum stands behind it."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    colors = {part: COLORS[i % len(COLORS)] for i, part in enumerate(parts)}
    left = 28 + LETTER * max(map(len, bars))
    wide, thick, marks, y = 560.0, 30.0, [], 50.0
    for name, bar in bars.items():
        total = sum(bar.values())
        marks.append(h("text", name, x=left - 12, y=y + thick / 2 + 5, text_anchor="end"))
        x = left
        for part in parts:
            share = bar.get(part, 0.0) / total
            if not share:
                continue
            note = h("title", f"{part}: {bar[part]:.1f} {unit}, {100 * share:.1f} %")
            size = {"x": f"{x:.1f}", "y": y, "width": f"{wide * share:.2f}", "height": thick}
            marks.append(h("rect", note, **size, style=f"fill:{colors[part]}"))
            if share > 0.05:
                middle = {"x": f"{x + wide * share / 2:.1f}", "y": y + thick / 2 + 4, "text_anchor": "middle"}
                marks.append(h("text", f"{100 * share:.0f} %", **middle, class_="tick", style="fill:#14202b"))
            x += wide * share
        marks.append(h("text", f"{total:,.0f} {unit}", x=left + wide + 10, y=y + thick / 2 + 5, class_="number"))
        y += thick + 14
    column = 150.0
    across = max(1, int((left + wide) // column))
    for i, part in enumerate(parts):
        x, place = 20 + column * (i % across), y + 18 + 22 * (i // across)
        marks += [
            h("rect", x=x, y=place - 10, width=12, height=12, style=f"fill:{colors[part]}"),
            h("text", part, x=x + 18, y=place),
        ]
    return _page(title, left + wide + 110, y + 30 + 22 * -(-len(parts) // across), marks)


def _page(title: str, width: float, height: float, marks: Sequence[Html]) -> Html:
    width, height = round(width), round(height)
    return h(
        "svg", h("style", Html(STYLE)), h("rect", width=width, height=height, class_="page"),
        h("text", title, x=12, y=26, class_="title"), marks,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=title,
    )  # fmt: skip
