"""Polarisation cameras: Malus' law forwards, and back to what went in."""

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
from mlesam.sensors.polarization import (
    PolarizationEncoder,
    angle,
    angle_vector,
    degree,
    demosaic,
    doubled,
    stokes,
)

POLARIZERS = (0, 45, 90, 135)


def behind_polarizers(s0: np.ndarray, dolp: np.ndarray, aolp: np.ndarray) -> np.ndarray:
    """Malus' law: half of the unpolarised part, and cos^2 of the angle in between of the polarised part."""
    return np.stack([s0 * ((1 - dolp) / 2 + dolp * np.cos(np.radians(a) - aolp) ** 2) for a in POLARIZERS])


def light(seed: int = 0, size: tuple[int, int] = (20, 30)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, size), rng.uniform(0.02, 1, size), rng.uniform(0, math.pi, size)


def mosaic_of(pictures: np.ndarray, pattern: tuple[int, ...]) -> np.ndarray:
    raw = np.zeros(pictures.shape[1:], pictures.dtype)
    for y in range(raw.shape[0]):
        for x in range(raw.shape[1]):
            raw[y, x] = pictures[POLARIZERS.index(pattern[2 * (y % 2) + x % 2]), y, x]
    return raw


# ---------------------------------------------------------------- there and back


def test_random_light_comes_back_exactly() -> None:
    s0, dolp, aolp = light()
    parameters = stokes(behind_polarizers(s0, dolp, aolp))
    np.testing.assert_allclose(parameters[0], s0, rtol=1e-12)
    np.testing.assert_allclose(parameters[1], s0 * dolp * np.cos(2 * aolp), atol=1e-12)
    np.testing.assert_allclose(parameters[2], s0 * dolp * np.sin(2 * aolp), atol=1e-12)
    np.testing.assert_allclose(degree(parameters), dolp, rtol=1e-6)
    np.testing.assert_allclose(angle(parameters), aolp, atol=1e-6)
    np.testing.assert_allclose(angle_vector(parameters), [np.sin(2 * aolp), np.cos(2 * aolp)], atol=1e-6)
    for values in (degree(parameters), angle(parameters), angle_vector(parameters)):
        assert values.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.001, 1), st.floats(0, math.pi))
def test_half_a_turn_is_the_same_polarization(s0: float, dolp: float, aolp: float) -> None:
    one, two = (stokes(behind_polarizers(*(np.array([v]) for v in (s0, dolp, a)))) for a in (aolp, aolp + math.pi))
    np.testing.assert_allclose(angle_vector(one), angle_vector(two), atol=1e-6)
    found = float(angle(one)[0])
    assert 0 <= found < math.pi
    assert math.sin(found - aolp) == pytest.approx(0, abs=1e-5)


def test_angles_of_known_light() -> None:
    for a in POLARIZERS:
        parameters = stokes(behind_polarizers(np.array([1.0]), np.array([1.0]), np.radians([a])))
        assert np.degrees(angle(parameters)[0]) == pytest.approx(a, abs=1e-4)
    unpolarized = stokes(np.full((4, 1), 0.25))
    assert degree(unpolarized)[0] == 0
    assert np.isnan(angle(unpolarized)).all()
    assert np.isnan(angle_vector(unpolarized)).all()


def test_dark_pixels_have_no_polarization() -> None:
    parameters = stokes(behind_polarizers(np.array([0.0, 0.05, 0.2]), np.full(3, 0.5), np.full(3, 1.0)))
    assert np.isnan(degree(parameters, 0.1)).tolist() == [True, True, False]
    assert np.isnan(angle(parameters, 0.1)).tolist() == [True, True, False]
    assert np.isnan(angle_vector(parameters, 0.1)).tolist() == [[True, True, False]] * 2
    assert np.isnan(degree(parameters)).tolist() == [True, False, False]


def test_noise_moves_little() -> None:
    """Noise of 0.5 % of full scale on light of half of it: the error of S1 and S2 is 0.7 %, that of the ratio the same."""
    s0, dolp, aolp = np.full((100, 100), 1.0), np.full((100, 100), 0.4), np.full((100, 100), 3.1)
    pictures = behind_polarizers(s0, dolp, aolp) + np.random.default_rng(1).normal(0, 0.005, (4, 100, 100))
    parameters = stokes(pictures)
    found = degree(parameters)
    assert found.std() == pytest.approx(0.005 * math.sqrt(2), rel=0.05)
    assert found.mean() == pytest.approx(0.4, abs=1e-3)
    mean = angle_vector(parameters).mean(axis=(1, 2))
    assert math.atan2(*mean) / 2 % math.pi == pytest.approx(3.1, abs=1e-3)
    assert angle(parameters).std() < 0.5  # few pixels cross from pi to 0
    wild = stokes(np.array([[1.0], [0.0], [-0.2], [0.0]]))
    assert degree(wild)[0] == 1


