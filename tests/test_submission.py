"""The zip for the server of a benchmark: written on a miniature of MUSES from the command line, and all that is refused."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import trained_for_a_moment, write_dataset
from mlesam.cli import main
from mlesam.data import open_dataset
from mlesam.data.dataset import Frame
from mlesam.data.deliver import Deliver
from mlesam.data.mcubes import Mcubes
from mlesam.data.muses import CLASSES, SUBMISSION, Muses
from mlesam.errors import DataError, RequestError, WorkError
from mlesam.inference.submission import SERVED, check_frames, check_submission, submission_of, write_submission

NAME = "labelTrainIds/REC0001_frame_000001.png"
SMALL = dataclasses.replace(SUBMISSION, size=(40, 30), frames=1)
"""What a server with small pictures would take."""


@pytest.fixture(scope="module")
def run(muses_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for two steps on the miniature's pictures."""
    path = tmp_path_factory.mktemp("submission") / "run"
    short = ("--model.rank", "2", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")
    data = ("--data", f"muses:{muses_mini}?squash=128", "--data.modalities", "[rgb]")
    assert main(["train", *data, "--out", str(path), *short]) == 0
    return path


@pytest.fixture
def two_frames(muses_mini: Path, tmp_path: Path) -> Path:
    """The miniature with two pictures of test and no other sensor."""
    root = tmp_path / "MUSES"
    for folder in ("day", "night"):
        shutil.copytree(muses_mini / "frame_camera/test/fog" / folder, root / "frame_camera/test/fog" / folder)
    for name in ("gt_semantic", "MINIATURE.txt"):
        (root / name).symlink_to(muses_mini / name)
    return root


def png(values: np.ndarray, mode: str = "L", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).convert(mode).save(stream, format=kind)
    return stream.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


# ---------------------------------------------------------------- what is written


def test_a_submission_is_what_the_server_takes(
    run: Path, two_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the folder of predictions, with nothing of the package's own checks."""
    path, out = tmp_path / "muses.zip", tmp_path / "out"
    command = ["predict", str(run), "--input", f"muses:{two_frames}", "--out", str(out), "--submission", str(path)]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "is a miniature with 2 of the 750 frames" in said
    assert f"2 class maps in {path}, checked; upload it at https://www.codabench.org/competitions/14005/" in said
    stems = {p.name.removesuffix("_frame_camera.png") for p in (two_frames / "frame_camera/test").rglob("*.png")}
    assert len(stems) == 2
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        names = packed.namelist()
        assert names == sorted(f"labelTrainIds/{stem}.png" for stem in stems)
        assert all(member.date_time == (1980, 1, 1, 0, 0, 0) for member in packed.infolist())
        for name in names:
            picture = Image.open(io.BytesIO(packed.read(name)))
            assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (1920, 1080))
            values = np.asarray(picture)
            assert values.max() <= 18
            (stored,) = out.glob(f"labels/*/*/{Path(name).name}")
            assert np.array_equal(values, np.asarray(Image.open(stored)))
    assert not list(tmp_path.glob(".*"))

    # The same predictions give the same bytes, and nothing is written over.
    frames = open_dataset(f"muses:{two_frames}").frames("test")
    pictures = {SUBMISSION.name(f): out / "labels" / f"{f.id}.png" for f in frames}
    write_submission(tmp_path / "again.zip", SUBMISSION, dict(reversed(pictures.items())))
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()
    check_submission(path, SUBMISSION, pictures)
    with pytest.raises(RequestError, match=r"muses\.zip exists; choose another name"):
        write_submission(path, SUBMISSION, pictures)
    assert main([*command[:-3], str(tmp_path / "other"), *command[-2:]]) == 2
    assert "muses.zip exists; choose another --submission" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_submission_that_would_be_wrong_is_not_written(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40), 19, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.zip holds the id 19, but .* takes 0 to 18"):
        write_submission(tmp_path / "a.zip", SMALL, {NAME: tmp_path / "a.png"})
    with pytest.raises(WorkError, match=r"a\.zip cannot be written .*b\.png"):
        write_submission(tmp_path / "a.zip", SMALL, {NAME: tmp_path / "b.png"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# ---------------------------------------------------------------- what an existing zip is checked for

GOOD = png(np.full((30, 40), 18, np.uint8))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, f"lacks {NAME}"),
        ({Path(NAME).name: GOOD}, f"lacks {NAME}"),
        ({NAME: GOOD, "labelTrainIds/notes.txt": b""}, "should not hold labelTrainIds/notes.txt"),
        ({NAME: png(np.zeros((32, 40), np.uint8))}, "is 40x32 of mode L, but .* takes 40x30 of mode L"),
        ({NAME: png(np.zeros((30, 40), np.uint8), "RGB")}, "is 40x30 of mode RGB"),
        ({NAME: png(np.zeros((30, 40), np.uint8), "P")}, "is 40x30 of mode P"),
        ({NAME: png(np.zeros((30, 40), np.uint16), "I;16")}, "is 40x30 of mode I;16"),
        ({NAME: png(np.full((30, 40), 255, np.uint8))}, "holds the id 255, but .* takes 0 to 18"),
        ({NAME: png(np.zeros((30, 40), np.uint8), kind="JPEG")}, "cannot be read as a PNG"),
        ({NAME: b"nothing"}, "cannot be read as a PNG"),
        ({NAME: GOOD[:-30]}, "cannot be read as a PNG"),
    ],
)
def test_a_zip_that_the_server_would_not_take_is_told_so(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path = pack(tmp_path / "a.zip", members)
    with pytest.raises(DataError, match=message) as caught:
        check_submission(path, SMALL, [NAME])
    assert str(path) in str(caught.value)


def test_a_zip_that_is_none_or_damaged_or_too_large_is_told_so(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"labelTrainIds/": b"", NAME: GOOD})  # as `zip -r` writes it
    check_submission(path, SMALL, [NAME])
    with pytest.raises(DataError, match=r"a\.zip has 0 MB, but https.* takes 0"):
        check_submission(path, dataclasses.replace(SMALL, largest=10), [NAME])
    content = path.read_bytes()
    path.write_bytes(content.replace(GOOD[40:60], b"x" * 20))
    with pytest.raises(DataError, match=r"a\.zip cannot be read as a zip .*CRC"):
        check_submission(path, SMALL, [NAME])
    path.write_bytes(content[:50])
    with pytest.raises(DataError, match=r"a\.zip cannot be read as a zip"):
        check_submission(path, SMALL, [NAME])
    with pytest.raises(DataError, match=r"there is no file .*b\.zip"):
        check_submission(tmp_path / "b.zip", SMALL, [NAME])
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(NAME, GOOD)
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr(NAME, GOOD)
    with pytest.raises(DataError, match=f"holds more than once {NAME}"):
        check_submission(path, SMALL, [NAME])


