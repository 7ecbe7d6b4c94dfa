"""A stream: what is new is computed, what is fresh enough stands in, and what is too old is absent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mlesam import MLESAM, Batch, DataError, ModelConfig, Prediction, RequestError, Segmenter, SegmenterStream
from mlesam.inference.stream import MAX_AGE, SensorMemory
from mlesam.model.features import Features
from mlesam.sample import Classes
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import sensor_spec

SENSORS = ("rgb", "depth", "thermal")
CLASSES = Classes(("ground", "near", "far"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def segmenter_of(modalities: Sequence[str] = SENSORS, **changes: Any) -> Segmenter:
    """A model whose every sensor says something of its own, untrained."""
    torch.manual_seed(0)
    sensors = {m: sensor_spec(m) for m in modalities}
    config = ModelConfig(foundation="nano", rank=2, **changes)
    model = MLESAM({m: spec.channels for m, spec in sensors.items()}, len(CLASSES.names), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("foundation."):
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return Segmenter(model, sensors, CLASSES, device="cpu")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """With what the router sees of reliability, as runs have it by default."""
    return segmenter_of(reliability=True)


@pytest.fixture(scope="module")
def plain() -> Segmenter:
    return segmenter_of(reliability=False)


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "rgb": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "depth": rng.integers(1, 60000, size, dtype=np.uint16),
        "thermal": rng.integers(0, 256, size, dtype=np.uint8),
    }


def only(inputs: dict[str, np.ndarray], *modalities: str) -> dict[str, np.ndarray]:
    return {m: inputs[m] for m in modalities}


def same(found: Prediction, expected: Prediction) -> bool:
    return np.array_equal(found.probabilities, expected.probabilities) and found.weights == expected.weights


@contextmanager
def rows_through_the_trunk(segmenter: Segmenter) -> Iterator[list[int]]:
    """How many rows each pass of the trunk had."""
    rows: list[int] = []
    handle = segmenter.model.foundation.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


# ---------------------------------------------------------------- equal to a full frame


@pytest.mark.parametrize("half_life", [None, 0.1])
@pytest.mark.parametrize("which", ["segmenter", "plain"])
def test_at_age_0_it_is_the_segmenter_to_the_bit(which: str, half_life: float | None, request) -> None:
    one: Segmenter = request.getfixturevalue(which)
    stream = SegmenterStream(one, half_life=half_life)
    for index, modalities in enumerate((SENSORS, ("depth", "thermal"), ("rgb",))):
        stream.reset()
        given = only(scene(index), *modalities)
        found, expected = stream(given, time=0.1 * index), one(given)
        assert same(found, expected)
        assert np.array_equal(found.labels, expected.labels)
        assert found.overlay().tobytes() == expected.overlay().tobytes()
        assert found.ages == dict.fromkeys(modalities, 0.0)


@pytest.mark.parametrize("half_life", [None, 0.1])
def test_when_nothing_moved_it_is_the_full_frame_to_the_bit(segmenter: Segmenter, half_life: float | None) -> None:
    """Sensors of one age have the same trust as sensors of age 0: only differences count."""
    stream = SegmenterStream(segmenter, half_life=half_life)
    full = stream(scene(0), time=10.0)
    held = stream({}, time=10.1)
    assert same(held, full)
    assert held.ages == dict.fromkeys(SENSORS, 0.1)
    assert held.overlay().tobytes() == full.overlay().tobytes()


def test_one_sensor_measures_the_same_again_and_the_labels_stay(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    full = stream(scene(0), time=10.0)
    for step, modality in enumerate(SENSORS, 1):
        found = stream(only(scene(0), modality), time=10.0 + 0.03 * step)
        assert np.array_equal(found.labels, full.labels)
        np.testing.assert_allclose(found.probabilities, full.probabilities, atol=1e-5)


def test_sensors_given_one_after_the_other_are_one_scene(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    stream(only(scene(0), "thermal"), time=3.0)
    stream(only(scene(0), "depth"), time=3.0)
    found = stream(only(scene(0), "rgb"), time=3.0)
    expected = segmenter(scene(0))
    assert list(found.weights) == list(found.ages) == list(SENSORS)
    assert np.array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_what_stands_in_is_what_was_measured_last(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    stream(scene(0), time=0.0)
    found = stream(only(scene(1), "rgb"), time=0.05)
    expected = segmenter(only(scene(0), "depth", "thermal") | only(scene(1), "rgb"))
    assert np.array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert found.overlay().tobytes() == expected.overlay().tobytes()


def test_only_what_is_new_goes_through_the_trunk(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    with rows_through_the_trunk(segmenter) as rows:
        stream(scene(0), time=0.0)
        stream(only(scene(1), "rgb"), time=0.03)
        stream(only(scene(2), "rgb", "thermal"), time=0.06)
        stream({"depth": None}, time=0.09)
    assert rows == [3, 1, 2]


# ---------------------------------------------------------------- ages


def test_each_sensor_has_an_age_and_a_limit_of_its_own(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age={"depth": 0.2, "thermal": None})
    stream(scene(0), time=12.2)
    found = stream(only(scene(1), "rgb"), time=12.4)  # 12.4 - 12.2 is 0.2000000000000011
    assert found.ages == {"rgb": 0.0, "depth": 0.2, "thermal": 0.2}
    found = stream(only(scene(1), "rgb"), time=12.401)
    assert found.ages == {"rgb": 0.0, "thermal": 0.201}
    assert list(found.weights) == ["rgb", "thermal"]
    found = stream({}, time=12.401 + MAX_AGE + 0.001)  # rgb is not named, so it has the limit of all
    assert list(found.ages) == ["thermal"]
    assert found.weights == {"thermal": 1.0}


def test_times_of_a_clock_that_counts_from_1970_are_fine(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age=0.1)
    stream(scene(0), time=1.8e9 + 0.1)
    assert stream({}, time=1.8e9 + 0.2).ages == dict.fromkeys(SENSORS, 0.1)


def test_no_age_at_all_is_the_plain_segmenter(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age=0)
    stream(scene(0), time=0.0)
    given = only(scene(1), "rgb", "depth")
    assert same(stream(given, time=0.01), segmenter(given))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_what_an_expired_sensor_held_cannot_change_a_bit(segmenter: Segmenter, garbage: float) -> None:
    stream = SegmenterStream(segmenter, max_age=0.1)
    stream(scene(0), time=0.0)
    kept = stream.memory.kept["depth"].features
    for level in kept.levels:
        level.fill_(garbage)
    given = only(scene(1), "rgb", "thermal")
    assert same(stream(given, time=0.2), segmenter(given))
    assert set(stream.memory.kept) == {"rgb", "thermal"}  # nor does it take up memory


def test_what_is_kept_of_a_sensor_is_what_the_documentation_says(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    for index in range(3):
        stream(scene(index, (64, 128)), time=0.1 * index)
    width = segmenter.model.foundation.width
    for kept in stream.memory.kept.values():
        stored = sum(level.untyped_storage().nbytes() for level in kept.features.levels)
        assert stored == 4 * width * (16 * 32 + 8 * 16 + 4 * 8)
        assert stored == 4 * width * 64 * 128 * 21 / 256


def test_a_measurement_may_arrive_late(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    found = stream(scene(0), time=5.0, times={"depth": 4.93})
    assert found.ages == {"rgb": 0.0, "depth": 0.07, "thermal": 0.0}
    stream(only(scene(1), "rgb"), time=5.1)
    with rows_through_the_trunk(segmenter) as rows:
        # Older than what is kept of it, or than it may be: nothing is computed.
        late = stream(only(scene(2), "rgb", "depth"), time=5.11, times={"rgb": 5.05, "depth": 4.92})
        assert rows == []
        old = stream(only(scene(2), "depth"), time=5.45, times={"depth": 4.94})
        assert rows == []
    assert late.ages == {"rgb": 0.01, "depth": 0.18, "thermal": 0.11}
    assert old.ages == {"rgb": 0.35, "thermal": 0.45}


def test_given_twice_for_one_time_the_last_counts(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    stream(scene(0), time=1.0)
    found = stream(scene(1), time=1.0)
    assert same(found, segmenter(scene(1)))


def test_forget_and_reset(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age=None)
    stream(scene(0), time=7.0)
    stream.forget("depth")
    assert list(stream({}, time=7.0).ages) == ["rgb", "thermal"]
    assert list(stream(only(scene(0), "depth"), time=7.1).ages) == list(SENSORS)
    stream.forget(*SENSORS)
    with pytest.raises(RequestError, match="nothing is kept of rgb, depth, thermal"):
        stream({}, time=7.1)
    stream.reset()
    assert stream(only(scene(0), "rgb"), time=0.0).ages == {"rgb": 0.0}
    with pytest.raises(RequestError, match="no sensor 'dept'; did you mean 'depth'"):
        stream.forget("dept")


# ---------------------------------------------------------------- decaying trust


@pytest.mark.parametrize("which", ["segmenter", "plain"])
def test_a_sensors_weight_falls_with_its_age(which: str, request) -> None:
    one: Segmenter = request.getfixturevalue(which)
    weights = []
    for age in (0.0, 0.03, 0.1, 0.3, 1.0, 30.0):
        stream = SegmenterStream(one, max_age=None, half_life=0.1)
        found = stream(scene(0), time=50.0, times={"depth": 50.0 - age})
        assert sum(found.weights.values()) == pytest.approx(1.0, abs=1e-5)
        weights.append(found.weights["depth"])
    assert weights[0] == one(scene(0)).weights["depth"]
    assert all(b < a for a, b in pairwise(weights))
    assert weights[-1] < 1e-6


def test_the_decay_by_hand() -> None:
    """Fusion by the plain mean: 0.2 s at a half-life of 0.1 s leaves a quarter of the trust, so 1/5 of the share."""
    one = segmenter_of(reliability=False, fusion="mean")
    stream = SegmenterStream(one, half_life=0.1)
    found = stream(only(scene(0), "rgb", "depth"), time=4.0, times={"depth": 3.8})
    assert found.weights == pytest.approx({"rgb": 0.8, "depth": 0.2}, abs=1e-6)


def test_the_routed_share_decays_by_the_same_factor() -> None:
    one = segmenter_of(reliability=False, fusion="routed")
    features = one.model.encode(Batch.of({"rgb": torch.randn(1, 3, 64, 64), "depth": torch.randn(1, 1, 64, 64)}))
    memory = SensorMemory(one.model, half_life=0.05)
    memory.keep(features, time=1.0, times={"depth": 0.9})
    fresh = one.model.decode(features).shares[0]
    found = one.model.decode(*memory.recall(1.0)).shares[0]
    raised = fresh * torch.tensor([1.0, 0.25, 0.0])  # rgb, depth, thermal
    torch.testing.assert_close(found, raised / raised.sum(dim=1, keepdim=True))


def test_an_old_sensor_that_is_alone_has_all_the_weight(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age=None, half_life=0.01)
    full = stream(only(scene(0), "depth"), time=0.0)
    assert same(stream({}, time=9.0), full)


@torch.no_grad()
def test_trust_by_age_goes_with_the_trust_the_model_has_itself() -> None:
    model = segmenter_of(reliability=True, fusion="mean").model
    features = model.encode(Batch.of({"rgb": torch.randn(2, 3, 64, 64), "depth": torch.randn(2, 1, 64, 64)}))
    own = model.trust(features)
    assert own is not None
    assert float(own.std()) > 0
    extra = torch.tensor([0.0, 0.0, -1.0, -2.0])
    expected = (own + extra).view(2, 2).softmax(dim=0).T  # (frames, sensors)
    for level in range(3):
        torch.testing.assert_close(model.decode(features, extra).shares[:, level, :2], expected)


# ---------------------------------------------------------------- what is refused


def test_time_that_goes_back_is_refused_and_changes_nothing(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    full = stream(scene(0), time=2.0)
    with pytest.raises(RequestError, match=r"time went back from 2 s to 1\.9 s.*call reset\(\)"):
        stream(scene(1), time=1.9)
    with pytest.raises(RequestError, match=r"rgb measured at 3 s, but it is only 2\.1 s"):
        stream(only(scene(1), "rgb"), time=2.1, times={"rgb": 3.0})
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match="it must be a finite number of seconds"):
            stream({}, time=wrong)
    with pytest.raises(RequestError, match=r"rgb measured at nan s"):
        stream(only(scene(1), "rgb"), time=2.1, times={"rgb": float("nan")})
    assert same(stream({}, time=2.0), full)


def test_no_sensor_fresh_enough_names_ages_and_limits(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age={"rgb": 0.1})
    with pytest.raises(RequestError, match=r"no sensor is fresh enough at 0 s: nothing is kept of rgb, depth, thermal"):
        stream({}, time=0.0)
    stream(only(scene(0), "rgb"), time=0.0)
    expected = (
        r"at 0\.5 s: rgb is 0\.5 s old \(at most 0\.1\); nothing is kept of depth, thermal\. Give a new measurement"
    )
    for _ in range(2):
        with pytest.raises(RequestError, match=expected):
            stream({}, time=0.5)
    assert stream({}, time=0.1).ages == {"rgb": 0.1}  # the failed calls moved no clock


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_age": -1.0}, "max_age of rgb is -1.0; it must be 0 seconds or more"),
        ({"max_age": float("nan")}, "max_age of rgb is nan"),
        ({"max_age": {"dept": 1.0}}, "max_age names no sensor 'dept'; did you mean 'depth'"),
        ({"half_life": 0.0}, "half_life is 0.0; it must be more than 0 seconds"),
        ({"half_life": float("inf")}, "half_life is inf"),
        ({"calibration": Rig()}, "none of them was given"),
    ],
)
def test_what_cannot_be_declared(segmenter: Segmenter, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        SegmenterStream(segmenter, **options)


def test_a_sensor_that_is_not_the_models_is_refused(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    with pytest.raises(RequestError, match="this model has no sensor 'lidar'"):
        stream({"lidar": np.zeros((48, 64), np.uint8)}, time=0.0)
    with pytest.raises(RequestError, match="this model has no sensor 'lidar'"):
        stream(scene(0), time=0.0, times={"lidar": 0.0})


def test_another_size_is_refused_while_sensors_of_the_old_one_stand_in(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter, max_age={"rgb": 0.1, "depth": 0.1, "thermal": 1.0})
    full = stream(scene(0), time=0.0)
    larger = scene(1, (64, 96))
    expected = r"rgb is 96x64, depth of 0\.05 s ago is 64x48, thermal of 0\.05 s ago is 64x48; .* call reset\(\)"
    with pytest.raises(DataError, match=expected):
        stream(only(larger, "rgb"), time=0.05)
    assert same(stream({}, time=0.0), full)  # as it was
    with pytest.raises(DataError, match=r"depth is 96x64, thermal of 0\.2 s ago is 64x48"):
        stream(only(larger, "rgb", "depth"), time=0.2)
    stream.forget("thermal")  # all that would still stand in
    assert stream(only(larger, "rgb", "depth"), time=0.2).labels.shape == (64, 96)
    stream.reset()
    assert stream(only(scene(0), "rgb"), time=0.0).labels.shape == (48, 64)


# ---------------------------------------------------------------- faults, recordings, raw tensors


@torch.no_grad()
def test_faults_are_those_of_what_is_new(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    broken = {"faults": ["rgb:gaussian:3", "thermal:gaussian:3"], "seed": 1, "frame": "a"}
    assert same(stream(scene(0), time=0.0, **broken), segmenter(scene(0), **broken))
    found = stream(only(scene(1), "rgb"), time=0.05, faults=["thermal:black:5"])
    parts = [
        segmenter.encode(segmenter.read(scene(0), **broken)),
        segmenter.encode(segmenter.read(only(scene(1), "rgb"))),
    ]
    expected = segmenter.model.decode(Features.join(parts))
    assert list(found.weights.values()) == pytest.approx(expected.shares[0].mean(dim=0).tolist(), abs=1e-6)


def test_a_dropped_sensor_has_nothing_new(segmenter: Segmenter) -> None:
    stream = SegmenterStream(segmenter)
    full = stream(scene(0), time=0.0)
    held = stream(only(scene(1), "rgb"), time=0.1, faults=["rgb:dropped:1"])
    assert same(held, full)
    assert held.ages["rgb"] == 0.1
    with pytest.raises(RequestError, match="cannot have the fault 'rain'"):
        stream({}, time=0.1, faults=["depth:rain:1"])


def test_recordings_are_brought_to_the_size_of_the_pictures_that_stand_in() -> None:
    rig = Rig.build({
        "camera": {"size": [128, 96], "matrix": [[80, 0, 63.5], [0, 80, 47.5], [0, 0, 1]]},
        "sensors": {"lidar": {
            "kind": "points", "rotation": [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]],
            "translation": [0.0, -0.2, 0.0],
        }},
    })  # fmt: skip
    rng = np.random.default_rng(0)
    points = rng.uniform((3, -20, -2, 0), (40, 20, 8, 255), (3000, 4)).astype(np.float32)
    one = segmenter_of(("rgb", "lidar"))
    stream = SegmenterStream(one, calibration=rig)
    rgb = only(scene(0), "rgb")
    stream(rgb, time=0.0)
    found = stream({"lidar": points}, time=0.0)
    expected = one(rgb | {"lidar": points}, calibration=rig)
    assert np.array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_a_calibration_may_be_a_file(segmenter: Segmenter, tmp_path: Path) -> None:
    options = {"kind": "points", "rotation": np.eye(3).tolist(), "translation": [0.0, 0.0, 0.0]}
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump({"sensors": {"depth": options}}))
    stream = SegmenterStream(segmenter, calibration=tmp_path / "rig.yaml")
    assert stream.rig is not None
    assert list(stream.rig.sensors) == ["depth"]


def test_a_resized_segmenter_answers_at_the_inputs_size(segmenter: Segmenter) -> None:
    small = Segmenter(segmenter.model, segmenter.sensors, segmenter.classes, resize=32, device="cpu")
    stream = SegmenterStream(small)
    stream(scene(0), time=0.0)
    assert stream({}, time=0.1).labels.shape == (48, 64)
    with pytest.raises(DataError, match="rgb is 128x96"):  # the trunk would not notice
        stream(only(scene(0, (96, 128)), "rgb"), time=0.1)


def test_the_memory_alone_works_on_tensors_of_several_frames(plain: Segmenter) -> None:
    model = plain.model
    first = {"rgb": torch.randn(2, 3, 64, 64), "depth": torch.randn(2, 1, 64, 64)}
    memory = SensorMemory(model, half_life=0.1)
    with torch.inference_mode():
        memory.keep(model.encode(Batch.of(first)), time=0.0)
        second = {"rgb": torch.randn(2, 3, 64, 64)}
        memory.keep(model.encode(Batch.of(second)), time=0.1)
        features, trust = memory.recall(0.1)
        assert trust is not None
        torch.testing.assert_close(trust.exp(), torch.tensor([1.0, 1.0, 0.5, 0.5]))
        found = model.decode(features, torch.zeros_like(trust))
        torch.testing.assert_close(found.logits, model(first | second).logits, atol=1e-5, rtol=1e-4)
        with pytest.raises(DataError, match=r"2 frames of depth were 64x64 pixels, but now 1 are 64x64; call reset"):
            memory.keep(model.encode(Batch.of({"rgb": torch.randn(1, 3, 64, 64)})), time=0.15)
    assert [kept.time for kept in memory.kept.values()] == [0.1, 0.0]
