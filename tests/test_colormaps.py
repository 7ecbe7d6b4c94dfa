"""Pictures in false colours become the numbers they were drawn from, and nothing where nothing was drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mlesam.errors import DataError, RequestError
from mlesam.sensors import SensorSpec, sensor_spec
from mlesam.sensors.colormaps import COLORMAPS, lookup_table, scalar_from_colors
from mlesam.sensors.files import read_array

RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
VIOLET_TO_YELLOW = ((68, 1, 84), (33, 145, 140), (253, 231, 37))


def painted(values: np.ndarray, colormap) -> np.ndarray:
    """0..255 in the colours of a map, by table."""
    return np.rint(lookup_table(colormap)).astype(np.uint8)[values]


def test_jet_is_opencvs_jet() -> None:
    """Not our own table there and back, but another's picture."""
    picture = cv2.applyColorMap(RAMP, cv2.COLORMAP_JET)[..., ::-1]
    result = scalar_from_colors(picture, "jet")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, RAMP / 255, atol=3 / 255)


def test_hot_is_near_opencvs_hot() -> None:
    """OpenCV turns the corners of this map at 2/5 and 4/5 instead of MATLAB's 3/8 and 3/4."""
    picture = cv2.applyColorMap(RAMP, cv2.COLORMAP_HOT)[..., ::-1]
    np.testing.assert_allclose(scalar_from_colors(picture, "hot"), RAMP / 255, atol=0.06)


@pytest.mark.parametrize("colormap", [*COLORMAPS, VIOLET_TO_YELLOW], ids=str)
def test_every_colour_map_comes_back(colormap) -> None:
    np.testing.assert_allclose(scalar_from_colors(painted(RAMP, colormap), colormap), RAMP / 255, atol=0.02)


@pytest.mark.parametrize("colormap", [*COLORMAPS, VIOLET_TO_YELLOW], ids=str)
def test_a_colour_map_has_256_colours_from_its_low_end_to_its_high_end(colormap) -> None:
    table = lookup_table(colormap)
    assert table.shape == (256, 3)
    assert table.min() >= 0
    assert table.max() <= 255


def test_the_ends_and_the_middle_of_the_maps_are_right() -> None:
    """By hand: blue-green-red, black-red-yellow-white, black to white, the given stops."""
    np.testing.assert_allclose(lookup_table("jet")[[0, 255]], [[0, 0, 127.5], [127.5, 0, 0]])
    assert lookup_table("jet")[128, 1] == 255
    np.testing.assert_allclose(lookup_table("hot")[[0, 255]], [[0, 0, 0], [255, 255, 255]])
    np.testing.assert_allclose(lookup_table("gray")[[0, 51, 255]], [[0] * 3, [51] * 3, [255] * 3])
    own = lookup_table(VIOLET_TO_YELLOW)
    np.testing.assert_allclose(own[[0, 255]], [VIOLET_TO_YELLOW[0], VIOLET_TO_YELLOW[2]])
    np.testing.assert_allclose(own[51], np.array([68, 1, 84]) * 0.6 + np.array([33, 145, 140]) * 0.4)


def test_warmer_is_brighter_along_iron() -> None:
    luminance = lookup_table("iron") @ (0.299, 0.587, 0.114)
    assert (np.diff(luminance) > -1.5).all()
    assert luminance[-1] > 240 > 20 > luminance[0]


def test_a_black_pixel_in_jet_is_nothing_measured() -> None:
    picture = painted(RAMP, "jet")
    picture[2:4] = 0
    picture[4:6] = 255  # a burnt-in logo
    result = scalar_from_colors(picture, "jet")
    assert np.isnan(result[2:6]).all()
    assert np.isfinite(result[:2]).all()
    assert np.isfinite(result[6:]).all()


def test_a_black_pixel_is_the_low_end_where_the_map_starts_with_black() -> None:
    black = np.zeros((1, 1, 3), np.uint8)
    for colormap in ("hot", "gray"):
        assert scalar_from_colors(black, colormap)[0, 0] < 0.01


