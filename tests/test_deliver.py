"""DELIVER, read as it is published: on a miniature in its exact layout and on files written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import trained_and_tested
from mlesam.cli import main
from mlesam.config import DataConfig
from mlesam.data import open_dataset
from mlesam.data.deliver import CASES, CLASSES
from mlesam.data.reading import read_frame, resolve_classes, resolve_sensors
from mlesam.errors import DataError, RequestError
from mlesam.inference.predict import predict_frames
from mlesam.inference.segmenter import Segmenter
from mlesam.sample import IGNORE
from mlesam.sensors.files import image_size


def read(name: str, split: str, index: int = 0):
    dataset = open_dataset(name)
    frames = dataset.frames(split)
    classes, _ = resolve_classes(dataset, frames)
    sensors, _ = resolve_sensors(dataset, dataset.modalities, dataset.frames("train")[:2])
    return frames[index], read_frame(frames[index], sensors, classes), sensors


def test_every_frame_has_four_sensors_a_label_and_its_tags(deliver_mini: Path) -> None:
    dataset = open_dataset(f"deliver:{deliver_mini}")
    assert dataset.modalities == ("rgb", "depth", "lidar", "event")
    assert dataset.splits() == ("train", "val", "test")
    assert dataset.default_split() == "val"
    assert dataset.declared.classes == tuple(CLASSES)
    for split in dataset.splits():
        pictures = list(deliver_mini.glob(f"img/*/{split}/*/*.png"))
        frames = dataset.frames(split)
        assert len(frames) == len(pictures) > 0
        for frame in frames:
            assert set(frame.files) == {"rgb", "depth", "lidar", "event"}
            assert frame.label is not None
            assert f"/{frame.tags[0]}/{split}/" in str(frame.label)
            assert [t for t in CASES if str(frame.files["rgb"].parent).endswith(t)] == list(frame.tags[1:])
        assert {f.tags[0] for f in frames} == {"cloud", "fog", "night", "rain", "sun"}


def test_train_is_not_all_rain(deliver_mini: Path) -> None:
    """The published filter looks for "rain" anywhere in the path, and finds it in "train"."""
    frames = open_dataset(f"deliver:{deliver_mini}").frames("train")
    assert 0 < sum("rain" in f.tags for f in frames) < len(frames) / 2


def test_labels_are_the_first_channel_less_one(deliver_mini: Path) -> None:
    frame, sample, _ = read(f"deliver:{deliver_mini}", "val")
    raw = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED)[..., 2].astype(np.int64)  # OpenCV has blue first
    expected = np.where((raw == 0) | (raw == 255), IGNORE, raw - 1)
    assert sample.label is not None
    assert np.array_equal(sample.label.numpy(), expected)
    assert {0, 255} & set(np.unique(raw))


def test_the_published_rule_for_labels_gives_the_same(deliver_mini: Path) -> None:
    """CMNeXt: on uint8, 255 becomes 0 and then one is taken away, so that 0 wraps around to 255."""
    frame, sample, _ = read(f"deliver:{deliver_mini}", "test", 3)
    raw = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED)[..., 2].copy()
    raw[raw == 255] = 0
    published = (raw - np.uint8(1)).astype(np.int64)
    assert sample.label is not None
    assert np.array_equal(np.where(published == 255, IGNORE, published), sample.label.numpy())


def test_small_event_pictures_come_at_the_cameras_size(deliver_mini: Path) -> None:
    dataset = open_dataset(f"deliver:{deliver_mini}")
    frame = next(f for f in dataset.frames("test") if "eventlowres" in f.tags)
    assert image_size(frame.files["event"]) == (512, 512)
    array = frame.read("event")
    assert array.shape[:2] == (1042, 1042)
    stored = cv2.imread(str(frame.files["event"]), cv2.IMREAD_UNCHANGED)[..., ::-1]
    clear = [i for i in range(1042) if (2 * i + 1) * 512 % (2 * 1042)]  # two centres lie between two stored pixels
    under = [(2 * i + 1) * 512 // (2 * 1042) for i in clear]  # the stored pixel under each centre
    assert len(clear) == 1040
    assert np.array_equal(array[clear][:, clear], stored[under][:, under])


def test_squashed_frames_and_labels_are_those_of_the_published_evaluation(deliver_mini: Path) -> None:
    _, native, _ = read(f"deliver:{deliver_mini}", "val")
    frame, squashed, _ = read(f"deliver:{deliver_mini}?squash=1024", "val")
    assert frame.squash == 1024
    assert all(tuple(x.shape[-2:]) == (1024, 1024) for x in squashed.images.values())
    assert native.label is not None
    assert squashed.label is not None
    # OpenCV's nearest neighbour, the third party, takes floor(i * 1042 / 1024) as torchvision does.
    expected = cv2.resize(native.label.numpy().astype(np.float32), (1024, 1024), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(squashed.label.numpy(), expected.astype(np.int64))
    assert native.label.shape == (1042, 1042)


def test_depth_may_be_the_raw_pictures(deliver_mini: Path) -> None:
    hha = open_dataset(f"deliver:{deliver_mini}").frames("val")[0]
    raw = open_dataset(f"deliver:{deliver_mini}?depth=raw").frames("val")[0]
    assert "/hha/" in str(hha.files["depth"])
    assert "/depth/" in str(raw.files["depth"])
    assert hha.files["depth"].name == raw.files["depth"].name


def test_a_root_with_the_names_of_folders_in_it_is_no_trap(deliver_mini: Path, tmp_path: Path) -> None:
    """The published loader replaces "/img" and "_rgb" anywhere in the path."""
    (tmp_path / "img_rgb").mkdir()
    (tmp_path / "img_rgb/img").symlink_to(deliver_mini)
    dataset = open_dataset(f"deliver:{tmp_path}/img_rgb/img")
    assert all(len(f.files) == 4 and f.label is not None for f in dataset.frames("train"))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deliver:{root}/img", r"there is no img in .*DELIVER has img, semantic at its top"),
        ("deliver:{root}/..", r"deliver:.*/deliver seems to be meant"),
        ("deliver:{root}/nowhere", r"there is no .*nowhere; give the folder, zip or tar that DELIVER is in"),
        ("deliver:{root}?squish=3", r"did you mean 'squash'\?"),
        ("deliver:{root}?squash=3", r"between 32 and 8192"),
        ("deliver:{root}?depth=hah", r"hha"),
    ],
)
def test_a_wrong_name_says_what_was_looked_for(deliver_mini: Path, name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_dataset(name.format(root=deliver_mini))


def test_other_classes_are_refused(deliver_mini: Path) -> None:
    with pytest.raises(RequestError, match=r"the classes of DELIVER are fixed \(25, from Building to Truck\)"):
        open_dataset(f"deliver:{deliver_mini}", DataConfig(classes=("a", "b")))


def test_a_label_value_outside_the_list_is_named(deliver_mini: Path, tmp_path: Path) -> None:
    frame, _, sensors = read(f"deliver:{deliver_mini}", "val")
    root = tmp_path / "DELIVER"
    for folder in ("img", "semantic"):
        place = root / folder / "sun/val/MAP_1_point1"
        place.mkdir(parents=True)
    shutil.copy(str(frame.files["rgb"]), root / "img/sun/val/MAP_1_point1/000001_rgb_front.png")
    raw = np.zeros((1042, 1042, 4), np.uint8)
    raw[5, 5, 0] = 26
    Image.fromarray(raw).save(root / "semantic/sun/val/MAP_1_point1/000001_semantic_front.png")
    dataset = open_dataset(f"deliver:{root}")
    classes, _ = resolve_classes(dataset, ())
    with pytest.raises(DataError, match=r"000001_semantic_front\.png holds the label id 26"):
        read_frame(dataset.frames("val")[0], {"rgb": sensors["rgb"]}, classes)


def test_doctor_calls_a_whole_miniature_sound_and_a_half_unpacked_one_not(
    deliver_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", f"deliver:{deliver_mini}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 3,983 published frames" in said
    assert "no faults" in said
    half = tmp_path / "half"
    shutil.copytree(deliver_mini, half)
    for path in sorted(half.glob("lidar/*/train/*/*.png"))[3:]:
        path.unlink()
    next(half.glob("semantic/*/val/*/*.png")).unlink()
    assert main(["doctor", f"deliver:{half}"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "frames of split 'train' lack lidar, and all of the published ones have it" in said
    assert "unpack it again, or fetch it from https://github.com/jamycheung/DELIVER" in said
    assert "of split 'val' has no label" in said


# ---------------------------------------------------------------- from the command line


def test_it_is_trained_and_tested_with_all_protocols(deliver_mini: Path, tmp_path: Path) -> None:
    """For the machinery alone: two frames of a miniature say nothing about a model."""
    run, name = tmp_path / "run", f"deliver:{deliver_mini}?squash=128"
    found = trained_and_tested(name, run)
    assert set(found) == {"subsets", "emm", "rmm", "nm", "cases", "faults"}
    for metrics in found.values():
        assert (metrics["dataset"], metrics["split"], metrics["frames"]) == (name, "val", 2)
        assert 0 < sum(map(sum, metrics["confusion"])) <= 2 * 128 * 128
    assert len(found["subsets"]["results"]) == 15
    frame = open_dataset(f"deliver:{deliver_mini}").frames("test")[0]
    done = predict_frames(Segmenter.load(run), [frame], tmp_path / "found")
    assert done["frames"][0]["size"] == [1042, 1042]
    assert set(done["frames"][0]["present"]) == {"rgb", "depth", "lidar", "event"}


def test_workers_read_what_one_process_reads(deliver_mini: Path) -> None:
    from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader

    dataset = open_dataset(f"deliver:{deliver_mini}?squash=64")
    frames = dataset.frames("test")[:3]
    sensors, _ = resolve_sensors(dataset, dataset.modalities, dataset.frames("train")[:2])
    reader = EvaluationFrames(frames, sensors, resolve_classes(dataset, ())[0], None)
    for a, b in zip(batches(evaluation_loader(reader)), batches(evaluation_loader(reader, workers=1)), strict=True):
        assert all(torch.equal(a.images[m], b.images[m]) for m in a.images)
