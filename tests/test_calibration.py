"""Temperatures: they are found, they give every set of sensors its own, and they travel with the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from conftest import write_dataset
from mlesam import DataError, Segmenter, WorkError
from mlesam.checks.run import check_run
from mlesam.cli import main
from mlesam.config import Recipe, load_recipe, plain
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.evaluation import calibrate as fitting
from mlesam.evaluation.calibrate import DECODES, FRAMES, SETS, calibrate, chosen_sets, fit, sampled
from mlesam.evaluation.evaluate import evaluate
from mlesam.inference.adapter import export_adapter
from mlesam.inference.segmenter import _with_winner
from mlesam.model.calibration import LIMITS, Calibration
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import IGNORE
from mlesam.training import calibration as training
from mlesam.training.calibration import calibrate_run
from mlesam.training.loop import train
from mlesam.training.prepare import prepare
from mlesam.training.progress import Progress

SENSORS = ("rgb", "depth", "thermal")
SMALL = {
    "model.rank": "4",
    "data.crop": "64",
    "data.workers": "0",
    "training.batch": "2",
    "training.steps": "2",
}


def recipe(dataset: Path, **changes: str) -> Recipe:
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe(None, {**SMALL, "data.dataset": f"folder:{dataset}", **more})


# ---------------------------------------------------------------- the fit


def synthetic(log_temperatures: Sequence[float], pixels: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is true once each part of them is divided by its temperature, and labels drawn from it."""
    generator = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(len(log_temperatures) * pixels, 5, generator=generator)
    labels = torch.multinomial(true.softmax(dim=1), 1, generator=generator)[:, 0]
    scale = torch.tensor(log_temperatures).exp().repeat_interleave(pixels)
    return true * scale[:, None], labels


def patterns(sets: Sequence[Sequence[int]], pixels: int = 20_000) -> torch.Tensor:
    """(N, 3) bool: for each set of absent sensors so many pixels."""
    rows = torch.tensor([[i in gone for i in range(3)] for gone in sets])
    return rows.repeat_interleave(pixels, dim=0)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_known_temperature_is_found(scale: float) -> None:
    logits, labels = synthetic([math.log(scale)])
    base, gains = fit(logits, labels, patterns([()]))
    assert math.exp(base) == pytest.approx(scale, rel=0.02)
    assert gains == [0.0, 0.0, 0.0], "what was never absent changes nothing"


def test_each_absent_sensor_has_its_own_term_and_sets_never_seen_get_the_sum() -> None:
    sets = [(), (0,), (1,), (2,)]
    logits, labels = synthetic([0.3, 0.3 + 0.5, 0.3 - 0.2, 0.3 + 0.1])
    base, gains = fit(logits, labels, patterns(sets))
    assert [base, *gains] == pytest.approx([0.3, 0.5, -0.2, 0.1], abs=0.03)
    found = Calibration(base, dict(zip(SENSORS, gains, strict=True)))
    assert found.temperature(["thermal"]) == pytest.approx(math.exp(0.3 + 0.5 - 0.2), rel=0.05)
    assert found.temperature(SENSORS) == math.exp(base)
    assert found.temperature([*SENSORS, "radar"]) == math.exp(base), "a sensor it was not fitted with"


def test_a_sensor_that_is_never_there_takes_no_part() -> None:
    logits, labels = synthetic([0.3, 0.8])
    base, gains = fit(logits, labels, patterns([(2,), (0, 2)]))
    assert gains[2] == 0.0
    assert [base, gains[0]] == pytest.approx([0.3, 0.5], abs=0.03)


def test_sensors_that_never_meet_have_a_temperature_together() -> None:
    logits, labels = synthetic([0.6, 0.2])  # depth and thermal alone
    base, gains = fit(logits, labels, patterns([(0, 1), (0, 2)]))
    assert base + gains[1] == pytest.approx(0.6, abs=0.03)
    assert base + gains[2] == pytest.approx(0.2, abs=0.03)
    assert 0.1 < base < 0.7, "all that is known lies between"


@pytest.mark.parametrize("right", [True, False])
def test_logits_without_any_error_or_without_any_sense_keep_a_finite_temperature(right: bool) -> None:
    logits = 3 * torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))
    labels = logits.argmax(dim=1) if right else logits.argmin(dim=1)
    base, _ = fit(logits, labels, patterns([()], 2000))
    assert abs(base) < 9, "without the prior it runs away"
    found = Calibration(base).temperature(())
    assert LIMITS[0] <= found <= LIMITS[1]
    assert found < 1 if right else found > 1


