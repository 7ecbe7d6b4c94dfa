"""LoRA experts: what they add, where, and how many numbers they have. PEFT is the oracle."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers import Sam2Model

from mlesam.model.experts import Expert, LowRank, Segment, add_experts
from mlesam.model.foundation import preset_config


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trunk_widths(preset: str) -> list[tuple[int, int]]:
    with torch.device("meta"):
        trunk = Sam2Model(preset_config(preset)).vision_encoder.backbone
    return [(block.attn.qkv.in_features, block.attn.qkv.out_features // 3) for block in trunk.blocks]


def random_experts(widths: list[tuple[int, int]], rank: int, scale: float, *modalities: str) -> nn.ModuleDict:
    torch.manual_seed(2)
    experts = nn.ModuleDict({m: Expert(widths, rank, scale) for m in modalities}).requires_grad_(False)
    for name, parameter in experts.named_parameters():
        if name.endswith(".b"):
            nn.init.normal_(parameter)
    return experts


def test_a_rank_32_expert_for_base_plus_has_1326080_parameters() -> None:
    expert = Expert(trunk_widths("base_plus"), rank=32)
    assert sum(p.numel() for p in expert.parameters()) == 1_326_080


@pytest.mark.parametrize("preset", ["nano", "tiny", "base_plus", "large"])
def test_where_the_trunk_doubles_its_width_the_update_has_the_doubled_width(preset: str) -> None:
    widths = trunk_widths(preset)
    expert = Expert(widths, rank=2)
    assert sum(out == 2 * dim for dim, out in widths) == 3, "three stage transitions"
    for (dim, out), query, value in zip(widths, expert.query, expert.value, strict=True):
        assert query(torch.zeros(1, dim)).shape == (1, out)
        assert value(torch.zeros(1, dim)).shape == (1, out)


def test_a_fresh_expert_adds_exactly_zero_but_is_ready_to_learn() -> None:
    update = LowRank(400, 24, rank=8, scale=1.0)
    assert torch.equal(update(torch.randn(5, 400)), torch.zeros(5, 24))
    bound = 400**-0.5  # Kaiming-uniform with a = sqrt(5), as LoRA and PEFT draw A
    assert update.a.abs().max() <= bound
    assert update.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


class PlainAttention(nn.Module):
    """Query, key and value as three projections, which is what PEFT can adapt one by one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, out), nn.Linear(width, out), nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.q(x), self.k(x), self.v(x)


def test_experts_equal_one_peft_adapter_per_sensor_on_query_and_value() -> None:
    rank, scale, width, out = 4, 0.5, 12, 24
    experts = random_experts([(width, out)], rank, scale, "rgb", "depth")
    torch.manual_seed(3)
    plain = PlainAttention(width, out)
    config = peft.LoraConfig(r=rank, lora_alpha=int(scale * rank), target_modules=["q", "v"])
    adapted = peft.get_peft_model(plain, config, adapter_name="rgb")
    adapted.add_adapter("depth", config)
    with torch.no_grad():
        for modality, expert in experts.items():
            for layer, update in ((plain.q, expert.query[0]), (plain.v, expert.value[0])):
                layer.lora_A[modality].weight.copy_(update.a)
                layer.lora_B[modality].weight.copy_(update.b)
    # Two frames with rgb and one with depth; each has become two windows of 3 x 5 tokens.
    x = torch.randn(6, 3, 5, width)
    segments = (Segment("rgb", 0, 2), Segment("depth", 2, 3))
    with torch.no_grad(), adapted.disable_adapter():
        frozen_query, frozen_key, frozen_value = adapted(x)
    query, value = add_experts(experts, segments, 0, x, frozen_query, frozen_value)
    for modality, rows in (("rgb", slice(0, 4)), ("depth", slice(4, 6))):
        adapted.set_adapter(modality)
        with torch.no_grad():
            peft_query, peft_key, peft_value = adapted(x[rows])
        torch.testing.assert_close(query[rows], peft_query, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value[rows], peft_value, atol=1e-5, rtol=1e-5)
        assert torch.equal(peft_key, frozen_key[rows]), "the key stays as it is"
        assert (query[rows] - frozen_query[rows]).abs().max() > 0.1
        assert (value[rows] - frozen_value[rows]).abs().max() > 0.1


def test_an_expert_changes_no_row_of_another_sensor() -> None:
    experts = random_experts([(6, 6)], 3, 1.0, "rgb", "depth", "lidar")
    segments = (Segment("rgb", 0, 1), Segment("depth", 1, 3), Segment("lidar", 3, 4))
    x, query, value = (torch.randn(4, 2, 2, 6) for _ in range(3))
    before = add_experts(experts, segments, 0, x, query, value)
    nn.init.normal_(experts["depth"].query[0].b)
    nn.init.normal_(experts["depth"].value[0].b)
    after = add_experts(experts, segments, 0, x, query, value)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 3]], new[[0, 3]])
        assert (old[1:3] != new[1:3]).all()


def test_the_frozen_projections_are_not_written_into() -> None:
    experts = random_experts([(6, 6)], 3, 1.0, "rgb")
    x, query, value = (torch.randn(2, 2, 2, 6) for _ in range(3))
    copies = query.clone(), value.clone()
    add_experts(experts, (Segment("rgb", 0, 2),), 0, x, query, value)
    assert torch.equal(query, copies[0])
    assert torch.equal(value, copies[1])


def test_the_scale_multiplies_the_update() -> None:
    single, triple = LowRank(6, 4, 2, scale=1.0), LowRank(6, 4, 2, scale=3.0)
    nn.init.normal_(single.b)
    triple.load_state_dict(single.state_dict())
    x = torch.randn(5, 6)
    torch.testing.assert_close(triple(x), 3 * (x @ single.a.T @ single.b.T))
