"""Checks of a run directory: whether its files are whole, fit each other, and how far the training came."""

from __future__ import annotations

import json
from pathlib import Path

from mlesam.checks.findings import Findings, counted
from mlesam.checks.weights import WeightsFindings
from mlesam.errors import MlesamError
from mlesam.model.checkpoints import load_tensors, not_finite
from mlesam.model.hub import cached_folder, is_hub_id
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import LAST, LOG, RECIPE, RECORD, WEIGHTS, Run, load_weights


def check_run(path: Path) -> WeightsFindings:
    """Check a run. The model is built, since only that shows whether the weights and the foundation are its own."""
    findings = WeightsFindings()
    _check_record(path, findings)
    logged = _check_log(path, findings)
    try:
        run = Run.load(path)
        sensors, classes, steps = run.sensors, run.classes, run.recipe.training.steps
    except MlesamError as error:
        findings.fault("recipe", str(error))
        _metadata(path, WEIGHTS, findings)
        _metadata(path, LAST, findings)
        return findings
    foundation = run.recipe.model.foundation
    findings.facts += [
        ("foundation", f"{foundation}, training {run.recipe.model.train}, rank {run.recipe.model.rank}"),
        ("sensors", ", ".join(f"{m} ({counted(spec.channels, 'channel')})" for m, spec in sensors.items())),
        ("classes", ", ".join(classes.names)),
    ]
    weights, last = _metadata(path, WEIGHTS, findings), _metadata(path, LAST, findings)
    reached = max(_step(last), _step(weights), logged)
    kept = f", last checkpoint at step {_step(last)}" if last is not None else ""
    done = f"finished, {steps} steps" if reached >= steps else f"step {reached} of {steps}{kept}"
    findings.facts.append(("progress", done))
    if weights is not None:
        miou = weights.get("miou")
        said = f", val mIoU {miou:.3f}" if isinstance(miou, float) else ""
        findings.facts.append(("weights", f"of step {weights.get('step')}{said}"))
        _check_calibration(run, findings)
    elif not (path / WEIGHTS).is_file():
        if last is not None or reached >= steps:
            findings.fault("missing files", f"{path / WEIGHTS} is missing, but the training has reached a validation.")
        else:
            findings.note("progress", "the run holds no weights yet: it stopped before its first validation")
    if reached < steps:
        findings.note("progress", f"the training is not finished; go on with: mlesam train --out {path} --resume")
    elif not (path / LAST).is_file():
        findings.note("progress", f"there is no {LAST}, so the training cannot be taken up again")
    _check_fit(run, weights is not None, last is not None, findings)
    return findings


def _check_calibration(run: Run, findings: WeightsFindings) -> None:
    try:
        found = run.calibration
    except MlesamError as error:
        findings.fault("calibration", str(error))
        return
    said = "none, probabilities are the plain softmax"
    if found is not None:
        said = f"on {counted(found.frames, 'val frame')}, temperature {found.temperature(run.sensors):.2f} with all sensors"
    findings.facts.append(("calibration", said))


def _check_fit(run: Run, weights: bool, last: bool, findings: Findings) -> None:
    foundation, revision = run.recipe.model.foundation, run.recipe.model.revision
    if is_hub_id(foundation) and cached_folder(foundation, revision) is None:
        findings.note("foundation", f"{foundation} is not in the Hub's cache, so the weights were not held against it")
        return
    try:
        model = run.build_model()
    except MlesamError as error:
        findings.fault("foundation", str(error))
        return
    for name, prefix, wanted in ((WEIGHTS, "", weights), (LAST, "model.", last)):
        if wanted:
            _check_weights(model, run.path / name, prefix, findings)


def _check_weights(model: MLESAM, path: Path, prefix: str, findings: Findings) -> None:
    try:
        load_weights(model, path, prefix)
        tensors, _ = load_tensors(path, prefix)
    except MlesamError as error:
        findings.fault("weights that do not fit", str(error))
        return
    for name in not_finite(tensors):
        findings.fault("tensors that are not finite", f"{path}: {name} holds NaN or infinity.")


def _metadata(path: Path, name: str, findings: Findings) -> dict[str, object] | None:
    """What a weight file says about itself; None where there is none or it cannot be read."""
    if not (path / name).is_file():
        return None
    try:
        return load_tensors(path / name)[1]
    except MlesamError as error:
        findings.fault("unreadable files", str(error))
        return None


def _step(metadata: dict[str, object] | None) -> int:
    step = (metadata or {}).get("step")
    return step if isinstance(step, int) else 0


def _check_record(path: Path, findings: WeightsFindings) -> None:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        findings.fault("missing files", f"{path / RECORD} is missing; a run has one beside its {RECIPE}.")
        return
    except (OSError, ValueError) as error:
        findings.fault("unreadable files", f"{path / RECORD} is not valid JSON ({error}).")
        return
    if isinstance(record, dict) and record.get("command"):
        findings.facts.append(("command", str(record["command"])))


def _check_log(path: Path, findings: Findings) -> int:
    """The last step in the log."""
    step = 0
    if not (path / LOG).is_file():
        return step
    lines = (path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            step = max(step, int(event.get("step", 0)))
        except (ValueError, AttributeError, TypeError):
            if number == len(lines):  # a killed process leaves half a line, and --resume cuts it off
                findings.note("log", f"the last line of {path / LOG} is cut off")
            else:
                findings.fault("log", f"line {number} of {path / LOG} is not valid JSON.")
    return step