def test_all_subsets_are_fitted_while_they_are_few() -> None:
    names = [f"s{i}" for i in range(20)]
    assert len(chosen_sets(names[:1], 0)) == 1
    assert len(set(chosen_sets(names[:4], 0))) == 15
    eight = chosen_sets(names[:8], 0)
    assert len(eight) == len(set(eight)) == SETS
    assert {tuple(names[:8]), *((n,) for n in names[:8])} < set(eight)
    assert eight == chosen_sets(names[:8], 0) != chosen_sets(names[:8], 1)
    assert len(set(chosen_sets(names, 0))) == SETS
    assert tuple(names) in chosen_sets(names, 0)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("calibration")
    dataset = write_dataset(root / "data")
    (dataset / "thermal/val/val1.png").unlink()
    return train(recipe(dataset), root / "run")


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """The same run, to be changed."""
    import shutil

    return Run.load(shutil.copytree(run.path, tmp_path / "copy"))


def frames_of(run: Run, split: str) -> EvaluationFrames:
    prepared = prepare(run.recipe)
    return EvaluationFrames(prepared.dataset.frames(split), prepared.sensors, prepared.classes, None)


def found_in(run: Run) -> Calibration:
    assert run.calibration is not None
    return run.calibration


def scene(dataset: Path, name: str = "test/test0") -> dict[str, Path]:
    return {m: dataset / m / f"{name}.png" for m in SENSORS}


def data_of(run: Run) -> Path:
    return Path((run.recipe.data.dataset or "").partition(":")[2])


def test_a_training_ends_with_temperatures_that_make_val_likelier(run: Run) -> None:
    found = found_in(run)
    assert (run.path / "calibration.json").is_file()
    assert set(found.absent) == set(SENSORS)
    assert found.frames == 2
    assert found.nll is not None
    assert found.nll[1] <= found.nll[0]
    # The same numbers once more, in the plain way, on all pixels of val and all sets of sensors.
    model, before, after = run.load_model(), [], []
    with torch.inference_mode():
        for batch in batches(evaluation_loader(frames_of(run, "val"))):
            assert batch.labels is not None
            for present in {
                tuple(m for m in batch.modalities if m in s) for n in (1, 2, 3) for s in combinations(SENSORS, n)
            }:
                if not present:
                    continue
                logits = model(batch.select(present)).logits
                before.append(float(torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=IGNORE)))
                logits = logits / found.temperature(present)
                after.append(float(torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=IGNORE)))
    assert np.mean(after) < np.mean(before)
    assert np.mean(before) == pytest.approx(found.nll[0], rel=0.15)


def test_it_is_the_kept_weights_that_are_calibrated(copy: Run) -> None:
    before = found_in(copy)
    prepared = prepare(copy.recipe)
    calibrate_run(prepared, copy.path, Progress())
    assert found_in(copy) == before
    (copy.path / "model.safetensors").unlink()
    (copy.path / "calibration.json").unlink()
    calibrate_run(prepared, copy.path, Progress())
    assert copy.calibration is None


def test_a_fit_costs_one_pass_through_the_trunk_for_each_frame_and_few_through_the_heads(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"encode": 0, "decode": 0}
    for name in calls:
        own = getattr(MLESAM, name)

        def counting(self, *arguments, own=own, name=name):
            calls[name] += 1
            return own(self, *arguments)

        monkeypatch.setattr(MLESAM, name, counting)
    monkeypatch.setattr(fitting, "DECODES", 6)
    frames = batches(evaluation_loader(frames_of(run, "test")))
    logits, labels, absent = sampled(run.load_model(), frames, chosen_sets(SENSORS, 0), 3, 0)
    assert calls == {"encode": 3, "decode": 6}, "of three frames, with all sensors and with one other set"
    assert len(logits) == len(labels) == len(absent)
    seen = {tuple(row) for row in absent.tolist()}
    assert seen == {(False,) * 3, (False, True, True), (True, False, True), (True, True, False)}, "others take turns"
    assert DECODES // FRAMES >= 3


