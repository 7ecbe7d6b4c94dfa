"""Hyperspectral cubes: ENVI files written byte by byte, reflectances, and the bands that are chosen."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from mlesam.config import build
from mlesam.errors import DataError, RequestError
from mlesam.sensors.envi import read_envi
from mlesam.sensors.spectral import SpectralEncoder, grouped, nearest_bands, reflectance

WIDTH, HEIGHT, BANDS = 5, 4, 7
WAVELENGTHS = (450.0, 500.0, 550.0, 600.0, 650.0, 700.0, 750.0)
CODES = {1: "B", 2: "h", 3: "i", 4: "f", 5: "d", 12: "H", 13: "I"}
VALUES = np.random.default_rng(1).integers(1, 120, (HEIGHT, WIDTH, BANDS))


def write_envi(
    path: Path,
    values: np.ndarray = VALUES,
    form: str = "bsq",
    code: int = 12,
    order: int = 0,
    offset: int = 0,
    **fields: str,
) -> Path:
    """A header and its numbers, one after the other in the order that the form says."""
    height, width, bands = values.shape
    loops = {
        "bsq": [(y, x, b) for b in range(bands) for y in range(height) for x in range(width)],
        "bil": [(y, x, b) for y in range(height) for b in range(bands) for x in range(width)],
        "bip": [(y, x, b) for y in range(height) for x in range(width) for b in range(bands)],
    }
    numbers = [values[place] for place in loops[form]]
    numbers = [float(n) if code in (4, 5) else int(n) for n in numbers]
    content = b"?" * offset + struct.pack(f"{'<>'[order]}{len(numbers)}{CODES[code]}", *numbers)
    path.with_suffix(".raw").write_bytes(content)
    lines = {
        "samples": width, "lines": height, "bands": bands, "header offset": offset, "file type": "ENVI Standard",
        "data type": code, "interleave": form, "byte order": order, **{k.replace("_", " "): v for k, v in fields.items()},
    }  # fmt: skip
    path.write_text("ENVI\n; made by hand\n" + "".join(f"{k} = {v}\n" for k, v in lines.items() if v != ""))
    return path


# ---------------------------------------------------------------- ENVI


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 12, 13])
def test_every_interleave_type_and_byte_order_is_read(tmp_path: Path, interleave: str, code: int, order: int) -> None:
    values = VALUES.copy()
    if code in (3, 13):
        values[0, 0, 0] = 70_000
    if code in (2, 3, 4, 5):
        values[1, 2, 3] = -9999
    cube = read_envi(write_envi(tmp_path / "a.hdr", values, interleave, code, order, offset=16))
    assert cube.values.shape == (HEIGHT, WIDTH, BANDS)
    np.testing.assert_array_equal(cube.values, values)
    assert cube.wavelengths is None


def test_what_the_header_says_of_the_bands(tmp_path: Path) -> None:
    micrometers = ",\n ".join(f"{w / 1000:.3f}" for w in WAVELENGTHS)
    path = write_envi(
        tmp_path / "a.hdr", wavelength=f"{{\n {micrometers}}}", Wavelength_Units="Micrometers",
        bbl="{1,1,0,1,1,1,0}", data_ignore_value="-9999", reflectance_scale_factor="10000",
        description="{\n two = lines,\n of text}",
    )  # fmt: skip
    cube = read_envi(path)
    assert cube.wavelengths == pytest.approx(WAVELENGTHS)
    assert cube.good == (True, True, False, True, True, True, False)
    assert (cube.missing, cube.scale) == (-9999, pytest.approx(1e-4))


def test_the_data_file_may_have_other_names(tmp_path: Path) -> None:
    path = write_envi(tmp_path / "a.hdr")
    data = tmp_path / "a.raw"
    for header, name in (("a.hdr", "a"), ("a.hdr", "a.img"), ("a.hdr", "a.bsq"), ("a.raw.hdr", "a.raw")):
        data = data.rename(tmp_path / name)
        path = path.rename(tmp_path / header)
        np.testing.assert_array_equal(read_envi(path).values, VALUES)
    path = path.rename(tmp_path / "a.hdr")
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(DataError, match=r"there is a\.raw, a\.dat"):
        read_envi(path)
    (tmp_path / "a.dat").unlink()
    data.unlink()
    with pytest.raises(DataError, match="there is no a, a.raw or the like"):  # noqa: RUF043
        read_envi(path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"samples": ""}, "does not say 'samples'"),
        ({"bands": "0"}, "has bands = '0'; it must be a whole number of at least 1"),
        ({"lines": "4.5"}, "has lines = '4.5'"),
        ({"data type": "6"}, "has the data type 6; 1, 2, 3, 4, 5, 12, 13 are read"),
        ({"byte order": "2"}, "has the byte order 2"),
        ({"byte order": ""}, "does not say 'byte order'"),
        ({"interleave": "bpi"}, "has the interleave 'bpi'"),
        ({"interleave": ""}, "has the interleave 'none'"),
        ({"file compression": "1"}, "compressed"),
        ({"wavelength": "{450, 500}"}, "has 2 values of 'wavelength' for 7 bands"),
        ({"wavelength": "{1,2,3,4,5,6,red}"}, "has 'red' in 'wavelength'"),
        ({"wavelength": "450"}, "it must be a list in braces"),
        ({"bbl": "{1,1,1,1,1,1,inf}"}, "must be finite"),
        ({"reflectance scale factor": "0"}, "reflectance scale factor 0.0"),
        ({"bands": "8"}, "a.raw has 280 bytes, but a.hdr says 320 (offset 0, 5 x 4 pixels, 8 bands of 2 bytes)"),
        ({"bands": "6"}, "says 240"),
        ({"Samples": "5"}, "says 'samples' twice"),
        ({"wavelength": "{1,2,3"}, "cannot be read from 'wavelength = {1,2,3'"),
        ({"notes\nmore": "1"}, "cannot be read from 'notes'"),
    ],
)
def test_a_header_that_is_wrong_is_refused_by_name(tmp_path: Path, fields: dict[str, str], expected: str) -> None:
    path = write_envi(tmp_path / "a.hdr", **fields)
    if "Samples" in fields:
        path.write_text(path.read_text() + "samples = 5\n")
    with pytest.raises(DataError) as error:
        read_envi(path)
    assert expected in str(error.value)


def test_a_file_that_is_no_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.hdr").write_text("#?RADIANCE\n")
    with pytest.raises(DataError, match="does not begin with the line ENVI"):
        read_envi(tmp_path / "a.hdr")
    with pytest.raises(DataError, match="there is no file"):
        read_envi(tmp_path / "b.hdr")


# ---------------------------------------------------------------- reflectance and bands


def test_reflectance_comes_back_through_a_line_scanners_response() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.02, 0.9, (HEIGHT, WIDTH, BANDS))
    gain, dark = rng.uniform(500, 3000, (WIDTH, BANDS)), rng.uniform(50, 90, (WIDTH, BANDS))
    raw, white = true * gain + dark, 0.99 * gain + dark
    whites = white + np.array([-1.0, 0.0, 1.0])[:, None, None]  # three lines, whose mean is the panel
    found = reflectance(raw, whites, np.broadcast_to(dark, (2, WIDTH, BANDS)), panel=0.99)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, true, rtol=1e-5)
    one = reflectance(raw, white[None, :1], None)
    np.testing.assert_allclose(one, raw / white[0], rtol=1e-5)


def test_a_dead_column_of_the_panel_is_a_hole() -> None:
    white, dark = np.full((1, WIDTH, BANDS), 100.0), np.full((1, WIDTH, BANDS), 10.0)
    white[0, 2, 3] = 10.0
    found = reflectance(np.full((HEIGHT, WIDTH, BANDS), 55.0), white, dark)
    assert np.isnan(found[:, 2, 3]).all()
    assert np.isnan(found).sum() == HEIGHT
    assert np.nanmax(found) == np.nanmin(found) == 0.5
    with pytest.raises(DataError, match=r"white reference has the shape \(1, 3, 7\), the recording \(4, 5, 7\)"):
        reflectance(np.zeros((HEIGHT, WIDTH, BANDS)), white[:, :3])


def test_the_nearest_good_band_is_chosen() -> None:
    assert nearest_bands(WAVELENGTHS, (652, 540, 450)) == [4, 2, 0]
    bad = (True, True, False, True, True, True, True)
    assert nearest_bands(WAVELENGTHS, (540,), 60, bad) == [1]
    for wanted, good, expected in (
        ((530,), bad, "no band is within 20 nm of 530 nm: the nearest good band is at 500 nm, of 450 to 750 nm"),
        ((900,), None, "the nearest good band is at 750 nm"),
        ((500,), (False,) * 7, "no band is good"),
        ((500, 505), None, "500 and 505 nm are both nearest to one band"),
    ):
        with pytest.raises(DataError) as error:
            nearest_bands(WAVELENGTHS, wanted, good=good)
        assert expected in str(error.value)


def test_groups_are_means_of_neighbours() -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, 1], values[1, 1, 3:5] = np.nan, np.nan
    found = grouped(values, 3)  # bands 1 to 3, 4 and 5, 6 and 7
    np.testing.assert_allclose(
        found[2, 2], [values[2, 2, :3].mean(), values[2, 2, 3:5].mean(), values[2, 2, 5:].mean()]
    )
    assert found[0, 0, 0] == pytest.approx((values[0, 0, 0] + values[0, 0, 2]) / 2)
    assert np.argwhere(np.isnan(found)).tolist() == [[1, 1, 1]]
    np.testing.assert_array_equal(grouped(values, BANDS), values)
    with pytest.raises(DataError, match="7 bands cannot make 8 groups"):
        grouped(values, 8)


# ---------------------------------------------------------------- the encoder


def waves() -> str:
    return "{" + ", ".join(f"{w:g}" for w in WAVELENGTHS) + "}"


def test_the_encoder_chooses_bands_in_three_ways(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, 0] = 9999
    path = write_envi(
        tmp_path / "a.hdr", values, "bil", wavelength=waves(), wavelength_units="nm", data_ignore_value="9999",
        bbl="{1,1,1,1,1,1,0}",
    )  # fmt: skip
    expected = VALUES.astype(np.float32)
    expected[0, 0] = np.nan
    for options, channels, bands in (
        ({"wavelengths": [655, 550, 450]}, ("655 nm", "550 nm", "450 nm"), [4, 2, 0]),
        ({"bands": [1, 7]}, ("band 1", "band 7"), [0, 6]),
        ({"groups": 6}, tuple(f"group {i} of 6" for i in range(1, 7)), [0, 1, 2, 3, 4, 5]),
    ):
        encoder = build(SpectralEncoder, options)
        assert encoder.channels == channels
        found = encoder.encode(encoder.read(path))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[..., bands])
    two = build(SpectralEncoder, {"groups": 2})
    np.testing.assert_allclose(two.encode(two.read(path)), grouped(expected[..., :6], 2))


def test_a_reflectance_scale_factor_divides(tmp_path: Path) -> None:
    path = write_envi(tmp_path / "a.hdr", VALUES * 100, code=2, reflectance_scale_factor="10000")
    encoder = build(SpectralEncoder, {"bands": [2], "scale": 0.5})
    np.testing.assert_allclose(encoder.encode(encoder.read(path))[..., 0], VALUES[..., 1] / 200, rtol=1e-6)


def test_references_turn_counts_into_reflectances(tmp_path: Path) -> None:
    white, dark = np.full((3, WIDTH, BANDS), 220), np.full((2, WIDTH, BANDS), 20)
    white[:, 1] = 120
    references = {"white": write_envi(tmp_path / "white.hdr", white), "dark": write_envi(tmp_path / "dark.hdr", dark)}
    options = {**{name: str(path) for name, path in references.items()}, "panel": 0.5}
    encoder = build(SpectralEncoder, {"bands": [3, 1], **options})
    found = encoder.encode(encoder.read(write_envi(tmp_path / "a.hdr", VALUES, "bip")))
    expected = 0.5 * (VALUES[..., [2, 0]] - 20) / (white[0, :, [2, 0]].T - 20)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.save(tmp_path / "few.npy", np.ones((1, WIDTH, 3), np.float32))
    few = build(SpectralEncoder, {"bands": [1], "white": str(tmp_path / "few.npy")})
    with pytest.raises(DataError, match="few.npy has 3 bands and the recording 7"):  # noqa: RUF043
        few.read(tmp_path / "a.hdr")


def test_arrays_and_tiffs_are_cubes_too(tmp_path: Path) -> None:
    import tifffile

    np.save(tmp_path / "a.npy", VALUES.astype(np.float32))
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(VALUES, -1, 0).astype(np.uint16), photometric="minisblack")
    for name in ("a.npy", "a.tif"):
        encoder = build(SpectralEncoder, {"wavelengths": [500], "centers": list(WAVELENGTHS), "scale": 0.01})
        found = encoder.encode(encoder.read(tmp_path / name))
        np.testing.assert_allclose(found, VALUES[..., 1:2] / 100, rtol=1e-6)
    with pytest.raises(DataError, match=r"a\.npy does not say its bands' wavelengths; list them as centers"):
        build(SpectralEncoder, {"wavelengths": [500]}).read(tmp_path / "a.npy")
    with pytest.raises(DataError, match="has 7 bands, but bands names 8"):
        build(SpectralEncoder, {"bands": [8], "centers": list(WAVELENGTHS)}).read(tmp_path / "a.npy")
    with pytest.raises(DataError, match="has 7 bands, but centers has 2"):
        build(SpectralEncoder, {"wavelengths": [500], "centers": [500, 600]}).read(write_envi(tmp_path / "c.hdr"))
    with pytest.raises(DataError, match=r"a\.npy: no band is within 20 nm of 900 nm"):
        build(SpectralEncoder, {"wavelengths": [900], "centers": list(WAVELENGTHS)}).read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "spectral: the bands are chosen by nothing"),
        ({"bands": [1], "groups": 2}, "spectral: the bands are chosen by bands and groups"),
        ({"wavelengths": [0]}, "spectral: wavelengths is [0.0]"),
        ({"wavelengths": []}, "spectral: wavelengths is []"),
        ({"bands": [0, 1]}, "it must hold numbers from 1, each once"),
        ({"bands": [2, 2]}, "each once"),
        ({"groups": 0}, "spectral: groups is 0"),
        ({"groups": 3, "tolerance": -1}, "spectral: tolerance is -1.0 nm"),
        ({"groups": 3, "dark": "d.hdr"}, "spectral: dark is given without white"),
        ({"groups": 3, "panel": 0}, "spectral: panel is 0.0"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        build(SpectralEncoder, values, "spectral")
    assert expected in str(error.value)
