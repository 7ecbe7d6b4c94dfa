"""The sections about the run itself: the headline, the training, and the recipe with the commands."""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

import mlesam
from mlesam.config import dump_recipe
from mlesam.evaluation.charts import Line, line_chart, smoothed
from mlesam.evaluation.facts import Facts
from mlesam.evaluation.markup import Html, Section, change, h, percent

FEW_WARNINGS = 6
LINE = 72
"""Characters after which a command goes on in the next line."""


def headline(facts: Facts, strip: Html | None, contents: Html) -> Html:
    """What was tested, the large numbers, and the conditions that they hold under.

    Args:
        strip: pictures between the sentence and the numbers. contents: links to the sections.
    """
    count = len(facts.modalities)
    what = "frozen Segment Anything Model 2" if facts.frozen else "Segment Anything Model 2"
    experts = (
        f"a LoRA expert for each of {count} sensors ({', '.join(facts.modalities)}), tested with every subset of them"
        if count > 1
        else f"a LoRA expert for {facts.modalities[0]}"
    )
    if not facts.run.recipe.model.rank:
        experts = f"no experts, on {count} sensor{'s' if count > 1 else ''}"
    split = facts.metrics["split"]
    frames = f"{'the first ' if facts.part else ''}{facts.metrics['frames']} frames"
    sentence = f"One {what} with {experts}: {frames} of the {split} split, {len(facts.classes)} classes."
    return h(
        "header",
        h("p", "mlesam report", class_="kicker"),
        h("h1", facts.name),
        h("p", sentence, class_="sentence"),
        strip,
        h("ul", _numbers(facts), class_="numbers"),
        h("p", "Numbers are mIoU in % over all pixels of the named frames, unless they say otherwise.", class_="note"),
        h("dl", [h("div", h("dt", k), h("dd", v)) for k, v in _conditions(facts).items()], class_="facts"),
        contents,
    )  # fmt: skip


def _numbers(facts: Facts) -> list[Html]:
    full, summary, tags = facts.full, facts.metrics["summary"], facts.metrics["tags"]
    count = len(facts.modalities)
    tiles = [
        (
            "all sensors" if count > 1 else facts.modalities[0],
            full["miou"],
            f"pixel accuracy {percent(full['pixel_accuracy'])}",
        )
    ]
    if count > 1:
        known = [r for r in facts.rows if r["miou"] is not None]
        worst = min(known, key=lambda r: r["miou"], default=full)
        single = max((r for r in known if len(r["present"]) == 1), key=lambda r: r["miou"], default=full)
        tiles += [
            ("mean of subsets", summary["mean"], f"{len(facts.rows)} subsets"),
            ("best single sensor", single["miou"], f"{single['name']} alone"),
            ("worst subset", summary["worst"], " + ".join(worst["present"]) + (" alone" if len(worst["present"]) == 1 else "")),
        ]  # fmt: skip
    for tag in dict.fromkeys(t for t in (facts.second, facts.weakest) if t is not None):
        label = tag if tag != facts.weakest else f"weakest: {tag}"
        tiles.append((label, tags[tag]["summary"]["full"], f"all sensors, {tags[tag]['frames']} frames"))
    found = [h("li", h("span", label), h("strong", percent(value)), h("small", more)) for label, value, more in tiles]
    costs = {m: c for m in facts.modalities if (c := facts.cost(m)) is not None}
    dear = min(costs, key=lambda m: costs[m], default="")
    if count > 2 and costs and costs[dear] < 0:
        found.append(
            h(
                "li",
                h("span", f"losing {dear}"),
                h("strong", change(costs[dear])),
                h("small", "points, the dearest"),
            )
        )
    return found


def _conditions(facts: Facts) -> dict[str, Any]:
    """What a number on the page depends on."""
    recipe, record, metrics = facts.run.recipe, facts.record, facts.metrics
    steps = facts.events("step")
    trained = (
        f"{steps[-1]['step'] if steps else 0:,} of {recipe.training.steps:,} steps, {recipe.training.batch} frames each"
    )
    if steps and "seconds" in steps[-1]:
        trained += f", {_duration(steps[-1]['seconds'])}"
    foundation = str(record.get("foundation", {}).get("source", recipe.model.foundation))
    parameters = record.get("parameters")
    found: dict[str, Any] = {
        "dataset": metrics["dataset"],
        "tested on": f"{metrics['frames']} {f'of {facts.total} ' if facts.part else ''}frames of split {metrics['split']}",
        "sensors": ", ".join(facts.modalities),
        "classes": len(facts.classes),
        "foundation": f"{foundation}, {'frozen' if facts.frozen else 'trained with everything else'}",
        "training": trained,
        "weights": _chosen(facts),
    }
    if parameters:
        found["trained parameters"] = f"{parameters['trainable']:,} of {parameters['total']:,}"
    found["seed"] = metrics["seed"]
    version = record.get("versions", {}).get("mlesam")
    found["version"] = f"mlesam {version or mlesam.__version__}"
    if machine := record.get("machine"):
        device = record.get("device", "cpu")
        threads = f", {machine.get('threads')} threads" if device == "cpu" else ""
        found["trained on"] = f"{device}{threads}, {machine.get('platform', '')}"
    return found


