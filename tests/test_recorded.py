"""Recordings in the folder layout: a rig makes pictures of them wherever frames are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import write_dataset
from mlesam import Segmenter
from mlesam.cli import main
from mlesam.config import DataConfig
from mlesam.data.dataset import open_dataset
from mlesam.data.reading import read_frame, resolve_sensors
from mlesam.data.recorded import RecordedFrame
from mlesam.errors import RequestError
from mlesam.sensors.projection import FORWARD_LEFT_UP
from mlesam.sensors.rig import KINDS, Rig
from mlesam.sensors.spec import sensor_spec

HEIGHT, WIDTH = 48, 64
RIG = {
    "camera": {"size": [WIDTH, HEIGHT], "matrix": [[40, 0, 31.5], [0, 40, 23.5], [0, 0, 1]]},
    "sensors": {
        "velodyne": {"kind": "points", "rotation": FORWARD_LEFT_UP.rotation.tolist(), "translation": [0, 0, 0]},
        "thermal": {"kind": "thermal", "scale": 0.04},
        "polarization": {"kind": "polarization"},
    },
}
SHORT = ("--model.rank", "2", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")


def scan(seed: int) -> np.ndarray:
    """Points before the camera, with intensities up to 255 as many devices record them."""
    rng = np.random.default_rng(seed)
    return rng.uniform((4, -3, -2, 0), (60, 3, 2, 255), (400, 4)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Colour pictures and labels, and as recordings: a LiDAR, a radiometric camera, a polarisation camera."""
    root = write_dataset(tmp_path / "data", train=4, val=2, test=2)
    shutil.rmtree(root / "depth")
    for seed, picture in enumerate(sorted((root / "thermal").rglob("*.png"))):
        counts = 7000 + 8 * np.asarray(Image.open(picture)).astype(np.uint16)
        Image.fromarray(counts).save(picture)
        for sensor in ("velodyne", "polarization"):
            (root / sensor / picture.parent.name).mkdir(parents=True, exist_ok=True)
        scan(seed).tofile(root / "velodyne" / picture.parent.name / f"{picture.stem}.bin")
        mosaic = np.random.default_rng(seed).integers(200, 4000, (HEIGHT, WIDTH)).astype(np.uint16)
        Image.fromarray(mosaic).save(root / "polarization" / picture.parent.name / picture.name)
    (root / "rig.yaml").write_text(yaml.safe_dump(RIG))
    (root / "dataset.yaml").write_text("classes: [ground, near, far]\nrig: rig.yaml\n")
    return root


def test_the_sensors_that_the_rig_names_are_encoded_as_they_are_read(root: Path) -> None:
    dataset = open_dataset(f"folder:{root}")
    assert set(dataset.modalities) == {"rgb", "velodyne", "thermal", "polarization"}
    train = dataset.frames("train")
    specs, _ = resolve_sensors(dataset, dataset.modalities, train)
    sample = read_frame(train[1], specs)
    rig = Rig.load(root / "rig.yaml")
    for modality in RIG["sensors"]:
        expected = rig.encode(modality, train[1].files[modality])
        np.testing.assert_array_equal(sample.images[modality].permute(1, 2, 0), expected, err_msg=modality)
    assert 20 < float(sample.images["thermal"].median()) < 100, "degrees Celsius"
    assert specs["velodyne"].photometric == "sparse"
    assert specs["velodyne"].interpolation == "nearest"
    assert specs["polarization"].mirror_negates == (1,), "of dolp, sine, cosine the sine"
    assert specs["rgb"].mean == (0.485, 0.456, 0.406)


