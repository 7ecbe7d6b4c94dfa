"""Miniatures of the benchmarks: what is written has the layout and the encodings of the originals, and true geometry."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from conftest import corrected_as_by_the_sdk, true_depth
from mlesam.cli import main
from mlesam.errors import RequestError, WorkError
from mlesam.mini import ABOUT, deliver, mcubes, muses, write_mini
from mlesam.mini.deliver import CASES, WEATHERS

DELIVER = re.compile(
    r"(img|hha|depth|lidar|event|semantic)/(cloud|fog|night|rain|sun)/(train|val|test)/(MAP_\d+_point\d+)"
    r"(?:_(motionblur|overexposure|underexposure|lidarjitter|eventlowres))?/(\d{6})_(\w+)_front\.png"
)
WORDS = {"img": "rgb", "hha": "depth", "depth": "depth", "lidar": "lidar", "event": "event", "semantic": "semantic"}
SCENE = r"(train|val|test)/(clear|fog|rain|snow)/(day|night)/(REC\d{4}_frame_\d{6})"
SENSORS = {
    "frame_camera": "frame_camera.png", "lidar": "lidar.bin", "radar": "radar.png", "event_camera": "event_camera.h5",
    "gnss": "gnss.txt",
}  # fmt: skip
LABELS = ("gt_labelTrainIds", "gt_labelIds", "gt_labelColor")


def files(root: Path) -> list[str]:
    """Everything below a root but the note that it is a miniature."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ABOUT)


def opened(path: Path) -> np.ndarray:
    """A PNG as OpenCV gives it: its own bits and channels, blue first."""
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert array is not None, path
    return array


def same(one: Path, other: Path) -> None:
    """Every file below ``one`` is below ``other``, byte for byte."""
    assert files(one)
    for name in files(one):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# ---------------------------------------------------------------- DELIVER


def deliver_files(root: Path, folder: str) -> list[tuple[re.Match[str], Path]]:
    return [(m, root / n) for n in files(root) if (m := DELIVER.fullmatch(n)) and m[1] == folder]


def twin(path: Path, root: Path, folder: str) -> Path:
    """The file of another folder for a picture in img."""
    name = path.name.replace("_rgb_", f"_{WORDS[folder]}_")
    return (root / folder).joinpath(*path.relative_to(root / "img").parts[:-1], name)


def test_deliver_has_the_layout_of_the_original(deliver_mini: Path) -> None:
    found = [DELIVER.fullmatch(name) for name in files(deliver_mini)]
    assert all(found), [name for name, match in zip(files(deliver_mini), found, strict=True) if not match]
    frames = {}
    for match in filter(None, found):
        assert match[7] == WORDS[match[1]]
        frames.setdefault((match[2], match[3], match[4], match[5], match[6]), set()).add(match[1])
    assert all(folders == set(WORDS) for folders in frames.values())
    for split, count in (("train", 15), ("val", 10), ("test", 10)):
        own = [key for key in frames if key[1] == split]
        assert len(own) == count
        assert {key[0] for key in own} == set(WEATHERS)
        assert {key[3] for key in own} == {*CASES, None}
    maps = {split: {key[2].split("_")[1] for key in frames if key[1] == split} for split in ("train", "val", "test")}
    assert maps["test"] == {"7", "10"}
    assert not maps["train"] & (maps["val"] | maps["test"])


def test_deliver_has_the_sizes_and_channels_of_the_original(deliver_mini: Path) -> None:
    modes = set()
    for folder, mode in (("hha", "RGB"), ("depth", "L"), ("lidar", "L"), ("event", "RGB"), ("semantic", "RGBA")):
        for match, path in deliver_files(deliver_mini, folder):
            with Image.open(path) as picture:
                side = 512 if folder == "event" and match[5] == "eventlowres" else 1042
                assert (picture.mode, picture.size) == (mode, (side, side)), path
    for _, path in deliver_files(deliver_mini, "img"):
        with Image.open(path) as picture:
            assert picture.size == (1042, 1042)
            modes.add(picture.mode)
    assert modes == {"RGB", "RGBA"}


