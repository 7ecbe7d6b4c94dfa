"""The containers: a missing sensor is an absent key, never zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlesam.errors import DataError, RequestError
from mlesam.sample import Batch, Prediction, Sample


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def sample(*modalities: str, size: tuple[int, int] = (4, 6), label: bool = True, name: str = "") -> Sample:
    images = {m: torch.randn(3 if m == "rgb" else 1, *size) for m in modalities}
    return Sample(images, torch.randint(0, 3, size) if label else None, name, (f"tag-{name}",))


def test_a_frame_takes_up_rows_only_for_the_sensors_it_has() -> None:
    frames = [sample("rgb", "depth", name="a"), sample("depth", name="b"), sample("nir", "rgb", name="c")]
    batch = Batch.stack(frames)
    assert len(batch) == 3
    assert batch.ids == ("a", "b", "c")
    assert batch.tags == (("tag-a",), ("tag-b",), ("tag-c",))
    assert batch.size == (4, 6)
    assert {m: f.tolist() for m, f in batch.frames.items()} == {"rgb": [0, 2], "depth": [0, 1], "nir": [2]}
    for modality, owners in batch.frames.items():
        assert batch.images[modality].shape[0] == len(owners)
        for row, frame in enumerate(owners.tolist()):
            assert torch.equal(batch.images[modality][row], frames[frame].images[modality])
    assert torch.equal(batch.labels, torch.stack([f.label for f in frames]))


def test_labels_are_there_only_when_every_frame_has_one() -> None:
    assert Batch.stack([sample("rgb"), sample("rgb", label=False)]).labels is None


def test_frames_of_different_sizes_are_refused_with_their_names_and_sizes() -> None:
    with pytest.raises(DataError, match="rgb of frame 'a' is 6x4, depth of frame 'b' is 5x4"):
        Batch.stack([sample("rgb", name="a"), sample("depth", size=(4, 5), name="b")])


def test_a_frame_without_any_sensor_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="frame 'empty' has no sensor at all"):
        Batch.stack([sample("rgb"), Sample({}, id="empty")])


def test_frames_whose_labels_or_channels_differ_are_refused() -> None:
    other = Sample({"rgb": torch.zeros(3, 4, 6)}, torch.zeros(8, 12, dtype=torch.int64))
    with pytest.raises(DataError, match="the labels of a batch need one size"):
        Batch.stack([sample("rgb"), other])
    with pytest.raises(DataError, match="rgb has 3 channels in one frame and 4 in another"):
        Batch.stack([sample("rgb"), Sample({"rgb": torch.zeros(4, 4, 6)})])


def test_select_leaves_sensors_out_without_touching_the_frames() -> None:
    batch = Batch.stack([sample("rgb", "depth", name="a"), sample("depth", name="b")])
    part = batch.select(["depth", "radar"])
    assert part.modalities == ("depth",)
    assert len(part) == 2
    assert part.images["depth"] is batch.images["depth"]
    assert batch.modalities == ("rgb", "depth")
    assert batch.select([]).modalities == ()


def test_a_batch_of_plain_tensors_has_every_sensor_in_every_frame() -> None:
    batch = Batch.of({"rgb": torch.zeros(2, 3, 4, 6), "depth": torch.zeros(2, 1, 4, 6)})
    assert len(batch) == 2
    assert {m: f.tolist() for m, f in batch.frames.items()} == {"rgb": [0, 1], "depth": [0, 1]}
    with pytest.raises(RequestError, match=r"one row per frame; use Batch\.stack"):
        Batch.of({"rgb": torch.zeros(2, 3, 4, 6), "depth": torch.zeros(1, 1, 4, 6)})
    with pytest.raises(RequestError, match="no sensor was given"):
        Batch.of({})


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch.stack([sample("rgb", "depth"), sample("depth")]).to("meta")
    tensors = [*batch.images.values(), *batch.frames.values(), batch.labels]
    assert {t.device.type for t in tensors} == {"meta"}
    assert len(batch) == 2


# ---------------------------------------------------------------- predictions


def prediction(labels: np.ndarray, background: np.ndarray | None = None) -> Prediction:
    colors = ((0, 0, 0), (200, 100, 0), (10, 20, 30))
    probabilities = np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1)
    return Prediction(labels, probabilities, {"rgb": 1.0}, ("a", "b", "c"), colors, background)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_class_map_is_drawn_in_the_colours_of_its_classes(dtype: type) -> None:
    labels = np.array([[0, 1, 2], [2, 1, 0]], dtype=dtype)
    picture = np.asarray(prediction(labels).colored())
    assert picture.shape == (2, 3, 3)
    assert picture[0, 1].tolist() == [200, 100, 0]
    assert picture[1, 0].tolist() == [10, 20, 30]


def test_an_overlay_lies_between_the_picture_and_the_colours() -> None:
    labels = np.ones((2, 2), dtype=np.uint8)
    background = np.full((2, 2, 3), 100, dtype=np.uint8)
    assert np.asarray(prediction(labels, background).overlay(0.5))[0, 0].tolist() == [150, 100, 50]
    assert np.asarray(prediction(labels, background).overlay(0.0))[0, 0].tolist() == [100, 100, 100]
    assert np.asarray(prediction(labels).overlay())[0, 0].tolist() == [200, 100, 0]
