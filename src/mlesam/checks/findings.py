"""What a check found: faults that must be mended, and notes that are worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20
"""Findings of one kind that are shown; the rest are counted."""


@dataclass(frozen=True)
class Finding:
    """One sentence.

    Attributes:
        kind: a plural, such as "unreadable files", under which many of a kind are counted.
        subject: the file that the sentence begins with, where it does.
    """

    kind: str
    text: str
    subject: str = ""


@dataclass
class Findings:
    """Everything a check found, in the order it was found."""

    found_faults: list[Finding] = field(default_factory=list)
    found_notes: list[Finding] = field(default_factory=list)

    def fault(self, kind: str, text: str, subject: str = "") -> None:
        """Something that makes a training or evaluation fail, or its numbers wrong."""
        self.found_faults.append(Finding(kind, text, subject))

    def note(self, kind: str, text: str) -> None:
        """Something that may well be meant."""
        self.found_notes.append(Finding(kind, text))

    def add(self, other: Findings) -> None:
        self.found_faults += other.found_faults
        self.found_notes += other.found_notes

    @property
    def faults(self) -> list[str]:
        """Every fault, one sentence each."""
        return [f.text for f in self.found_faults]

    @property
    def notes(self) -> list[str]:
        """Every note, one sentence each."""
        return [f.text for f in self.found_notes]

    @property
    def verdict(self) -> str:
        """For instance ``2 faults, 3 notes``."""
        faults, notes = len(self.found_faults), len(self.found_notes)
        said = counted(faults, "fault") if faults else "no faults"
        return f"{said}, {counted(notes, 'note')}" if notes else said


def shown(findings: list[Finding]) -> list[str]:
    """The lines to print: one kind after the other, at most ``SHOWN`` of each and the count of the rest.

    What was said of a file is not said again in full of the next one.
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    lines = []
    for kind, members in kinds.items():
        said: set[str] = set()
        for finding in members[:SHOWN]:
            predicate = finding.text.removeprefix(finding.subject)
            repeated = finding.subject and predicate in said
            lines.append(f"{finding.subject}: the same" if repeated else finding.text)
            said.add(predicate)
        if len(members) > SHOWN:
            lines.append(f"... and {len(members) - SHOWN:,} more {kind}")
    return lines


def counted(count: int, noun: str) -> str:
    """``1 fault``, ``2 faults``, ``2 classes``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def named(names: list[str], most: int = 5) -> str:
    """The first few names and how many there are besides."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
