"""Weights in and out: Meta's files in their true layout, transformers folders, and our own safetensors."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel

from mlesam.config import ModelConfig
from mlesam.errors import DataError, WorkError
from mlesam.model import checkpoints
from mlesam.model.checkpoints import (
    load_pickle,
    load_tensors,
    read_meta_checkpoint,
    rename,
    replace_file,
    save_tensors,
)
from mlesam.model.foundation import load_foundation
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import load_weights, save_weights
from mlesam.model.sam2 import Sam2Foundation, load_meta_checkpoint, preset_config
from test_foundation import random_sam2

BLOCK = re.compile(r"\.blocks\.\d+\.")


def layout(shared: Path, name: str) -> list[dict]:
    return json.loads((shared / "data" / "sam2_key_layout" / f"{name}.keys.json").read_text())["keys"]


def hub_names(shared: Path) -> dict[str, str]:
    """Meta's name -> the name in transformers. The table is tiny's; other sizes only have more blocks of the same kind."""
    rows = json.loads((shared / "data" / "sam2_key_layout" / "sam2.1_hiera_tiny.meta_to_hf.json").read_text())["keys"]
    return {BLOCK.sub(".blocks.N.", row["meta"]): BLOCK.sub(".blocks.N.", row["hf"]) for row in rows}


def hub_name(key: str, names: dict[str, str]) -> str:
    block = BLOCK.search(key)
    name = names[BLOCK.sub(".blocks.N.", key)]
    return name.replace(".blocks.N.", block.group()) if block else name


def random_state(
    shared: Path, name: str = "sam2.1_hiera_tiny", dtype: torch.dtype = torch.float32, std: float = 1.0
) -> dict[str, Tensor]:
    """A checkpoint with random numbers under Meta's keys and shapes.

    The tensors are windows of one pool, each from another place on: the large model takes 24 MB, in memory and on the disk.
    """
    pool = std * torch.randn(6_000_000, generator=torch.Generator().manual_seed(0))
    state = {}
    for index, key in enumerate(layout(shared, name)):
        count = math.prod(key["shape"])
        start = 7919 * index % (len(pool) - count)
        state[key["name"]] = pool[start : start + count].view(key["shape"]).to(dtype)
    return state


def numbered_state(shared: Path, name: str) -> dict[str, Tensor]:
    """The i-th tensor holds i everywhere, and takes four bytes on the disk whatever its shape."""
    return {k["name"]: torch.tensor(float(i)).expand(k["shape"]) for i, k in enumerate(layout(shared, name))}


def assert_in_place(sam2: Sam2Model, state: dict[str, Tensor], names: dict[str, str]) -> None:
    """Every tensor of Meta's file stands under its name in transformers, and nothing else is there."""
    loaded = sam2.state_dict()
    points = sorted(k for k in state if "point_embeddings" in k)
    rest = set(loaded) - {"prompt_encoder.point_embed.weight", "shared_image_embedding.positional_embedding"}
    assert torch.equal(loaded["prompt_encoder.point_embed.weight"], torch.cat([state[p] for p in points]).float())
    for key, value in state.items():
        name = hub_name(key, names)
        if name in rest:
            assert torch.equal(loaded[name], value.float()), key
            rest.remove(name)
        if key.endswith("positional_encoding_gaussian_matrix"):
            assert torch.equal(loaded["shared_image_embedding.positional_embedding"], value.float())
    assert not rest


# ---------------------------------------------------------------- Meta's checkpoints


@pytest.fixture(scope="module")
def tiny(shared: Path) -> dict[str, Tensor]:
    return random_state(shared)


@pytest.mark.parametrize("wrap", ["model", "bare", "module"])
def test_meta_s_tiny_checkpoint_comes_in_with_every_value_in_its_place(
    shared: Path, tiny: dict[str, Tensor], tmp_path: Path, wrap: str
) -> None:
    content = {"model": {"model": tiny}, "bare": tiny, "module": {f"module.{k}": v for k, v in tiny.items()}}[wrap]
    torch.save(content, tmp_path / "sam2.pt")
    assert_in_place(load_meta_checkpoint(tmp_path / "sam2.pt"), tiny, hub_names(shared))


