"""LoRA experts: what they add, where, and how many numbers they have. PEFT is the oracle."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import Sam2Model

from mlesam import MLESAM, ModelConfig
from mlesam.errors import RequestError
from mlesam.model.experts import Expert, Experts, LowRank, Segment, folded, scale, targets
from mlesam.model.foundation import PROJECTIONS
from mlesam.model.merged import picked
from mlesam.model.sam2 import Sam2Foundation, preset_config


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def projections(preset: str) -> list[dict[str, tuple[int, int]]]:
    with torch.device("meta"):
        return Sam2Foundation(Sam2Model(preset_config(preset)), preset).projections


def random_experts(widths: list[dict[str, tuple[int, int]]], *modalities: str, **config) -> Experts:
    torch.manual_seed(2)
    experts = Experts(modalities, widths, ModelConfig(**config)).requires_grad_(False)
    for name, parameter in experts.named_parameters():
        if name.endswith(".b"):
            nn.init.normal_(parameter)
    return experts


def square(width: int, out: int | None = None) -> list[dict[str, tuple[int, int]]]:
    """One block whose projections all have the same widths."""
    return [dict.fromkeys(PROJECTIONS, (width, out or width))]


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("chosen", "parameters"),
    [
        (("q", "v"), 1_326_080),
        (("q", "k", "v"), 1_989_120),
    ],
)
def test_the_parameters_of_a_rank_32_expert_for_base_plus(chosen: tuple[str, ...], parameters: int) -> None:
    expert = Expert(projections("base_plus"), chosen, rank=32)
    assert sum(p.numel() for p in expert.parameters()) == parameters


@pytest.mark.parametrize("preset", ["nano", "tiny", "small", "base_plus", "large"])
def test_updates_have_the_widths_of_the_trunks_projections(preset: str) -> None:
    widths = projections(preset)
    with torch.device("meta"):
        trunk = Sam2Model(preset_config(preset)).vision_encoder.backbone
    assert sum(block["q"][1] == 2 * block["q"][0] for block in widths) == 3, "three stage transitions"
    for block, own in zip(trunk.blocks, widths, strict=True):
        qkv, proj = block.attn.qkv, block.attn.proj
        assert own["q"] == own["k"] == own["v"] == (qkv.in_features, qkv.out_features // 3)
        assert own["proj"] == (proj.in_features, proj.out_features)
        assert own["mlp_in"] == (block.mlp.proj_in.in_features, block.mlp.proj_in.out_features)
        assert own["mlp_out"] == (block.mlp.proj_out.in_features, block.mlp.proj_out.out_features)


def test_mlp_stands_for_both_of_its_projections() -> None:
    assert targets(ModelConfig(targets=("v", "mlp"))) == ("v", "mlp_in", "mlp_out")
    expert = Expert(square(8), targets(ModelConfig(targets=("v", "mlp"))), rank=2)
    assert expert.update(0, "mlp_out") is not None
    assert expert.update(0, "q") is None


# ---------------------------------------------------------------- one update


def test_a_fresh_update_adds_exactly_zero_but_is_ready_to_learn() -> None:
    update = LowRank(400, 24, rank=8)
    assert torch.equal(update(torch.randn(5, 400)), torch.zeros(5, 24))
    bound = 400**-0.5  # Kaiming-uniform with a = sqrt(5), as LoRA and PEFT draw A
    assert update.a.abs().max() <= bound
    assert update.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_scale_multiplies_the_update() -> None:
    single, triple = LowRank(6, 4, 2), LowRank(6, 4, 2, scale=3.0)
    nn.init.normal_(single.b)
    triple.load_state_dict(single.state_dict())
    x = torch.randn(5, 6)
    torch.testing.assert_close(triple(x), 3 * (x @ single.a.T @ single.b.T))
    torch.testing.assert_close(triple(x), x @ folded(torch.zeros(4, 6), [triple])[0])


@pytest.mark.parametrize(("alpha", "rslora"), [(8.0, False), (8.0, True), (3.0, False)])
def test_the_scale_is_that_of_peft(alpha: float, rslora: bool) -> None:
    layer = nn.Linear(6, 6)
    config = peft.LoraConfig(r=4, lora_alpha=int(alpha), use_rslora=rslora, target_modules=["0"])
    peft.get_peft_model(wrapped := nn.Sequential(layer), config)
    ours = scale(ModelConfig(rank=4, alpha=alpha, rslora=rslora))
    assert ours == pytest.approx(wrapped[0].scaling["default"])
    assert scale(ModelConfig(rank=4)) == 1.0


def test_dropout_leaves_inputs_out_in_training_alone_and_keeps_the_mean() -> None:
    update = LowRank(1, 1, 1, dropout=0.25)
    with torch.no_grad():
        update.a.fill_(1.0)
        update.b.fill_(1.0)
    x = torch.ones(20_000, 1)
    assert torch.equal(update.eval()(x), x)
    out = update.train()(x)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 4 / 3]))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


# ---------------------------------------------------------------- many rows


class PlainAttention(nn.Module):
    """Query, key and value as three projections, which is what PEFT can adapt one by one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, out), nn.Linear(width, out), nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"q": self.q(x), "k": self.k(x), "v": self.v(x)}