def test_deliver_labels_hold_raw_ids_in_red_and_both_values_that_are_ignored(deliver_mini: Path) -> None:
    raw: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for match, path in deliver_files(deliver_mini, "semantic"):
        red, green, blue, alpha = np.moveaxis(np.asarray(Image.open(path)), -1, 0)
        raw[match[3]] |= set(np.unique(red).tolist())
        assert not green.any()
        assert not blue.any()
        assert (alpha == 255).all()
    for split, values in raw.items():
        assert {0, 255} <= values, split
        assert values - {0, 255} <= set(range(1, 26))
        assert len(values) > 12


def test_deliver_sensors_agree_with_each_other(deliver_mini: Path) -> None:
    across = (np.arange(1042) + 0.5 - 521) / (0.55 * 1042)
    stretch = np.sqrt(1 + across[None, :] ** 2 + across[:, None] ** 2)  # of range along a ray by depth along the axis
    returns: dict[bool, list[float]] = {}
    for match, path in deliver_files(deliver_mini, "img"):
        depth = opened(twin(path, deliver_mini, "depth")).astype(int)
        label = np.asarray(Image.open(twin(path, deliver_mini, "semantic")))[..., 0]
        hha = np.asarray(Image.open(twin(path, deliver_mini, "hha"))).astype(int)
        assert ((depth == 255) == (label == 13))[(label > 0) & (label < 255)].all()  # the sky and nothing else
        assert depth.min() >= 1
        near = (depth > 3) & (depth < 60)
        assert (np.abs(hha[..., 0] - 310 / depth) <= 310 / depth * 0.5 / depth + 30 / depth + 1)[near].all()
        assert (hha[label == 7][:, 1:] == (0, 38)).all()  # the road is flat and at height 0
        walls = hha[label == 1][:, 2]
        assert np.isin(walls, (128, 38)).all()  # a house stands upright; its roof is flat
        lidar = opened(twin(path, deliver_mini, "lidar")).astype(int)
        returned = lidar > 0
        returns.setdefault(match[5] == "lidarjitter", []).append(returned.mean())
        close = np.abs(lidar - depth * stretch)[returned] <= 2  # both are whole metres, and leaves are rough
        assert close.mean() > (0.9 if match[2] in ("fog", "rain") else 0.99), path  # drops come back first
    assert np.mean(returns[True]) < 0.7 * np.mean(returns[False])
    assert 0.003 < np.mean(returns[False]) < 0.1


def test_deliver_failures_show(deliver_mini: Path) -> None:
    brightness = {case: [] for case in (*CASES, None)}
    sharpness = {case: [] for case in (*CASES, None)}
    for match, path in deliver_files(deliver_mini, "img"):
        grey = np.asarray(Image.open(path).convert("L")).astype(float)
        if match[2] != "night":
            brightness[match[5]].append(grey.mean())
            sharpness[match[5]].append(np.abs(np.diff(grey, axis=1)).mean())
        event = np.asarray(Image.open(twin(path, deliver_mini, "event")))
        assert not event[..., 1].any()
        assert event[..., 0].any()
        assert event[..., 2].any()
    mean = {case: np.mean(values) for case, values in brightness.items() if values}
    assert mean["underexposure"] < 0.6 * mean[None] < 0.75 * mean["overexposure"]
    assert np.mean(sharpness["motionblur"]) < 0.7 * np.mean(sharpness[None])


# ---------------------------------------------------------------- MUSES


@pytest.fixture(scope="module")
def calib(muses_mini: Path) -> dict[str, np.ndarray]:
    content = json.loads((muses_mini / "calib.json").read_text())
    matrices = {name: np.array(matrix) for name, matrix in content["extrinsics"].items()}
    return matrices | {f"{name}_K": np.array(camera["K"]) for name, camera in content["intrinsics"].items()}


