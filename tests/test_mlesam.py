"""The whole model: absent means absent, any size, frozen stays frozen, a plain module."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mlesam.config import ModelConfig, TrainingConfig
from mlesam.errors import RequestError
from mlesam.model.mlesam import MLESAM, Stem
from mlesam.model.run import save_weights
from mlesam.sample import Batch, Sample
from mlesam.training.loss import ohem_cross_entropy
from mlesam.training.optimizer import make_optimizer
from test_foundation import random_sam2

# An invented sensor with 12 channels, one with a single channel, and two that need no stem.
SENSORS = {"rgb": 3, "thermal": 1, "lidar": 3, "cube": 12}
CLASSES = 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transformers folder with a nano SAM2 in which every tensor is random, positions included."""
    folder = tmp_path_factory.mktemp("sam2")
    sam2 = random_sam2("nano", seed=7)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for name, parameter in sam2.mask_decoder.named_parameters():
            # With the small weights of `transformers` all tokens become one, and attention has nothing to learn.
            if name.endswith("s.weight") or name.endswith("token.weight"):
                nn.init.normal_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    sam2.save_pretrained(folder)
    return str(folder)


def build(foundation: str, sensors: dict[str, int] | None = None, trained: bool = True, **config) -> MLESAM:
    """A model with small experts; ``trained`` gives every zero a value, as training would."""
    torch.manual_seed(11)
    config = {"foundation": foundation, "rank": 4, **config}
    model = MLESAM(sensors or SENSORS, CLASSES, ModelConfig(**config)).eval()
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and (name.endswith((".b", ".mix")) or name.startswith("stems.")):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            for router in model.routers:
                for scorer in router.scorers.values():
                    scorer.weight.mul_(5)  # weights that differ clearly
    return model


@pytest.fixture(scope="session")
def model(foundation: str) -> MLESAM:
    return build(foundation)


def images(
    count: int = 2, size: tuple[int, int] = (64, 96), sensors: dict[str, int] | None = None
) -> dict[str, Tensor]:
    return {m: torch.randn(count, c, *size) for m, c in (sensors or SENSORS).items()}


def mixed(size: tuple[int, int] = (64, 96)) -> list[Sample]:
    """Five frames, each with other sensors."""
    sets = [("rgb", "thermal", "lidar", "cube"), ("thermal",), ("cube", "rgb"), ("lidar", "thermal"), ("rgb",)]
    return [Sample({m: torch.randn(SENSORS[m], *size) for m in s}, id=f"frame{i}") for i, s in enumerate(sets)]


# ---------------------------------------------------------------- absent means absent


@torch.no_grad()
def test_the_order_of_the_callers_dict_changes_nothing(model: MLESAM, foundation: str) -> None:
    given = images()
    expected = model(given)
    turned = dict(reversed(given.items()))
    assert list(turned) != list(given)
    again = model(turned)
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(again.shares, expected.shares)
    built_turned = build(foundation, dict(reversed(SENSORS.items())))
    assert built_turned.modalities == model.modalities == ("rgb", "lidar", "thermal", "cube")
    assert torch.equal(built_turned(given).logits, expected.logits)


@torch.no_grad()
def test_the_order_in_which_frames_name_their_sensors_changes_nothing(model: MLESAM) -> None:
    samples = mixed()
    turned = [Sample(dict(reversed(s.images.items())), id=s.id) for s in samples]
    assert torch.equal(model(Batch.stack(turned)).logits, model(Batch.stack(samples)).logits)


@torch.no_grad()
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_whatever_stands_in_a_dropped_sensors_tensor_changes_nothing(model: MLESAM, broken: float) -> None:
    batch = Batch.of(images())
    others = [m for m in SENSORS if m != "lidar"]
    expected = model(batch.select(others))
    batch.images["lidar"].fill_(broken)
    assert torch.equal(model(batch.select(others)).logits, expected.logits)
    after_the_trunk = model.decode(model.encode(batch).select(others)).logits
    torch.testing.assert_close(after_the_trunk, expected.logits, atol=1e-5, rtol=0)
    batch.images["lidar"].normal_()
    assert torch.equal(model.decode(model.encode(batch).select(others)).logits, after_the_trunk)


