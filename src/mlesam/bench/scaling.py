"""Suite ``scaling``: how the time of a frame grows with sensors, classes, pixels and rank."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mlesam.bench.case import Case, Subject, measure_cases
from mlesam.bench.inference import floor, whole
from mlesam.bench.setting import SENSORS, Setting

AXES: dict[str, Sequence[int]] = {
    "sensors": range(1, len(SENSORS) + 1), "classes": (10, 25, 50, 100, 150), "pixels": (128, 256, 384, 512),
    "rank": (0, 4, 8, 16, 32, 64),
}  # fmt: skip
"""What is varied, one at a time. Pixels are those of a side."""


def cases(axis: str, values: Sequence[int]) -> list[Case]:
    """A case for each value. The baseline is one sensor's trunk pass for ``sensors``, else the first value."""
    build = partial(whole, precision="fp32")
    subjects = [
        Subject(f"{axis}-{v}", f"pictures to logits, fp32, with {axis} = {v}", build, varied={_field(axis): v})
        for v in values
    ]
    base = subjects[0]
    if axis == "sensors":
        base = Subject("floor-1", "the frozen trunk and neck alone, one sensor", floor, varied={"sensors": 1})
    return [Case(own.name, own, base) for own in subjects]


def _field(axis: str) -> str:
    """Of a :class:`Setting`."""
    return {"pixels": "size"}.get(axis, axis)


def scaling(
    setting: Setting, rounds: int, advance: Callable[[int, int], None], axes: Any = None
) -> list[dict[str, Any]]:
    """Rows of every axis, each axis measured in turns of its own, and what one more sensor costs."""
    rows = []
    for axis, values in (axes or AXES).items():
        own = measure_cases(cases(axis, values), setting, rounds, advance)
        rows += [{**row, "axis": axis, "value": value} for row, value in zip(own, values, strict=True)]
        if axis == "sensors":
            rows.append(per_sensor(own, values, setting))
    measured = [row for row in rows if "axis" in row]
    if {"sensors", "classes", "pixels"} <= {row["axis"] for row in measured}:
        rows.append(cost(measured, setting))
    return rows


def cost(rows: Sequence[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """The model ``constant + M P (sensor + sensor_pixels P) + P classes class`` that is nearest to all measured times as shares,
    with M sensors and P times the pixels of the setting: each token of each sensor is projected, in some blocks it attends to
    all others, and each class is drawn. The row holds the time that lies farthest from the model, against what was measured."""
    there = [setting.with_(**{_field(row["axis"]): row["value"]}) for row in rows]
    pixels = np.array([(own.size / setting.size) ** 2 for own in there])
    sensors, classes = (np.array([getattr(own, name) for own in there]) for name in ("sensors", "classes"))
    terms = np.stack([np.ones_like(pixels), sensors * pixels, sensors * pixels**2, classes * pixels], axis=1)
    seconds = np.array([row["seconds"] for row in rows])
    found = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
    said = terms @ found
    worst = int(np.abs(np.log(said / seconds)).argmax())
    nearest = round(float(said[worst]), 6)
    names = ("constant", "sensor", "sensor_pixels", "class")
    return {
        "name": f"cost{setting.suffix}", "ratio": nearest / rows[worst]["seconds"], "baseline": rows[worst]["name"],
        "seconds": nearest, "baseline_seconds": rows[worst]["seconds"], "peak_mib": None,
        "baseline_peak_mib": None, "coefficients": {n: round(float(v), 6) for n, v in zip(names, found, strict=True)},
        "conditions": f"model of cost through {len(rows)} medians, of which this one lies farthest from it; {setting.describe()}",
    }  # fmt: skip


def per_sensor(rows: Sequence[dict[str, Any]], counts: Sequence[int], setting: Setting) -> dict[str, Any]:
    """The slope of time over sensors against one sensor's trunk pass. ``bend``: the largest distance of a measured time from the
    line, as a share of the longest time."""
    seconds = [row["seconds"] for row in rows]
    fit = statistics.linear_regression(list(counts), seconds)
    slope = round(fit.slope, 6)
    bend = max(abs(s - fit.intercept - fit.slope * n) for n, s in zip(counts, seconds, strict=True)) / max(seconds)
    memory = statistics.linear_regression(list(counts), [row["peak_mib"] or 0.0 for row in rows]).slope
    base = rows[0]["baseline_seconds"]
    return {
        "name": rows[0]["name"].replace(f"sensors-{counts[0]}", "per-sensor"), "ratio": slope / base,
        "baseline": rows[0]["baseline"], "seconds": slope, "baseline_seconds": base, "peak_mib": round(memory, 1),
        "baseline_peak_mib": rows[0]["baseline_peak_mib"], "bend": round(bend, 4),
        "conditions": f"slope of the line through the medians of {min(counts)} to {max(counts)} sensors; "
        f"{setting.with_(sensors=max(counts)).describe()}",
    }  # fmt: skip
