"""The section about missing, noisy and broken sensors: what is stored of the protocols ``faults``, ``emm``, ``rmm``, ``nm``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlesam.evaluation.charts import Line, heat, line_chart, scroll
from mlesam.evaluation.facts import Facts
from mlesam.evaluation.markup import Html, Section, h, percent, section
from mlesam.evaluation.results import mean_of
from mlesam.sensors.faults import SEVERITIES


def robustness(facts: Facts) -> Section | None:
    """Broken sensors as a matrix and as curves, and the published protocols' aggregates."""
    faults = facts.protocols.get("faults")
    published = _published(facts)
    if faults is None and published is None:
        return None
    parts: list[Html | None] = []
    lead = "What is left when sensors are zero or noisy, as the published protocols test it."
    if faults is not None:
        lost = faults["summary"]["degradation"]
        lead = (
            "Each sensor is broken in turn, by each fault it can have, in five severities, while all others stay as they are "
            f"({faults['frames']} frames). On average {percent(lost['mean'])} % of the mIoU is lost: "
            f"{percent(lost['seen'])} % by faults that training may use, {percent(lost['unseen'])} % by those that are held "
            "out of every training (○)."
        )
        worst = min((r for r in _broken(faults) if r["ratio"] is not None), key=lambda r: r["ratio"], default=None)
        if worst is not None:
            at = "" if worst["fault"] == "dropped" else f" at severity {worst['severity']}"
            lead += f" The worst: {worst['fault']} of {worst['sensor']}{at} leaves {percent(worst['ratio'])} %."
        if not facts.run.recipe.data.faults:
            lead += " This run was trained without faults."
        parts += [_matrix(faults), _curves(facts, faults)]
    parts.append(published)
    return section("faults", "Faults", lead, parts, heading="When sensors fail")


def _broken(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in metrics["results"] if row["fault"] is not None]


def _matrix(metrics: Mapping[str, Any]) -> Html:
    """Fault by sensor; in each field the severities from left to right."""
    found = {(r["fault"], r["sensor"], r["severity"]): r["ratio"] for r in _broken(metrics)}
    held_out = {r["fault"] for r in _broken(metrics) if not r["seen"]}
    lost = metrics["summary"]["degradation"]["faults"]
    known = [v for v in found.values() if v is not None]
    low = min(known, default=0.0)
    body = []
    for fault in sorted(lost, key=lambda f: -(lost[f] or 0.0)):
        cells = []
        for sensor in metrics["modalities"]:
            if (fault, sensor, SEVERITIES[-1]) not in found:
                cells.append(h("td", colspan=len(SEVERITIES), class_="none gap"))
            elif (fault, sensor, 1) not in found:  # what has no severities
                value = found[fault, sensor, SEVERITIES[-1]]
                cells.append(_cell(value, low, f"{fault} of {sensor}", "first", colspan=len(SEVERITIES)))
            else:
                for severity in SEVERITIES:
                    name = f"{fault} {severity} of {sensor}"
                    cells.append(_cell(found[fault, sensor, severity], low, name, "first" if severity == 1 else ""))
        name = [fault, " ○"] if fault in held_out else [fault]
        body.append(h("tr", h("th", name, scope="row"), cells, h("td", percent(lost[fault]), class_="lost")))
    sensors = [h("th", s, scope="colgroup", colspan=len(SEVERITIES), class_="first") for s in metrics["modalities"]]
    numbers = [h("th", s, scope="col", class_="first" if s == 1 else None) for _ in sensors for s in SEVERITIES]
    head = h(
        "thead",
        h("tr", h("th", "fault", scope="col"), sensors, h("th", "loss", scope="col", class_="lost")),
        h("tr", h("th", h("small", "severity")), numbers, h("th", h("small", "mean"), class_="lost")),
    )
    text = (
        f"mIoU in % of what it is with nothing broken: strong colours are whole, pale ones broken, from {round(100 * low)} to "
        "100. The worst fault comes first; the last column is its mean loss in % over sensors and severities."
    )
    table = h("table", head, h("tbody", body), class_="heat faults")
    return h("div", h("p", text, class_="note"), scroll(table, "mIoU left by fault, sensor and severity"))


def _cell(value: float | None, low: float, name: str, class_: str, colspan: int | None = None) -> Html:
    text = "" if value is None else f"{100 * value:.0f}"
    return heat(value, low, 1.0, text, class_, title=f"{name}: {percent(value)} %", colspan=colspan)


