"""The Python API: any subset of sensors, in any form, gives a class map with each sensor's share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlesam import DataError, RequestError, Segmenter
from mlesam.config import load_recipe
from mlesam.inference.segmenter import picture
from mlesam.sensors import SensorSpec
from mlesam.training.loop import train


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Path]:
    from conftest import write_dataset

    root = tmp_path_factory.mktemp("street")
    data = write_dataset(root / "data")
    fields = {"data.dataset": f"folder:{data}", "training.steps": "2", "training.batch": "2", "data.crop": "64"}
    run = train(
        load_recipe(None, {**fields, "data.workers": "0", "model.rank": "4", "model.train": "experts"}), root / "run"
    )
    return Segmenter.load(run.path), data


def files(data: Path) -> dict[str, Path]:
    return {m: data / m / "test/test0.png" for m in ("rgb", "depth", "thermal")}


def test_a_prediction_has_everything_on_it(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    prediction = segmenter(files(data))
    assert prediction.labels.shape == (48, 64)
    assert prediction.labels.dtype == np.uint8
    assert prediction.probabilities.shape == (3, 48, 64)
    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_allclose(prediction.probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(prediction.labels, prediction.probabilities.argmax(axis=0))
    assert list(prediction.weights) == ["rgb", "depth", "thermal"]
    assert sum(prediction.weights.values()) == pytest.approx(1, abs=1e-5)
    assert prediction.overlay().size == (64, 48)


def test_one_sensor_has_all_the_weight(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    assert segmenter({"depth": files(data)["depth"]}).weights == {"depth": 1.0}


def test_paths_pictures_arrays_and_tensors_mean_the_same(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    paths = files(data)
    expected = segmenter(paths).probabilities
    pictures = {m: Image.open(p) for m, p in paths.items()}
    arrays = {m: np.asarray(p) for m, p in pictures.items()}
    tensors = {m: torch.from_numpy(a.astype(np.int32)) for m, a in arrays.items()}
    tensors["rgb"] = torch.from_numpy(arrays["rgb"].copy()).permute(2, 0, 1)
    tensors["thermal"] = torch.from_numpy(arrays["thermal"].copy())
    planes = {**arrays, "rgb": np.moveaxis(arrays["rgb"], -1, 0)}
    for given in ({m: str(p) for m, p in paths.items()}, pictures, arrays, planes, tensors):
        np.testing.assert_array_equal(segmenter(given).probabilities, expected)


def test_floating_point_values_are_in_the_sensors_unit(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    stored = np.asarray(Image.open(files(data)["depth"]))
    expected = segmenter({"depth": stored}).probabilities
    metres = stored.astype(np.float32) * 0.001
    np.testing.assert_allclose(segmenter({"depth": metres}).probabilities, expected, atol=1e-5)


def test_the_order_of_the_dict_changes_nothing(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    forward = files(data)
    backward = dict(reversed(list(forward.items())))
    np.testing.assert_array_equal(segmenter(forward).probabilities, segmenter(backward).probabilities)


def test_none_is_an_absent_sensor(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    rgb = files(data)["rgb"]
    with_none = segmenter({"rgb": rgb, "depth": None})
    np.testing.assert_array_equal(with_none.probabilities, segmenter({"rgb": rgb}).probabilities)


def test_odd_sizes_come_back_as_they_came(street: tuple[Segmenter, Path]) -> None:
    segmenter, _ = street
    for size in ((250, 333), (33, 7)):
        prediction = segmenter({"rgb": np.zeros((*size, 3), dtype=np.uint8), "thermal": np.zeros(size, dtype=np.uint8)})
        assert prediction.labels.shape == size
        assert np.isfinite(prediction.probabilities).all()


def test_a_resized_segmenter_answers_at_the_inputs_size(street: tuple[Segmenter, Path]) -> None:
    segmenter, _ = street
    small = Segmenter(segmenter.model, segmenter.sensors, segmenter.classes, resize=64, device="cpu")
    prediction = small({"thermal": np.zeros((100, 150), dtype=np.uint8)})
    assert prediction.probabilities.shape == (3, 100, 150)


def test_measurements_that_are_not_numbers_are_holes(street: tuple[Segmenter, Path]) -> None:
    segmenter, _ = street
    depth = np.full((64, 64), 5.0, dtype=np.float32)
    depth[10:20] = np.nan
    assert np.isfinite(segmenter({"depth": depth}).probabilities).all()


def test_no_sensor_is_refused(street: tuple[Segmenter, Path]) -> None:
    segmenter, _ = street
    for nothing in ({}, {"rgb": None}):
        with pytest.raises(
            RequestError, match="no sensor was given; this model needs at least one of rgb, depth, thermal"
        ):
            segmenter(nothing)


def test_an_unknown_sensor_is_refused_with_the_nearest(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    with pytest.raises(RequestError, match="no sensor 'termal'; did you mean 'thermal'"):
        segmenter({"termal": files(data)["thermal"]})


def test_sensors_that_do_not_fit_are_refused(street: tuple[Segmenter, Path]) -> None:
    segmenter, data = street
    with pytest.raises(DataError, match=r"rgb/test/test0.png is 64x48, thermal is 20x10"):
        segmenter({"rgb": files(data)["rgb"], "thermal": np.zeros((10, 20), dtype=np.uint8)})


def test_an_eight_bit_copy_of_sixteen_bit_depth_is_refused(street: tuple[Segmenter, Path]) -> None:
    segmenter, _ = street
    with pytest.raises(DataError, match="8-bit values, but this sensor's files are uint16"):
        segmenter({"depth": np.zeros((48, 64), dtype=np.uint8)})


def test_loading_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no run"):
        Segmenter.load(tmp_path)


def test_a_damaged_weight_file_is_refused(street: tuple[Segmenter, Path], tmp_path: Path) -> None:
    import shutil

    _, data = street
    run = tmp_path / "run"
    shutil.copytree(data.parent / "run", run)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        Segmenter.load(run)


def test_weights_of_another_foundation_are_refused(street: tuple[Segmenter, Path], tmp_path: Path) -> None:
    import shutil

    _, data = street
    run = tmp_path / "run"
    shutil.copytree(data.parent / "run", run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("foundation: nano", "foundation: nano-random"))
    with pytest.raises(DataError, match="was trained on another foundation"):
        Segmenter.load(run)


def test_more_than_256_classes_have_wider_ids(street: tuple[Segmenter, Path]) -> None:
    from mlesam import MLESAM, ModelConfig
    from mlesam.data.dataset import default_colors
    from mlesam.sample import Classes

    segmenter, _ = street
    names = tuple(f"c{i}" for i in range(260))
    model = MLESAM({"thermal": 1}, 260, ModelConfig(rank=1))
    many = Segmenter(
        model, {"thermal": segmenter.sensors["thermal"]}, Classes(names, default_colors(260)), device="cpu"
    )
    assert many({"thermal": np.zeros((32, 32), dtype=np.uint8)}).labels.dtype == np.int16


def test_four_8_bit_bands_are_no_picture_with_alpha() -> None:
    spec = SensorSpec(channels=4)
    stored = np.zeros((8, 9, 4), dtype=np.uint8)
    stored[:4, :, 3] = 200  # near infrared: the last band shows as red
    drawn = picture(spec.encode(stored).numpy(), stored, spec)
    assert drawn.shape == (8, 9, 3)
    assert (drawn[0, 0] == (255, 0, 0)).all()
    rgb = SensorSpec(channels=3)
    np.testing.assert_array_equal(picture(rgb.encode(stored).numpy(), stored, rgb), stored[..., :3])
