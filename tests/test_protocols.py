"""Protocols: their numbers are those of the plain procedure, done by hand or written down again here."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import trained_for_a_moment, write_dataset
from mlesam.cli import main
from mlesam.config import ModelConfig
from mlesam.data.faulty import BrokenFrames
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.errors import DataError, RequestError
from mlesam.evaluation.evaluate import PROTOCOLS, evaluate, evaluate_all, open_split
from mlesam.evaluation.faulted import Faults
from mlesam.evaluation.metrics import confusion_matrix, mean_iou
from mlesam.evaluation.protocols import Cases, Protocol, Subsets, predict
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.evaluation.published import (
    CHANCES,
    DROPS,
    LEVELS,
    EntireMissing,
    Noisy,
    RandomMissing,
    aggregates,
    filled,
    noisy,
)
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import Batch
from mlesam.sensors.faults import FAULTS, HELD_OUT, SensorFault, applicable
from mlesam.sensors.spec import BUILTIN

SENSORS = ("rgb", "depth", "thermal")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, four test frames of which one lacks its depth, and ``run`` trained on it for a moment."""
    return trained_for_a_moment(tmp_path_factory.mktemp("protocols"), {"fog": ("test1", "test2")})


@pytest.fixture(scope="module")
def run(root: Path) -> Run:
    return Run.load(root / "run")


@pytest.fixture(scope="module")
def model(run: Run) -> MLESAM:
    return run.load_model().eval()


def batches_of(run: Run, size: int) -> list[Batch]:
    scored = open_split(run)
    reader = EvaluationFrames(scored.frames, scored.sensors, scored.classes, None)
    return list(batches(evaluation_loader(reader, size)))


def matrices_of(protocol: Protocol, model: MLESAM, run: Run, size: int = 1) -> list[np.ndarray]:
    """Each row's confusion matrix over all frames."""
    frames = open_split(run).frames
    found = run_protocol(protocol, model, batches_of(run, size), SENSORS, frames)
    return [condition.confusions.sum(axis=0) for condition in found]


@torch.inference_mode()
def plainly(model: MLESAM, batch: Batch, images: Mapping[str, Tensor]) -> np.ndarray:
    """The confusion matrix of frames with all sensors, in one ordinary forward pass."""
    assert batch.labels is not None
    predicted = predict(model(dict(images)).logits, tuple(batch.labels.shape[-2:]))  # type: ignore[arg-type]
    return confusion_matrix(predicted, batch.labels, 3).numpy()


def full_images(batch: Batch) -> dict[str, Tensor]:
    """A frame's normalised tensors (batch of one), zeros for what it lacks."""
    height, width = batch.size
    return {m: batch.images.get(m, torch.zeros(1, BUILTIN[m].channels, height, width)) for m in SENSORS}


# ---------------------------------------------------------------- EMM


def test_the_aggregates_by_hand_for_two_sensors() -> None:
    rows = [
        {"present": ["a"], "miou": 0.2},
        {"present": ["b"], "miou": 0.5},
        {"present": ["a", "b"], "miou": 0.8},
    ]
    found = aggregates(rows, 2)
    assert found["miou_avg"] == 0.5
    # p = 0.2: one missing 0.2 x 0.8 = 0.16 each, none missing 0.64
    assert found["miou_e"]["0.2"] == pytest.approx((0.16 * 0.2 + 0.16 * 0.5 + 0.64 * 0.8) / 0.96, abs=1e-6)
    # p = 0.1: 0.09 each and 0.81
    assert found["miou_e"]["0.1"] == pytest.approx((0.09 * 0.7 + 0.81 * 0.8) / 0.99, abs=1e-6)
    assert list(found["miou_e"]) == ["0.2", "0.1", "0.05"]


