"""Datasets of the procedural world: what can be chosen, what is written, drives, and ``world:`` by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlesam.checks.dataset import check_dataset
from mlesam.cli import main
from mlesam.data import open_dataset
from mlesam.data import world as world_data
from mlesam.data.reading import resolve_sensors
from mlesam.errors import MlesamError, RequestError, WorkError
from mlesam.sensors.files import read_array
from mlesam.world import WorldOptions, write_world, writer
from mlesam.world.drive import EVERY, FRAMES_PER_SECOND, Drive
from mlesam.world.geometry import GROUND, look
from mlesam.world.layouts import CHUNK
from mlesam.world.render import FAULTS, HASH, SENSORS, VERSION, render_frame
from mlesam.world.scene import CLASSES, COLUMN
from mlesam.world.weather import CONDITIONS

SINGLE = WorldOptions(frames=30, seed=4, size=48, hyperspectral=True)
SEQUENCE = WorldOptions(frames=13, seed=4, size=64, sequence=True, weather="day")
ALL = (*SENSORS, "hyperspectral")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single") / "world"
    write_world(root, SINGLE)
    return root


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sequence") / "world"
    write_world(root, SEQUENCE)
    return root


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many cores the writer finds."""

    def count(number: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(number)), raising=False)

    return count


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def differing(first: Path, second: Path) -> list[str]:
    """Files that are not the same in both."""
    one, other = content(first), content(second)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as error:
        what()
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


# ---------------------------------------------------------------- options


@given(
    st.builds(
        WorldOptions,
        frames=st.integers(10, 100_000),
        seed=st.integers(0, 2**31 - 1),
        size=st.integers(32, 2048),
        city=st.integers(0, 999_999),
        weather=st.sampled_from([None, *CONDITIONS]),
        hyperspectral=st.booleans(),
        sequence=st.booleans(),
        camera=st.integers(0, 999_999),
        lidar=st.integers(0, 999_999),
    )
)
def test_options_survive_being_written_as_text(options: WorldOptions) -> None:
    assert WorldOptions.parse(options.text()) == options


def test_the_text_of_options_names_only_what_was_chosen() -> None:
    assert WorldOptions().text() == ""
    assert WorldOptions.parse("") == WorldOptions()
    assert WorldOptions.parse(" seed=3 , city=1").text() == "seed=3,city=1"
    assert WorldOptions.parse("sequence=true,frames=1,weather=fog") == WorldOptions(1, sequence=True, weather="fog")


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("frames=9", "frames is 9", "between 10 and 100000"),
        ("frames=0,sequence=true", "frames is 0", "between 1 and 100000"),
        ("frames=100001", "frames is 100001", "between 10 and 100000"),
        ("seed=-1", "seed is -1", "between 0 and 2147483647"),
        ("seed=2147483648", "seed is 2147483648", "between 0 and 2147483647"),
        ("size=31", "size is 31", "between 32 and 2048 pixels"),
        ("size=2049", "size is 2049", "between 32 and 2048 pixels"),
        ("city=-1", "city is -1", "between 0 and 999999"),
        ("city=1000000", "city is 1000000", "pre-training"),
        ("camera=-1", "camera is -1", "between 0 and 999999"),
        ("lidar=1000000", "lidar is 1000000", "between 0 and 999999"),
        ("camera=leica", "'leica'", "camera"),
        ("weather=snow", "'snow'", "day, night, fog, rain, glare"),
        ("weather=nigth", "'nigth'", "did you mean 'night'?"),
        ("seeds=3", "'seeds=3'", "did you mean 'seed'?"),
        ("seed", "'seed'", "NAME=VALUE"),
        ("seed 3", "'seed 3'", "NAME=VALUE"),
        ("seed=[", "'['", "cannot be read"),
        ("seed=three", "'three'", "seed"),
        ("size=96.5", "96.5", "size"),
        ("sequence=perhaps", "'perhaps'", "sequence"),
        ("seed=", "None", "seed"),
        ("seed=1,seed=2", "seed", "twice"),
    ],
)
def test_a_wrong_option_is_refused_with_value_and_rule(text: str, value: str, rule: str) -> None:
    message = refusal(lambda: WorldOptions.parse(text))
    assert value in message
    assert rule in message