@torch.no_grad()
def test_a_broken_sensor_that_is_dropped_in_one_frame_spoils_neither_frame(model: MLESAM) -> None:
    batch = Batch.of(images())
    batch.images["lidar"][0] = float("nan")
    rows = {m: torch.tensor([m != "lidar", True]) for m in SENSORS}
    output = model.decode(model.encode(batch).keep(rows))
    healthy = {m: x[1:] for m, x in batch.images.items()}
    blind = {m: x[:1] for m, x in batch.images.items() if m != "lidar"}
    torch.testing.assert_close(output.logits[1:], model(healthy).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits[:1], model(blind).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_of_mixed_presence_equals_one_frame_at_a_time(model: MLESAM) -> None:
    samples = mixed()
    together = model(Batch.stack(samples))
    assert together.logits.std() > 0.01
    for i, sample in enumerate(samples):
        alone = model(Batch.stack([sample]))
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.shares[i : i + 1], alone.shares, atol=1e-5, rtol=0)


@torch.no_grad()
def test_shares_are_in_canonical_order_and_zero_where_a_sensor_is_absent(model: MLESAM) -> None:
    samples = mixed()
    shares = model(Batch.stack(samples)).shares
    assert shares.shape == (5, 3, 4)
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(5, 3))
    for i, sample in enumerate(samples):
        for column, modality in enumerate(model.modalities):
            assert bool((shares[i, :, column] > 0).all()) == (modality in sample.images)


@torch.no_grad()
@pytest.mark.parametrize(
    "subset", [("rgb",), ("cube",), ("thermal", "lidar"), ("rgb", "thermal", "cube"), tuple(SENSORS)]
)
def test_a_subset_decoded_from_shared_features_equals_a_model_run_on_that_subset(
    model: MLESAM, subset: tuple[str, ...]
) -> None:
    given = images()
    decoded = model.decode(model.encode(Batch.of(given)).select(subset))
    fresh = model({m: given[m] for m in subset})
    torch.testing.assert_close(decoded.logits, fresh.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded.shares, fresh.shares, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_that_lose_every_sensor_to_a_subset_are_named_and_can_be_left_out(model: MLESAM) -> None:
    samples = mixed()
    part = model.encode(Batch.stack(samples)).select(["lidar", "cube"])
    assert part.covered().tolist() == [True, False, True, True, False]
    with pytest.raises(RequestError, match=r"frame 1 of 5 has none of lidar, cube"):
        model.decode(part)
    output = model.decode(part.of_frames(part.covered()))
    for row, frame in enumerate((0, 2, 3)):
        kept = {m: x for m, x in samples[frame].images.items() if m in ("lidar", "cube")}
        alone = model(Batch.stack([Sample(kept)]))
        torch.testing.assert_close(output.logits[row : row + 1], alone.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_trunk_runs_once_and_never_sees_an_absent_row(model: MLESAM) -> None:
    seen: list[int] = []
    hook = model.foundation.trunk.patch_embed.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    try:
        samples = mixed()
        model(Batch.stack(samples))
        model(images(count=1, sensors={"thermal": 1}))
    finally:
        hook.remove()
    assert seen == [sum(len(s.images) for s in samples), 1]


class OfImages(torch.nn.Module):
    """From pictures alone to logits alone, as an exported graph has it."""

    def __init__(self, model: MLESAM) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        return self.model(images).logits


@torch.no_grad()
@pytest.mark.parametrize("half", [(), ("lidar",)])
def test_large_maps_go_through_the_trunk_sensor_by_sensor_to_the_same_end(
    foundation: str, half: tuple[str, ...]
) -> None:
    """On a CPU alone, and in a graph that is exported never: it would hold the trunk once for each sensor."""
    model = build(foundation, half=half)
    batch = Batch.stack(mixed())
    passes: list[int] = []
    model.foundation.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    together = model(batch)
    assert len(passes) == 1 + bool(half)
    passes.clear()
    model.together = 0
    alone = model(batch)
    assert passes == [len(batch.images[m]) for m in model.modalities]
    torch.testing.assert_close(alone.logits, together.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.shares, together.shares, rtol=0, atol=1e-6)
    passes.clear()
    torch.export.export(OfImages(model), (images(count=1),))
    assert len(passes) == 1 + bool(half)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["mean", "routed", "mean+routed"])
def test_one_sensors_fused_map_is_its_own_map_exactly(foundation: str, fusion: str) -> None:
    model = build(foundation, fusion=fusion)
    features = model.encode(Batch.of(images(sensors={"thermal": 1})))
    for router, level in zip(model.routers, features.levels, strict=True):
        size = (level.shape[-2], level.shape[-1])
        fused, _ = router(level, size, features.segments, list(features.frames), features.count)
        assert torch.equal(fused, level)


# ---------------------------------------------------------------- what is refused


def test_no_sensor_is_a_clear_error(model: MLESAM) -> None:
    with pytest.raises(RequestError, match="no sensor was given"):
        model({})
    with pytest.raises(RequestError, match="no sensor was given; this model needs at least one of rgb, lidar"):
        model(Batch.of(images()).select([]))
    with pytest.raises(RequestError, match="no sensor is left"):
        model.encode(Batch.of(images())).select([])


def test_an_unknown_sensor_is_answered_with_the_nearest_known_one(model: MLESAM) -> None:
    with pytest.raises(RequestError, match=r"no sensor 'termal'; did you mean 'thermal'\?"):
        model({"termal": torch.rand(1, 1, 64, 64)})
    with pytest.raises(RequestError, match="no sensor 'xyz'; known: rgb, lidar, thermal, cube"):
        model({"xyz": torch.rand(1, 1, 64, 64)})


def test_sensors_of_different_sizes_are_refused_with_both_sizes(model: MLESAM) -> None:
    given = {"rgb": torch.rand(1, 3, 64, 96), "thermal": torch.rand(1, 1, 64, 64)}
    with pytest.raises(RequestError, match="thermal is 64x64 pixels, but another sensor is 96x64; align them first"):
        model(given)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64), (1, 4, 64, 64)])