@pytest.mark.parametrize(
    ("p", "weights"),
    [
        (0.2, (0.4103, 0.4103, 0.1538, 0.0256)),
        (0.1, (0.6562, 0.2916, 0.0486, 0.0036)),
        (0.05, (0.8145, 0.1715, 0.0135, 0.0005)),
    ],
)
def test_the_total_weights_for_four_sensors_are_the_published_ones(p: float, weights: tuple[float, ...]) -> None:
    names = "abcd"
    subsets = [s for n in range(1, 5) for s in itertools.combinations(names, n)]
    assert len(subsets) == 15
    for missing, weight in enumerate(weights):  # a mIoU of 1 where so many are missing, 0 elsewhere
        rows = [{"present": s, "miou": float(len(s) == 4 - missing)} for s in subsets]
        assert aggregates(rows, 4)["miou_e"][str(p)] == pytest.approx(weight, abs=6e-5)


def test_one_sensor_has_one_set_and_every_aggregate_is_its_miou() -> None:
    found = aggregates([{"present": ["a"], "miou": 0.4}], 1)
    assert found == {"miou_avg": 0.4, "miou_e": {"0.2": 0.4, "0.1": 0.4, "0.05": 0.4}}
    nothing = aggregates([{"present": ["a"], "miou": None}], 1)
    assert nothing == {"miou_avg": None, "miou_e": {"0.2": None, "0.1": None, "0.05": None}}


def test_emm_is_zeroing_normalised_tensors_one_set_at_a_time(run: Run, model: MLESAM) -> None:
    found = evaluate(run, protocol="emm").metrics
    expected: dict[frozenset[str], np.ndarray] = {}
    for missing in [c for n in range(3) for c in itertools.combinations(SENSORS, n)]:
        total = np.zeros((3, 3), dtype=np.int64)
        for batch in batches_of(run, 1):
            if not set(batch.images) - set(missing):
                continue  # nothing but zeros: as for the subsets, the frame is left out
            images = full_images(batch)
            for m in missing:
                images[m] = images[m].clone().zero_()
            total += plainly(model, batch, images)
        expected[frozenset(missing)] = total
    assert len(found["results"]) == 7
    for row in found["results"]:
        matrix = expected[frozenset(SENSORS) - set(row["present"])]
        assert row["miou"] == pytest.approx(float(mean_iou(matrix)), abs=1e-6)
        assert set(row["weights"]) == set(SENSORS)  # what is zero is there
        assert sum(row["weights"].values()) == pytest.approx(1, abs=1e-5)
        assert row["ratio"] == pytest.approx(row["miou"] / found["summary"]["full"], abs=1e-5)
        assert row["frames"] == (3 if row["present"] == ["depth"] else 4)
    mious = {frozenset(SENSORS) - set(r["present"]): r["miou"] for r in found["results"]}
    assert found["summary"]["miou_avg"] == pytest.approx(sum(mious.values()) / 7, abs=1e-6)
    for p in CHANCES:
        weights = {s: p ** len(s) * (1 - p) ** (3 - len(s)) for s in mious}
        value = sum(weights[s] * mious[s] for s in mious) / sum(weights.values())
        assert found["summary"]["miou_e"][str(p)] == pytest.approx(value, abs=2e-6)


# ---------------------------------------------------------------- RMM


def test_rmm_zeroes_each_pixel_and_channel_by_itself(run: Run, model: MLESAM) -> None:
    protocol = RandomMissing(SENSORS, seed=5)
    batch = batches_of(run, 1)[0]
    image = torch.ones(1, 3, 100, 200)
    for drop in DROPS:
        zero = protocol._dropped(image, "rgb", batch.ids, drop) == 0
        assert float(zero.float().mean()) == pytest.approx(drop, abs=0.01)
        both = (zero[:, 0] & zero[:, 1]).float().mean()
        assert float(both) == pytest.approx(drop**2, abs=0.015)  # channels are independent
    assert bool((image == 1).all())


def test_rmm_is_the_plain_procedure_with_its_own_zeros(run: Run, model: MLESAM) -> None:
    protocol = RandomMissing(SENSORS, seed=5)
    matrices = matrices_of(protocol, model, run)
    assert len(matrices) == 21
    for number in (0, 4, 9, 16, 20):
        row = protocol.rows[number]
        total = np.zeros((3, 3), dtype=np.int64)
        for batch in batches_of(run, 1):
            if not set(batch.images) & set(row.present):
                continue
            images = full_images(batch)
            for m in set(SENSORS) - set(row.present):
                images[m] = protocol._dropped(images[m], m, batch.ids, row.details["drop"])
            total += plainly(model, batch, images)
        np.testing.assert_array_equal(matrices[number], total)
    clean = matrices_of(EntireMissing(SENSORS), model, run)[-1]
    for number in (6, 13, 20):  # no sensor is missing: nothing is zero
        np.testing.assert_array_equal(matrices[number], clean)


