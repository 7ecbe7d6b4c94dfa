"""Files come back as they were stored, or are refused by name before they take memory."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mlesam.errors import DataError
from mlesam.sensors.files import EXTENSIONS, channels_last, image_size, read_array, read_label

SIZE = (20, 30)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOR, GREY_ALPHA = 0, 2, 4


def numbers(dtype: str, *channels: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Random numbers over the type's whole range, which no lossy step survives."""
    rng = np.random.default_rng(3)
    if dtype.startswith("float"):
        return rng.normal(0, 1000, (*size, *channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (*size, *channels), dtype=dtype, endpoint=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes) -> bytes:
    """A PNG made by hand, with right checksums; ``rows`` are the uncompressed lines with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def refusal(path: Path, read=read_array) -> str:
    with pytest.raises(DataError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value).replace(str(path), "")  # pytest names folders after tests


# ---------------------------------------------------------------- PNG and JPEG


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)], ids=["grey", "rgb", "rgba"])
def test_a_png_keeps_every_value_and_the_order_of_its_colours(
    dtype: str, channels: tuple[int, ...], tmp_path: Path
) -> None:
    array = numbers(dtype, *channels)
    order = {(): slice(None), (3,): [2, 1, 0], (4,): [2, 1, 0, 3]}[channels]
    stored = array[..., order] if channels else array
    assert cv2.imwrite(str(tmp_path / "a.png"), stored)  # OpenCV takes blue first
    result = read_array(tmp_path / "a.png")
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_sixteen_bit_depth_keeps_its_values(tmp_path: Path) -> None:
    depth = np.array([[0, 1, 255, 256], [257, 9001, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(depth).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), depth)


def test_sixteen_bit_colour_is_kept_whatever_the_file_is_called(tmp_path: Path) -> None:
    array = numbers("uint16", 3)
    cv2.imwrite(str(tmp_path / "a.png"), array[..., ::-1])
    for name in ("a.PNG", "a.jpg"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        np.testing.assert_array_equal(read_array(tmp_path / name), array)


def test_sixteen_bit_grey_with_alpha_keeps_its_values(tmp_path: Path) -> None:
    array = numbers("uint16", 2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    (tmp_path / "a.png").write_bytes(png(30, 20, 16, GREY_ALPHA, rows))
    result = read_array(tmp_path / "a.png")
    np.testing.assert_array_equal(result[..., :3], np.repeat(array[..., :1], 3, axis=2))


def test_a_palette_picture_comes_in_its_colours(tmp_path: Path) -> None:
    index = numbers("uint8") % 3
    palette = np.array([[10, 20, 30], [200, 100, 0], [255, 255, 255]], dtype=np.uint8)
    picture = Image.frombytes("P", (30, 20), index.tobytes())
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), palette[index])
    picture.save(
        tmp_path / "clear.png", transparency=bytes([255, 0, 128])
    )  # Pillow warns where this is turned into RGB
    clear = read_array(tmp_path / "clear.png")
    np.testing.assert_array_equal(clear[..., :3], palette[index])
    np.testing.assert_array_equal(clear[..., 3], np.array([255, 0, 128])[index])


def test_a_jpeg_comes_as_8_bit_colour_or_grey(tmp_path: Path) -> None:
    y, x = np.mgrid[:20, :30]
    smooth = np.stack([x * 8, y * 12, 255 - x * 8], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    result = read_array(tmp_path / "a.jpg")
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - smooth).max() <= 3
    Image.fromarray(smooth[..., 0]).save(tmp_path / "b.jpeg", quality=100)
    assert read_array(tmp_path / "b.jpeg").shape == SIZE


def test_a_cmyk_jpeg_comes_as_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    result = read_array(tmp_path / "a.jpg")
    assert result.shape == (8, 8, 3)
    assert np.abs(result[4, 4].astype(int) - (200, 30, 60)).max() <= 4


def test_a_tiny_colour_picture_keeps_its_layout(tmp_path: Path) -> None:
    array = numbers("uint8", 3, size=(2, 7))  # fewer rows than channels
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), array)


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("how", [{}, {"compression": "deflate"}, {"byteorder": ">"}, {"tile": (16, 16)}], ids=str)
@pytest.mark.parametrize("planar", ["contig", "separate", "pages"])
def test_a_tiff_of_twelve_bands_keeps_every_value(dtype: str, how: dict, planar: str, tmp_path: Path) -> None:
    array = numbers(dtype, 12)
    stored = array if planar == "contig" else np.ascontiguousarray(np.moveaxis(array, -1, 0))
    options = {} if planar == "pages" else {"planarconfig": planar}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options, **how)
    result = read_array(tmp_path / "a.tif")
    assert result.dtype == (np.float32 if dtype == "float64" else dtype)
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array.astype(result.dtype))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_says_itself_which_axis_holds_its_bands(planar: str, tmp_path: Path) -> None:
    array = numbers("uint16", 100, size=(6, 9))  # fewer rows and columns than bands
    stored = array if planar == "contig" else np.ascontiguousarray(np.moveaxis(array, -1, 0))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("array", [numbers("uint8"), numbers("uint16"), numbers("uint8", 3)], ids=["8", "16", "rgb"])
def test_an_lzw_tiff_keeps_every_value(array: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), array)


def test_an_lzw_tiff_that_would_lose_bits_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), numbers("uint16", 3))  # OpenCV writes LZW; Pillow reads it as 8 bits
    assert "uncompressed" in refusal(tmp_path / "a.tif")


def test_a_palette_tiff_comes_in_its_colours(tmp_path: Path) -> None:
    index = numbers("uint8") % 2
    colors = np.zeros((3, 256), dtype=np.uint16)
    colors[:, 1] = (65535, 32896, 0)
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=colors)
    expected = np.array([[0, 0, 0], [255, 128, 0]], dtype=np.uint8)[index]
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), expected)


# ---------------------------------------------------------------- npy


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2", ">f4", "float16", "float64"])
@pytest.mark.parametrize("layout", ["HW", "HWC", "CHW", "HW1", "1HW", "fortran"])
def test_an_array_keeps_every_value_in_any_layout(dtype: str, layout: str, tmp_path: Path) -> None:
    plain_type = {">u2": "uint16", ">f4": "float32"}.get(dtype, dtype)
    array = numbers(plain_type, *(() if "C" not in layout else (5,)))
    if plain_type == "float16":
        array = (array / 1000).astype(np.float16)
    stored = {
        "CHW": lambda: np.moveaxis(array, -1, 0),
        "HW1": lambda: array[..., None],
        "1HW": lambda: array[None],
        "fortran": lambda: np.asfortranarray(array),
    }.get(layout, lambda: array)()
    np.save(tmp_path / "a.npy", stored.astype(dtype))
    result = read_array(tmp_path / "a.npy")
    assert result.dtype.name in ("uint8", "uint16", "float32")
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array.astype(result.dtype))


def test_true_and_false_come_as_one_and_zero(tmp_path: Path) -> None:
    mask = numbers("uint8") > 128
    np.save(tmp_path / "a.npy", mask)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), mask.astype(np.uint8))


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint32", "uint64"])
def test_wider_whole_numbers_stay_whole_numbers(dtype: str, tmp_path: Path) -> None:
    """Millimetres in numpy's default int64 are not metres in floating point."""
    np.save(tmp_path / "a.npy", np.array([[0, 5000], [32767, 1]], dtype=dtype))
    result = read_array(tmp_path / "a.npy")
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, [[0, 5000], [32767, 1]])