def _curves(facts: Facts, metrics: Mapping[str, Any]) -> Html:
    """mIoU and the broken sensor's weight against severity; severity 0 is nothing broken."""
    rows = [row for row in _broken(metrics) if row["fault"] != "dropped"]
    clean = metrics["results"][-1]
    steps = [0, *SEVERITIES]

    def line(name: str, color: str, style: str, chosen: Callable[[dict[str, Any]], bool], key: str) -> Line:
        own = [row for row in rows if chosen(row)]

        def value(row: Mapping[str, Any], sensor: str) -> float | None:
            return row["ratio"] if key == "ratio" else row["weights"].get(sensor)

        sensors = dict.fromkeys(row["sensor"] for row in own)
        first = 1.0 if key == "ratio" else mean_of([value(clean, s) for s in sensors])
        y = [mean_of([value(r, r["sensor"]) for r in own if r["severity"] == s]) for s in SEVERITIES]
        return Line(name, steps, [first, *y], color, style)

    def chart(title: str, lines: Sequence[Line], caption: str) -> Html:
        drawn = [one for one in lines if any(v is not None for v in one.y[1:])]
        return h(
            "figure",
            h("h3", title),
            line_chart(drawn, title, scale=100),
            h("figcaption", caption),
            class_="chart",
        )

    degradation = [
        line("faults that training may use", "var(--bar)", "solid", lambda r: r["seen"], "ratio"),
        line("held out of training", "var(--bar2)", "dashed", lambda r: not r["seen"], "ratio"),
    ]
    by_sensor = [
        line(m, facts.colors[m], "solid", lambda r, m=m: r["sensor"] == m, "ratio") for m in metrics["modalities"]
    ]
    figures = [
        chart(
            "mIoU against severity",
            degradation,
            "In % of the clean mIoU, mean over sensors and faults; 0: nothing broken.",
        ),
        chart("Which sensor is broken", by_sensor, "In % of the clean mIoU, mean over this sensor's faults."),
    ]
    if len(metrics["modalities"]) > 1:
        trust = [
            line(m, facts.colors[m], "solid", lambda r, m=m: r["sensor"] == m, "weights") for m in metrics["modalities"]
        ]
        text = "Share of the broken sensor in the fused maps in %, mean over its faults. A router that notices lets it fall."
        figures.append(chart("Trust in the broken sensor", trust, text))
    return h("div", figures, class_="charts faults")


def _published(facts: Facts) -> Html | None:
    """EMM, RMM and NM as the literature tabulates them."""
    body, frames = [], set()
    for name, label in (("emm", "EMM: sensors set to zero"), ("rmm", "RMM: share of zeros")):
        metrics = facts.protocols.get(name)
        if metrics is None:
            continue
        frames.add(metrics["frames"])
        summary = metrics["summary"]
        for drop, own in summary.get("drops", {"": summary}).items():
            values = [own["miou_avg"], *own["miou_e"].values()]
            body.append(h("tr", h("th", f"{label} {drop}".strip(), scope="row"), [h("td", percent(v)) for v in values]))
    tables = []
    if body:
        heads = ["mIoU Avg", "E, p = 0.2", "E, p = 0.1", "E, p = 0.05"]
        head = h("tr", h("th", "protocol", scope="col"), [h("th", t, scope="col") for t in heads])
        tables.append(h("table", h("thead", head), h("tbody", body), class_="plain"))
    noise = facts.protocols.get("nm")
    if noise is not None:
        frames.add(noise["frames"])
        rows = noise["results"]
        head = h("tr", h("th", "protocol", scope="col"), [h("th", r["name"], scope="col") for r in rows])
        row = h("tr", h("th", "NM: noise on all sensors", scope="row"), [h("td", percent(r["miou"])) for r in rows])
        tables.append(h("table", h("thead", head), h("tbody", row), class_="plain"))
    if not tables:
        return None
    count = " and ".join(str(f) for f in sorted(frames))
    text = (
        f"mIoU in % over {count} frames, after arXiv 2503.18445: Avg is the mean over all sets of missing sensors, E the mean "
        "expected when each sensor is missing with probability p. Published numbers are of other data."
    )
    return h(
        "div",
        h("h3", "Published protocols"),
        h("p", text, class_="note"),
        h("div", [scroll(t, "Protocols") for t in tables], class_="tables"),
    )
