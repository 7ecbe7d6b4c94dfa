"""MUSES, read as it is recorded and as the official scripts project it: on a miniature in its exact layout."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial import KDTree

from conftest import corrected_as_by_the_sdk, trained_and_tested, true_depth
from mlesam.cli import main
from mlesam.data import open_dataset
from mlesam.data.muses import CLASSES, MusesFrame, decode_projected
from mlesam.data.reading import read_frame, resolve_classes
from mlesam.errors import DataError, RequestError
from mlesam.mini import muses
from mlesam.sample import IGNORE
from mlesam.sensors.radar import RadarEncoder
from mlesam.sensors.spec import sensor_spec


def test_every_frame_has_four_sensors_and_its_tags(muses_mini: Path) -> None:
    dataset = open_dataset(f"muses:{muses_mini}")
    assert dataset.modalities == ("rgb", "lidar", "event", "radar")
    assert dataset.splits() == ("train", "val", "test")
    assert dataset.default_split() == "val"
    assert dataset.declared.classes == tuple(CLASSES)
    for split in dataset.splits():
        frames = dataset.frames(split)
        assert len(frames) == 8
        assert {f.tags for f in frames} == {(w, t) for w in ("clear", "fog", "rain", "snow") for t in ("day", "night")}
        assert all(set(f.files) == {"rgb", "lidar", "event", "radar"} for f in frames)
        assert all((f.label is None) == (split == "test") for f in frames)  # with the benchmark's server


def test_labels_stay_as_they_are_and_void_stays_void(muses_mini: Path) -> None:
    dataset = open_dataset(f"muses:{muses_mini}")
    frame = dataset.frames("val")[0]
    classes, _ = resolve_classes(dataset, ())
    sample = read_frame(frame, {"rgb": sensor_spec("rgb")}, classes)
    raw = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED).astype(np.int64)
    assert sample.label is not None
    assert np.array_equal(sample.label.numpy(), np.where(raw == 255, IGNORE, raw))


def test_points_fall_where_the_calibration_says(muses_mini: Path) -> None:
    """In a few lines of numpy, for the points that no other one covers."""
    frame = open_dataset(f"muses:{muses_mini}?enlarge=false").frames("val")[0]
    calibration = json.loads((muses_mini / "calib.json").read_text())
    points = np.fromfile(str(frame.files["lidar"])).reshape(-1, 6)
    near = np.linalg.norm(points[:, :3], axis=1)
    seen = np.c_[points[:, :3], np.ones(len(points))] @ np.array(calibration["extrinsics"]["lidar2rgb"]).T
    kept = (near >= 1) & (seen[:, 2] > 0)
    pixel = seen[kept, :3] @ np.array(calibration["intrinsics"]["rgb"]["K"]).T
    column, row = np.rint(pixel[:, :2] / pixel[:, 2:]).astype(int).T
    inside = (column >= 0) & (column < 1920) & (row >= 0) & (row < 1080)
    own = points[kept][inside]
    places, first, counts = np.unique(row[inside] * 1920 + column[inside], return_index=True, return_counts=True)
    alone = counts == 1
    picture = frame.read("lidar").reshape(-1, 3)
    expected = np.c_[near[kept][inside], own[:, 3], own[:, 2]][first[alone]]
    assert alone.sum() > 1000
    assert np.allclose(picture[places[alone]], expected, atol=1e-3)
    assert np.isfinite(picture[:, 0]).sum() == len(places)


@pytest.mark.parametrize("kind", ["png", "npy", "npz"])
def test_projections_of_the_official_scripts_are_decoded(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lidar = np.zeros((6, 8, 3), np.float32)
    lidar[1, 2], lidar[4, 5] = (12.34, 77.0, -1.5), (88.8, 200.0, 6.25)
    events = rng.integers(0, 5, (6, 8, 3)).astype(np.uint8)
    events[..., 2] = 0
    for name, picture in (("lidar", lidar), ("event", events)):
        path = tmp_path / f"{name}.{kind}"
        if kind == "png":  # as the script writes it, through OpenCV
            stored = picture if name == "event" else ((picture + 100) * 150).astype(np.uint16)
            cv2.imwrite(str(path), stored)
        elif kind == "npy":
            np.save(path, picture)
        else:
            np.savez_compressed(path, picture)
        found = decode_projected(path, name)
        expected = picture[..., :2] if name == "event" else picture
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1 / 150 if kind == "png" else 0)
        assert np.array_equal(found == 0, expected == 0)


def test_a_damaged_projection_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.npz cannot be decoded"):
        decode_projected(tmp_path / "a.npz", "lidar")


def test_projected_files_go_first_unless_said_otherwise(muses_mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "MUSES"
    for name in ("frame_camera", "gt_semantic", "lidar", "calib.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(muses_mini / name)
    raw = open_dataset(f"muses:{muses_mini}?enlarge=false")
    for split in raw.splits():
        for frame in raw.frames(split):
            place = root / "projected_to_rgb/lidar" / split / f"{frame.id}_lidar.npz"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.savez(place, np.full((1080, 1920, 3), 7, np.float32))
    assert (open_dataset(f"muses:{root}").frames("val")[0].read("lidar") == 7).all()
    assert (open_dataset(f"muses:{root}?source=projected").frames("val")[0].read("lidar") == 7).all()
    found = open_dataset(f"muses:{root}?source=raw,enlarge=false").frames("val")[0].read("lidar")
    assert np.array_equal(found, raw.frames("val")[0].read("lidar"), equal_nan=True)
    assert open_dataset(f"muses:{root}").modalities == ("rgb", "lidar")


def test_recordings_are_read_inside_an_archive(muses_mini: Path, tmp_path: Path) -> None:
    frame = open_dataset(f"muses:{muses_mini}").frames("val")[0]
    with zipfile.ZipFile(tmp_path / "muses.zip", "w") as packed:
        packed.write(muses_mini / "calib.json", "muses/calib.json")
        for path in (*frame.files.values(), frame.label):
            packed.write(str(path), f"muses/{Path(str(path)).relative_to(muses_mini)}")
    found = open_dataset(f"muses:{tmp_path}/muses.zip").frames("val")
    assert [f.id for f in found] == [frame.id]
    for modality in frame.files:
        assert np.array_equal(found[0].read(modality), frame.read(modality), equal_nan=True), modality


# ---------------------------------------------------------------- the vehicle's motion


def of_split(root: Path, options: str, split: str) -> list[tuple[muses.Shot, MusesFrame]]:
    """Frames with the scenes of the miniature that they show."""
    frames = {frame.id.rpartition("/")[2]: frame for frame in open_dataset(f"muses:{root}?{options}").frames(split)}
    found = []
    for shot in muses.shots(0):
        if shot.split == split:
            frame = frames[shot.stem]
            assert isinstance(frame, MusesFrame)
            found.append((shot, frame))
    return found


def range_error(frame: MusesFrame, shot: muses.Shot, calibration: dict) -> np.ndarray:
    """Share by which the range in each measured pixel differs from the range of what the camera shows there."""
    depth = true_depth(shot)[0]
    back = np.linalg.inv(np.array(calibration["extrinsics"]["lidar2rgb"]))
    picture = frame.read("lidar")[..., 0]
    row, column = np.nonzero(np.isfinite(picture) & np.isfinite(depth))
    rays = np.linalg.inv(calibration["intrinsics"]["rgb"]["K"]) @ np.stack([column, row, np.ones(len(row))])
    place = back[:3, :3] @ (rays * depth[row, column]) + back[:3, 3:]
    return np.abs(picture[row, column] / np.linalg.norm(place, axis=0) - 1)


def test_points_of_a_moving_vehicle_fall_where_the_camera_sees_them(muses_mini: Path) -> None:
    calibration = json.loads((muses_mini / "calib.json").read_text())
    still, moving = (of_split(muses_mini, f"enlarge=false,motion={m}", "val") for m in ("false", "true"))
    for (shot, one), (_, other) in zip(still, moving, strict=True):
        before, after = range_error(one, shot, calibration), range_error(other, shot, calibration)
        assert np.median(after) < 0.5 * np.median(before), shot
        assert (after < 0.05).mean() > 0.9, shot


def test_radar_echoes_of_a_moving_vehicle_lie_where_the_camera_sees_their_places(muses_mini: Path) -> None:
    """The distance, seen from above, from a strong echo to the nearest solid thing that the camera sees at its height."""
    from mlesam.mini.scene import THINGS

    calibration = json.loads((muses_mini / "calib.json").read_text())
    to_radar = np.linalg.inv(calibration["extrinsics"]["radar2rgb"])
    solid = [THINGS.index(name) for name in ("vehicle", "lorry", "building", "wall", "pole", "sign")]
    found = []
    for shot, frame in of_split(muses_mini, "motion=true", "train"):
        assert frame.rig is not None
        assert frame.drive is not None
        radar, motion = frame.rig.sensors["radar"], frame.drive.motion("radar")
        assert isinstance(radar, RadarEncoder)
        assert motion is not None
        echoes, times = radar.points(radar.read(Path(str(frame.files["radar"]))), timed=True)
        assert times is not None
        depth, things = true_depth(shot)
        row, column = (a[::7] for a in np.nonzero(np.isin(things, solid)))
        rays = np.linalg.inv(calibration["intrinsics"]["rgb"]["K"]) @ np.stack([column, row, np.ones(len(row))])
        place = (to_radar @ np.vstack([rays * depth[row, column], np.ones(len(row))]))[:3].T
        slope = place[:, 2] / np.hypot(place[:, 0], place[:, 1])
        seen = KDTree(place[(slope > -0.14) & (slope < 0.03), :2])  # the beam's height
        near = np.linalg.norm(echoes[:, :2], axis=1) < 40
        strong = (echoes[:, 3] > 120) & near & (np.abs(times - sum(shot.exposure) / 2e6) > 0.01)
        assert strong.sum() > 100
        moved = motion.at_exposure(echoes[:, :3], times)
        found.append([np.median(seen.query(points[strong, :2])[0]) for points in (echoes, moved)])
        picture = frame.read("radar")
        assert not np.array_equal(picture, frame.rig.encode("radar", frame.files["radar"]), equal_nan=True)
        expected = frame.rig.encode("radar", frame.files["radar"], motion)
        assert np.array_equal(picture, expected, equal_nan=True)
    before, after = np.array(found).T
    assert (after < before).sum() >= 7
    assert np.median(after) < 0.06  # metres; a bin has 0.04
    assert np.median(before) > 0.12


def test_motion_is_what_the_sdk_makes_of_it(muses_mini: Path) -> None:
    calibration = json.loads((muses_mini / "calib.json").read_text())
    meta = json.loads((muses_mini / "meta.json").read_text())
    for shot, frame in of_split(muses_mini, "motion=true", "train"):
        points = np.fromfile(str(frame.files["lidar"])).reshape(-1, 6)
        gnss = [int(word) for word in (muses_mini / meta[shot.stem]["path_to_gnss"]).read_text().split()]
        mount = np.array(calibration["extrinsics"]["lidar2gnss"])
        official = corrected_as_by_the_sdk(points[:, :3], points[:, 5], sum(shot.exposure) / 2e6, mount, gnss)
        assert frame.drive is not None
        motion = frame.drive.motion("lidar")
        assert motion is not None
        np.testing.assert_allclose(motion.at_exposure(points[:, :3], points[:, 5]), official, atol=0.005)
        assert np.abs(official - points[:, :3]).max() > 0.2  # so the test can tell


def test_motion_is_left_alone_unless_asked_for(muses_mini: Path) -> None:
    frame = open_dataset(f"muses:{muses_mini}").frames("val")[0]
    assert isinstance(frame, MusesFrame)
    assert frame.rig is not None
    assert frame.drive is None
    plain = frame.rig.encode("lidar", frame.files["lidar"])
    assert np.array_equal(frame.read("lidar"), plain, equal_nan=True)


def test_motion_is_corrected_inside_an_archive(muses_mini: Path, tmp_path: Path) -> None:
    frame = open_dataset(f"muses:{muses_mini}?motion=true").frames("val")[0]
    assert isinstance(frame, MusesFrame)
    assert frame.drive is not None
    with zipfile.ZipFile(tmp_path / "muses.zip", "w") as packed:
        for path in (
            muses_mini / "calib.json",
            muses_mini / "meta.json",
            frame.drive.gnss,
            frame.label,
            *frame.files.values(),
        ):
            packed.write(str(path), f"muses/{Path(str(path)).relative_to(muses_mini)}")
    found = open_dataset(f"muses:{tmp_path}/muses.zip?motion=true").frames("val")
    assert np.array_equal(found[0].read("lidar"), frame.read("lidar"), equal_nan=True)


def test_what_motion_lacks_is_named(muses_mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "MUSES"
    root.mkdir()
    name = f"muses:{root}?motion=true"
    for folder in ("frame_camera", "gt_semantic", "event_camera"):
        (root / folder).symlink_to(muses_mini / folder)
    with pytest.raises(RequestError, match=r"neither lidar nor radar to correct for motion; leave motion out"):
        open_dataset(name)
    for file in ("lidar", "calib.json"):
        (root / file).symlink_to(muses_mini / file)
    with pytest.raises(RequestError, match=r"there is no gnss in .*MUSES, which motion needs; fetch it"):
        open_dataset(name)
    shutil.copytree(muses_mini / "gnss", root / "gnss")
    with pytest.raises(RequestError, match=r"there is no file .*meta\.json; unpack it again, or leave motion out"):
        open_dataset(name).frames("val")
    meta = json.loads((muses_mini / "meta.json").read_text())
    stem, scene = next((s, e) for s, e in meta.items() if e["split"] == "val")
    (root / "meta.json").write_text(json.dumps({s: e for s, e in meta.items() if s != stem}))
    with pytest.raises(DataError, match=rf"meta\.json says nothing of {stem}"):
        open_dataset(name).frames("val")
    for content in ([], {stem: {**scene, "path_to_gnss": None}}, {stem: {"path_to_gnss": "gnss/a.txt"}}):
        (root / "meta.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"meta\.json does not say path_to_gnss, .* of every scene"):
            open_dataset(name).frames("val")
    (root / "meta.json").unlink()
    (root / "meta.json").symlink_to(muses_mini / "meta.json")
    frame = next(f for f in open_dataset(name).frames("val") if f.id.endswith(stem))
    (root / scene["path_to_gnss"]).write_text("1 2 3")
    with pytest.raises(DataError, match=rf"{stem}_gnss\.txt has 3 numbers"):
        frame.read("lidar")
    (root / scene["path_to_gnss"]).unlink()
    with pytest.raises(DataError, match=rf"there is no file .*{stem}_gnss\.txt.*leave the correction for motion out"):
        frame.read("lidar")
    (root / "projected_to_rgb/lidar").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"takes lidar from .*projected_to_rgb.*add source=raw"):
        open_dataset(name)
    assert open_dataset(f"{name},source=raw").frames("val")
    calibration = json.loads((muses_mini / "calib.json").read_text())
    del calibration["extrinsics"]["lidar2gnss"]
    (root / "calib.json").unlink()
    (root / "calib.json").write_text(json.dumps(calibration))
    with pytest.raises(RequestError, match=r"calib\.json: extrinsics\.lidar2gnss is missing"):
        open_dataset(f"{name},source=raw").frames("val")


# ---------------------------------------------------------------- what is refused


def test_a_wrong_root_and_a_missing_calibration_are_named(muses_mini: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"there is no frame_camera in .*MUSES has frame_camera, gt_semantic at its top"
    ):
        open_dataset(f"muses:{tmp_path}")
    root = tmp_path / "MUSES"
    root.mkdir()
    for name in ("frame_camera", "gt_semantic", "lidar"):
        (root / name).symlink_to(muses_mini / name)
    with pytest.raises(RequestError, match=r"there is no file .*calib\.json"):
        open_dataset(f"muses:{root}").frames("val")


def test_recordings_without_the_expected_groups_are_named(muses_mini: Path, tmp_path: Path) -> None:
    import h5py

    frame = open_dataset(f"muses:{muses_mini}").frames("val")[0]
    assert isinstance(frame, MusesFrame)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["CD/x"] = np.zeros(3)
    assert frame.rig is not None
    with pytest.raises(DataError, match=r"a\.h5.*events"):
        frame.rig.encode("event", tmp_path / "a.h5")


def test_a_calibration_that_projects_nothing_is_said_to(muses_mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "MUSES"
    root.mkdir()
    for name in ("frame_camera", "gt_semantic", "lidar"):
        (root / name).symlink_to(muses_mini / name)
    calibration = json.loads((muses_mini / "calib.json").read_text())
    turned = np.diag([-1.0, 1.0, -1.0, 1.0]) @ np.array(calibration["extrinsics"]["lidar2rgb"])
    calibration["extrinsics"]["lidar2rgb"] = turned.tolist()
    (root / "calib.json").write_text(json.dumps(calibration))
    frame = open_dataset(f"muses:{root}").frames("val")[0]
    with pytest.raises(DataError, match=r"lidar.*point"):
        frame.read("lidar")


def test_doctor_names_what_is_half_unpacked(
    muses_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(muses_mini, half, ignore=shutil.ignore_patterns("test", "radar", "event_camera"))
    next((half / "lidar/train").rglob("*.bin")).unlink()
    assert main(["doctor", f"muses:{half}"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 8 frames of split 'train' lack lidar, and all of the published ones have it" in said


# ---------------------------------------------------------------- from the command line


def test_it_is_trained_and_tested_with_all_protocols(muses_mini: Path, tmp_path: Path) -> None:
    """For the machinery alone: two frames of a miniature say nothing about a model."""
    run, name = tmp_path / "run", f"muses:{muses_mini}?squash=128"
    found = trained_and_tested(name, run)
    assert set(found) == {"subsets", "emm", "rmm", "nm", "cases", "faults"}
    for metrics in found.values():
        assert (metrics["dataset"], metrics["split"], metrics["frames"]) == (name, "val", 2)
        assert "Pixels without a label (255) are left out" in metrics["about"]