def test_rmm_has_both_aggregates_for_each_share(run: Run) -> None:
    found = evaluate(run, protocol="rmm").metrics
    assert [(row["drop"], row["name"]) for row in found["results"][:7]] == [
        (0.25, n) for n in ("rgb", "depth", "thermal", "rgb+depth", "rgb+thermal", "depth+thermal", "rgb+depth+thermal")
    ]
    for drop in DROPS:
        own = [row for row in found["results"] if row["drop"] == drop]
        assert found["summary"]["drops"][str(drop)] == aggregates(own, 3)


# ---------------------------------------------------------------- NM


def published_noise(images: dict[str, Tensor], level: str, rng: Any) -> dict[str, Tensor]:
    """The published procedure on a batch, written down again: salt, pepper, Gaussian, sensor by sensor."""
    density, sigma = LEVELS[level]
    result = {}
    for modality, image in images.items():
        random = rng(modality)
        flat = image.flatten().clone()
        strides = np.array([image[0].numel(), image[0, 0].numel(), image.shape[3], 1])
        top, bottom = flat.max().item(), flat.min().item()
        for value in (top, bottom):
            axes = np.stack([random.integers(0, n, int(density * flat.numel() / 2)) for n in image.shape])
            flat[torch.from_numpy((axes * strides[:, None]).sum(axis=0))] = value
        noise = torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32))
        result[modality] = flat.reshape(image.shape) + (0.0 if modality == "event" else sigma) * noise
    return result


def test_salt_is_the_largest_value_pepper_the_smallest_and_places_repeat() -> None:
    image = torch.linspace(-2, 3, 4 * 3 * 50 * 60).reshape(4, 3, 50, 60)
    found = noisy(image, 0.2, 0.0, np.random.default_rng(0))
    changed = found != image
    assert set(found[changed].unique().tolist()) == {-2.0, 3.0}
    # 10 % of the elements drawn with replacement hit 1 - exp(-0.1) of them; pepper then covers some of the salt
    share = 1 - np.exp(-0.1)
    assert float((found == -2).float().mean()) == pytest.approx(share, abs=0.003)
    assert float((found == 3).float().mean()) == pytest.approx(share * np.exp(-0.1), abs=0.003)
    assert float((noisy(image, 0.0, 0.5, np.random.default_rng(0)) - image).std()) == pytest.approx(0.5, rel=0.02)


def test_the_levels_are_the_published_ones() -> None:
    assert LEVELS == {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}