def test_another_shape_than_the_sensor_has_is_refused(model: MLESAM, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"rgb has the shape .*; this model needs \(frames, 3, height, width\)"):
        model({"rgb": torch.rand(shape)})


def test_a_frame_without_any_of_this_models_sensors_is_named(foundation: str) -> None:
    batch = Batch.stack(mixed()).select(["lidar", "cube"])
    with pytest.raises(RequestError, match="frame 'frame1' has none of this model's sensors"):
        build(foundation)(batch)


@pytest.mark.parametrize("name", ["left.rgb", "", "float", "type", "keys", "all"])
def test_a_sensor_name_that_torch_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"a sensor cannot be called {name!r}.*rename it"):
        MLESAM({"rgb": 3, name: 1}, 2)


def test_a_model_needs_a_sensor_and_two_classes() -> None:
    with pytest.raises(RequestError, match="at least one sensor"):
        MLESAM({}, 2)
    with pytest.raises(RequestError, match="at least 2 classes, not 1"):
        MLESAM({"rgb": 3}, 1)


# ---------------------------------------------------------------- any size


@torch.no_grad()
@pytest.mark.parametrize("size", [(250, 333), (33, 65), (32, 32), (64, 200), (200, 64), (1, 1), (31, 96)])
def test_logits_come_back_at_the_inputs_size_and_finite(model: MLESAM, size: tuple[int, int]) -> None:
    output = model(images(1, size, {"rgb": 3, "cube": 12}))
    assert output.logits.shape == (1, CLASSES, *size)
    assert output.logits.isfinite().all()
    assert output.logits.dtype == torch.float32


@torch.no_grad()
def test_padding_is_added_at_the_far_edges_and_cut_off_again(foundation: str) -> None:
    model = build(foundation, {"rgb": 3}, fusion="mean")
    small = images(1, (33, 65), {"rgb": 3})
    padded = {"rgb": nn.functional.pad(small["rgb"], (0, 96 - 65, 0, 64 - 33))}
    assert torch.equal(model(small).logits, model(padded).logits[..., :33, :65])


@torch.no_grad()
def test_the_weights_of_a_frame_do_not_depend_on_how_much_padding_it_needs(model: MLESAM) -> None:
    """The padding's own map is not part of the average the router judges by."""
    pair = {m: x for m, x in images(1, (36, 68)).items() if m in ("rgb", "lidar")}
    features = model.encode(Batch.of(pair))
    for level, stride in zip(features.levels, (4, 8, 16), strict=True):
        level[..., math.ceil(36 / stride) :, :] = 1e4
        level[..., math.ceil(68 / stride) :] = 1e4
    torch.testing.assert_close(model.decode(features).shares, model(pair).shares)


