"""Cases: what is measured against what. All subjects of a suite are measured in the same turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mlesam.bench.measure import Build, Outputs, Run, compared, in_turns
from mlesam.bench.peak import peak_mib
from mlesam.bench.setting import Setting
from mlesam.errors import WorkError


@dataclass(frozen=True)
class Subject:
    """Something that can be measured.

    Attributes:
        name: short. about: a sentence for who reads the result. build: makes what does the work once.
        precision: what it computes in. units: how many of what is reported (steps, frames) one call does.
        varied: fields of the setting in which it differs from the rest of its suite.
    """

    name: str
    about: str
    build: Build
    precision: str = "fp32"
    units: float = 1.0
    varied: Mapping[str, Any] = field(default_factory=dict)

    def at(self, setting: Setting) -> Setting:
        """The conditions that it is measured in."""
        return setting.with_(**self.varied)


@dataclass(frozen=True)
class Case:
    """A subject against its baseline.

    Attributes:
        name: of the result, without preset and size. others: further baselines, whose ratios stand beside the first one's.
        tolerance: how far the outputs may differ from a baseline's of the same precision, as a share of its largest value; no
            ratio is given where they differ more. None: the two do not compute the same.
    """

    name: str
    subject: Subject
    baseline: Subject
    others: tuple[Subject, ...] = ()
    tolerance: float | None = None

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return (self.subject, self.baseline, *self.others)


def measure_cases(
    cases: Sequence[Case],
    setting: Setting,
    rounds: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
    memory: bool = True,
) -> list[dict[str, Any]]:
    """A row for each case; without ``memory`` its peaks are null, which saves a process for each subject.

    Raises:
        WorkError: two that should compute the same do not.
    """
    torch.set_num_threads(setting.threads)
    # Convolutions of float32 in TF32, as torch has them on GPUs, would differ from the same products elsewhere.
    torch.backends.cudnn.allow_tf32 = False
    subjects = {subject.name: subject for case in cases for subject in case.subjects}
    # Memory first: what does not fit is refused in a process of its own.
    peaks = {
        name: peak_mib(subject.build, subject.at(setting)) if memory else None for name, subject in subjects.items()
    }
    runs: dict[str, Run] = {name: subject.build(subject.at(setting)) for name, subject in subjects.items()}
    errors = _errors(cases, runs)
    turns = in_turns(runs, rounds, setting, advance)
    clock = {name: [seconds / subjects[name].units for seconds in turns[name]] for name in subjects}
    runs.clear()

    def against(case: Case, baseline: Subject) -> dict[str, Any]:
        found = compared(clock[case.subject.name], clock[baseline.name])
        ratio = {"ratio": found.pop("ratio"), "baseline": baseline.name}
        memory = {"peak_mib": peaks[case.subject.name], "baseline_peak_mib": peaks[baseline.name]}
        return {**ratio, **found, **memory, "error": errors.get((case.name, baseline.name))}

    rows = []
    for case in cases:
        row = {"name": case.name + setting.suffix, **against(case, case.baseline)}
        pair = f"{case.subject.about}, against {case.baseline.about}"
        row["conditions"] = f"{case.subject.at(setting).describe()}; {pair}; median of {rounds} rounds in turns"
        if case.others:
            row["against"] = {other.name: against(case, other) for other in case.others}
        rows.append(row)
    return rows


def _errors(cases: Sequence[Case], runs: dict[str, Run]) -> dict[tuple[str, str], float]:
    """By case and baseline, how far the outputs differ. Every subject runs once, on the same numbers."""
    wanted = {s.name for case in cases if case.tolerance is not None for s in case.subjects}
    outputs = {name: cast(Outputs, run()) for name, run in runs.items() if name in wanted}
    found = {}
    for case in cases:
        if case.tolerance is None:
            continue
        for baseline in case.subjects[1:]:
            error = difference(outputs[case.subject.name], outputs[baseline.name])
            found[case.name, baseline.name] = error
            same = baseline.precision == case.subject.precision
            if same and not error <= case.tolerance:
                raise WorkError(
                    f"{case.subject.name} and {baseline.name} differ by {error:.1e} of the largest output, and only "
                    f"{case.tolerance:g} is allowed; no ratio is given for what does not compute the same."
                )
    return found


def difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference as a share of the largest value of ``theirs``; the worst of several tensors."""
    if isinstance(theirs, Tensor):
        apart = (cast(Tensor, ours).float() - theirs.float()).abs().max()
        return float(f"{float(apart / theirs.float().abs().max()):.2e}")
    shares = [difference(one, two) for one, two in zip(ours, theirs, strict=True)]
    return float(torch.tensor(shares, dtype=torch.float64).max())  # NaN stays NaN
