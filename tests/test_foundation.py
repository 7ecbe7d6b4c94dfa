"""The frozen SAM2: our loop over the blocks against the one in `transformers`."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import Sam2Model

from mlesam.config import ModelConfig
from mlesam.errors import RequestError
from mlesam.model.experts import Expert, Experts, Segment
from mlesam.model.foundation import Foundation, load_foundation
from mlesam.model.sam2 import NANO, Sam2Foundation, preset_config
from mlesam.training.pretrain import PointPrompted, held_out

SIZES = {"square": (64, 64), "wide": (64, 160), "tall": (192, 96), "smallest": (32, 32)}


def random_sam2(preset: str = "nano", seed: int = 0) -> Sam2Model:
    """A SAM2 in which every tensor is random.

    `transformers` starts positions and biases at zero and norms at one, where a forgotten tensor would not be seen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam2 = Sam2Model(preset_config(preset)).eval().requires_grad_(False)
        for parameter in sam2.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        sam2.vision_encoder.backbone.pos_embed.add_(torch.randn_like(sam2.vision_encoder.backbone.pos_embed))
    return sam2


def experts_for(foundation: Foundation, *modalities: str, fresh: bool = False, **config) -> Experts:
    """Experts for a trunk, with a random B unless they are to be fresh; the factor s is 0.7."""
    torch.manual_seed(1)
    experts = Experts(modalities, foundation.projections, ModelConfig(**{"rank": 4, "alpha": 2.8, **config}))
    if not fresh:
        for name, parameter in experts.named_parameters():
            if name.endswith(".b"):
                nn.init.normal_(parameter, std=0.1)
    return experts.requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["nano", "tiny"])
def sam2(request: pytest.FixtureRequest) -> Sam2Model:
    return random_sam2(request.param)


@pytest.fixture(scope="session")
def nano() -> Sam2Model:
    return random_sam2("nano")


# ---------------------------------------------------------------- zero start


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_fresh_experts_leave_the_trunk_bit_for_bit_as_it_was(sam2: Sam2Model, size: tuple[int, int]) -> None:
    foundation = Sam2Foundation(sam2, "random")
    images = torch.randn(3, 3, *size)
    experts = experts_for(foundation, "rgb", "depth", fresh=True)
    ours = foundation.stages(images, experts.on((Segment("rgb", 0, 2), Segment("depth", 2, 3))))
    frozen = foundation.stages(images)
    assert len(ours) == len(frozen) == 4
    assert all(torch.equal(mine, other) for mine, other in zip(ours, frozen, strict=True))


@pytest.mark.parametrize("size", [*SIZES.values(), (224, 256), (512, 480)])
def test_the_trunk_is_that_of_transformers(sam2: Sam2Model, size: tuple[int, int]) -> None:
    """In double precision: windows that reach beyond the map are not filled up here, which is the same in other steps."""
    double = copy.deepcopy(sam2).double()
    foundation, images = Sam2Foundation(double, "random"), torch.randn(1, 3, *size, dtype=torch.float64)
    assert foundation.trunk.pos_embed.abs().max() > 0.5, "the positions must not be zero, or nobody would miss them"
    theirs = double.vision_encoder.backbone(images).intermediate_hidden_states
    for mine, other in zip(foundation.stages(images), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)


def test_windows_that_reach_beyond_the_map_see_what_they_would_in_transformers() -> None:
    """Whole windows at the start and smaller ones at the end, with the projections' biases as neighbours: no such token, or
    another number of them, would be another result."""
    double = random_sam2("tiny").double()
    foundation, images = Sam2Foundation(double, "random"), torch.randn(1, 3, 256, 320, dtype=torch.float64)
    theirs = double.vision_encoder.backbone(images).intermediate_hidden_states
    for block in double.vision_encoder.backbone.blocks:
        block.attn.qkv.bias.mul_(1.01)
    changed = double.vision_encoder.backbone(images).intermediate_hidden_states
    for mine, other, before in zip(foundation.stages(images), changed, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)
        assert (other - before).abs().max() > 1e-4


