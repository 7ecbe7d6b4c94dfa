"""Swin as a foundation: the trunk is that of `transformers`, every form of it comes in, and a model is trained on it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinForMaskedImageModeling, SwinModel
from transformers.utils import logging

from mlesam import MLESAM, ModelConfig, Segmenter
from mlesam.checks.weights import check_checkpoint, check_foundation
from mlesam.cli import main
from mlesam.config import load_recipe
from mlesam.doctor import doctor
from mlesam.errors import DataError, RequestError
from mlesam.inference.adapter import export_adapter
from mlesam.model.checkpoints import load_tensors
from mlesam.model.experts import plain
from mlesam.model.foundation import load_foundation
from mlesam.model.peft import load_peft, save_peft
from mlesam.model.run import WEIGHTS
from mlesam.model.swin import SwinFoundation
from mlesam.training.loop import train
from test_mlesam import CLASSES, is_key_bias, train_two_steps

logging.disable_progress_bar()
CONFIG = {
    "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4, "image_size": 64,
}  # fmt: skip


def save_swin(folder: Path, model_class: type = SwinForImageClassification, seed: int = 0, **config) -> Path:
    """A small Swin in which every tensor is random, as ``transformers`` saves it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(SwinConfig(**{**CONFIG, **config}))
        for parameter in model.parameters():
            # The weights of `transformers` are made for loading: so small that every window looks alike.
            parameter.add_(torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1))
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_swin(tmp_path_factory.mktemp("swin") / "swin")


def changed(folder: Path, out: Path, change: Callable[[dict[str, Tensor]], object], **config: object) -> Path:
    """A copy of a folder with other tensors and other fields in its config."""
    shutil.copytree(folder, out)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**fields, **config}))
    return out


# ---------------------------------------------------------------- the trunk


@pytest.mark.parametrize(
    "config",
    [{}, {"window_size": 7}, {"use_absolute_embeddings": True}, {"depths": [2, 2, 2, 2], "drop_path_rate": 0.0}],
    ids=str,
)
@torch.no_grad()
def test_the_trunk_is_that_of_transformers_bit_for_bit_at_any_size(tmp_path: Path, config: dict) -> None:
    folder = save_swin(tmp_path / "swin", **config)
    ours = load_foundation(str(folder)).foundation
    backbone = SwinBackbone.from_pretrained(folder).eval()  # it partitions small images as well, as an image model
    for size in ((64, 64), (32, 32), (64, 160), (192, 32), (64, 64)):
        images = torch.randn(2, 3, *size)
        absolute = {"interpolate_pos_encoding": True} if config.get("use_absolute_embeddings") else {}
        theirs = backbone(images, output_hidden_states=True, **absolute).hidden_states[1:]
        for mine, other in zip(ours.stages(images), theirs, strict=True):
            assert torch.equal(mine, other)


@torch.no_grad()
def test_experts_end_with_their_pass_even_where_it_fails(swin: Path) -> None:
    foundation, images = load_foundation(str(swin)).foundation, torch.randn(1, 3, 64, 64)
    assert isinstance(foundation, SwinFoundation)

    def trunk() -> Tensor:
        return foundation.trunk(images, always_partition=True).last_hidden_state

    def broken(index: int, names: Sequence[str], *given: Any) -> list[Tensor]:
        if "mlp_out" in names:
            raise KeyError(names)
        return [y + 1 for y in plain(index, names, *given)]

    before = trunk()
    foundation(images, lambda *given: [y + 1 for y in plain(*given)])
    assert torch.equal(trunk(), before)
    with pytest.raises(KeyError):
        foundation(images, broken)
    assert torch.equal(trunk(), before)


@pytest.mark.parametrize(
    "model_class", [SwinModel, SwinBackbone, SwinForImageClassification, SwinForMaskedImageModeling]
)
@torch.no_grad()
def test_every_form_of_a_swin_comes_in_as_the_same_foundation(tmp_path: Path, model_class: type) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = SwinModel(SwinConfig(**CONFIG), add_pooling_layer=False)
        trunk.save_pretrained(tmp_path / "trunk")
        extra = {"out_features": ["stage1", "stage2", "stage3", "stage4"]} if model_class is SwinBackbone else {}
        model = model_class(SwinConfig(**CONFIG, **extra))
    (model if model_class is SwinModel else model.swin).load_state_dict(trunk.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "saved")
    wanted, found = (load_foundation(str(tmp_path / name)).foundation for name in ("trunk", "saved"))
    assert found.sha256 == wanted.sha256
    assert all(torch.equal(found.state_dict()[n], t) for n, t in wanted.state_dict().items())


