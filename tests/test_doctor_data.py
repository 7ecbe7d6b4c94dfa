"""Every fault and every note about a dataset is found, with the files named, all of them in one go."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import write_dataset
from mlesam.checks.dataset import DatasetFindings, check_dataset
from mlesam.checks.findings import Findings
from mlesam.checks.layout import survey
from mlesam.config import DataConfig
from mlesam.data import open_dataset
from mlesam.data.dataset import Dataset, Frame
from mlesam.data.reading import decode_label, resolve_sensors
from mlesam.errors import DataError, RequestError
from mlesam.sample import Classes
from mlesam.sensors.files import read_array

Change = Callable[[Path], object]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole") / "data", train=3, val=2, test=2)


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "data")


def check(root: Path, modalities: list[str] | None = None, **declared: object) -> DatasetFindings:
    config = DataConfig(**declared)  # type: ignore[arg-type]
    return check_dataset(open_dataset(f"folder:{root}", config), modalities)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).copy()


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def each(root: Path, folder: str, change: Callable[[np.ndarray], np.ndarray], suffix: str = ".png") -> None:
    for path in sorted((root / folder).rglob("*.png")):
        array = change(read(path))
        path.unlink()
        save(path.with_suffix(suffix), array)


def declare(root: Path, text: str) -> None:
    (root / "dataset.yaml").write_text(text)


def flat(root: Path) -> None:
    """The same dataset with lists of ids in splits/."""
    for folder in ("rgb", "depth", "thermal", "labels"):
        for path in sorted((root / folder).rglob("*.png")):
            path.rename(root / folder / path.name)
        for split in ("train", "val", "test"):
            (root / folder / split).rmdir()
    (root / "splits").mkdir()
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        (root / "splits" / f"{split}.txt").write_text("".join(f"{split}{i}\n" for i in range(count)))


def listed(root: Path, split: str, text: str) -> None:
    flat(root)
    (root / "splits" / f"{split}.txt").write_bytes(text.encode("latin-1"))


def colored(root: Path) -> None:
    """Labels as pictures of three colours."""
    declare(root, "classes: [ground, near, far]\ncolors: [[0, 0, 0], [255, 0, 0], [0, 255, 0]]\n")
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)
    each(root, "labels", lambda ids: colors[ids])


def pixel(path: Path, value: object) -> None:
    array = read(path)
    array[0, 0] = value
    save(path, array)


def test_a_whole_dataset_has_no_fault_and_its_contents_are_summed_up(data: Path) -> None:
    found = check(data)
    assert found.faults == []
    assert found.notes == ["tag 'night': 2 frames (train 1, test 1)"]
    assert found.verdict == "no faults, 1 note"
    summary = found.summary
    assert summary.frames == summary.labels == {"train": 3, "val": 2, "test": 2}
    assert summary.sensors["depth"] == {"train": 3, "val": 2, "test": 2}
    assert summary.sizes["depth"] == {(48, 64): 7} == summary.sizes["labels"]
    assert summary.kinds["rgb"] == {("uint8", 3): 7}
    assert summary.kinds["depth"] == {("uint16", 1): 7}
    assert summary.classes == ("ground", "near", "far")
    assert sum(summary.pixels["val"].values()) == 2 * 48 * 64
    assert summary.label_values == (0, 1, 2)


def test_lists_of_ids_serve_as_well_as_folders(data: Path) -> None:
    flat(data)
    found = check(data)
    assert found.faults == []
    assert found.notes == ["tag 'night': 2 frames (train 1, test 1)"]
    assert list(found.summary.frames) == ["train", "val", "test"]


FAULTS: dict[str, tuple[Change, str]] = {
    "a frame without a label": (
        lambda r: (r / "labels/train/train1.png").unlink(),
        "frame 'train1' of split 'train' has no label.",
    ),
    "a split to train on without any label": (
        lambda r: shutil.rmtree(r / "labels/val"),
        "no frame of split 'val' has a label (2 frames).",
    ),
    "a label without a sensor": (
        lambda r: [(r / m / "train/train1.png").unlink() for m in ("rgb", "depth", "thermal")],
        "frame 'train1' of split 'train' has no sensor's file, only its label",
    ),
    "a label of a split that no sensor has": (
        lambda r: save(r / "labels/extra/x.png", np.zeros((48, 64), np.uint8)),
        "labels/extra/x.png has no sensor's file",
    ),
    "a label that is in no list and has no sensor": (
        lambda r: (flat(r), save(r / "labels/x.png", np.zeros((48, 64), np.uint8))),
        "labels/x.png has no sensor's file",
    ),
    "an unreadable file": (
        lambda r: (r / "rgb/train/train1.png").write_bytes(b"no picture"),
        "rgb/train/train1.png cannot be decoded",
    ),
    "a truncated file": (
        lambda r: os.truncate(r / "depth/test/test0.png", 400),
        "depth/test/test0.png cannot be decoded",
    ),
    "an unreadable label": (
        lambda r: os.truncate(r / "labels/train/train2.png", 60),
        "labels/train/train2.png cannot be decoded",
    ),
    "sensors of different size": (
        lambda r: save(r / "thermal/val/val0.png", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32).astype(np.uint8)),
        "rgb/val/val0.png is 64x48, depth/val/val0.png is 64x48, thermal/val/val0.png is 32x24, labels/val/val0.png is 64x48",
    ),
    "a label of another size": (
        lambda r: save(r / "labels/val/val0.png", np.zeros((24, 32), np.uint8)),
        "labels/val/val0.png is 32x24",
    ),
    "label ids out of range": (
        lambda r: pixel(r / "labels/train/train1.png", 9),
        "labels/train/train1.png holds the label id 9, but the classes are 0 to 2 and 255 is ignored",
    ),
    "two files of one frame": (
        lambda r: save(r / "rgb/train/train1.jpg", read(r / "rgb/train/train1.png")),
        "rgb/train/train1.jpg and rgb/train/train1.png are both rgb of frame 'train1'",
    ),
    "8-bit files among 16-bit ones": (
        lambda r: save(r / "depth/train/train1.png", (read(r / "depth/train/train1.png") >> 8).astype(np.uint8)),
        "depth/train/train1.png holds 8-bit values, but other depth files (6) hold 16-bit ones",
    ),
    "whole numbers among real ones": (
        lambda r: (
            save(r / "depth/train/train1.npy", read(r / "depth/train/train1.png").astype(np.float32)),
            (r / "depth/train/train1.png").unlink(),
        ),
        "depth/train/train0.png holds 16-bit values, but other depth files (1) hold floating-point ones",
    ),
    "another number type than declared": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {thermal: {dtype: uint16}}\n"),
        "thermal/train/train1.png holds 8-bit values, but this sensor's files are uint16",
    ),
    "8-bit files of a sensor with a declared scale": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {thermal: {scale: 0.01, unit: K, range: [0, 500]}}\n"),
        "thermal declares that a stored value x 0.01 is in K, but all of its files hold 8-bit values",
    ),
    "a wrong number of channels": (
        lambda r: save(r / "thermal/val/val1.png", read(r / "rgb/val/val1.png")),
        "thermal/val/val1.png has 3 channels, but its sensor has 1; correct the file or the spec, or declare its colormap.",
    ),
    "another number of channels than declared": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {thermal: {channels: 2}}\n"),
        "thermal/train/train1.png has 1 channels, but its sensor has 2",
    ),
    "a colour map for files that are no colour pictures": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {thermal: {colormap: iron}}\n"),
        "thermal/train/train1.png is no 8-bit colour picture",
    ),
    "a colour that no class has": (
        lambda r: (colored(r), pixel(r / "labels/train/train1.png", (1, 2, 3))),
        "labels/train/train1.png holds the colour [1, 2, 3], which no class has.",
    ),
    "labels in colours without classes": (
        lambda r: (colored(r), (r / "dataset.yaml").unlink()),
        "7 labels (labels/train/train0.png and 6 more) are pictures of colours, but the classes have none",
    ),
    "two classes of one colour": (
        lambda r: (colored(r), declare(r, "classes: [a, b, c]\ncolors: [[0, 0, 0], [255, 0, 0], [255, 0, 0]]\n")),
        "two classes have the same one",
    ),
    "one class": (
        lambda r: declare(r, "classes: [ground]\n"),
        "has 1 classes; declare at least 2",
    ),
    "labels that hold one class": (
        lambda r: ((r / "dataset.yaml").unlink(), each(r, "labels", lambda ids: ids * 0)),
        "the labels hold 1 class, and at least 2 are needed",
    ),
    "an id too large to be a class": (
        lambda r: ((r / "dataset.yaml").unlink(), each(r, "labels", lambda ids: ids.astype(np.uint16) * 500)),
        "the labels hold the id 1000; declare the classes",
    ),
    "a label map to a class that is none": (
        lambda r: declare(r, "classes: [ground, near, far]\nlabel_map: {0: 7}\n"),
        "label_map maps 0 to 7, but the classes are 0 to 2",
    ),
    "a list that names an unknown id": (
        lambda r: listed(r, "train", "train0\ntrain1\nnobody\n"),
        "splits/train.txt names 'nobody', of which there is no file.",
    ),
    "a listed frame with no sensor": (
        lambda r: (flat(r), [(r / m / "val0.png").unlink() for m in ("rgb", "depth", "thermal")]),
        "frame 'val0' of split 'val' has no sensor's file",
    ),
    "a frame in two splits": (
        lambda r: listed(r, "test", "test0\ntrain1\n"),
        "frame 'train1' is in splits/test.txt and splits/train.txt",
    ),
    "an id that is listed twice": (
        lambda r: listed(r, "train", "train0\ntrain1\ntrain1.png\n"),
        "splits/train.txt lists 'train1' twice.",
    ),
    "a list that is no text": (
        lambda r: listed(r, "train", "train0\n\xff\xfe\n"),
        "splits/train.txt is no UTF-8 text",
    ),
    "an empty list": (lambda r: listed(r, "val", "# none yet\n"), "split 'val' is empty"),
    "an empty split": (lambda r: (r / "rgb/night").mkdir(), "split 'night' is empty"),
    "no lists": (
        lambda r: (flat(r), [p.unlink() for p in (r / "splits").iterdir()]),
        "splits/ holds no .txt list",
    ),
    "no splits": (lambda r: (flat(r), shutil.rmtree(r / "splits")), "there are no splits"),
    "a wrong sensor spec": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {thermal: {std: [0.0]}}\n"),
        "sensors.thermal: std is [0.0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_a_fault_to_have(name: str, data: Path) -> None:
    change, text = FAULTS[name]
    change(data)
    found = check(data)
    assert any(text in fault for fault in found.faults), found.faults
    assert not any(str(data) in fault for fault in found.faults if "dataset.yaml" not in fault)


NOTES: dict[str, tuple[Change, str]] = {
    "frames that lack a sensor": (
        lambda r: (r / "depth/train/train1.png").unlink(),
        "1 of 3 frames of split 'train' lack depth: train1",
    ),
    "a split that lacks a sensor": (lambda r: shutil.rmtree(r / "depth/test"), "no frame of split 'test' has depth"),
    "a test split without labels": (
        lambda r: shutil.rmtree(r / "labels/test"),
        "no frame of split 'test' has a label, so it cannot be scored",
    ),
    "classes that never occur in a split": (
        lambda r: declare(r, "classes: [ground, near, far, sky]\n"),
        "split 'val': 1 of 4 classes never occur: sky",
    ),
    "labels of 0 and 255": (
        lambda r: (declare(r, "classes: [wall, crack]\n"), each(r, "labels", lambda ids: (255 * (ids > 0)).astype(np.uint8))),
        "the labels hold only 0 and 255, and 255 is ignored, so one class is left; if 255 is a class, declare "
        "label_map: {255: 1}",
    ),
    "a label map of values that no label holds": (
        lambda r: declare(r, "classes: [ground, near, far]\nlabel_map: {7: 1, 2: 2}\n"),
        "label_map names values that no label holds: 7",
    ),
    "a class with the ignored value": (
        lambda r: declare(r, "classes: [ground, near, far]\nignore: 0\n"),
        "class 'ground' has the ignored value 0",
    ),
    "a label that is ignored altogether": (
        lambda r: save(r / "labels/train/train1.png", np.full((48, 64), 255, np.uint8)),
        "labels/train/train1.png holds only the ignored value 255",
    ),
    "classes without names": (lambda r: (r / "dataset.yaml").unlink(), "the classes have no names; 3 were read off"),
    "no val split": (
        lambda r: [shutil.rmtree(r / m / "val") for m in ("rgb", "depth", "thermal", "labels")],
        "there is no val split: the weights of the last step are kept",
    ),
    "no test split": (
        lambda r: [shutil.rmtree(r / m / "test") for m in ("rgb", "depth", "thermal", "labels")],
        "there is no test split: val is what evaluation reports",
    ),
    "no train split": (
        lambda r: [shutil.rmtree(r / m / "train") for m in ("rgb", "depth", "thermal", "labels")],
        "there is no train split",
    ),
    "frames of different size": (
        lambda r: [save(p, read(p)[:24]) for p in sorted(r.glob("*/val/val0.png"))],
        "frames differ in size: 64x48 (6), 64x24 (1)",
    ),
    "a constant file": (
        lambda r: save(r / "thermal/val/val0.png", np.full((48, 64), 7, np.uint8)),
        "thermal/val/val0.png is constant: every pixel is 7",
    ),
    "a file without a measurement": (
        lambda r: save(r / "depth/val/val0.png", np.zeros((48, 64), np.uint16)),
        "depth/val/val0.png is constant: nothing was measured in any pixel",
    ),
    "a constant sensor": (
        lambda r: each(r, "thermal", lambda values: values * 0),
        "thermal is constant: in each of its 7 files all pixels are the same",
    ),
    "values out of a declared range": (
        lambda r: declare(r, "classes: [ground, near, far]\nsensors: {depth: {range: [0, 5]}}\n"),
        "depth: 7 of 7 files hold values outside 0 to 5 m (as far as 9",
    ),
    "real numbers out of the sensor's range": (
        lambda r: each(r, "depth", lambda values: values.astype(np.float32), ".npy"),
        "depth: 7 of 7 files hold values outside 0 to 100 m (as far as 9",
    ),
    "8-bit files of a sensor that is known to be physical": (
        lambda r: each(r, "depth", lambda values: (values >> 8).astype(np.uint8)),
        "depth: the files hold 8-bit values, which are read as a fraction of full scale and not in m",
    ),
    "8-bit values in 16-bit files": (
        lambda r: each(r, "depth", lambda values: values >> 8),
        "depth: no 16-bit file holds a value above 255",
    ),
    "a colour map that the pictures do not follow": (
        lambda r: (
            each(r, "thermal", lambda values: np.stack([values * 0 + 90, values // 4 + 190, values * 0 + 90], axis=-1)),
            declare(r, "classes: [ground, near, far]\nsensors: {thermal: {colormap: iron}}\n"),
        ),
        "of the pixels have a colour that the colour map 'iron' does not have",
    ),
    "a tag of unknown frames": (
        lambda r: (r / "tags/fog.txt").write_text("train0\nnobody\n"),
        "tags/fog.txt names 1 id that no split has: nobody",
    ),
    "files that no reader takes": (
        lambda r: (r / "rgb/train/x.bmp").write_bytes(b""),
        "rgb/train holds 1 .bmp file, which no reader takes",
    ),
    "files beside the splits": (
        lambda r: save(r / "rgb/loose.png", np.zeros((48, 64, 3), np.uint8)),
        "rgb holds 1 file outside any split's folder, which are not read: loose.png",
    ),
    "frames in no list": (lambda r: listed(r, "train", "train0\ntrain1\n"), "1 frame in no split: train2"),
    "a folder of labels that would be a sensor": (
        lambda r: shutil.copytree(r / "thermal", r / "masks"),
        "the folder masks is taken for a sensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_it_is_worth_a_note_to_have(name: str, data: Path) -> None:
    change, text = NOTES[name]
    change(data)
    found = check(data)
    assert any(text in note for note in found.notes), found.notes


HARMLESS = {
    "frames that lack a sensor", "a test split without labels", "no val split", "frames of different size",
    "a constant file", "a constant sensor", "a tag of unknown frames", "8-bit values in 16-bit files",
    "classes without names", "values out of a declared range",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_note_is_no_fault(name: str, data: Path) -> None:
    NOTES[name][0](data)
    assert check(data).faults == []


def test_everything_is_found_in_one_go(data: Path) -> None:
    for name in (
        "a frame without a label",
        "an unreadable label",
        "two files of one frame",
        "sensors of different size",
    ):
        FAULTS[name][0](data)
    assert len(check(data).faults) == 4


def test_only_the_sensors_that_are_used_are_checked(data: Path) -> None:
    (data / "thermal/train/train1.png").write_bytes(b"no picture")
    assert check(data, ["rgb", "depth"]).faults == []
    (data / "depth/train/train1.png").unlink()
    assert check(data, ["depth"]).faults == ["frame 'train1' of split 'train' has no file of depth."]


def test_a_sensor_that_is_not_there_gets_the_nearest_name(data: Path) -> None:
    (fault,) = check(data, ["rgb", "dpeth"]).faults
    assert "no sensor 'dpeth'" in fault
    assert "did you mean 'depth'?" in fault
    assert any("no sensor was chosen" in f for f in check(data, []).faults)


def test_an_ignored_255_that_is_mapped_is_a_class(data: Path) -> None:
    each(data, "labels", lambda ids: (255 * (ids > 0)).astype(np.uint8))
    found = check(data, classes=("no", "yes"), label_map={255: 1})
    assert not found.faults
    assert not any("255" in note for note in found.notes)


def test_a_dark_frame_does_not_make_a_colour_sensor_grey(data: Path) -> None:
    each(data, "thermal", lambda values: np.stack([values, values // 2, values // 3], axis=-1))
    save(data / "thermal/train/train0.png", np.zeros((48, 64, 3), np.uint8))
    assert check(data).faults == []
    dataset = open_dataset(f"folder:{data}")
    specs, _ = resolve_sensors(dataset, ["thermal"], dataset.frames("train"))
    assert specs["thermal"].channels == 3  # the reader says so too


def test_a_dataset_of_another_layout_may_stop_at_a_split(data: Path) -> None:
    class Other(Dataset):
        name, modalities, declared = "other:x", ("rgb",), DataConfig()

        def splits(self) -> tuple[str, ...]:
            return ("test", "train")

        def frames(self, split: str) -> list[Frame]:
            if split == "test":
                raise DataError("test.txt is missing.")
            return [Frame("a", {"rgb": data / "rgb/train/train0.png"}, data / "labels/train/train0.png")]

    findings = Findings()
    assert list(survey(Other(), findings)) == ["train"]
    assert findings.faults == ["test.txt is missing."]
    assert check_dataset(Other()).summary.frames == {"train": 1}


def test_progress_counts_every_file(data: Path) -> None:
    calls: list[tuple[int, int]] = []
    check_dataset(open_dataset(f"folder:{data}"), advance=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (28, 28)
    assert len(calls) == 7


@pytest.mark.parametrize("raw", [[[0, 1]], [[0, 2, 255]], [[5]], [[255]], [[7, 0]]])
@pytest.mark.parametrize("label_map", [{}, {255: 1}, {7: 255, 5: 0}])
@pytest.mark.parametrize("ignore", [255, 0])
def test_the_check_of_labels_agrees_with_the_reader(
    raw: list[list[int]], label_map: dict[int, int], ignore: int, data: Path
) -> None:
    array = np.zeros((48, 64), np.uint8)
    array[: len(raw), : len(raw[0])] = raw
    save(data / "labels/train/train1.png", array)
    found = check(data, classes=("a", "b", "c"), label_map=label_map, ignore=ignore)
    classes = Classes(("a", "b", "c"), (), ignore, label_map)
    try:
        decode_label(array, classes, "x")
        refused = False
    except DataError:
        refused = True
    assert any("labels/train/train1.png" in fault for fault in found.faults) == refused


def test_what_is_checked_in_vain_can_be_trained_on(data: Path) -> None:
    """A dataset without a fault is read without one."""
    dataset = open_dataset(f"folder:{data}")
    assert check_dataset(dataset).faults == []
    specs, _ = resolve_sensors(dataset, dataset.modalities, dataset.frames("train"))
    for frame in dataset.frames("train"):
        for modality, path in frame.files.items():
            specs[modality].encode(read_array(path), str(path))


def test_reading_in_threads_leaves_the_warning_filters_alone(data: Path) -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_array, sorted((data / "rgb").rglob("*.png")) * 20))
    assert list(warnings.filters) == before


def test_labels_with_fractions_are_refused(data: Path) -> None:
    (data / "labels/train/train1.png").unlink()
    save(data / "labels/train/train1.npy", np.full((48, 64), 1.5, np.float32))
    assert any("holds fractions" in fault for fault in check(data).faults)


def test_negative_labels_are_not_mapped_by_accident() -> None:
    classes = Classes(("a", "b"), (), 255, {255: 1})
    with pytest.raises(DataError, match="label id -1"):
        decode_label(np.array([[0, -1]], dtype=np.int16), classes, "x")
    mapped = dataclasses.replace(classes, label_map={-1: 255})
    assert decode_label(np.array([[0, -1]], dtype=np.int16), mapped, "x").tolist() == [[0, -1]]


def test_an_unknown_folder_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        check(tmp_path / "nowhere")


# ---------------------------------------------------------------- what must not be said


def quiet(root: Path, **declared: object) -> None:
    """Nothing is found but the tag that is there."""
    found = check(root, **declared)  # type: ignore[arg-type]
    assert found.faults == []
    assert found.notes == ["tag 'night': 2 frames (train 1, test 1)"]


def test_hidden_files_and_texts_are_passed_over(data: Path) -> None:
    (data / "rgb/train/._train0.png").write_bytes(b"of another system")
    (data / "rgb/train/.cache").mkdir()
    (data / "rgb/train/.cache/train0.png").write_bytes(b"")
    (data / "rgb/train/README.txt").write_text("")
    quiet(data)


def test_labels_in_the_colours_of_the_classes_are_sound(data: Path) -> None:
    colored(data)
    quiet(data)


def test_a_colour_map_that_the_pictures_follow_is_sound(data: Path) -> None:
    each(data, "thermal", lambda values: np.stack([values] * 3, axis=-1))
    quiet(data, sensors={"thermal": {"colormap": "gray"}})


def test_grey_pictures_saved_as_colour_are_one_channel(data: Path) -> None:
    each(data, "thermal", lambda values: np.stack([values] * 3, axis=-1))
    save(data / "thermal/train/train0.png", read(data / "thermal/train/train0.png")[..., 0])
    quiet(data)


def test_real_numbers_without_a_unit_have_any_range(data: Path) -> None:
    each(data, "thermal", lambda values: values.astype(np.float32) * 9, ".npy")
    quiet(data)


def test_8_bit_depth_is_a_fraction_and_not_out_of_range(data: Path) -> None:
    each(data, "depth", lambda values: (values >> 8).astype(np.uint8) + 200)
    found = check(data, sensors={"depth": {"range": [0, 0.1]}})
    assert not any("outside" in note for note in found.notes)


def test_only_the_8_bit_files_are_blamed(data: Path) -> None:
    FAULTS["8-bit files among 16-bit ones"][0](data)
    assert len(check(data).faults) == 1


@pytest.mark.parametrize("name", ["an id too large to be a class", "no splits", "labels that hold one class"])
def test_one_cause_is_one_fault(name: str, data: Path) -> None:
    FAULTS[name][0](data)
    assert len(check(data).faults) == 1


def test_without_any_label_nothing_is_said_of_classes(data: Path) -> None:
    shutil.rmtree(data / "labels")
    (data / "dataset.yaml").unlink()
    assert [f.split(" has")[0] for f in check(data).faults] == ["no frame of split 'train'", "no frame of split 'val'"]


def test_a_label_map_needs_no_declared_classes(data: Path) -> None:
    (data / "dataset.yaml").unlink()
    assert check(data, label_map={2: 1}).faults == []
