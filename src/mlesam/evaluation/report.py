"""``report.html``: one page about a run that needs nothing but itself."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import mlesam
from mlesam.errors import MlesamError, RequestError
from mlesam.evaluation import sections
from mlesam.evaluation.about import headline
from mlesam.evaluation.evaluate import Evaluation, evaluate, store
from mlesam.evaluation.facts import (
    Facts,
    read_log,
    read_record,
    read_weights_metadata,
    stored_metrics,
    stored_protocols,
)
from mlesam.evaluation.gallery import draw
from mlesam.evaluation.markup import Html, h, join
from mlesam.evaluation.scored import open_split
from mlesam.evaluation.tiles import hero
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run

REPORT = "report.html"
FRAMES = 5
SIDE = 320
"""Longest side of a picture in pixels: sharp at the size a page of several sensors can give it."""
AGREEMENT = 0.02
"""Most that a frame's mIoU may differ from the stored one. More is another checkpoint; less is another machine."""
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%2317527a'/%3E%3Cpath d='M3 12V4l5 5 5-5v8' fill='none' "
    "stroke='white' stroke-width='2'/%3E%3C/svg%3E"
)


def write_report(
    run: Run,
    out: Path | None = None,
    *,
    evaluation: Evaluation | None = None,
    frames: int = FRAMES,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a run's report.

    The numbers are those of a stored evaluation of protocol ``subsets``. Where none is stored, or the stored one belongs to
    other weights, the run is evaluated first and the result is stored.

    Args:
        out: the page (default: ``report.html`` inside the run).
        evaluation: what to report instead of a stored evaluation; of protocol ``subsets``, on the run's own dataset.
        frames: how many frames are shown as pictures.
        advance: called with frames done and frames in all while evaluating.

    Returns:
        The path of the page.

    Raises:
        RequestError: an evaluation of another protocol or dataset. DataError: no weights, or nothing to score.
    """
    if evaluation is not None:
        _refuse_foreign(evaluation.metrics, run)
    metrics = evaluation.metrics if evaluation is not None else stored_metrics(run)
    facts = None if metrics is None else _facts(run, metrics, frames)
    if facts is None or (evaluation is None and _outdated(facts)):
        evaluation = evaluate(run, advance=advance)
        store(run, evaluation, None)
        facts = _facts(run, evaluation.metrics, frames)
    path = out or run.path / REPORT
    replace_file(path, page(facts))
    return path


def page(facts: Facts) -> str:
    """The whole page as text."""
    style = resources.files("mlesam.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    parts = [part for make in sections.ORDER if (part := make(facts)) is not None]
    links = [h("li", h("a", title, href=f"#{name}")) for name, title, _ in parts]
    today = datetime.date.today().isoformat()
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        # The page must never ask for anything: what is not in it is not shown.
        h(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        h("title", f"{facts.name}: mlesam report"),
        h("link", rel="icon", href=ICON),
        h("style", Html(style)),
    )
    body = h(
        "body",
        headline(facts, hero(facts), h("nav", h("ul", links), aria_label="On this page")),
        h("main", [content for _, _, content in parts]),
        h("footer", h("p", f"Written by mlesam {mlesam.__version__} on {today}. The page holds everything it shows.")),
    )
    return "<!doctype html>\n" + h("html", join(["\n", head, "\n", body, "\n"]), lang="en") + "\n"


def _facts(run: Run, metrics: dict[str, Any], frames: int) -> Facts:
    others = stored_protocols(run, metrics["split"])
    facts = Facts(run, metrics, read_record(run), read_log(run), read_weights_metadata(run), protocols=others)
    try:
        scored = open_split(run, split=metrics["split"])
        pictures = draw(run, scored, metrics, frames, SIDE)
        return replace(facts, pictures=pictures, total=len(scored.frames))
    except MlesamError as error:  # the numbers stand without the frames, which may lie on another machine
        return replace(facts, missing=str(error))


def _outdated(facts: Facts) -> bool:
    """Whether the weights now say something else about the shown frames than those that were evaluated."""
    stored = facts.metrics["frame_miou"]
    pairs = [(shown.full.miou, stored[shown.frame.id]) for shown in facts.pictures]
    return any((now is None) != (then is None) or abs((now or 0) - (then or 0)) > AGREEMENT for now, then in pairs)


def _refuse_foreign(metrics: dict[str, Any], run: Run) -> None:
    if metrics["protocol"] != "subsets":
        raise RequestError(f"a report needs an evaluation of protocol subsets, not {metrics['protocol']}.")
    if metrics["dataset"] != run.recipe.data.dataset:
        raise RequestError(
            f"the evaluation is of {metrics['dataset']}, but a report is about the run's own dataset, "
            f"{run.recipe.data.dataset}; evaluate that."
        )
