"""Event cameras: what is read of a recording, what is counted, and where the events land in another camera's picture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlesam.config import build
from mlesam.errors import DataError, RequestError
from mlesam.sensors.event_files import EVENT, pack_events, read_events
from mlesam.sensors.events import EventsEncoder, polarity_counts, voxel_grid
from mlesam.sensors.pixel_table import PixelTable, rectification, table_from_map

SIZE = (13, 7)
START = 1_684_000_000_000_000  # microseconds since 1970, beyond what float32 can hold


def some_events(count: int = 400, seed: int = 3, size: tuple[int, int] = SIZE, duration: int = 60_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = START + np.sort(rng.integers(0, duration + 1, count))
    t[0], t[-1] = START, START + duration
    return pack_events(rng.integers(0, size[0], count), rng.integers(0, size[1], count), t, rng.integers(0, 2, count))


def write_hdf5(path: Path, events: np.ndarray, group: str = "events", **options) -> Path:
    with h5py.File(path, "w") as file:
        for key, kind in (("x", "u2"), ("y", "u2"), ("t", "u8"), ("p", "u1")):
            values = (events["p"] > 0) if key == "p" else events[key]
            file.create_dataset(f"{group}/{key}", data=values.astype(kind), **options)
    return path


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("form", ["hdf5", "compound", "structured", "columns", "npz", "npz-columns"])
def test_every_form_of_a_recording_gives_the_same_events(tmp_path: Path, form: str) -> None:
    events = some_events()
    group = "events"
    if form == "hdf5":
        path = write_hdf5(tmp_path / "a.h5", events, chunks=(64,), compression="gzip")
    elif form == "compound":
        path, group = tmp_path / "a.hdf5", "CD/events"
        with h5py.File(path, "w") as file:
            file["CD/events"] = events
    elif form == "structured":
        path = tmp_path / "a.npy"
        np.save(path, events)
    elif form == "columns":
        path = tmp_path / "a.npy"
        np.save(path, np.stack([events[key].astype(np.int64) for key in ("x", "y", "t", "p")], axis=1))
    elif form == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, **{key: events[key] for key in ("x", "y", "t", "p")})
    else:
        path = tmp_path / "a.npz"
        np.savez(path, np.stack([events[key].astype(np.int64) for key in ("x", "y", "t", "p")], axis=1))
    read = read_events(path, group=group)
    assert read.dtype == EVENT
    assert (read == events).all()
    late = read_events(path, window=0.03, group=group)
    assert (late == events[events["t"] >= START + 30_000]).all()
    middle = read_events(path, START + 40_000, 0.02, group=group)
    assert (middle == events[(events["t"] >= START + 20_000) & (events["t"] <= START + 40_000)]).all()
    assert 0 < len(middle) < len(late) < len(events)


def test_events_at_both_ends_of_the_window_belong_to_it(tmp_path: Path) -> None:
    times = np.array([0, 9, 10, 10, 15, 20, 20, 21, 30])
    write_hdf5(tmp_path / "a.h5", pack_events(times * 0, times * 0, times, times % 2))
    assert read_events(tmp_path / "a.h5", 20, 10e-6)["t"].tolist() == [10, 10, 15, 20, 20]


def test_the_offset_of_a_dsec_file_is_part_of_its_clock(tmp_path: Path) -> None:
    events = some_events()
    with h5py.File(write_hdf5(tmp_path / "a.h5", events), "a") as file:
        file["t_offset"] = np.int64(5_000_000)
    assert (read_events(tmp_path / "a.h5")["t"] == events["t"] + 5_000_000).all()
    read = read_events(tmp_path / "a.h5", START + 5_010_000, 0.005)
    assert len(read) == ((events["t"] >= START + 5_000) & (events["t"] <= START + 10_000)).sum()
    with pytest.raises(DataError, match="t_offset"):
        read_events(tmp_path / "a.h5", START + 10_000, 0.005)


def test_times_in_seconds_become_microseconds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2, 0.0, 0], [3, 4, 0.25, 1], [5, 6, 1.000001, 1]]))
    assert read_events(tmp_path / "a.npy", time_unit=1.0)["t"].tolist() == [0, 250_000, 1_000_001]
    assert read_events(tmp_path / "a.npy", window=0.8, time_unit=1.0)["x"].tolist() == [3, 5]


def test_undistorted_coordinates_go_to_the_nearest_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.4, 2.6, 0, 0], [-0.3, 4.0, 5, 1]]))
    read = read_events(tmp_path / "a.npy")
    assert (read["x"].tolist(), read["y"].tolist()) == ([1, 0], [3, 4])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([0, 1], [-1, 1]), ([-1, 1], [-1, 1]), ([1, 1], [1, 1]), ([0, 0], [-1, -1]), ([-1, -1], [-1, -1])],
)
def test_both_codes_of_polarity_are_read(stored: list[int], expected: list[int]) -> None:
    assert pack_events([0, 0], [0, 0], [0, 1], stored)["p"].tolist() == expected
    assert pack_events([0, 0], [0, 0], [0, 1], np.array(stored, float))["p"].tolist() == expected


def test_only_the_window_is_read_and_damage_in_it_is_an_error(tmp_path: Path) -> None:
    """The first block of a column is overwritten: the last 30 ms do not need it."""
    events = some_events(20_000)
    path = write_hdf5(tmp_path / "a.h5", events, chunks=(500,), compression="gzip")
    with h5py.File(path) as file:
        place, length = file["events/x"].id.get_chunk_info(0)[2:4]
    content = bytearray(path.read_bytes())
    content[place : place + length] = bytes(length)
    path.write_bytes(bytes(content))
    assert (read_events(path, window=0.03) == events[events["t"] >= START + 30_000]).all()
    with pytest.raises(DataError, match=r"a\.h5 cannot be read .* damaged or cut off"):
        read_events(path)


def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    events = some_events(5000)
    np.save(tmp_path / "a.npy", events)
    np.savez(tmp_path / "a.npz", events)
    for path in (write_hdf5(tmp_path / "a.h5", events), tmp_path / "a.npy", tmp_path / "a.npz"):
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(DataError, match="damaged or cut off"):
            read_events(path)


def test_a_recording_without_the_expected_groups_names_what_it_holds(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", some_events(), group="prophesee/left")
    with pytest.raises(DataError) as error:
        read_events(path)
    assert "no events/x, events/y, events/t, events/p" in str(error.value)
    assert "prophesee/left/x" in str(error.value)
    assert "Set group" in str(error.value)
    assert len(read_events(path, group="prophesee/left")) == 400
    with h5py.File(tmp_path / "b.h5", "w"):
        pass
    with pytest.raises(DataError, match="it holds nothing"):
        read_events(tmp_path / "b.h5")


def test_a_missing_compression_filter_is_named(tmp_path: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((100,))
    plan.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())  # a number that is reserved for tests
    with h5py.File(write_hdf5(tmp_path / "a.h5", some_events()), "a") as file:
        del file["events/p"]
        h5py.h5d.create(file["events"].id, b"p", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((400,)), plan)
    with pytest.raises(DataError, match=r"HDF5 filter 300 .*pip install .mlesam\[events\]"):
        read_events(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["Blosc", "Zstd"])
def test_a_recording_compressed_with_a_filter_of_the_extra_is_read(tmp_path: Path, name: str) -> None:
    """In a process of its own: once imported, hdf5plugin stays registered, and nothing shows that the reader asked for it."""
    if importlib.util.find_spec("hdf5plugin") is None:
        pytest.skip('needs hdf5plugin: pip install "mlesam[events]"')
    write = (
        "import sys, h5py, hdf5plugin, numpy as np\n"
        "events = np.load(sys.argv[2])\n"
        "with h5py.File(sys.argv[1], 'w') as file:\n"
        "    for key in 'xytp':\n"
        f"        file.create_dataset('events/' + key, data=events[key], chunks=(64,), **hdf5plugin.{name}())\n"
    )
    read = (
        "import sys, numpy as np\n"
        "from mlesam.sensors.event_files import read_events\n"
        "assert 'hdf5plugin' not in sys.modules\n"
        "np.save(sys.argv[3], read_events(sys.argv[1]))\n"
    )
    events = some_events()
    recording, given, found = (str(tmp_path / f) for f in ("a.h5", "given.npy", "found.npy"))
    np.save(given, events)
    for code in (write, read):
        done = subprocess.run([sys.executable, "-c", code, recording, given, found], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(found), events)


def test_a_recording_without_such_a_filter_does_not_import_the_extra(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", some_events(), chunks=(64,), compression="gzip")
    code = (
        "import sys\n"
        "from mlesam.sensors.event_files import read_events\n"
        "assert len(read_events(sys.argv[1])) == 400 and 'hdf5plugin' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (([0, 0], [0, 0], [0, 1, 2], [0, 1]), "columns of different lengths (x 2, y 2, t 3, p 2)"),
        (([0, 0, 0], [0, 0, 0], [0, 7, 5], [0, 1, 1]), "event 2 is at 5, the one before it at 7"),
        (([0, 0, 0], [0, 0, 0], [0, 1, 2], [-1, 0, 1]), "has the polarities -1, 0, 1; store 0 and 1, or -1 and 1"),
        (([0, 0], [0, 0], [0, 1], [0, 2]), "has the polarities 0, 2"),
        (([0, 0], [0, 0], [0, 1], [0, 255]), "has the polarities 0, 255"),
        (([0, 0], [0, 0], [0, 1], [0.5, 1]), "has the polarities 0.5, 1"),
        (([0, 40_000], [0, 0], [0, 1], [0, 1]), "values of x from 0 to 40000"),
        (([0, 1], [0.0, float("nan")], [0, 1], [0, 1]), "values of y from nan to nan"),
    ],
)
def test_columns_that_are_no_events_are_refused(columns: tuple, expected: str) -> None:
    with pytest.raises(DataError) as error:
        pack_events(*columns, name="a.h5")
    assert expected in str(error.value)
    assert str(error.value).startswith("a.h5 ")


def test_other_layouts_and_names_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "swapped.npy", np.array([[0, 1, 9, 1], [5, 2, 3, 0]]))
    np.save(tmp_path / "three.npy", np.zeros((4, 3)))
    np.save(tmp_path / "fields.npy", np.zeros(4, [("u", "i4"), ("v", "i4")]))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "falling.npy", np.array([[1, 1, 9, 1], [0, 1, 3, 1]]))
    (tmp_path / "a.raw").write_bytes(b"% evt 3.0")
    for name, expected in (
        ("swapped.npy", "store the columns in the order x, y, t, p"),
        ("three.npy", "shape (4, 3); it needs (N, 4)"),
        ("fields.npy", "has the fields u, v"),
        ("two.npz", "holds the arrays a, b"),
        ("falling.npy", "runs from 9 to 3 µs"),
        ("a.raw", "is no h5, hdf5, npy, npz file"),
        ("none.h5", "there is no file"),
    ):
        with pytest.raises(DataError) as error:
            read_events(tmp_path / name)
        assert expected in str(error.value)


# ---------------------------------------------------------------- counting


def counted_by_hand(events: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    counts = np.zeros((size[1], size[0], 2))
    for x, y, p, _ in events.tolist():
        counts[y, x, 0 if p > 0 else 1] += 1
    return counts


def volume_by_hand(events: np.ndarray, size: tuple[int, int], bins: int, start: int, stop: int) -> np.ndarray:
    volume = np.zeros((size[1], size[0], bins))
    for x, y, p, t in events.tolist():
        instant = (bins - 1) * (t - start) / (stop - start)
        for b in range(bins):
            volume[y, x, b] += p * max(0.0, 1 - abs(b - instant))
    return volume


def test_counts_are_those_of_a_loop() -> None:
    events = some_events(70_000)  # several chunks
    counts = polarity_counts(events, SIZE)
    assert counts.dtype == np.float32
    assert counts.shape == (7, 13, 2)
    np.testing.assert_array_equal(counts, counted_by_hand(events, SIZE))
    part = events[(events["t"] >= START + 100) & (events["t"] <= START + 5_000)]
    np.testing.assert_array_equal(
        polarity_counts(events, SIZE, START + 100, START + 5_000), counted_by_hand(part, SIZE)
    )


@pytest.mark.parametrize("bins", [1, 2, 5, 9])
def test_a_voxel_grid_is_that_of_the_formula(bins: int) -> None:
    events = some_events(40_000)
    grid = voxel_grid(events, SIZE, bins)
    assert grid.dtype == np.float32
    assert grid.shape == (7, 13, bins)
    np.testing.assert_allclose(grid, volume_by_hand(events, SIZE, bins, START, START + 60_000), atol=2e-3)
    few, stop = events[::100], START + 60_000
    expected = volume_by_hand(few, SIZE, bins, START, stop)
    np.testing.assert_allclose(voxel_grid(few, SIZE, bins, START, stop), expected, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 1000), st.booleans()), min_size=1, max_size=40
    ),
    st.integers(2, 7),
    st.integers(1001, 5000),
)
def test_every_event_is_shared_out_whole(rows: list, bins: int, stop: int) -> None:
    rows.sort(key=lambda row: row[2])
    x, y, t, p = (np.array(column) for column in zip(*rows, strict=True))
    events = pack_events(x, y, t, p)
    grid = voxel_grid(events, (5, 4), bins, 0, stop)
    np.testing.assert_allclose(grid, volume_by_hand(events, (5, 4), bins, 0, stop), atol=1e-5)
    counts = polarity_counts(events, (5, 4))
    np.testing.assert_allclose(grid.sum(axis=2), counts[..., 0] - counts[..., 1], atol=1e-5)


def test_events_of_one_instant_and_no_events_at_all() -> None:
    burst = pack_events([1, 1, 2], [0, 0, 1], [5, 5, 5], [1, 1, 0])
    grid = voxel_grid(burst, (4, 3), 3)
    assert grid[0, 1].tolist() == [2, 0, 0]
    assert grid[1, 2].tolist() == [-1, 0, 0]
    assert (voxel_grid(np.empty(0, EVENT), (4, 3), 3) == 0).all()
    assert (polarity_counts(np.empty(0, EVENT), (4, 3)) == 0).all()


def test_a_wrong_size_is_refused_and_not_cut() -> None:
    events = some_events()
    for size in ((12, 7), (13, 6)):
        for encode in (polarity_counts, voxel_grid):
            with pytest.raises(DataError, match=f"outside of {size[0]} x {size[1]} pixels"):
                encode(events, size)
    with pytest.raises(DataError, match="outside of 13 x 7"):
        polarity_counts(pack_events([-1], [0], [0], [1]), SIZE)


def test_what_cannot_be_counted_is_refused() -> None:
    events = some_events()
    with pytest.raises(DataError, match="not sorted by time"):
        voxel_grid(events[::-1].copy(), SIZE)
    with pytest.raises(RequestError, match="start must not be later"):
        voxel_grid(events, SIZE, 5, 10, 5)
    with pytest.raises(RequestError, match="bins is 0"):
        voxel_grid(events, SIZE, 0)
    with pytest.raises(RequestError, match="read_events"):
        polarity_counts(np.zeros((5, 4)), SIZE)


# ---------------------------------------------------------------- into another camera's picture

EVENT_SIZE, RGB_SIZE = (64, 48), (96, 54)
EVENT_MATRIX = np.array([[60.0, 0, 31], [0, 61, 23.5], [0, 0, 1]])
RGB_MATRIX = np.array([[80.0, 0, 48], [0, 80, 26.5], [0, 0, 1]])
ROTATION = cv2.Rodrigues(np.array([0.03, -0.06, 0.02]))[0]
LENS = np.array([-0.25, 0.08, 0.001, -0.002, 0.0])


def places_of(table: PixelTable) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the event camera that stay in the picture, and where they go: (N, 2) each."""
    kept = np.flatnonzero(table.index < table.size[0] * table.size[1])
    target = table.index[kept]
    return (
        np.stack([kept % table.source[0], kept // table.source[0]], axis=1),
        np.stack([target % table.size[0], target // table.size[0]], axis=1),
    )


def test_without_a_lens_the_table_is_a_homography() -> None:
    table = rectification(EVENT_SIZE, EVENT_MATRIX, None, ROTATION, RGB_SIZE, RGB_MATRIX)
    pixels, places = places_of(table)
    assert len(pixels) > 1000
    homography = RGB_MATRIX @ ROTATION @ np.linalg.inv(EVENT_MATRIX)
    for (x, y), place in zip(pixels[::37], places[::37], strict=True):
        u, v, w = homography @ (x, y, 1)
        assert np.abs(place - (u / w, v / w)).max() <= 0.5 + 1e-9


def test_a_table_agrees_with_opencv_and_comes_back_through_the_lens() -> None:
    table = rectification(EVENT_SIZE, EVENT_MATRIX, LENS, ROTATION, RGB_SIZE, RGB_MATRIX)
    pixels, places = places_of(table)
    direct = cv2.undistortPoints(pixels[:, None].astype(float), EVENT_MATRIX, LENS, R=ROTATION, P=RGB_MATRIX)[:, 0]
    assert np.abs(places - direct).max() < 0.6  # half a pixel of rounding, and OpenCV stops early
    rays = np.linalg.inv(RGB_MATRIX) @ np.concatenate([places, np.ones((len(places), 1))], axis=1).T
    back = cv2.projectPoints((ROTATION.T @ rays).T[:, None], np.zeros(3), np.zeros(3), EVENT_MATRIX, LENS)[0][:, 0]
    assert np.abs(back - pixels).max() < 0.5


@pytest.mark.parametrize("start", ["opencv", "none"])
def test_every_pixel_comes_back_through_a_strong_lens(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Also where OpenCV's own inverse, which stops after a few iterations, is as far off as no inverse at all."""
    if start == "none":
        whole = cv2.undistortPoints
        monkeypatch.setattr(cv2, "undistortPoints", lambda pixels, matrix, lens: whole(pixels, matrix, None))
    strong = np.array([-0.55, 0.5, 0.0, 0.0, -0.15])
    wide = np.array([[70.0, 0, 60], [0, 70, 50], [0, 0, 1]])
    table = rectification(EVENT_SIZE, EVENT_MATRIX, strong, np.eye(3), (120, 100), wide)
    pixels, places = places_of(table)
    assert len(pixels) == 64 * 48
    rays = np.linalg.inv(wide) @ np.concatenate([places, np.ones((len(places), 1))], axis=1).T
    back = cv2.projectPoints(rays.T[:, None], np.zeros(3), np.zeros(3), EVENT_MATRIX, strong)[0][:, 0]
    assert np.abs(back - pixels).max() < 0.5


def test_the_table_is_stereo_rectification_there_and_back() -> None:
    """How the MUSES tools project their event camera: into the rectified pair's plane, and from there into the camera's."""
    shift = np.array([0.2, 0.01, -0.02])
    there = cv2.stereoRectify(RGB_MATRIX, np.zeros(5), EVENT_MATRIX, np.zeros(5), RGB_SIZE, ROTATION.T, shift[:, None])
    rgb_turn, event_turn, rgb_plane, event_plane = there[:4]
    table = rectification(EVENT_SIZE, EVENT_MATRIX, None, ROTATION, RGB_SIZE, RGB_MATRIX)
    pixels, places = places_of(table)
    middle = cv2.undistortPoints(pixels[:, None].astype(float), EVENT_MATRIX, None, R=event_turn, P=event_plane)
    back = cv2.undistortPoints(middle, rgb_plane[:, :3], None, R=rgb_turn.T, P=RGB_MATRIX)[:, 0]
    assert np.abs(back - places).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("lens", [None, LENS])
def test_only_what_the_event_camera_sees_is_measured(lens: np.ndarray | None) -> None:
    turned = cv2.Rodrigues(np.array([0.0, 0.5, 0.0]))[0]
    table = rectification(EVENT_SIZE, EVENT_MATRIX, lens, turned, RGB_SIZE, RGB_MATRIX)
    rays = np.linalg.inv(RGB_MATRIX) @ np.stack([*np.meshgrid(range(96), range(54)), np.ones((54, 96))]).reshape(3, -1)
    back = cv2.projectPoints((turned.T @ rays).T[:, None], np.zeros(3), np.zeros(3), EVENT_MATRIX, lens)[0][:, 0]
    inside = ((back > 0) & (back < np.array(EVENT_SIZE) - 1)).all(axis=1).reshape(54, 96)
    outside = ((back < -1) | (back > EVENT_SIZE)).any(axis=1).reshape(54, 96)
    assert 0.2 < inside.mean() < 0.8
    assert table.seen[inside].all()
    assert not table.seen[outside].any()
    events = some_events(3000, size=EVENT_SIZE)
    for encode in (polarity_counts, voxel_grid):
        picture = encode(events, EVENT_SIZE, table=table)
        assert picture.shape[:2] == (54, 96)
        assert (np.isfinite(picture) == table.seen[..., None]).all()


def test_what_is_behind_the_other_camera_is_not_seen() -> None:
    around = cv2.Rodrigues(np.array([0.0, np.pi, 0.0]))[0]
    table = rectification(EVENT_SIZE, EVENT_MATRIX, None, around, RGB_SIZE, RGB_MATRIX)
    assert (table.index == 96 * 54).all()
    assert not table.seen.any()


def test_a_strong_lens_does_not_fold_its_picture_back() -> None:
    """With k1 = -0.4 the distorted radius falls again beyond 0.9; a wide target must not see the camera there."""
    wide = np.array([[20.0, 0, 48], [0, 20, 26.5], [0, 0, 1]])
    table = rectification(EVENT_SIZE, EVENT_MATRIX, np.array([-0.4, 0, 0, 0, 0]), np.eye(3), RGB_SIZE, wide)
    rows, columns = np.nonzero(table.seen)
    assert np.hypot((columns - 48) / 20, (rows - 26.5) / 20).max() < 0.95
    assert table.seen[26, 48]


def test_events_are_moved_as_one_by_one() -> None:
    table = rectification(EVENT_SIZE, EVENT_MATRIX, LENS, ROTATION, RGB_SIZE, RGB_MATRIX)
    events = some_events(2000, size=EVENT_SIZE)
    expected = np.zeros((54, 96, 2))
    lost = 0
    for x, y, p, _ in events.tolist():
        place = table.index[y * 64 + x]
        if place < 54 * 96:
            expected[place // 96, place % 96, 0 if p > 0 else 1] += 1
        else:
            lost += 1
    counts = polarity_counts(events, EVENT_SIZE, table=table)
    np.testing.assert_array_equal(counts[table.seen], expected[table.seen])
    assert np.nansum(counts) >= 0.99 * (len(events) - lost) > 0
    with pytest.raises(RequestError, match="64 x 48"):
        polarity_counts(some_events(), SIZE, table=table)


def test_a_given_map_moves_events_and_says_where_it_leads() -> None:
    """A map that doubles the picture: every second pixel is reached, all between them are seen."""
    columns, rows = np.meshgrid(np.arange(10.0), np.arange(8.0))
    places = np.stack([2 * columns + 4, 2 * rows + 0.4], axis=-1)
    places[0, 0] = np.nan
    table = table_from_map(places, (30, 14))
    assert table.source == (10, 8)
    assert table.index.reshape(8, 10)[2, 3] == 4 * 30 + 10
    assert (
        table.index.reshape(8, 10)[0, 0] == table.index.reshape(8, 10)[7, 9] == 30 * 14
    )  # nowhere, and below the picture
    assert table.seen[4:12, 6:22].all()
    assert not table.seen[:, 27:].any()
    with pytest.raises(DataError, match=r"\(H, W, 2\)"):
        table_from_map(places[..., 0], (30, 14))


# ---------------------------------------------------------------- the encoder


def test_the_encoder_reads_the_window_before_the_exposure(tmp_path: Path) -> None:
    events = some_events(5000)
    path = write_hdf5(tmp_path / "a.h5", events)
    encoder = build(EventsEncoder, {"size": [13, 7]})
    assert encoder.channels == ("positive events", "negative events")
    last = events[events["t"] >= START + 30_000]
    np.testing.assert_array_equal(encoder.encode(encoder.read(path)), counted_by_hand(last, SIZE))

    voxels = build(EventsEncoder, {"representation": "voxels", "bins": 3, "window": 0.01, "size": [13, 7]})
    assert voxels.channels == ("events 1 of 3", "events 2 of 3", "events 3 of 3")
    stop = START + 25_000
    raw = voxels.read(path, stop)
    kept = events[(events["t"] >= stop - 10_000) & (events["t"] <= stop)]
    assert (raw == kept).all()
    expected = volume_by_hand(kept, SIZE, 3, stop - 10_000, stop)
    np.testing.assert_allclose(voxels.encode(raw, stop=stop), expected, atol=1e-4)


def test_the_size_comes_from_the_calibration_where_it_is_not_given() -> None:
    class Camera:
        size = SIZE

    assert EventsEncoder().encode(some_events(), Camera()).shape == (7, 13, 2)
    table = rectification(EVENT_SIZE, EVENT_MATRIX, None, ROTATION, RGB_SIZE, RGB_MATRIX)
    assert EventsEncoder().encode(some_events(), table=table).shape == (54, 96, 2)
    assert EventsEncoder().encode(np.empty(0, EVENT), Camera()).sum() == 0
    with pytest.raises(RequestError, match=r"set size .* \[1280, 720\]"):
        EventsEncoder().encode(some_events())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"window": 0}, "event: window is 0.0 s; it must be above 0"),
        ({"bins": 0}, "event: bins is 0"),
        ({"bins": 101}, "event: bins is 101"),
        ({"size": [0, 5]}, "event: size is [0, 5]"),
        ({"time_unit": -1}, "event: time_unit is -1.0"),
        ({"representation": "voxel"}, "did you mean 'voxels'?"),
        ({"windw": 0.1}, "did you mean 'window'?"),
    ],
)
def test_wrong_options_are_refused_by_name(values: dict, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        build(EventsEncoder, values, "event")
    assert expected in str(error.value)