# ---------------------------------------------------------------- what is refused before a frame is segmented


def test_the_datasets_that_have_a_server_are_those_named() -> None:
    assert tuple(kind.kind for kind in (Deliver, Muses, Mcubes) if kind.submission is not None) == SERVED


def test_what_cannot_be_submitted_is_said_before_the_model_is_loaded(
    muses_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    muses, other, path = f"muses:{muses_mini}", f"folder:{write_dataset(tmp_path / 'data')}", str(tmp_path / "a.zip")
    for words, message in (
        (("--input", other, "--submission", path), "no server that takes predictions .*goes with muses:PATH"),
        (("--input", muses, "--split", "val", "--submission", path), "--split is val, but https.* scores test"),
        (("--input", muses, "--submission", str(tmp_path / "a.tar")), r"a\.tar, but a submission is a \.zip"),
        (("--input", muses, "--fault", "rgb:fog:3", "--submission", path), "leave --fault out"),
        (("--rgb", "a.png", "--submission", path), "--submission go with --input"),
    ):
        assert main(["predict", str(tmp_path / "no run"), *words, "--out", str(tmp_path / "out")]) == 2
        assert re.search(message, capsys.readouterr().err), words
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_run_of_other_classes_is_refused(
    muses_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_for_a_moment(tmp_path) / "run"
    words = ("--input", f"muses:{muses_mini}", "--split", "test", "--submission", str(tmp_path / "a.zip"))
    capsys.readouterr()
    assert main(["predict", str(run), *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the run has 3 classes (ground, near, far), but https://www.codabench.org/competitions/14005/ takes" in said
    assert "19 (road, sidewalk, building, ...) in that order; train a run on muses:" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "a.zip").exists()


def test_frames_that_the_server_would_miss_or_not_take_are_named(muses_mini: Path, tmp_path: Path) -> None:
    dataset, classes = open_dataset(f"muses:{muses_mini}"), tuple(CLASSES)
    frames = dataset.frames("test")

    def check(change: Callable[[list[Frame]], list[Frame]], sensors: tuple[str, ...] = ("rgb", "lidar")) -> str | None:
        return check_frames(SUBMISSION, dataset, change(list(frames)), classes, sensors)

    def first(**changes: object) -> Callable[[list[Frame]], list[Frame]]:
        return lambda all_of_them: [dataclasses.replace(all_of_them[0], **changes), *all_of_them[1:]]

    note = check(list)
    assert note is not None
    assert "for trying out, not for uploading" in note
    with pytest.raises(
        DataError, match=rf"1 of 8 frames have no file of rgb, lidar.*scores every frame: {frames[0].id}"
    ):
        check(first(files={"radar": frames[0].files["radar"]}))
    with pytest.raises(DataError, match=r"8 of 8 frames have no file of depth"):
        check(list, ("depth",))
    with pytest.raises(DataError, match=rf"would be called labelTrainIds/{frames[1].id.rpartition('/')[2]}\.png"):
        check(first(id=f"elsewhere/{frames[1].id.rpartition('/')[2]}"))
    Image.new("RGB", (960, 540)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png is 960x540, but https.* takes 1920x1080; put back the original"):
        check(first(files={"rgb": tmp_path / "small.png"}))
    with pytest.raises(RequestError, match=r"squashes pictures to 512 pixels, but .*leave squash out"):
        check(first(squash=512))
    turned = (*classes[1:], classes[0])
    with pytest.raises(RequestError, match=r"the run has 19 classes \(sidewalk, building, wall, \.\.\.\)"):
        check_frames(SUBMISSION, dataset, frames, turned, ("rgb",))


def test_a_test_split_that_is_not_whole_is_refused_unless_it_is_a_miniature(muses_mini: Path, tmp_path: Path) -> None:
    for name in ("frame_camera", "gt_semantic"):
        (tmp_path / name).symlink_to(muses_mini / name)
    dataset = open_dataset(f"muses:{tmp_path}")
    frames = dataset.frames("test")
    with pytest.raises(
        DataError, match=r"split 'test' of muses:.* has 8 of the 750 frames that https.* scores; unpack"
    ):
        check_frames(SUBMISSION, dataset, frames, tuple(CLASSES), ("rgb",))
    whole = dataclasses.replace(SUBMISSION, frames=8)
    assert check_frames(whole, dataset, frames, tuple(CLASSES), ("rgb",)) is None
    assert submission_of(dataset, "test", tmp_path / "a.zip") == submission_of(dataset, None, tmp_path / "a.zip")