def test_jpeg_noise_keeps_a_colour_on_its_map() -> None:
    """A smooth scene, saved as the cameras save it."""
    y, x = np.mgrid[:96, :128]
    values = np.clip(128 + 100 * np.sin(x / 25) * np.cos(y / 30), 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", cv2.applyColorMap(values, cv2.COLORMAP_JET), [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    result = scalar_from_colors(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], "jet")
    assert np.isfinite(result).all()
    assert np.abs(result - values / 255).mean() < 0.01


def test_an_alpha_channel_changes_nothing() -> None:
    picture = painted(RAMP, "jet")
    clear = np.dstack([picture, RAMP])
    np.testing.assert_array_equal(scalar_from_colors(clear, "jet"), scalar_from_colors(picture, "jet"))


def test_a_sensor_with_a_colour_map_takes_its_range_and_unit() -> None:
    spec = sensor_spec("depth", {"colormap": "jet", "unit": "m", "range": [1.0, 5.0]})
    assert spec.channels == 1
    picture = painted(RAMP, "jet")
    picture[0] = 0
    values = spec.encode(picture)
    assert values.shape == (1, 8, 256)
    assert values[0, 0].isnan().all()
    np.testing.assert_allclose(values[0, 1:].numpy(), 1 + 4 * (RAMP[1:] / 255), atol=0.08)


def test_a_colour_map_frees_a_sensor_from_its_builtin_numbers() -> None:
    """Metres, their scale and their hole belong to 16-bit depth, not to a picture of it."""
    spec = sensor_spec("depth", {"colormap": "jet"})
    assert (spec.unit, spec.range, spec.scale, spec.missing) == ("1", (0.0, 1.0), None, None)
    assert spec.interpolation == "nearest"


@pytest.mark.parametrize(
    "stops",
    [[], [[0, 0, 0]], [[0, 0], [1, 1]], [[0, 0, 0], [1, 2]], [[0, 0, 0], [256, 0, 0]], [[-1, 0, 0], [1, 1, 1]]],
    ids=str,
)
def test_stops_that_are_no_colours_are_refused(stops: list) -> None:
    with pytest.raises(RequestError, match=r"sensors\.fog.*(at least two RGB colours|must have 3 values)"):
        sensor_spec("fog", {"colormap": stops})
    with pytest.raises(RequestError, match="at least two RGB colours"):
        SensorSpec(colormap=tuple(tuple(stop) for stop in stops))


def test_an_unknown_colour_map_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"sensors\.fog: unknown colour map 'jett'; did you mean 'jet'\?"):
        sensor_spec("fog", {"colormap": "jett"})


def test_a_colour_map_gives_one_channel_and_no_other_number() -> None:
    with pytest.raises(RequestError, match="has one channel, not 3"):
        sensor_spec("fog", {"colormap": "jet", "channels": 3})


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), "f4"),
    ],
    ids=["grey", "16-bit", "two channels", "float"],
)
def test_a_file_that_is_no_colour_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"a\.png is no 8-bit colour picture"):
        sensor_spec("depth", {"colormap": "jet"}).encode(array, "a.png")


# ---------------------------------------------------------------- real frames


def test_the_holes_of_real_depth_pictures_are_nothing_measured(shared: Path) -> None:
    """The camera draws what it did not see in black."""
    spec = sensor_spec("depth", {"colormap": "jet"})
    holes = []
    for path in sorted((shared / "data/crack/depth").glob("*.jpg"))[::20]:
        picture = read_array(path)
        empty = spec.encode(picture)[0].isnan().numpy()
        black = picture.max(axis=2) < 30
        bright = picture.max(axis=2) > 150  # JPEG blurs the edges of the holes: in between is either
        assert empty[black].all(), path
        assert empty[bright].mean() < 0.01, path
        holes.append(black.mean())
    assert len(holes) > 10
    assert max(holes) > 0.01


def test_real_thermal_pictures_are_measured_nearly_everywhere(shared: Path) -> None:
    spec = sensor_spec("infrared", {"like": "thermal", "colormap": "iron"})
    shares, correlations = [], []
    for path in sorted((shared / "data/crack/infrared").glob("*.jpg"))[::20]:
        picture = read_array(path)
        values = spec.encode(picture)[0].numpy()
        measured = np.isfinite(values)
        shares.append(measured.mean())
        luminance = picture @ (0.299, 0.587, 0.114)
        correlations.append(np.corrcoef(values[measured], luminance[measured])[0, 1])
    assert np.mean(shares) > 0.97
    assert min(shares) > 0.9
    assert min(correlations) > 0.9  # iron grows brighter with the temperature