# ---------------------------------------------------------------- heads


@torch.no_grad()
def test_the_combine_options_are_what_they_say(foundation: str) -> None:
    given = images()
    outputs = {c: build(foundation, combine=c)(given) for c in ("logits", "probabilities", "mask", "pyramid")}
    mask, pyramid = outputs["logits"].mask_logits, outputs["logits"].pyramid_logits
    assert not torch.allclose(mask, pyramid, atol=1e-2)
    assert torch.equal(outputs["mask"].combined, mask)
    assert torch.equal(outputs["pyramid"].combined, pyramid)
    torch.testing.assert_close(outputs["logits"].combined, (mask + pyramid) / 2)
    average = (mask.softmax(dim=1) + pyramid.softmax(dim=1)) / 2
    torch.testing.assert_close(outputs["probabilities"].combined.softmax(dim=1), average)
    torch.testing.assert_close(outputs["probabilities"].combined.exp(), average)


@torch.no_grad()
def test_extreme_logits_stay_finite_when_probabilities_are_averaged(model: MLESAM) -> None:
    output = model(images(1))
    extreme = torch.tensor([1e4, -1e4, 0.0, 5.0]).reshape(1, 4, 1, 1)
    combined = type(output)(extreme, extreme, output.shares, (4, 4), "probabilities").combined
    assert combined.isfinite().all()
    assert combined[0, 0].item() == pytest.approx(0.0, abs=1e-6)


def test_the_pyramid_width_is_the_necks_unless_it_is_chosen(foundation: str) -> None:
    assert build(foundation).pyramid_head.classify.in_features == 128
    assert build(foundation, pyramid_width=24).pyramid_head.classify.in_features == 24


# ---------------------------------------------------------------- stems


def test_a_stem_begins_as_an_average_over_thirds_of_the_channels() -> None:
    one = torch.rand(2, 1, 5, 4)
    torch.testing.assert_close(Stem(1)(one), one.expand(2, 3, 5, 4))
    cube = torch.rand(2, 12, 5, 4)
    thirds = torch.stack([cube[:, i : i + 4].mean(dim=1) for i in (0, 4, 8)], dim=1)
    torch.testing.assert_close(Stem(12)(cube), thirds)
    two = torch.rand(2, 2, 5, 4)
    torch.testing.assert_close(Stem(2)(two), torch.stack([two[:, 0], two.mean(dim=1), two[:, 1]], dim=1))


def test_only_sensors_with_other_than_three_channels_have_a_stem(model: MLESAM) -> None:
    assert set(model.stems) == {"thermal", "cube"}


# ---------------------------------------------------------------- frozen stays frozen


def train_two_steps(model: MLESAM, given: Batch | dict[str, Tensor]) -> tuple[set[str], torch.optim.Optimizer]:
    """Names of the tensors that had a gradient beyond rounding, and the optimiser. In float64, to tell the two apart."""
    model.double().train()
    optimizer = make_optimizer(model, TrainingConfig())
    batch = given if isinstance(given, Batch) else Batch.of(given)
    batch = dataclasses.replace(batch, images={m: x.double() for m, x in batch.images.items()})
    labels = torch.randint(0, CLASSES, (len(batch), *batch.size))
    moved: set[str] = set()
    for _ in range(2):
        output = model(batch)
        heads = [output.at_input_size(x) for x in (output.mask_logits, output.pyramid_logits)]
        sum(ohem_cross_entropy(x, labels) for x in heads).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        moved |= {n for n, gradient in gradients.items() if gradient.abs().max() > 1e-12}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return moved, optimizer


def is_key_bias(name: str) -> bool:
    """A bias of the key shifts all scores of a query alike, which no softmax sees: its gradient is zero by nature."""
    return name.endswith(".k_proj.bias")