# ---------------------------------------------------------------- mosaics


@pytest.mark.parametrize("pattern", [(90, 45, 135, 0), (0, 45, 135, 90)])
def test_a_mosaic_of_an_even_scene_comes_back_whole(pattern: tuple[int, ...]) -> None:
    pictures = behind_polarizers(np.full((8, 12), 0.7), np.full((8, 12), 0.6), np.full((8, 12), 0.4))
    raw = mosaic_of(pictures, pattern)
    np.testing.assert_allclose(demosaic(raw, pattern), pictures, rtol=1e-6)
    np.testing.assert_allclose(demosaic(raw, pattern, "superpixel"), pictures[:, ::2, ::2], rtol=1e-6)


def test_bilinear_demosaicing_is_exact_on_slopes() -> None:
    y, x = np.mgrid[:10, :14].astype(np.float64)
    pictures = np.stack([1 + 0.3 * x + 0.2 * y, 2 - 0.1 * x, 0.5 * y, 3 + 0.2 * x - 0.1 * y])
    found = demosaic(mosaic_of(pictures, (90, 45, 135, 0)))
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], pictures[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


def test_measured_pixels_stay_as_they_are_and_neighbours_are_means() -> None:
    raw = np.random.default_rng(4).uniform(0, 1, (6, 8)).astype(np.float32)
    found = demosaic(raw, (90, 45, 135, 0))
    for plane, (row, column) in enumerate(((1, 1), (0, 1), (0, 0), (1, 0))):
        np.testing.assert_allclose(found[plane, row::2, column::2], raw[row::2, column::2], rtol=1e-6)
    assert found[2, 2, 3] == pytest.approx((raw[2, 2] + raw[2, 4]) / 2, rel=1e-5)  # 90 degrees: even rows and columns
    assert found[2, 3, 2] == pytest.approx((raw[2, 2] + raw[4, 2]) / 2, rel=1e-5)
    assert found[2, 3, 3] == pytest.approx((raw[2, 2] + raw[2, 4] + raw[4, 2] + raw[4, 4]) / 4, rel=1e-5)
    half = demosaic(raw, method="superpixel")
    assert half.shape == (4, 3, 4)
    assert half[:, 1, 2].tolist() == [raw[3, 5], raw[2, 5], raw[2, 4], raw[3, 4]]


# ---------------------------------------------------------------- angles that were stored undoubled


def test_stored_sine_and_cosine_are_doubled() -> None:
    aolp = np.linspace(-math.pi / 2, math.pi / 2, 50)
    length = np.linspace(0.2, 1.7, 50)  # interpolation makes them too short or too long
    found = doubled(length * np.sin(aolp), length * np.cos(aolp))
    np.testing.assert_allclose(found, [np.sin(2 * aolp), np.cos(2 * aolp)], atol=1e-6)
    assert np.isnan(doubled(np.zeros(1), np.zeros(1))).all()


# ---------------------------------------------------------------- the encoder


def test_all_layouts_give_the_same(tmp_path: Path) -> None:
    s0, dolp, aolp = (np.repeat(np.repeat(v, 2, axis=0), 2, axis=1) for v in light(5, (6, 7)))
    pictures = np.round(4095 * behind_polarizers(s0, dolp, aolp)).astype(np.uint16)
    for a, picture in zip(POLARIZERS, pictures, strict=True):
        write_array(tmp_path / f"scene_{a}.png", picture)
    write_array(tmp_path / "stack.npy", np.moveaxis(pictures[[2, 1, 3, 0]], 0, -1).copy())
    write_array(tmp_path / "raw.png", mosaic_of(pictures, (90, 45, 135, 0)))
    common = {"full": 4095, "output": ["intensity", "dolp", "aolp"]}
    results = []
    for name, options in (
        ("scene_0.png", {"layout": "files"}),
        ("stack.npy", {"layout": "stack", "order": [90, 45, 135, 0]}),
        ("raw.png", {"demosaic": "superpixel"}),
    ):
        encoder = build(PolarizationEncoder, {**common, **options})
        assert encoder.channels == ("intensity", "dolp", "sin 2 aolp", "cos 2 aolp")
        values = encoder.encode(encoder.read(tmp_path / name))
        assert values.dtype == np.float32
        results.append(values if name == "raw.png" else values[::2, ::2])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], atol=1e-6)
    expected = [s0 / 2, dolp, np.sin(2 * aolp), np.cos(2 * aolp)]
    strong = dolp[::2, ::2] > 0.2  # rounding to 12 bits turns weak polarisation
    np.testing.assert_allclose(results[0][strong], np.stack(expected, axis=-1)[::2, ::2][strong], atol=0.02)