@pytest.fixture(scope="module")
def meta(muses_mini: Path) -> dict[str, dict]:
    return json.loads((muses_mini / "meta.json").read_text())


def projected(points: np.ndarray, move: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and depths of the points (N, 3) that fall into the colour camera's picture; and which those are."""
    moved = points @ move[:3, :3].T + move[:3, 3]
    u, v, w = matrix @ moved.T
    inside = (w > 0) & (u / w >= 0) & (u / w < 1920) & (v / w >= 0) & (v / w < 1080)
    return np.stack([u / w, v / w]).astype(int)[:, inside], w[inside], inside


def lidar_error(points: np.ndarray, shot: muses.Shot, calib: dict[str, np.ndarray]) -> np.ndarray:
    """Share by which each point's depth differs from the depth of the scene in the pixel that it falls on."""
    (column, row), depth, _ = projected(points, calib["lidar2rgb"], calib["rgb_K"])
    return np.abs(depth / true_depth(shot)[0][row, column] - 1)


def test_muses_has_the_layout_of_the_original(muses_mini: Path, meta: dict[str, dict]) -> None:
    expected = {"calib.json", "meta.json", *(f"gt_panoptic/{n}.json" for n in ("train", "val", "test_image_info"))}
    scenes = [re.fullmatch(rf"frame_camera/{SCENE}_frame_camera\.png", n) for n in files(muses_mini)]
    found = [m.groups() for m in scenes if m]
    assert len(found) == len(set(found)) == 24
    assert {f[:3] for f in found} == {
        (s, w, t) for s in ("train", "val", "test") for w in ("clear", "fog", "rain", "snow") for t in ("day", "night")
    }
    for split, weather, time, stem in found:
        folder = f"{split}/{weather}/{time}/{stem}"
        expected |= {f"{sensor}/{folder}_{ending}" for sensor, ending in SENSORS.items()}
        if split != "test":
            expected |= {f"gt_semantic/{folder}_{name}.png" for name in LABELS}
            expected.add(f"gt_panoptic/{folder}_gt_panoptic.png")
    assert set(files(muses_mini)) == expected
    assert set(meta) == {f[3] for f in found}


def test_muses_meta_tells_where_everything_is(muses_mini: Path, meta: dict[str, dict]) -> None:
    for stem, entry in meta.items():
        for sensor in SENSORS:
            assert (muses_mini / entry[f"path_to_{sensor}"]).is_file()
            assert stem in entry[f"path_to_{sensor}"]
            assert f"{entry['weather']}/{entry['time_of_day']}" in entry[f"path_to_{sensor}"]
        start, end = (entry[f"frame_camera_exposure_{n}_timestamp_us"] for n in ("start", "end"))
        assert 1_000 < end - start < 50_000
        assert {"ground_condition", "precipitation_level", "precipitation_tag", "sun_level", "tunnel"} <= set(entry)
        line = (muses_mini / entry["path_to_gnss"]).read_text().split()
        assert len(line) == 28
        assert start <= int(line[1]) <= end
        assert int(line[23]) == pytest.approx(np.hypot(int(line[20]), int(line[21])), abs=2)  # gSpeed, velN, velE


def test_muses_pictures_and_labels(muses_mini: Path) -> None:
    ids = set()
    for shot in muses.shots(0):
        with Image.open(muses_mini / shot.path("frame_camera", "frame_camera.png")) as picture:
            assert (picture.mode, picture.size) == ("RGB", (1920, 1080))
        if shot.split == "test":
            continue
        train, raw, color = (opened(muses_mini / shot.path("gt_semantic", f"{name}.png")) for name in LABELS)
        assert train.shape == raw.shape == color.shape[:2] == (1080, 1920)
        assert train.dtype == np.uint8
        ids |= set(np.unique(train).tolist())
        assert (raw[train == 0] == 7).all()
        assert (raw[train == 13] == 26).all()
        assert (color[train == 0] == (128, 64, 128)).all()
    assert ids <= {*range(19), 255}
    assert {0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 13, 14, 255} <= ids


def test_muses_calibration_is_rigid(calib: dict[str, np.ndarray]) -> None:
    for name in ("lidar2rgb", "radar2rgb", "event2rgb", "lidar2gnss", "radar2gnss"):
        assert calib[name].shape == (4, 4)
        assert np.allclose(calib[name][:3, :3] @ calib[name][:3, :3].T, np.eye(3))
        assert np.linalg.det(calib[name][:3, :3]) == pytest.approx(1)
    # Ten metres ahead of the LiDAR is ahead of the camera; left is left, up is up.
    ahead, left, up = (calib["lidar2rgb"] @ np.array([*p, 1.0]) for p in ((10, 0, 0), (10, 5, 0), (10, 0, 5)))
    assert ahead[2] > 9
    assert left[0] < ahead[0] - 4
    assert up[1] < ahead[1] - 4


def test_muses_lidar_points_fall_on_the_pixels_that_show_them(
    muses_mini: Path, meta: dict[str, dict], calib: dict[str, np.ndarray]
) -> None:
    for shot in (s for s in muses.shots(0) if s.split == "val"):
        points = np.fromfile(muses_mini / shot.path("lidar", "lidar.bin"), dtype=np.float64).reshape(-1, 6)
        away = np.linalg.norm(points[:, :3], axis=1)
        assert (away < 1.0).any()  # for the SDK's rule that drops them
        assert (points[:, 0] > 0).all()
        assert points[:, 3].min() >= 1
        assert points[:, 3].max() <= 255
        assert set(points[:, 4]) == {1, 2, 3, 4, 5}
        start, end = shot.exposure
        late = points[:, 5] - (start + end) / 2e6
        assert 0.04 < np.abs(late).max() < 0.0501  # a sweep of 0.1 s, its middle at the exposure's
        _, _, inside = projected(points[:, :3], calib["lidar2rgb"], calib["rgb_K"])
        assert 0.3 < inside.mean() < 0.99  # the LiDAR sees wider than the camera
        far = points[away >= 1.0]
        gnss = [int(word) for word in (muses_mini / meta[shot.stem]["path_to_gnss"]).read_text().split()]
        assert 5_000 <= gnss[23] <= 11_000
        assert 0.05 <= abs(np.radians(gnss[19] / 1e5)) <= 0.2
        seen = corrected_as_by_the_sdk(far[:, :3], far[:, 5], (start + end) / 2e6, calib["lidar2gnss"], gnss)
        error = lidar_error(seen, shot, calib)
        assert (error < 0.05).mean() > 0.9, shot
        mirrored = lidar_error(seen * (1, -1, 1), shot, calib)
        assert (mirrored < 0.05).mean() < (error < 0.05).mean() - 0.1  # so the test can tell
        assert np.median(error) < 0.5 * np.median(lidar_error(far[:, :3], shot, calib)), shot


def test_muses_vehicle_that_turns_sees_what_one_sees_that_stands_where_it_has_come_to() -> None:
    now, seconds = muses.at(muses.shots(0)[0]), 0.4
    later = now.camera((8, 8), 4.0, 0.0, seconds=seconds)
    there = dataclasses.replace(now, position=later.position, yaw=later.yaw, turn_rate=0.0)
    assert np.arcsin(there.yaw) == pytest.approx(np.arcsin(now.yaw) - now.turn_rate * seconds)
    # The receiver goes along a circle: half way round the turn it heads along the chord.
    behind = [np.array(at.position) + at.axes() @ now.pivot for at in (now, there)]
    way, heading = behind[1] - behind[0], np.arcsin(now.yaw) - now.turn_rate * seconds / 2
    chord = 2 * now.speed / now.turn_rate * np.sin(now.turn_rate * seconds / 2)
    np.testing.assert_allclose(way, [chord * np.sin(heading), 0, chord * np.cos(heading)], atol=1e-9)
    side, up = np.meshgrid(np.linspace(-1.2, 1.2, 30), np.linspace(-0.3, 0.2, 10))
    rays = np.stack([np.cos(up) * np.cos(side), np.cos(up) * np.sin(side), np.sin(up)])
    same = np.isclose(now.cast((0, 0, 0), rays, seconds).distance, there.cast((0, 0, 0), rays).distance, rtol=1e-3)
    assert same.mean() > 0.98  # a ray along an edge may pass it
    assert np.isclose(now.cast((0, 0, 0), rays).distance, there.cast((0, 0, 0), rays).distance, rtol=1e-3).mean() < 0.5


def test_muses_radar_shows_vehicles_and_houses_where_they_are(muses_mini: Path, calib: dict[str, np.ndarray]) -> None:
    from mlesam.mini.scene import THINGS

    solid = [THINGS.index(name) for name in ("vehicle", "lorry", "building", "wall")]
    to_radar = np.linalg.inv(calib["radar2rgb"])
    for shot in (s for s in muses.shots(0) if s.split == "train" and s.time == "day"):
        image = opened(muses_mini / shot.path("radar", "radar.png"))
        assert image.shape == (7547, 400)
        assert image.dtype == np.uint8
        seconds, nanoseconds = (image[r : r + 4].T.copy().view("<u4")[:, 0].astype(float) for r in (0, 4))
        clock = seconds + nanoseconds / 1e9
        assert np.allclose(np.diff(clock), 0.25 / 400, atol=1e-6)
        assert clock.mean() == pytest.approx(sum(shot.exposure) / 2e6, abs=1e-3)
        assert set(np.unique(image[10])) == {0, 255}
        valid = image[10] > 0
        assert 396 < valid.sum() < 400
        # Places on solid things, in the radar's axes, from the colour camera's depth and not from the radar.
        depth, things = true_depth(shot)
        row, column = (a[:: 4 * 37] for a in np.nonzero(np.isin(things, solid)))
        rays = np.linalg.inv(calib["rgb_K"]) @ np.stack([column + 0.5, row + 0.5, np.ones(len(row))])
        place = to_radar @ np.vstack([rays * depth[row, column], np.ones(len(row))])
        level = np.degrees(np.arctan2(place[2], np.hypot(place[0], place[1])))
        x, y = place[:2, (np.abs(level) < 1.0) & (np.hypot(place[0], place[1]) < 60)]

        def hit(left: np.ndarray, x=x, image=image, valid=valid) -> float:
            """Share of the places with a strong echo within a column and 0.6 m."""
            bins = np.rint(np.hypot(x, left) / 0.0438).astype(int) - 1
            columns = np.rint(199 - np.degrees(np.arctan2(left, x)) / 0.9).astype(int)
            seen = [
                image[11 + max(b - 14, 0) : 11 + b + 15, c - 1 : c + 2][:, valid[c - 1 : c + 2]].max(initial=0) > 60
                for b, c in zip(bins, columns, strict=True)
            ]
            return float(np.mean(seen))

        assert len(x) > 15
        assert hit(y) > 0.85, shot
        assert hit(-y) < hit(y) - 0.2  # the other way round the columns would not fit


def recording(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        names = {
            "x": "events/x",
            "y": "events/y",
            "t": "events/t",
            "p": "events/p",
            "ms": "ms_to_idx",
            "end": "t_offset",
        }
        return {name: np.asarray(file[where][()]) for name, where in names.items()}  # type: ignore[index]


def test_muses_events_are_sorted_and_inside_the_sensor(muses_mini: Path) -> None:
    lengths = set()
    for shot in muses.shots(0):
        found = recording(muses_mini / shot.path("event_camera", "event_camera.h5"))
        assert [found[n].dtype for n in "xytp"] == [np.uint16, np.uint16, np.uint32, np.uint8]
        t = found["t"].astype(int)
        assert (np.diff(t) >= 0).all()
        assert found["x"].max() < 1280
        assert found["y"].max() < 720
        assert set(np.unique(found["p"])) == {0, 1}
        length = 1000 * len(found["ms"])
        lengths.add(length)
        assert length - 1000 < t.max() < length
        index = found["ms"].astype(int)
        assert all(t[i] >= 1000 * ms and (i == 0 or t[i - 1] < 1000 * ms) for ms, i in enumerate(index))
        assert shot.exposure[0] <= int(found["end"]) + length <= shot.exposure[1]
        if length == 100_000:
            assert 0.1 < (t >= t.max() - 30_000).mean() < 0.7  # the window matters
    assert lengths == {30_000, 100_000}


def test_muses_events_fall_on_edges_of_the_picture(muses_mini: Path, calib: dict[str, np.ndarray]) -> None:
    turn = calib["rgb_K"] @ calib["event2rgb"][:3, :3] @ np.linalg.inv(calib["event_K"])
    for shot in (s for s in muses.shots(0) if (s.split, s.weather, s.time) == ("train", "clear", "day")):
        found = recording(muses_mini / shot.path("event_camera", "event_camera.h5"))
        late = found["t"] >= found["t"].max() - 10_000
        u, v, w = turn @ np.stack([found["x"][late], found["y"][late], np.ones(late.sum())])
        picture = opened(muses_mini / shot.path("frame_camera", "frame_camera.png"))
        grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32), (0, 0), 4)
        edges = np.hypot(*np.gradient(grey))
        around = edges[100:900, 400:1600].mean()
        assert edges[(v / w).astype(int), (u / w).astype(int)].mean() > 2 * around
        elsewhere = edges[(v / w).astype(int) + 30, (u / w).astype(int) + 40].mean()
        assert elsewhere < 0.8 * edges[(v / w).astype(int), (u / w).astype(int)].mean()  # so the test can tell


