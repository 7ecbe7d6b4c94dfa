"""The folder layout: which files are which frame's, and what dataset.yaml and the recipe say they mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlesam.config import DataConfig
from mlesam.data import Frame, open_dataset
from mlesam.data.dataset import default_colors
from mlesam.data.folder import FolderDataset, read_list
from mlesam.errors import DataError, RequestError


def touch(root: Path, *names: str) -> Path:
    """Files whose content does not matter: nothing is decoded to list frames."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def opened(root: Path, **config) -> FolderDataset:
    dataset = open_dataset(f"folder:{root}", DataConfig(**config))
    assert isinstance(dataset, FolderDataset)
    return dataset


def refusal(kind: type[Exception], what, *arguments, **named) -> str:
    with pytest.raises(kind) as error:
        what(*arguments, **named)
    return str(error.value)


# ---------------------------------------------------------------- both layouts


def test_folders_of_splits_are_read(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "rgb/train/b.jpg", "rgb/train/a.png", "depth/train/a.png", "labels/train/a.png", "rgb/val/c.png"
    )
    data = opened(root)
    assert data.modalities == ("rgb", "depth")
    assert data.splits() == ("train", "val")
    assert data.frames("train") == [
        Frame("a", {"rgb": root / "rgb/train/a.png", "depth": root / "depth/train/a.png"}, root / "labels/train/a.png"),
        Frame("b", {"rgb": root / "rgb/train/b.jpg"}),
    ]
    assert [f.id for f in data.frames("val")] == ["c"]


