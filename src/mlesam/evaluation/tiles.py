"""The pictures on the page: frames in rows and columns, each with what it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlesam.evaluation.charts import legend, scroll
from mlesam.evaluation.facts import Facts, difference
from mlesam.evaluation.gallery import Segmented, Shown
from mlesam.evaluation.markup import Html, Section, change, css_color, h, percent, section
from mlesam.evaluation.pictures import MEANING, UNSCORED, WRONG, data_uri, kind

ROWS = (
    " Top row: the truth, and what each sensor sees, with its share of the router's trust. Middle: the prediction with all "
    "sensors, and to its right what becomes of it when the sensor above is lost. Bottom: wrong pixels in red, with their "
    "share of the scored ones.",
    " Left: the truth, and what each sensor sees, with its share of the router's trust. Middle: the prediction with all "
    "sensors, and below it what becomes of it when the sensor to its left is lost. Right: wrong pixels in red, with their "
    "share of the scored ones.",
)
"""How to read the pictures on a wide screen and on a narrow one."""
ONE_ROW = (
    " What the sensor sees, the truth, the prediction, and wrong pixels in red, with their share of the scored ones."
)
STRIPES = "repeating-linear-gradient(135deg,rgb({} {} {}) 0 2px,rgb({} {} {}) 2px 4px)".format(
    *UNSCORED[0], *UNSCORED[1]
)


def hero(facts: Facts) -> Html | None:
    """The first frame in one row: what goes in, what comes out, what is true."""
    if not facts.pictures:
        return None
    shown = facts.pictures[0]
    tiles = [
        _tile(drawn, f"{m} of frame {shown.frame.id}", [h("i", class_="dot", style=f"--c:{facts.colors[m]}"), m])
        for m, drawn in shown.sensors.items()
    ]
    tiles.append(_tile(shown.full.labels, "Prediction with all sensors", [h("b", "prediction")]))
    tiles.append(_tile(shown.truth, "Truth", ["truth"]))
    return h("div", tiles, class_="hero", style=f"--n:{len(tiles)}")


def pictures(facts: Facts) -> Section:
    """Frames as every sensor sees them, and as the model segments them."""
    if not facts.pictures:
        why = (
            f"The frames cannot be read, so there are no pictures: {facts.missing}"
            if facts.missing
            else "No frame has a scored pixel."
        )
        return section("pictures", "Pictures", why)
    colors = facts.run.classes.colors
    names = {name: css_color(color) for name, color in zip(facts.classes, colors, strict=True)}
    several = len(facts.modalities) > 1
    chosen = (
        "For each of the most frequent conditions, the frame whose mIoU with all sensors is the median of that condition."
        if facts.tags
        else "Frames at fixed places in the order of mIoU with all sensors, from a bad one to a good one."
    )
    wide, narrow = ROWS if several else (ONE_ROW, ONE_ROW)
    lead = [chosen, h("span", wide, class_="wide"), h("span", narrow, class_="narrow")]
    specs = facts.run.sensors
    drawn = "; ".join(f"{m}: {MEANING[kind(m, specs[m])]}" for m in facts.modalities)
    key = legend({**names, "not scored": STRIPES, "wrong": css_color(WRONG)})
    frames = [_frame(facts, shown) for shown in facts.pictures]
    note = h("p", f"How the sensors are drawn. {drawn}.", class_="note")
    return section("pictures", "Pictures", lead, key, frames, note, heading="What it sees, what it says")


def _frame(facts: Facts, shown: Shown) -> Html:
    name, size = shown.frame.id, shown.truth.shape
    full, single = shown.full, len(facts.modalities) == 1
    answer = [h("b", "prediction" if single else "all sensors"), _score(full)]
    tiles = [
        [
            _tile(shown.truth, f"Truth of frame {name}", [h("b", "truth")]),
            _tile(full.labels, f"Prediction, mIoU {percent(full.miou)} %", answer),
            _tile(full.errors, "Wrong pixels with all sensors in red", [_wrong(full)]),
        ]
    ]  # fmt: skip
    for m in facts.modalities:
        dot = h("i", class_="dot", style=f"--c:{facts.colors[m]}")
        if m not in shown.sensors:
            gone = _empty(size, f"{m} is absent in this frame", [dot, h("b", m), " absent"])
            tiles.append([gone, *[_empty(size, "Nothing to lose: the sensor is absent", ["no change"])] * 2])
            continue
        trust = "" if single else f" trust {percent(full.shares[m])}"
        column = [_tile(shown.sensors[m], f"{m} of frame {name}", [dot, h("b", m), trust])]
        lost = shown.without.get(m)
        if lost is not None:
            cost = h("span", change(difference(lost.miou, full.miou)), class_="change")
            caption = [f"without {m}", _score(lost), cost]
            column += [
                _tile(lost.labels, f"Prediction without {m}, mIoU {percent(lost.miou)} %", caption),
                _tile(lost.errors, f"Wrong pixels without {m} in red", [_wrong(lost)]),
            ]
        elif not single:
            column += [_empty(size, f"Without {m} this frame has no sensor", ["nothing left"])] * 2
        tiles.append(column)
    if single:
        tiles.reverse()
    others = [t for t in shown.frame.tags if t != shown.reason]
    about = " · ".join([f"frame {name}", *others, f"mIoU {percent(full.miou)}"])
    box = scroll(h("div", tiles, class_="tiles single" if single else "tiles"), f"Pictures of frame {name}")
    return h("article", h("h3", shown.reason, h("small", about)), box, class_="frame")


def _wrong(segmented: Segmented) -> str:
    return f"wrong {percent(segmented.wrong)}"


def _score(segmented: Segmented) -> Html:
    return h("span", percent(segmented.miou), class_="score")


def _tile(drawn: np.ndarray, alt: str, caption: Sequence[object]) -> Html:
    height, width = drawn.shape[:2]
    image = h("img", src=data_uri(drawn), alt=alt, width=width, height=height, loading="lazy")
    return h("figure", image, h("figcaption", caption))


def _empty(size: tuple[int, ...], text: str, caption: Sequence[object]) -> Html:
    style = f"aspect-ratio:{size[1]}/{size[0]}"
    return h("figure", h("div", class_="absent", role="img", aria_label=text, style=style), h("figcaption", caption))