def test_an_event_camera_gets_no_gaussian_noise() -> None:
    protocol = Noisy({"event": BUILTIN["event"], "rgb": BUILTIN["rgb"], "lidar": BUILTIN["lidar"]}, seed=0)
    assert protocol.gaussian == {"event": False, "rgb": True, "lidar": True}
    batch = Batch.of({"event": torch.zeros(1, 2, 20, 20).index_fill(3, torch.tensor([3]), 1.0)})
    assert set(protocol._changed(batch.images["event"], "event", "high", batch).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("whole", [False, True])
def test_nm_is_the_published_procedure_by_frame_or_as_published_by_batch(run: Run, model: MLESAM, whole: bool) -> None:
    from mlesam.sensors.faults import generator

    sensors = open_split(run).sensors
    seed, size = run.recipe.seed, 2 if whole else 1
    for number, level in enumerate(LEVELS):
        total = np.zeros((3, 3), dtype=np.int64)
        for batch in batches_of(run, size):
            assert batch.labels is not None
            ids = {m: [batch.ids[i] for i in batch.frames[m].tolist()] for m in batch.images}

            def rng(modality: str, level: str = level, ids: dict[str, list[str]] = ids) -> np.random.Generator:
                return generator(seed, modality, level, *ids[modality])

            changed = published_noise(batch.images, level, rng)
            with torch.inference_mode():
                logits = model(replace(batch, images=changed)).logits
            predicted = predict(logits, tuple(batch.labels.shape[-2:]))  # type: ignore[arg-type]
            total += confusion_matrix(predicted, batch.labels, 3).numpy()
        found = matrices_of(Noisy(sensors, seed, whole), model, run, size)
        np.testing.assert_array_equal(found[number], total)


def test_the_published_noise_depends_on_the_batch_and_is_told_apart(run: Run, tmp_path: Path) -> None:
    own = evaluate(run, protocol="nm").metrics
    published = {n: evaluate(run, protocol="nm", published_noise=n).metrics for n in (1, 2, 4)}
    for n, found in published.items():
        assert found["published_noise"] == n
        clean, same = found["results"][-1], own["results"][-1]
        assert {k: v for k, v in clean.items() if k != "weights"} == {k: v for k, v in same.items() if k != "weights"}
        assert clean["weights"] == pytest.approx(same["weights"], abs=1e-5)
    assert published[1]["results"] == own["results"]  # batches of one frame
    assert published[2]["results"][2] != published[4]["results"][2]
    with pytest.raises(RequestError, match="--published-noise belongs to protocol nm, not to emm"):
        evaluate(run, protocol="emm", published_noise=2)
    with pytest.raises(RequestError, match="--published-noise is 0"):
        evaluate(run, protocol="nm", published_noise=0)


# ---------------------------------------------------------------- cases


def test_cases_have_a_row_for_each_tag_over_its_own_frames(run: Run) -> None:
    found = evaluate(run, protocol="cases")
    full = evaluate(run).metrics
    names = [row["name"] for row in found.metrics["results"]]
    assert names == ["fog", "night", "all frames"]
    assert [row["frames"] for row in found.metrics["results"]] == [2, 1, 4]
    for name in ("fog", "night"):
        row = next(r for r in found.metrics["results"] if r["name"] == name)
        assert row["miou"] == full["tags"][name]["results"][-1]["miou"]
    values = [row["miou"] for row in found.metrics["results"][:2]]
    assert found.metrics["summary"] == {
        "mean": pytest.approx(sum(values) / 2, abs=1e-6),
        "full": full["summary"]["full"],
        "worst": min(values),
    }


def test_the_cases_of_deliver_come_in_the_order_of_its_paper(run: Run) -> None:
    frames = [replace(f, tags=("sun", "lidarjitter", "aaa", "cloud")) for f in open_split(run).frames]
    assert [row.name for row in Cases(SENSORS, frames, "x").rows] == [
        "cloud",
        "sun",
        "lidarjitter",
        "aaa",
        "all frames",
    ]


def test_cases_without_tags_are_refused_alone_and_left_out_of_all(run: Run, root: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "data", test=1)
    for path in (other / "tags").iterdir():
        path.unlink()
    data = f"folder:{other}"
    with pytest.raises(DataError, match=r"split 'test' of .* has no tags, .*ROOT/tags/<tag>.txt"):
        evaluate(run, protocol="cases", data=data)
    found, notes = evaluate_all(run, data=data, limit=1)
    assert list(found) == [p for p in PROTOCOLS if p != "cases"]
    assert notes == {"cases": "the 1 frames have no tags"}


# ---------------------------------------------------------------- faults


def source(run: Run) -> BrokenFrames:
    scored = open_split(run)
    return BrokenFrames(scored.frames, scored.sensors, None, run.recipe.seed)


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_not_broken_is_not_computed_again_and_the_result_is_the_same(
    run: Run, model: MLESAM, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_through_the_trunk = []
    model = copy.deepcopy(model).double()  # rows in other company are summed in another order
    foundation = model.foundation.forward

    def counting(images: Tensor, *rest: Any) -> Any:
        rows_through_the_trunk.append(len(images))
        return foundation(images, *rest)

    monkeypatch.setattr(model.foundation, "forward", counting)
    protocol, broken = Faults(source(run)), source(run)
    batch = batches_of(run, size)[0]
    with torch.inference_mode():
        found = dict(protocol.features(model, batch))
        present = sum(len(x) for x in batch.images.values())
        acting = {m: sum(not FAULTS[f].removes for f in applicable(s, m)) for m, s in run.sensors.items()}
        assert rows_through_the_trunk[0] == present
        assert sum(rows_through_the_trunk[1:]) == sum(5 * n * len(batch.images[m]) for m, n in acting.items())
        monkeypatch.setattr(model.foundation, "forward", foundation)
        assert set(found) == set(range(len(protocol.rows)))
        for group in protocol.groups:
            for number, fault in group[::4]:
                images, frames = dict(batch.images), dict(batch.frames)
                owners = batch.frames[fault.sensor].tolist()
                changed = [broken.image(batch.ids[i], fault) for i in owners]
                if fault.fault.removes:
                    del images[fault.sensor], frames[fault.sensor]
                else:
                    images[fault.sensor] = torch.stack([x for x in changed if x is not None])
                plain = model(replace(batch, images=images, frames=frames))
                output = model.decode(found[number])
                torch.testing.assert_close(output.logits, plain.logits, atol=1e-5, rtol=0)
                torch.testing.assert_close(output.shares, plain.shares, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def watchful(run: Run) -> MLESAM:
    """A model whose router looks at the signs of a broken sensor, with weights that make them count."""
    torch.manual_seed(5)
    channels = {m: spec.channels for m, spec in run.sensors.items()}
    model = MLESAM(channels, 3, ModelConfig(rank=4, reliability=True)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".reliability." in name:
                parameter.add_(torch.randn_like(parameter))
    return model


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 4])
def test_the_signs_of_a_broken_sensor_are_those_of_its_broken_image(run: Run, watchful: MLESAM, size: int) -> None:
    protocol, broken = Faults(source(run)), source(run)
    batch = batches_of(run, size)[0]
    found = dict(protocol.features(watchful, batch))
    for group in protocol.groups:
        number, fault = group[-1]
        if fault.fault.removes:
            continue
        owners = batch.frames[fault.sensor].tolist()
        changed = [broken.image(batch.ids[i], fault) for i in owners]
        images = {**batch.images, fault.sensor: torch.stack([x for x in changed if x is not None])}
        plain = watchful.encode(replace(batch, images=images))
        torch.testing.assert_close(found[number].signs, plain.signs)
        torch.testing.assert_close(
            watchful.decode(found[number]).shares, watchful.decode(plain).shares, atol=1e-5, rtol=0
        )


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 4])
def test_the_signs_of_zeros_are_those_of_zeros(run: Run, watchful: MLESAM, size: int) -> None:
    batch = batches_of(run, size)[0]
    whole = filled(batch, watchful, SENSORS)
    protocol = EntireMissing(SENSORS)
    for number, features in protocol.features(watchful, batch):
        present = protocol.rows[number].present
        images = {m: x if m in present else torch.zeros_like(x) for m, x in whole.images.items()}
        torch.testing.assert_close(features.signs, watchful.encode(replace(whole, images=images)).signs)