def test_lists_of_splits_are_read_in_their_order(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/a.png", "rgb/b.png", "rgb/c.png", "depth/b.tif", "labels/b.png")
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("# the first drive\nc\n\n  b.png \r\n")
    (root / "splits/val.txt").write_text("a\n")
    data = opened(root)
    assert data.splits() == ("train", "val")
    assert data.frames("train") == [
        Frame("c", {"rgb": root / "rgb/c.png"}),
        Frame("b", {"rgb": root / "rgb/b.png", "depth": root / "depth/b.tif"}, root / "labels/b.png"),
    ]


@pytest.mark.parametrize("split_folder", ["train/", ""])
def test_ids_may_lie_in_folders(split_folder: str, tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{m}/{split_folder}drive.1/{i}.png" for m in ("rgb", "labels") for i in ("7", "8.5")))
    if not split_folder:
        (root / "splits").mkdir()
        (root / "splits/train.txt").write_text("drive.1/7\ndrive.1/8.5.png\n")
    frames = opened(root).frames("train")
    assert [f.id for f in frames] == ["drive.1/7", "drive.1/8.5"]
    assert all(f.label for f in frames)


def test_a_sensor_without_a_file_is_an_absent_key(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "rgb/train/a.png", "rgb/train/b.png", "lidar/train/b.npy", "fog/val/c.png", "labels/val/c.png"
    )
    data = opened(root)
    assert data.modalities == ("rgb", "lidar", "fog")
    assert [set(f.files) for f in data.frames("train")] == [{"rgb"}, {"rgb", "lidar"}]
    assert [set(f.files) for f in data.frames("val")] == [{"fog"}]


def test_tags_are_read(dataset: Path) -> None:
    (dataset / "tags/fog.txt").write_text("train0.png\n")
    data = opened(dataset)
    assert data.tags() == {"fog": {"train0"}, "night": {"train0", "test0"}}
    assert {f.id: f.tags for f in data.frames("train")[:2]} == {"train0": ("fog", "night"), "train1": ()}


def test_labels_splits_and_tags_are_no_sensors(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/a.png", "labels/a.png", "splits/x.txt", "tags/x.txt", ".git/a.png", "notes.png")
    assert opened(root).modalities == ("rgb",)


def test_hidden_and_other_files_are_no_frames(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "rgb/train/a.png",
        "rgb/train/._a.png",
        "rgb/train/Thumbs.db",
        "rgb/train/a.json",
        "rgb/train/.ipynb_checkpoints/a-checkpoint.png",
        "rgb/.ipynb_checkpoints/b.png",
    )
    data = opened(root)
    assert data.splits() == ("train",)
    assert [f.id for f in data.frames("train")] == ["a"]


def test_a_folder_of_pictures_without_splits_has_loose_frames(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/b.png", "rgb/a.png", "depth/a.png", "labels/a.png")
    frames = opened(root).loose_frames()
    assert [(f.id, sorted(f.files)) for f in frames] == [("a", ["depth", "rgb"]), ("b", ["rgb"])]
    shutil.rmtree(root / "rgb")
    (root / "depth/a.png").unlink()
    assert "nothing to do" in refusal(RequestError, opened(root).loose_frames)


def test_the_same_frames_come_in_the_same_order(dataset: Path) -> None:
    first, second = opened(dataset), opened(dataset)
    assert first.frames("train") == second.frames("train") == first.frames("train")


# ---------------------------------------------------------------- what is refused


def test_two_files_of_one_frame_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/train/a.png", "rgb/train/a.jpg")
    message = refusal(DataError, opened(root).frames, "train")
    assert "a.jpg" in message
    assert "a.png" in message
    assert "keep one" in message


def test_two_labels_of_one_frame_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/train/a.png", "labels/train/a.png", "labels/train/a.tif")
    assert "labels of frame 'a'" in refusal(DataError, opened(root).frames, "train")


def test_an_unknown_split_is_refused_with_the_nearest_one(dataset: Path) -> None:
    assert "no split 'vall'; did you mean 'val'?" in refusal(RequestError, opened(dataset).frames, "vall")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/train/a.png")
    (root / "rgb/val").mkdir()
    assert "split 'val'" in refusal(RequestError, opened(root).frames, "val")
    (root / "splits").mkdir()
    (root / "splits/test.txt").write_text("# none yet\n\n")
    assert "split 'test'" in refusal(RequestError, opened(root).frames, "test")


@pytest.mark.parametrize("layout", ["list", "label"])
def test_a_frame_without_any_sensor_is_refused(layout: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "rgb/train/a.png", "labels/train/ghost.png")
    if layout == "list":
        root = touch(tmp_path / "flat", "rgb/a.png", "splits/train.txt")
        (root / "splits/train.txt").write_text("a\nghost\n")
    assert "frame 'ghost' of split 'train'" in refusal(DataError, opened(root).frames, "train")
    assert [f.id for f in opened(root).all_frames("train")] == ["a", "ghost"]


def test_an_id_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nb\na.png\n")
    assert "lists 'a' twice" in refusal(DataError, read_list, tmp_path / "train.txt")


def test_a_list_may_start_with_a_byte_order_mark_and_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert read_list(tmp_path / "a.txt") == ["first", "second"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x80")
    assert "b.txt is no UTF-8 text" in refusal(DataError, read_list, tmp_path / "b.txt")


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(RequestError, opened, tmp_path / "nowhere")
    assert "no sensor folder" in refusal(RequestError, opened, tmp_path)
    touch(tmp_path, "labels/train/a.png")
    assert "no sensor folder" in refusal(RequestError, opened, tmp_path)


def test_a_dataset_is_named_by_kind_and_path(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_dataset(f"folder:{dataset}").name == f"folder:{dataset}"
    assert f"write folder:{dataset}" in refusal(RequestError, open_dataset, str(dataset))
    assert "did you mean 'folder'?" in refusal(RequestError, open_dataset, f"foldr:{dataset}")
    monkeypatch.chdir(dataset)  # no path is not the current folder
    for name in ("folder:", "folder"):
        assert "folder:PATH" in refusal(RequestError, open_dataset, name)


# ---------------------------------------------------------------- which split is reported


def test_the_labelled_test_split_is_reported_and_else_val(dataset: Path) -> None:
    assert opened(dataset).default_split() == "test"
    shutil.rmtree(dataset / "labels/test")
    assert opened(dataset).default_split() == "val"
    shutil.rmtree(dataset / "labels/val")
    assert "--split" in refusal(RequestError, opened(dataset).default_split)


# ---------------------------------------------------------------- dataset.yaml


def with_yaml(root: Path, text: str, **config) -> FolderDataset:
    touch(root, "rgb/train/a.png", "depth/train/a.png")
    (root / "dataset.yaml").write_text(text)
    return opened(root, **config)


def test_classes_may_be_names(tmp_path: Path) -> None:
    declared = with_yaml(tmp_path, "classes: [road, car, 3]\ncolors: [[1, 2, 3], [4, 5, 6], [7, 8, 9]]").declared
    assert declared.classes == ("road", "car", "3")
    assert declared.colors == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_classes_may_be_names_with_colours(tmp_path: Path) -> None:
    declared = with_yaml(
        tmp_path, "classes:\n- {name: road, color: [128, 64, 128]}\n- {name: car, color: [0, 0, 142]}\n"
    ).declared
    assert declared.classes == ("road", "car")
    assert declared.colors == ((128, 64, 128), (0, 0, 142))


def test_classes_may_be_names_in_mappings_without_colours(tmp_path: Path) -> None:
    declared = with_yaml(tmp_path, "classes: [{name: road}, {name: car}, sky]").declared
    assert declared.classes == ("road", "car", "sky")
    assert declared.colors is None


def test_everything_that_dataset_yaml_may_hold_is_read(tmp_path: Path) -> None:
    declared = with_yaml(
        tmp_path, "classes: [a, b]\nignore: 9\nlabel_map: {255: 1}\nsensors: {depth: {scale: 0.01, missing: 0}}"
    ).declared
    assert declared == DataConfig(
        classes=("a", "b"), ignore=9, label_map={255: 1}, sensors={"depth": {"scale": 0.01, "missing": 0}}
    )


def test_a_block_of_a_recipe_may_stand_in_dataset_yaml(tmp_path: Path) -> None:
    both = with_yaml(tmp_path, "classes: [a, b]\ndata: {ignore: 9, sensors: {depth: {scale: 0.01}}}").declared
    assert both == DataConfig(classes=("a", "b"), ignore=9, sensors={"depth": {"scale": 0.01}})
    assert with_yaml(tmp_path, "classes: [a, b]\ndata:\n").declared == DataConfig(classes=("a", "b"))


def test_without_dataset_yaml_the_recipe_speaks_alone(tmp_path: Path) -> None:
    touch(tmp_path, "rgb/train/a.png")
    assert opened(tmp_path).declared == DataConfig()
    assert opened(tmp_path, classes=("a", "b")).declared.classes == ("a", "b")


def test_the_recipe_stands_above_dataset_yaml_field_by_field(tmp_path: Path) -> None:
    data = with_yaml(
        tmp_path,
        "classes: [a, b]\nignore: 9\nlabel_map: {5: 1}\nsensors: {depth: {scale: 0.01, missing: 0}, rgb: {std: [1]}}",
        classes=("road", "rest"),
        ignore=0,
        label_map={},
        sensors={"depth": {"scale": 0.5}},
        crop=64,
    )
    assert data.declared.classes == ("road", "rest")
    assert data.declared.ignore == 0
    assert data.declared.label_map == {}
    assert data.declared.sensors == {"depth": {"scale": 0.5, "missing": 0}, "rgb": {"std": [1]}}
    assert data.declared.crop == 64
    assert data.sensor("depth") == {"scale": 0.5, "missing": 0}
    assert data.sensor("lidar") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clases: [a, b]", "'dataset.yaml.clases'; did you mean 'classes'?"),
        ("classes: 5", "dataset.yaml.classes"),
        ("classes: [a, no]", "dataset.yaml.classes[1]"),  # YAML reads no as false
        ("classes: [a, [b]]", "dataset.yaml.classes[1]"),
        ("classes: [{name: a}, {colour: [1, 2, 3]}]", "did you mean 'color'?"),
        ("classes: [{name: a}, {color: [1, 2, 3]}]", "dataset.yaml.classes[1] has no name"),
        ("classes: [{name: a, color: [1, 2, 3]}, b]", "the class 'b' has no color"),
        ("classes: [{name: a, color: [1, 2]}, b]", "dataset.yaml.classes[0].color"),
        ("classes: [{name: a, color: [1, 2, 300]}]", "colors[0]"),
        ("classes: [a, b, a]", "'a' twice"),
        ("classes: [a, b]\ncolors: [[1, 2, 3]]", "1 colours for 2 classes"),
        ("ignore: none", "dataset.yaml.ignore"),
        ("sensors: {depth: 3}", "dataset.yaml.sensors.depth"),
        ("data: 3", "data is 3, but it must be a mapping"),
        ("data: {crop: 64}", "dataset.yaml.crop"),
        ("sensors: {depth: {scale: 1}}\ndata: {sensors: {depth: {missing: 0}}}", "says 'sensors' twice"),
        ("- 1", "must hold a mapping"),
        ("classes: [a", "not valid YAML"),
    ],
)
def test_a_wrong_dataset_yaml_is_refused_by_name(text: str, expected: str, tmp_path: Path) -> None:
    message = refusal(RequestError, with_yaml, tmp_path, text)
    assert expected in message
    assert "dataset.yaml" in message


def test_a_declared_sensor_that_does_not_exist_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    message = refusal(RequestError, with_yaml, tmp_path, "sensors: {dept: {scale: 1}}")
    assert "'dept'" in message
    assert "did you mean 'depth'?" in message
    (tmp_path / "dataset.yaml").unlink()
    assert "'lidar'" in refusal(RequestError, opened, tmp_path, sensors={"lidar": {}})


# ---------------------------------------------------------------- colours, and real data


def test_any_number_of_classes_gets_colours_that_differ() -> None:
    colors = default_colors(256)
    assert len(set(colors)) == 256
    assert np.asarray(colors).min() >= 0
    assert np.asarray(colors).max() <= 255
    assert all(len(set(c)) > 1 for c in colors)  # never grey, which label pictures of ids are
    assert colors[:10] == default_colors(10)  # a class keeps its colour when others are added


def test_the_real_crack_frames_are_found(shared: Path) -> None:
    data = opened(shared / "data/crack")
    assert data.modalities == ("rgb", "depth", "infrared")
    assert data.splits() == ("test", "train", "val")
    frames = {split: data.frames(split) for split in data.splits()}
    assert sum(len(f) for f in frames.values()) == 266
    assert all(len(f.files) == 3 and f.label for members in frames.values() for f in members)
    dark = {split: sum("dark" in f.tags for f in members) for split, members in frames.items()}
    assert dark == {"train": 31, "val": 5, "test": 20}
    with Image.open(frames["train"][0].files["rgb"]) as picture:
        assert picture.size == (400, 400)