@pytest.mark.parametrize("value", [-1, 65536])
def test_whole_numbers_beyond_sixteen_bits_are_refused(value: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, value]], dtype=np.int64))
    assert str(value) in refusal(tmp_path / "a.npy")


def test_a_number_beyond_float32_is_no_measurement(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1e300, np.nan, 1.5]]))
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), np.array([[np.inf, np.nan, 1.5]], dtype=np.float32))


@pytest.mark.parametrize("array", [np.zeros((2, 2), complex), np.array([["a"]]), np.zeros((2, 2), "u1,f4")], ids=str)
def test_values_that_are_no_real_numbers_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    assert "whole or real numbers" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (2, 3, 4, 5)])
def test_an_array_that_is_no_picture_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    assert str(shape) in refusal(tmp_path / "a.npy")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_python_objects_in_an_array_are_never_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "sprung"
    trap = np.empty((2, 2), dtype=object)
    trap[:] = Trap(mark)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    assert "Python objects" in refusal(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap(mark)))
    refusal(tmp_path / "b.npy")
    assert not mark.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert mark.exists()  # the trap works


# ---------------------------------------------------------------- broken files


def broken_png(kind: str, share: float) -> bytes:
    """The first part of a picture that noise keeps from being compressed."""
    array = numbers("uint16" if "16" in kind else "uint8", *((3,) if "color" in kind else ()), size=(64, 80))
    data = bytes(cv2.imencode(".png", array)[1])
    return data[: int(len(data) * share)]


