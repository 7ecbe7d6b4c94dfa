"""What the experiments under benchmarks/ compute besides training: schedules of a drive, and intervals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mlesam.world.drive import measuring

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from intervals import estimate, score
from schedules import SCHEDULES, outages, present, sources

SENSORS = ("rgb", "depth", "lidar", "thermal")


def test_at_their_own_rates_sensors_are_given_when_the_world_measures_them() -> None:
    given = sources("own rates, left out", 24, SENSORS, 0)
    assert present(given, SENSORS) == ["+".join(measuring(index, SENSORS)) for index in range(24)]
    measured = given >= 0
    assert (given[measured] == np.nonzero(measured)[0]).all()  # each from its own frame


@pytest.mark.parametrize("kind", ["own rates", "outages"])
def test_held_is_the_last_measurement_that_there_was(kind: str) -> None:
    absent, held = (sources(f"{kind}, {what}", 96, SENSORS, 3) for what in ("left out", "held"))
    assert (held >= 0).all()
    for column in range(len(SENSORS)):
        last = -1
        for index in range(96):
            last = max(last, absent[index, column])
            assert held[index, column] == last


@pytest.mark.parametrize("seed", range(10))
def test_in_an_outage_every_sensor_goes_once_and_comes_back_and_never_all_are_away(seed: int) -> None:
    away = outages(96, len(SENSORS), seed)
    assert not away[0].any()
    assert not away[-1].any()
    assert not away.all(axis=1).any()
    assert (np.diff(away.astype(int), axis=0) != 0).sum(axis=0).tolist() == [2] * len(SENSORS)
    assert ((away.sum(axis=0) >= 32) & (away.sum(axis=0) < 64)).all()
    assert np.array_equal(away, outages(96, len(SENSORS), seed))


def test_all_in_every_frame_is_what_a_schedule_starts_with() -> None:
    for schedule in SCHEDULES:
        assert (sources(schedule, 12, SENSORS, 0)[0] == 0).all()
    assert (sources(SCHEDULES[0], 12, SENSORS, 0) == np.arange(12)[:, None]).all()


def luck(seed: int, right: int, frames: int = 40) -> list[np.ndarray]:
    """Frames of two classes whose pixels are right more often or less, by luck."""
    rng = np.random.default_rng(seed)
    hits = rng.integers(right, 100, size=(frames, 2))
    matrices = np.zeros((frames, 2, 2), dtype=np.int64)
    for i in range(2):
        matrices[:, i, i], matrices[:, i, 1 - i] = hits[:, i], 100 - hits[:, i]
    return [matrices]


def test_an_estimate_is_the_mean_over_seeds_and_conditions() -> None:
    one, other = luck(0, 50), luck(1, 20)
    found = estimate({"0": one, "1": other})
    assert found["by_seed"] == {"0": round(score(one), 4), "1": round(score(other), 4)}
    assert found["miou"] == pytest.approx((score(one) + score(other)) / 2, abs=1e-4)
    assert found["interval"][0] <= found["miou"] <= found["interval"][1]
    assert estimate({"0": [*one, *other]})["miou"] == pytest.approx(found["miou"], abs=1e-4)


def test_a_difference_on_the_same_frames_is_surer_than_one_on_frames_drawn_apart() -> None:
    one = luck(0, 30)
    better = [c + 5 * np.eye(2, dtype=np.int64) for c in one]
    paired, apart = (estimate({"0": better}, {"0": one}, same_frames=same) for same in (True, False))
    assert paired["difference"] == apart["difference"] > 0
    widths = [float(np.diff(e["difference_interval"])[0]) for e in (paired, apart)]
    assert widths[0] < 0.3 * widths[1]
    assert estimate({"0": one}, {"0": one})["difference_interval"] == [0, 0]


def test_blocks_of_frames_that_are_alike_widen_an_interval() -> None:
    drive = [np.repeat(luck(4, 0, 10)[0], 12, axis=0)]
    one_by_one, in_blocks = (estimate({"0": drive}, block=block)["interval"] for block in (1, 12))
    assert np.diff(in_blocks) > 2 * np.diff(one_by_one)


def test_other_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        estimate({"0": luck(0, 50)}, {"1": luck(0, 50)})
