"""What ``mlesam doctor`` prints. Names of files and sensors are anyone's: they are never read as markup or as commands
to the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mlesam.checks.findings import Finding, Findings, counted, named, shown

if TYPE_CHECKING:
    from collections import Counter

    from mlesam.checks.dataset import Summary
    from mlesam.checks.files import Advance
    from mlesam.checks.weights import Group
    from mlesam.sensors.spec import SensorSpec

MOST_VALUES = 4
"""Values of a mean or std that are shown one by one."""
PLAIN_SECONDS = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def plain(text: str, style: str = "") -> Text:
    """Text as it is, with everything unprintable (escape sequences, broken encodings) spelt out."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), style)


def title(what: str, name: str, console: Console) -> None:
    console.print(plain(f"{what} {name}".strip(), "bold"), soft_wrap=True)


def show_facts(facts: Sequence[tuple[str, str]], console: Console) -> None:
    """Lines of what and value; the values stand in one column."""
    width = max((len(what) for what, _ in facts), default=0)
    for what, value in facts:
        _hanging(f"  {what:<{width}}  ", value, console)


def show_findings(findings: Findings, console: Console) -> None:
    """All faults, all notes, and the verdict."""
    for what, found, style in (
        ("faults", findings.found_faults, "bold red"),
        ("notes", findings.found_notes, "bold yellow"),
    ):
        if found:
            _list(what, found, style, console)
    console.print()
    console.print(plain(findings.verdict, "bold red" if findings.faults else "bold green"))


def _list(what: str, found: list[Finding], style: str, console: Console) -> None:
    console.print()
    console.print(plain(f"{what} ({len(found)})", style))
    for line in shown(found):
        _hanging("  - ", line, console)


def _hanging(lead: str, text: str, console: Console) -> None:
    """A terminal shows the text wrapped beside its lead; elsewhere a line stays a line, so that it can be searched."""
    if not console.is_terminal:
        console.print(plain(lead + text), soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(plain(lead), plain(text))
    console.print(grid)


def show_summary(summary: Summary, console: Console) -> None:
    """A dataset's splits, sensors and classes."""
    splits = list(summary.frames)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  ", no_wrap=True)
    for split in splits:
        table.add_column(plain(split), justify="right", no_wrap=True)
    table.add_column("files", overflow="fold")
    for name, counts in (("frames", summary.frames), ("labels", summary.labels), *summary.sensors.items()):
        files = _files(summary.sizes.get(name), summary.kinds.get(name))
        if name == "labels" and summary.label_values:
            files += f", values {named([str(v) for v in summary.label_values], 8)}"
        table.add_row(plain(f"  {name}"), *(f"{counts.get(s, 0):,}" for s in splits), plain(files))
    if splits:
        console.print(table)
    if summary.classes:
        _hanging("  classes  ", _classes(summary), console)


def _files(sizes: Counter[tuple[int, int]] | None, kinds: Counter[tuple[str, int]] | None) -> str:
    said = []
    if sizes:
        (height, width), _ = sizes.most_common(1)[0]
        said.append(f"{width}x{height}" if len(sizes) == 1 else f"{len(sizes)} sizes, most {width}x{height}")
    for (dtype, channels), count in (kinds or {}).items():
        word = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float"}.get(dtype, dtype)
        many = f" x {channels} channels" if channels > 1 else ""
        said.append(f"{word}{many}" + (f" ({count:,} files)" if len(kinds or ()) > 1 else ""))
    return ", ".join(said)


def _classes(summary: Summary) -> str:
    """Names, with their share of the pixels of the first labelled split."""
    split = next(iter(summary.pixels), None)
    if split is None:
        return ", ".join(summary.classes)
    pixels = summary.pixels[split]
    total = max(1, sum(pixels.values()))
    shares = [f"{name} {100 * pixels.get(i, 0) / total:.2g} %" for i, name in enumerate(summary.classes)]
    return f"{', '.join(shares)} (of the scored {split} pixels)"


def show_sensors(specs: Mapping[str, SensorSpec], console: Console) -> None:
    """What a training takes each sensor's numbers for."""
    console.print()
    console.print(plain("sensors", "bold"))
    show_facts([(modality, spec_line(spec)) for modality, spec in specs.items()], console)


def _each(values: Sequence[float]) -> str:
    """One value per channel, or where they are many from which to which they go."""
    if len(values) > MOST_VALUES:
        return f"{min(values):.4g} to {max(values):.4g}"
    return " ".join(f"{v:.4g}" for v in values)


def spec_line(spec: SensorSpec, statistics: bool = True) -> str:
    """What a spec says about a sensor's files, with or without its mean and std."""
    unit = f" {spec.unit}" if spec.unit != "1" else " of full scale" if spec.scale is None else ""
    low, high = spec.range
    said = [counted(spec.channels, "channel")]
    if spec.colormap is not None:
        map_ = spec.colormap if isinstance(spec.colormap, str) else f"of {len(spec.colormap)} colours"
        said.append(f"from the colour map {map_}")
    elif spec.dtype is not None:
        said.append(spec.dtype)
    if spec.scale is not None:
        said.append(f"stored value x {spec.scale:g}" + (f" = {spec.unit}" if spec.unit != "1" else ""))
    said.append("any value" if math.isinf(low) and math.isinf(high) else f"{low:g} to {high:g}{unit}")
    if spec.normalize == "frame":
        said.append("normalised by each frame's own mean and std")
    elif statistics:
        said.append(f"mean {_each(spec.mean)}, std {_each(spec.std)}")
    said.append(spec.interpolation)
    if spec.missing is not None:
        said.append(f"{spec.missing:g} is nothing measured")
    return ", ".join(said)


def show_groups(groups: Sequence[Group], console: Console) -> None:
    """Tensors of a checkpoint by the beginning of their names."""
    for used, word in ((True, "used"), (False, "ignored")):
        names = [f"{g.name} {g.tensors}" for g in groups if g.used == used]
        if names:
            _hanging(f"  {word:<8} ", ", ".join(names), console)


@contextmanager
def reading(console: Console) -> Iterator[Advance]:
    """Progress of reading files: a bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("  reading files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    spoke = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > PLAIN_SECONDS:
            spoke = time.monotonic()
            console.print(plain(f"  read {done:,} of {total:,} files"), soft_wrap=True)

    yield advance