@pytest.mark.parametrize("preset", ["small", "base_plus", "large"])
def test_zero_start_holds_for_the_large_presets_with_every_target(preset: str) -> None:
    model = random_sam2(preset)
    foundation = Sam2Foundation(model, "random")
    experts = experts_for(foundation, "rgb", "depth", fresh=True, rank=1, targets=("q", "k", "v", "proj", "mlp"))
    images = torch.randn(2, 3, 64, 32)
    ours = foundation.stages(images, experts.on((Segment("rgb", 0, 1), Segment("depth", 1, 2))))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, foundation.stages(images), strict=True))


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_the_pyramid_is_that_of_transformers(sam2: Sam2Model, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    ours = Sam2Foundation(sam2, "random")(images)
    theirs = sam2.vision_encoder(images).fpn_hidden_states
    assert [tuple(m.shape[-2:]) for m in ours] == [(size[0] // s, size[1] // s) for s in (4, 8, 16)]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- trained experts


def merged(sam2: Sam2Model, expert: Expert) -> nn.Module:
    """The trunk of `transformers` with an expert's B A written into its weights."""
    backbone = copy.deepcopy(sam2.vision_encoder.backbone)
    for index, block in enumerate(backbone.blocks):
        width = block.dim_out
        layers = {
            "q": block.attn.qkv.weight[:width],
            "k": block.attn.qkv.weight[width : 2 * width],
            "v": block.attn.qkv.weight[2 * width :],
            "proj": block.attn.proj.weight,
            "mlp_in": block.mlp.proj_in.weight,
            "mlp_out": block.mlp.proj_out.weight,
        }
        for name, weight in layers.items():
            update = expert.update(index, name)
            if update is not None:
                weight += 0.7 * update.b @ update.a
    return backbone


@pytest.mark.parametrize("experts", ["each", "shared"])
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v"), ("v", "proj"), ("q", "k", "v", "proj", "mlp")])
def test_an_expert_acts_like_merged_weights_and_only_on_its_own_rows(
    sam2: Sam2Model, targets: tuple[str, ...], experts: str
) -> None:
    foundation = Sam2Foundation(sam2, "random")
    own = experts_for(foundation, "rgb", "depth", targets=targets, experts=experts)
    assert set(own) == ({"all"} if experts == "shared" else {"rgb", "depth"})
    images = torch.randn(3, 3, 96, 160)
    ours = foundation.stages(images, own.on((Segment("rgb", 0, 2), Segment("depth", 2, 3))))
    frozen = sam2.vision_encoder.backbone(images).intermediate_hidden_states
    for modality, rows in (("rgb", slice(0, 2)), ("depth", slice(2, 3))):
        theirs = merged(sam2, own.of(modality))(images[rows]).intermediate_hidden_states
        for mine, other, start in zip(ours, theirs, frozen, strict=True):
            torch.testing.assert_close(mine[rows], other, atol=1e-4, rtol=1e-4)
            assert (mine[rows] - start[rows]).abs().max() > 0.01, "the expert must change something"


def test_a_sensor_without_a_trained_expert_is_untouched_by_its_neighbours(nano: Sam2Model) -> None:
    foundation = Sam2Foundation(nano, "random")
    experts = experts_for(foundation, "rgb", "depth")
    for name, parameter in experts.named_parameters():
        if name.startswith("rgb.") and name.endswith(".b"):
            parameter.zero_()
    images = torch.randn(3, 3, 96, 64)
    ours = foundation.stages(images, experts.on((Segment("rgb", 0, 2), Segment("depth", 2, 3))))
    for mine, other in zip(ours, foundation.stages(images), strict=True):
        assert torch.equal(mine[:2], other[:2])
        assert not torch.equal(mine[2:], other[2:])


# ---------------------------------------------------------------- presets and names


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("tiny", 26_849_472, 154),
        ("small", 33_947_328, 202),
        ("base_plus", 68_675_712, 298),
        ("large", 212_149_296, 586),
    ],
)
def test_each_preset_has_the_trunk_that_meta_published(preset: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        trunk = Sam2Model(preset_config(preset)).vision_encoder.backbone
    assert sum(p.numel() for p in trunk.parameters()) == parameters
    assert len(trunk.state_dict()) == tensors


def test_nano_is_small() -> None:
    with torch.device("meta"):
        sam2 = Sam2Model(preset_config("nano"))
    assert sum(p.numel() for p in sam2.vision_encoder.parameters()) < 4_000_000


def test_the_foundation_is_frozen_from_the_start() -> None:
    foundation = load_foundation("nano").foundation
    assert list(foundation.parameters())
    assert not any(p.requires_grad for p in foundation.parameters())


def test_a_preset_is_drawn_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_foundation("nano-random", seed=s).foundation for s in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.sha256 == again.sha256 != other.sha256
    assert "random weights, seed 3" in first.source


def test_nano_comes_pre_trained_and_is_the_same_whatever_the_seed() -> None:
    """Its own decoder finds the object under a point in a picture of a yard that no training ever showed."""
    sam2 = Sam2Model.from_pretrained(NANO, dtype=torch.float32)
    one, other = (load_foundation("nano", seed=s).foundation for s in (0, 1))
    assert one.sha256 == other.sha256
    assert torch.equal(
        one.trunk.patch_embed.projection.weight, sam2.vision_encoder.backbone.patch_embed.projection.weight
    )
    assert sum(p.stat().st_size for p in NANO.iterdir()) < 12_000_000
    stored = json.loads((NANO / "training.json").read_text())["held_out"]
    found = held_out(PointPrompted(sam2), frames=32)
    assert found["iou_best_of_three"] == pytest.approx(stored["iou_best_of_three"], abs=0.08)
    torch.manual_seed(0)
    random = Sam2Model(preset_config("nano"))
    assert found["iou_best_of_three"] > held_out(PointPrompted(random), frames=32)["iou_best_of_three"] + 0.15


def test_positions_of_several_sizes_are_made_once() -> None:
    foundation = load_foundation("nano").foundation
    made, make = [], foundation.trunk._get_pos_embed

    def counted(size: tuple[int, int]) -> torch.Tensor:
        made.append(size)
        return make(size)

    foundation.trunk._get_pos_embed = counted
    for _ in range(3):
        for size in ((16, 16), (8, 8), (16, 8)):
            assert torch.equal(foundation.position_embedding(*size), make(size))
    assert made == [(16, 16), (8, 8), (16, 8)]
    for side in (24, 32, 40, 48, 56):
        foundation.position_embedding(side, side)
    assert len(foundation._positions) == 4, "many sizes do not fill the memory"


@pytest.mark.parametrize("name", ["trunk.blocks.5.attn.qkv.weight", "neck.convs.0.bias", "no_mask", "position"])
def test_the_hash_of_a_foundation_notices_a_single_changed_number(nano: Sam2Model, name: str) -> None:
    foundation = Sam2Foundation(nano, "random")
    before = foundation.sha256
    tensor = foundation.state_dict()[name].flatten()
    kept = tensor[0].clone()
    tensor[0] += 1
    assert foundation.sha256 != before
    tensor[0] = kept
    assert foundation.sha256 == before


@pytest.mark.parametrize(("name", "says"), [("tinny", "did you mean 'tiny'"), ("/no/such/folder", "no preset")])
def test_an_unknown_foundation_is_refused_with_what_is_known(name: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load_foundation(name)