@pytest.fixture(scope="module")
def faults(run: Run) -> dict[str, Any]:
    return evaluate(run, protocol="faults").metrics


def test_there_is_a_row_for_each_sensor_fault_and_severity(run: Run, faults: dict[str, Any]) -> None:
    keys = [(r["sensor"], r["fault"], r["severity"]) for r in faults["results"][:-1]]
    expected = [
        (m, f, s)
        for m in SENSORS
        for f in applicable(run.sensors[m], m)
        for s in ((5,) if f == "dropped" else (1, 2, 3, 4, 5))
    ]
    assert keys == expected
    clean = faults["results"][-1]
    assert (clean["name"], clean["fault"], clean["ratio"]) == ("clean", None, 1.0)
    subsets = {tuple(r["present"]): r for r in evaluate(run).metrics["results"]}
    assert clean["miou"] == subsets[SENSORS]["miou"]
    for row in faults["results"]:
        assert {"name", "present", "miou", "iou", "pixel_accuracy", "miou_absent_as_zero", "frames", "weights"} <= set(
            row
        )
        if row["fault"] == "dropped":
            rest = subsets[tuple(m for m in SENSORS if m != row["sensor"])]
            common = set(row) & set(rest) - {"name"}
            assert {"miou", "iou", "weights", "frames"} <= common
            assert {k: row[k] for k in common} == {k: rest[k] for k in common}
        elif row["fault"] is not None:
            assert row["present"] == list(SENSORS)
            assert row["seen"] == (row["fault"] not in HELD_OUT)