@pytest.mark.parametrize("kind", ["grey8", "grey16", "color8", "color16"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_cut_off_png_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(broken_png(kind, share))
    refusal(tmp_path / "a.png")


def test_sixteen_bit_colour_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    """All checksums are right, but half of the compressed picture is not there; OpenCV may fill it with zeros."""
    rebuilt = SIGNATURE
    for kind, data in chunks(broken_png("color16", 1)):
        rebuilt += chunk(kind, data[: len(data) // 2] if kind == b"IDAT" else data)
    (tmp_path / "a.png").write_bytes(rebuilt)
    refusal(tmp_path / "a.png")


def test_sixteen_bit_colour_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    data = bytearray(broken_png("color16", 1))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    refusal(tmp_path / "a.png")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_cut_off_jpeg_is_refused(share: float, tmp_path: Path) -> None:
    data = bytes(cv2.imencode(".jpg", numbers("uint8", 3, size=(64, 80)))[1])
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * share)])
    refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("how", [{}, {"compression": "deflate"}, {"tile": (16, 16)}, {"rowsperstrip": 4}], ids=str)
@pytest.mark.parametrize("planar", ["contig", "separate", "pages"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_cut_off_tiff_is_refused(how: dict, planar: str, share: float, tmp_path: Path) -> None:
    """tifffile reads what is left of a file of many pages, and only logs what is not."""
    array = numbers("float32", 12, size=(64, 80))
    stored = array if planar == "contig" else np.ascontiguousarray(np.moveaxis(array, -1, 0))
    options = {} if planar == "pages" else {"planarconfig": planar}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack", **options, **how)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refusal(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_cut_off_array_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, numbers("float32", 3))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refusal(path)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"not a picture"], ids=["empty", "zeros", "words"])
def test_a_file_of_nothing_is_refused(extension: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{extension}"
    path.write_bytes(data)
    assert "cannot be decoded" in refusal(path)
    refusal(path, image_size)
    refusal(path, read_label)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    assert "png, jpg, jpeg, tif, tiff, npy" in refusal(tmp_path / "a.bmp")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.bmp").read_bytes())
    refusal(tmp_path / "b.png")  # decoders that are not needed are not reachable under another name
    np.savez(tmp_path / "c.npz", a=np.zeros((2, 2)))
    (tmp_path / "c.npy").write_bytes((tmp_path / "c.npz").read_bytes())
    refusal(tmp_path / "c.npy")


def test_a_file_under_a_wrong_name_is_read_or_refused_but_never_changed(tmp_path: Path) -> None:
    array = numbers("uint8", 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    for name in ("b.jpg", "b.tif", "b.npy"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(read_array(tmp_path / "b.jpg"), array)
    refusal(tmp_path / "b.tif")
    refusal(tmp_path / "b.npy")


@pytest.mark.parametrize("read", [read_array, read_label, image_size])
def test_a_missing_file_and_a_folder_are_refused(read, tmp_path: Path) -> None:
    assert "there is no" in refusal(tmp_path / "a.png", read)
    (tmp_path / "b.png").mkdir()
    assert "there is no" in refusal(tmp_path / "b.png", read)


# ---------------------------------------------------------------- files that claim to be enormous


@pytest.fixture
def little_memory():
    """Little address space above what the process has, so that taking what a header claims would fail at once."""
    resource = pytest.importorskip("resource")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tiff(width: int, height: int, bands: int = 1, bits: int = 8, compression: int = 1) -> bytes:
    """The header of a TIFF with next to no data, made by hand."""
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, compression), (262, 3, 1), (273, 4, 8),
        (277, 3, bands), (278, 4, height), (279, 4, 10), (284, 3, 1),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 18) + b"x" * 10 + struct.pack("<H", len(entries)) + directory + b"\0" * 4


def npy(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + b"x" * 10


def huge_jpeg() -> bytes:
    data = bytes(cv2.imencode(".jpg", numbers("uint8", 3))[1])
    size = struct.pack(">HH", *SIZE)
    assert data.count(size) == 1
    return data.replace(size, struct.pack(">HH", 65000, 65000))


ENORMOUS = {
    "grey8.png": png(100_000, 100_000, 8, GREY, b""),
    "grey16.png": png(100_000, 100_000, 16, GREY, b""),
    "color8.png": png(100_000, 100_000, 8, COLOR, b""),
    "color16.png": png(100_000, 100_000, 16, COLOR, b""),
    "just.png": png(14_000, 14_000, 8, GREY, b""),  # more than is read, less than makes Pillow refuse
    "a.jpg": huge_jpeg(),
    "plain.tif": tiff(100_000, 100_000),
    "packed.tif": tiff(100_000, 100_000, compression=8),
    "bands.tif": tiff(12_000, 12_000, bands=1000, compression=8),
    "channels.tif": tiff(1000, 100, bands=60_000, compression=8),
    "plain.npy": npy((100_000, 100_000)),
    "bands.npy": npy((100_000, 1000, 1000)),
    "four.npy": npy((20, 10_000, 10_000, 3)),
    "overflow.npy": npy((2**31, 2**31, 2**31)),
    "objects.npy": npy((100_000, 100_000), "|O"),
}


@pytest.mark.parametrize("name", ENORMOUS)
def test_a_header_that_claims_an_enormous_size_is_refused_before_memory_is_taken(
    name: str, tmp_path: Path, little_memory: None
) -> None:
    (tmp_path / name).write_bytes(ENORMOUS[name])
    message = refusal(tmp_path / name)
    assert "MemoryError" not in message
    assert "allocate" not in message
    if "objects" not in name:
        assert "claims" in message, message
    if name.endswith((".png", ".jpg")):
        assert "claims" in refusal(tmp_path / name, image_size)
        refusal(tmp_path / name, read_label)


def test_the_memory_limit_of_these_tests_works(little_memory: None) -> None:
    with pytest.raises(MemoryError):
        np.ones((100_000, 100_000), np.uint8)


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from half of its limit on; a file that is allowed is no reason to warn, or to change the filters."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # the picture has 600
    Image.fromarray(numbers("uint8")).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as seen:
        before = list(warnings.filters)
        assert read_array(tmp_path / "a.png").shape == SIZE
        assert image_size(tmp_path / "a.png") == SIZE
        assert warnings.filters == before
    assert not seen


def test_an_application_that_lifts_pillows_limit_does_not_lift_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(ENORMOUS["grey8.png"])
    for read in (read_array, read_label, image_size):
        assert "claims to be 100000 x 100000 pixels" in refusal(tmp_path / "a.png", read)


# ---------------------------------------------------------------- sizes and labels


def test_the_size_of_a_file_is_height_and_width(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), numbers("uint16", 3))
    cv2.imwrite(str(tmp_path / "a.jpg"), numbers("uint8"))
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(numbers("float32", 12), -1, 0), photometric="minisblack")
    np.save(tmp_path / "a.npy", numbers("float32", 2))
    for name in ("a.png", "a.jpg", "a.tif", "a.npy"):
        assert image_size(tmp_path / name) == SIZE


def test_a_palette_label_gives_its_indices(tmp_path: Path) -> None:
    index = numbers("uint8") % 5
    picture = Image.frombytes("P", (30, 20), index.tobytes())
    picture.putpalette(np.arange(15, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), index)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_label_of_few_bits_gives_the_ids_it_stores(bits: int, tmp_path: Path) -> None:
    """Decoders stretch few bits to 0..255, which would make 1 a 255."""
    ids = np.random.default_rng(0).integers(0, 2**bits, (4, 8))
    weights = 2 ** np.arange(8 - bits, -1, -bits)
    rows = b"".join(b"\0" + bytes((row.reshape(-1, 8 // bits) * weights).sum(axis=1).tolist()) for row in ids)
    (tmp_path / "a.png").write_bytes(png(8, 4, bits, GREY, rows))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


def test_a_sixteen_bit_label_gives_its_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 300], [65535, 1]], dtype=np.uint16)
    Image.fromarray(ids).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


def test_labels_in_arrays_and_tiffs_give_their_ids(tmp_path: Path) -> None:
    ids = np.array([[-1, 300], [0, 1]])
    np.save(tmp_path / "a.npy", ids)
    tifffile.imwrite(tmp_path / "a.tif", ids.astype(np.int32))
    np.save(tmp_path / "b.npy", ids.astype(np.float64))
    for name in ("a.npy", "a.tif", "b.npy"):
        np.testing.assert_array_equal(read_label(tmp_path / name), ids)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_label_of_fractions_is_refused(value: float, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.0, value]]))
    assert "whole numbers" in refusal(tmp_path / "a.npy", read_label)


def test_a_label_stored_as_jpeg_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg")
    assert "PNG" in refusal(tmp_path / "a.jpg", read_label)


def test_ids_saved_as_grey_colours_are_ids(tmp_path: Path) -> None:
    ids = numbers("uint8") % 4
    Image.fromarray(np.repeat(ids[..., None], 3, axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)
    Image.fromarray(np.dstack([ids, ids, ids, np.full(SIZE, 255, np.uint8)])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_label(tmp_path / "b.png"), ids)


def test_a_grey_picture_in_the_classes_colours_is_a_picture_of_colours(tmp_path: Path) -> None:
    """Black and white as the colours of two classes are neither id 0 nor the ignored 255."""
    array = np.repeat((numbers("uint8") > 128)[..., None] * np.uint8(255), 3, axis=2)
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png", [(0, 0, 0), (255, 255, 255)]), array)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png", [(0, 0, 0), (255, 0, 0)]), array[..., 0])