def test_muses_panoptic_segments_are_those_of_the_pictures(muses_mini: Path) -> None:
    for split in ("train", "val"):
        content = json.loads((muses_mini / f"gt_panoptic/{split}.json").read_text())
        assert len(content["images"]) == len(content["annotations"]) == 8
        assert len(content["categories"]) == 19
        for image, entry in zip(content["images"], content["annotations"], strict=True):
            assert (image["id"], image["width"], image["height"]) == (entry["image_id"], 1920, 1080)
            picture = opened(muses_mini / "gt_panoptic" / entry["file_name"]).astype(int)
            numbers = picture[..., 2] + 256 * picture[..., 1] + 65536 * picture[..., 0]
            counted = dict(zip(*(a.tolist() for a in np.unique(numbers[numbers > 0], return_counts=True)), strict=True))
            assert counted == {s["id"]: s["area"] for s in entry["segments_info"]}
            name = entry["file_name"].replace("gt_panoptic", "gt_labelIds")
            label = opened(muses_mini / "gt_semantic" / name)
            for segment in entry["segments_info"]:
                assert (label[numbers == segment["id"]] == segment["category_id"]).all()
            camera = entry["file_name"].replace("_gt_panoptic.png", "_frame_camera.png")
            assert (muses_mini / "frame_camera" / camera).is_file()
    content = json.loads((muses_mini / "gt_panoptic/test_image_info.json").read_text())
    assert len(content["images"]) == 8
    assert "annotations" not in content


