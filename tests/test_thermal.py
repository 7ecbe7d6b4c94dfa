"""Thermal cameras: counts to temperatures, there and back, and pictures that hold no temperatures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlesam.config import build
from mlesam.errors import DataError, RequestError
from mlesam.sensors.files import write_array
from mlesam.sensors.thermal import Planck, ThermalEncoder, linear_temperature, planck_temperature

CONSTANTS = {
    "r1": 21106.77,
    "b": 1501.0,
    "f": 1.0,
    "o": -7340.0,
    "r2": 0.012545258,
}  # the defaults of the R package Thermimage
CAMERA = Planck(**CONSTANTS)


def seen_counts(celsius: float, emissivity: float, reflected: float, transmission: float, atmosphere: float) -> float:
    """The measurement formula forwards: radiances of three black bodies, mixed, as counts."""

    def body(t: float) -> float:
        return 21106.77 / (0.012545258 * (math.e ** (1501.0 / (t + 273.15)) - 1.0))

    total = emissivity * transmission * body(celsius)
    total += (1 - emissivity) * transmission * body(reflected) + (1 - transmission) * body(atmosphere)
    return total + 7340.0


def test_linear_counts_of_known_temperatures() -> None:
    counts = np.array([[27315, 30315, 37315, 0, 65535]], np.uint16)
    np.testing.assert_allclose(linear_temperature(counts)[0], [0, 30, 100, np.nan, 382.2], atol=1e-4)
    coarse = np.array([7500, 9329, 16383], np.uint16)
    np.testing.assert_allclose(linear_temperature(coarse, 0.04), [26.85, 100.01, 382.17], atol=1e-4)
    assert linear_temperature(counts).dtype == np.float32


def test_planck_counts_computed_by_hand() -> None:
    """18109 + O = 10769; R1 / (R2 10769) = 156.23; ln(157.23) = 5.0577; 1501 / 5.0577 = 296.78 K."""
    celsius = planck_temperature(np.array([18109], np.uint16), CAMERA)
    assert celsius[0] == pytest.approx(296.78 - 273.15, abs=0.01)
    assert celsius.dtype == np.float32


def test_a_reflecting_surface_computed_by_hand() -> None:
    """At 20 degrees a black body gives 10119 + 7340; with e = 0.5 half of what is seen is the surroundings."""
    reflected = 21106.77 / (0.012545258 * (math.exp(1501 / 293.15) - 1))
    assert reflected == pytest.approx(10116, abs=5)
    seen = np.array([0.5 * (18109 - 7340) + 0.5 * reflected + 7340])
    assert planck_temperature(seen, CAMERA, emissivity=0.5, reflected=20)[0] == pytest.approx(23.63, abs=0.01)


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-20, 500), st.floats(0.2, 1), st.floats(-30, 60), st.floats(0.3, 1), st.floats(-30, 60)
)  # fmt: skip
def test_counts_and_temperature_there_and_back(
    celsius: float, emissivity: float, reflected: float, transmission: float, atmosphere: float
) -> None:
    counts = np.array([seen_counts(celsius, emissivity, reflected, transmission, atmosphere)])
    found = planck_temperature(counts, CAMERA, emissivity, reflected, transmission, atmosphere)
    assert found[0] == pytest.approx(celsius, abs=1e-3)


def test_the_constants_of_the_gige_manuals_are_the_same_formula() -> None:
    """T = B / ln(R / (S - O) + F) with R = R1 / R2 and O of the other sign."""
    counts = np.arange(10_000, 40_000, 777)
    manual = 1501.0 / np.log((21106.77 / 0.012545258) / (counts - 7340.0) + 1.0) - 273.15
    np.testing.assert_allclose(planck_temperature(counts, CAMERA), manual, rtol=1e-6)
    short = Planck(r1=21106.77 / 0.012545258, b=1501.0, f=1.0, o=-7340.0)
    np.testing.assert_allclose(planck_temperature(counts, short), manual, rtol=1e-6)


def test_a_black_body_gives_its_own_counts() -> None:
    for celsius in (-10.0, 20.0, 300.0):
        assert planck_temperature(np.array([CAMERA.counts(celsius)]), CAMERA)[0] == pytest.approx(celsius, abs=1e-4)


def test_hotter_is_more_and_emissivity_raises_what_is_hotter_than_its_surroundings() -> None:
    counts = np.arange(9000, 60_000, 500)
    assert (np.diff(planck_temperature(counts, CAMERA)) > 0).all()
    hot = np.array([30_000])
    assert planck_temperature(hot, CAMERA, emissivity=0.8)[0] > planck_temperature(hot, CAMERA)[0] + 5


def test_counts_that_no_temperature_gives_are_holes() -> None:
    counts = np.array([0, 100, 7340, 18109], np.uint16)
    assert np.isnan(planck_temperature(counts, CAMERA)).tolist() == [True, True, True, False]
    below = np.array([seen_counts(-40, 0.3, 60, 1, 20) - 2500])  # colder than all that the surroundings reflect in it
    assert np.isnan(planck_temperature(below, CAMERA, emissivity=0.3, reflected=60)).all()


# ---------------------------------------------------------------- the encoder


def scene(bits: int = 16) -> np.ndarray:
    counts = np.random.default_rng(0).integers(7200, 7900, (6, 8)).astype(np.uint16)
    counts[0, 0], counts[5, 7] = 0, 2**bits - 1
    return counts


def test_a_saturated_pixel_stays_hot_unless_it_is_to_be_a_hole(tmp_path: Path) -> None:
    counts = scene(14)
    write_array(tmp_path / "a.png", counts)
    keep = build(ThermalEncoder, {"scale": 0.04, "bits": 14})
    assert keep.channels == ("temperature",)
    values = keep.encode(keep.read(tmp_path / "a.png"))
    assert values.shape == (6, 8, 1)
    assert values.dtype == np.float32
    assert values[5, 7, 0] == np.nanmax(values) == pytest.approx(382.17, abs=1e-3)
    assert np.isnan(values).sum() == 1
    np.testing.assert_allclose(values[1:5, :, 0], counts[1:5] * 0.04 - 273.15, atol=1e-4)
    hole = build(ThermalEncoder, {"scale": 0.04, "bits": 14, "saturated": "hole"})
    assert np.argwhere(np.isnan(hole.encode(counts)[..., 0])).tolist() == [[0, 0], [5, 7]]


def test_the_encoder_holds_the_cameras_constants(tmp_path: Path) -> None:
    counts = np.full((3, 4), 18109, np.uint16)
    write_array(tmp_path / "a.npy", counts)
    encoder = build(ThermalEncoder, {"formula": "planck", "planck": CONSTANTS, "emissivity": 0.95, "reflected": 15})
    expected = planck_temperature(counts, CAMERA, 0.95, 15)
    np.testing.assert_array_equal(encoder.encode(encoder.read(tmp_path / "a.npy"))[..., 0], expected)


def test_counts_beyond_the_sensors_bits_are_refused() -> None:
    with pytest.raises(DataError, match="counts up to 65535, but 14 bits end at 16383"):
        ThermalEncoder(bits=14).encode(scene(16))


def test_a_picture_of_holes_alone_is_one() -> None:
    assert np.isnan(ThermalEncoder().encode(np.full((3, 4), np.nan, np.float32))).all()
    assert np.isnan(ThermalEncoder().encode(np.zeros((3, 4), np.uint16))).all()


def test_a_wrong_scale_is_noticed() -> None:
    with pytest.raises(DataError, match=r"half of the thermal picture is below -19\d degrees .* 0\.04 K per count"):
        ThermalEncoder().encode(scene(14))


def test_pictures_without_temperatures_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "grey.png", np.zeros((4, 5), np.uint8))
    write_array(tmp_path / "color.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(DataError, match="8-bit values, a picture without temperatures"):
        ThermalEncoder().read(tmp_path / "grey.png")
    with pytest.raises(DataError, match="one channel"):
        ThermalEncoder().read(tmp_path / "color.png")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"formula": "plank"}, "did you mean 'planck'?"),
        ({"formula": "planck"}, "thermal: formula is planck, but the constants are missing"),
        ({"formula": "planck", "planck": {**CONSTANTS, "r1": 0}}, "thermal.planck: planck.r1 is 0.0"),
        ({"formula": "planck", "planck": {"r1": 9000, "b": 1400, "f": 1}}, "thermal.planck: planck.o is nan"),
        ({"planck": {**CONSTANTS, "r3": 0}}, "unknown key 'thermal.planck.r3'"),
        ({"emissivity": 0}, "thermal: emissivity is 0.0"),
        ({"transmission": 1.2}, "thermal: transmission is 1.2"),
        ({"reflected": -300}, "thermal: reflected is -300.0 degrees Celsius"),
        ({"scale": 0}, "thermal: scale is 0.0 degrees per count"),
        ({"bits": 20}, "thermal: bits is 20"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        build(ThermalEncoder, values, "thermal")
    assert expected in str(error.value)
