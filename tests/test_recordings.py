"""Sensors as they leave the device, given to the segmenter with a calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mlesam.config import ModelConfig
from mlesam.errors import DataError, RequestError
from mlesam.inference.segmenter import Segmenter
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Classes
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import sensor_spec

RIG = {
    "camera": {"size": [128, 96], "matrix": [[100.0, 0.0, 63.5], [0.0, 100.0, 47.5], [0.0, 0.0, 1.0]]},
    "sensors": {
        "lidar": {
            "kind": "points", "columns": ["x", "y", "z", "intensity"], "dtype": "float32", "dilate": 3,
            # x forward, y left, z up, a little above the camera
            "rotation": [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], "translation": [0.0, -0.2, 0.0],
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    sensors = {
        "rgb": sensor_spec("rgb"),
        "lidar": sensor_spec("lidar", {"unit": "m", "range": [-100, 300], "std": [10, 50, 2], "missing": None}),
    }
    model = MLESAM({"rgb": 3, "lidar": 3}, 2, ModelConfig(foundation="nano", rank=2), 0)
    return Segmenter(model, sensors, Classes(("a", "b"), ((0, 0, 0), (255, 255, 255))), device="cpu")


@pytest.fixture
def points(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = np.c_[
        rng.uniform(3, 40, 3000), rng.uniform(-20, 20, 3000), rng.uniform(-2, 8, 3000), rng.uniform(0, 255, 3000)
    ]
    rows.astype("<f4").tofile(tmp_path / "points.bin")
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(RIG))
    return tmp_path / "points.bin"


def test_a_recording_and_its_picture_give_the_same(segmenter: Segmenter, points: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    rig = Rig.load(points.parent / "rig.yaml")
    picture = rig.encode("lidar", points)
    expected = segmenter({"rgb": rgb, "lidar": picture})
    array = np.fromfile(points, "<f4").reshape(-1, 4)
    for recording, calibration in (
        (str(points), str(points.parent / "rig.yaml")),
        (points, rig),
        (array, rig),
    ):
        found = segmenter({"rgb": rgb, "lidar": recording}, calibration=calibration)
        assert np.array_equal(found.probabilities, expected.probabilities)
        assert found.weights == expected.weights
    other = segmenter({"rgb": rgb})
    assert not np.array_equal(other.probabilities, expected.probabilities)


def test_a_recording_alone_comes_at_the_calibrations_size(segmenter: Segmenter, points: Path) -> None:
    assert segmenter({"lidar": points}, calibration=points.parent / "rig.yaml").labels.shape == (96, 128)


def test_the_calibration_follows_a_smaller_picture(segmenter: Segmenter, points: Path) -> None:
    rig = Rig.load(points.parent / "rig.yaml")
    small = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    found = segmenter({"rgb": small, "lidar": points}, calibration=rig)
    expected = segmenter({"rgb": small, "lidar": rig.resized((64, 48)).encode("lidar", points)})
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_what_cannot_be_is_said(segmenter: Segmenter, points: Path, tmp_path: Path) -> None:
    rgb = np.zeros((96, 128, 3), np.uint8)
    with pytest.raises(RequestError, match=r"the calibration has lidar, and none of them was given"):
        segmenter({"rgb": rgb}, calibration=points.parent / "rig.yaml")
    with pytest.raises(RequestError, match=r"there is no file .*nowhere\.yaml"):
        segmenter({"lidar": points}, calibration=tmp_path / "nowhere.yaml")
    behind = np.fromfile(points, "<f4").reshape(-1, 4) * np.array([-1, 1, 1, 1], np.float32)
    with pytest.raises(DataError, match=r"lidar.*front of the camera"):
        segmenter({"lidar": behind}, calibration=Rig.load(points.parent / "rig.yaml"))