def test_the_summary_of_the_faults_by_hand(faults: dict[str, Any]) -> None:
    cells: dict[tuple[str, str], list[float]] = {}
    for row in faults["results"][:-1]:
        cells.setdefault((row["sensor"], row["fault"]), []).append(1 - row["miou"] / faults["summary"]["full"])
    lost = {key: sum(values) / len(values) for key, values in cells.items()}

    def mean(values: Sequence[float]) -> Any:
        return pytest.approx(sum(values) / len(values), abs=5e-6)

    found = faults["summary"]["degradation"]
    assert found["mean"] == mean(list(lost.values()))
    assert found["seen"] == mean([v for (_, f), v in lost.items() if f not in HELD_OUT])
    assert found["unseen"] == mean([v for (_, f), v in lost.items() if f in HELD_OUT])
    for sensor in SENSORS:
        assert found["sensors"][sensor] == mean([v for (s, _), v in lost.items() if s == sensor])
    for fault in found["faults"]:
        assert found["faults"][fault] == mean([v for (_, f), v in lost.items() if f == fault])
    assert faults["summary"]["worst"] == min(r["miou"] for r in faults["results"][:-1])


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_protocol_depends_on_the_batch(run: Run, model: MLESAM, name: str) -> None:
    scored, seed = open_split(run), run.recipe.seed

    def made() -> Protocol:
        return {
            "subsets": lambda: Subsets(SENSORS),
            "emm": lambda: EntireMissing(SENSORS),
            "rmm": lambda: RandomMissing(SENSORS, seed),
            "nm": lambda: Noisy(scored.sensors, seed),
            "cases": lambda: Cases(SENSORS, scored.frames, "x"),
            "faults": lambda: Faults(source(run)),
        }[name]()

    for one, together in zip(matrices_of(made(), model, run, 1), matrices_of(made(), model, run, 3), strict=True):
        # A pixel on the border of two classes may fall to the other side within rounding.
        assert int(np.abs(one - together).sum()) <= 4


@pytest.mark.parametrize("name", [p for p in PROTOCOLS if p != "subsets"])
def test_every_row_says_what_was_wrong_and_the_last_is_whole(run: Run, name: str) -> None:
    found = evaluate(run, protocol=name, limit=2).metrics
    assert found["protocol"] == name
    assert {"mean", "full", "worst"} <= set(found["summary"])
    for row in found["results"]:
        assert {"fault", "severity", "ratio"} <= set(row)
    assert found["results"][-1]["ratio"] == 1.0
    assert found["summary"]["full"] == found["results"][-1]["miou"]
    assert set(found["tags"]) == {"night", "fog"}
    assert len(found["tags"]["fog"]["results"]) == len(found["results"])


def test_joined_features_are_those_of_one_pass_and_later_parts_win(run: Run, model: MLESAM) -> None:
    batch = batches_of(run, 4)[0]
    with torch.inference_mode():
        together = model.encode(batch)
        parts = [together.select([m]) for m in reversed(SENSORS)]
        joined = Features.join(parts)
        assert joined.segments == together.segments
        assert all(torch.equal(a, b) for a, b in zip(joined.levels, together.levels, strict=True))
        other = replace(parts[0], levels=tuple(level + 1 for level in parts[0].levels))
        replaced = Features.join([together, other])
        last = replaced.segments[-1]
        assert torch.equal(replaced.levels[2][last.start :], together.levels[2][last.start :] + 1)
        assert torch.equal(replaced.levels[2][: last.start], together.levels[2][: last.start])


