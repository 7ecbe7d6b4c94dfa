"""Where a result is stored: under which name inside the run, as JSON, and as tables beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlesam.errors import RequestError
from mlesam.evaluation.tables import Setting, sheet
from mlesam.evaluation.typeset import latex, markdown
from mlesam.model.checkpoints import replace_file
from mlesam.model.run import Run

FOLDER = "evaluation"


def write_tables(run: Run, results: Sequence[Mapping[str, Any]], beside: Path) -> None:
    """The results as tables in Markdown and LaTeX: ``.md`` and ``.tex`` beside a JSON file."""
    data, foundation = run.recipe.data, run.recipe.model.foundation
    setting = Setting(foundation, tuple(run.sensors), data.resize)
    sheets = [sheet(result, setting) for result in results]
    for suffix, draw in TABLES.items():
        replace_file(beside.with_suffix(suffix), "\n".join(draw(found) for found in sheets))


TABLES = {".md": markdown, ".tex": latex}


def check_out(out: Path | None) -> None:
    """RequestError where the JSON file would be written over by the tables beside it."""
    if out is not None and out.suffix.lower() in TABLES:
        raise RequestError(f"--out {out} gets JSON, and tables are written beside it; name {out.with_suffix('.json')}.")


def stem(result: Mapping[str, Any], run: Run) -> str:
    """Name of a result inside the run. What differs from the plain evaluation is in it: neither is taken for the other."""
    own = result["dataset"] == run.recipe.data.dataset
    words = [result["protocol"]]
    if "published_noise" in result:
        words.append("published")
    if "severities" in result:
        words += ["severities", *map(str, result["severities"])]
    views = result.get("views", {})
    if "scales" in views:
        words += ["scales", *(f"{scale:g}" for scale in views["scales"]), *(["flip"] if views["flip"] else [])]
    if "window" in views:
        words += ["window", str(views["window"]), str(views["stride"])]
    if "chosen" in result:
        words.append("+".join(result["chosen"]))
    if not own:
        words.append(_plain_name(result["dataset"]))
    if "class_map" in result:
        words.append(_plain_name(Path(result["class_map"]["name"]).stem))
    return "-".join([*words, result["split"], str(result["frames"])])


def _plain_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def dumps(result: dict[str, Any]) -> str:
    """``metrics.json`` as text: indented, but each row of the confusion matrix on one line."""
    text = json.dumps({**result, "confusion": None} if "confusion" in result else result, indent=2, ensure_ascii=False)
    if "confusion" in result:
        rows = ",\n".join(f"    {json.dumps(row)}" for row in result["confusion"])
        # A line break inside a name is escaped, so only the key itself can stand at the start of a line.
        text = text.replace('\n  "confusion": null', f'\n  "confusion": [\n{rows}\n  ]', 1)
    return text + "\n"