def test_what_the_weights_do_not_bring_is_drawn_from_the_seed(swin: Path) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_foundation(str(swin), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.foundation.sha256 == again.foundation.sha256 == other.foundation.sha256
    for one, two, equal in ((first, again, True), (first, other, False)):
        assert torch.equal(one.foundation.position, two.foundation.position) == equal
        lateral = "neck.laterals.0.1.weight"
        assert torch.equal(one.foundation.state_dict()[lateral], two.foundation.state_dict()[lateral]) == equal
        assert torch.equal(one.decoder.mask_tokens.weight, two.decoder.mask_tokens.weight) == equal


@pytest.mark.parametrize(("embedding", "width"), [(24, 64), (48, 128), (96, 256), (128, 256), (192, 256)])
def test_the_maps_are_as_wide_as_those_of_a_sam2_of_that_size(embedding: int, width: int) -> None:
    with torch.device("meta"):
        trunk = SwinModel(SwinConfig(embed_dim=embedding, num_heads=[1, 2, 4, 8]), add_pooling_layer=False)
        assert SwinFoundation(trunk, "drawn").width == width


# ---------------------------------------------------------------- folders


def test_weights_of_other_tasks_are_ignored_without_a_word(
    swin: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    index = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"  # in the Hub's older files
    spoiled = changed(
        swin,
        tmp_path / "swin",
        lambda w: w.update({index: torch.zeros(16, 16), "classifier.weight": torch.full((2, 192), float("nan"))}),
    )
    capfd.readouterr()
    assert load_foundation(str(spoiled)).foundation.sha256 == load_foundation(str(swin)).foundation.sha256
    assert capfd.readouterr().err == ""


NORM = "swin.embeddings.norm.bias"
MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], dict, str]] = {
    "a missing tensor": (lambda w: w.pop(NORM), {}, r"Swin of its config.json \(missing: embeddings.norm.bias\)"),
    "a tensor of nobody": (lambda w: w.update({"head.weight": torch.zeros(2)}), {}, r"\(unexpected: head.weight\)"),
    "another shape": (lambda w: w.update({NORM: torch.zeros(3)}), {}, r"of another shape: embeddings.norm.bias"),
    "NaN": (lambda w: w[NORM].fill_(torch.nan), {}, r"holds NaN or infinity in trunk.embeddings.norm.bias"),
    "another depth": (lambda w: None, {"depths": [1, 1, 3, 1]}, r"missing: encoder.layers.2.blocks.2"),
    "three stages": (
        lambda w: None,
        {"depths": [1, 1, 2], "num_heads": [1, 2, 4], "out_features": ["stage3"], "out_indices": [3]},
        r"3 stages .* a foundation needs 4, 4 and 3",
    ),
    "other patches": (lambda w: None, {"patch_size": 2}, r"patches of 2 pixels"),
    "no numbers": (lambda w: None, {"depths": "many"}, r"cannot be loaded as a Swin \("),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_folder_is_refused_for(swin: Path, tmp_path: Path, name: str) -> None:
    change, config, says = MISFITS[name]
    with pytest.raises(DataError, match=says) as raised:
        load_foundation(str(changed(swin, tmp_path / "swin", change, **config)))
    assert "\n" not in str(raised.value)


def test_a_config_cannot_name_code(swin: Path, tmp_path: Path) -> None:
    named = {"attn_implementation": "nobody/kernels", "auto_map": {"AutoModel": "evil.Model"}}
    folder = changed(swin, tmp_path / "swin", lambda w: None, **named)
    assert load_foundation(str(folder)).foundation.sha256 == load_foundation(str(swin)).foundation.sha256


# ---------------------------------------------------------------- commands


def test_the_doctor_says_which_swin_it_is(swin: Path) -> None:
    found = check_checkpoint(swin)
    assert found.faults == found.notes == []
    facts = dict(found.facts)
    assert facts["layout"] == "transformers, Swin, width 24, blocks 1, 1, 2, 1, windows of 4"
    assert facts["tensors"] == "102: 98 used, 4 ignored"  # the classifier and the norm behind the last stage
    assert {(g.name, g.used) for g in found.groups} == {
        ("swin.embeddings", True), ("swin.encoder", True), ("swin.layernorm", False), ("classifier", False),
    }  # fmt: skip
    assert check_foundation(str(swin)).facts == found.facts


@pytest.mark.parametrize("name", MISFITS)
def test_the_doctor_finds_what_loading_would_refuse(swin: Path, tmp_path: Path, name: str) -> None:
    change, config, _ = MISFITS[name]
    found = check_checkpoint(changed(swin, tmp_path / "swin", change, **config))
    assert found.faults
    assert not [fault for fault in found.faults if "SAM2" in fault]


def test_commands_for_sam2_alone_say_so(swin: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"and .*swin is a Swin Transformer, .*; give a SAM2"):
        doctor(str(swin), {}, Console(file=io.StringIO()), parity=True)
    model = MLESAM({"rgb": 3}, 2, ModelConfig(foundation=str(swin), rank=2))
    for exchange in (save_peft, load_peft):
        with pytest.raises(RequestError, match=r"PEFT adapters are for SAM2, and .*swin is a Swin Transformer"):
            exchange(model, "rgb", tmp_path / "peft")


# ---------------------------------------------------------------- a training


def test_a_decoder_that_was_drawn_is_not_frozen(swin: Path) -> None:
    with pytest.raises(
        RequestError, match=r"mask_decoder is freeze, but .*swin brings no mask decoder; let it be trained"
    ):
        MLESAM({"rgb": 3}, 2, ModelConfig(foundation=str(swin), rank=2, mask_decoder="freeze"))


def test_every_tensor_of_a_swin_that_is_trained_as_well_has_a_gradient(swin: Path) -> None:
    torch.manual_seed(1)
    model = MLESAM({"rgb": 3, "depth": 1}, CLASSES, ModelConfig(foundation=str(swin), rank=2, train="all"))
    moved, _ = train_two_steps(model, {"rgb": torch.randn(2, 3, 64, 96), "depth": torch.randn(2, 1, 64, 96)})
    everything = {name for name, _ in model.named_parameters() if not name.startswith("reliability.")}
    assert moved == {name for name in everything if not is_key_bias(name)}
    assert set(model.saved_names) == set(model.state_dict())


def test_a_model_is_trained_on_a_frozen_swin_shared_and_extended(swin: Path, dataset: Path, tmp_path: Path) -> None:
    fields = {
        "data.dataset": f"folder:{dataset}", "data.crop": "48", "data.scale": "[0.8, 1.2]", "data.workers": "0",
        "data.modalities": "[rgb, depth]", "model.foundation": str(swin), "model.rank": "4", "name": "street",
        "training.steps": "40", "training.batch": "4", "training.ohem_threshold": "1.0", "training.validate_every": "20",
    }  # fmt: skip
    run = train(load_recipe(None, fields), tmp_path / "run")
    assert run.recipe.model.train == "experts", "auto keeps real weights frozen"
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in log if event["event"] == "step"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])

    fresh, model = load_foundation(str(swin), seed=run.recipe.seed).foundation, run.load_model()
    for name, tensor in fresh.state_dict().items():
        same = torch.equal(model.foundation.state_dict()[name], tensor)
        assert same == (not name.startswith("neck.")), name  # zeros and positions are saved, and nothing moves them

    # shared: the adapter holds what the Swin did not bring, and gives what the run gives
    adapter = export_adapter(run, tmp_path / "adapter")
    held = {n for n in load_file(adapter / "adapter.safetensors") if n.startswith("foundation.")}
    assert held == {f"foundation.{n}" for n in fresh.state_dict() if fresh.adds(n)}
    card = (adapter / "README.md").read_text()
    assert "for the Swin Transformer `swin`" in card
    assert "tags: [semantic-segmentation, multi-sensor, swin, lora]" in card
    assert "Segment Anything" not in card
    inputs = {m: dataset / m / "test" / "test0.png" for m in ("rgb", "depth")}
    one, other = Segmenter.load(run.path), Segmenter.load(adapter, foundation=str(swin))
    for given in (inputs, {"depth": inputs["depth"]}):
        assert np.array_equal(one(given).probabilities, other(given).probabilities)

    # extended: what was drawn and trained stays as it is
    words = ["--data", f"folder:{dataset}", "--training.steps", "2", "--data.workers", "0", "--data.crop", "48"]
    assert main(["train", *words, "--extend", str(run.path), "--out", str(tmp_path / "more")]) == 0
    old, new = load_tensors(run.path / WEIGHTS)[0], load_tensors(tmp_path / "more" / WEIGHTS)[0]
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert any(name.startswith("experts.thermal.") for name in new)
    assert main(["doctor", str(tmp_path / "more")]) == 0