def test_one_command_runs_them_all_and_the_report_shows_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.json"
    assert main(["evaluate", str(root / "run"), "--protocol", "all", "--frames", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "salt-and-pepper *" in text
    assert "mIoU_Avg" in text
    written = json.loads(out.read_text())
    assert list(written) == ["protocols"]
    assert list(written["protocols"]) == list(PROTOCOLS)
    for name, metrics in written["protocols"].items():
        assert metrics["protocol"] == name
        stored = root / "run/evaluation" / f"{name}-test-2.json"
        assert json.loads(stored.read_text()) == metrics
    assert main(["report", str(root / "run")]) == 0
    page = (root / "run/report.html").read_text()
    assert 'id="faults"' in page
    assert "Published protocols" in page
    assert page.count("<polyline") >= 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--protocol", "fault"), "unknown protocol 'fault'; did you mean 'faults'?"),
        (("--protocol", "faults", "--published-noise", "4"), "--published-noise belongs to protocol nm"),
        (("--protocol", "nm", "--published-noise", "x"), "invalid int value"),
        (("--protocol", "nm", "--severities", "1,5"), "--severities belongs to protocol faults, not to nm"),
        (
            ("--protocol", "faults", "--severities", "1,6"),
            "--severities is '1,6', but it must name some of 1, 2, 3, 4, 5",
        ),
        (("--protocol", "faults", "--severities", "5,5"), "each once"),
        (("--protocol", "faults", "--severities", "low"), "it must be numbers with commas between them"),
    ],
)
def test_a_false_request_gets_one_sentence(
    words: tuple[str, ...], sentence: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(root / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


# ---------------------------------------------------------------- predict --fault


def test_predict_breaks_a_sensor_first(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--input", f"folder:{root / 'data'}", "--split", "test")
    for name, faults in {
        "clean": (),
        "fog": ("--fault", "rgb:fog:5", "--fault", "depth:shift:5"),
        "stale": ("--fault", "rgb:time-offset:1"),
        "dropped": ("--fault", "rgb:dropped:5"),
    }.items():
        assert main(["predict", str(root / "run"), *data, *faults, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()

    def frames(name: str) -> list[dict[str, Any]]:
        return json.loads((tmp_path / name / "prediction.json").read_text())["frames"]

    assert json.loads((tmp_path / "fog/prediction.json").read_text())["faults"] == ["rgb:fog:5", "depth:shift:5"]
    assert frames("fog")[0]["weights"] != frames("clean")[0]["weights"]
    assert frames("stale")[0]["weights"] == frames("clean")[0]["weights"]  # the first frame has no earlier one
    assert frames("stale")[1]["weights"] != frames("clean")[1]["weights"]
    assert all("rgb" not in frame["weights"] for frame in frames("dropped"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("rgb:fgo:3", "unknown fault 'fgo'; did you mean 'fog'?"),
        ("rgb:fog:6", "the severity of rgb:fog is 6; it must be 1 to 5."),
        ("rbg:fog:3", "there is no sensor 'rbg' for the fault fog; did you mean 'rgb'?"),
        ("depth:fog:3", "depth cannot have the fault 'fog'; it can have gaussian"),
        ("rgb:frozen:3", "single files have none"),
        ("fog", "write SENSOR:NAME:SEVERITY"),
    ],
)
def test_a_false_fault_is_refused_before_anything_is_written(
    fault: str, sentence: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--rgb", str(root / "data/rgb/test/test0.png"), "--depth", str(root / "data/depth/test/test0.png"))
    assert main(["predict", str(root / "run"), *files, "--fault", fault, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_segmenter_takes_faults_of_a_users_own_arrays(root: Path) -> None:
    from mlesam import Segmenter

    segmenter = Segmenter.load(root / "run")
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    before = image.copy()
    clean = segmenter({"rgb": image, "thermal": image[..., 0]})
    broken = segmenter({"rgb": image, "thermal": image[..., 0]}, faults=["rgb:black:5"])
    assert not np.array_equal(clean.probabilities, broken.probabilities)
    assert np.array_equal(image, before)
    left = segmenter({"rgb": image, "thermal": image[..., 0]}, faults=[SensorFault("rgb", "dropped", 1)])
    assert left.weights == {"thermal": 1.0}
    assert np.array_equal(left.probabilities, segmenter({"thermal": image[..., 0]}).probabilities)
