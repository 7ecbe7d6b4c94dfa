"""What a confidence is worth: calibration error, accuracy of the surest pixels, and where they are shown."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.integrate import trapezoid
from torchmetrics.classification import MulticlassCalibrationError

from conftest import trained_for_a_moment
from mlesam.cli import main
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.evaluation.confidence import (
    BINS,
    COVERAGES,
    ECE_BINS,
    Confidences,
    calibration_error,
    histogram,
    reliability,
    risk_coverage_area,
    selective_accuracy,
)
from mlesam.evaluation.evaluate import Evaluation, evaluate, open_split
from mlesam.evaluation.protocols import Condition, Subsets
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.evaluation.report import write_report
from mlesam.evaluation.show import table
from mlesam.model.run import Run
from mlesam.sample import IGNORE

SENSORS = ("rgb", "depth", "thermal")
FIELDS = {"temperature", "ece", "ece_uncalibrated", "aurc", "selective"}


def drawn(seed: int, pixels: int = 4000, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 5), and labels that follow them loosely."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(pixels, 5, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, labels


def counted(pairs: list[tuple[float, bool]]) -> np.ndarray:
    return histogram(torch.tensor([c for c, _ in pairs]), torch.tensor([r for _, r in pairs]))


# ---------------------------------------------------------------- calibration error


@pytest.mark.parametrize(("seed", "scale"), [(0, 0.5), (1, 1.5), (2, 3.0)])
def test_the_calibration_error_is_that_of_torchmetrics(seed: int, scale: float) -> None:
    logits, labels = drawn(seed, scale=scale)
    probabilities = logits.softmax(dim=1)
    oracle = MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1")(probabilities, labels)
    confidence, predicted = probabilities.max(dim=1)
    assert calibration_error(histogram(confidence, predicted == labels)) == pytest.approx(float(oracle), abs=1e-6)


def test_the_calibration_error_by_hand() -> None:
    # Two bins are hit: in one 0.9 and 0.91 are right in 1 of 2 cases, in the other 0.5 is right.
    found = calibration_error(counted([(0.9, True), (0.91, False), (0.5, True)]))
    assert found == pytest.approx((abs(1 - 1.81) + abs(1 - 0.5)) / 3, abs=1e-6)


def test_the_fine_bins_are_the_coarse_ones_cut_exactly() -> None:
    assert BINS % ECE_BINS == 0
    logits, labels = drawn(3)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = predicted == labels
    fine, coarse = histogram(confidence, right), histogram(confidence, right, ECE_BINS)
    np.testing.assert_array_equal(fine.reshape(3, ECE_BINS, -1).sum(axis=-1)[:2], coarse[:2])
    assert calibration_error(fine) == pytest.approx(calibration_error(coarse), abs=1e-12)


def test_certain_pixels_are_in_the_last_bin_and_edges_belong_below() -> None:
    counts = histogram(torch.tensor([1.0, 0.5, 1e-9]), torch.tensor([True, True, False]), bins=10)
    assert np.nonzero(counts[0])[0].tolist() == [0, 4, 9]


def test_the_diagram_says_share_confidence_and_accuracy_of_each_bin() -> None:
    found = reliability(counted([(0.9, True), (0.91, False), (0.5, True), (0.5, True)]))
    assert found["share"][13] == 0.5
    assert found["confidence"][13] == pytest.approx(0.905)
    assert found["accuracy"][13] == 0.5
    assert (found["share"][7], found["confidence"][7], found["accuracy"][7]) == (0.5, 0.5, 1.0)
    assert found["share"][0] == 0.0
    assert found["accuracy"][0] is None


# ---------------------------------------------------------------- the surest pixels


def test_selective_accuracy_is_that_of_sorted_pixels() -> None:
    logits, labels = drawn(4, pixels=20_000, scale=1.0)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).numpy()
    counts = histogram(confidence, predicted == labels)
    order = np.argsort(-confidence.numpy(), kind="stable")
    kept = np.round(np.array(COVERAGES) * len(order)).astype(int)
    exact = [right[order[:k]].mean() for k in kept]
    found = selective_accuracy(counts)
    # Only the bin in which a share ends is averaged.
    np.testing.assert_allclose(found, exact, atol=counts[0].max() / kept[0])
    assert found[-1] == right.mean()
    assert found[0] > found[-1]


def test_selective_accuracy_and_area_by_hand() -> None:
    counts = counted([(0.6, True), (0.9, True), (0.7, True), (0.8, False)])  # in order: right, wrong, right, right
    assert selective_accuracy(counts, [0.25, 0.5, 0.75, 1.0]) == pytest.approx([1.0, 1 / 2, 2 / 3, 3 / 4])
    assert selective_accuracy(counts, [0.375]) == pytest.approx([1 / 1.5]), "half of the wrong pixel is in"
    # The second pixel gives the integral of x / (1 + x), 1 - ln 2; the others ln(3 / 2) and ln(4 / 3), together ln 2.
    assert risk_coverage_area(counts) == pytest.approx(1 / 4)


def test_the_area_is_the_integral_of_the_curve_and_near_the_mean_of_the_risks() -> None:
    logits, labels = drawn(5, pixels=20_000, scale=1.0)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    counts = histogram(confidence, predicted == labels)
    found = risk_coverage_area(counts)
    coverages = np.linspace(1e-6, 1, 100_001)
    area = trapezoid(1 - np.array(selective_accuracy(counts, list(coverages))), coverages)
    assert found == pytest.approx(float(area), abs=1e-5)
    wrong = (predicted != labels).numpy()[np.argsort(-confidence.numpy(), kind="stable")]
    risks = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    assert found == pytest.approx(risks.mean(), abs=2e-3)


def test_an_order_that_knows_its_errors_has_the_smaller_area() -> None:
    knows = counted([(0.9, True)] * 8 + [(0.3, False)] * 2)
    errs = counted([(0.3, True)] * 8 + [(0.9, False)] * 2)
    blind = counted([(0.5, True)] * 8 + [(0.5, False)] * 2)
    areas = [risk_coverage_area(c) for c in (knows, blind, errs)]
    assert all(a < b for a, b in pairwise(areas))
    assert areas[1] == pytest.approx(0.2), "pixels that are equally sure are in random order"


def test_without_pixels_there_are_no_numbers() -> None:
    empty = np.zeros((3, BINS))
    assert math.isnan(calibration_error(empty))
    assert math.isnan(risk_coverage_area(empty))
    scores = Confidences().scores()
    assert scores["ece"] is scores["aurc"] is scores["temperature"] is None
    assert set(scores["selective"].values()) == {None}


def test_frames_add_up_and_ignored_pixels_do_not_count() -> None:
    generator = torch.Generator().manual_seed(6)
    logits, labels = 2 * torch.randn(5, 12, 30, generator=generator), torch.randint(0, 5, (12, 30), generator=generator)
    labels[0] = IGNORE
    predicted = logits.argmax(dim=0)
    whole, parts = Confidences(), Confidences()
    whole.add((), logits, predicted, labels, 0.7)
    for i, tags in ((0, ("fog",)), (1, ("fog", "night"))):
        rows = slice(6 * i, 6 * i + 6)
        parts.add(tags, logits[:, rows], predicted[rows], labels[rows], 0.7)
    assert whole.scores() == parts.scores() == parts.scores("fog")
    assert whole.after[None][0].sum() == 11 * 30
    assert parts.after["night"][0].sum() == 6 * 30
    probabilities = (logits / 0.7).softmax(dim=0).flatten(1).T
    oracle = MulticlassCalibrationError(num_classes=5, n_bins=15, ignore_index=IGNORE)(probabilities, labels.flatten())
    assert whole.scores()["ece"] == pytest.approx(float(oracle), abs=2e-6)


# ---------------------------------------------------------------- of a run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, four test frames of which one lacks its depth, and ``run`` trained on it for a moment."""
    return trained_for_a_moment(tmp_path_factory.mktemp("confidence"))


