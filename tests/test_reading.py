"""From files to samples: everything aligned or refused by name, and what a dataset leaves unsaid read off its files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from conftest import write_dataset
from mlesam.config import DataConfig
from mlesam.data import Frame, open_dataset
from mlesam.data.reading import (
    STATISTICS_FRAMES,
    choose_modalities,
    decode_label,
    read_frame,
    resized,
    resolve_classes,
    resolve_sensors,
)
from mlesam.errors import DataError, RequestError
from mlesam.sample import IGNORE, Classes
from mlesam.sensors import BUILTIN, SensorSpec
from mlesam.sensors.files import read_label

SIZE = (12, 16)
COLORS = ((128, 64, 128), (0, 0, 142), (70, 70, 70))
THREE = Classes(("road", "car", "wall"), COLORS)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        Image.fromarray(array).save(path)
    return path


def picture(seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (*size, channels) if channels > 1 else size
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def classes_of(count: int, **changes) -> Classes:
    return Classes(tuple(f"c{i}" for i in range(count)), tuple((i, 0, 1) for i in range(count)), **changes)


def refusal(kind: type[Exception], what, *arguments, **named) -> str:
    with pytest.raises(kind) as error:
        what(*arguments, **named)
    return str(error.value)


# ---------------------------------------------------------------- frames


def test_a_frame_comes_in_its_sensors_units(dataset: Path) -> None:
    frame = open_dataset(f"folder:{dataset}").frames("train")[0]
    sensors = {m: BUILTIN[m] for m in ("rgb", "depth", "thermal")}
    sample = read_frame(frame, sensors, classes_of(3))
    stored = {m: np.asarray(Image.open(path)) for m, path in frame.files.items()}
    expected = {
        "rgb": np.moveaxis(stored["rgb"], -1, 0) / 255,
        "depth": stored["depth"][None] / 1000,
        "thermal": stored["thermal"][None] / 255,
    }
    assert list(sample.images) == ["rgb", "depth", "thermal"]
    for modality, values in expected.items():
        np.testing.assert_allclose(sample.images[modality].numpy(), values, rtol=1e-6)
    np.testing.assert_array_equal(sample.label, np.asarray(Image.open(frame.label)))
    assert sample.label.dtype == torch.int64
    assert (sample.id, sample.tags) == ("train0", ("night",))


def test_only_the_chosen_sensors_are_read(tmp_path: Path) -> None:
    files = {"rgb": save(tmp_path / "a.png", picture()), "depth": tmp_path / "missing.png"}
    sample = read_frame(
        Frame("a", files, tmp_path / "missing too.png"), {"rgb": BUILTIN["rgb"], "lidar": BUILTIN["lidar"]}
    )
    assert list(sample.images) == ["rgb"]
    assert sample.label is None


def test_a_frame_without_any_chosen_sensor_is_refused(tmp_path: Path) -> None:
    frame = Frame("scene 7", {"rgb": save(tmp_path / "a.png", picture())})
    message = refusal(DataError, read_frame, frame, {"depth": BUILTIN["depth"], "lidar": BUILTIN["lidar"]})
    assert "'scene 7' has no file of depth, lidar" in message


def test_sensors_of_different_size_are_refused_with_files_and_sizes(tmp_path: Path) -> None:
    rgb = save(tmp_path / "rgb.png", picture(size=(12, 16)))
    thermal = save(tmp_path / "thermal.png", picture(size=(24, 32), channels=1))
    message = refusal(DataError, read_frame, Frame("a", {"rgb": rgb, "thermal": thermal}), BUILTIN)
    assert f"{rgb} is 16x12" in message
    assert f"{thermal} is 32x24" in message


def test_a_turned_picture_does_not_fit(tmp_path: Path) -> None:
    files = {
        "rgb": save(tmp_path / "rgb.png", picture(size=(12, 16))),
        "thermal": save(tmp_path / "thermal.png", picture(size=(16, 12), channels=1)),
    }
    assert "16x12" in refusal(DataError, read_frame, Frame("a", files), BUILTIN)


def test_a_label_of_another_size_is_refused_with_files_and_sizes(tmp_path: Path) -> None:
    rgb = save(tmp_path / "rgb.png", picture(size=(12, 16)))
    label = save(tmp_path / "label.png", np.zeros((6, 8), np.uint8))
    message = refusal(DataError, read_frame, Frame("a", {"rgb": rgb}, label), BUILTIN, THREE)
    assert f"{rgb} is 16x12" in message
    assert f"{label} is 8x6" in message


def test_a_broken_file_of_a_frame_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture())
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in refusal(DataError, read_frame, Frame("a", {"rgb": path}), BUILTIN)


# ---------------------------------------------------------------- labels


def label(tmp_path: Path, array: np.ndarray, classes: Classes) -> np.ndarray:
    """What a label file means, through the whole way of a frame."""
    rgb = save(tmp_path / "rgb.png", picture(size=array.shape[:2]))
    sample = read_frame(Frame("a", {"rgb": rgb}, save(tmp_path / "label.png", array)), {"rgb": BUILTIN["rgb"]}, classes)
    return sample.label.numpy()


def test_a_label_id_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, np.uint8)
    ids[3, 4], ids[5, 6] = 200, 12
    message = refusal(DataError, label, tmp_path, ids, classes_of(12))
    assert str(tmp_path / "label.png") in message
    assert "holds the label id 12, 200" in message
    assert "12 classes (0 to 11)" in message
    assert "label_map" in message


def test_the_ignored_value_is_not_scored(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(label(tmp_path, ids, classes_of(3)), [[0, 1, 2, IGNORE]])
    np.testing.assert_array_equal(label(tmp_path, ids[:, :3], classes_of(3, ignore=0)), [[IGNORE, 1, 2]])
    assert "255" in refusal(DataError, label, tmp_path, ids, classes_of(3, ignore=0))


def test_label_map_gives_ids_to_stored_values(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 7, 255]], dtype=np.uint8)
    classes = classes_of(2, ignore=99, label_map={255: 1, 7: 99, 1: 0, 300: 1, -4: 0})
    np.testing.assert_array_equal(label(tmp_path, ids, classes), [[0, 0, IGNORE, 1]])


def test_label_map_is_applied_once_and_not_in_turns(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2]], dtype=np.uint8)
    np.testing.assert_array_equal(label(tmp_path, ids, classes_of(3, label_map={0: 1, 1: 2, 2: 0})), [[1, 2, 0]])


def test_the_stored_value_is_named_where_label_map_leads_nowhere(tmp_path: Path) -> None:
    ids = np.array([[0, 9]], dtype=np.uint8)
    assert "label id 9" in refusal(DataError, label, tmp_path, ids, classes_of(2, label_map={9: 5}))


def test_sixteen_bit_ids_are_read(tmp_path: Path) -> None:
    ids = np.array([[0, 300, 65535]], dtype=np.uint16)
    classes = classes_of(301, ignore=65535)
    np.testing.assert_array_equal(label(tmp_path, ids, classes), [[0, 300, IGNORE]])


def test_negative_ids_can_be_ignored_or_mapped() -> None:
    ids = np.array([[-1, 0, 70_000]], dtype=np.int32)
    classes = classes_of(2, ignore=-1, label_map={70_000: 1})
    np.testing.assert_array_equal(decode_label(ids, classes, "a.tif"), [[IGNORE, 0, 1]])
    assert "label id -1" in refusal(DataError, decode_label, ids[:, :2], classes_of(2), "a.tif")


def test_a_palette_label_means_its_indices(tmp_path: Path) -> None:
    ids = picture(1, channels=1) % 3
    palette = Image.frombytes("P", (SIZE[1], SIZE[0]), ids.tobytes())
    palette.putpalette(np.asarray(COLORS[::-1], np.uint8).tobytes())  # the palette's colours mean nothing
    palette.save(tmp_path / "label.png")
    rgb = save(tmp_path / "rgb.png", picture())
    sample = read_frame(Frame("a", {"rgb": rgb}, tmp_path / "label.png"), BUILTIN, THREE)
    np.testing.assert_array_equal(sample.label, ids)


@pytest.mark.parametrize("alpha", [False, True])
def test_a_label_of_colours_means_the_classes_of_these_colours(alpha: bool, tmp_path: Path) -> None:
    ids = picture(2, channels=1) % 3
    colored = np.asarray(COLORS, np.uint8)[ids]
    if alpha:
        colored = np.dstack([colored, np.full(SIZE, 255, np.uint8)])
    np.testing.assert_array_equal(label(tmp_path, colored, THREE), ids)


def test_a_frame_of_one_grey_class_is_this_class_and_no_id(tmp_path: Path) -> None:
    """Black as the colour of class 2, in a frame that shows nothing else."""
    black = Classes(("a", "b", "void"), ((255, 0, 0), (255, 255, 255), (0, 0, 0)))
    colored = np.zeros((*SIZE, 3), np.uint8)
    assert (label(tmp_path, colored, black) == 2).all()
    colored[0] = 255
    np.testing.assert_array_equal(label(tmp_path, colored, black)[:2, 0], [1, 2])


def test_a_colour_of_no_class_is_refused(tmp_path: Path) -> None:
    colored = np.asarray(COLORS, np.uint8)[picture(2, channels=1) % 3]
    colored[1, 1] = (1, 2, 3)
    assert "holds the colour [1, 2, 3], which no class has" in refusal(DataError, label, tmp_path, colored, THREE)


def test_colours_that_two_classes_share_are_refused(tmp_path: Path) -> None:
    twins = Classes(("a", "b"), ((9, 9, 0), (9, 9, 0)))
    assert "two classes" in refusal(DataError, label, tmp_path, np.full((*SIZE, 3), (9, 9, 0), np.uint8), twins)


@pytest.mark.parametrize("raw", [np.zeros((2, 2, 3), np.uint16), np.zeros((2, 2, 2), np.uint8)], ids=["16-bit", "two"])
def test_a_label_of_other_colours_is_refused(raw: np.ndarray) -> None:
    raw[..., 1] = 1
    assert "8-bit RGB" in refusal(DataError, decode_label, raw, THREE, "a.png")


def test_classes_are_translated_for_another_model(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    classes = classes_of(3, translate=(4, None, 0))
    np.testing.assert_array_equal(label(tmp_path, ids, classes), [[4, IGNORE, 0, IGNORE]])


# ---------------------------------------------------------------- which sensors


def test_sensors_are_chosen_in_the_one_order(dataset: Path) -> None:
    data = open_dataset(f"folder:{dataset}")
    assert choose_modalities(data, None) == ("rgb", "depth", "thermal")
    assert choose_modalities(data, ["thermal", "rgb", "thermal"]) == ("rgb", "thermal")


def test_an_unknown_sensor_is_refused_with_the_nearest_one(dataset: Path) -> None:
    data = open_dataset(f"folder:{dataset}")
    assert "no sensor 'dept'; did you mean 'depth'?" in refusal(RequestError, choose_modalities, data, ["rgb", "dept"])
    assert "rgb, depth, thermal" in refusal(RequestError, choose_modalities, data, [])


# ---------------------------------------------------------------- classes that nobody declared


def test_classes_are_read_off_the_labels(dataset: Path) -> None:
    (dataset / "dataset.yaml").unlink()
    data = open_dataset(f"folder:{dataset}")
    classes, note = resolve_classes(data, data.frames("train"))
    assert classes.names == ("class 0", "class 1", "class 2")
    assert len(set(classes.colors)) == 3
    assert note is not None
    assert "3" in note


def test_ignored_and_mapped_values_are_no_classes(tmp_path: Path) -> None:
    save(tmp_path / "rgb/train/a.png", picture())
    ids = np.zeros(SIZE, np.uint8)
    ids[:3], ids[3:6] = 255, 200
    save(tmp_path / "labels/train/a.png", ids)
    for config in ({"label_map": {200: 1}}, {"label_map": {255: 1}, "ignore": 200}):
        data = open_dataset(f"folder:{tmp_path}", DataConfig(**config))
        assert len(resolve_classes(data, data.frames("train"))[0].names) == 2
    data = open_dataset(f"folder:{tmp_path}", DataConfig(ignore=200))
    classes, _ = resolve_classes(data, data.frames("train"))
    assert len(classes.names) == 256


def test_declared_classes_need_no_look_at_the_labels(dataset: Path) -> None:
    for path in (dataset / "labels/train").iterdir():
        path.write_bytes(b"")
    data = open_dataset(f"folder:{dataset}")
    classes, note = resolve_classes(data, data.frames("train"))
    assert (classes.names, note) == (("ground", "near", "far"), None)


@pytest.mark.parametrize(
    ("top", "config", "expected"),
    [
        (0, {}, "has 1 classes; declare at least 2"),
        (1, {"classes": ("all",)}, "has 1 classes"),
        (1000, {}, "hold the id 1000; declare the classes"),
        (1, {"colors": ((1, 2, 3),)}, "1 colours for 2 classes"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(top: int, config: dict, expected: str, tmp_path: Path) -> None:
    save(tmp_path / "rgb/train/a.png", picture())
    save(tmp_path / "labels/train/a.png", np.array([[0, top]], np.uint16))
    data = open_dataset(f"folder:{tmp_path}", DataConfig(**config))
    assert expected in refusal(RequestError, resolve_classes, data, data.frames("train"))


def test_other_classes_than_the_colours_of_dataset_yaml_are_refused(dataset: Path) -> None:
    (dataset / "dataset.yaml").write_text("classes: [{name: a, color: [1, 2, 3]}, {name: b, color: [4, 5, 6]}]")
    data = open_dataset(f"folder:{dataset}", DataConfig(classes=("a", "b", "c")))
    assert "2 colours for 3 classes" in refusal(RequestError, resolve_classes, data, data.frames("train"))


def test_labels_of_colours_need_declared_classes(tmp_path: Path) -> None:
    save(tmp_path / "rgb/train/a.png", picture())
    save(tmp_path / "labels/train/a.png", picture(1))
    data = open_dataset(f"folder:{tmp_path}")
    assert "stores colours" in refusal(RequestError, resolve_classes, data, data.frames("train"))


# ---------------------------------------------------------------- sensors that nobody declared


def resolved(root: Path, *modalities: str, **sensors) -> tuple[dict[str, SensorSpec], list[str]]:
    data = open_dataset(f"folder:{root}", DataConfig(sensors=sensors))
    return resolve_sensors(data, modalities or data.modalities, data.frames("train"))


def stored(root: Path, modality: str) -> np.ndarray:
    """All train files of a sensor in one array, by another reader: (files, H, W, ...)."""
    files = sorted((root / modality / "train").iterdir())
    return np.stack([np.load(f) if f.suffix == ".npy" else cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in files])


def test_statistics_are_those_of_all_train_files(dataset: Path) -> None:
    specs, notes = resolved(dataset)
    depth, thermal = stored(dataset, "depth") / 1000, stored(dataset, "thermal") / 255
    for modality, values in (("depth", depth), ("thermal", thermal)):
        assert specs[modality].mean == pytest.approx((values.mean(),), rel=1e-4)
        assert specs[modality].std == pytest.approx((values.std(),), rel=1e-3)
    assert specs["depth"].dtype == "uint16"
    assert specs["depth"].unit == "m"
    assert specs["thermal"].dtype == "uint8"
    assert [n.split(":")[0] for n in notes] == ["depth", "thermal"]
    assert "6 train frames" in notes[0]


def test_a_colour_camera_keeps_the_statistics_sam2_was_trained_with(dataset: Path) -> None:
    specs, notes = resolved(dataset, "rgb")
    assert specs["rgb"] == BUILTIN["rgb"]
    assert notes == []


def test_other_splits_have_no_part_in_the_statistics(dataset: Path) -> None:
    before = resolved(dataset)
    for split in ("val", "test"):
        for path in (dataset / "thermal" / split).iterdir():
            save(path, np.full((48, 64), 255, np.uint8))
    assert resolved(dataset) == before


def test_holes_have_no_part_in_the_statistics(tmp_path: Path) -> None:
    depth = picture(channels=1, dtype="uint16")
    depth[::2] = 0
    save(tmp_path / "depth/train/a.png", depth)
    spec = resolved(tmp_path)[0]["depth"]
    measured = np.clip(depth[depth > 0] / 1000, 0, 100)
    assert spec.mean == pytest.approx((measured.mean(),), rel=1e-4)
    assert spec.std == pytest.approx((measured.std(),), rel=1e-3)


def test_empty_is_no_average_return_of_a_sparse_sensor(tmp_path: Path) -> None:
    """The mean stays at 0; the spread is the root mean square of the returns."""
    lidar = picture(dtype="uint16")
    lidar[1::3] = 0
    save(tmp_path / "lidar/train/a.tif", np.moveaxis(lidar, -1, 0))
    spec = resolved(tmp_path)[0]["lidar"]
    values = lidar[lidar.any(axis=2)].astype(np.float64) / 65535
    assert spec.mean == (0.0, 0.0, 0.0)
    assert spec.std == pytest.approx(np.sqrt((values**2).mean(axis=0)), rel=1e-3)


@pytest.mark.parametrize("bands", [12, 100])
def test_a_spec_is_inferred_for_a_sensor_of_many_bands(bands: int, tmp_path: Path) -> None:
    arrays = [np.random.default_rng(i).normal(50, 1 + np.arange(bands), (128, 130, bands)) for i in range(2)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"hyper/train/{i}.npy", array.astype(np.float32))
    specs, notes = resolved(tmp_path)
    spec = specs["hyper"]
    everything = np.stack(arrays).reshape(-1, bands)
    assert (spec.channels, spec.dtype) == (bands, "float32")
    assert spec.range == (-np.inf, np.inf)
    np.testing.assert_allclose(spec.mean, everything.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(spec.std, everything.std(axis=0), rtol=1e-3)
    assert f"{bands} channels" in notes[0]
    frame = open_dataset(f"folder:{tmp_path}").frames("train")[0]
    normalized = spec.normalized(read_frame(frame, specs).images["hyper"])
    assert normalized.shape == (bands, 128, 130)
    assert abs(float(normalized.mean())) < 0.1


def test_depth_in_8_bits_is_a_fraction_and_no_millimetres(tmp_path: Path) -> None:
    save(tmp_path / "depth/train/a.png", picture(channels=1))
    specs, notes = resolved(tmp_path)
    assert (specs["depth"].unit, specs["depth"].scale, specs["depth"].range) == ("1", None, (0.0, 1.0))
    assert specs["depth"].mean[0] == pytest.approx(0.5, abs=0.1)
    assert "fraction of full scale" in notes[0]


def test_depth_in_floating_point_is_in_metres(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1, 20, SIZE).astype(np.float32)
    save(tmp_path / "depth/train/a.npy", values)
    spec = resolved(tmp_path)[0]["depth"]
    assert spec.unit == "m"
    assert spec.mean == pytest.approx((values.mean(),), rel=1e-4)


def test_millimetres_in_a_wider_type_are_still_millimetres(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1000, 20000, SIZE)  # int64, numpy's own choice
    save(tmp_path / "depth/train/a.npy", values)
    assert resolved(tmp_path)[0]["depth"].mean == pytest.approx((values.mean() / 1000,), rel=1e-4)


def test_grey_saved_as_colour_has_one_channel(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"fog/train/{i}.png", np.repeat(picture(i, channels=1)[..., None], 3, axis=2))
    assert resolved(tmp_path)[0]["fog"].channels == 1


def test_one_black_frame_does_not_make_a_sensor_grey(tmp_path: Path) -> None:
    save(tmp_path / "radar/train/0.png", np.zeros((*SIZE, 3), np.uint8))
    save(tmp_path / "radar/train/1.png", picture())
    assert resolved(tmp_path)[0]["radar"].channels == 3


def test_alpha_is_no_channel_of_a_png_but_a_fourth_band_is_one_of_a_tiff(tmp_path: Path) -> None:
    save(tmp_path / "fog/train/a.png", picture(channels=4))
    save(tmp_path / "bands/train/a.tif", np.moveaxis(picture(channels=4), -1, 0))
    specs = resolved(tmp_path)[0]
    assert specs["fog"].channels == 3
    assert specs["bands"].channels == 4


def test_what_is_declared_stands(dataset: Path) -> None:
    specs, notes = resolved(dataset, "thermal", thermal={"mean": [0.3], "std": [0.1], "channels": 1, "dtype": "uint8"})
    assert specs["thermal"] == SensorSpec(mean=(0.3,), std=(0.1,), dtype="uint8")
    assert notes == []


@pytest.mark.parametrize(("name", "value"), [("mean", [0.125]), ("std", [2.0])])
def test_one_declared_statistic_stands_beside_the_measured_other(name: str, value: list, dataset: Path) -> None:
    spec = resolved(dataset, "thermal", thermal={name: value})[0]["thermal"]
    values = stored(dataset, "thermal") / 255
    expected = {"mean": (values.mean(),), "std": (values.std(),)} | {name: tuple(value)}
    assert spec.mean == pytest.approx(expected["mean"], rel=1e-4)
    assert spec.std == pytest.approx(expected["std"], rel=1e-3)


def test_what_is_declared_and_does_not_fit_the_files_is_refused_by_name(dataset: Path) -> None:
    message = refusal(RequestError, resolved, dataset, "thermal", thermal={"mean": [1, 2]})
    assert "sensors.thermal" in message
    message = refusal(DataError, resolved, dataset, "thermal", thermal={"channels": 3})
    assert "has 1 channels, but its sensor has 3" in message


def test_a_flat_sensor_has_a_spread_that_can_be_divided_by(tmp_path: Path) -> None:
    save(tmp_path / "fog/train/a.png", np.full(SIZE, 77, np.uint8))
    assert resolved(tmp_path)[0]["fog"].std == (1.0,)
    save(tmp_path / "fog/train/a.npy", np.full(SIZE, np.nan, np.float32))
    (tmp_path / "fog/train/a.png").unlink()
    assert (resolved(tmp_path)[0]["fog"].mean, resolved(tmp_path)[0]["fog"].std) == ((0.0,), (1.0,))


def test_a_file_of_another_type_than_the_first_is_refused_by_name(dataset: Path) -> None:
    path = save(dataset / "depth/train/train3.png", picture(channels=1, size=(48, 64)))
    message = refusal(DataError, resolved, dataset, "depth")
    assert str(path) in message
    assert "uint16" in message


def test_a_sensor_without_train_files_is_refused(dataset: Path) -> None:
    save(dataset / "lidar/test/test0.png", picture())
    assert "no train frame" in refusal(RequestError, resolved, dataset, "rgb", "lidar")


def test_large_splits_are_measured_on_frames_from_all_over(tmp_path: Path) -> None:
    for i in range(STATISTICS_FRAMES * 2):
        save(tmp_path / f"fog/train/{i:04}.npy", np.full((1, 2), float(i), np.float32))
    specs, notes = resolved(tmp_path)
    assert specs["fog"].mean[0] == pytest.approx(STATISTICS_FRAMES - 0.5, abs=0.5)
    assert f"{STATISTICS_FRAMES} train frames" in notes[0]


def test_the_same_dataset_gives_the_same_specs(tmp_path: Path) -> None:
    first = resolved(write_dataset(tmp_path / "a"))
    assert resolved(write_dataset(tmp_path / "b"))[0] == first[0]


# ---------------------------------------------------------------- resizing with holes


def ramp(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])


def test_resizing_keeps_pixel_centres_where_they_are() -> None:
    """A ramp of coordinates stays a ramp: half a pixel of shift would show."""
    for size in ((24, 32), (6, 8), (18, 40)):
        for interpolation, off in (("bilinear", 1e-4), ("nearest", 0.51)):
            result = resized(ramp(12, 16), size, interpolation)
            y, x = np.mgrid[: size[0], : size[1]]
            expected = np.stack([(x + 0.5) * 16 / size[1], (y + 0.5) * 12 / size[0]])
            inner = (slice(None), slice(2, -2), slice(2, -2))  # the border is held, as everywhere
            assert np.abs(result.numpy()[inner] - expected[inner]).max() <= off * max(1, 16 / size[1])


def test_enlarging_is_scipys_linear_interpolation() -> None:
    values = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))
    result = resized(values, (24, 32), "bilinear")[0].numpy()
    y, x = (np.mgrid[:24, :32] + 0.5) / 2 - 0.5
    expected = ndimage.map_coordinates(values[0].numpy(), [y, x], order=1, mode="nearest")
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 32), (6, 8), (9, 21)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_hole_stays_a_hole_and_does_not_leak(size: tuple[int, int], interpolation: str) -> None:
    values = torch.full((2, 12, 16), 3.0)
    values[0, 4:8, 4:12] = float("nan")
    result = resized(values, size, interpolation)
    np.testing.assert_allclose(result[result.isfinite()].numpy(), 3.0, rtol=1e-5)
    assert result[1].isfinite().all()
    share = float(result[0].isnan().float().mean())
    assert share == pytest.approx(32 / 192, abs=0.08)
    assert result[0, size[0] // 2, size[1] // 2].isnan()


def test_nearest_makes_no_new_values() -> None:
    values = torch.tensor([[[0.0, 7.0], [float("nan"), 100.0]]])
    result = resized(values, (5, 7), "nearest")
    assert set(result[result.isfinite()].tolist()) == {0.0, 7.0, 100.0}
    assert result.isnan().any()


def test_an_ignored_colour_is_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    picture = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(picture).save(path)
    colors = ((255, 0, 0), (0, 0, 255))
    void = Classes(("a", "b"), colors, ignore_color=(0, 0, 0))
    np.testing.assert_array_equal(decode_label(read_label(path), void, path), [[IGNORE, 0, 1]])
    with pytest.raises(DataError, match=r"which no class has; .* name an ignore_color"):
        decode_label(read_label(path), Classes(("a", "b"), colors), path)


def test_an_ignored_colour_is_declared_with_the_dataset(tmp_path: Path) -> None:
    from conftest import write_dataset

    root = write_dataset(tmp_path / "data")
    for path in (root / "labels").rglob("*.png"):
        with Image.open(path) as label:
            ids = np.asarray(label)
        Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8)[ids]).save(path)
    text = "classes: [{name: near, color: [255, 0, 0]}, {name: far, color: [0, 0, 255]}]\nignore_color: [0, 0, 0]\n"
    (root / "dataset.yaml").write_text(text)
    dataset = open_dataset(f"folder:{root}")
    frames = dataset.frames("train")
    classes, _ = resolve_classes(dataset, frames)
    specs, _ = resolve_sensors(dataset, ["rgb"], frames)
    label = read_frame(frames[0], specs, classes).label
    assert label is not None
    assert set(label.unique().tolist()) == {IGNORE, 0, 1}
