"""Recordings of points come back as recorded, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlesam.errors import DataError, RequestError
from mlesam.sensors.points import read_points

COLUMNS = ("x", "y", "z", "intensity")


def cloud(count: int = 200, dtype: str = "float32") -> np.ndarray:
    """Points all around the sensor."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = np.empty((count, 4))
    points[:, :3] = direction * rng.integers(0, 12, (count, 1))
    points[:, 3] = rng.uniform(0, 1, count)
    return points.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_rows_come_back_as_recorded(tmp_path: Path, dtype: str, suffix: str) -> None:
    points, path = cloud(dtype=dtype), tmp_path / f"a{suffix}"
    points.tofile(path) if suffix == ".bin" else np.save(path, points)
    read = read_points(path, COLUMNS, dtype)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, points)


def test_times_of_a_clock_keep_their_microseconds(tmp_path: Path) -> None:
    columns = (*COLUMNS, "ring", "time")
    points = np.column_stack([cloud(dtype="float64"), np.zeros(200), 1.66e9 + np.arange(200) * 1e-5])
    points.tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", columns, "float64"), points)


def test_rows_without_a_measurement_are_left_out(tmp_path: Path) -> None:
    points = cloud()
    points[::3, 0] = np.nan
    points[1, 3] = np.inf
    points.tofile(tmp_path / "a.bin")
    expected = points[np.isfinite(points).all(axis=1)]
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", COLUMNS), expected)
    unused = read_points(tmp_path / "a.bin", ("x", "y", "z", "empty"))
    np.testing.assert_array_equal(unused, points[np.isfinite(points[:, :3]).all(axis=1)])


def pcd(fields: str, sizes: str, types: str, count: int, data: str, counts: str = "") -> bytes:
    lines = [
        "# .PCD v.7 - Point Cloud Data file format", "VERSION .7", f"FIELDS {fields}", f"SIZE {sizes}", f"TYPE {types}",
        *([f"COUNT {counts}"] if counts else []), f"WIDTH {count}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {count}",
        f"DATA {data}",
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines).encode()


def test_pcd_in_ascii_and_binary(tmp_path: Path) -> None:
    points, path = cloud(), tmp_path / "a.pcd"
    rows = "".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in points)
    path.write_bytes(pcd("x y z intensity", "4 4 4 4", "F F F F", 200, "ascii") + rows.encode())
    np.testing.assert_array_equal(read_points(path, COLUMNS), points)
    path.write_bytes(pcd("x y z intensity", "4 4 4 4", "F F F F", 200, "binary") + points.tobytes())
    read = read_points(path, COLUMNS)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, points)


def test_pcd_with_padding_other_types_and_another_order(tmp_path: Path) -> None:
    table = np.zeros(
        200, [("i", "u2"), ("_", "u1", 6), ("x", "f4"), ("n", "f4", 3), ("y", "f4"), ("z", "f4"), ("time", "f8")]
    )
    points = cloud()
    table["x"], table["y"], table["z"] = points[:, :3].T
    table["i"], table["time"] = np.arange(200), 1.66e9 + np.arange(200) * 1e-5
    header = pcd("Reflectivity _ x n y z time", "2 1 4 4 4 4 8", "U U F F F F F", 200, "binary", "1 6 1 3 1 1 1")
    (tmp_path / "a.pcd").write_bytes(header + table.tobytes())
    read = read_points(tmp_path / "a.pcd", (*COLUMNS, "time"))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, np.column_stack([points[:, :3], np.arange(200), table["time"]]))


def test_ply_in_ascii_and_binary(tmp_path: Path) -> None:
    points, path = cloud(), tmp_path / "a.ply"
    header = (
        "ply\nformat {} 1.0\ncomment made by hand\nelement vertex 200\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nproperty float scalar_Intensity\n{}end_header\n"
    )
    table = np.zeros(200, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("i", "f4")])
    for name, column in zip(("x", "y", "z", "i"), points.T, strict=True):
        table[name] = column
    face = "element face 1\nproperty list uchar int vertex_indices\n"
    path.write_bytes(header.format("binary_little_endian", face).encode() + table.tobytes() + b"\x03" + bytes(12))
    np.testing.assert_array_equal(read_points(path, COLUMNS), points)
    rows = "".join(f"{x:.9g} {y:.9g} {z:.9g} 255 {i:.9g}\n" for x, y, z, i in points)
    path.write_text(header.format("ascii", "") + rows)
    np.testing.assert_array_equal(read_points(path, COLUMNS), points)