def test_muses_projections_are_stored_as_the_sdk_stores_them(
    muses_mini: Path, tmp_path: Path, calib: dict[str, np.ndarray]
) -> None:
    shot = next(s for s in muses.shots(0) if (s.split, s.weather, s.time) == ("train", "snow", "day"))
    images: dict[str, dict[str, np.ndarray]] = {}
    for kind in ("png", "npy", "npz"):
        muses.write_shot(tmp_path / kind, shot, kind)
        folder = tmp_path / kind / "projected_to_rgb"
        paths = {s: folder / shot.path(s, f"{s}.{kind}") for s in ("lidar", "radar", "event_camera")}
        assert sorted(p for p in folder.rglob("*") if p.is_file()) == sorted(paths.values())
        read = {"png": opened, "npy": np.load, "npz": lambda path: np.load(path)["arr_0"]}[kind]
        images[kind] = {sensor: read(path) for sensor, path in paths.items()}
        same(tmp_path / kind / "lidar", muses_mini / "lidar")
    for sensor in ("lidar", "radar", "event_camera"):
        plain = images["npy"][sensor]
        assert plain.shape == (1080, 1920, 3)
        assert plain.dtype == (np.uint8 if sensor == "event_camera" else np.float32)
        assert (images["npz"][sensor] == plain).all()
        coded = images["png"][sensor]
        if sensor == "event_camera":
            assert (coded == plain).all()
            assert not plain[..., 2].any()
            continue
        assert coded.dtype == np.uint16
        assert coded.min() == 15000 or sensor == "lidar"  # nothing measured; LiDAR's heights are below it
        assert np.abs(coded / 150 - 100 - plain).max() <= 1 / 150 + 1e-4  # the codec cuts off what is below a step
    # Against a projection of our own.
    points = np.fromfile(muses_mini / shot.path("lidar", "lidar.bin"), dtype=np.float64).reshape(-1, 6)
    away = np.linalg.norm(points[:, :3], axis=1)
    (column, row), _, inside = projected(points[away >= 1][:, :3], calib["lidar2rgb"], calib["rgb_K"])
    kept = points[away >= 1][inside]
    image = images["npy"]["lidar"]
    assert (image[..., 0] > 0).sum() == pytest.approx(len({*zip(column, row, strict=True)}), abs=5)
    alike = np.isclose(
        image[row, column], np.column_stack([np.linalg.norm(kept[:, :3], axis=1), kept[:, 3], kept[:, 2]])
    )
    assert alike.all(axis=1).mean() > 0.99
    radar = images["npy"]["radar"]
    assert radar[..., 0][radar[..., 0] > 0].min() > 1.6
    assert radar[..., 0].max() <= 150
    assert radar[..., 1].max() > 100
    assert not radar[..., 2].any()
    assert not radar[:500].any()  # every radar point is put on the ground, which ends below the horizon