def test_pixels_without_a_label_take_no_part_and_without_any_there_is_no_calibration(run: Run) -> None:
    frames = list(batches(evaluation_loader(frames_of(run, "test"))))
    blank = [torch.full_like(b.labels, IGNORE) for b in frames if b.labels is not None]
    for batch, labels in zip(frames, blank, strict=True):
        object.__setattr__(batch, "labels", labels)
    assert calibrate(run.load_model(), frames, SENSORS, len(frames), 0) is None
    blank[0][0, 3, 5] = 1
    logits, labels, _ = sampled(run.load_model(), frames, chosen_sets(SENSORS, 0), len(frames), 0)
    assert labels.tolist() == [1] * 7
    with torch.inference_mode():
        expected = run.load_model()(frames[0].select(["depth"])).logits[0, :, 3, 5]
    assert any(torch.allclose(row, expected, atol=1e-5) for row in logits)


# ---------------------------------------------------------------- predictions


def test_probabilities_are_the_softmax_of_the_divided_logits_and_labels_stay(run: Run) -> None:
    one, plain_one = Segmenter.load(run.path), Segmenter.load(run.path)
    plain_one.calibration = None
    model = run.load_model()
    for count in (1, 2, 3):
        for subset in combinations(SENSORS, count):
            inputs = {m: p for m, p in scene(data_of(run)).items() if m in subset}
            calibrated, uncalibrated = one(inputs), plain_one(inputs)
            np.testing.assert_array_equal(calibrated.labels, uncalibrated.labels)
            np.testing.assert_array_equal(calibrated.labels, calibrated.probabilities.argmax(axis=0))
            batch = next(batches(evaluation_loader(frames_of(run, "test")))).select(subset)
            with torch.inference_mode():
                logits = model(batch).logits[0].double().numpy()
            temperature = found_in(run).temperature(subset)
            np.testing.assert_allclose(calibrated.probabilities, softmax(logits / temperature, axis=0), atol=1e-5)
            np.testing.assert_allclose(uncalibrated.probabilities, softmax(logits, axis=0), atol=1e-5)
            assert temperature != 1.0


def test_the_confidence_is_the_largest_probability(run: Run) -> None:
    prediction = Segmenter.load(run.path)(scene(data_of(run)))
    assert prediction.confidence.shape == (48, 64)
    assert prediction.confidence.dtype == np.float32
    np.testing.assert_array_equal(prediction.confidence, prediction.probabilities.max(axis=0))
    assert 1 / 3 - 1e-6 <= prediction.confidence.min() <= prediction.confidence.max() <= 1


def test_a_sensor_that_a_fault_takes_away_is_absent_for_the_temperature_too(run: Run) -> None:
    segmenter, inputs = Segmenter.load(run.path), scene(data_of(run))
    lost = segmenter(inputs, faults=["rgb:dropped:1"])
    without = segmenter({m: p for m, p in inputs.items() if m != "rgb"})
    np.testing.assert_array_equal(lost.probabilities, without.probabilities)


def test_classes_that_rounding_makes_equal_keep_their_order() -> None:
    labels = np.array([[2, 0]])
    probabilities = np.array([[[0.4, 0.4]], [[0.2, 0.2]], [[0.4, 0.4]]], dtype=np.float32)
    settled = _with_winner(probabilities.copy(), labels)
    np.testing.assert_array_equal(settled.argmax(axis=0), labels)
    np.testing.assert_allclose(settled, probabilities, rtol=2e-7)
    assert (settled != probabilities).sum() == 1


# ---------------------------------------------------------------- where it is kept


def test_an_adapter_has_it_whatever_is_left_out(run: Run, tmp_path: Path) -> None:
    adapter = export_adapter(run, tmp_path / "adapter")
    assert Run.load(adapter).calibration == run.calibration
    assert "Probabilities are calibrated" in (adapter / "README.md").read_text()
    smaller = export_adapter(Run.load(adapter), tmp_path / "smaller", without=["rgb"])
    inputs = {"depth": scene(data_of(run))["depth"]}
    expected = Segmenter.load(run.path)(inputs).probabilities
    np.testing.assert_array_equal(Segmenter.load(smaller)(inputs).probabilities, expected)