def test_the_foundation_holds_the_checkpoints_values(shared: Path, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": tiny}, tmp_path / "mine.pt")
    loaded = load_foundation(str(tmp_path / "mine.pt"))
    foundation, decoder = loaded.foundation, loaded.decoder
    assert foundation.source == "mine.pt"
    assert torch.equal(foundation.trunk.pos_embed, tiny["image_encoder.trunk.pos_embed"])
    assert torch.equal(foundation.neck.convs[0].weight, tiny["image_encoder.neck.convs.0.conv.weight"])
    assert torch.equal(foundation.no_memory.flatten(), tiny["no_mem_embed"].flatten())
    assert torch.equal(foundation.no_mask.flatten(), tiny["sam_prompt_encoder.no_mask_embed.weight"].flatten())
    assert torch.equal(foundation.position, tiny["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
    assert torch.equal(decoder.mask_tokens.weight, tiny["sam_mask_decoder.mask_tokens.weight"])
    assert torch.equal(
        decoder.output_hypernetworks_mlps[3].proj_out.weight,
        tiny["sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.weight"],
    )


@pytest.mark.parametrize("size", ["small", "base_plus", "large"])
def test_larger_checkpoints_come_in_the_same_way(shared: Path, tmp_path: Path, size: str) -> None:
    state = numbered_state(shared, f"sam2.1_hiera_{size}")
    torch.save({"model": state}, tmp_path / "sam2.pt")
    assert read_meta_checkpoint(tmp_path / "sam2.pt").size == size
    assert_in_place(load_meta_checkpoint(tmp_path / "sam2.pt"), state, hub_names(shared))


# Encoder, neck, prompt encoder and decoder have 310 / 358 / 454 / 742 tensors; no_mem_embed stands beside them.
@pytest.mark.parametrize(
    ("name", "version", "used"),
    [
        ("sam2.1_hiera_tiny", "2.1", 311),
        ("sam2.1_hiera_small", "2.1", 359),
        ("sam2.1_hiera_base_plus", "2.1", 455),
        ("sam2.1_hiera_large", "2.1", 743),
        ("MedSAM2_pretrain", "2.0", 311),
    ],
)
def test_what_is_used_and_what_is_ignored_is_counted(
    shared: Path, tmp_path: Path, name: str, version: str, used: int
) -> None:
    torch.save(numbered_state(shared, name), tmp_path / "sam2.pt")
    found = read_meta_checkpoint(tmp_path / "sam2.pt")
    assert found.version == version
    assert found.used == used
    assert found.used + len(found.ignored) == len(layout(shared, name))
    assert all(k.startswith(("mem", "no_", "mask", "obj_ptr")) for k in found.ignored)
    assert "no_mem_embed" not in found.ignored


def test_a_third_partys_bfloat16_checkpoint_in_the_2_0_layout_comes_in(shared: Path, tmp_path: Path) -> None:
    state = random_state(shared, "MedSAM2_pretrain", torch.bfloat16)
    torch.save({"model": state}, tmp_path / "medsam2.pt")
    sam2 = load_meta_checkpoint(tmp_path / "medsam2.pt")
    assert {p.dtype for p in sam2.parameters()} == {torch.float32}
    assert_in_place(sam2, state, hub_names(shared))


def test_half_precision_files_become_float32(shared: Path, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    half = {k: v.half() for k, v in tiny.items()}
    torch.save({"model": half}, tmp_path / "half.pt")
    sam2 = load_meta_checkpoint(tmp_path / "half.pt")
    assert {p.dtype for p in sam2.parameters()} == {torch.float32}
    assert_in_place(sam2, half, hub_names(shared))


@pytest.mark.parametrize("name", ["tiny", "small", "base_plus", "large"])
def test_every_image_key_of_the_real_files_has_its_name_in_transformers(shared: Path, name: str) -> None:
    names = hub_names(shared)
    for row in layout(shared, f"sam2.1_hiera_{name}"):
        key = row["name"]
        if key.startswith(checkpoints._IGNORED) or "point_embeddings" in key:
            continue
        assert rename(key) == hub_name(key, names)


def test_real_tensors_of_the_real_file_arrive_unchanged(shared: Path, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    real = np.load(shared / "data" / "sam2_key_layout" / "sam2.1_hiera_tiny.real_prefix_tensors.npz")
    state = {**tiny, **{k: torch.from_numpy(real[k]) for k in real.files}}
    torch.save({"model": state}, tmp_path / "sam2.pt")
    trunk = load_meta_checkpoint(tmp_path / "sam2.pt").vision_encoder.backbone
    np.testing.assert_array_equal(
        trunk.blocks[7].attn.proj.weight.detach().numpy(), real["image_encoder.trunk.blocks.7.attn.proj.weight"]
    )


def test_missing_unexpected_and_misshapen_tensors_are_named_the_first_few(
    shared: Path, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(tiny)
    for block in range(5):
        del state[f"image_encoder.trunk.blocks.{block}.norm1.bias"]
    state["image_encoder.trunk.surprise"] = torch.zeros(1)
    state["image_encoder.trunk.pos_embed"] = torch.zeros(1, 96, 14, 14)
    torch.save({"model": state}, tmp_path / "odd.pt")
    with pytest.raises(DataError) as raised:
        load_foundation(str(tmp_path / "odd.pt"))
    said = str(raised.value)
    assert "odd.pt does not fit SAM2 tiny" in said
    assert "missing: vision_encoder.backbone.blocks.0.layer_norm1.bias" in said
    assert "and 2 more" in said
    assert said.count("layer_norm1.bias") == 3
    assert "unexpected: vision_encoder.backbone.surprise" in said
    assert "of another shape: vision_encoder.backbone.pos_embed" in said


def test_a_model_that_is_no_sam2_is_refused_with_what_was_found(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    with pytest.raises(DataError, match="no SAM2 checkpoint: its trunk has width 0 and 0 blocks"):
        load_foundation(str(tmp_path / "resnet.pt"))


def test_a_trunk_of_no_known_size_is_refused_with_the_sizes_there_are(
    shared: Path, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({k: v for k, v in tiny.items() if ".blocks.11." not in k}, tmp_path / "cut.pt")
    with pytest.raises(DataError, match=r"cut.pt is no SAM2 .*width 96 and 11 blocks, but SAM2 has 96 and 12 \(tiny\)"):
        load_foundation(str(tmp_path / "cut.pt"))


def test_a_trunk_with_the_neck_of_another_size_is_refused(
    shared: Path, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    large = numbered_state(shared, "sam2.1_hiera_large")
    torch.save({**tiny, **{k: v for k, v in large.items() if ".neck." in k}}, tmp_path / "mixed.pt")
    with pytest.raises(
        DataError, match=r"mixed.pt does not fit SAM2 tiny \(of another shape: vision_encoder.neck.convs"
    ):
        load_foundation(str(tmp_path / "mixed.pt"))


def test_a_checkpoint_of_the_first_sam_is_called_that(tmp_path: Path) -> None:
    """The names of sam_vit_b_01ec64.pth, which is a bare state dict."""
    state = {
        "image_encoder.pos_embed": torch.zeros(1, 64, 64, 768),
        "image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        "image_encoder.blocks.0.norm1.weight": torch.zeros(768),
        "image_encoder.neck.0.weight": torch.zeros(256, 768, 1, 1),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.zeros(2, 128),
        "mask_decoder.iou_token.weight": torch.zeros(1, 256),
    }
    torch.save(state, tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(DataError, match=r"sam_vit_b_01ec64.pth is a checkpoint of the first SAM.*use one of SAM2's"):
        load_foundation(str(tmp_path / "sam_vit_b_01ec64.pth"))


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.bfloat16)])
def test_a_checkpoint_with_nan_or_infinity_is_refused_with_its_tensor(
    tiny: dict[str, Tensor], tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    name = "image_encoder.trunk.blocks.3.attn.qkv.bias"
    state = {**tiny, name: tiny[name].to(dtype, copy=True)}
    state[name][5] = value
    torch.save({"model": state}, tmp_path / "sam2.pt")
    with pytest.raises(DataError, match=r"sam2.pt holds NaN or infinity in .*blocks.3.attn.qkv.bias; it is damaged"):
        load_foundation(str(tmp_path / "sam2.pt"))


def test_nan_in_the_video_memory_which_is_ignored_does_no_harm(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {**tiny, "no_obj_ptr": torch.full((1, 256), float("nan"))}}, tmp_path / "sam2.pt")
    assert load_foundation(str(tmp_path / "sam2.pt")).foundation.source == "sam2.pt"


# ---------------------------------------------------------------- files that cannot be trusted


def test_an_interrupted_download_is_called_that(shared: Path, tmp_path: Path) -> None:
    part = shared / "data" / "sam2_key_layout" / "raw_prefix" / "sam2.1_hiera_tiny.pt.first1310720"
    shutil.copy(part, tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(DataError, match=r"sam2.1_hiera_tiny.pt cannot be read as weights: .*download was cut off"):
        load_foundation(str(tmp_path / "sam2.1_hiera_tiny.pt"))


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_file_that_is_no_checkpoint_at_all_is_not_accused_of_holding_code(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sam2.pt").write_bytes(content)
    with pytest.raises(DataError, match="no PyTorch file, is damaged or its download was cut off"):
        load_pickle(tmp_path / "sam2.pt")


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = {"model": {"a": torch.zeros(1), "b": Payload(target)}}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(DataError, match="holds more than tensors, which could run code"):
        load_foundation(str(path))
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file was harmless, so this test would have shown nothing"


def test_the_options_of_a_training_script_beside_the_weights_are_foreign_classes_as_well(tmp_path: Path) -> None:
    content = {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, tmp_path / "finetuned.pt")
    with pytest.raises(
        DataError, match=r"finetuned.pt .*holds more than tensors.*use a file with the state dict alone"
    ):
        load_foundation(str(tmp_path / "finetuned.pt"))


def test_a_plain_pickle_with_code_is_not_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Payload(target), protocol=2))
    with pytest.raises(DataError):
        load_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [{"model": {"epoch": 3}}, [torch.zeros(1)], {}, torch.zeros(3)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_pickle(tmp_path / "other.pt")


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no checkpoint"):
        load_foundation(str(tmp_path / "nothing.pt"))


# ---------------------------------------------------------------- transformers folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "sam2"
    random_sam2("nano", seed=9).save_pretrained(path)
    return path


def test_a_transformers_folder_comes_in_equal_and_without_noise(folder: Path, capfd: pytest.CaptureFixture) -> None:
    loaded = load_foundation(str(folder))
    assert capfd.readouterr().err == ""
    sam2 = random_sam2("nano", seed=9)
    expected, ours = Sam2Foundation(sam2, "").state_dict(), loaded.foundation.state_dict()
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[n], expected[n]) for n in expected)
    decoder = sam2.mask_decoder.state_dict()
    assert all(torch.equal(v, decoder[n]) for n, v in loaded.decoder.state_dict().items())
    assert loaded.foundation.source == str(folder)


def test_the_hubs_own_form_a_video_model_comes_in_as_well(tmp_path: Path) -> None:
    config = preset_config("nano")
    parts = {k: getattr(config, k).to_dict() for k in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    width = config.vision_config.fpn_hidden_size
    video = Sam2VideoModel(
        Sam2VideoConfig(
            **parts,
            memory_attention_hidden_size=width,
            memory_attention_num_layers=1,
            memory_encoder_hidden_size=width,
            memory_encoder_output_channels=32,
            mask_downsampler_embed_dim=width,
            memory_fuser_embed_dim=width,
            memory_fuser_num_layers=1,
        )
    )
    video.save_pretrained(tmp_path)
    loaded = load_foundation(str(tmp_path)).foundation
    for name, value in video.vision_encoder.backbone.state_dict().items():
        assert torch.equal(loaded.trunk.state_dict()[name], value)


def test_every_name_of_the_hubs_video_weights_is_used_or_ignored(shared: Path, tmp_path: Path) -> None:
    """The tiny model under the Hub's names, in half precision. None of its 160 video tensors reaches the foundation."""
    state = random_state(shared, dtype=torch.float16)
    names = {row["name"]: hub_name(row["name"], hub_names(shared)) for row in layout(shared, "sam2.1_hiera_tiny")}
    hub = {names[key]: value.contiguous() for key, value in state.items() if "point_embeddings" not in key}
    hub["prompt_encoder.point_embed.weight"] = torch.cat([v for k, v in state.items() if "point_embeddings" in k])
    hub[POSITIONS[0]] = hub[POSITIONS[1]].clone()
    preset_config("tiny").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    save_file(hub, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert len(hub) == 471 - 4 + 1 + 1
    sam2 = load_foundation(str(tmp_path)).sam2
    assert len(sam2.state_dict()) == 309
    assert_in_place(sam2, state, hub_names(shared))


def test_an_incomplete_folder_is_refused_with_the_first_missing_tensors(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sam2")
    weights = load_file(folder / "model.safetensors")
    gone = [n for n in weights if n.startswith("vision_encoder.neck.")]
    save_file(
        {n: v for n, v in weights.items() if n not in gone},
        tmp_path / "sam2" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        DataError, match=rf"\(missing: vision_encoder\.neck\.convs\.0\.bias, .* and {len(gone) - 3} more\)"
    ):
        load_foundation(str(tmp_path / "sam2"))


def changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    """A copy of a folder with other tensors."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


BIAS = "vision_encoder.neck.convs.0.bias"
MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a tensor of nobody": (
        lambda w: w.update({"head.weight": torch.zeros(2)}),
        r"changed does not fit the SAM2 of its config.json \(unexpected: head.weight\); use the original folder",
    ),
    "a tensor of another shape": (lambda w: w.update({BIAS: torch.zeros(3)}), rf"\(of another shape: {BIAS}\)"),
    "NaN": (
        lambda w: w.update({BIAS: torch.full((128,), float("nan"))}),
        rf"changed holds NaN or infinity in {BIAS}; it is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_folder_is_refused_for(folder: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    change, says = MISFITS[name]
    with pytest.raises(DataError, match=says):
        load_foundation(changed(folder, tmp_path, change))
    assert capfd.readouterr().err == ""


def test_a_folder_whose_configuration_is_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "sam2")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["backbone_config"].update(blocks_per_stage=[1, 2, 2, 1], global_attention_blocks=[4])
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"unexpected: vision_encoder\.backbone\.blocks\.6\."):
        load_foundation(str(copy))


def test_a_folder_of_another_model_is_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "sam")
    (copy / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(
        DataError, match=r"is a 'sam' model by its config.json; a foundation is one of sam2, sam2_video, swin"
    ):
        load_foundation(str(copy))


POSITIONS = ["shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"]


@pytest.mark.parametrize("gone", POSITIONS)
def test_one_of_the_two_names_of_the_positional_matrix_will_do(folder: Path, tmp_path: Path, gone: str) -> None:
    matrix = load_file(folder / "model.safetensors")[next(p for p in POSITIONS if p != gone)]
    loaded = load_foundation(changed(folder, tmp_path, lambda w: w.pop(gone)))
    assert torch.equal(loaded.foundation.position, matrix)
    assert all(torch.equal(loaded.sam2.state_dict()[p], matrix) for p in POSITIONS)


def test_without_either_name_the_positional_matrix_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"missing: {POSITIONS[1]}, {POSITIONS[0]}"):
        load_foundation(changed(folder, tmp_path, lambda w: [w.pop(p) for p in POSITIONS]))


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_a_folder_without_one_of_its_files_is_refused(folder: Path, tmp_path: Path, gone: str) -> None:
    shutil.copytree(folder, tmp_path / "sam2")
    (tmp_path / "sam2" / gone).unlink()
    with pytest.raises(DataError, match=r"cannot be loaded .*config.json and model.safetensors"):
        load_foundation(str(tmp_path / "sam2"))


def test_a_folder_with_a_pickle_instead_of_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sam2")
    (tmp_path / "sam2" / "model.safetensors").unlink()
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "sam2" / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_foundation(str(tmp_path / "sam2"))


# ---------------------------------------------------------------- our own files


def small_model(train: str = "experts", seed: int = 0, rank: int = 2) -> MLESAM:
    torch.manual_seed(seed)
    return MLESAM({"rgb": 3, "thermal": 1}, 3, ModelConfig(rank=rank, train=train)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ["experts", "all"])
def test_what_a_training_changed_goes_out_and_comes_back(tmp_path: Path, train: str) -> None:
    model = small_model(train)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_weights(model, tmp_path / "model.safetensors", {"step": 7, "miou": None})
    other = small_model(train, seed=1)
    images = {"rgb": torch.randn(1, 3, 64, 64), "thermal": torch.randn(1, 1, 64, 64)}
    with torch.no_grad():
        assert not torch.equal(other(images).logits, model(images).logits)
        metadata = load_weights(other, tmp_path / "model.safetensors")
        assert torch.equal(other(images).logits, model(images).logits)
    assert metadata == {
        "step": 7,
        "miou": None,
        "foundation_sha256": model.foundation_sha256,
        "foundation_family": "sam2",
    }
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in other.state_dict().items())


def test_a_frozen_foundation_takes_no_byte_of_a_checkpoint(tmp_path: Path) -> None:
    model = small_model()
    save_weights(model, tmp_path / "model.safetensors", {})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == {n for n in model.state_dict() if not n.startswith("foundation.")}
    content = sum(model.state_dict()[n].numel() * 4 for n in names)
    assert (tmp_path / "model.safetensors").stat().st_size < content + 60_000


def test_weights_of_another_foundation_are_refused(tmp_path: Path) -> None:
    save_weights(small_model(), tmp_path / "model.safetensors", {})
    torch.manual_seed(0)
    other = MLESAM({"rgb": 3, "thermal": 1}, 3, ModelConfig("nano-random", rank=2), seed=1)
    before = {n: v.clone() for n, v in other.state_dict().items()}
    with pytest.raises(DataError, match=r"trained on another foundation than nano-random \(random weights, seed 1\)"):
        load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items()), "nothing is loaded before the check"


def test_weights_of_another_model_are_refused_with_the_first_tensors_that_do_not_fit(tmp_path: Path) -> None:
    save_weights(small_model(), tmp_path / "model.safetensors", {})
    with pytest.raises(DataError, match=r"of another shape: experts\.rgb\.blocks\.0\.q\.a.* and \d+ more"):
        load_weights(small_model(rank=4), tmp_path / "model.safetensors")


def test_a_damaged_weight_file_is_a_clear_error(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "model.safetensors"
    save_weights(model, path, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"model.safetensors cannot be read as safetensors"):
        load_weights(model, path)
    with pytest.raises(DataError, match="missing or damaged"):
        load_weights(model, tmp_path / "nothing.safetensors")


# ---------------------------------------------------------------- whole or not at all


def write_tensors(path: Path, value: float) -> None:
    save_tensors(path, {"x": torch.full((50,), value)}, {"value": value})


def write_text(path: Path, value: float) -> None:
    replace_file(path, f"value {value}")


@pytest.mark.parametrize("write", [write_tensors, write_text])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
@pytest.mark.parametrize("moment", ["replace", "fsync", "write"])
def test_an_interrupted_write_leaves_the_old_file_whole_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, error: BaseException, moment: str
) -> None:
    path = tmp_path / "weights"
    write(path, 1.0)
    old = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    def half_written(tensors: object, name: Path, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(checkpoints, "save_file", half_written)
            patch.setattr(Path, "write_bytes", fail) if write is write_text else None
        else:
            patch.setattr(os, moment, fail)
        with pytest.raises(WorkError if isinstance(error, OSError) else KeyboardInterrupt):
            write(path, 2.0)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    write(path, 2.0)
    assert path.read_bytes() != old


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(WorkError, match=r"last.safetensors cannot be written .*No space left.*make room"):
        write_tensors(tmp_path / "last.safetensors", 1.0)


@pytest.mark.parametrize("write", [write_tensors, write_text])
def test_results_are_readable_by_whoever_may_read_other_files_of_the_user(tmp_path: Path, write) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "deep" / "result", 1.0)
    assert (tmp_path / "deep" / "result").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (write_tensors, write_text):
        with pytest.raises(WorkError, match="cannot be written"):
            write(tmp_path / "file" / "below", 1.0)


def test_tensors_and_metadata_come_back_as_they_went_out_and_by_prefix(tmp_path: Path) -> None:
    tensors = {"model.a": torch.randn(3, 4).T, "optimizer.a.step": torch.tensor(3.0), "b": torch.arange(3)}
    metadata = {"step": 3, "best": None, "validations": [{"miou": 0.5}], "name": "ü"}
    save_tensors(tmp_path / "x.safetensors", tensors, metadata)
    back, found = load_tensors(tmp_path / "x.safetensors")
    assert found == metadata
    assert set(back) == set(tensors)
    assert all(torch.equal(back[n], v) for n, v in tensors.items())
    assert set(load_tensors(tmp_path / "x.safetensors", "model.")[0]) == {"a"}
