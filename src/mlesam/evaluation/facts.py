"""What a report is made from: the evaluation, the run's log and record, and how they are looked up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlesam.config import Recipe
from mlesam.evaluation.gallery import Shown
from mlesam.evaluation.stored import FOLDER
from mlesam.model.checkpoints import load_metadata
from mlesam.model.run import LOG, RECORD, Run

SENSOR_COLORS = ("rgb", "depth", "lidar", "event", "thermal", "radar", "nir", "aolp", "dolp")
"""Sensors with a colour of their own, in the order of the style sheet's ``--s0`` to ``--s8``; others take free ones."""
PALETTE = 10
DARK = ("night", "dark")
"""Tags that are shown beside all frames before any other: the condition that extra sensors are bought for."""
FEW = 3
"""Frames below which a tag is not named as the weakest: one odd frame would decide."""


@dataclass(frozen=True)
class Facts:
    """Everything that stands on the page.

    Attributes:
        metrics: content of ``metrics.json`` of protocol ``subsets``. record: of ``run.json``, empty where there is none.
        log: events of ``log.jsonl``. weights: metadata of the chosen weights (step, miou on val). pictures: frames to show;
        missing: why there are none. total: frames of the split that can be scored (0: unknown).
    """

    run: Run
    metrics: dict[str, Any]
    record: dict[str, Any]
    log: list[dict[str, Any]]
    weights: dict[str, Any]
    pictures: list[Shown] = field(default_factory=list)
    missing: str = ""
    total: int = 0
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stored results of the other protocols by name, on the same split."""

    @property
    def modalities(self) -> list[str]:
        return self.metrics["modalities"]

    @property
    def classes(self) -> list[str]:
        return self.metrics["classes"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.metrics["results"]

    @property
    def full(self) -> dict[str, Any]:
        """The row with all sensors."""
        return self.rows[-1]

    def row(self, present: Sequence[str], tag: str | None = None) -> dict[str, Any]:
        """The result of a subset, over all frames or a tag's."""
        table = self.rows if tag is None else self.metrics["tags"][tag]["results"]
        return next(r for r in table if set(r["present"]) == set(present))

    def without(self, modality: str) -> dict[str, Any] | None:
        """The result when one sensor is lost; None where nothing would be left."""
        rest = [m for m in self.modalities if m != modality]
        return self.row(rest) if rest else None

    def cost(self, modality: str) -> float | None:
        """Change of mIoU when one sensor is lost; below 0 is a loss."""
        lost = self.without(modality)
        return None if lost is None else difference(lost["miou"], self.full["miou"])

    @property
    def tags(self) -> list[str]:
        """Most frequent first."""
        tags = self.metrics["tags"]
        return sorted(tags, key=lambda t: (-tags[t]["frames"], t))

    @property
    def weakest(self) -> str | None:
        """The tag with the lowest mIoU with all sensors, among those with enough frames."""
        tags = self.metrics["tags"]
        known = [t for t in self.tags if tags[t]["summary"]["full"] is not None]
        enough = [t for t in known if tags[t]["frames"] >= FEW] or known
        return min(enough, key=lambda t: tags[t]["summary"]["full"], default=None)

    @property
    def second(self) -> str | None:
        """The tag shown beside all frames: night where there is one, else the weakest."""
        return next((t for t in DARK if t in self.metrics["tags"]), self.weakest)

    @property
    def colors(self) -> dict[str, str]:
        """A CSS colour by sensor, the same on every page for the known ones."""
        free = [i for i in range(PALETTE) if i >= len(SENSOR_COLORS) or SENSOR_COLORS[i] not in self.modalities]
        found = {}
        for modality in self.modalities:
            own = SENSOR_COLORS.index(modality) if modality in SENSOR_COLORS else free.pop(0) if free else PALETTE - 1
            found[modality] = f"var(--s{own})"
        return found

    @property
    def name(self) -> str:
        """The recipe's name; where nobody gave one, the run's."""
        name = self.run.recipe.name
        return self.run.path.resolve().name if name == Recipe().name else name

    @property
    def part(self) -> bool:
        """Whether only the first frames of the split were tested."""
        return self.metrics["frames"] < self.total

    @property
    def frozen(self) -> bool:
        return self.run.recipe.model.train != "all"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.log if event.get("event") == kind]


def difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def read_record(run: Run) -> dict[str, Any]:
    """``run.json``, or nothing where it is missing or broken: the page then says less."""
    return _json_object(run.path / RECORD) or {}


def read_log(run: Run) -> list[dict[str, Any]]:
    """The events of ``log.jsonl``; a line that a killed training left half-written is passed over."""
    path = run.path / LOG
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def read_weights_metadata(run: Run) -> dict[str, Any]:
    """What :func:`mlesam.model.run.save_weights` wrote beside the weights, which themselves are not read."""
    path = run.path / run.weights
    return load_metadata(path) if path.is_file() else {}


def stored_metrics(run: Run) -> dict[str, Any] | None:
    """The run's own ``subsets`` evaluation that says most: test before other splits, then the most frames.

    None where there is none, or only such as an earlier version wrote, without what the page needs.
    """
    found = []
    for path in sorted((run.path / FOLDER).glob("*.json")):
        metrics = _json_object(path)
        if metrics is not None and _usable(metrics, run):
            found.append(metrics)
    return max(found, key=lambda m: (m["split"] == "test", m["split"] == "val", m["frames"]), default=None)


def stored_protocols(run: Run, split: str) -> dict[str, dict[str, Any]]:
    """Of each protocol but ``subsets`` and of this split, the run's own stored result with the most frames."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((run.path / FOLDER).glob("*.json")):
        metrics = _json_object(path)
        if metrics is None or metrics.get("split") != split:
            continue
        name = str(metrics.get("protocol"))
        if name != "subsets" and _usable(metrics, run, name):
            best = found.get(name)
            found[name] = metrics if best is None or metrics["frames"] > best["frames"] else best
    return found


def _usable(metrics: Mapping[str, Any], run: Run, protocol: str = "subsets") -> bool:
    return (
        metrics.get("protocol") == protocol
        and metrics.get("dataset") == run.recipe.data.dataset
        and metrics.get("classes") == list(run.classes.names)
        and set(metrics.get("modalities", ())) <= set(run.sensors)
        and {"confusion", "frame_miou", "results", "tags", "summary"} <= set(metrics)
        and not set(metrics) & {"published_noise", "severities", "views", "class_map", "chosen"}
    )


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
