"""Statistics of bands in one pass, held against numpy on all of the values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlesam.data.dataset import Frame
from mlesam.data.statistics import PERCENTILES, BandStatistics, spaced, with_statistics
from mlesam.sensors import SensorSpec, sensor_spec

BANDS = 6


def frames(count: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Frames of different sizes whose bands differ in scale, and each of which has its own holes."""
    rng = np.random.default_rng(seed)
    offsets = np.array([0.0, 1e6, -3.0, 300.0, 1e-4, 5.0])[:, None, None]
    spreads = np.array([1.0, 0.5, 100.0, 0.01, 1e-5, 0.0])[:, None, None]
    made = []
    for i in range(count):
        size = (BANDS, 20 + 7 * i, 31)
        values = (offsets + spreads * (rng.normal(size=size) + i)).astype(np.float32)
        values[rng.random(size) < 0.1 * i] = np.nan
        values[:, :2] = np.nan
        made.append(values)
    return made


def measured(arrays: list[np.ndarray], **options: int) -> BandStatistics:
    statistics = BandStatistics(len(arrays[0]), **options)
    for array in arrays:
        statistics.add(torch.from_numpy(array))
    return statistics


def whole(arrays: list[np.ndarray]) -> np.ndarray:
    """All pixels at once, ``(C, pixels)`` float64."""
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1).astype(np.float64)


def test_they_are_numpys_on_the_whole_array() -> None:
    arrays = frames()
    values, found = whole(arrays), measured(arrays)
    spread = np.nanstd(values, axis=1)
    assert (found.frames, found.pixels) == (len(arrays), values.shape[1])
    np.testing.assert_array_equal(found.minimum, np.nanmin(values, axis=1))
    np.testing.assert_array_equal(found.maximum, np.nanmax(values, axis=1))
    np.testing.assert_allclose(found.mean, np.nanmean(values, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.std, spread, rtol=1e-9, atol=1e-9 * spread.max())
    np.testing.assert_allclose(
        found.std[1], spread[1], rtol=1e-9
    )  # sums of squares would lose it: 0.5 beside a million
    np.testing.assert_allclose(found.empty, np.isnan(values).mean(axis=1), rtol=1e-12)
    assert found.exact
    np.testing.assert_array_equal(found.percentiles(), np.nanpercentile(values, PERCENTILES, axis=1))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=5), seed=st.integers(0, 99))
def test_how_the_pixels_come_in_frames_changes_nothing(cuts: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(1000, 1, (2, 200)).astype(np.float32)
    values[1, ::3] = np.nan
    parts = [p[:, None] for p in np.split(values, sorted(cuts), axis=1)]
    one, many = measured([values[:, None]]), measured(parts)
    for name in ("count", "minimum", "maximum", "mean", "std", "empty"):
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), rtol=1e-12)
    np.testing.assert_array_equal(many.percentiles(), one.percentiles())


def test_a_band_without_a_measurement_has_no_statistics() -> None:
    arrays = frames()
    for array in arrays:
        array[2] = np.nan
    found = measured(arrays)
    assert found.empty[2] == 1
    for values in (found.minimum, found.maximum, found.mean, found.std, *found.percentiles()):
        assert np.isnan(values[2])
        assert np.isfinite(np.delete(values, 2)).all()
    spec = with_statistics(SensorSpec(channels=BANDS), found)
    assert (spec.mean[2], spec.std[2]) == (0.0, 1.0)  # its emptiness becomes 0 all the same
    nothing = BandStatistics(2)
    assert np.isnan(nothing.percentiles()).all()
    assert (with_statistics(SensorSpec(channels=2), nothing).std) == (1.0, 1.0)


def test_percentiles_of_many_pixels_come_from_a_uniform_sample_of_bounded_size() -> None:
    rng = np.random.default_rng(1)
    capacity = 3 * 4000
    # Each frame lies above the one before: a sample that favoured early or late frames would show in every percentile.
    arrays = [(rng.random((3, 100, 50)) + i).astype(np.float32) for i in range(20)]
    found = measured(arrays, capacity=capacity)
    assert not found.exact
    assert capacity / 3 * 0.45 < found.kept <= capacity / 3
    values = whole(arrays)
    for p, row in zip(PERCENTILES, found.percentiles(), strict=True):
        error = 100 * np.sqrt(p / 100 * (1 - p / 100) / found.kept)  # the one that is documented
        for band, value in enumerate(row):
            rank = 100 * (values[band] <= value).mean()
            assert abs(rank - p) < 4 * error + 100 / found.kept
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-12)  # all pixels, sample or not
    again = measured(arrays, capacity=capacity)
    np.testing.assert_array_equal(again.percentiles(), found.percentiles())


def test_a_capacity_below_one_pixel_keeps_none() -> None:
    found = measured([np.ones((3, 4, 4), np.float32)], capacity=0)
    assert found.kept == 0
    assert np.isnan(found.percentiles()).all()


def test_a_spec_takes_over_what_was_measured() -> None:
    arrays = frames()
    values = whole(arrays)
    spec = with_statistics(SensorSpec(channels=BANDS, range=(-np.inf, np.inf)), measured(arrays))
    np.testing.assert_allclose(spec.mean, np.nanmean(values, axis=1), rtol=1e-6)
    np.testing.assert_allclose(spec.std[:5], np.nanstd(values, axis=1)[:5], rtol=1e-6)
    assert spec.std[5] == 1  # a constant band: nothing to divide by
    only = with_statistics(SensorSpec(channels=BANDS), measured(arrays), ["std"])
    assert (only.mean, only.std) == (SensorSpec().mean, spec.std)


def test_a_sparse_sensor_keeps_emptiness_at_zero() -> None:
    returns = np.random.default_rng(0).uniform(1, 5, (1, 30, 30)).astype(np.float32)
    returns[0, 5:] = np.nan
    spec = with_statistics(sensor_spec("lidar", {"channels": 1}), measured([returns]))
    assert spec.mean == (0.0,)
    assert spec.std[0] == pytest.approx(np.sqrt(np.nanmean(returns.astype(np.float64) ** 2)), rel=1e-6)


def test_frames_are_picked_evenly() -> None:
    ten = [Frame(str(i), {}) for i in range(10)]
    assert [f.id for f in spaced(ten, 4)] == ["0", "3", "6", "9"]
    assert spaced(ten, None) == spaced(ten, 99) == ten
    assert spaced(ten, 1) == ten[:1]