@pytest.fixture(scope="module")
def run(root: Path) -> Run:
    return Run.load(root / "run")


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    return evaluate(run)


def test_every_row_has_the_calibration_error_of_its_own_logits(run: Run, evaluation: Evaluation) -> None:
    calibration, model, scored = run.calibration, run.load_model(), open_split(run)
    assert calibration is not None
    frames = list(batches(evaluation_loader(EvaluationFrames(scored.frames, scored.sensors, scored.classes, None))))
    for row in evaluation.metrics["results"]:
        before, after = (MulticlassCalibrationError(num_classes=3, n_bins=15, ignore_index=IGNORE) for _ in range(2))
        for batch in frames:
            given = batch.select(row["present"])
            if not given.images:
                continue
            with torch.inference_mode():
                logits = model(given).logits
            before.update(logits.softmax(dim=1), batch.labels)
            after.update((logits / calibration.temperature(given.modalities)).softmax(dim=1), batch.labels)
        assert row["ece_uncalibrated"] == pytest.approx(float(before.compute()), abs=1e-4)
        assert row["ece"] == pytest.approx(float(after.compute()), abs=1e-4)
        assert row["temperature"] == pytest.approx(calibration.temperature(row["present"]), abs=1e-6)
        assert row["selective"]["1.0"] == row["pixel_accuracy"]
        assert list(row["selective"]) == [str(c) for c in COVERAGES]
    full = evaluation.metrics["reliability"]
    parts = zip(*(full["calibrated"][key] for key in ("share", "confidence", "accuracy")), strict=True)
    error = sum(s * abs(c - a) for s, c, a in parts if s)
    assert error == pytest.approx(evaluation.metrics["results"][-1]["ece"], abs=1e-5)