@pytest.mark.parametrize("decoder", ["train", "freeze"])
@pytest.mark.parametrize("train", ["experts", "all"])
def test_every_trainable_tensor_has_a_gradient_within_two_steps_and_no_frozen_one_ever(
    foundation: str, tmp_path: Path, train: str, decoder: str
) -> None:
    model = build(foundation, trained=False, train=train, mask_decoder=decoder)
    everything = {n for n, _ in model.named_parameters()}
    frozen = {n for n in everything if n.startswith("foundation.")} if train == "experts" else set()
    frozen |= {n for n in everything if n.startswith("reliability.")}  # learned after the training
    if decoder == "freeze":
        own = ("mask_head.mask_tokens.", "mask_head.hypernetworks.")
        frozen |= {n for n in everything if n.startswith("mask_head.") and not n.startswith(own)}
    trainable = everything - frozen
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable

    before = {n: p.double() for n, p in model.state_dict().items()}
    moved, optimizer = train_two_steps(model, Batch.stack(mixed((64, 64))))
    assert moved == {n for n in trainable if not is_key_bias(n)}
    assert {n for n, p in model.named_parameters() if optimizer.state.get(p)} == trainable
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved <= changed <= trainable

    save_weights(model, tmp_path / "model.safetensors", {})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    assert saved >= trainable
    assert any(n.startswith("foundation.") for n in saved) == (train == "all")
    assert {n for n in saved if n.startswith("mask_head.")} == {n for n in before if n.startswith("mask_head.")}


def test_in_the_first_step_a_fresh_expert_learns_only_its_b(foundation: str) -> None:
    model = build(foundation, {"rgb": 3}, trained=False)
    model(images(1, (64, 64), {"rgb": 3})).logits.square().mean().backward()
    for name, parameter in model.experts.named_parameters():
        assert bool((parameter.grad != 0).any()) == name.endswith(".b")


def test_training_depth_alone_leaves_every_tensor_of_rgb_untouched(foundation: str) -> None:
    model = build(foundation, {"rgb": 3, "depth": 1, "cube": 12})
    before = {n: p.double() for n, p in model.state_dict().items()}
    moved, optimizer = train_two_steps(model, images(2, (64, 64), {"depth": 1}))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    for modality in ("rgb", "cube"):
        own = [n for n in before if f".{modality}." in n]
        assert any(n.startswith("experts.") for n in own)
        assert any(".scorers." in n for n in own)
        assert not [n for n in own if n in moved or n in changed]
        assert not [p for n, p in model.named_parameters() if n in own and optimizer.state.get(p)]
    assert any(n.startswith("experts.depth.") for n in changed)
    assert any(n.startswith("stems.depth.") for n in changed)


def test_a_frozen_foundation_stays_in_evaluation_mode(foundation: str) -> None:
    frozen, trained = build(foundation).train(), build(foundation, train="all").train()
    assert frozen.mask_head.training
    assert not any(m.training for m in frozen.foundation.modules())
    assert all(m.training for m in trained.foundation.modules())


def test_rank_zero_means_no_experts_and_the_frozen_trunk_itself(foundation: str) -> None:
    model = build(foundation, rank=0)
    assert len(model.experts) == 0
    given = images(1, (64, 64), {"rgb": 3})
    with torch.no_grad():
        frozen = model.foundation(given["rgb"])
        for ours, own in zip(model.encode(Batch.of(given)).levels, frozen, strict=True):
            assert torch.equal(ours, own)
    moved, _ = train_two_steps(model, images(2, (64, 64)))
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad and not is_key_bias(n)}


def test_a_fresh_model_sees_each_sensor_as_the_frozen_foundation_does(foundation: str) -> None:
    model = build(foundation, trained=False)
    given = images(2, (64, 96), {"rgb": 3, "lidar": 3})
    with torch.no_grad():
        features = model.encode(Batch.of(given))
        frozen = model.foundation(torch.cat([given["rgb"], given["lidar"]]))
    for ours, own in zip(features.levels, frozen, strict=True):
        assert torch.equal(ours, own)


def test_the_parameter_summary_counts_what_is_trained(foundation: str) -> None:
    model = build(foundation)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    still = (*model.foundation.parameters(), *model.reliability.parameters())
    total = trainable + sum(p.numel() for p in still)
    assert model.parameter_summary() == f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.1%})"
    per_sensor = {m: sum(p.numel() for p in e.parameters()) for m, e in model.experts.items()}
    assert len(set(per_sensor.values())) == 1


# ---------------------------------------------------------------- a plain module


