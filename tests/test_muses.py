"""MUSES, read as it is recorded and as the official scripts project it: on a miniature in its exact layout."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import trained_and_tested
from mlesam.cli import main
from mlesam.data import open_dataset
from mlesam.data.muses import CLASSES, MusesFrame, decode_projected
from mlesam.data.reading import read_frame, resolve_classes
from mlesam.errors import DataError, RequestError
from mlesam.sample import IGNORE
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
