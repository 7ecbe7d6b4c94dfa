"""The section about confidence: what a probability is worth, and whether the model knows where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlesam.evaluation.charts import Line, dots, legend, line_chart, scroll
from mlesam.evaluation.facts import FEW, Facts
from mlesam.evaluation.markup import Html, Section, h, percent, section

RARE = 0.001
"""Share of the pixels below which a point of the diagram is left out: it would be an accident."""
SURE = "0.8"
"""Coverage that the text and the table name."""


def confidence(facts: Facts) -> Section | None:
    """Reliability with all sensors before and after calibration, and errors among the surest pixels of every subset."""
    full = facts.full
    if full.get("ece") is None:  # an evaluation by an earlier version, or no pixel is scored
        return None
    calibrated = full["temperature"] is not None
    lead = (
        "Where the model says 80 %, about 80 of 100 pixels should be right. With all sensors, confidence and accuracy differ "
        f"by {percent(full['ece'])} points in the mean"
    )
    if calibrated:
        lead += f"; before the temperatures were fitted on val it was {percent(full['ece_uncalibrated'])}."
    else:
        lead += ". This run has no temperatures, which are fitted on val at the end of a training."
    lead += _worst(facts)
    lead += (
        f" Of the {percent(float(SURE)).removesuffix('.0')} % of the pixels that it is surest of, {_wrong(full, SURE)} % are "
        f"wrong, of all of them {_wrong(full, '1.0')} %."
    )
    figures = [_diagram(facts, calibrated), _curves(facts)]
    content = [h("div", figures, class_="charts"), _table(facts, calibrated)]
    return section("confidence", "Confidence", lead, content, heading="How far its confidence can be believed")


def _wrong(row: Mapping[str, Any], coverage: str) -> str:
    right = row["selective"][coverage]
    return percent(None if right is None else 1 - right)


def _worst(facts: Facts) -> str:
    """A sentence on the condition in which confidence and accuracy differ most."""
    known = {
        tag: row["ece"]
        for tag in facts.tags
        if (row := facts.row(facts.modalities, tag))["frames"] >= FEW and row["ece"] is not None
    }
    if not known:
        return ""
    worst = max(known, key=lambda t: known[t])
    return f" By condition it is most in {worst}, {percent(known[worst])}." if known[worst] > facts.full["ece"] else ""


def _diagram(facts: Facts, calibrated: bool) -> Html:
    def line(which: str, name: str, color: str, style: str) -> Line:
        found = facts.metrics["reliability"][which]
        points = [
            (100 * c, a)
            for s, c, a in zip(found["share"], found["confidence"], found["accuracy"], strict=True)
            if s is not None and s >= RARE
        ]
        return Line(name, [x for x, _ in points], [y for _, y in points], color, style)

    lines = [Line("as it should be", [0, 100], [0.0, 1.0], "var(--muted)", "dotted")]
    if calibrated:
        lines.append(line("uncalibrated", "before calibration", "var(--bar2)", "dashed"))
    lines.append(line("calibrated", "calibrated" if calibrated else "this model", "var(--bar)", "solid"))
    text = (
        "All sensors. Across: confidence in %, in 15 bins; up: how many of these pixels are right, in %. Above the dotted line "
        "the model is too modest, below it too sure. Bins with less than 0.1 % of the pixels are left out."
    )
    title = "Confidence and accuracy"
    chart = line_chart(lines, title, scale=100)
    return h("figure", h("h3", title), chart, h("figcaption", text), class_="chart")


def _curves(facts: Facts) -> Html:
    lines = []
    for row in facts.rows:
        known = {float(c): 1 - a for c, a in row["selective"].items() if a is not None}
        x, y = [100 * c for c in known], list(known.values())
        if row is facts.full and len(facts.modalities) > 1:
            lines.append(Line("all sensors", x, y, "var(--ink)"))
        elif len(row["present"]) == 1:
            lines.append(Line(f"{row['name']} alone", x, y, facts.colors[row["name"]], "dashed"))
        else:
            lines.append(Line(row["name"], x, y, "var(--ink)", "faint"))
    text = (
        "Across: the surest part of the pixels, in % of all; up: how many of them are wrong, in %. A curve that stays low and "
        "rises late belongs to a model that knows where it is wrong."
    )
    if any(line.style == "faint" for line in lines):
        text += " Faint: the other subsets."
    title = "Errors among the surest pixels"
    return h("figure", h("h3", title), line_chart(lines, title, scale=100), h("figcaption", text), class_="chart")


def _table(facts: Facts, calibrated: bool) -> Html:
    heads = [
        *(["temperature", "ECE before"] if calibrated else []),
        "ECE after" if calibrated else "ECE", "AURC", f"wrong, surest {percent(float(SURE)).removesuffix('.0')} %", "wrong, all",
    ]  # fmt: skip
    body = []
    for row in sorted(facts.rows, key=lambda r: -len(r["present"])):
        if row["ece"] is None:
            continue
        values = [percent(row["ece"]), percent(row["aurc"]), _wrong(row, SURE), _wrong(row, "1.0")]
        if calibrated:
            values = [f"{row['temperature']:.2f}", percent(row["ece_uncalibrated"]), *values]
        name = h("th", dots(row["present"], facts.modalities, facts.colors), scope="row")
        body.append(h("tr", name, [h("td", v) for v in values]))
    head = h("tr", h("th", "sensors", scope="col"), [h("th", t, scope="col") for t in heads])
    text = (
        "In %. ECE: expected calibration error, by how much confidence and accuracy differ in the mean. AURC: area under the "
        "curve of errors against coverage, as in the chart."
    )
    table = scroll(h("table", h("thead", head), h("tbody", body), class_="plain"), "Confidence by subset")
    return h("details", h("summary", "Every subset"), h("p", text, class_="note"), legend(facts.colors), table)