# ---------------------------------------------------------------- MCubeS

FOLDERS = {
    "polL_color": "png", "polL_aolp_sin": "npy", "polL_aolp_cos": "npy", "polL_dolp": "npy", "NIR_warped": "png",
    "NIR_warped_mask": "png", "GT": "png",
}  # fmt: skip


def names(root: Path, split: str) -> list[str]:
    return (root / f"list_folder/{split}.txt").read_text().splitlines()


def test_mcubes_has_the_layout_of_the_original(mcubes_mini: Path) -> None:
    listed = names(mcubes_mini, "all")
    assert all(re.fullmatch(r"outscene\d{4}_\d+_\d{10}", name) for name in listed)
    assert sorted(listed) == sorted(n for split in ("train", "val", "test") for n in names(mcubes_mini, split))
    assert len(set(listed)) == len(listed) == 4
    expected = {f"{folder}/{name}.{end}" for folder, end in FOLDERS.items() for name in listed}
    expected |= {f"list_folder/{split}.txt" for split in ("all", "train", "val", "test")}
    assert set(files(mcubes_mini)) == expected


def test_mcubes_files_hold_what_the_original_ones_hold(mcubes_mini: Path) -> None:
    depths, ids = set(), set()
    for name in names(mcubes_mini, "all"):
        color, near, mask, label = (
            opened(mcubes_mini / folder / f"{name}.png")
            for folder in ("polL_color", "NIR_warped", "NIR_warped_mask", "GT")
        )
        assert color.shape == (1024, 1224, 3)
        assert near.shape == mask.shape == label.shape == (1024, 1224)
        depths |= {("color", color.dtype.name), ("near", near.dtype.name)}
        assert color.max() > 0.5 * np.iinfo(color.dtype).max
        assert mask.dtype == label.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert (mask[:, :192] == 255).all()  # white where the picture is not valid
        assert 0 < (mask[:, 192:] == 255).mean() < 0.1
        assert not near[mask == 255].any()
        assert near[mask == 0].any()
        ids |= set(np.unique(label).tolist())
        sine, cosine, degree = (np.load(mcubes_mini / f / f"{name}.npy") for f in list(FOLDERS)[1:4])
        for array in (sine, cosine, degree):
            assert (array.shape, array.dtype) == ((1024, 1224), np.float32)
            assert np.isfinite(array).all()
        whole = np.abs(sine**2 + cosine**2 - 1) < 0.05
        assert whole.mean() > 0.3  # elsewhere resampled over jumps from -90 to 90 degrees, as on all of the road
        assert 1 < sine.max() < 3  # which runs over the range, as in the original
        assert (cosine[whole] < -0.1).mean() < 0.01
        assert np.median(degree) < 0.3
        assert degree.max() > 0.5
    assert depths == {(kind, bits) for kind in ("color", "near") for bits in ("uint8", "uint16")}
    assert ids <= {*range(20), 255}
    assert {0, 1, 2, 3, 5, 14, 16, 19, 255} <= ids


