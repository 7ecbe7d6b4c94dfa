"""Trainings compared: mean over seeds, bootstrap intervals, differences paired by seed and frame; as table and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlesam.evaluation.charts import nice_ticks
from mlesam.evaluation.markup import Html, h, percent
from mlesam.evaluation.metrics import mean_iou, resampled

DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        group, name: the first axis and the others. confusions: ``{seed: (F, C, C)}`` with all of its sensors.
        frames: ids of the F frames. facts: further numbers, taken over into the table.
    """

    group: str
    name: str
    confusions: Mapping[str, np.ndarray]
    frames: tuple[str, ...]
    facts: Mapping[str, Any]


def compare(rows: Sequence[Row], base: str | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Means and 95 % intervals of each row's mIoU, and of its difference to one row of its group: the one called ``base``, or
    as the very first.

    The bootstrap draws frames and, where there are several, seeds anew, with replacement; two rows of a difference get the
    same draws, so what one frame or one seed does to both of them cancels. A difference is null where frames,
    labels or seeds differ, and where a group has no such row.
    """
    found = []
    drawn = [_draws(row, seed) for row in rows]
    scored = [{s: float(mean_iou(c.sum(axis=0))) for s, c in row.confusions.items()} for row in rows]
    means = [float(np.mean(list(scores.values()))) for scores in scored]
    bases = {row.group: i for i, row in enumerate(rows) if row.name == (base or rows[0].name)}
    for i, (row, draws, scores, mean) in enumerate(zip(rows, drawn, scored, means, strict=True)):
        against = bases.get(row.group, i)
        entry: dict[str, Any] = {
            "group": row.group, "name": row.name, "seeds": len(scores), "miou": round(mean, 4), "interval": _interval(draws),
            "by_seed": {s: round(v, 4) for s, v in scores.items()}, "difference": None, "difference_to": None,
            "difference_interval": None,
        }  # fmt: skip
        if i != against and _pairs(row, rows[against]):
            entry |= {
                "difference": round(mean - means[against], 4),
                "difference_to": rows[against].name,
                "difference_interval": _interval(draws - drawn[against]),
            }
        found.append({**entry, **row.facts})
    return found


def _pairs(row: Row, other: Row) -> bool:
    """Whether two rows were tested on the same frames with the same labels, and trained with the same seeds."""
    if row.frames != other.frames or list(row.confusions) != list(other.confusions):
        return False
    pairs = zip(row.confusions.values(), other.confusions.values(), strict=True)
    return all(a.shape == b.shape and np.array_equal(a.sum(axis=2), b.sum(axis=2)) for a, b in pairs)


def _draws(row: Row, seed: int) -> np.ndarray:
    """(DRAWS,) mean over seeds of the mIoU, frames and seeds drawn anew."""
    by_seed = np.stack([resampled(c, 1, seed, DRAWS) for c in row.confusions.values()])  # the same frames for all seeds
    chosen = np.random.default_rng([seed, 1]).integers(0, len(by_seed), size=by_seed.shape)
    return np.take_along_axis(by_seed, chosen, axis=0).mean(axis=0)


def _interval(draws: np.ndarray) -> list[float]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


# ---------------------------------------------------------------- table and plot


def markdown(rows: Sequence[Mapping[str, Any]], axes: tuple[str, str] = ("", "variant")) -> str:
    """The rows as a Markdown table; ``axes`` heads the first two columns."""
    groups = len({row["group"] for row in rows}) > 1
    heads = [*([axes[0]] if groups else []), axes[1], "mIoU", "95 %", "difference to the first", "95 %", "seeds"]
    heads += ["trainable", "s per step", "peak MiB"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * (1 + groups)}{'--:|' * (len(heads) - 1 - groups)}"]
    for row in rows:
        gain, reach = row["difference"], row["difference_interval"]
        cells = [
            *([row["group"]] if groups else []), row["name"], percent(row["miou"]), _range(row["interval"]),
            "" if gain is None else f"{100 * gain:+.1f}", "" if reach is None else _range(reach, "+"), str(row["seeds"]),
            f"{row['trainable']:,}", "" if row["step_seconds"] is None else f"{row['step_seconds']:.3f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _range(pair: Sequence[float], sign: str = "") -> str:
    return f"{100 * pair[0]:{sign}.1f} to {100 * pair[1]:{sign}.1f}"


WIDTH, RIGHT, LINE, LETTER = 380, 70, 22, 7.2
"""Pixels of the axis, the numbers, from one row to the next, and of a letter of a name."""


def dot_plot(rows: Sequence[Mapping[str, Any]], title: str) -> Html:
    """An SVG picture of its own: for each row the mean as a dot, its interval as a bar, and the seeds as small rings."""
    values = [v for row in rows for v in (*row["interval"], *row["by_seed"].values())]
    ticks = nice_ticks(100 * min(values), 100 * max(values), 6)
    low, high = ticks[0], ticks[-1]
    left = round(max(110, 28 + LETTER * max(len(row["name"]) for row in rows), LETTER * len(title) - WIDTH))

    def x(share: float) -> str:
        return f"{left + WIDTH * (100 * share - low) / (high - low):.1f}"

    groups = len({row["group"] for row in rows}) > 1
    marks: list[Html] = []
    top = y = 46.0
    last = None
    for row in rows:
        if groups and row["group"] != last:
            y += LINE * 0.4
            marks.append(h("text", row["group"], x=12, y=f"{y + 4:.1f}", class_="group"))
            y += LINE
        elif last is None:
            y += LINE * 0.4
        last = row["group"]
        low_x, high_x = (x(v) for v in row["interval"])
        marks += [
            h("text", row["name"], x=left - 14, y=f"{y + 4:.1f}", text_anchor="end"),
            h("line", x1=low_x, x2=high_x, y1=y, y2=y, class_="interval"),
            *(h("circle", cx=x(v), cy=y, r=3, class_="seed") for v in row["by_seed"].values() if len(row["by_seed"]) > 1),
            h("circle", cx=x(row["miou"]), cy=y, r=4.5, class_="mean"),
            h("text", percent(row["miou"]), x=left + WIDTH + 14, y=f"{y + 4:.1f}", class_="number"),
        ]  # fmt: skip
        y += LINE
    bottom = y
    grid = []
    for tick in ticks:
        place = f"{left + WIDTH * (tick - low) / (high - low):.1f}"
        grid.append(h("line", x1=place, x2=place, y1=top, y2=f"{bottom:.1f}", class_="grid"))
        grid.append(h("text", f"{tick:g}", x=place, y=f"{bottom + 16:.1f}", text_anchor="middle", class_="tick"))
    seeds = "; rings: single seeds" if any(row["seeds"] > 1 for row in rows) else ""
    note = f"mIoU in %; dot: mean, bar: 95 % bootstrap interval{seeds}"
    height = round(bottom + 46)
    width = left + WIDTH + RIGHT
    return h(
        "svg", h("style", Html(STYLE)), h("rect", width=width, height=height, class_="page"),
        h("text", title, x=12, y=26, class_="title"), grid, marks,
        h("text", note, x=left, y=height - 10, class_="tick"),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=title,
    )  # fmt: skip


STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2733}.title{font-size:15px;font-weight:600}.group{font-weight:600}"
    ".tick{font-size:11px;fill:#5a6775}.number{font-variant-numeric:tabular-nums}.page{fill:#fff}"
    ".grid{stroke:#e3e8ee}.interval{stroke:#2a6fbb;stroke-width:2.5;stroke-opacity:.45}.mean{fill:#2a6fbb}"
    ".seed{fill:none;stroke:#2a6fbb;stroke-opacity:.55}"
)