@pytest.mark.parametrize("chosen", [("q", "v"), ("q", "k", "v")])
def test_experts_equal_one_peft_adapter_per_sensor(chosen: tuple[str, ...]) -> None:
    rank, width, out = 4, 12, 24
    experts = random_experts(square(width, out), "rgb", "depth", rank=rank, alpha=2.0, targets=chosen)
    torch.manual_seed(3)
    plain = PlainAttention(width, out)
    config = peft.LoraConfig(r=rank, lora_alpha=2, target_modules=list(chosen))
    adapted = peft.get_peft_model(plain, config, adapter_name="rgb")
    adapted.add_adapter("depth", config)
    with torch.no_grad():
        for modality in ("rgb", "depth"):
            for name in chosen:
                update, layer = experts.of(modality).update(0, name), getattr(plain, name)
                assert update is not None
                layer.lora_A[modality].weight.copy_(update.a)
                layer.lora_B[modality].weight.copy_(update.b)
    # Two frames with rgb and one with depth; each has become two windows of 3 x 5 tokens.
    x = torch.randn(6, 3, 5, width)
    with torch.no_grad(), adapted.disable_adapter():
        frozen = adapted(x)
    add = experts.on((Segment("rgb", 0, 2), Segment("depth", 2, 3)))
    layers = [getattr(plain, name) for name in "qkv"]
    weight, bias = (torch.cat([getattr(layer, part) for layer in layers]) for part in ("weight", "bias"))
    with torch.no_grad():
        ours = dict(zip("qkv", add(0, ("q", "k", "v"), x, weight, bias), strict=True))
    for modality, rows in (("rgb", slice(0, 4)), ("depth", slice(4, 6))):
        adapted.set_adapter(modality)
        with torch.no_grad():
            theirs = adapted(x[rows])
        for name in "qkv":
            torch.testing.assert_close(ours[name][rows], theirs[name], atol=1e-5, rtol=1e-5)
            changed = (ours[name][rows] - frozen[name][rows]).abs().max()
            assert changed > 0.1 if name in chosen else changed == 0, "what is no target stays as it is"


WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))


def test_an_expert_changes_no_row_of_another_sensor() -> None:
    experts = random_experts(square(6), "rgb", "depth", "lidar", rank=3)
    for rows in ((1, 1, 1), (1, 2, 1)):  # as many of each sensor, or not
        stops = np.cumsum(rows).tolist()
        add = experts.on(
            tuple(Segment(m, s - n, s) for m, n, s in zip(("rgb", "depth", "lidar"), rows, stops, strict=True))
        )
        x = torch.randn(sum(rows), 2, 2, 6)
        (before,) = add(0, ("q",), x, WEIGHT, None)
        update = experts.of("depth").update(0, "q")
        assert update is not None
        nn.init.normal_(update.b)
        (after,) = add(0, ("q",), x, WEIGHT, None)
        assert torch.equal(before[[0, -1]], after[[0, -1]])
        assert (before[1:-1] != after[1:-1]).all()


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_one_batched_product_equals_each_sensor_by_itself(alpha: float | None) -> None:
    """With gradients: sensors with as many rows go together, and each of them would have given the same alone."""
    experts = random_experts(square(6, 10), "rgb", "depth", "lidar", rank=3, alpha=alpha).requires_grad_(True)
    x, weight, bias = torch.randn(6, 3, 2, 6), torch.randn(30, 6), torch.randn(30)
    segments = tuple(Segment(m, i * 2, i * 2 + 2) for i, m in enumerate(("rgb", "depth", "lidar")))
    results = experts.on(segments)(0, ("q", "k", "v"), x, weight, bias)
    (sum((y * (i + 1)).square().sum() for i, y in enumerate(results))).backward()
    together = {name: p.grad.clone() for name, p in experts.named_parameters() if p.grad is not None}
    experts.zero_grad()
    for segment in segments:
        part = x[segment.start : segment.stop]
        alone = experts.on((Segment(segment.modality, 0, 2),))(0, ("q", "k", "v"), part, weight, bias)
        for y, own in zip(results, alone, strict=True):
            torch.testing.assert_close(y[segment.start : segment.stop], own, rtol=1e-5, atol=1e-5)
        (sum((y * (i + 1)).square().sum() for i, y in enumerate(alone))).backward()
    assert together
    for name, parameter in experts.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-3)