def test_runs_and_adapters_of_older_versions_give_the_plain_softmax(copy: Run, tmp_path: Path) -> None:
    (copy.path / "calibration.json").unlink()
    adapter = export_adapter(copy, tmp_path / "adapter")
    assert "calibration" not in json.loads((adapter / "config.json").read_text())
    for path in (copy.path, adapter):
        segmenter = Segmenter.load(path)
        assert segmenter.calibration is None
        assert segmenter(scene(data_of(copy))).confidence.max() <= 1
    metrics = evaluate(Run.load(copy.path), limit=1).metrics
    for row in metrics["results"]:
        assert row["temperature"] is None
        assert row["ece"] == row["ece_uncalibrated"]
    assert metrics["reliability"]["calibrated"] == metrics["reliability"]["uncalibrated"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("{}", "it has no 'base'"),
        ("[]", "it has no 'base'"),
        ('{"base": 0.1, "absnt": {}}', "unknown key 'calibration.absnt'; did you mean 'absent'"),
        ('{"base": Infinity}', "base is inf, but it must be finite"),
        ('{"base": 0.1, "absent": {"rgb": "warm"}}', "'warm', but it must be a number"),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_sentence(
    copy: Run, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy.path / "calibration.json").write_text(text)
    with pytest.raises(DataError, match=r"calibration\.json holds no calibration that can be read") as caught:
        Segmenter.load(copy.path)
    assert says in str(caught.value)
    assert [fault for fault in check_run(copy.path).faults if "calibration.json" in str(fault)]
    capsys.readouterr()
    assert main(["predict", str(copy.path), "--rgb", "a.png", "--out", str(copy.path / "out")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_doctor_says_whether_a_run_is_calibrated(copy: Run) -> None:
    temperature = found_in(copy).temperature(SENSORS)
    assert ("calibration", f"on 2 val frames, temperature {temperature:.2f} with all sensors") in check_run(
        copy.path
    ).facts
    (copy.path / "calibration.json").unlink()
    assert ("calibration", "none, probabilities are the plain softmax") in check_run(copy.path).facts


# ---------------------------------------------------------------- trainings


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.lines.append(text)


def test_without_val_there_is_none_and_it_is_said(dataset: Path, tmp_path: Path) -> None:
    for folder in ("rgb", "depth", "thermal", "labels"):
        for path in (dataset / folder / "val").iterdir():
            path.unlink()
        (dataset / folder / "val").rmdir()
    heard = Heard()
    run = train(recipe(dataset), tmp_path / "run", report=heard)
    assert heard.lines[-1] == "no val split: probabilities are not calibrated"
    assert run.calibration is None
    with pytest.raises(Exception, match="is finished"):
        train(run.recipe, run.path, resume=True)


def test_a_val_split_without_a_scored_pixel_gives_none_and_it_is_said(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "labels/val").iterdir():
        Image.fromarray(np.full((48, 64), 255, dtype=np.uint8)).save(path)
    heard = Heard()
    train(recipe(dataset), tmp_path / "run", report=heard)
    assert "no pixel of val is scored" in heard.lines[-1]
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_a_training_stopped_while_calibrating_is_finished_by_resume(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "calibrate", interrupt)
    out = tmp_path / "run"
    with pytest.raises(WorkError, match=r"stopped while calibrating; the weights are kept.*--resume"):
        train(recipe(dataset), out)
    monkeypatch.undo()
    assert Run.load(out).calibration is None
    before = (out / "last.safetensors").read_bytes()
    resumed = train(Run.load(out).recipe, out, resume=True)
    whole = train(recipe(dataset), tmp_path / "whole")
    assert plain(found_in(resumed)) == plain(found_in(whole))
    assert (out / "last.safetensors").read_bytes() == before, "nothing was trained"
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert events.count("done") == 1


def test_an_extension_has_its_own_and_the_labels_of_old_sensors_stay(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset, data__modalities="[depth, thermal]"), tmp_path / "first")
    second = train(recipe(dataset), tmp_path / "second", extend=first.path)
    assert set(found_in(first).absent) == {"depth", "thermal"}
    assert set(found_in(second).absent) == set(SENSORS)
    old, new = Segmenter.load(first.path), Segmenter.load(second.path)
    for subset in (("depth",), ("thermal",), ("depth", "thermal")):
        inputs = {m: p for m, p in scene(dataset).items() if m in subset}
        np.testing.assert_array_equal(old(inputs).labels, new(inputs).labels)