# ---------------------------------------------------------------- which axis holds the channels


CUBE = numbers("uint16", 100, size=(48, 64))
"""A cube with more bands than rows and columns: its shape alone does not say where they are."""


@pytest.mark.parametrize("leading", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_cube_of_more_bands_than_rows_is_read_by_what_is_known_of_it(
    leading: bool, suffix: str, tmp_path: Path
) -> None:
    path, beside, broken = tmp_path / f"a{suffix}", tmp_path / "a.png", tmp_path / "b.png"
    stored = np.ascontiguousarray(np.moveaxis(CUBE, -1, 0)) if leading else CUBE
    if suffix == ".npy":
        np.save(path, stored)
    else:
        tifffile.imwrite(path, stored, photometric="minisblack")  # pages: bands or rows
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(beside)
    broken.write_bytes(b"no picture")
    np.testing.assert_array_equal(read_array(path, 100), CUBE)
    np.testing.assert_array_equal(read_array(path, None, [tmp_path / "a.npy", broken, beside]), CUBE)
    np.testing.assert_array_equal(read_array(path, 7, [beside]), CUBE)  # a wrong number must be called by the right one
    np.testing.assert_array_equal(read_array(path, 90), CUBE)  # nearer to 100 than to either side


@pytest.mark.parametrize(
    ("shape", "channels", "size", "expected"),
    [
        ((64, 64, 100), None, None, (64, 64, 100)),  # a square
        ((100, 64, 64), None, None, (64, 64, 100)),
        ((5, 6, 7), None, None, (6, 7, 5)),  # the shorter
        ((7, 6, 5), None, None, (7, 6, 5)),
        ((5, 6, 5), 5, None, (5, 6, 5)),  # either: as files mostly are
        ((5, 6, 5), 5, (6, 5), (6, 5, 5)),
        ((12, 12, 64), 12, None, (12, 64, 12)),  # what is declared comes before what looks likely
        ((64, 12, 12), 64, None, (12, 12, 64)),
        ((3, 4, 1), None, None, (3, 4)),
    ],
)
def test_channels_come_last(shape: tuple, channels: int | None, size: tuple | None, expected: tuple) -> None:
    assert channels_last(np.zeros(shape), channels, size).shape == expected