def write(path: Path, content: bytes | np.ndarray) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        content.tofile(path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.bin", b"", "is empty"),
        ("a.bin", cloud(5)[:, :3].copy(), "has 60 bytes, no multiple of 16, the 4 columns (x, y, z, intensity) of float32"),
        ("a.bin", cloud(5)[:, :3].copy(), "it would hold 3 columns of float32 or 5 columns of float32"),
        ("a.bin", b"1234567", "it is cut off, copy it again"),
        ("a.bin", cloud(dtype="float64"), "when read as float32; set dtype: float64"),
        ("a.bin", np.random.default_rng(0).bytes(3200), "when read as float32; check dtype and columns"),
        ("a.bin", np.full((9, 4), np.nan, np.float32), "when read as float32; check dtype and columns"),
        ("a.npy", cloud() * np.float32(1e6), "give metres in the sensor's own axes, not map coordinates"),
        ("a.npy", cloud()[:, :3], "holds float32 values of the shape (200, 3), but columns names 4"),
        ("a.npy", np.zeros((4, 4), complex), "holds complex128 values"),
        ("a.npy", b"\x93NUMPY", "cannot be decoded"),
        ("a.pcd", pcd("x y z", "4 4 4", "F F F", 2, "binary") + bytes(24), "has no field 'intensity'; its fields are x, y, z"),
        ("a.pcd", pcd("x y z intensity", "4 4 4 4", "F F F F", 9, "binary") + bytes(16), "claims 9 points and holds fewer"),
        ("a.pcd", pcd("x y z intensity", "4 4 4 4", "F F F F", 9, "ascii") + b"1 2 3 4\n", "claims 9 points and holds fewer"),
        ("a.pcd", pcd("x y z intensity", "4 4 4 4", "F F F F", 0, "ascii"), "claims 0 points"),
        ("a.pcd", pcd("x y z intensity", "4 4 4 4", "F F F F", 9, "binary_compressed"), "save it as ascii or binary"),
        ("a.pcd", pcd("x y z n", "4 4 4 4", "F F F F", 1, "ascii", "1 1 1 1000000000"), "claims 1,000,000,003 numbers a point"),
        ("a.pcd", b"1 2 3\n", "has no line 'DATA' in its header"),
        ("a.pcd", pcd("x y z intensity", "4 4 4", "F F F F", 1, "binary") + bytes(16), "cannot be decoded"),
        ("a.ply", b"ply\nformat binary_big_endian 1.0\nend_header\n", "has the format binary_big_endian"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement face 1\nend_header\n", "does not begin with its vertices"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n", "has lists"),
        ("a.las", b"LASF", "is no bin, npy, pcd, ply file"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_points_is_refused(tmp_path: Path, name: str, content, expected: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        read_points(path, COLUMNS)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)


def test_float32_read_as_float64_is_noticed(tmp_path: Path) -> None:
    points = cloud(400) * np.float32(3)
    path = write(tmp_path / "a.bin", points)
    with pytest.raises(DataError, match="when read as float64; set dtype: float32"):
        read_points(path, COLUMNS, "float64")


def test_a_missing_file_and_wrong_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_points(tmp_path / "a.bin", COLUMNS)
    with pytest.raises(RequestError, match="must name x, y and z"):
        read_points(tmp_path / "a.bin", ("x", "y"))
    path = write(tmp_path / "a.bin", cloud())
    with pytest.raises(RequestError, match="dtype is 'float46'; did you mean 'float64'"):
        read_points(path, COLUMNS, "float46")
