"""One geometry for every sensor and the label, shown with painted coordinates; photometric changes that stay in bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from mlesam.config import DataConfig
from mlesam.data.transforms import Geometry, _blur, evaluation_sample, photometric, training_sample
from mlesam.errors import RequestError
from mlesam.sample import IGNORE, Sample
from mlesam.sensors import BUILTIN, SensorSpec
from mlesam.sensors.spec import sensor_spec

HEIGHT, WIDTH = 40, 56
CROP = 24
ANYTHING = {"range": (-1e6, 1e6), "mean": (0.0,), "std": (1.0,), "photometric": "none"}
PAINTED = {
    "smooth": SensorSpec(channels=4, interpolation="bilinear", **ANYTHING),
    "sparse": SensorSpec(channels=2, interpolation="nearest", **ANYTHING),
}
"""Sensors that leave the painted numbers alone."""


def painted(height: int = HEIGHT, width: int = WIDTH) -> Sample:
    """Every sensor and the label hold the coordinates of their own pixels' centres."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    label = (torch.arange(height)[:, None] * width + torch.arange(width)[None]).long()
    return Sample({"smooth": torch.stack([x, y, -x, x + 2 * y]), "sparse": torch.stack([x, y])}, label, "painted")


def sources(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """By hand: where in the source the centre of each pixel of the crop lies, (y, x)."""
    step = geometry.window / geometry.crop
    at = (np.arange(geometry.crop) + 0.5) * step
    x = geometry.left + (at[::-1] if geometry.flip else at)
    return np.meshgrid(geometry.top + at, x, indexing="ij")


def check(geometry: Geometry, sample: Sample, cropped: dict[str, np.ndarray], label: np.ndarray) -> None:
    """Sensors and label show the place that the geometry says, and nothing where it lies beyond the frame."""
    height, width = sample.label.shape
    y, x = sources(geometry)
    inside = (y > 0) & (y < height) & (x > 0) & (x < width)
    clear = (np.abs(y - np.round(y)) > 1e-3) & (np.abs(x - np.round(x)) > 1e-3)  # not between two pixels

    expected = np.where(inside, np.floor(y) * width + np.floor(x), IGNORE)
    np.testing.assert_array_equal(label[clear], expected[clear])

    sparse = cropped["sparse"]
    np.testing.assert_array_equal(np.isnan(sparse[:, clear]), np.broadcast_to(~inside[clear], (2, clear.sum())))
    both = inside & clear
    np.testing.assert_array_equal(sparse[:, both], np.stack([np.floor(x), np.floor(y)])[:, both] + 0.5)

    step = max(1.0, geometry.window / geometry.crop)
    edges_x = [0, width, geometry.left, geometry.left + geometry.window]
    edges_y = [0, height, geometry.top, geometry.top + geometry.window]
    distance = np.minimum(
        np.min([np.abs(x - e) for e in edges_x], axis=0), np.min([np.abs(y - e) for e in edges_y], axis=0)
    )
    smooth = cropped["smooth"]
    assert np.isfinite(smooth[:, inside & (distance > step)]).all()
    assert np.isnan(smooth[:, ~inside & (distance > step)]).all()
    wanted = np.stack([x, y])
    within = inside & (distance > step)
    off = 2e-3 if step == 1 else 0.1 * step  # the filter that reduces is not quite centred on every pixel
    np.testing.assert_allclose(smooth[:2, within], wanted[:, within], rtol=0, atol=off)
    shown = np.isfinite(smooth[0])
    assert np.abs(smooth[:2, shown] - wanted[:, shown]).max(initial=0) <= 0.75 * step
    np.testing.assert_allclose(smooth[2, shown], -smooth[0, shown], atol=1e-3)
    np.testing.assert_allclose(smooth[3, shown], smooth[0, shown] + 2 * smooth[1, shown], atol=1e-3)


def apply(geometry: Geometry, sample: Sample) -> tuple[dict[str, np.ndarray], np.ndarray]:
    cropped = {m: geometry.apply(x, PAINTED[m]).numpy() for m, x in sample.images.items()}
    return cropped, geometry.apply_label(sample.label).numpy()


# ---------------------------------------------------------------- one geometry


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("top", "left", "window"),
    [
        (0, 0, 24),  # as it is
        (5, 9, 24),
        (3, 7, 12),  # enlarged
        (3, 7, 7),
        (0, 16, 40),  # reduced
        (-8, -4, 64),  # the whole frame and more
        (-30, 10, 50),  # beyond one side, and half of a side
        (20, 30, 48),
        (39, 55, 24),  # one pixel of the frame
        (10, 10, 1),
        (-100, -80, 300),
    ],
)
def test_every_sensor_and_the_label_show_the_same_place(top: int, left: int, window: int, flip: bool) -> None:
    geometry, sample = Geometry(top, left, window, CROP, flip), painted()
    check(geometry, sample, *apply(geometry, sample))