def test_one_command_trains_on_them_and_the_same_files_alone_give_the_same_answer(root: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", f"folder:{root}"
    assert main(["train", "--data", name, "--out", str(run), *SHORT]) == 0
    assert main(["evaluate", str(run), "--protocol", "faults", "--severities", "5", "--frames", "1"]) == 0
    stored = json.loads((run / "evaluation/faults-severities-5-test-1.json").read_text())
    assert {row["severity"] for row in stored["results"]} == {5, None}
    assert main(["predict", str(run), "--input", name, "--split", "test", "--out", str(tmp_path / "all")]) == 0
    files = {m: f for m, f in open_dataset(name).frames("test")[0].files.items() if m != "polarization"}
    words = [word for m, path in files.items() for word in (f"--{m}", str(path))]
    rig = str(root / "rig.yaml")
    assert main(["predict", str(run), *words, "--calibration", rig, "--out", str(tmp_path / "one")]) == 0
    row = json.loads((tmp_path / "one/prediction.json").read_text())["frames"][0]
    prediction = Segmenter.load(run)({m: str(p) for m, p in files.items()}, calibration=rig)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one" / row["labels"])), prediction.labels)
    assert row["weights"] == {m: round(w, 6) for m, w in prediction.weights.items()}
    whole = json.loads((tmp_path / "all/prediction.json").read_text())["frames"]
    assert [len(frame["present"]) for frame in whole] == [4, 4]


def test_pictures_smaller_than_the_calibration_get_points_at_the_same_place(root: Path) -> None:
    dataset = open_dataset(f"folder:{root}")
    large = dataset.frames("val")[0].read("velodyne")
    for folder in ("rgb", "labels", "thermal", "polarization"):
        for path in (root / folder).rglob("*.png"):
            picture = Image.open(path)
            picture.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(path)
    small = open_dataset(f"folder:{root}").frames("val")[0].read("velodyne")
    assert small.shape == (HEIGHT // 2, WIDTH // 2, 3)
    # The nearest point of every block of 2 x 2 pixels, but for those on the edge of two blocks.
    blocks = np.where(np.isnan(large[..., 0]), np.inf, large[..., 0]).reshape(HEIGHT // 2, 2, WIDTH // 2, 2)
    nearest = blocks.min(axis=(1, 3))
    both = np.isfinite(nearest) & np.isfinite(small[..., 0])
    assert both.sum() > 50
    assert (small[..., 0] == nearest)[both].mean() > 0.95


def test_a_recipe_may_name_the_rig_and_an_archive_may_hold_it(root: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    inside = open_dataset(f"folder:{archive}").frames("test")[0]
    beside = open_dataset(f"folder:{root}").frames("test")[0]
    np.testing.assert_array_equal(inside.read("velodyne"), beside.read("velodyne"))
    (root / "rig.yaml").rename(tmp_path / "rig.yaml")
    (root / "dataset.yaml").unlink()
    frame = open_dataset(f"folder:{root}", DataConfig(rig=str(tmp_path / "rig.yaml"))).frames("test")[0]
    assert isinstance(frame, RecordedFrame)
    np.testing.assert_array_equal(frame.read("velodyne"), beside.read("velodyne"))


def test_doctor_reads_recordings_and_names_a_broken_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "velodyne/train/notes.mat").write_bytes(b"x")
    assert main(["doctor", f"folder:{root}"]) == 0
    said = capsys.readouterr().out
    assert "velodyne" in said
    assert "1 .mat file" in said
    (root / "velodyne/train/train0.bin").write_bytes(b"12345")
    assert main(["doctor", f"folder:{root}"]) == 1
    assert "velodyne/train/train0.bin" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_its_numbers_mean_and_its_spec_changes_none(kind: str) -> None:
    pose = {"rotation": FORWARD_LEFT_UP.rotation.tolist(), "translation": [0, 0, 0]}
    needed = {
        "points": pose,
        "radar": {**pose, "resolution": 0.05, "ground": -1.6},
        "spectral": {"bands": [1, 2, 5]},
    }
    rig = Rig.build({"sensors": {"mine": {"kind": kind, **needed.get(kind, {})}}})
    spec = sensor_spec("mine", rig.spec("mine"))
    assert spec.channels == len(rig.sensors["mine"].channels)
    values = np.random.default_rng(0).normal(0, 1000, (6, 8, spec.channels)).astype(np.float32)
    values[0, :3] = np.nan
    values[1, 1:, 0] = 0.0  # a measurement, where another channel is none
    expected = torch.from_numpy(values).permute(2, 0, 1)
    torch.testing.assert_close(spec.encode(values), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sensors": {"lidr": RIG["sensors"]["velodyne"]}}, "has none of its rig's sensors (lidr)"),
        (
            {"sensors": {"polarization": {"kind": "polarization", "layout": "files"}}},
            "store them as one with four channels (layout: stack)",
        ),
        ({"sensors": {"velodyne": {"kind": "point"}}}, "sensors.velodyne.kind is 'point'; did you mean 'points'?"),
    ],
)
def test_a_rig_that_does_not_fit_the_folder_is_refused(root: Path, change: dict, sentence: str) -> None:
    (root / "rig.yaml").write_text(yaml.safe_dump({**RIG, **change}))
    with pytest.raises(RequestError) as caught:
        open_dataset(f"folder:{root}")
    assert sentence in str(caught.value)


def test_what_cannot_be_meant_gets_one_sentence(
    root: Path, muses_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "dataset.yaml").write_text("rig: rigg.yaml\n")
    with pytest.raises(RequestError, match=r"rigg\.yaml"):
        open_dataset(f"folder:{root}")
    with pytest.raises(RequestError, match="only folder: datasets take a rig"):
        open_dataset(f"muses:{muses_mini}", DataConfig(rig="rig.yaml"))
    out = ("--calibration", str(root / "rig.yaml"), "--out", str(tmp_path / "out"))
    assert main(["predict", str(tmp_path), "--input", str(root), *out]) == 2
    assert "--calibration goes with single files" in capsys.readouterr().err
