"""MCubeS, read as it is published: on a miniature in its exact layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import trained_and_tested
from mlesam.cli import main
from mlesam.data import open_dataset
from mlesam.data.mcubes import CLASSES, ON_TEST, ON_VAL
from mlesam.data.reading import match_sensor, read_frame, resolve_classes, resolve_sensors
from mlesam.errors import RequestError
from mlesam.inference.segmenter import picture
from mlesam.sample import IGNORE
from mlesam.sensors.files import read_array


def test_every_frame_has_four_sensors_in_the_order_of_the_lists(mcubes_mini: Path) -> None:
    dataset = open_dataset(f"mcubes:{mcubes_mini}")
    assert dataset.modalities == ("rgb", "nir", "aolp", "dolp")
    assert dataset.splits() == ("train", "val", "test")
    assert dataset.default_split() == "test"
    assert dataset.declared.classes == tuple(CLASSES)
    for split in dataset.splits():
        listed = (mcubes_mini / f"list_folder/{split}.txt").read_text().split()
        frames = dataset.frames(split)
        assert [f.id for f in frames] == listed
        assert all(set(f.files) == {"rgb", "nir", "aolp", "dolp"} and f.label is not None for f in frames)


def test_the_values_are_those_of_the_files_without_the_left_columns(mcubes_mini: Path) -> None:
    dataset = open_dataset(f"mcubes:{mcubes_mini}")
    frames = [f for split in dataset.splits() for f in dataset.frames(split)]
    classes, _ = resolve_classes(dataset, ())
    sensors, _ = resolve_sensors(dataset, dataset.modalities, dataset.frames("train"))
    kinds, holes = set(), 0
    for frame in frames:
        sample = read_frame(frame, sensors, classes)
        stored = cv2.imread(str(frame.files["rgb"]), cv2.IMREAD_UNCHANGED)[..., ::-1]
        kinds.add(stored.dtype.name)
        full = 255 if stored.dtype == np.uint8 else 65535
        rgb = np.moveaxis(sample.images["rgb"].numpy(), 0, -1)
        assert rgb.shape == (1024, 1032, 3)
        assert np.allclose(rgb, stored[:, 192:] / full, atol=1e-6)
        sine = np.load(mcubes_mini / f"polL_aolp_sin/{frame.id}.npy")[:, 192:]
        cosine = np.load(mcubes_mini / f"polL_aolp_cos/{frame.id}.npy")[:, 192:]
        expected = np.clip(np.stack([sine, cosine]), -1, 1)  # beyond is what interpolation left, and no angle
        assert np.array_equal(sample.images["aolp"].numpy(), expected.astype(np.float32))
        dolp = np.load(mcubes_mini / f"polL_dolp/{frame.id}.npy")[:, 192:]
        assert np.array_equal(sample.images["dolp"][0].numpy(), np.clip(dolp, 0, 1).astype(np.float32))
        near = cv2.imread(str(frame.files["nir"]), cv2.IMREAD_UNCHANGED)[:, 192:]
        mask = cv2.imread(str(mcubes_mini / f"NIR_warped_mask/{frame.id}.png"), cv2.IMREAD_UNCHANGED)[:, 192:]
        found = sample.images["nir"][0].numpy()
        assert np.array_equal(np.isnan(found), mask > 0)  # white: left out by the published loss
        assert np.allclose(found[mask == 0], near[mask == 0] / np.iinfo(near.dtype).max, atol=1e-6)
        holes += int((mask > 0).sum())
        assert (mask > 0).mean() < 0.5
        label = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED)[:, 192:].astype(np.int64)
        assert sample.label is not None
        assert np.array_equal(sample.label.numpy(), np.where(label == 255, IGNORE, label))
    assert kinds == {"uint8", "uint16"}
    assert holes > 0


def test_doctor_has_no_fault_to_find(mcubes_mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"mcubes:{mcubes_mini}"]) == 0, capsys.readouterr().out


def test_a_result_says_which_list_it_belongs_to(mcubes_mini: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", f"mcubes:{mcubes_mini}?squash=128"
    found = trained_and_tested(name, run)
    assert {"subsets", "emm", "rmm", "nm", "faults"} <= set(found)
    for split, said in ((None, ON_TEST), ("val", ON_VAL)):
        out = tmp_path / f"{split}.json"
        words = [] if split is None else ["--split", split]
        assert main(["evaluate", str(run), "--out", str(out), *words]) == 0
        metrics = json.loads(out.read_text())
        assert metrics["split"] == (split or "test")
        assert metrics["about"] == said


def test_a_wrong_root_says_what_was_looked_for(mcubes_mini: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no polL_color in .*polL_color, GT, list_folder at its top"):
        open_dataset(f"mcubes:{tmp_path}")


def test_a_set_of_files_that_is_half_unpacked_is_a_fault(
    mcubes_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(mcubes_mini, half)
    name = (half / "list_folder/train.txt").read_text().split()[0]
    (half / f"polL_dolp/{name}.npy").unlink()
    (half / f"polL_aolp_cos/{name}.npy").unlink()
    assert main(["doctor", f"mcubes:{half}"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "lack dolp, and all of the published ones have it" in said
    assert f"polL_aolp_cos/{name}.npy" in said


def test_colour_is_drawn_as_the_camera_shows_it(mcubes_mini: Path) -> None:
    dataset = open_dataset(f"mcubes:{mcubes_mini}")
    frames = dataset.frames("train")
    spec = match_sensor(dataset, "rgb", frames)[0]
    assert spec.range == (0.0, 1.0)
    for frame in frames:
        drawn = picture(spec.encode(frame.read("rgb")).numpy(), frame.read("rgb"), spec)
        stored = read_array(mcubes_mini / f"polL_color/{frame.id}.png")[:, 192:]
        scale = 255 / np.iinfo(stored.dtype).max
        np.testing.assert_allclose(drawn, stored * scale, atol=1.01)