def test_every_geometry_that_is_drawn_shows_the_same_place_everywhere() -> None:
    seen = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        config = DataConfig(crop=32, scale=(0.4, 2.5), resize=(None, 64)[seed % 2])
        size = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
        geometry, sample = Geometry.sample(rng, size, config), painted(*size)
        check(geometry, sample, *apply(geometry, sample))
        seen.append((geometry.flip, geometry.window > geometry.crop, geometry.window > min(size)))
    assert len(set(seen)) >= 6  # mirrored and not, enlarged and reduced, within the frame and beyond


def test_a_training_sample_shows_the_same_place_everywhere() -> None:
    """The same through the whole transform: the label tells which pixel, the sensors must agree with it."""
    for seed in range(30):
        sample = training_sample(painted(), PAINTED, DataConfig(crop=32), np.random.default_rng(seed))
        label = sample.label.numpy()
        scored = label != IGNORE
        assert scored.any()
        place = np.stack([label % WIDTH, label // WIDTH])[:, scored] + 0.5
        np.testing.assert_array_equal(sample.images["sparse"].numpy()[:, scored], place)
        inner = ndimage.binary_erosion(scored, iterations=4)
        off = np.abs(sample.images["smooth"].numpy()[:2] - np.stack([label % WIDTH, label // WIDTH]) - 0.5)
        assert off[:, inner].max(initial=0) <= 1.5  # nearest is within a pixel of smooth, also when reduced
        assert (sample.images["sparse"][:, label == IGNORE] == 0).all()  # nothing measured


def test_drawn_geometries_keep_to_the_recipe() -> None:
    config = DataConfig(crop=64, scale=(0.5, 2.0), flip=0.25)
    drawn = [Geometry.sample(np.random.default_rng(i), (100, 140), config) for i in range(800)]
    windows = np.array([g.window for g in drawn])
    assert windows.min() >= 32
    assert windows.max() <= 128
    assert np.median(windows) == pytest.approx(64, rel=0.1)  # as often enlarged as reduced
    assert np.mean([g.flip for g in drawn]) == pytest.approx(0.25, abs=0.05)
    for g in drawn:
        for start, size in ((g.top, 100), (g.left, 140)):
            assert min(0, size - g.window) <= start <= max(0, size - g.window)
    small = [g for g in drawn if g.window <= 40]
    assert min(g.top for g in small) < 5
    assert max(g.top + g.window for g in small) > 95
    assert {g.crop for g in drawn} == {64}


def test_resize_scales_the_window_to_the_frames_short_side() -> None:
    config = DataConfig(crop=64, scale=(1.0, 1.0), resize=50)
    geometry = Geometry.sample(np.random.default_rng(0), (200, 300), config)
    assert geometry.window == 256  # 200 pixels become 50


def test_without_flips_nothing_is_mirrored() -> None:
    config = DataConfig(crop=32, flip=0.0)
    assert not any(Geometry.sample(np.random.default_rng(i), (50, 50), config).flip for i in range(50))


def test_what_lies_beyond_the_frame_is_not_scored_and_not_measured() -> None:
    geometry = Geometry(-8, -8, 56, 56, False)
    label = geometry.apply_label(torch.zeros(40, 40, dtype=torch.int64))
    values = geometry.apply(torch.ones(3, 40, 40), SensorSpec(channels=3))
    outside = torch.ones(56, 56, dtype=torch.bool)
    outside[8:48, 8:48] = False
    assert torch.equal(label == IGNORE, outside)
    assert torch.equal(values.isnan(), outside.expand(3, -1, -1))


def test_holes_of_one_sensor_do_not_reach_the_others() -> None:
    sample = painted()
    holed = {m: x.clone() for m, x in sample.images.items()}
    holed["sparse"][:, 10:20, 10:30] = float("nan")
    config = DataConfig(crop=32, scale=(0.7, 0.7))
    whole = training_sample(sample, PAINTED, config, np.random.default_rng(1))
    result = training_sample(dataclasses.replace(sample, images=holed), PAINTED, config, np.random.default_rng(1))
    assert torch.equal(result.images["smooth"], whole.images["smooth"])
    assert torch.equal(result.label, whole.label)
    changed = (result.images["sparse"] != whole.images["sparse"]).any(dim=0)
    y, x = whole.label // WIDTH, whole.label % WIDTH
    assert torch.equal(changed, (whole.label != IGNORE) & (y >= 10) & (y < 20) & (x >= 10) & (x < 30))


def test_a_class_id_survives_however_large() -> None:
    label = torch.tensor([[0, 300], [65535, IGNORE]])
    result = Geometry(0, 0, 2, 8, True).apply_label(label)
    assert result.dtype == torch.int64
    assert result[0, ::4].tolist() == [300, 0]
    assert result[7, ::4].tolist() == [IGNORE, 65535]


# ---------------------------------------------------------------- photometric changes

KINDS = {
    "color": BUILTIN["rgb"],
    "intensity": BUILTIN["thermal"],
    "sparse with holes": BUILTIN["lidar"],
    "sparse": BUILTIN["event"],
    "none": BUILTIN["aolp"],
    "frame": SensorSpec(channels=2, normalize="frame"),
    "color frame": SensorSpec(channels=3, normalize="frame", photometric="color"),
}


def values_of(spec: SensorSpec, seed: int = 0) -> torch.Tensor:
    """A smooth scene in the sensor's range, somewhere above zero."""
    noise = np.random.default_rng(seed).random((spec.channels, 20, 28))
    values = ndimage.gaussian_filter(noise, (0, 2, 2))
    return torch.from_numpy((0.1 + 0.8 * values).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_photometric_changes_keep_shape_type_and_finite_values(kind: str, strength: float) -> None:
    spec = KINDS[kind]
    for seed in range(40):
        values = values_of(spec, seed)
        before = values.clone()
        result = photometric(values, spec, np.random.default_rng(seed), strength)
        assert torch.equal(values, before)
        assert result.shape == values.shape
        assert result.dtype == torch.float32
        if kind != "sparse with holes":
            assert result.isfinite().all()
        else:
            lost = result.isnan()
            assert torch.equal(lost, lost[:1].expand_as(lost))  # a lost return is lost in all channels
            assert float(lost.float().mean()) <= 0.25 * strength


@pytest.mark.parametrize("kind", KINDS)
def test_photometric_changes_put_nothing_into_holes_and_spread_none(kind: str) -> None:
    spec = KINDS[kind]
    for seed in range(30):
        values = values_of(spec)
        values[0, 3:6, 4:9] = float("nan")
        result = photometric(values, spec, np.random.default_rng(seed), 1.0)
        assert result[values.isnan()].isnan().all()
        if kind != "sparse with holes":
            assert result[values.isfinite()].isfinite().all()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_photometric_changes_change_most_frames(kind: str) -> None:
    values = values_of(KINDS[kind])
    changed = [
        not torch.equal(values, photometric(values, KINDS[kind], np.random.default_rng(i), 1.0)) for i in range(60)
    ]
    assert 0.6 < np.mean(changed) < 0.95


def test_a_sensor_of_kind_none_is_left_as_it_is() -> None:
    values = values_of(BUILTIN["aolp"])
    for seed in range(30):
        assert photometric(values, BUILTIN["aolp"], np.random.default_rng(seed), 3.0) is values


def test_colour_stays_within_its_range() -> None:
    for seed in range(40):
        result = photometric(values_of(BUILTIN["rgb"]), BUILTIN["rgb"], np.random.default_rng(seed), 3.0)
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6


def test_the_emptiness_of_events_stays_empty() -> None:
    values = values_of(BUILTIN["event"])
    values[:, ::2] = 0
    for seed in range(20):
        assert (photometric(values, BUILTIN["event"], np.random.default_rng(seed), 1.0)[:, ::2] == 0).all()


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.2, 3.0])
def test_blur_is_scipys_gaussian(sigma: float) -> None:
    values = values_of(BUILTIN["rgb"])
    radius = max(1, round(3 * sigma))
    expected = ndimage.gaussian_filter(values.numpy(), (0, sigma, sigma), mode="mirror", radius=(0, radius, radius))
    np.testing.assert_allclose(_blur(values, sigma).numpy(), expected, atol=1e-5)


def test_blur_leaves_a_picture_alone_that_is_smaller_than_it() -> None:
    values = torch.rand(3, 4, 4)
    assert _blur(values, 3.0) is values


# ---------------------------------------------------------------- whole samples

STREET = {m: BUILTIN[m] for m in ("rgb", "depth", "lidar", "event", "aolp")}


def street(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    images = {}
    for modality, spec in STREET.items():
        values = torch.from_numpy(rng.uniform(0.1, 0.9, (spec.channels, 40, 50)).astype(np.float32))
        values[:, rng.random((40, 50)) < (0.3 if spec.missing is not None else 0)] = float("nan")
        images[modality] = values
    return Sample(images, torch.from_numpy(rng.integers(0, 3, (40, 50))), f"s{seed}", ("night",))


CONFIG = DataConfig(crop=32, scale=(0.6, 1.8))


def changed(sample: Sample, *address: int, config: DataConfig = CONFIG) -> Sample:
    return training_sample(sample, STREET, config, np.random.default_rng(list(address)))


def equal(first: Sample, second: Sample) -> bool:
    return first.images.keys() == second.images.keys() and all(
        torch.equal(first.images[m], second.images[m]) for m in first.images
    )


def test_a_training_sample_is_a_finite_crop_of_every_sensor() -> None:
    for seed in range(20):
        sample = changed(street(), seed)
        assert {m: tuple(x.shape) for m, x in sample.images.items()} == {
            m: (spec.channels, 32, 32) for m, spec in STREET.items()
        }
        assert all(x.isfinite().all() and x.dtype == torch.float32 for x in sample.images.values())
        assert sample.label.shape == (32, 32)
        assert (sample.id, sample.tags) == ("s0", ("night",))


def test_the_address_alone_decides_what_a_sample_becomes() -> None:
    first = changed(street(), 0, 5, 2)
    np.random.seed(0)  # the global states have no say
    torch.manual_seed(0)
    second = changed(street(), 0, 5, 2)
    assert equal(first, second)
    assert torch.equal(first.label, second.label)
    for other in ((1, 5, 2), (0, 6, 2), (0, 5, 3)):
        assert not equal(first, changed(street(), *other))


@pytest.mark.parametrize("lacking", STREET)
def test_a_lacking_sensor_changes_nothing_for_the_others(lacking: str) -> None:
    for seed in range(6):
        whole, sample = changed(street(), seed), street()
        rest = {m: x for m, x in sample.images.items() if m != lacking}
        part = changed(dataclasses.replace(sample, images=rest), seed)
        assert equal(part, dataclasses.replace(whole, images={m: whole.images[m] for m in rest}))
        assert torch.equal(part.label, whole.label)


def test_the_order_of_the_sensors_changes_nothing() -> None:
    sample = street()
    turned = changed(dataclasses.replace(sample, images=dict(reversed(sample.images.items()))), 3)
    assert equal(changed(sample, 3), dataclasses.replace(turned, images={m: turned.images[m] for m in STREET}))


def test_sensors_of_one_kind_are_changed_apart() -> None:
    """Two cameras do not flicker in step."""
    spec = BUILTIN["thermal"]
    values = values_of(spec)
    sample = Sample({"left": values, "right": values}, None)
    config = DataConfig(crop=32, scale=(1, 1))
    differ = []
    for seed in range(10):
        images = training_sample(sample, {"left": spec, "right": spec}, config, np.random.default_rng(seed)).images
        differ.append(not torch.equal(images["left"], images["right"]))
    assert np.mean(differ) > 0.7


def test_without_photometric_changes_only_the_geometry_is_left() -> None:
    config = dataclasses.replace(CONFIG, photometric=0.0)
    sample = street()
    for seed in range(5):
        geometry = Geometry.sample(np.random.default_rng([seed]), (40, 50), config)
        result = changed(sample, seed, config=config)
        for modality, spec in STREET.items():
            expected = spec.normalized(geometry.apply(sample.images[modality], spec))
            assert torch.equal(result.images[modality], expected)
        with_changes = changed(sample, seed)
        assert torch.equal(with_changes.label, result.label)
        assert torch.equal(with_changes.images["aolp"], result.images["aolp"])  # kind none


def test_a_sample_without_a_label_stays_without_one() -> None:
    sample = dataclasses.replace(street(), label=None)
    assert changed(sample, 0).label is None
    assert evaluation_sample(sample, STREET, None).label is None


def test_evaluation_at_native_size_changes_no_value() -> None:
    sample = street()
    result = evaluation_sample(sample, STREET, None)
    for modality, spec in STREET.items():
        assert torch.equal(result.images[modality], spec.normalized(sample.images[modality]))
    assert result.label is sample.label


@pytest.mark.parametrize(("resize", "size"), [(20, (20, 25)), (80, (80, 100)), (33, (33, 41))])
def test_evaluation_brings_the_short_side_to_size_and_leaves_the_label(resize: int, size: tuple[int, int]) -> None:
    sample = street()
    result = evaluation_sample(sample, STREET, resize)
    assert {tuple(x.shape[-2:]) for x in result.images.values()} == {size}
    assert all(x.isfinite().all() for x in result.images.values())
    assert torch.equal(result.label, sample.label)


def test_evaluation_shows_the_whole_frame() -> None:
    sample = painted()
    result = evaluation_sample(sample, PAINTED, 20).images["smooth"][:2].numpy()
    y, x = np.mgrid[:20, :28]
    expected = np.stack([x, y]) * 2 + 1
    np.testing.assert_allclose(result[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-3)


def test_the_sine_of_an_angle_changes_its_sign_in_the_mirror() -> None:
    """An angle a from the x axis is -a in the mirror: sin(2 a) turns, cos(2 a) stays."""
    spec, angle = BUILTIN["aolp"], torch.linspace(-1.5, 1.5, 20).repeat(20, 1)
    seen = torch.stack([torch.sin(2 * angle), torch.cos(2 * angle)])
    mirrored = Geometry(0, 0, 20, 20, True).apply(seen, spec)
    expected = torch.stack([torch.sin(-2 * angle.flip(-1)), torch.cos(-2 * angle.flip(-1))])
    torch.testing.assert_close(mirrored, expected)
    assert torch.equal(Geometry(0, 0, 20, 20, False).apply(seen, spec), seen)


def test_a_spec_says_which_channels_turn() -> None:
    assert sensor_spec("aolp").mirror_negates == (0,)
    assert sensor_spec("aolp", {"channels": 3}).mirror_negates == (), "other channels, so nobody knows"
    with pytest.raises(RequestError, match=r"mirror_negates is \[2\], but the sensor has the channels 0 to 1"):
        sensor_spec("aolp", {"mirror_negates": [2]})
