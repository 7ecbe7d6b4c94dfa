"""LoRA experts: what they add, where, and how many numbers they have. PEFT is the oracle."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers import Sam2Model

from mlesam import MLESAM, ModelConfig
from mlesam.errors import RequestError
from mlesam.model.experts import Expert, Experts, LowRank, Segment, scale, targets
from mlesam.model.foundation import PROJECTIONS
from mlesam.model.sam2 import Sam2Foundation, preset_config
from mlesam.sample import Batch


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
    torch.testing.assert_close(triple(x), x @ triple.matrix().T)


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
    ours = {name: add(0, name, x, y) for name, y in frozen.items()}
    for modality, rows in (("rgb", slice(0, 4)), ("depth", slice(4, 6))):
        adapted.set_adapter(modality)
        with torch.no_grad():
            theirs = adapted(x[rows])
        for name in "qkv":
            torch.testing.assert_close(ours[name][rows], theirs[name], atol=1e-5, rtol=1e-5)
            changed = (ours[name][rows] - frozen[name][rows]).abs().max()
            assert changed > 0.1 if name in chosen else changed == 0, "what is no target stays as it is"


def test_an_expert_changes_no_row_of_another_sensor() -> None:
    experts = random_experts(square(6), "rgb", "depth", "lidar", rank=3)
    add = experts.on((Segment("rgb", 0, 1), Segment("depth", 1, 3), Segment("lidar", 3, 4)))
    x, y = torch.randn(4, 2, 2, 6), torch.randn(4, 2, 2, 6)
    before = add(0, "q", x, y)
    update = experts.of("depth").update(0, "q")
    assert update is not None
    nn.init.normal_(update.b)
    after = add(0, "q", x, y)
    assert torch.equal(before[[0, 3]], after[[0, 3]])
    assert (before[1:3] != after[1:3]).all()


def test_a_shared_expert_treats_all_rows_alike_and_costs_one() -> None:
    shared = random_experts(square(6), "rgb", "depth", rank=3, experts="shared")
    each = random_experts(square(6), "rgb", "depth", rank=3)
    count = lambda e: sum(p.numel() for p in e.parameters())  # noqa: E731
    assert 2 * count(shared) == count(each)
    x, y = torch.randn(2, 2, 2, 6), torch.randn(2, 2, 2, 6)
    two = shared.on((Segment("rgb", 0, 1), Segment("depth", 1, 2)))(0, "q", x, y)
    one = shared.on((Segment("depth", 0, 2),))(0, "q", x, y)
    assert torch.equal(two, one)
    assert not torch.equal(two, y)


def test_the_frozen_projections_are_not_written_into() -> None:
    add = random_experts(square(6), "rgb", rank=3).on((Segment("rgb", 0, 2),))
    x, y = torch.randn(2, 2, 2, 6), torch.randn(2, 2, 2, 6)
    copy = y.clone()
    add(0, "v", x, y)
    assert torch.equal(y, copy)


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


@pytest.mark.parametrize("modality", ["rgb", "depth"])
@pytest.mark.parametrize(
    "config",
    [{}, {"targets": ("q", "k", "v", "proj", "mlp"), "alpha": 8.0}, {"experts": "shared"}],
    ids=["default", "everywhere", "shared"],
)
@torch.inference_mode()
def test_a_merged_expert_gives_the_same_logits_without_any_expert(config: dict, modality: str) -> None:
    model = trained(**config)
    one = {modality: INPUTS[modality]}
    before, both = model(one).logits, model(INPUTS).logits
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge(modality)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, state[n])]
    assert changed
    assert all(n.startswith("foundation.trunk.") for n in changed)
    for parameter in model.experts.parameters():
        parameter.fill_(float("nan"))  # whoever still read them would show it
    torch.testing.assert_close(model(one).logits, before, atol=1e-5, rtol=1e-5)
    model.unmerge()
    model.experts.load_state_dict({n.removeprefix("experts."): t for n, t in state.items() if n.startswith("experts.")})
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items()), "unmerged bit for bit"
    assert torch.equal(model(INPUTS).logits, both)


@torch.inference_mode()
def test_a_merged_model_says_what_it_cannot_do() -> None:
    model = trained().merge("depth")
    with pytest.raises(
        RequestError, match=r"expert of depth is merged into the trunk.*call unmerge\(\) to use rgb, depth"
    ):
        model(INPUTS)
    with pytest.raises(RequestError, match="call unmerge"):
        model.train()
    with pytest.raises(RequestError, match="merged already"):
        model.merge("rgb")
    with pytest.raises(RequestError, match="did you mean 'rgb'"):
        trained().merge("rbg")
    shared = trained(experts="shared").merge("rgb")
    assert shared(Batch.of(INPUTS)).logits.shape == (1, 3, 64, 96), "one expert for all: any sensor may come"


def test_without_experts_there_is_nothing_to_merge_and_nothing_changes() -> None:
    model = trained(rank=0)
    with torch.inference_mode():
        before = model({"rgb": INPUTS["rgb"]}).logits
        assert torch.equal(model.merge("rgb")({"rgb": INPUTS["rgb"]}).logits, before)
