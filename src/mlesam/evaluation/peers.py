"""What others published, beside our own: only of the same dataset, split and sensors, and never two ways of scoring in one table.

The numbers are in ``data/peers.yaml``, each with its source and its backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

from mlesam.config import build, parse_yaml
from mlesam.evaluation.typeset import Table
from mlesam.evaluation.views import described


@dataclass(frozen=True)
class Column:
    """A number of a result: its head in the table, and the keys that lead to it in ``metrics.json``.

    ``[results, NAME]`` is the mIoU of the row of that name.
    """

    head: str
    where: tuple[str, ...]

    def of(self, metrics: Mapping[str, Any]) -> float | None:
        if self.where[0] == "results":
            return next((row["miou"] for row in metrics["results"] if row["name"] == self.where[1]), None)
        value: Any = metrics
        for key in self.where:
            value = value[key]
        return value


@dataclass(frozen=True)
class Peer:
    """A published row. ``values`` in %, one for each column; ``second_hand``: not read in the source itself."""

    model: str
    values: tuple[float | None, ...]
    source: str
    backbone: str | None = None
    second_hand: bool = True


@dataclass(frozen=True)
class Block:
    """Rows that can be compared with each other.

    Attributes:
        question: what was tested. protocol: ours that tests the same.
        rule: how it was scored, in the words of :func:`rule`. None: our source does not say.
    """

    dataset: str
    split: str
    sensors: tuple[str, ...]
    protocol: str
    question: str
    columns: tuple[Column, ...]
    rows: tuple[Peer, ...]
    rule: str | None = None


@dataclass(frozen=True)
class PeersFile:
    """``data/peers.yaml``."""

    blocks: tuple[Block, ...]


@cache
def peers() -> tuple[Block, ...]:
    """All published numbers that the package knows."""
    text = resources.files("mlesam.data").joinpath("peers.yaml").read_text(encoding="utf-8")
    return build(PeersFile, parse_yaml(text), "peers.yaml").blocks


def rule(metrics: Mapping[str, Any], resize: int | None) -> str:
    """How a result was scored: the size of the labels, what the model saw of a frame, and how often."""
    options = [word for word in metrics["dataset"].partition("?")[2].split(",") if word]
    squash = next((word.partition("=")[2] for word in options if word.startswith("squash=")), None)
    words = ["labels at native size" if squash is None else f"{squash} x {squash} pixels, labels as well"]
    words += [word for word in options if not word.startswith("squash=")]
    views = metrics.get("views", {})
    if resize is not None and "window" not in views and str(resize) != squash:
        words.append(f"frames at a short side of {resize} pixels")
    if views:
        words.append(described(views))
    return ", ".join(words)


def published(metrics: Mapping[str, Any], foundation: str, sensors: Sequence[str], resize: int | None) -> list[Table]:
    """Our row and the published ones, a table for each way of scoring.

    Empty where there is nothing to compare with: a part of the split, a miniature, a model of another dataset's classes, or one
    that was trained with other sensors than it is tested with.

    Args:
        foundation: our backbone. sensors: that the run was trained with. resize: as in :func:`rule`.
    """
    if {"split_frames", "miniature", "class_map", "chosen"} & set(metrics):
        return []
    kind = metrics["dataset"].partition(":")[0]
    fitting = [
        block
        for block in peers()
        if (block.dataset, block.split, block.protocol) == (kind, metrics["split"], metrics["protocol"])
        and set(block.sensors) == set(metrics["modalities"]) == set(sensors)
    ]
    own = rule(metrics, resize)
    tables = []
    for question, group in groupby(fitting, key=lambda block: block.question):
        blocks = list(group)
        first = blocks[0]
        values = tuple(column.of(metrics) for column in first.columns)
        ours = (f"mlesam (ours), {metrics['frames']} frames", foundation, *map(_own, values), "this evaluation")
        if not any(block.rule == own for block in blocks):
            tables.append(_table(question, own, first, [ours]))
        for block in blocks:
            tables.append(_table(question, block.rule, block, [ours] if block.rule == own else []))
    return tables


def _table(question: str, scored: str | None, block: Block, ours: list[tuple[str, ...]]) -> Table:
    alone = bool(ours) and block.rule != scored
    rows = [
        (
            peer.model + ("†" if peer.second_hand else ""),
            peer.backbone or "not stated",
            *("–" if value is None else f"{value:.2f}" for value in peer.values),
            peer.source,
        )
        for peer in ([] if alone else block.rows)
    ]
    notes = ["† second-hand: not read in the source named."] if any("†" in row[0] for row in rows) else []
    if not ours:
        notes.append(
            "Scored otherwise than ours, or our source does not say how: not to be put into one table with it."
        )
    where = f"{block.dataset} {block.split}, {'+'.join(block.sensors)}"
    heads = ("model", "backbone", *(column.head for column in block.columns), "source")
    title = f"{question}: {where}, {scored or 'size of frames and labels not stated'}"
    return Table(title, heads, (*ours, *rows), tuple(notes), names=2)


def _own(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
