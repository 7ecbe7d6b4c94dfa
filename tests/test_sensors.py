"""What a sensor's numbers mean: stored values to physical ones, physical ones to normalised ones."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from mlesam.errors import DataError, RequestError
from mlesam.inference.segmenter import picture
from mlesam.sensors import BUILTIN, SensorSpec, canonical_order, sensor_spec

NAMES = ("rgb", "depth", "lidar", "event", "thermal", "radar", "nir", "aolp", "dolp")
SIZE = (6, 9)


def numbers(dtype: str, *channels: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    if dtype == "float32":
        return rng.uniform(0, 1, (*SIZE, *channels)).astype(np.float32)
    return rng.integers(1, np.iinfo(dtype).max, (*SIZE, *channels), dtype=dtype)


# ---------------------------------------------------------------- the built-in sensors


def test_every_sensor_of_the_design_is_built_in() -> None:
    assert set(BUILTIN) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_builtin_sensor_is_complete_and_reads_a_file(name: str) -> None:
    spec = sensor_spec(name)
    assert spec == BUILTIN[name]
    assert len(spec.mean) in (1, spec.channels)
    assert len(spec.std) in (1, spec.channels)
    assert spec.range[0] <= min(spec.mean)
    assert max(spec.mean) <= spec.range[1]
    for dtype in ("uint8", "uint16", "float32"):
        values = spec.encode(numbers(dtype, spec.channels))
        assert values.shape == (spec.channels, *SIZE)
        assert values.dtype == torch.float32
        normalized = spec.normalized(values)
        assert normalized.shape == values.shape
        assert normalized.isfinite().all()


def test_sparse_sensors_are_never_mixed_with_the_emptiness_around_them() -> None:
    for name in ("lidar", "event", "radar"):
        assert BUILTIN[name].interpolation == "nearest"
        assert BUILTIN[name].mean == (0.0,)  # empty must not look like a measurement
    assert BUILTIN["depth"].interpolation == "nearest"
    assert BUILTIN["aolp"].photometric == "none"


def test_modalities_have_one_order() -> None:
    names = ["fog", "thermal", "Aux", "rgb", "depth"]
    for order in itertools.permutations(names):
        assert canonical_order(order) == ("rgb", "depth", "thermal", "Aux", "fog")


# ---------------------------------------------------------------- declared sensors


def test_an_unknown_sensor_has_one_channel_of_the_files_full_scale() -> None:
    assert sensor_spec("fog") == SensorSpec()


def test_like_starts_from_a_builtin_sensor() -> None:
    spec = sensor_spec("infrared", {"like": "depth", "range": [0, 20]})
    assert spec == dataclasses.replace(BUILTIN["depth"], range=(0.0, 20.0))


def test_a_declared_field_stands_above_the_builtin_one() -> None:
    spec = sensor_spec("depth", {"scale": 0.01, "missing": None, "dtype": "uint16"})
    assert spec == dataclasses.replace(BUILTIN["depth"], scale=0.01, missing=None, dtype="uint16")


def test_statistics_follow_a_declared_number_of_channels() -> None:
    spec = sensor_spec("rgb", {"channels": 12})
    assert spec.channels == 12
    assert spec.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert sensor_spec("fog", {"channels": 3, "mean": [1, 2, 3]}).mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"like": "dept"}, "sensors.fog.like is 'dept'; did you mean 'depth'?"),
        ({"like": ["rgb"]}, "sensors.fog.like is ['rgb']"),
        ({"like": 3}, "sensors.fog.like is 3"),
        ({"chanels": 2}, "unknown key 'sensors.fog.chanels'; did you mean 'channels'?"),
        ({"channels": 0}, "sensors.fog: a sensor has 0 channels"),
        ({"channels": "two"}, "sensors.fog.channels"),
        ({"channels": 3, "mean": [1, 2]}, "sensors.fog: mean has 2 values for 3 channels"),
        ({"channels": 2, "std": [1, 1, 1]}, "sensors.fog: std has 3 values for 2 channels"),
        ({"mean": 0.5}, "sensors.fog.mean"),
        ({"mean": [float("inf")]}, "sensors.fog: mean"),
        ({"std": [0]}, "sensors.fog: std is [0.0]"),
        ({"std": [float("nan")]}, "sensors.fog.std"),
        ({"std": [float("inf")]}, "sensors.fog: std"),
        ({"range": [1, 1]}, "sensors.fog: range is [1.0, 1.0]"),
        ({"range": [2, 1]}, "sensors.fog: range"),
        ({"range": [1]}, "sensors.fog.range"),
        ({"scale": 0}, "sensors.fog: scale is 0.0"),
        ({"scale": float("inf")}, "sensors.fog: scale"),
        ({"interpolation": "cubic"}, "sensors.fog.interpolation is 'cubic'"),
        ({"photometric": "colour"}, "did you mean 'color'?"),
        ({"normalize": "batch"}, "sensors.fog.normalize"),
        ({"dtype": "uint32"}, "did you mean 'uint8'?"),
        ({"missing": "none"}, "sensors.fog.missing"),
    ],
)
def test_a_wrong_spec_is_refused_by_name(declared: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        sensor_spec("fog", declared)
    assert expected in str(error.value)


def test_statistics_that_are_not_finite_are_refused() -> None:
    """NaN compares as false with everything, and would make every pixel a hole."""
    for values in ({"std": (float("nan"),)}, {"mean": (float("nan"),)}, {"range": (float("nan"), 1.0)}):
        with pytest.raises(RequestError):
            SensorSpec(**values)


# ---------------------------------------------------------------- stored numbers to physical ones


def test_sixteen_bit_depth_becomes_metres_and_its_holes_nothing() -> None:
    stored = np.array([[0, 1, 1500], [65535, 5000, 0]], dtype=np.uint16)
    values = BUILTIN["depth"].encode(stored)
    expected = np.array([[np.nan, 0.001, 1.5], [65.535, 5.0, np.nan]], dtype=np.float32)
    np.testing.assert_allclose(values[0].numpy(), expected, rtol=1e-6)
    normalized = BUILTIN["depth"].normalized(values)[0].numpy()
    np.testing.assert_allclose(normalized, np.nan_to_num((expected - 5) / 5), rtol=1e-5)


def test_a_hole_looks_like_an_average_measurement() -> None:
    spec = SensorSpec(missing=0.0, mean=(0.5,), std=(0.25,))
    stored = np.array([[0, 128]], dtype=np.uint8)
    normalized = spec.normalized(spec.encode(stored))
    assert normalized[0, 0, 0] == 0
    assert float(normalized[0, 0, 1]) == pytest.approx((128 / 255 - 0.5) / 0.25, abs=1e-5)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_a_whole_number_without_a_scale_is_a_fraction_of_full_scale(dtype: str, top: int) -> None:
    stored = numbers(dtype)
    np.testing.assert_allclose(SensorSpec().encode(stored)[0].numpy(), stored / top, rtol=1e-6)


def test_a_floating_point_file_is_in_the_unit_already() -> None:
    stored = np.array([[1.5, np.nan, np.inf, -np.inf, 0.0, 250.0, -3.0]], dtype=np.float32)
    values = BUILTIN["depth"].encode(stored)[0, 0].numpy()
    np.testing.assert_array_equal(values, np.array([1.5, np.nan, np.nan, np.nan, np.nan, 100.0, 0.0], np.float32))
    assert BUILTIN["depth"].normalized(torch.from_numpy(values)[None, None])[0, 0, 1:5].tolist() == [0, 0, 0, 0]


def test_nothing_in_a_file_becomes_a_value_that_is_not_finite() -> None:
    stored = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38]], dtype=np.float32)
    spec = SensorSpec(range=(-np.inf, np.inf))
    assert spec.normalized(spec.encode(stored)[..., :3]).tolist() == [[[0, 0, 0]]]
    assert BUILTIN["thermal"].normalized(BUILTIN["thermal"].encode(stored)).isfinite().all()


def test_values_out_of_range_are_clipped_in_the_unit_and_not_as_stored() -> None:
    spec = SensorSpec(unit="m", scale=0.001, range=(1.0, 2.0), missing=65535)
    stored = np.array([[0, 999, 1500, 2001, 65534, 65535]], dtype=np.uint16)
    np.testing.assert_allclose(spec.encode(stored)[0, 0].numpy(), [1, 1, 1.5, 2, 2, np.nan], rtol=1e-6)


def test_a_pixel_is_a_hole_when_all_of_its_channels_say_so() -> None:
    stored = np.array([[[0, 0, 0], [0, 10, 0], [10, 10, 10]]], dtype=np.uint8)
    values = BUILTIN["lidar"].encode(stored)
    np.testing.assert_array_equal(values.isnan().numpy(), np.array([[[1, 0, 0]]] * 3, dtype=bool))
    assert values[0, 0, 1] == 0


def test_zero_events_are_a_measurement() -> None:
    assert BUILTIN["event"].encode(np.zeros((*SIZE, 2), np.uint8)).isfinite().all()


def test_encoding_changes_no_caller_array() -> None:
    for spec in (BUILTIN["depth"], BUILTIN["thermal"], SensorSpec(normalize="frame")):
        stored = numbers("float32")
        stored[0, 0] = 0
        before = stored.copy()
        spec.normalized(spec.encode(stored)).add_(1)
        np.testing.assert_array_equal(stored, before)


@pytest.mark.parametrize("channels", [12, 100])
def test_sensors_may_have_many_channels(channels: int) -> None:
    means = tuple(float(i) for i in range(channels))
    spec = sensor_spec("bands", {"channels": channels, "mean": means, "std": [2.0], "range": [-1e4, 1e4]})
    stored = np.random.default_rng(0).normal(0, 100, (*SIZE, channels)).astype(np.float32)
    normalized = spec.normalized(spec.encode(stored)).numpy()
    np.testing.assert_allclose(normalized, np.moveaxis((stored - np.array(means)) / 2, -1, 0), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- files that do not fit


def test_an_8_bit_copy_of_16_bit_data_is_refused() -> None:
    spec = sensor_spec("depth", {"dtype": "uint16"})
    with pytest.raises(DataError, match=r"^a\.png holds 8-bit values, but this sensor's files are uint16"):
        spec.encode(numbers("uint8"), "a.png")
    with pytest.raises(DataError, match="holds 16-bit values"):
        sensor_spec("thermal", {"dtype": "uint8"}).encode(numbers("uint16"))
    spec.encode(numbers("uint16"))


def test_grey_saved_as_colour_is_grey() -> None:
    grey = numbers("uint8", 1)
    for stored in (np.repeat(grey, 3, axis=2), np.dstack([grey, grey, grey, numbers("uint8")])):
        torch.testing.assert_close(BUILTIN["thermal"].encode(stored), BUILTIN["thermal"].encode(grey), rtol=0, atol=0)


def test_an_alpha_channel_is_left_out_of_a_colour_picture() -> None:
    stored = numbers("uint8", 4)
    expected = BUILTIN["rgb"].encode(np.ascontiguousarray(stored[..., :3]))
    torch.testing.assert_close(BUILTIN["rgb"].encode(stored), expected, rtol=0, atol=0)


def test_a_fourth_channel_of_floating_point_numbers_is_no_alpha() -> None:
    with pytest.raises(DataError, match="has 4 channels, but its sensor has 3"):
        BUILTIN["rgb"].encode(numbers("float32", 4), "a.tif")


def test_a_monochrome_camera_stands_in_for_a_colour_camera() -> None:
    grey = numbers("uint8")
    values = BUILTIN["rgb"].encode(grey)
    assert (values == values[:1]).all()
    np.testing.assert_allclose(values[0].numpy(), grey / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("rgb", 2), ("rgb", 5), ("depth", 2), ("thermal", 3), ("lidar", 1), ("event", 3), ("aolp", 1)],
)
def test_a_wrong_number_of_channels_is_refused_by_name(name: str, channels: int) -> None:
    expected = f"a.png has {channels} channels, but its sensor has {BUILTIN[name].channels}"
    with pytest.raises(DataError) as error:
        BUILTIN[name].encode(numbers("uint8", channels), "a.png")
    assert expected in str(error.value)
    assert ("colormap" in str(error.value)) == (BUILTIN[name].channels == 1 and channels == 3)


# ---------------------------------------------------------------- per-frame normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_automatic_gain_is_undone_frame_by_frame(channels: int) -> None:
    spec = SensorSpec(channels=channels, normalize="frame")
    stored = numbers("uint16", channels)
    dark = (stored // 7).astype(np.uint16)
    bright = spec.normalized(spec.encode(stored)).double().numpy()
    np.testing.assert_allclose(bright.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(bright.std(axis=(1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(spec.normalized(spec.encode(dark)).numpy(), bright, atol=1e-3)


def test_holes_have_no_part_in_a_frames_statistics() -> None:
    spec = SensorSpec(normalize="frame", missing=0.0)
    stored = numbers("uint16").astype(np.uint16)
    stored[:3] = 0
    values = spec.encode(stored)[0].numpy()
    measured = stored[3:] / 65535
    assert np.isnan(values[:3]).all()
    np.testing.assert_allclose(values[3:], (measured - measured.mean()) / measured.std(), atol=1e-4)
    assert spec.normalized(torch.from_numpy(values)[None])[0, :3].abs().max() == 0


def test_a_flat_or_empty_frame_is_no_noise() -> None:
    spec = SensorSpec(normalize="frame", missing=0.0, std=(0.25,))
    flat = np.full(SIZE, 30000, np.uint16)
    flat[0, 0] += 1
    assert spec.normalized(spec.encode(flat)).abs().max() < 0.01
    empty = spec.normalized(spec.encode(np.zeros(SIZE, np.uint16)))
    assert (empty == 0).all()


def test_colour_of_any_range_is_drawn() -> None:
    """Floating-point colour without a declared range has none that ends."""
    spec = sensor_spec("rgb", {"range": [float("-inf"), float("inf")]})
    stored = np.linspace(0, 900, 48, dtype=np.float32).reshape(4, 4, 3)
    drawn = picture(spec.encode(stored).numpy(), stored, spec)
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert len(np.unique(drawn)) > 30