# ---------------------------------------------------------------- all of them


def test_a_seed_gives_the_same_bytes_and_another_seed_other_ones(
    deliver_mini: Path, muses_mini: Path, mcubes_mini: Path, tmp_path: Path
) -> None:
    for module, root in ((deliver, deliver_mini), (muses, muses_mini), (mcubes, mcubes_mini)):
        shot = module.shots(0)[3]
        again, other = tmp_path / root.name, tmp_path / f"{root.name}-other"
        module.write_shot(again, shot)
        same(again, root)
        module.write_shot(other, module.shots(1)[3])
        assert files(other) != files(again)
        pictures = [sorted(p.rglob("*_rgb_front.png")) or sorted(p.rglob("*.png")) for p in (again, other)]
        assert pictures[0][0].read_bytes() != pictures[1][0].read_bytes()


def test_a_miniature_says_what_it_is(deliver_mini: Path, muses_mini: Path, mcubes_mini: Path) -> None:
    for root in (deliver_mini, muses_mini, mcubes_mini):
        text = (root / ABOUT).read_text()
        assert f"mlesam mini {root.name} DIR --seed 0" in text
        assert "no part of the dataset" in text


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    for words, message in (
        (("delivre", tmp_path / "a"), "did you mean 'deliver'"),
        (("muses", tmp_path / "full"), "exists and is not empty"),
        (("muses", tmp_path / "full/note"), "exists and is not empty"),
        (("mcubes", tmp_path / "a", -1), "seed is -1"),
        (("mcubes", tmp_path / "a", 0, "png"), "only muses has projections"),
        (("muses", tmp_path / "a", 0, "jpg"), "did you mean 'png'"),
    ):
        with pytest.raises(RequestError, match=message):
            write_mini(*words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, shot: object) -> None:
        (root / "GT").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mcubes, "write_shot", full)
    with pytest.raises(WorkError, match="No space left"):
        write_mini("mcubes", tmp_path / "mini")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_and_what_comes_next(
    mcubes_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()  # an empty directory may be there already
    assert main(["mini", "mcubes", str(tmp_path / "here"), "--seed", "0"]) == 0
    out = capsys.readouterr().out
    assert "train 2, val 1, test 1 frames, 65 MB" in out
    assert f"next: mlesam doctor mcubes:{tmp_path / 'here'}" in out
    same(mcubes_mini, tmp_path / "here")
    assert main(["mini", "mcubes", str(tmp_path / "here")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["mini", "mcubes", str(tmp_path / "other"), "--frames", "3"]) == 2
    assert "--frames" in capsys.readouterr().err
