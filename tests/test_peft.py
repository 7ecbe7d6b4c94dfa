"""Experts as PEFT adapters and back. PEFT itself loads them onto the trunk of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

from mlesam import MLESAM, ModelConfig
from mlesam.errors import DataError, RequestError
from mlesam.model.experts import Segment
from mlesam.model.peft import load_peft, save_peft
from mlesam.model.sam2 import NANO, preset_config

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers
EVERYWHERE = ("q", "k", "v", "proj", "mlp")


def model(trained: bool = True, **config) -> MLESAM:
    torch.manual_seed(1)
    made = MLESAM({"rgb": 3, "depth": 1}, 3, ModelConfig(**{"rank": 4, **config})).eval().requires_grad_(False)
    for name, parameter in made.experts.named_parameters():
        if trained and name.endswith(".b"):
            nn.init.normal_(parameter, std=0.05)
    return made


def vision() -> Sam2VisionModel:
    """The trunk and neck of nano, as a user of `transformers` would hold them."""
    wanted = Sam2Model.from_pretrained(NANO, dtype=torch.float32).vision_encoder.state_dict()
    made = Sam2VisionModel(preset_config("nano").vision_config)
    made.load_state_dict(wanted)
    return made.eval()


IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"alpha": 3.0},
        {"alpha": 8.0, "rslora": True},
        {"targets": ("q", "k", "v")},
        {"targets": ("v", "proj")},
        {"targets": ("mlp",)},
        {"targets": EVERYWHERE, "alpha": 6.0},
        {"experts": "shared"},
    ],
    ids=str,
)
@torch.inference_mode()
def test_peft_loads_an_expert_and_gives_the_same_maps(tmp_path: Path, config: dict) -> None:
    ours = model(**config)
    folder = save_peft(ours, "depth", tmp_path / "depth")
    adapted = peft.PeftModel.from_pretrained(vision(), folder)
    theirs = adapted(IMAGES).fpn_hidden_states
    mine = ours.foundation(IMAGES, ours.experts.on((Segment("depth", 0, 2),)))
    frozen = ours.foundation(IMAGES)
    for a, b, start in zip(mine, theirs, frozen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert (a - start).abs().max() > 0.01, "the expert must change something"


@pytest.mark.parametrize("config", [{}, {"alpha": 3.0}, {"targets": EVERYWHERE, "alpha": 8.0, "rslora": True}], ids=str)
@torch.inference_mode()
def test_an_expert_comes_back_as_it_went(tmp_path: Path, config: dict) -> None:
    folder = save_peft(model(**config), "depth", tmp_path / "depth")
    other = model(trained=False, **config)
    load_peft(other, "depth", folder)
    for (name, mine), (_, theirs) in zip(
        model(**config).experts.of("depth").named_parameters(),
        other.experts.of("depth").named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, msg=name)
    assert not any(p.any() for n, p in other.experts.of("rgb").named_parameters() if n.endswith(".b"))


def trained_by_peft(tmp_path: Path, **config) -> tuple[nn.Module, Path]:
    """What somebody trained with PEFT alone: every B random."""
    torch.manual_seed(4)
    adapted = peft.get_peft_model(vision(), peft.LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(tmp_path / "theirs"))
    return adapted.eval(), tmp_path / "theirs"


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        ({"r": 3, "lora_alpha": 6, "target_modules": ["qkv"]}, ("q", "k", "v")),
        ({"r": 3, "lora_alpha": 6, "use_rslora": True, "target_modules": ["qkv", "attn.proj"]}, ("q", "k", "v", "proj")),
        (
            {
                "r": 2,
                "target_modules": ["qkv", "mlp.proj_in", "mlp.proj_out"],
                "rank_pattern": {"qkv": 4},
                "alpha_pattern": {"qkv": 2},
            },
            ("q", "k", "v", "mlp"),
        ),
    ],
    ids=["qkv", "rslora", "patterns"],
)  # fmt: skip
@torch.inference_mode()
def test_what_peft_trained_becomes_an_expert(tmp_path: Path, config: dict, targets: tuple[str, ...]) -> None:
    with torch.inference_mode(False):
        adapted, folder = trained_by_peft(tmp_path, **config)
    ours = model(trained=False, targets=targets, alpha=8.0)
    load_peft(ours, "rgb", folder)
    mine = ours.foundation(IMAGES, ours.experts.on((Segment("rgb", 0, 2),)))
    for a, b in zip(mine, adapted(IMAGES).fpn_hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_taken_over_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    _, folder = trained_by_peft(tmp_path, r=6, lora_alpha=6, target_modules=["qkv"])
    for config, says in (
        ({"rank": 8}, r"changes k of block 0.*model\.targets \[q, v, k\]"),
        ({"rank": 4, "targets": ("q", "k", "v")}, r"needs rank 6 for q of block 0.*has 4; set model\.rank"),
        ({"rank": 0}, "no experts"),
        ({"foundation": "tiny", "rank": 6, "targets": ("q", "k", "v")}, "belongs to another trunk|none of attn.qkv"),
    ):
        ours = model(**config)
        before = {n: t.clone() for n, t in ours.state_dict().items()}
        with pytest.raises((RequestError, DataError), match=says):
            load_peft(ours, "rgb", folder)
        assert all(torch.equal(t, before[n]) for n, t in ours.state_dict().items())
    with pytest.raises(RequestError, match="did you mean 'rgb'"):
        load_peft(model(), "rbg", folder)


def test_adapters_of_other_kinds_are_refused(tmp_path: Path) -> None:
    _, folder = trained_by_peft(tmp_path, r=2, target_modules=["qkv", "block_is_no_name", "blocks.1.proj"])
    with pytest.raises(DataError, match=r"adapts blocks\.1\.proj"):
        load_peft(model(targets=("q", "k", "v")), "rgb", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, says in (
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(DataError, match=says):
            load_peft(model(), "rgb", folder)
    with pytest.raises(DataError, match="cannot be read"):
        load_peft(model(), "rgb", tmp_path)
    with pytest.raises(RequestError, match="is not empty"):
        save_peft(model(), "rgb", folder)
