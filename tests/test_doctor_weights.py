"""Checkpoints and runs: what they are, and everything that is wrong with them, without building a large model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2Model
from transformers.utils import logging

import mlesam.checks.weights
from conftest import write_dataset
from mlesam.checks.run import check_run
from mlesam.checks.weights import WeightsFindings, check_checkpoint, check_foundation
from mlesam.config import Recipe, build, dump_recipe, load_recipe
from mlesam.model.sam2 import preset_config
from mlesam.training.loop import train

State = dict[str, Tensor]


def state_of(shared: Path, name: str) -> State:
    """A checkpoint with the real names, shapes and types. Expanded zeros keep the file small."""
    keys = json.loads((shared / "data/sam2_key_layout" / f"{name}.keys.json").read_text())["keys"]
    types = {"FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16}
    return {k["name"]: torch.zeros(1, dtype=types[k["dtype"]]).expand(k["shape"]) for k in keys}


def facts(findings: WeightsFindings) -> dict[str, str]:
    return dict(findings.facts)


LAYOUTS = {
    "sam2.1_hiera_tiny": ("SAM 2.1, size tiny", "471: 311 used, 160 ignored"),
    "sam2.1_hiera_small": ("SAM 2.1, size small", "519: 359 used, 160 ignored"),
    "sam2.1_hiera_base_plus": ("SAM 2.1, size base_plus", "615: 455 used, 160 ignored"),
    "sam2.1_hiera_large": ("SAM 2.1, size large", "903: 743 used, 160 ignored"),
    "MedSAM2_pretrain": ("SAM 2.0, size tiny", "468: 311 used, 157 ignored"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_size_and_version_of_a_real_layout_are_told(name: str, shared: Path, tmp_path: Path) -> None:
    torch.save({"model": state_of(shared, name)}, tmp_path / "sam2.pt")
    found = check_checkpoint(tmp_path / "sam2.pt")
    assert found.faults == []
    layout, tensors = LAYOUTS[name]
    assert facts(found)["layout"] == f"Meta's, {layout}"
    assert facts(found)["tensors"] == tensors
    assert len(facts(found)["sha256"]) == 64
    groups = {g.name: (g.tensors, g.used) for g in found.groups}
    assert groups["memory_attention"] == (106, False)
    assert groups["sam_mask_decoder"] == (131, True)


META_FAULTS: dict[str, tuple[Callable[[State], object], str]] = {
    "a missing tensor": (
        lambda s: s.pop("image_encoder.neck.convs.0.conv.bias"),
        "vision_encoder.neck.convs.0.bias is missing",
    ),
    "a tensor of another shape": (
        lambda s: s.update({"image_encoder.neck.convs.0.conv.bias": torch.zeros(3)}),
        "image_encoder.neck.convs.0.conv.bias has the shape (3,), not (256,).",
    ),
    "a tensor of nobody": (lambda s: s.update({"head.weight": torch.zeros(3)}), "head.weight belongs to no SAM2"),
    "a tensor with NaN": (
        lambda s: s.update({"no_mem_embed": torch.full((1, 1, 256), float("nan"))}),
        "no_mem_embed holds NaN",
    ),
    "another model": (lambda s: [s.pop(k) for k in list(s) if "trunk" in k], "is no SAM2 checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", META_FAULTS)
def test_it_is_a_fault_of_a_checkpoint_to_have(name: str, shared: Path, tmp_path: Path) -> None:
    change, text = META_FAULTS[name]
    state = state_of(shared, "sam2.1_hiera_tiny")
    change(state)
    torch.save(state, tmp_path / "sam2.pt")
    found = check_checkpoint(tmp_path / "sam2.pt")
    assert any(text in fault for fault in found.faults), found.faults


def test_all_faults_of_a_checkpoint_are_named(shared: Path, tmp_path: Path) -> None:
    state = state_of(shared, "sam2.1_hiera_tiny")
    for name in ("a missing tensor", "a tensor of nobody", "a tensor with NaN"):
        META_FAULTS[name][0](state)
    torch.save(state, tmp_path / "sam2.pt")
    assert len(check_checkpoint(tmp_path / "sam2.pt").faults) == 3


def test_an_interrupted_download_is_a_fault(shared: Path) -> None:
    (path,) = (shared / "data/sam2_key_layout/raw_prefix").iterdir()
    (fault,) = check_checkpoint(path).faults
    assert "download was cut off" in fault


def test_a_wrong_checksum_is_a_fault(shared: Path, tmp_path: Path) -> None:
    state = state_of(shared, "sam2.1_hiera_tiny")
    state["no_mem_embed"] = torch.full((1, 1, 256), 0.12345)
    torch.save(state, tmp_path / "sam2.pt")
    content = (tmp_path / "sam2.pt").read_bytes()
    pattern = torch.full((4,), 0.12345).numpy().tobytes()
    (tmp_path / "sam2.pt").write_bytes(content.replace(pattern, torch.ones(4).numpy().tobytes(), 1))
    (fault,) = check_checkpoint(tmp_path / "sam2.pt").faults
    assert "the checksum of" in fault


def test_a_checkpoint_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    assert "there is no checkpoint" in check_checkpoint(tmp_path / "sam2.pt").faults[0]


# ---------------------------------------------------------------- transformers folders


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    logging.disable_progress_bar()
    Sam2Model(preset_config("nano")).save_pretrained(folder)
    return folder


def change_tensors(folder: Path, change: Callable[[State], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_transformers_folder_is_recognised(saved: Path) -> None:
    found = check_checkpoint(saved)
    assert found.faults == found.notes == []
    assert facts(found)["layout"] == "transformers, SAM 2.0 or 2.1 (an image model does not tell), size nano"
    assert facts(found)["tensors"] == "249: 249 used, 0 ignored"
    assert check_checkpoint(saved / "model.safetensors").facts == found.facts


@pytest.mark.parametrize(("extra", "version"), [((), "2.0"), (("occlusion_spatial_embedding_parameter",), "2.1")])
def test_video_weights_tell_the_version_and_are_ignored(
    extra: tuple[str, ...], version: str, saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "video")
    names = ("memory_attention.layer.weight", *extra)
    change_tensors(folder, lambda s: s.update({n: torch.zeros(2) for n in names}))
    found = check_checkpoint(folder)
    assert found.faults == found.notes == []
    assert f"SAM {version}, size nano" in facts(found)["layout"]
    assert {(g.name, g.used) for g in found.groups} >= {("memory_attention", False), ("mask_decoder", True)}


BIAS = "vision_encoder.neck.convs.0.bias"
FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "a broken config.json": (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
    "another model": (lambda f: change_config(f, model_type="bert"), "describes a 'bert' model"),
    "a list of models": (lambda f: change_config(f, model_type=["sam2"]), "describes a ['sam2'] model"),
    "a config that cannot be built": (
        lambda f: change_config(f, vision_config={"backbone_config": {"hidden_size": -1}}),
        "nano cannot be loaded as a SAM2 (",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no .safetensors file"),
    "cut-off weights": (lambda f: os.truncate(f / "model.safetensors", 9000), "model.safetensors cannot be read"),
    "a missing tensor": (lambda f: change_tensors(f, lambda s: s.pop(BIAS)), f"{BIAS} is missing"),
    "a tensor of another shape": (
        lambda f: change_tensors(f, lambda s: s.update({BIAS: torch.zeros(3)})),
        f"{BIAS} has the shape (3,), not (128,).",
    ),
    "a tensor of nobody": (
        lambda f: change_tensors(f, lambda s: s.update({"head.weight": torch.zeros(2)})),
        "head.weight belongs to no SAM2",
    ),
    "a tensor with NaN": (
        lambda f: change_tensors(f, lambda s: s.update({BIAS: torch.full((128,), float("nan"))})),
        f"{BIAS} holds NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_it_is_a_fault_of_a_folder_to_have(name: str, saved: Path, tmp_path: Path) -> None:
    change, text = FOLDER_FAULTS[name]
    folder = shutil.copytree(saved, tmp_path / "nano")
    change(folder)
    found = check_checkpoint(folder)
    assert any(text in fault for fault in found.faults), found.faults


def test_one_of_the_two_names_of_the_positional_matrix_is_no_fault(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "nano")
    change_tensors(folder, lambda s: s.pop("prompt_encoder.shared_embedding.positional_embedding"))
    assert check_checkpoint(folder).faults == []


# ---------------------------------------------------------------- what model.foundation names


def test_a_foundation_is_a_preset_a_path_or_a_name_in_the_cache(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_foundation("large").faults == []
    assert check_foundation(str(saved)).faults == []
    assert "no checkpoint" in check_foundation("nowhere/sam2.pt").faults[0]
    assert "did you mean 'tiny'?" in check_foundation("tinny").faults[0]
    found = check_foundation("nobody/no-such-model")
    assert facts(found)["foundation"] == "nobody/no-such-model, from the Hub"
    assert "not in the Hub's cache" in found.notes[0]
    monkeypatch.setattr(mlesam.checks.weights, "cached_folder", lambda name, revision: saved)
    assert facts(check_foundation("nobody/no-such-model"))["tensors"].startswith("249")


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("run")
    data = write_dataset(base / "data", train=2, val=1, test=0)
    recipe = {
        "data": {"dataset": f"folder:{data}", "crop": 32, "workers": 0, "modalities": ["rgb", "thermal"]},
        "training": {"steps": 2, "batch": 1},
        "model": {"rank": 2, "train": "experts"},
    }
    return train(build(Recipe, recipe), base / "out", command="mlesam train").path


def change_recipe(run: Path, section: str, **values: object) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    changed = dataclasses.replace(getattr(recipe, section), **values)
    (run / "recipe.yaml").write_text(dump_recipe(dataclasses.replace(recipe, **{section: changed})))


def test_a_finished_run_is_whole(finished: Path) -> None:
    found = check_run(finished)
    assert found.faults == found.notes == []
    assert facts(found)["progress"] == "finished, 2 steps"
    assert facts(found)["sensors"] == "rgb (3 channels), thermal (1 channel)"
    assert facts(found)["command"] == "mlesam train"
    assert facts(found)["weights"].startswith("of step")


def poison(run: Path) -> None:
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    state = load_file(run / "model.safetensors")
    name = next(n for n in state if state[n].is_floating_point())
    state[name] = torch.full_like(state[name], float("inf"))
    save_file(state, run / "model.safetensors", metadata=metadata)


def insert(run: Path, line: str) -> None:
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(f"{line}\n{text}")


RUN_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda r: (r / "run.json").unlink(), "run.json is missing"),
    "a broken record": (lambda r: (r / "run.json").write_text("{"), "run.json is not valid JSON"),
    "no recipe": (lambda r: (r / "recipe.yaml").unlink(), "has no recipe.yaml"),
    "a recipe that is not resolved": (lambda r: change_recipe(r, "data", classes=None), "is not resolved"),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), "model.safetensors is missing, but the training has"),
    "cut-off weights": (lambda r: os.truncate(r / "model.safetensors", 5000), "model.safetensors cannot be read"),
    "a cut-off checkpoint": (lambda r: os.truncate(r / "last.safetensors", 5000), "last.safetensors cannot be read"),
    "weights of another recipe": (lambda r: change_recipe(r, "model", rank=3), "model.safetensors does not fit this model"),
    "another foundation": (
        lambda r: change_recipe(r, "model", foundation="nano-random"), "was trained on another foundation",
    ),
    "a foundation that is gone": (lambda r: change_recipe(r, "model", foundation="gone/sam2.pt"), "there is no checkpoint"),
    "weights with infinity": (poison, "holds NaN or infinity"),
    "a broken log": (lambda r: insert(r, "{"), "line 1 of"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_it_is_a_fault_of_a_run_to_have(name: str, finished: Path, tmp_path: Path) -> None:
    change, text = RUN_FAULTS[name]
    run = shutil.copytree(finished, tmp_path / "run")
    change(run)
    found = check_run(run)
    assert any(text in fault for fault in found.faults), found.faults


def restart(run: Path) -> None:
    for name in ("model.safetensors", "last.safetensors", "log.jsonl"):
        (run / name).unlink()


RUN_NOTES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights yet": (restart, "the run holds no weights yet"),
    "steps to go": (lambda r: change_recipe(r, "training", steps=9), "is not finished; go on with: mlesam train --out"),
    "no checkpoint": (lambda r: (r / "last.safetensors").unlink(), "there is no last.safetensors"),
    "a foundation to download": (
        lambda r: change_recipe(r, "model", foundation="nobody/no-such-model"),
        "nobody/no-such-model is not in the Hub's cache",
    ),
    "a log that is cut off": (
        lambda r: (r / "log.jsonl").write_text((r / "log.jsonl").read_text() + '{"event": "st'),
        "log.jsonl is cut off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUN_NOTES)
def test_it_is_worth_a_note_that_a_run_has(name: str, finished: Path, tmp_path: Path) -> None:
    change, text = RUN_NOTES[name]
    run = shutil.copytree(finished, tmp_path / "run")
    change(run)
    found = check_run(run)
    assert found.faults == []
    assert any(text in note for note in found.notes), found.notes


def test_an_unfinished_run_says_how_far_it_came(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    change_recipe(run, "training", steps=9)
    assert facts(check_run(run))["progress"] == "step 2 of 9, last checkpoint at step 2"


def test_cut_off_weights_are_not_called_missing_as_well(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    os.truncate(run / "model.safetensors", 5000)
    assert len(check_run(run).faults) == 1


def test_a_record_may_lack_the_command(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "run.json").write_text("{}")
    found = check_run(run)
    assert found.faults == []
    assert "command" not in facts(found)


def test_a_checkpoint_in_the_old_format_has_no_checksums_to_check(shared: Path, tmp_path: Path) -> None:
    state = state_of(shared, "sam2.1_hiera_tiny")
    torch.save(state, tmp_path / "sam2.pt", _use_new_zipfile_serialization=False)
    assert check_checkpoint(tmp_path / "sam2.pt").faults == []


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "base_plus", "large"])
def test_the_size_of_a_folder_is_read_off_its_config(name: str) -> None:
    assert mlesam.checks.weights._size(preset_config(name).to_dict()) == name


@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bars_of_transformers_are_left_as_they_were(shown: bool, saved: Path) -> None:
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        check_checkpoint(saved)
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.disable_progress_bar()