@torch.no_grad()
def test_the_same_seed_builds_the_same_model_and_gives_the_same_numbers() -> None:
    given = images(1, (64, 64))
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(MLESAM(SENSORS, CLASSES, ModelConfig("nano-random", rank=4), seed=seed).eval())
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["experts.rgb.blocks.0.q.a"], states[2]["experts.rgb.blocks.0.q.a"])
    assert not torch.equal(states[0]["foundation.neck.convs.0.weight"], states[2]["foundation.neck.convs.0.weight"])
    assert torch.equal(models[0](given).logits, models[1](given).logits)
    assert torch.equal(models[0](given).logits, models[0](given).logits)


@torch.no_grad()
def test_a_deep_copy_and_a_state_dict_carry_the_whole_model(model: MLESAM, foundation: str) -> None:
    given = images(1)
    expected = model(given).logits
    twin = copy.deepcopy(model)
    other = build(foundation, trained=False)
    assert not torch.equal(other(given).logits, expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(twin(given).logits, expected)
    assert torch.equal(other(given).logits, expected)
    next(twin.mask_head.parameters()).add_(1.0)
    assert torch.equal(model(given).logits, expected), "a copy shares nothing"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_is_a_plain_module_that_can_be_converted(model: MLESAM, dtype: torch.dtype) -> None:
    assert isinstance(model, nn.Module)
    given = images(1, (64, 64))
    converted = copy.deepcopy(model).to(dtype)
    output = converted({m: x.to(dtype) for m, x in given.items()})
    expected = model(given)
    assert output.mask_logits.dtype == dtype
    tolerance = {torch.float64: 1e-4, torch.bfloat16: 0.1}[dtype] * expected.logits.std().item()
    assert (output.logits - expected.logits).abs().mean() < tolerance


@torch.no_grad()
def test_under_bf16_autocast_the_shares_stay_exact_for_one_sensor(model: MLESAM) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images(1, (64, 64), {"cube": 12}))
    assert torch.equal(output.shares[0, :, 3], torch.ones(3))
    assert output.logits.dtype == torch.float32
    assert output.logits.isfinite().all()


# ---------------------------------------------------------------- half the resolution


def halved(*sensors: str) -> MLESAM:
    torch.manual_seed(0)
    model = MLESAM({"rgb": 3, "depth": 1, "lidar": 3}, CLASSES, ModelConfig(rank=4, half=sensors)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b") or name.startswith("aligners."):
                nn.init.normal_(parameter, std=0.05)
    return model


@torch.inference_mode()
def test_a_sensor_at_half_size_gives_what_its_smaller_picture_would() -> None:
    model, plain = halved("lidar"), halved()
    images = {
        "rgb": torch.randn(2, 3, 64, 128),
        "depth": torch.randn(2, 1, 64, 128),
        "lidar": torch.randn(2, 3, 64, 128),
    }
    levels = model.encode(Batch.of(images)).levels
    whole = plain.encode(Batch.of({m: images[m] for m in ("rgb", "depth")})).levels
    small = plain.encode(Batch.of({"lidar": nn.functional.avg_pool2d(images["lidar"], 2)})).levels
    for level, one, two in zip(levels, whole, small, strict=True):
        torch.testing.assert_close(level[:4], one, atol=1e-5, rtol=0)
        grown = nn.functional.interpolate(two, scale_factor=2.0, mode="bilinear", align_corners=False)
        torch.testing.assert_close(level[4:], grown, atol=1e-5, rtol=0)
    before = model(images).logits
    torch.testing.assert_close(model.merge()(images).logits, before, atol=1e-4, rtol=0)
    model.unmerge()
    assert model({"lidar": images["lidar"][..., :31, :70]}).logits.shape == (2, CLASSES, 31, 70)
    mixed = Batch.stack(
        [Sample({m: x[0] for m, x in images.items()}, id="a"), Sample({"lidar": images["lidar"][1]}, id="b")]
    )
    together = model(mixed)
    alone = model({"lidar": images["lidar"][1:]})
    torch.testing.assert_close(together.logits[1:], alone.logits, atol=1e-5, rtol=0)


def test_what_is_halved_is_named_and_trained() -> None:
    with pytest.raises(RequestError, match=r"model\.half names 'lidr'; did you mean 'lidar'"):
        halved("lidr")
    model = halved("lidar", "rgb").train()
    model({m: torch.randn(1, c, 64, 64) for m, c in model.channels.items()}).logits.square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and n.startswith("experts."))