def test_numbers_at_the_edge_of_a_rule_are_taken() -> None:
    for text in ("frames=10", "frames=100000", "seed=0", "seed=2147483647", "size=32", "size=2048", "city=999999"):
        assert WorldOptions.parse(text).text() in (text, "")


@given(st.integers(10, 100_000))
def test_splits_share_all_frames_as_documented(frames: int) -> None:
    splits = WorldOptions(frames=frames).splits()
    assert list(splits) == ["train", "val", "test"]
    assert sum(splits.values()) == frames
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert splits[split] >= 1
        assert abs(splits[split] - share * frames) < 2
    assert WorldOptions(frames=frames, sequence=True).splits() == {"test": frames}


# ---------------------------------------------------------------- what is written


def test_a_written_world_is_a_folder_dataset_without_fault(single: Path) -> None:
    dataset = open_dataset(f"folder:{single}")
    assert set(dataset.modalities) == set(ALL)
    assert {split: len(dataset.frames(split)) for split in dataset.splits()} == SINGLE.splits()
    findings = check_dataset(dataset)
    assert findings.faults == []
    assert dataset.default_split() == "test"
    ids = [frame.id for split in dataset.splits() for frame in dataset.frames(split)]
    assert len(set(ids)) == len(ids) == 30
    for split in dataset.splits():
        for frame in dataset.frames(split):
            assert set(frame.files) == set(ALL)
            assert frame.label is not None
            assert read_array(frame.label).shape == (48, 48)


def test_classes_have_names_and_colours(single: Path) -> None:
    declared = open_dataset(f"folder:{single}").declared
    assert declared.classes == tuple(CLASSES)
    assert declared.colors == tuple(CLASSES.values())
    assert len(set(CLASSES.values())) == len(CLASSES)
    found = {int(v) for path in (single / "labels").rglob("*.png") for v in np.unique(read_array(path))}
    assert found <= set(range(len(CLASSES)))
    assert len(found) > 10


def test_files_hold_what_the_frames_hold(single: Path) -> None:
    for split, index in (("train", 0), ("train", 8), ("val", 2), ("test", 5)):
        frame = render_frame(SINGLE.seed, split, index, SINGLE.size, wanted=ALL)
        for name, array in (*frame.images.items(), ("labels", frame.label)):
            stored = read_array(next((single / name / split).glob(f"{split}_{index:05d}.*")))
            assert stored.dtype == array.dtype, name
            assert np.array_equal(stored, array), name


def test_sensors_are_declared_as_they_are_stored(single: Path) -> None:
    dataset = open_dataset(f"folder:{single}")
    specs, _ = resolve_sensors(dataset, ALL, dataset.frames("train"))
    for sensor, spec in specs.items():
        path = next((single / sensor / "test").iterdir())
        array = read_array(path)
        assert spec.channels == (1 if array.ndim == 2 else array.shape[2]), sensor
    declared = yaml.safe_load((single / "dataset.yaml").read_text())["sensors"]
    assert set(declared) == set(ALL)
    for sensor in ("depth", "lidar", "event", "thermal", "hyperspectral"):
        stored = read_array(next((single / sensor / "test").iterdir()))
        assert declared[sensor]["dtype"] == str(stored.dtype), sensor
    assert declared["depth"]["scale"] == 0.001  # millimetres
    assert declared["depth"]["missing"] == declared["lidar"]["missing"] == 0


def test_tags_list_frames_that_exist(single: Path) -> None:
    dataset = open_dataset(f"folder:{single}")
    frames = {frame.id: frame for split in dataset.splits() for frame in dataset.frames(split)}
    tags = {path.stem: path.read_text().split() for path in (single / "tags").iterdir()}
    assert set(CONDITIONS) <= set(tags) <= {*CONDITIONS, *FAULTS}
    assert set(tags) & set(FAULTS)
    for tag, ids in tags.items():
        assert set(ids) <= set(frames)
        assert len(set(ids)) == len(ids)
        assert all(tag in frames[i].tags for i in ids)
    for frame in frames.values():
        assert len(set(frame.tags) & set(CONDITIONS)) == 1
        split, index = frame.id.rsplit("_", 1)
        assert set(frame.tags) == set(render_frame(SINGLE.seed, split, int(index), 32, wanted=()).tags)