def _chosen(facts: Facts) -> str:
    step, miou = facts.weights.get("step"), facts.weights.get("miou")
    if step is None:
        return "as stored"
    return f"of step {step:,}" + (
        f", the best on val ({percent(miou)})" if miou is not None else ", the last (no val split)"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------- training


def training(facts: Facts) -> Section:
    """Losses, validation and learning rate over steps, and what validation warned about."""
    steps, validations = facts.events("step"), facts.events("validation")
    charts = [_losses(steps)] if steps else []
    if validations:
        charts.append(_validation(facts, validations))
    if validations and len(facts.modalities) > 1:
        charts.append(_trust(facts, validations))
    if steps:
        charts.append(_learning_rate(steps))
    return "training", "Training", h(
        "section",
        h("h2", "Training"),
        h("p", "How the training went, over optimiser steps.", class_="lead"),
        h("div", charts, class_="charts") if charts else h("p", "The run holds no log.", class_="note"),
        _warnings(validations) if validations else h("p", "The log holds no validation.", class_="note"),
        id="training",
    )  # fmt: skip


def _losses(steps: list[dict[str, Any]]) -> Html:
    x = [e["step"] for e in steps]
    lines = []
    for key, name, color in (
        ("loss", "total", "var(--ink)"),
        ("mask_loss", "mask head", "var(--bar)"),
        ("pyramid_loss", "pyramid head", "var(--bar2)"),
    ):
        y = [e[key] for e in steps]
        lines += [Line(name, x, y, color, "faint"), Line(name, x, smoothed(y, len(steps) // 40), color)]
    return _chart("Loss", "Faint: every step. Strong: smoothed. Falling is learning.", lines)


def _validation(facts: Facts, validations: list[dict[str, Any]]) -> Html:
    x = [e["step"] for e in validations]
    lines = [Line("all sensors", x, [e["miou"] for e in validations], "var(--ink)")]
    if len(facts.modalities) > 1:
        lines += [Line(m, x, [e["sensors"].get(m) for e in validations], facts.colors[m]) for m in facts.modalities]
    for head, style in (("mask", "dashed"), ("pyramid", "dotted")):
        lines.append(Line(f"{head} head", x, [e["heads"][head] for e in validations], "var(--muted)", style))
    return _chart("Validation mIoU, %", "With all sensors, and with each sensor or head alone.", lines, scale=100)


def _trust(facts: Facts, validations: list[dict[str, Any]]) -> Html:
    x = [e["step"] for e in validations]
    lines = [Line(m, x, [e["weights"].get(m) for e in validations], facts.colors[m]) for m in facts.modalities]
    return _chart("Trust in validation, %", "How the router's shares settle.", lines, scale=100, height=140)


def _learning_rate(steps: list[dict[str, Any]]) -> Html:
    rates = [e["lr"] for e in steps]
    power = 10 ** max(0, math.ceil(-math.log10(max(rates) or 1.0)))  # the axis then reads 0 to 10
    title = f"Learning rate, in 1/{power:,}" if power > 1 else "Learning rate"
    line = Line("learning rate", [e["step"] for e in steps], rates, "var(--muted)")
    return _chart(title, "Warm-up, then decay to zero.", [line], scale=power, height=140)


def _chart(title: str, text: str, lines: list[Line], scale: float = 1.0, height: int = 220) -> Html:
    drawing = line_chart(lines, f"{title}, over steps", scale, height)
    return h("figure", h("h3", title), drawing, h("figcaption", text), class_="chart")


def _warnings(validations: list[dict[str, Any]]) -> Html:
    said = [(e["step"], text) for e in validations for text in e.get("warnings", ())]
    if not said:
        return h("p", "Validation warned about nothing.", class_="note")
    items = [h("li", h("b", f"step {step:,}"), " ", text) for step, text in said]
    rest = items[FEW_WARNINGS:]
    more = h("details", h("summary", f"{len(rest)} more"), h("ul", rest, class_="warnings")) if rest else None
    return h("div", h("h3", "What validation warned about"), h("ul", items[:FEW_WARNINGS], class_="warnings"), more)


# ---------------------------------------------------------------- recipe


def recipe(facts: Facts) -> Section:
    """The whole experiment, so that it can be done again."""
    run, record, metrics = facts.run, facts.record, facts.metrics
    place = shlex.quote(str(run.path))
    commands = [
        _wrapped(record.get("command") or f"mlesam train {place}/recipe.yaml --out NEW_RUN"),
        f"mlesam evaluate {place} --split {shlex.quote(metrics['split'])}"
        + (f" --frames {metrics['frames']}" if facts.part else ""),
        f"mlesam report {place}",
    ]
    versions = " · ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())
    notes = record.get("notes", [])
    folds = [
        h("details", h("summary", "recipe.yaml, as it was resolved"), h("pre", dump_recipe(run.recipe), tabindex="0")),
        h("details", h("summary", "What was derived from the data"), h("ul", [h("li", n) for n in notes])) if notes else None,
    ]  # fmt: skip
    return "recipe", "Recipe", h(
        "section",
        h("h2", "Do it again"),
        h("p", "The same recipe and seed on one CPU give the same numbers. Train into a new directory.", class_="lead"),
        h("pre", _unbroken("\n".join(commands)), class_="commands", tabindex="0"),
        h("p", versions, class_="note") if versions else None,
        folds,
        id="recipe",
    )  # fmt: skip


def _unbroken(text: str) -> list[Html | str]:
    """Words that a narrow screen does not break at their hyphens."""
    return [part if part.isspace() else h("span", part) for part in re.split(r"(\s+)", text) if part]


def _wrapped(command: str) -> str:
    """A long command over several lines, as a shell reads it."""
    try:
        words = [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:  # no command of ours
        return command
    lines = [""]
    for word in words:
        if word.startswith("-") and len(lines[-1]) > LINE:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}".lstrip(" ") if len(lines) == 1 else f"{lines[-1]} {word}"
    return " \\\n".join(lines)