def test_a_shared_expert_treats_all_rows_alike_and_costs_one() -> None:
    shared = random_experts(square(6), "rgb", "depth", rank=3, experts="shared")
    each = random_experts(square(6), "rgb", "depth", rank=3)
    count = lambda e: sum(p.numel() for p in e.parameters())  # noqa: E731
    assert 2 * count(shared) == count(each)
    x = torch.randn(2, 2, 2, 6)
    (two,) = shared.on((Segment("rgb", 0, 1), Segment("depth", 1, 2)))(0, ("q",), x, WEIGHT, None)
    (one,) = shared.on((Segment("depth", 0, 2),))(0, ("q",), x, WEIGHT, None)
    assert torch.equal(two, one)
    assert not torch.equal(two, x @ WEIGHT.T)


# ---------------------------------------------------------------- merging


def trained(**config) -> MLESAM:
    """A model whose experts have learned something."""
    model = MLESAM({"rgb": 3, "depth": 1}, 3, ModelConfig(**{"rank": 4, **config})).eval()
    with torch.no_grad():
        for name, parameter in model.experts.named_parameters():
            if name.endswith(".b"):
                nn.init.normal_(parameter, std=0.02)
    return model


INPUTS = {"rgb": torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96), "depth": torch.rand(1, 1, 64, 96)}


@pytest.mark.parametrize(
    "config",
    [{}, {"targets": ("q", "k", "v", "proj", "mlp"), "alpha": 8.0}, {"experts": "shared"}, {"align": False}],
    ids=["default", "everywhere", "shared", "not aligned"],
)
@torch.inference_mode()
def test_merged_experts_give_the_same_logits_without_any_expert(config: dict) -> None:
    model = trained(**config)
    for aligner in model.aligners.parameters():
        nn.init.normal_(aligner, std=0.05)
    given = [INPUTS, *({m: x} for m, x in INPUTS.items())]
    before = [model(inputs).logits for inputs in given]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge()
    assert model.state_dict().keys() == state.keys(), "what is merged is in no checkpoint"
    own = [*model.experts.parameters(), *model.aligners.parameters()]
    for parameter in own:
        parameter.fill_(float("nan"))  # whoever still read them would show it
    for inputs, logits in zip(given, before, strict=True):
        torch.testing.assert_close(model(inputs).logits, logits, atol=1e-5, rtol=1e-5)
    model.unmerge().load_state_dict(state)
    assert all(torch.equal(model(inputs).logits, logits) for inputs, logits in zip(given, before, strict=True))


def test_of_merged_weights_any_two_sensors_are_a_view() -> None:
    stacked = torch.randn(4, 3, 5)
    for count in range(1, 5):
        for chosen in combinations(range(4), count):
            found = picked(stacked, list(chosen))
            assert torch.equal(found, stacked[list(chosen)])
            moved = found.untyped_storage().data_ptr() != stacked.untyped_storage().data_ptr()
            assert moved == (chosen in ((0, 1, 3), (0, 2, 3)))


def test_a_merged_model_is_not_trained() -> None:
    model = trained().merge()
    with pytest.raises(RequestError, match="call unmerge"):
        model.train()
    assert model.unmerge().train().training


def test_without_experts_there_is_nothing_to_merge_and_nothing_changes() -> None:
    model = trained(rank=0, align=False)
    with torch.inference_mode():
        before = model({"rgb": INPUTS["rgb"]}).logits
        assert torch.equal(model.merge()({"rgb": INPUTS["rgb"]}).logits, before)
