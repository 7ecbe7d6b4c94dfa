"""``mlesam doctor --stats``: what each band of each sensor holds, as a table and as YAML for a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console

from mlesam.checks.files import Advance
from mlesam.checks.findings import Findings, counted
from mlesam.checks.show import plain, show_facts, spec_line
from mlesam.config import plain as plain_values
from mlesam.data.dataset import Dataset, Frame
from mlesam.data.reading import match_sensor
from mlesam.data.statistics import BandStatistics, measure, spaced, with_statistics
from mlesam.errors import MlesamError
from mlesam.sensors.spec import SensorSpec

COLUMNS = ("band", "min", "1 %", "median", "99 %", "max", "mean", "std", "empty")
REPEAT = 20
"""Rows of a table after which its header stands again: a hundred bands are taller than a terminal."""


@dataclass(frozen=True)
class Measured:
    """A sensor with its spec, the fields of it that were declared, and the statistics of its files."""

    modality: str
    spec: SensorSpec
    declared: dict[str, Any]
    statistics: BandStatistics


def measure_sensors(
    dataset: Dataset,
    modalities: Sequence[str],
    frames: Sequence[Frame],
    split: str,
    most: int | None,
    findings: Findings,
    advance: Advance,
) -> list[Measured]:
    """Statistics of the chosen sensors. A sensor whose files stop it becomes a fault.

    Args:
        frames: those of the split. most: how many of each sensor's files are read, evenly spaced. None: all.
    """
    total = sum(min(sum(m in f.files for f in frames), most or len(frames)) for m in modalities)
    done, measured = 0, []

    def count() -> None:
        nonlocal done
        done += 1
        advance(done, total)

    for modality in modalities:
        try:
            spec, seen, _ = match_sensor(dataset, modality, frames, split)
            statistics = measure(modality, spec, spaced(seen, most), count)
        except MlesamError as error:
            findings.fault("sensors", str(error))
            continue
        measured.append(Measured(modality, spec, dataset.sensor(modality), statistics))
    return measured


def show_bands(measured: Measured, console: Console) -> None:
    """One line a band. Each line is printed as it is, however narrow the terminal, so that no number is cut off."""
    statistics = measured.statistics
    console.print()
    said = f"{counted(statistics.frames, 'file')}, {statistics.pixels:,} pixels; "
    said += "percentiles exact" if statistics.exact else f"percentiles of {statistics.kept:,} of them drawn at random"
    show_facts([(measured.modality, spec_line(measured.spec, statistics=False)), ("", said)], console)
    low, middle, high = statistics.percentiles()
    numbers = (statistics.minimum, low, middle, high, statistics.maximum, statistics.mean, statistics.std)
    rows = [
        (str(band + 1), *(shown_number(float(column[band])) for column in numbers), shown_share(share))
        for band, share in enumerate(statistics.empty.tolist())
    ]
    widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *rows, strict=True)]
    for start in range(0, len(rows), REPEAT):
        if start:
            console.print()
        for i, row in enumerate((COLUMNS, *rows[start : start + REPEAT])):
            line = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            console.print(plain(f"  {line}", "" if i else "dim"), soft_wrap=True)


def shown_number(value: float) -> str:
    """Four significant digits, without an exponent where that is legible; ``-`` for NaN."""
    if not math.isfinite(value):
        return "-"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    return f"{value:.0f}" if not value or abs(value) >= 1e3 else f"{value:#.4g}".rstrip(".")


def shown_share(share: float) -> str:
    """In percent; what is neither none nor all is not rounded to either."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    return "< 0.1 %" if share < 1e-3 else "> 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def recipe_block(measured: Sequence[Measured], where: str) -> str:
    """YAML that gives a recipe or a ``dataset.yaml`` these sensors: what was declared of them, and what was measured.

    A colour camera keeps the mean and std of its spec, as a training does.

    Args:
        where: what the statistics are of, for a comment.
    """
    lines = [f"# statistics of {where}", "data:", "  sensors:"]
    for sensor in measured:
        spec = sensor.spec
        if spec.photometric == "color":
            lines.append("    # a colour camera keeps its spec's mean and std: SAM2's, unless declared")
        else:
            spec = with_statistics(spec, sensor.statistics)
        entry = {**sensor.declared, "channels": spec.channels}
        if any(math.isfinite(limit) for limit in spec.range):
            entry["range"] = spec.range
        entry |= {"mean": spec.mean, "std": spec.std}
        text = yaml.safe_dump(
            {sensor.modality: plain_values(entry)},
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=64,
        )
        lines += [f"    {line}" for line in text.splitlines()]
    return "\n".join(lines)


def show_block(measured: Sequence[Measured], where: str, console: Console) -> None:
    console.print()
    console.print(plain("for dataset.yaml, or the data section of a recipe", "bold"))
    for line in recipe_block(measured, where).splitlines():
        console.print(plain(line), soft_wrap=True)