def test_the_default_gives_the_two_modalities() -> None:
    encoder = PolarizationEncoder()
    assert encoder.channels == ("dolp", "sin 2 aolp", "cos 2 aolp")
    raw = mosaic_of(
        behind_polarizers(np.full((6, 8), 0.8), np.full((6, 8), 0.5), np.full((6, 8), 2.0)), (90, 45, 135, 0)
    )
    values = encoder.encode(raw.astype(np.float32))
    np.testing.assert_allclose(values, np.broadcast_to([0.5, math.sin(4), math.cos(4)], (6, 8, 3)), atol=1e-5)


def test_full_and_dark_pixels_are_holes() -> None:
    pictures = behind_polarizers(np.full((8, 8), 0.6), np.full((8, 8), 0.5), np.full((8, 8), 0.3))
    raw = mosaic_of(pictures, (90, 45, 135, 0)).astype(np.float32)
    raw[3, 3] = 1.0
    holes = np.isnan(PolarizationEncoder().encode(raw)).all(axis=-1)
    assert np.argwhere(holes).tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    assert np.isfinite(PolarizationEncoder(output=("intensity",)).encode(raw)).all()
    stack = np.moveaxis(pictures, 0, -1).astype(np.float32)
    stack[0, 0, 2], stack[1, 1] = 1.0, 0.01
    holes = np.isnan(PolarizationEncoder(layout="stack").encode(stack)).all(axis=-1)
    assert np.argwhere(holes).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(DataError, match=r"values up to 1, but full is 0\.5"):
        PolarizationEncoder(full=0.5).encode(raw)


def test_files_that_are_no_polarization_pictures_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "a_0.png", np.zeros((4, 6), np.uint8))
    write_array(tmp_path / "a_45.png", np.zeros((4, 6), np.uint8))
    write_array(tmp_path / "a_90.png", np.zeros((4, 8), np.uint8))
    write_array(tmp_path / "color.png", np.zeros((4, 6, 3), np.uint8))
    write_array(tmp_path / "odd.png", np.zeros((5, 6), np.uint8))
    files, stack = PolarizationEncoder(layout="files"), PolarizationEncoder(layout="stack")
    with pytest.raises(DataError, match=r"there is no file .*a_135\.png"):
        files.read(tmp_path / "a_0.png")
    write_array(tmp_path / "a_135.png", np.zeros((4, 6), np.uint16))
    with pytest.raises(DataError, match="they need one channel, one size and one type"):
        files.read(tmp_path / "a_0.png")
    with pytest.raises(DataError, match="does not end in 0"):
        files.read(tmp_path / "a_90.png")
    with pytest.raises(DataError, match="a mosaic has one channel"):
        PolarizationEncoder().read(tmp_path / "color.png")
    with pytest.raises(DataError, match="four channels"):
        stack.read(tmp_path / "color.png")
    with pytest.raises(DataError, match="even height and width"):
        PolarizationEncoder().encode(PolarizationEncoder().read(tmp_path / "odd.png"))
    with pytest.raises(DataError, match="there are 3 pictures"):
        stokes(np.zeros((3, 4, 5)))
    with pytest.raises(RequestError, match="once each"):
        demosaic(np.zeros((4, 4)), (0, 45, 90, 90))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"layout": "mosiac"}, "did you mean 'mosaic'?"),
        ({"pattern": [0, 45, 90, 180]}, "polarization: pattern is [0, 45, 90, 180]"),
        ({"order": [0, 45, 90]}, "polarization: order is [0, 45, 90]"),
        ({"output": []}, "polarization: output is []"),
        ({"output": ["dolp", "dolp"]}, "each once"),
        ({"output": ["dop"]}, "did you mean 'dolp'?"),
        ({"full": 0}, "polarization: full is 0.0"),
        ({"dark": 1}, "polarization: dark is 1.0"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        build(PolarizationEncoder, values, "polarization")
    assert expected in str(error.value)
