"""Radar: a cell of the polar recording lies where azimuth and range say, and appears where the camera sees the ground."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera
from mlesam.sensors.motion import ConstantTwist
from mlesam.sensors.projection import FORWARD_LEFT_UP, project_points
from mlesam.sensors.radar import RadarEncoder

CAMERA = Camera(((100, 0, 79.5), (0, 100, 59.5), (0, 0, 1)), (160, 120))
AZIMUTHS, HEADER, BINS = 400, 11, 600
MUSES = {"first_azimuth": 179.1, "resolution": 0.0438, "ground": -1.62}


def encoder(**changes: object) -> RadarEncoder:
    given = {"rotation": FORWARD_LEFT_UP.rotation.tolist(), "translation": (0, 0, 0), **MUSES, **changes}
    return RadarEncoder(**given)  # type: ignore[arg-type]


def recording(*cells: tuple[int, int, int], bins: int = BINS, azimuths: int = AZIMUTHS) -> np.ndarray:
    """A polar picture with the given (bin, azimuth, strength), all azimuths valid, measured 1 ms after each other."""
    raw = np.zeros((HEADER + bins, azimuths), np.uint8)
    for i in range(azimuths):
        words = np.array([1_660_000_000, 500_000_000 + i * 1_000_000], "<u4")
        raw[:8, i] = words.view(np.uint8)
    raw[10] = 255
    for bin_, azimuth, strength in cells:
        raw[HEADER + bin_, azimuth] = strength
    return raw


# ---------------------------------------------------------------- cells to points


@pytest.mark.parametrize(
    ("azimuth", "degrees"), [(0, 179.1), (99, 90), (199, 0), (145, 48.6), (254, -49.5), (299, -90), (399, -180)]
)
def test_a_cell_of_muses_lies_where_its_azimuth_and_range_say(azimuth: int, degrees: float) -> None:
    """400 azimuths of 0.9 degrees, clockwise; number 199 looks forward; x forward, y left, z up."""
    points, times = encoder().points(recording((499, azimuth, 77)))
    distance = 500 * 0.0438
    x, y = distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees))
    np.testing.assert_allclose(points, [[x, y, -1.62, 77]], atol=1e-9)
    assert times is None


def test_a_radar_that_turns_the_other_way_and_starts_elsewhere() -> None:
    other = encoder(clockwise=False, first_azimuth=10.0, range_offset=-0.3, resolution=0.5)
    points, _ = other.points(recording((9, 100, 50)))
    np.testing.assert_allclose(points[0, :2], [4.7 * math.cos(math.radians(100)), 4.7 * math.sin(math.radians(100))])


def test_azimuths_may_be_rows_without_any_header() -> None:
    raw = np.zeros((8, 50), np.uint16)
    raw[2, 24] = 4000
    plain = encoder(azimuths="rows", header=0, valid=None, clock=None, first_azimuth=0, resolution=0.2)
    points, _ = plain.points(raw)
    np.testing.assert_allclose(points, [[0, -5, -1.62, 4000]], atol=1e-9)


def test_cells_come_in_order_of_range_and_only_those_asked_for() -> None:
    cells = [(5, 199, 90), (10, 199, 255), (300, 199, 60), (200, 199, 61), (200, 199 + 40, 200), (400, 180, 99)]
    chosen = encoder(nearest=0.4, farthest=15.0, threshold=60, sector=(-30, 30))
    raw = recording(*cells)
    raw[10, 180] = 0  # this azimuth was not measured
    points, _ = chosen.points(raw)
    np.testing.assert_array_equal(points[:, 3], [255, 61])
    np.testing.assert_allclose(points[:, 0], [11 * 0.0438, 201 * 0.0438])
    every, _ = chosen.points(raw, cells=True)
    ranges = np.arange(1, BINS + 1) * 0.0438
    assert (
        len(every) == 66 * ((ranges >= 0.4) & (ranges <= 15)).sum()
    )  # 67 azimuths from -29.7 to 29.7 degrees, less one


def test_an_azimuth_on_the_edge_of_the_sector_is_inside() -> None:
    raw = recording(*[(300, azimuth, 50) for azimuth in range(AZIMUTHS)])
    for sector, count in (((-180, 180), 400), ((-9, 9), 21), ((0, 0.9), 2), ((135, 225), 101), ((-180, 179.9), 400)):
        assert len(encoder(sector=sector).points(raw)[0]) == count, sector


def test_times_are_those_of_the_azimuths() -> None:
    _, times = encoder().points(recording((100, 3, 50), (200, 250, 50)), timed=True)
    assert times is not None
    np.testing.assert_allclose(times - 1_660_000_000, [0.503, 0.75], atol=1e-6)


# ---------------------------------------------------------------- the picture


def test_one_echo_by_hand() -> None:
    """21.9 m ahead on the ground, 1.62 m below a camera at the radar's place: 100 * 1.62 / 21.9 = 7.4 pixels below the middle."""
    picture = encoder().encode(recording((499, 199, 77)), CAMERA)
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.float32
    row, column = 67, 80  # 59.5 + 7.4; 79.5, the edge of pixel 80
    seen = np.argwhere(np.isfinite(picture[..., 0]))
    assert seen.tolist() in ([[row, column]], [[row, column - 1]])
    np.testing.assert_allclose(picture[tuple(seen[0])], [math.hypot(21.9, 1.62), 77, 0], rtol=1e-6)
    assert encoder().channels == ("range (m)", "intensity", "0")


