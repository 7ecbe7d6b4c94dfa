"""Faults of sensors: each does what it says, to every kind of sensor, and the same every time."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import write_dataset
from mlesam.config import DataConfig, Recipe
from mlesam.data.dataset import open_dataset
from mlesam.data.faulty import BrokenFrames, earlier_values
from mlesam.data.loading import TrainingFrames, batches, evaluation_loader
from mlesam.data.reading import read_frame
from mlesam.data.transforms import training_sample
from mlesam.errors import DataError, RequestError
from mlesam.sample import Batch, Classes, Sample
from mlesam.sensors.faults import (
    FAULTS,
    HELD_OUT,
    SEVERITIES,
    SensorFault,
    applicable,
    break_sample,
    earlier_index,
    kind,
    random_fault,
    seen,
    unseen,
)
from mlesam.sensors.spec import BUILTIN, SensorSpec, sensor_spec

SPECS = {
    **BUILTIN,
    "sonar": SensorSpec(channels=16, unit="dB", range=(-120.0, 0.0), mean=(-60.0,), std=(15.0,)),
    "gain": dataclasses.replace(BUILTIN["thermal"], normalize="frame"),
    "unbounded": SensorSpec(range=(-math.inf, math.inf), mean=(3.0,), std=(2.0,), unit="K"),
    "labels": SensorSpec(interpolation="nearest"),
}
"""Every built-in sensor, and some that nobody thought of."""
ACTING = [(m, f) for m, spec in SPECS.items() for f in applicable(spec, m) if FAULTS[f].change is not None]


def scene(modality: str, size: tuple[int, int] = (48, 64), seed: int = 0) -> Tensor:
    """Values that fit the sensor: soft shapes, with holes or emptiness where the sensor has them."""
    spec, generator = SPECS[modality], torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, spec.channels, 5, 5, generator=generator)
    shapes = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0].clamp(0, 1)
    low, high = spec.range if spec.normalize == "dataset" and math.isfinite(spec.range[0]) else (-2.0, 2.0)
    values = low + (high - low) * (0.1 + 0.5 * shapes)
    if spec.normalize == "frame" and values.numel() > 1:
        values = (values - values.mean()) / values.std().clamp(min=0.05)
    empty = torch.nn.functional.interpolate(
        torch.rand(1, 1, 6, 6, generator=generator), size=size, mode="bicubic", align_corners=True
    )[0]
    if spec.photometric == "sparse":
        return values.masked_fill(empty < 0.5, math.nan if spec.missing is not None else 0.0)
    return values.masked_fill(empty < 0.2, math.nan) if spec.missing is not None else values


def broken(values: Tensor, modality: str, fault: str, severity: int = 3, **more: object) -> Tensor:
    found = SensorFault(modality, fault, severity).apply(values, SPECS[modality], **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.equal(one.nan_to_num(nan=-999.0), other.nan_to_num(nan=-999.0)))


# ---------------------------------------------------------------- what holds for all of them


@pytest.mark.parametrize(("modality", "fault"), ACTING)
def test_every_fault_stays_within_the_sensors_range_and_leaves_its_input_alone(modality: str, fault: str) -> None:
    spec = SPECS[modality]
    for size in ((48, 64), (5, 7), (1, 1), (2, 9)):
        for severity in SEVERITIES:
            values = scene(modality, size)
            before = values.clone()
            found = broken(values, modality, fault, severity)
            assert same(values, before)
            assert found.data_ptr() != values.data_ptr()
            assert (found.shape, found.dtype) == (values.shape, torch.float32)
            assert not torch.isinf(found).any()
            if spec.normalize == "dataset":
                finite = found[torch.isfinite(found)]
                assert bool(((finite >= spec.range[0]) & (finite <= spec.range[1])).all())
            assert torch.isfinite(spec.normalized(found)).all()


@pytest.mark.parametrize(("modality", "fault"), ACTING)
def test_a_worse_severity_changes_more(modality: str, fault: str) -> None:
    spec = SPECS[modality]
    effect = []
    for severity in SEVERITIES:
        changes = []
        for seed in range(8):
            values = scene(modality, seed=seed)
            one = spec.normalized(values)
            other = spec.normalized(broken(values, modality, fault, severity, frame=str(seed)))
            if spec.normalize == "frame":  # it adapts to any level, so what counts is the pattern that is left
                changes.append(1 - abs(float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))))
            else:
                changes.append(float((other - one).abs().mean()))
        effect.append(np.mean(changes))
    assert effect[0] > 0
    slack = 0.05 if spec.normalize == "frame" else 1e-3 * effect[-1]
    assert all(a <= b + slack for a, b in itertools.pairwise(effect)), effect
    assert effect[-1] > effect[0] * 1.05


@pytest.mark.parametrize(("modality", "fault"), ACTING)
def test_the_same_key_gives_the_same_fault_and_another_frame_or_seed_another(modality: str, fault: str) -> None:
    values = scene(modality)
    first = broken(values, modality, fault, frame="a", seed=1)
    broken(values, modality, fault, frame="b", seed=1)  # what happens in between changes nothing
    assert same(first, broken(values, modality, fault, frame="a", seed=1))
    if fault not in ("low-resolution", "over-exposure"):  # these have nothing random
        others = [broken(values, modality, fault, frame=f"{i}", seed=i % 3) for i in range(12)]
        assert not all(same(first, other) for other in others)


@pytest.mark.parametrize(("modality", "fault"), ACTING)
def test_where_nothing_was_measured_at_all_nothing_goes_wrong(modality: str, fault: str) -> None:
    values = torch.full((SPECS[modality].channels, 12, 10), math.nan)
    found = broken(values, modality, fault, 5)
    assert not torch.isinf(found).any()
    assert torch.isfinite(SPECS[modality].normalized(found)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ACTING),
    st.integers(1, 5),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 2**31),
)
def test_any_size_and_seed(pair: tuple[str, str], severity: int, size: tuple[int, int], seed: int) -> None:
    values = scene(pair[0], size, seed % 7)
    found = broken(values, *pair, severity, seed=seed)
    assert found.shape == values.shape
    assert torch.isfinite(SPECS[pair[0]].normalized(found)).all()


def test_the_random_numbers_are_those_of_every_machine() -> None:
    """A changed hash or order of draws would make stored results and new ones two different tests."""
    values = torch.zeros(1, 40, 50) + 0.5
    found = broken(values, "thermal", "salt-and-pepper", 5, frame="0001", seed=7)
    assert (int((found == 1).sum()), int((found == 0).sum())) == (303, 313)


# ---------------------------------------------------------------- each for itself


def test_salt_and_pepper_hits_its_share_of_the_pixels_high_and_low_alike() -> None:
    values = torch.full((3, 200, 300), 0.5)
    for severity, density in zip(SEVERITIES, FAULTS["salt-and-pepper"].values, strict=True):
        found = broken(values, "rgb", "salt-and-pepper", severity)
        hit = (found != 0.5).all(dim=0)
        assert torch.equal((found != 0.5).any(dim=0), hit)  # a pixel fails as a whole
        assert float(hit.float().mean()) == pytest.approx(density, rel=0.1)
        assert float((found[:, hit] == 1).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_worse_severity_is_the_same_fault_only_worse() -> None:
    values = torch.full((1, 40, 50), 0.5)
    hit = [broken(values, "thermal", "salt-and-pepper", s) != 0.5 for s in SEVERITIES]
    assert all(bool((b | ~a).all()) for a, b in itertools.pairwise(hit))


@pytest.mark.parametrize(
    ("fault", "nothing"), [("thermal", 0.0), ("depth", math.nan), ("event", 0.0), ("lidar", math.nan)]
)
def test_dead_rows_are_whole_rows_of_nothing(fault: str, nothing: float) -> None:
    values = torch.full((SPECS[fault].channels, 50, 20), 0.5)
    found = broken(values, fault, "dead-rows", 4)
    dead = ~(found == 0.5).all(dim=(0, 2))
    assert int(dead.sum()) == 10  # a fifth of 50
    assert same(found[:, dead], torch.full_like(found[:, dead], nothing))


@pytest.mark.parametrize("modality", ["rgb", "depth", "lidar", "event", "aolp", "sonar"])
def test_a_shift_moves_by_exactly_so_many_pixels(modality: str) -> None:
    values = scene(modality, (100, 100))
    for severity, reach in zip(SEVERITIES, (1, 2, 4, 7, 10), strict=True):
        found = broken(values, modality, "shift", severity)
        candidates = {
            (0, reach): (found[:, :, reach:], values[:, :, :-reach]),
            (0, -reach): (found[:, :, :-reach], values[:, :, reach:]),
            (reach, 0): (found[:, reach:], values[:, :-reach]),
            (-reach, 0): (found[:, :-reach], values[:, reach:]),
        }
        assert sum(same(*pair) for pair in candidates.values()) == 1


def test_all_four_directions_of_a_shift_occur() -> None:
    values = torch.arange(400.0).reshape(1, 20, 20) / 400
    found = {int(400 * broken(values, "thermal", "shift", 5, frame=str(i))[0, 10, 10] + 0.5) for i in range(30)}
    assert found == {210 - 2, 210 + 2, 210 - 40, 210 + 40}


def test_a_rotation_turns_about_the_centre() -> None:
    values = torch.zeros(1, 41, 41)
    values[0, 20, 20:] = 1.0  # a hand of a clock that points to the right
    found = broken(values, "depth", "rotation", 5)
    assert found[0, 20, 20] == 1
    tip = torch.nonzero(found[0, :, 36].nan_to_num(0) > 0)[:, 0].tolist()
    assert [abs(row - 20) for row in tip] == [round(16 * math.tan(math.radians(12)))]


def test_a_scale_error_multiplies_metres_and_keeps_the_holes() -> None:
    values = torch.tensor([[[1.0, math.nan, 4.0]]])
    for severity, factor in zip(SEVERITIES, FAULTS["scale-error"].values, strict=True):
        found = broken(values, "depth", "scale-error", severity)
        assert math.isnan(found[0, 0, 1])
        assert float(found[0, 0, 2]) == pytest.approx(4 * float(found[0, 0, 0]))
        assert any(float(found[0, 0, 0]) == pytest.approx(f) for f in (factor, 1 / factor))


def test_depth_holes_take_their_share_of_the_blocks() -> None:
    values = torch.full((1, 64, 64), 5.0)
    for severity, share in zip(SEVERITIES, FAULTS["depth-holes"].values, strict=True):
        hole = torch.isnan(broken(values, "depth", "depth-holes", severity))
        assert float(hole.float().mean()) == pytest.approx(share, abs=1 / 256)
        blocks = hole[0].reshape(16, 4, 16, 4).float().mean(dim=(1, 3))
        assert set(blocks.unique().tolist()) <= {0.0, 1.0}


def test_beam_loss_removes_whole_beams_and_only_those_that_had_returns() -> None:
    values = torch.full((3, 40, 30), math.nan)
    values[:, 10:20, ::3] = 0.4
    found = broken(values, "lidar", "beam-loss", 3)
    left = torch.isfinite(found).any(dim=0).sum(dim=1)
    assert sorted(left[10:20].tolist()) == [0] * 6 + [10] * 4
    assert int(left.sum()) == 40


def test_jitter_moves_each_beam_by_itself_and_changes_no_return() -> None:
    values = torch.full((3, 60, 100), math.nan)
    values[:, :, 50] = torch.linspace(0.1, 0.9, 60)[None]
    found = broken(values, "lidar", "lidar-jitter", 3)
    place = torch.isfinite(found[0]).float().argmax(dim=1)
    assert torch.isfinite(found[0]).sum(dim=1).tolist() == [1] * 60
    assert same(found[0].nansum(dim=1), values[0].nansum(dim=1))
    assert float((place - 50).float().std()) == pytest.approx(2, rel=0.4)


def test_events_only_gain_noise() -> None:
    values = torch.zeros(2, 100, 100)
    found = broken(values, "event", "event-noise", 5)
    assert float((found > 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert bool((broken(torch.ones(2, 10, 10), "event", "event-noise", 5) == 1).all())


def test_low_resolution_shows_blocks() -> None:
    values = torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(0))
    found = broken(values, "event", "low-resolution", 3)
    assert same(found, values[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


@pytest.mark.parametrize(("fault", "value"), [("black", 0.0), ("saturated", 1.0)])
def test_black_and_saturated_cover_the_frame_from_one_side(fault: str, value: float) -> None:
    values = torch.full((3, 50, 50), 0.5)
    for severity in SEVERITIES:
        hit = (broken(values, "rgb", fault, severity) == value).all(dim=0)
        assert float(hit.float().mean()) == pytest.approx(severity / 5)
        lines = hit.all(dim=0) | hit.all(dim=1)
        assert int(lines.sum()) == 10 * severity
        assert bool(lines[0]) or bool(lines[-1])
    assert bool((broken(values, "rgb", fault, 5) == value).all())


def test_exposure_multiplies_the_signal_and_clips() -> None:
    values = torch.tensor([[[0.1, 0.2, 0.9]]]).expand(3, 1, 3)
    found = broken(values, "rgb", "over-exposure", 2)
    assert found[0, 0].tolist() == pytest.approx([0.22, 0.44, 1.0])
    dark = broken(torch.full((3, 100, 100), 0.8), "rgb", "under-exposure", 5)
    assert float(dark.mean()) == pytest.approx(0.064, abs=0.002)
    assert float(dark.std()) == pytest.approx(math.sqrt(0.064 / 400), rel=0.1)


def test_drift_is_a_ramp_in_standard_deviations() -> None:
    values = torch.full((1, 30, 200), 0.2)
    ramp = (broken(values, "thermal", "thermal-drift", 3) - 0.2)[0]
    assert float(ramp.std(dim=0).max()) < 1e-6  # each column drifts as a whole
    ends = sorted([float(ramp[0, :20].mean()), float(ramp[0, -20:].mean())])
    assert ends == pytest.approx([0.05 * 0.25, 0.95 * 0.25], abs=0.03)


def test_fog_and_rain_brighten_and_flatten() -> None:
    values = scene("rgb")
    for fault in ("fog", "rain"):
        found = broken(values * 0.4, "rgb", fault, 4)
        assert float(found.mean()) > float(values.mean() * 0.4) + 0.1
    spread = [float(broken(values, "rgb", "fog", s).std()) for s in SEVERITIES]
    assert spread[-1] < 0.5 * spread[0]


def test_motion_blur_keeps_the_mean_and_smears_an_edge() -> None:
    values = torch.zeros(3, 60, 60)
    values[:, :, 30:] = 1.0
    values[:, 30:, :30] = 0.5
    found = broken(values, "rgb", "motion-blur", 5)
    assert float(found.mean()) == pytest.approx(float(values.mean()), abs=0.03)
    assert len(found[0].unique()) > 4


def test_gaussian_noise_has_its_standard_deviation_and_makes_no_measurements() -> None:
    values = torch.full((1, 200, 200), 50.0)
    values[:, :50] = math.nan
    found = broken(values, "depth", "gaussian", 3)
    assert same(found[:, :50], values[:, :50])
    assert float((found - values)[:, 50:].std()) == pytest.approx(0.7 * 5.0, rel=0.05)


# ---------------------------------------------------------------- which sensor can have which


def test_a_third_of_the_kinds_is_held_out_and_every_family_has_both() -> None:
    assert set(seen()) | set(unseen()) == set(FAULTS)
    assert not set(seen()) & set(unseen())
    assert len(unseen()) / len(FAULTS) == pytest.approx(1 / 3, abs=0.05)
    families = {fault.family for fault in FAULTS.values()}
    assert families == {"noise", "blur", "geometry", "loss", "level", "time"}
    for family in families:
        names = {name for name, fault in FAULTS.items() if fault.family == family}
        assert names & set(HELD_OUT)
        assert names - set(HELD_OUT)


def test_the_documentation_lists_every_fault_as_it_is() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs/protocols.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    table = {row[0].split("`")[1]: row for row in rows if len(row) == 5}
    assert list(table) == list(FAULTS)
    for name, fault in FAULTS.items():
        assert table[name][0].endswith("○") == (name in HELD_OUT)
        assert table[name][1] == fault.family
        percent = "%" in table[name][3]
        for value in fault.values if not fault.removes else ():
            assert f"{100 * value if percent else value:g}" in table[name][3]


@pytest.mark.parametrize("modality", SPECS)
def test_every_sensor_has_faults_of_both_sorts(modality: str) -> None:
    known = set(applicable(SPECS[modality], modality))
    assert {"dropped", "frozen", "time-offset", "black", "shift", "rotation", "dead-rows"} <= known
    assert known & set(unseen())


def test_the_spec_decides_what_a_sensor_can_have() -> None:
    kinds = {m: kind(spec, m) for m, spec in SPECS.items()}
    assert kinds == {
        "rgb": "color", "depth": "distance", "lidar": "returns", "event": "events", "thermal": "intensity",
        "radar": "returns", "nir": "intensity", "aolp": "other", "dolp": "other", "sonar": "intensity",
        "gain": "intensity", "unbounded": "intensity", "labels": "distance",
    }  # fmt: skip
    assert kind(dataclasses.replace(BUILTIN["lidar"], missing=None), "lidar") == "returns"
    assert kind(sensor_spec("infrared", {"like": "thermal", "colormap": "iron"})) == "intensity"
    assert "fog" not in applicable(BUILTIN["lidar"], "lidar")
    assert "gaussian" not in applicable(BUILTIN["event"], "event")


def test_a_sensor_with_automatic_gain_shows_no_level_only_contrast() -> None:
    values = scene("gain")
    flat = broken(values, "gain", "black", 5)
    assert float(flat.abs().max()) < 1e-6
    assert float(broken(values, "gain", "fog", 5).std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rgb:fgo:3", "unknown fault 'fgo'; did you mean 'fog'?"),
        ("rgb:fog:6", "the severity of rgb:fog is 6; it must be 1 to 5."),
        ("rgb:fog:0", "it must be 1 to 5."),
        ("rgb:fog:high", "'high'; it must be a whole number from 1 to 5."),
        ("rgb:fog", "is no fault; write SENSOR:NAME:SEVERITY"),
        ("", "is no fault"),
    ],
)
def test_a_false_fault_gets_one_clear_sentence(text: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        SensorFault.parse(text)
    assert sentence in str(caught.value)


def test_a_fault_that_a_sensor_cannot_have_is_refused_with_those_it_can() -> None:
    with pytest.raises(RequestError, match="lidar cannot have the fault 'fog'; it can have gaussian, shift"):
        broken(scene("lidar"), "lidar", "fog")
    sample = Sample({"rgb": scene("rgb")}, id="a")
    with pytest.raises(RequestError, match="there is no sensor 'rbg' for the fault fog; did you mean 'rgb'"):
        break_sample(sample, SPECS, [SensorFault.parse("rbg:fog:3")])


# ---------------------------------------------------------------- samples, time, training


def test_dropped_is_an_absent_key_and_the_last_sensor_cannot_be_dropped() -> None:
    sample = Sample({"rgb": scene("rgb"), "depth": scene("depth")}, id="a")
    left = break_sample(sample, SPECS, [SensorFault.parse("rgb:dropped:5")])
    assert list(left.images) == ["depth"]
    assert list(sample.images) == ["rgb", "depth"]
    with pytest.raises(DataError, match="frame 'a' has no sensor left"):
        break_sample(left, SPECS, [SensorFault.parse("depth:dropped:1")])
    assert break_sample(left, SPECS, [SensorFault.parse("rgb:fog:3")]).images.keys() == {"depth"}


def test_faults_in_time_go_back_in_the_sequence() -> None:
    assert [earlier_index(i, "frozen", 4) for i in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert [earlier_index(i, "time-offset", 2) for i in range(5)] == [0, 0, 0, 1, 2]


@pytest.fixture
def frames(tmp_path: Path) -> BrokenFrames:
    root = write_dataset(tmp_path / "data", test=6)
    (root / "depth/test/test1.png").unlink()
    sensors = {m: BUILTIN[m] for m in ("rgb", "depth", "thermal")}
    return BrokenFrames(open_dataset(f"folder:{root}").frames("test"), sensors, None, seed=3)


def test_a_stale_frame_is_an_earlier_one_of_the_same_split(frames: BrokenFrames) -> None:
    def clean(index: int, sensor: str) -> Tensor:
        sample = read_frame(frames.frames[index], frames.sensors)
        return frames.sensors[sensor].normalized(sample.images[sensor])

    def shown(index: int, text: str) -> Tensor:
        found = frames.image(frames.frames[index].id, SensorFault.parse(text))
        assert found is not None
        return found

    assert same(shown(5, "rgb:frozen:2"), clean(4, "rgb"))
    assert same(shown(5, "rgb:frozen:5"), clean(0, "rgb"))
    assert same(shown(4, "rgb:frozen:1"), clean(4, "rgb"))
    assert same(shown(5, "thermal:time-offset:2"), clean(3, "thermal"))
    assert same(shown(0, "thermal:time-offset:5"), clean(0, "thermal"))  # the first frame has no earlier one
    assert same(shown(2, "depth:time-offset:1"), clean(0, "depth"))  # frame 1 was never recorded
    assert frames.image("test2", SensorFault.parse("depth:dropped:1")) is None


def test_what_breaks_depends_on_the_frame_and_not_on_order_or_company(frames: BrokenFrames) -> None:
    faults = [SensorFault.parse(t) for t in ("rgb:gaussian:3", "depth:shift:4", "rgb:frozen:3", "thermal:rain:2")]
    asked = [(f.id, fault) for f in frames.frames for fault in faults if fault.sensor in f.files]
    forwards = {key: frames.image(*key) for key in asked}
    other = BrokenFrames(frames.frames, frames.sensors, None, seed=3)
    for key in reversed(asked):
        one, two = forwards[key], other.image(*key)
        assert one is not None
        assert two is not None
        assert same(one, two)


def sample_of(*modalities: str) -> Sample:
    return Sample({m: scene(m) for m in modalities}, torch.zeros(48, 64, dtype=torch.int64), "a")


def test_training_draws_seen_faults_of_every_sensor() -> None:
    modalities = ("rgb", "depth", "lidar", "event", "thermal")
    drawn = [random_fault(modalities, SPECS, np.random.default_rng(seed), earlier=True) for seed in range(600)]
    assert {fault.name for fault in drawn} == set(seen()) - {"dropped"}
    assert {fault.severity for fault in drawn} == {1, 2, 3, 4, 5}
    counts = [sum(fault.sensor == m for fault in drawn) for m in modalities]
    assert min(counts) > 80
    for fault in drawn:
        fault.check(SPECS)
    assert drawn == [random_fault(modalities[::-1], SPECS, np.random.default_rng(s), earlier=True) for s in range(600)]
    without = {random_fault(modalities, SPECS, np.random.default_rng(seed)).name for seed in range(600)}
    assert without == set(seen()) - {"dropped", "frozen"}


def test_a_training_sample_has_a_broken_copy_only_where_the_recipe_asks_for_it() -> None:
    sample = sample_of("rgb", "depth")
    config = DataConfig(crop=32, photometric=0.0)

    def drawn(config: DataConfig, seed: int) -> Sample:
        return training_sample(sample, SPECS, config, np.random.default_rng(seed))

    for seed in range(20):
        plain, rare = drawn(config, seed), drawn(dataclasses.replace(config, faults=1e-9), seed)
        faulty = drawn(dataclasses.replace(config, faults=1.0), seed)
        assert not plain.broken
        assert not rare.broken
        ((modality, (image, severity)),) = faulty.broken.items()
        assert 1 <= severity <= 5
        assert image.shape == plain.images[modality].shape
        assert not same(image, plain.images[modality]), "on the crop, every fault shows"
        for other in (rare, faulty):  # the frame itself is what it always was
            assert all(same(plain.images[m], other.images[m]) for m in plain.images)
            assert plain.label is not None
            assert other.label is not None
            assert torch.equal(plain.label, other.label)
    with pytest.raises(RequestError, match=r"data.faults is 1.5, but it must be between 0 and 1"):
        Recipe(data=DataConfig(faults=1.5))


def test_a_broken_copy_goes_through_the_same_photometric_changes() -> None:
    sample = sample_of("rgb")
    config = DataConfig(crop=32, faults=1.0)
    for seed in range(8):
        loud = training_sample(sample, SPECS, config, np.random.default_rng(seed))
        image, _ = loud.broken["rgb"]
        quiet = training_sample(
            sample, SPECS, dataclasses.replace(config, photometric=0.0), np.random.default_rng(seed)
        )
        if same(loud.images["rgb"], quiet.images["rgb"]):
            assert same(image, quiet.broken["rgb"][0])
        else:
            assert not same(image, quiet.broken["rgb"][0])


def test_broken_copies_are_stacked_by_sensor_and_know_their_frames() -> None:
    one, two, three = (sample_of("rgb", "depth") for _ in range(3))
    a, b, c = (torch.full_like(one.images[m], v) for m, v in (("rgb", 1.0), ("depth", 2.0), ("rgb", 3.0)))
    batch = Batch.stack(
        [
            dataclasses.replace(one, broken={"rgb": (a, 4)}),
            dataclasses.replace(two, broken={"depth": (b, 1)}),
            dataclasses.replace(three, broken={"rgb": (c, 5)}),
        ]
    ).to("cpu")
    assert batch.broken is not None
    assert batch.broken.frames["rgb"].tolist() == [0, 2]
    assert batch.broken.severities["rgb"].tolist() == [4, 5]
    assert torch.equal(batch.broken.images["rgb"], torch.stack([a, c]))
    assert batch.broken.frames["depth"].tolist() == [1]
    assert Batch.stack([one, two]).broken is None


def test_training_frames_can_be_stale_and_are_the_same_in_any_worker(frames: BrokenFrames) -> None:
    classes = Classes(("a", "b", "c"), ((0, 0, 0),) * 3)
    config = DataConfig(crop=32, faults=1.0)
    reader = TrainingFrames(frames.frames, frames.sensors, classes, config, seed=0)
    for index in range(6):
        one, two = reader[0, index], reader[0, index]
        assert isinstance(one, Sample)
        assert isinstance(two, Sample)
        assert one.broken
        assert one.broken.keys() == two.broken.keys()
        assert all(
            same(one.broken[m][0], two.broken[m][0]) and one.broken[m][1] == two.broken[m][1] for m in one.broken
        )
    earlier = partial(earlier_values, frames.frames, frames.sensors, 3)
    stale = earlier("rgb", "frozen", 2)
    assert stale is not None
    assert same(stale, read_frame(frames.frames[2], frames.sensors).images["rgb"])


def test_workers_break_the_same_pixels(frames: BrokenFrames) -> None:
    class Reader(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(frames.frames)

        def __getitem__(self, index: int) -> Sample:
            frame = frames.frames[index]
            image = frames.image(frame.id, SensorFault.parse("rgb:gaussian:3"))
            assert image is not None
            return Sample({"rgb": image}, id=frame.id)

    def images(workers: int, batch: int) -> Tensor:
        loader = evaluation_loader(Reader(), batch, workers)  # type: ignore[arg-type]
        return torch.cat([b.images["rgb"] for b in batches(loader)])

    alone = images(0, 1)
    assert torch.equal(alone, images(0, 4))
    assert torch.equal(alone, images(2, 2))
