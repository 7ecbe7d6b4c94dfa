"""Datasets inside a zip or tar are read as the same dataset in a folder, without unpacking."""

from __future__ import annotations

import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from conftest import write_dataset
from mlesam.cli import main
from mlesam.config import DataConfig, load_recipe
from mlesam.data import open_dataset
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.data.reading import read_frame, resolve_classes, resolve_sensors
from mlesam.errors import DataError, RequestError
from mlesam.sensors.archives import ArchivePath, open_root
from mlesam.sensors.files import read_array


def pack(root: Path, archive: Path, top: str = "") -> Path:
    """All files of ``root`` in an archive whose kind is the name's suffix."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, f"{top}{path.relative_to(root)}")
    else:
        with tarfile.open(archive, "w") as packed:
            for path in files:
                packed.add(path, f"{top}{path.relative_to(root)}")
    return archive


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with every kind of file that is decoded: 8 and 16 bits, colour of 16 bits, arrays, TIFF."""
    root = write_dataset(tmp_path_factory.mktemp("plain") / "data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for folder in ("lidar", "bands", "radar"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            import cv2

            cv2.imwrite(str(root / f"lidar/{split}/{split}{i}.png"), rng.integers(0, 65536, (48, 64, 3), np.uint16))
            tifffile.imwrite(root / f"bands/{split}/{split}{i}.tif", rng.random((48, 64, 5), np.float32))
            np.save(root / f"radar/{split}/{split}{i}.npy", rng.random((48, 64, 3), np.float32))
    return root


@pytest.fixture(params=[".zip", ".tar"])
def archive(plain: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return pack(plain, tmp_path / f"data{request.param}")


def samples(name: str, split: str = "train"):
    dataset = open_dataset(name)
    frames = dataset.frames(split)
    classes, _ = resolve_classes(dataset, frames)
    sensors, _ = resolve_sensors(dataset, dataset.modalities, dataset.frames("train"))
    return frames, sensors, classes, [read_frame(f, sensors, classes) for f in frames]


def assert_equal(left, right) -> None:
    assert [s.id for s in left] == [s.id for s in right]
    for a, b in zip(left, right, strict=True):
        assert a.tags == b.tags
        assert a.images.keys() == b.images.keys()
        assert torch.equal(a.label, b.label)
        for modality in a.images:
            assert torch.equal(a.images[modality], b.images[modality]), modality


def test_the_same_samples_come_out_of_an_archive(plain: Path, archive: Path) -> None:
    _, specs, classes, expected = samples(f"folder:{plain}")
    _, packed_specs, packed_classes, found = samples(f"folder:{archive}")
    assert packed_specs == specs
    assert packed_classes == classes
    assert len(expected) == 6
    assert_equal(found, expected)


def test_one_folder_around_everything_is_seen_through(plain: Path, tmp_path: Path) -> None:
    packed = pack(plain, tmp_path / "data.zip", top="recording/")
    assert_equal(samples(f"folder:{packed}")[3], samples(f"folder:{plain}")[3])


def test_workers_and_threads_read_the_same(plain: Path, archive: Path) -> None:
    frames, sensors, classes, expected = samples(f"folder:{archive}")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert_equal(list(pool.map(lambda f: read_frame(f, sensors, classes), frames)), expected)
    reader = EvaluationFrames(frames, sensors, classes, None)
    alone = list(batches(evaluation_loader(reader)))
    forked = list(batches(evaluation_loader(reader, workers=2)))  # the parent has the archive open already
    for a, b in zip(alone, forked, strict=True):
        assert all(torch.equal(a.images[m], b.images[m]) for m in a.images)


def test_doctor_and_training_take_an_archive(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"folder:{archive}"]) == 0, capsys.readouterr().out
    short = ["--model.rank", "2", "--data.crop", "64", "--data.workers", "1", "--training.batch", "2", "--steps", "1"]
    assert main(["train", "--data", f"folder:{archive}", "--out", str(tmp_path / "run"), *short]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--frames", "1"]) == 0


def test_places_in_an_archive_behave_like_paths(plain: Path, archive: Path) -> None:
    root = open_root(archive)
    assert isinstance(root, ArchivePath)
    assert root.is_dir()
    assert (root / "rgb").is_dir()
    assert not (root / "rgb").is_file()
    assert not (root / "nothing").exists()
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in plain.iterdir())
    assert sorted(p.name for p in root.rglob("*.tif")) == sorted(p.name for p in plain.rglob("*.tif"))
    file = root / "rgb/train/train0.png"
    assert (file.stem, file.suffix, file.name, file.parent) == ("train0", ".png", "train0.png", root / "rgb/train")
    assert file.stat().st_size == (plain / "rgb/train/train0.png").stat().st_size
    assert file.read_bytes() == (plain / "rgb/train/train0.png").read_bytes()
    assert str(file) == f"{archive}/rgb/train/train0.png"
    with pytest.raises(FileNotFoundError):
        (root / "nothing.png").read_bytes()


def test_names_that_leave_the_archive_are_no_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../evil.png", b"x")
        packed.writestr("/etc/evil.png", b"x")
        packed.writestr("rgb/a.png", b"x")
    assert [str(p.inside) for p in open_root(tmp_path / "a.zip").rglob("*")] == ["rgb", "rgb/a.png"]  # type: ignore[union-attr]


def test_a_cut_off_archive_is_refused(archive: Path) -> None:
    size = archive.stat().st_size
    os.truncate(archive, size // 2)
    with pytest.raises(DataError, match=r"fetch it again"):
        open_dataset(f"folder:{archive}")


def test_a_damaged_file_in_a_zip_is_named(plain: Path, tmp_path: Path) -> None:
    archive = pack(plain, tmp_path / "data.zip")
    with zipfile.ZipFile(archive) as packed:
        offset = packed.getinfo("rgb/train/train0.png").header_offset
    with archive.open("r+b") as file:
        file.seek(offset + 200)
        file.write(bytes(64))
    with pytest.raises(DataError, match=r"rgb/train/train0\.png cannot be read .*damaged"):
        read_array(open_root(archive) / "rgb/train/train0.png")


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_an_archive_that_allows_no_jumps_is_refused(plain: Path, tmp_path: Path, mode: str) -> None:
    archive = tmp_path / f"data.tar.{mode}"
    with tarfile.open(archive, f"w:{mode}") as packed:
        packed.add(plain / "dataset.yaml", "dataset.yaml")
    with pytest.raises(DataError, match=r"unpack it, or pack the files into a zip or a plain tar"):
        open_dataset(f"folder:{archive}")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="neither a folder nor a whole zip or tar"):
        open_dataset(f"folder:{tmp_path / 'notes.txt'}")
    with pytest.raises(RequestError, match="there is no folder"):
        open_dataset(f"folder:{tmp_path / 'nowhere'}", DataConfig())


def test_a_recipe_may_name_an_archive(archive: Path) -> None:
    assert load_recipe(None, {"data.dataset": f"folder:{archive}"}).data.dataset == f"folder:{archive}"