def test_world_json_says_what_was_written(single: Path, tmp_path: Path) -> None:
    about = json.loads((single / "world.json").read_text())
    assert about["world_version"] == VERSION
    assert about["world_hash"] == HASH
    assert WorldOptions(**about["options"]) == SINGLE
    assert len(about["frames_sha256"]) == 64
    other = write_world(tmp_path / "other", dataclasses.replace(SINGLE, seed=5))
    assert other["frames_sha256"] != about["frames_sha256"]
    assert other == json.loads((tmp_path / "other" / "world.json").read_text())


def test_the_same_options_give_the_same_bytes(
    single: Path, sequence: Path, tmp_path: Path, workers: Callable[[int], None]
) -> None:
    for number in (1, 2):
        workers(number)
        for name, first, options in (("single", single, SINGLE), ("sequence", sequence, SEQUENCE)):
            second = tmp_path / f"{name}{number}"
            write_world(second, options)
            assert differing(first, second) == []


@pytest.mark.parametrize("change", [{"seed": 5}, {"city": 1}])
def test_other_options_give_other_bytes(single: Path, tmp_path: Path, change: dict[str, int]) -> None:
    write_world(tmp_path / "other", dataclasses.replace(SINGLE, frames=10, **change))
    both = content(single).keys() & content(tmp_path / "other").keys()
    changed = both & set(differing(single, tmp_path / "other"))
    pictures = {name for name in both if name.endswith((".png", ".npy"))}
    assert len(pictures) == 10 * (len(ALL) + 1)
    assert changed >= {name for name in pictures if name.startswith(("rgb", "thermal", "hyperspectral"))}


@pytest.mark.parametrize(
    ("change", "sensor"), [({"camera": 1}, "rgb"), ({"camera": 3}, "rgb"), ({"lidar": 1}, "lidar")]
)
def test_another_device_changes_the_files_of_its_own_sensor_alone(
    single: Path, sequence: Path, tmp_path: Path, change: dict[str, int], sensor: str
) -> None:
    for name, first, options in (("single", single, SINGLE), ("sequence", sequence, SEQUENCE)):
        second = tmp_path / name
        write_world(second, dataclasses.replace(options, **change))
        own = {name for name in content(first) if name.startswith(f"{sensor}/")}
        assert len(own) >= 5
        assert set(differing(first, second)) == {*own, "world.json"}


def test_the_world_without_options_is_what_it_was_before_it_had_other_devices(tmp_path: Path) -> None:
    about = write_world(tmp_path / "world", WorldOptions(frames=10, size=32))
    assert about["frames_sha256"] == "c8b8db52a8118a481009158fbfaca7e162b3e7fd835f7dec04673765c7124b6f"


def test_more_frames_leave_the_first_ones_as_they_are(single: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "short", dataclasses.replace(SINGLE, frames=10))
    long, short = content(single), content(tmp_path / "short")
    pictures = [name for name in short if name.endswith((".png", ".npy"))]
    assert len(pictures) == 10 * (len(ALL) + 1)
    assert all(long[name] == short[name] for name in pictures)