def test_a_tag_has_its_own_numbers(evaluation: Evaluation, run: Run) -> None:
    alone = evaluate(run, limit=1).metrics  # night is test0
    for tagged, own in zip(evaluation.metrics["tags"]["night"]["results"], alone["results"], strict=True):
        assert {k: tagged[k] for k in FIELDS} == {k: own[k] for k in FIELDS}


def test_nothing_depends_on_the_size_of_batches(run: Run, evaluation: Evaluation) -> None:
    scored = open_split(run)
    loader = evaluation_loader(EvaluationFrames(scored.frames, scored.sensors, scored.classes, None), 4)
    arguments = (run.load_model(), batches(loader), SENSORS, scored.frames)
    together = run_protocol(Subsets(SENSORS), *arguments, calibration=run.calibration)
    for condition, row in zip(together, evaluation.metrics["results"], strict=True):
        assert condition.confidences is not None
        found = condition.confidences.scores()
        for key in ("ece", "ece_uncalibrated", "aurc"):
            assert found[key] == pytest.approx(row[key], abs=1e-4)


def test_other_protocols_do_not_pay_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(Confidences, "add", never)
    found = evaluate(run, protocol="emm", limit=1)
    assert all(isinstance(c, Condition) and c.confidences is None for c in found.conditions)
    assert not FIELDS & set(found.metrics["results"][-1])
    assert "reliability" not in found.metrics


# ---------------------------------------------------------------- what is shown


def test_predict_writes_the_confidence_as_a_grey_picture(root: Path, run: Run, tmp_path: Path) -> None:
    from mlesam import Segmenter

    picture = root / "data/rgb/test/test0.png"
    assert main(["predict", str(run.path), "--rgb", str(picture), "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "prediction.json").read_text())
    (frame,) = summary["frames"]
    confidence = Segmenter.load(run.path)({"rgb": picture}).confidence
    with Image.open(tmp_path / "out" / frame["confidence"]) as drawn:
        assert drawn.mode == "L"
        np.testing.assert_allclose(np.asarray(drawn) / 255, confidence, atol=0.5 / 255 + 1e-6)
    assert frame["mean_confidence"] == pytest.approx(float(confidence.mean()), abs=1e-5)
    assert summary["calibrated"] is True


def test_the_table_shows_the_error_before_and_after(evaluation: Evaluation) -> None:
    row = evaluation.metrics["results"][-1]
    console = Console(width=120, record=True)
    table(evaluation.metrics, console)
    text = console.export_text()
    assert f"{100 * row['ece_uncalibrated']:.1f} → {100 * row['ece']:.1f}" in text
    assert "expected calibration error" in text


def page(run: Run, evaluation: Evaluation, path: Path, **changes: object) -> str:
    metrics = {**evaluation.metrics, **changes}
    return write_report(run, path, evaluation=dataclasses.replace(evaluation, metrics=metrics)).read_text()


def test_the_report_says_what_the_confidence_is_worth(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    row = evaluation.metrics["results"][-1]
    text = page(run, evaluation, tmp_path / "page.html")
    assert f"differ by {100 * row['ece']:.1f} points in the mean; before" in text
    assert f"{100 * row['ece_uncalibrated']:.1f}." in text
    wrong = [100 * (1 - row["selective"][coverage]) for coverage in ("0.8", "1.0")]
    assert f"surest of, {wrong[0]:.1f} % are wrong, of all of them {wrong[1]:.1f} %" in text
    assert "before calibration" in text
    for name in ("Confidence and accuracy", "Errors among the surest pixels", "rgb alone", "all sensors"):
        assert name in text


def test_the_report_of_an_uncalibrated_run_says_so(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    rows = [{**row, "temperature": None, "ece": row["ece_uncalibrated"]} for row in evaluation.metrics["results"]]
    text = page(run, evaluation, tmp_path / "page.html", results=rows)
    assert "This run has no temperatures" in text
    assert "before calibration" not in text


def test_an_evaluation_of_an_earlier_version_has_no_such_section(
    run: Run, evaluation: Evaluation, tmp_path: Path
) -> None:
    rows = [{k: v for k, v in row.items() if k not in FIELDS} for row in evaluation.metrics["results"]]
    old = {k: v for k, v in evaluation.metrics.items() if k != "reliability"}
    path = write_report(
        run, tmp_path / "page.html", evaluation=dataclasses.replace(evaluation, metrics={**old, "results": rows})
    )
    assert 'id="confidence"' not in path.read_text()
    table({**old, "results": rows}, Console(width=100, quiet=True))
