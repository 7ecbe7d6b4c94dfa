"""The package's own exceptions: every one carries a sentence that names the value, the rule and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class MlesamError(Exception):
    """Something this package refuses or cannot do. ``exit_status`` is what the command line returns for it."""

    exit_status = 1


class RequestError(MlesamError, ValueError):
    """The request was wrong: a name, a value or a combination that cannot be meant."""

    exit_status = 2


class DataError(MlesamError, ValueError):
    """The request was right but the data are not: a file that is unreadable, does not fit or holds wrong values."""


class WorkError(MlesamError, RuntimeError):
    """The work itself failed, for instance a loss that is no longer finite."""


def refuse_occupied(out: Path) -> None:
    """RequestError unless a directory is new or empty: nothing is written over."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} exists and is not empty; choose a new directory with --out.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'depth'?"`` for the nearest known name, else the list of all known ones."""
    known = [str(k) for k in known]
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
