"""Training: it learns, it repeats exactly, it survives being killed, and it says what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mlesam.config import Recipe, load_recipe
from mlesam.errors import DataError, RequestError, WorkError
from mlesam.model.checkpoints import load_tensors
from mlesam.model.foundation import load_foundation
from mlesam.model.run import LAST, WEIGHTS, Run
from mlesam.sample import IGNORE, Batch
from mlesam.training import loop
from mlesam.training.loop import train
from mlesam.training.step import rows_to_keep
from mlesam.training.validation import collapses, validate

SMALL = {
    "model.rank": "4",
    "model.train": "experts",
    "data.crop": "64",
    "data.workers": "0",
    "training.batch": "2",
    "training.steps": "4",
    "training.validate_every": "2",
}


def recipe(dataset: Path, **changes: str) -> Recipe:
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe(None, {**SMALL, "data.dataset": f"folder:{dataset}", **more})


def events(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in events(run, "step")]


def test_a_run_holds_everything_that_made_it(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset), tmp_path / "run", command="mlesam train")
    record = json.loads((run.path / "run.json").read_text())
    assert record["command"] == "mlesam train"
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["foundation"] == {
        "name": "nano", "revision": None, "source": "nano (pre-trained)", "sha256": load_foundation("nano").foundation.sha256,
    }  # fmt: skip
    assert run.recipe.data.classes == ("ground", "near", "far")
    assert run.sensors["depth"].dtype == "uint16"
    assert len(events(run.path, "step")) == 4
    assert [v["step"] for v in events(run.path, "validation")] == [2, 4]
    assert events(run.path, "done")[0]["lr"] == 0


def test_a_validation_logs_what_shows_a_training_going_wrong(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset), tmp_path / "run")
    validation = events(run.path, "validation")[-1]
    assert set(validation["heads"]) == {"mask", "pyramid"}
    assert set(validation["sensors"]) == set(validation["weights"]) == {"rgb", "depth", "thermal"}
    assert sum(validation["weights"].values()) == pytest.approx(1, abs=1e-5)
    assert 0 < validation["entropy"] <= 1


def test_training_learns_the_rectangles(dataset: Path, tmp_path: Path) -> None:
    changes = {
        "training__steps": "60",
        "training__batch": "4",
        "training__validate_every": "20",
        "training__lr": "1e-3",
    }
    changes |= {
        "model__train": "all",
        "training__ohem_threshold": "1.0",
        "data__crop": "48",
        "data__scale": "[0.8, 1.2]",
    }
    run = train(recipe(dataset, **changes), tmp_path / "run")
    history = losses(run.path)
    assert np.mean(history[-10:]) < 0.6 * np.mean(history[:5])
    assert max(v["miou"] for v in events(run.path, "validation")) > 0.55


def test_two_runs_on_one_cpu_give_identical_losses(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset), tmp_path / "first")
    again = train(recipe(dataset, data__workers="1"), tmp_path / "again")
    other = train(recipe(dataset, seed="1"), tmp_path / "other")
    assert losses(first.path) == losses(again.path)
    assert losses(first.path) != losses(other.path)
    tensors, _ = load_tensors(first.path / WEIGHTS)
    repeated, _ = load_tensors(again.path / WEIGHTS)
    assert all(torch.equal(tensors[name], repeated[name]) for name in tensors)


def test_resuming_after_a_kill_gives_the_losses_of_an_unbroken_run(dataset: Path, tmp_path: Path) -> None:
    whole = train(recipe(dataset, training__steps="8"), tmp_path / "whole")
    # The same program a user runs, killed without warning between its checkpoints. Its threads are those of this
    # process: sums over other numbers of threads differ in the last digit.
    fields = {**SMALL, "training.steps": "8", "data.dataset": f"folder:{dataset}"}
    words = [word for key, value in fields.items() for word in (f"--{key}", value)]
    out = tmp_path / "broken"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlesam", "train", "--out", str(out), *words],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = out / "log.jsonl"
        if log.is_file() and (out / LAST).is_file() and log.read_text().count('"step"') >= 4:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / LAST).is_file(), "the training was not far enough to be killed after a checkpoint"
    done = subprocess.run(
        [sys.executable, "-m", "mlesam", "train", "--out", str(out), "--resume"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "is finished" not in done.stderr:  # the kill may come too late on a slow machine
        assert done.returncode == 0, done.stderr
    assert losses(out) == losses(whole.path)
    tensors, _ = load_tensors(whole.path / WEIGHTS)
    resumed, _ = load_tensors(out / WEIGHTS)
    assert all(torch.equal(tensors[name], resumed[name]) for name in tensors)


def test_resuming_cuts_the_log_back_to_the_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe(dataset), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(self: loop.Trainer) -> None:
        if self.step == 4:
            raise Killed

    monkeypatch.setattr(loop.Trainer, "_validate", kill)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(recipe(dataset), out)
    monkeypatch.undo()
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # what a killed process leaves behind
    assert len(losses_of_whole_lines(out)) == 4
    train(Run.load(out).recipe, out, resume=True)
    assert losses(out) == losses(whole.path)


def losses_of_whole_lines(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines() if line.endswith("}")]


def test_an_interrupted_training_says_how_to_go_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Trainer._one_step

    def interrupt(self: loop.Trainer, batches):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(loop.Trainer, "_one_step", interrupt)
    out = tmp_path / "run"
    with pytest.raises(WorkError, match=r"stopped at step 3 of 4; go on with: mlesam train --out .* --resume"):
        train(recipe(dataset), out)
    monkeypatch.undo()
    train(Run.load(out).recipe, out, resume=True)
    whole = train(recipe(dataset), tmp_path / "whole")
    assert losses(out) == losses(whole.path)


def test_a_foundation_of_random_weights_is_trained_unless_told_otherwise(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset, model__train="auto", model__foundation="nano-random"), tmp_path / "run")
    assert run.recipe.model.train == "all"
    assert "starts from random weights, so all of it is trained" in " ".join(
        json.loads((run.path / "run.json").read_text())["notes"]
    )
    weights, _ = load_tensors(run.path / WEIGHTS)
    assert any(name.startswith("foundation.") for name in weights)


def test_tensorboard_gets_what_the_log_gets(dataset: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(recipe(dataset, training__tensorboard="true"), tmp_path / "run")
    assert len(list((run.path / "tensorboard").iterdir())) == 1
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert [e.value for e in board.Scalars("step/loss")] == pytest.approx(losses(run.path))


def test_bfloat16_autocast_trains_too(dataset: Path, tmp_path: Path) -> None:
    # At a low rate: Adam's first steps have the size of the rate whatever the gradient, so rounding turns into noise.
    run, exact = (
        train(recipe(dataset, training__precision=name, training__lr="1e-5"), tmp_path / name)
        for name in ("bf16", "fp32")
    )
    assert losses(run.path) != losses(exact.path)
    assert losses(run.path) == pytest.approx(losses(exact.path), rel=0.02)


def test_two_processes_share_each_step(dataset: Path, tmp_path: Path) -> None:
    fields = {**SMALL, "data.dataset": f"folder:{dataset}", "training.batch": "4", "training.ohem_threshold": "1.0"}
    fields |= {"training.modality_dropout": "0", "data.crop": "32", "data.scale": "[1, 1]"}
    words = [word for key, value in fields.items() for word in (f"--{key}", value)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "mlesam", "train", "--out", str(tmp_path / "two"), *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = train(load_recipe(None, fields), tmp_path / "one")
    # Every pixel counts and both shares have as many, so the mean of both losses is that of one process with all frames.
    assert losses(tmp_path / "two") == pytest.approx(losses(one.path), rel=1e-3)
    found = [[v["miou"] for v in events(run, "validation")] for run in (tmp_path / "two", one.path)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert (tmp_path / "two" / "calibration.json").is_file()


def test_a_finished_run_is_not_resumed(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset), tmp_path / "run")
    with pytest.raises(RequestError, match="is finished"):
        train(run.recipe, run.path, resume=True)


def test_a_run_is_never_written_over(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(RequestError, match="already holds a run"):
        train(recipe(dataset), run.path)
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


def test_a_training_that_cannot_start_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no sensor 'lidr'"):
        train(recipe(dataset, data__modalities="[rgb, lidr]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_with_the_sample_ids(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlesam.training.step.ohem_cross_entropy", lambda logits, *rest: logits.sum() * float("nan"))
    with pytest.raises(WorkError, match=r"the loss is nan at step 1, with the samples train\d, train\d; look at"):
        train(recipe(dataset), tmp_path / "run")


def test_accumulated_micro_batches_see_the_same_frames(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset, training__accumulate="2", training__batch="4"), tmp_path / "run")
    assert len(losses(run.path)) == 4


def test_a_checkpoint_holds_no_frozen_foundation(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset), tmp_path / "run")
    chosen, metadata = load_tensors(run.path / WEIGHTS)
    last, _ = load_tensors(run.path / LAST)
    assert not [name for name in chosen if name.startswith("foundation")]
    assert not [name for name in last if "foundation" in name]
    assert any(name.startswith("optimizer.experts.depth") for name in last)
    assert metadata["foundation_sha256"] == run.load_model().foundation_sha256


def test_a_run_can_start_from_another_one_with_other_classes(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset), tmp_path / "first")
    (dataset / "dataset.yaml").write_text("classes: [ground, near, far, sky]\n")
    second = loop.prepare(recipe(dataset))
    fresh, started = second.model(), second.model(init=first.path)
    old, _ = load_tensors(first.path / WEIGHTS)
    for name, value in started.state_dict().items():
        if name.startswith(("experts.", "stems.", "routers.")):
            assert torch.equal(value, old[name]), name
        if name.startswith(("mask_head.mask_tokens", "pyramid_head.classify")):
            assert torch.equal(value, fresh.state_dict()[name]), name
    run = train(recipe(dataset), tmp_path / "second", init=first.path)
    assert len(run.classes.names) == 4


def test_starting_from_a_run_keeps_new_sensors_fresh(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset, data__modalities="[rgb, depth]"), tmp_path / "first")
    started = loop.prepare(recipe(dataset)).model(init=first.path)
    old, _ = load_tensors(first.path / WEIGHTS)
    assert torch.equal(started.state_dict()["experts.rgb.blocks.0.q.b"], old["experts.rgb.blocks.0.q.b"])
    assert not started.state_dict()["experts.thermal.blocks.0.q.b"].any()


def test_starting_from_a_run_without_common_sensors_is_refused(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset, data__modalities="[thermal]"), tmp_path / "first")
    with pytest.raises(RequestError, match="none of them"):
        loop.prepare(recipe(dataset, data__modalities="[rgb]")).model(init=first.path)


def test_frames_that_lack_sensors_train_and_validate_like_others(dataset: Path, tmp_path: Path) -> None:
    for path in ("depth/train/train1.png", "rgb/train/train2.png", "rgb/val/val0.png", "thermal/val/val0.png"):
        (dataset / path).unlink()
    run = train(recipe(dataset, training__batch="4"), tmp_path / "run")
    assert all(np.isfinite(losses(run.path)))
    assert events(run.path, "validation")[-1]["sensors"]["rgb"] is not None


def test_unlabelled_training_frames_are_named(dataset: Path, tmp_path: Path) -> None:
    (dataset / "labels/train/train3.png").unlink()
    with pytest.raises(DataError, match="1 of 6 frames of split 'train' have no label, first train3"):
        train(recipe(dataset), tmp_path / "run")


def test_without_a_val_split_the_last_weights_are_kept(dataset: Path, tmp_path: Path) -> None:
    for folder in ("rgb", "depth", "thermal", "labels"):
        for path in (dataset / folder / "val").iterdir():
            path.unlink()
        (dataset / folder / "val").rmdir()
    run = train(recipe(dataset), tmp_path / "run")
    assert load_tensors(run.path / WEIGHTS)[1]["step"] == 4
    assert "no val split" in json.loads((run.path / "run.json").read_text())["notes"][0]


def test_changed_data_are_not_resumed(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(loop.Trainer, "run", lambda self: None)
    train(recipe(dataset), out)
    for folder in ("rgb", "depth", "thermal", "labels"):
        (dataset / folder / "train" / "train0.png").unlink()
    with pytest.raises(DataError, match=r"the frames of .* have changed .* \(train 6 then, 5 now\)"):
        train(Run.load(out).recipe, out, resume=True)


# ---------------------------------------------------------------- modality dropout


def mixed_batch() -> Batch:
    images = {"rgb": torch.zeros(4, 3, 32, 32), "depth": torch.zeros(3, 1, 32, 32)}
    frames = {"rgb": torch.arange(4), "depth": torch.tensor([0, 2, 3])}
    return Batch(images, frames, ("a", "b", "c", "d"), torch.full((4, 32, 32), IGNORE))


def test_dropout_always_leaves_each_frame_a_sensor() -> None:
    batch = mixed_batch()
    seen = set()
    for seed in range(200):
        keep = rows_to_keep(batch, 0.7, np.random.default_rng(seed))
        if keep is None:
            continue
        left = torch.zeros(4, dtype=torch.int64)
        for modality, rows in keep.items():
            left[batch.frames[modality][rows]] += 1
        assert (left >= 1).all()
        seen.add(tuple(left.tolist()))
    assert len(seen) > 3


def test_dropout_leaves_out_as_often_as_asked() -> None:
    batch = Batch.of({m: torch.zeros(64, 1, 32, 32) for m in ("a", "b", "c")})
    kept, total = 0, 0
    for seed in range(50):
        keep = rows_to_keep(batch, 0.3, np.random.default_rng(seed)) or {}
        kept += sum(int(rows.sum()) for rows in keep.values())
        total += 3 * 64
    # all three are left out with probability 0.027, and then one stays
    assert kept / total == pytest.approx(0.7 + 0.027 / 3, abs=0.02)


# ---------------------------------------------------------------- the losses of a step


@pytest.fixture
def step_and_batch(dataset: Path) -> tuple[loop.Step, Batch]:
    prepared = loop.prepare(recipe(dataset, data__crop="64"))
    torch.manual_seed(0)
    images = {
        "rgb": torch.randn(2, 3, 64, 64),
        "depth": torch.randn(2, 1, 64, 64),
        "thermal": torch.randn(1, 1, 64, 64),
    }
    frames = {"rgb": torch.tensor([0, 1]), "depth": torch.tensor([0, 1]), "thermal": torch.tensor([1])}
    batch = Batch(images, frames, ("a", "b"), torch.randint(0, 3, (2, 64, 64)))
    return loop.Step(prepared.model().eval(), prepared.recipe.training), batch


def changed(step: loop.Step, **fields: float) -> loop.Step:
    return loop.Step(step.model, dataclasses.replace(step.config, **fields))


@torch.no_grad()
def test_all_subsets_together_weigh_as_much_as_the_full_pass(step_and_batch: tuple[loop.Step, Batch]) -> None:
    step, batch = step_and_batch
    rgb, depth = ({m: torch.ones(2, dtype=torch.bool)} for m in ("rgb", "depth"))
    full = step(batch)
    # The loss of a pass that keeps one sensor alone is the loss of a batch that has no other.
    alone = [step(batch.select([m])) for m in ("rgb", "depth")]
    both = step(batch, [rgb, depth])
    for name in ("loss", "mask_loss", "pyramid_loss"):
        expected = full[name] / 2 + (alone[0][name] + alone[1][name]) / 4
        torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_sensor_loss_is_that_of_every_row_alone(step_and_batch: tuple[loop.Step, Batch]) -> None:
    step, batch = step_and_batch
    step = changed(step, sensor_loss=0.5, ohem_threshold=1.0)  # all pixels count, so rows can be averaged
    found = step(batch)
    names, counts = ("rgb", "depth", "thermal"), (2, 2, 1)
    alone = []
    for name in names:
        part = batch.select([name])
        if name == "thermal":  # the second frame alone has it
            part = Batch({name: part.images[name]}, {name: torch.tensor([0])}, ("b",), batch.labels[1:])  # type: ignore[index]
        alone.append(changed(step, sensor_loss=0.0)(part)["loss"])
    expected = sum(c * value for c, value in zip(counts, alone, strict=True)) / 5
    torch.testing.assert_close(found["sensor_loss"], expected, rtol=1e-5, atol=1e-6)
    base = changed(step, sensor_loss=0.0)(batch)["loss"]
    torch.testing.assert_close(found["loss"], base + 0.5 * expected, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_asked_for_is_there_in_every_step(step_and_batch: tuple[loop.Step, Batch]) -> None:
    step, batch = step_and_batch
    both = changed(step, distill=1.0, sensor_loss=1.0)
    assert set(both(batch)) == set(both(batch, [{"rgb": torch.ones(2, dtype=torch.bool)}]))
    assert both(batch)["distill_loss"].item() == 0.0
    assert both(batch.select(["rgb"]))["sensor_loss"] > 0


def test_robust_training_runs_and_resumes(dataset: Path, tmp_path: Path) -> None:
    fields = {"training__subsets": "2", "training__distill": "1.0", "training__sensor_loss": "0.5"}
    fields |= {"model__router": "pixel", "model__reliability": "true"}
    run = train(recipe(dataset, **fields), tmp_path / "run")
    steps = events(run.path, "step")
    assert all({"distill_loss", "sensor_loss"} <= set(event) for event in steps)
    assert any(event["distill_loss"] > 0 for event in steps)
    assert all(np.isfinite(event["loss"]) for event in steps)
    again = run.load_model()
    assert again.config.router == "pixel"
    assert set(again.reliability) == set(run.sensors)


# ---------------------------------------------------------------- collapse


def result(**changes: object) -> dict:
    base = {
        "miou": 0.6,
        "heads": {"mask": 0.6, "pyramid": 0.6},
        "sensors": {"rgb": 0.5, "depth": 0.5},
        "weights": {"rgb": 0.5, "depth": 0.5},
        "entropy": 1.0,
        "constant": [],
    }
    return {**base, **changes}


def test_a_healthy_validation_warns_of_nothing() -> None:
    assert collapses(result(), [result()]) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sensors": {"rgb": 0.5, "depth": 0.1}}, "depth alone fell to mIoU 0.100 from 0.500"),
        ({"heads": {"mask": 0.1, "pyramid": 0.6}}, "the mask head alone fell to mIoU 0.100"),
        ({"constant": ["rgb"]}, "rgb alone predicts one class everywhere"),
        ({"entropy": 0.05, "weights": {"rgb": 0.99, "depth": 0.01}}, "the router trusts rgb alone"),
        ({"weights": {"rgb": 0.99, "depth": 0.01}}, "the router hardly uses depth"),
    ],
)
def test_a_collapse_is_a_warning(changes: dict, sentence: str) -> None:
    assert any(sentence in warning for warning in collapses(result(**changes), [result()]))


def test_validation_counts_sensors_only_where_they_are(dataset: Path) -> None:
    from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader

    prepared = loop.prepare(recipe(dataset))
    frames = EvaluationFrames(prepared.val, prepared.sensors, prepared.classes, None)
    model = prepared.model().eval()
    together = validate(model, batches(evaluation_loader(frames, batch=2)))
    one_by_one = validate(model, batches(evaluation_loader(frames, batch=1)))
    assert together["miou"] == one_by_one["miou"]
    assert together["weights"] == pytest.approx(one_by_one["weights"], abs=1e-5)