def test_a_picture_is_that_of_the_echoes_as_points() -> None:
    rng = np.random.default_rng(0)
    raw = recording()
    raw[HEADER:] = rng.integers(0, 256, (BINS, AZIMUTHS))
    for changes in ({}, {"dilate": 5}, {"keep": "strongest"}, {"keep": "strongest", "dilate": 3, "threshold": 100}):
        own = encoder(**changes)
        points, _ = own.points(raw)
        expected = project_points(
            points, CAMERA, own.to_camera, dilate=changes.get("dilate", 1), keep=changes.get("keep", "nearest")
        )
        picture = own.encode(raw, CAMERA)
        np.testing.assert_array_equal(picture[..., :2], expected[..., :2])
        np.testing.assert_array_equal(np.isnan(picture[..., 2]), np.isnan(expected[..., 2]))
        assert set(picture[..., 2][np.isfinite(picture[..., 2])]) == {0.0}


def test_far_away_the_strongest_echo_is_found_among_the_noise_of_its_pixel() -> None:
    """From 23 m on a pixel is higher than 3 bins."""
    raw = recording(*[(bin_, 199, 20) for bin_ in range(520, BINS)], (560, 199, 200))
    near, strong = encoder().encode(raw, CAMERA), encoder(keep="strongest").encode(raw, CAMERA)
    assert np.nanmax(near[..., 1]) == 20
    row, column = np.argwhere(strong[..., 1] == 200)[0]
    assert strong[row, column, 0] == pytest.approx(math.hypot(561 * 0.0438, 1.62), rel=1e-5)


def test_of_equally_strong_echoes_on_a_pixel_the_nearest_is_kept() -> None:
    raw = recording(*[(bin_, 199, 200) for bin_ in range(590, BINS)])
    both = [encoder(keep=keep).encode(raw, CAMERA) for keep in ("nearest", "strongest")]
    np.testing.assert_array_equal(*both)


def test_echoes_are_brought_to_the_exposure() -> None:
    """10 m/s, measured 0.1 s before the exposure: the echo at 21.9 m is then 20.9 m away."""
    raw = recording((499, 199, 77))
    motion = ConstantTwist((10, 0, 0), (0, 0, 0), 1_660_000_000.5 + 0.199 + 0.1)
    moved = encoder().encode(raw, CAMERA, motion)
    assert np.nanmax(moved[..., 0]) == pytest.approx(math.hypot(20.9, 1.62), abs=1e-4)


def test_a_frame_without_an_echo_is_a_measurement_of_nothing() -> None:
    picture = encoder(threshold=80).encode(recording((499, 199, 77), (300, 10, 200)), CAMERA)
    assert np.isnan(picture).all()


# ---------------------------------------------------------------- files


def test_a_recording_is_read_as_stored(tmp_path: Path) -> None:
    raw = recording((499, 199, 77))
    Image.fromarray(raw).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "color.png"), np.repeat(raw[..., None], 3, axis=2))
    np.save(tmp_path / "a.npy", raw)
    for name in ("grey.png", "color.png", "a.npy"):
        np.testing.assert_array_equal(encoder().read(tmp_path / name), raw)


# ---------------------------------------------------------------- what is refused


def test_a_calibration_that_shows_no_cell_is_refused() -> None:
    with pytest.raises(DataError, match=r"points 0 lie in front of the camera and 0 inside its 160 x 120 picture; "):
        encoder(rotation=np.eye(3).tolist()).encode(recording((499, 199, 77)), CAMERA)


def test_recordings_of_another_layout_are_refused() -> None:
    with pytest.raises(DataError, match=r"the shape \(9, 9, 3\), but it must be ranges by azimuths"):
        encoder().encode(np.zeros((9, 9, 3), np.uint8), CAMERA)
    with pytest.raises(DataError, match="has 11 bins an azimuth, no more than the 11 of its header"):
        encoder().encode(np.zeros((11, 400), np.uint8), CAMERA)
    with pytest.raises(DataError, match="is uint16, but a clock is stored in bytes"):
        encoder().points(recording().astype(np.uint16), timed=True)
    with pytest.raises(RequestError, match="clock is null"):
        encoder(clock=None).encode(recording(), CAMERA, ConstantTwist((0, 0, 0), (0, 0, 0), 0))
    with pytest.raises(RequestError, match="give the rig one"):
        encoder().encode(recording(), None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rotation": np.ones((3, 3)).tolist()}, "the rotation is none"),
        ({"resolution": 0}, "resolution is 0, but it must be above 0 metres"),
        ({"header": -1}, "header is -1"),
        ({"valid": 11}, "valid is 11, but it must be null or one of the header's bins"),
        ({"header": 4, "valid": None}, "clock is seconds+nanoseconds, but it must be null"),
        ({"sector": (30, -30)}, "sector is [30, -30]"),
        ({"sector": (-200, 200)}, "sector is [-200, 200]"),
        ({"farthest": 0.5}, "nearest is 1.0, but it must be at least 0 and below farthest"),
        ({"dilate": 0}, "dilate is 0"),
    ],
)
def test_wrong_options_are_refused(changes: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        encoder(**changes)
    assert expected in str(error.value)