def test_a_chosen_weather_is_every_frames(tmp_path: Path) -> None:
    write_world(tmp_path / "world", WorldOptions(frames=10, size=32, weather="rain"))
    assert len((tmp_path / "world/tags/rain.txt").read_text().split()) == 10
    assert {p.stem for p in (tmp_path / "world/tags").iterdir()} & set(CONDITIONS) == {"rain"}


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_world(tmp_path / "world", WorldOptions(frames=12, size=32), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


# ---------------------------------------------------------------- whole or not at all


def test_nothing_is_written_where_something_is(tmp_path: Path) -> None:
    options = WorldOptions(frames=10, size=32)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("folder", "file"):
        message = refusal(lambda name=name: write_world(tmp_path / name, options))
        assert str(tmp_path / name) in message
        assert "choose a new directory" in message
    assert content(tmp_path) == {"folder/mine.txt": b"keep", "file": b"keep"}


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_world(tmp_path / "empty", WorldOptions(frames=10, size=32))
    assert (tmp_path / "empty/world.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("kind", ["render", "disk", "killed", "text"])
def test_a_failure_leaves_nothing_behind(
    kind: str, cores: int, tmp_path: Path, workers: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers(cores)
    write_frame, make_text = writer._write_frame, writer._write_text

    def failing(root: Path, split: str, name: str, frame: object) -> str:
        if name == "val_00000":
            if kind == "disk":
                raise OSError(28, "No space left on device")
            if kind == "killed":
                os._exit(9)
            raise ZeroDivisionError("a bug")
        return write_frame(root, split, name, frame)

    def failing_text(*arguments: object) -> None:
        make_text(*arguments)
        raise OSError(28, "No space left on device")

    if kind == "text":
        monkeypatch.setattr(writer, "_write_text", failing_text)
    elif kind == "killed" and cores == 1:
        pytest.skip("the process itself would end")
    else:
        monkeypatch.setattr(writer, "_write_frame", failing)
    expected = ZeroDivisionError if kind == "render" else WorkError
    with pytest.raises(expected) as error:
        write_world(tmp_path / "world", WorldOptions(frames=10, size=32))
    if kind in ("disk", "text"):
        assert "No space left on device" in str(error.value)
        assert "make room" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_world(tmp_path / "world", WorldOptions(frames=10, size=32))
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", WorldOptions(frames=10, size=32), interrupt)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- drives


def test_a_drive_has_times_and_rates_as_documented(sequence: Path) -> None:
    said = json.loads((sequence / "drive.json").read_text())
    assert said["frames_per_second"] == FRAMES_PER_SECOND == 30
    assert {sensor: 30 / every for sensor, every in said["every"].items()} == {
        "rgb": 30, "depth": 15, "lidar": 10, "event": 30, "thermal": 7.5,
    }  # fmt: skip
    assert [row["id"] for row in said["frames"]] == [f"drive_{i:05d}" for i in range(13)]
    assert [row["seconds"] for row in said["frames"]] == pytest.approx([i / 30 for i in range(13)], abs=1e-6)
    for index, row in enumerate(said["frames"]):
        assert set(row["sensors"]) == {sensor for sensor in SENSORS if index % EVERY[sensor] == 0}
    positions = np.array([np.reshape(row["pose"], (4, 4))[:3, 3] for row in said["frames"]])
    speed = np.linalg.norm(np.diff(positions, axis=0), axis=1) * 30
    assert speed.min() > 5
    assert speed.max() < 12
    assert np.ptp(speed) < 1


def test_a_sensor_that_does_not_measure_has_no_file(sequence: Path) -> None:
    dataset = open_dataset(f"folder:{sequence}")
    assert dataset.splits() == ("test",)
    said = json.loads((sequence / "drive.json").read_text())["frames"]
    frames = dataset.frames("test")
    assert [frame.id for frame in frames] == [row["id"] for row in said]
    assert [set(frame.files) for frame in frames] == [set(row["sensors"]) for row in said]
    assert set(frames[0].files) == set(SENSORS)
    assert all(frame.label is not None for frame in frames)
    assert check_dataset(dataset).faults == []


def test_a_frame_rendered_alone_is_the_datasets_frame(sequence: Path) -> None:
    for index in (7, 0, 12, 6):
        drive = Drive(SEQUENCE.seed, SEQUENCE.frames, SEQUENCE.size, condition="day")
        frame = drive.frame(index, SENSORS)
        for name, array in (*frame.images.items(), ("labels", frame.label)):
            assert np.array_equal(read_array(sequence / name / "test" / f"drive_{index:05d}.png"), array), name
        some = drive.frame(index, ("rgb", "thermal"))
        assert np.array_equal(some.images["rgb"], frame.images["rgb"])
        assert set(some.images) == {"rgb", "thermal"} & set(frame.images)


def in_frame(pose: np.ndarray, focal: float, size: int, depth: np.ndarray, rows: np.ndarray, columns: np.ndarray):
    """World coordinates (N, 3) of pixels with a depth."""
    u, v = (columns + 0.5 - size / 2) / focal, (size / 2 - rows - 0.5) / focal
    local = np.stack([u * depth, v * depth, depth], -1)
    return local @ pose[:3, :3].T + pose[:3, 3]


def projected(
    pose: np.ndarray, focal: float, size: int, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column (both with fractions, 0 in the middle of the first pixel) and depth of points of the world."""
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    return size / 2 - focal * y / z - 0.5, focal * x / z + size / 2 - 0.5, z


@pytest.mark.parametrize(("first", "second"), [(0, 3), (2, 8), (12, 6)])
def test_poses_carry_what_stands_still_from_frame_to_frame(sequence: Path, first: int, second: int) -> None:
    """Depth of a pixel, projected into another frame, lies between the depths of the four pixels around it there."""
    said = json.loads((sequence / "drive.json").read_text())
    poses = [np.reshape(row["pose"], (4, 4)) for row in said["frames"]]
    focal, size = said["focal_pixels"], SEQUENCE.size
    drive = Drive(SEQUENCE.seed, SEQUENCE.frames, size, condition="day")
    depths, numbers = [], []
    for index in (first, second):
        frame = drive.frame(index, ())
        scene = drive.street.near(drive.camera(index).position[2])
        keep = ~np.isin(scene.parts[:, COLUMN["instance"]], sorted(drive.met))
        parts = scene.parts[keep]
        hits = look(drive.camera(index), dataclasses.replace(scene, parts=parts).at(index / 30))
        moving = (parts[:, COLUMN["vx"]] != 0) | (parts[:, COLUMN["vz"]] != 0)
        still = (hits.part == GROUND) | ((hits.part >= 0) & ~np.append(moving, [False, False])[hits.part])
        depths.append(hits.depth)
        numbers.append(np.where(still & (hits.depth < 40), frame.instances * 10_000 + hits.part, -(10**9)))
    rows, columns = np.nonzero(numbers[0] > -(10**9))
    points = in_frame(poses[first], focal, size, depths[0][rows, columns].astype(float), rows, columns)
    row, column, depth = projected(poses[second], focal, size, points)
    seen = (row > 0) & (row < size - 2) & (column > 0) & (column < size - 2) & (depth > 0.5)
    top, left = np.floor(row[seen]).astype(int), np.floor(column[seen]).astype(int)
    here = numbers[0][rows, columns][seen]
    around = [(top + dy, left + dx) for dy in (0, 1) for dx in (0, 1)]
    # Parts may be numbered otherwise in another frame, objects may not.
    same = np.all([numbers[1][place] // 10_000 == here // 10_000 for place in around], axis=0)
    one_part = np.ptp([numbers[1][place] for place in around], axis=0) == 0
    assert same.mean() > 0.6, "the same objects lie at the same places"
    near = np.stack([depths[1][place] for place in around])[:, same & one_part]
    low, high, found = near.min(0), near.max(0), depth[seen][same & one_part]
    between = (found > low - 0.03) & (found < high + 0.03)
    assert between.mean() > 0.97


def test_measured_depth_and_poses_agree_between_frames(sequence: Path) -> None:
    """The same with the written files alone: depth to the camera's own accuracy, and the same classes."""
    said = json.loads((sequence / "drive.json").read_text())
    poses = [np.reshape(row["pose"], (4, 4)) for row in said["frames"]]
    focal, size = said["focal_pixels"], SEQUENCE.size
    depth = {i: read_array(sequence / f"depth/test/drive_{i:05d}.png") / 1000 for i in (0, 6)}
    label = {i: read_array(sequence / f"labels/test/drive_{i:05d}.png") for i in (0, 6)}
    ground = [list(CLASSES).index(name) for name in ("road", "sidewalk", "grass")]
    rows, columns = np.nonzero((depth[0] > 0) & (depth[0] < 12) & np.isin(label[0], ground))
    points = in_frame(poses[0], focal, size, depth[0][rows, columns], rows, columns)
    assert np.abs(np.median(points[:, 1])) < 0.03  # the ground is at height 0
    row, column, z = projected(poses[6], focal, size, points)
    row, column = np.rint(row).astype(int), np.rint(column).astype(int)
    seen = (row >= 0) & (row < size) & (column >= 0) & (column < size) & (z > 2)
    there = depth[6][row[seen], column[seen]]
    alike = label[6][row[seen], column[seen]] == label[0][rows, columns][seen]
    assert seen.sum() > 100
    assert alike.mean() > 0.9
    off = (z[seen] - there)[alike & (there > 0)]
    assert np.abs(np.median(off)) < 0.05


def border(numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])


def vanished(drive: Drive, index: int, other: int) -> list[tuple[int, int, int]]:
    """Objects that are large and whole in one frame and not in the other at all: (frame, number, pixels)."""
    here, there = (drive.frame(i, ()).instances for i in (index, other))
    numbers, counts = np.unique(here, return_counts=True)
    large = numbers[(numbers >= 0) & (counts > 0.01 * here.size) & ~np.isin(numbers, border(here))]
    return [(index, int(n), int(counts[numbers == n][0])) for n in large if not (there == n).any()]


def test_no_object_pops_up_or_vanishes() -> None:
    popped = []
    for seed in range(3, 7):
        drive = Drive(seed, 300, 48, condition="day")
        places = [drive.camera(index).position[2] for index in range(drive.frames)]
        # Where the street's next piece comes and where an old one is left behind, and some frames more.
        critical = {
            index
            for index in range(1, drive.frames)
            for edge in (-22.0, 180.0)
            if (places[index] + edge) // CHUNK != (places[index - 1] + edge) // CHUNK
        }
        for index in sorted(critical | set(range(25, drive.frames, 50))):
            popped += [(seed, *gone) for gone in vanished(drive, index - 1, index) + vanished(drive, index, index - 1)]
    assert not popped, f"(drive, frame, object, pixels): {popped}"


@pytest.mark.parametrize("frames", [30, 300, 3000])
def test_a_drive_stays_in_its_lane_however_long(frames: int) -> None:
    """The camera goes as fast as its drive says, and looks along the street that it drives on."""
    for seed in range(4):
        drive = Drive(seed, frames, 32)
        for index in {0, frames // 2, frames - 2}:
            here, there = (np.array(drive.camera(i).position) for i in (index, index + 1))
            step = there - here
            speed = np.linalg.norm(step) * FRAMES_PER_SECOND
            assert speed == pytest.approx(drive.speed, rel=0.1), (seed, index)
            forward = drive.camera(index).rotation()[:, 2]
            along = step[[0, 2]] / np.linalg.norm(step[[0, 2]])
            assert float(along @ forward[[0, 2]]) > 0.99 * np.linalg.norm(forward[[0, 2]])


def test_drives_of_other_seeds_and_cities_are_other_drives() -> None:
    first = Drive(1, 10, 48, condition="day").frame(3, ()).label
    for other in (Drive(2, 10, 48, condition="day"), Drive(1, 10, 48, city=1, condition="day")):
        assert (other.frame(3, ()).label != first).mean() > 0.1
    assert {Drive(seed, 10, 48).weather.name for seed in range(40)} == set(CONDITIONS)


# ---------------------------------------------------------------- the command


def mlesam(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_writes_a_dataset_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "world"
    status, out, _ = mlesam(
        capsys, "world", root, "--frames", 12, "--size", 32, "--seed", 3, "--city", 2, "--weather", "night", "--hyperspectral",
        "--camera", 4, "--lidar", 5,
    )  # fmt: skip
    assert status == 0
    about = json.loads((root / "world.json").read_text())
    assert WorldOptions(**about["options"]) == WorldOptions(12, 3, 32, 2, "night", True, camera=4, lidar=5)
    for text in (f"12 frames in {root}", about["frames_sha256"][:12], f"mlesam train --data folder:{root}"):
        assert text in out
    status, out, _ = mlesam(capsys, "doctor", f"folder:{root}")
    assert status == 0


def test_the_command_writes_a_drive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = mlesam(capsys, "world", tmp_path / "drive", "--sequence", 4, "--size", 32)
    assert status == 0
    assert "4 frames" in out
    assert len(json.loads((tmp_path / "drive/drive.json").read_text())["frames"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--frames", "3"), ("3", "between 10 and 100000")),
        (("--frames", "0"), ("0", "between 10 and 100000")),
        (("--frames", "-5"), ("-5", "between 10 and 100000")),
        (("--sequence", "0"), ("0", "between 1 and 100000")),
        (("--size", "8"), ("8", "between 32 and 2048")),
        (("--seed", "-1"), ("-1", "between 0")),
        (("--weather", "snow"), ("'snow'", "day, night, fog, rain, glare")),
        (("--city", "2000000"), ("2000000", "between 0 and 999999")),
        (("--camera", "-1"), ("camera is -1", "between 0 and 999999")),
        (("--frames", "20", "--sequence", "20"), ("--sequence", "--frames")),
        (("--frames", "many"), ("many", "--frames")),
        (("--wether", "day"), ("--wether", "--help")),
    ],
)
def test_the_command_refuses_a_wrong_request(
    words: tuple[str, ...], said: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = mlesam(capsys, "world", tmp_path / "world", *words)
    assert status == 2, error
    assert error.startswith("mlesam: ")
    assert len(error.strip().splitlines()) == 1
    assert all(part in error for part in said), error
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_full_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("keep")
    status, _, error = mlesam(capsys, "world", tmp_path, "--frames", 10, "--size", 32)
    assert status == 2
    assert "choose a new directory" in error
    assert content(tmp_path) == {"mine": b"keep"}


def test_the_command_takes_the_current_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, _, error = mlesam(capsys, "world", ".", "--frames", 10, "--size", 32)
    assert status == 0, error
    assert (tmp_path / "here/world.json").is_file()


# ---------------------------------------------------------------- world: by name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never(*arguments: object) -> None:
    raise AssertionError("it was rendered once more")


def test_a_world_is_rendered_once_and_kept(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_dataset("world:frames=10,size=32")
    assert "rendering world:frames=10,size=32" in capsys.readouterr().err
    assert {split: len(first.frames(split)) for split in first.splits()} == {"train": 7, "val": 1, "test": 2}
    assert all(cache in path.parents for path in first.frames("train")[0].files.values())
    monkeypatch.setattr(world_data, "write_world", never)
    for name in ("world:frames=10,size=32", "world:size=32,frames=10", "world:frames=10,size=32,seed=0"):
        again = open_dataset(name)  # other words for the same options
        assert again.frames("test") == first.frames("test")
        assert again.name == "world:frames=10,size=32"
    assert capsys.readouterr().err == ""
    with pytest.raises(AssertionError, match="once more"):
        open_dataset("world:frames=10,size=32,seed=3")


def test_each_world_has_its_own_folder(cache: Path) -> None:
    texts = ("", "seed=3", "city=3", "seed=3,size=64", "sequence=true", "hyperspectral=true", "weather=fog")
    folders = {world_data.cache_folder(WorldOptions.parse(text)) for text in texts}
    assert len(folders) == len(texts)
    assert all(cache in folder.parents for folder in folders)
    assert all(f"world-{VERSION}" in folder.parts for folder in folders)


def test_worlds_of_other_seeds_do_not_mix(cache: Path) -> None:
    views = [open_dataset(f"world:frames=10,size=32,seed={seed}").frames("test")[0] for seed in (0, 3)]
    assert views[0].id == views[1].id
    assert not np.array_equal(read_array(views[0].files["rgb"]), read_array(views[1].files["rgb"]))


def test_a_named_world_holds_what_the_command_writes(cache: Path, tmp_path: Path) -> None:
    options = WorldOptions(frames=10, size=32)
    write_world(tmp_path / "written", options)
    open_dataset(f"world:{options.text()}")
    assert differing(tmp_path / "written", world_data.cache_folder(options)) == []


def test_another_process_may_render_the_same_world_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = WorldOptions(frames=10, size=32)

    def late(root: Path, options: WorldOptions) -> None:
        write_world(root, options)  # the other process
        raise WorkError("the folder is there already")

    monkeypatch.setattr(world_data, "write_world", late)
    assert len(open_dataset(f"world:{options.text()}").frames("test")) == 2


def test_a_world_that_cannot_be_rendered_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, options: WorldOptions) -> None:
        raise WorkError("the disk is full")

    monkeypatch.setattr(world_data, "write_world", full)
    with pytest.raises(WorkError, match="disk is full"):
        open_dataset("world:frames=10,size=32")


@pytest.mark.parametrize("name", ["world:sed=3", "world:seed", "world:frames=3", "world:weather=snow", "wrold:seed=3"])
def test_a_wrong_name_is_refused_before_anything_is_rendered(name: str, cache: Path) -> None:
    with pytest.raises(MlesamError) as error:
        open_dataset(name)
    assert error.value.exit_status == 2
    assert not cache.exists()


def test_the_cache_lies_in_the_home_folder_unless_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    key = hashlib.sha256(b"seed=3").hexdigest()[:12]
    assert world_data.cache_folder(WorldOptions(seed=3)) == tmp_path / ".cache" / "mlesam" / f"world-{VERSION}" / key
