"""Tables as text: Markdown, and LaTeX in the style of booktabs. Whatever a name holds, it stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads. The first ``names`` columns are words, the others numbers; ``notes`` stand below."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    names: int = 1


@dataclass(frozen=True)
class Sheet:
    """The tables of one result. ``notes`` hold for all of them and stand below each."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)


def markdown(sheet: Sheet) -> str:
    """A section of a Markdown file (GitHub's tables)."""
    lines = [f"## {_marked(sheet.title)}", ""]
    for table in sheet.tables:
        numbers = len(table.heads) - table.names
        lines += [f"**{_marked(table.title)}**", "", _row(table.heads), f"|{'---|' * table.names}{'--:|' * numbers}"]
        lines += [_row(row) for row in table.rows]
        lines += ["", *(f"{_marked(note)}  " for note in table.notes), *([""] if table.notes else [])]
    lines += [f"- {_marked(note)}" for note in sheet.notes]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_marked(cell) for cell in cells)} |"


def _marked(text: str) -> str:
    """Text in which Markdown finds no markup: no end of a cell, no HTML, no emphasis, no link, no code."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", _line(text))


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}", "†": r"\textdagger{}", "–": "--", "→": r"$\rightarrow$",
}  # fmt: skip
"""``[`` and ``*`` at the start of a row would be taken for an argument of the line break before it."""


def latex(sheet: Sheet) -> str:
    """The tables as floats, each complete in itself; they need booktabs."""
    lines = [f"% {_line(sheet.title)}", r"% \usepackage{booktabs}"]
    for table in sheet.tables:
        numbers = len(table.heads) - table.names
        lines += [
            r"\begin{table}", r"  \centering", f"  \\caption{{{_texed(table.title)}. {_texed(sheet.title)}.}}",
            f"  \\begin{{tabular}}{{{'l' * table.names}{'r' * numbers}}}", r"    \toprule",
            f"    {_cells(table.heads)} \\\\", r"    \midrule", *(f"    {_cells(row)} \\\\" for row in table.rows),
            r"    \bottomrule", r"  \end{tabular}",
        ]  # fmt: skip
        notes = (*table.notes, *sheet.notes)
        lines += [f"  \\par\\smallskip{{\\footnotesize {_texed(note)}}}" for note in notes]
        lines += [r"\end{table}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(cells: Sequence[str]) -> str:
    return " & ".join(_texed(cell) for cell in cells)


def _texed(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _line(text))


def _line(text: str) -> str:
    """On one line, without control characters: a name with a line break would end a row, or a comment."""
    return re.sub(r"[\s\x00-\x1f\x7f\u2028\u2029]+", " ", text).strip()
