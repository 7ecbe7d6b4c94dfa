"""Adapters on disk and on the Hub: what is in them, what they give, and whose foundation they take."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import combinations
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import write_dataset
from mlesam import Segmenter
from mlesam.cli import main
from mlesam.config import load_recipe
from mlesam.errors import DataError, RequestError, WorkError
from mlesam.evaluation.evaluate import evaluate, store
from mlesam.inference.adapter import export_adapter, push
from mlesam.model.foundation import load_foundation
from mlesam.model.run import Run
from mlesam.model.sam2 import NANO
from mlesam.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("adapter")
    dataset = write_dataset(root / "data")
    fields = {"data.dataset": f"folder:{dataset}", "data.crop": "64", "data.workers": "0", "model.rank": "4"}
    fields |= {"training.steps": "4", "training.batch": "2", "name": "street"}
    run = train(load_recipe(None, fields), root / "run")
    store(run, evaluate(run, split="val"), None)
    return run


@pytest.fixture
def adapter(run: Run, tmp_path: Path) -> Path:
    return export_adapter(run, tmp_path / "adapter")


def scene() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "rgb": rng.integers(0, 255, (64, 96, 3), dtype=np.uint8),
        "depth": rng.integers(0, 60_000, (64, 96), dtype=np.uint16),
        "thermal": rng.integers(0, 255, (64, 96), dtype=np.uint8),
    }


def test_an_adapter_gives_what_the_run_gives_with_every_subset(run: Run, adapter: Path) -> None:
    one, other = Segmenter.load(run.path), Segmenter.load(adapter)
    for count in (1, 2, 3):
        for subset in combinations(one.sensors, count):
            inputs = {m: scene()[m] for m in subset}
            assert np.array_equal(one(inputs).probabilities, other(inputs).probabilities)
    assert other.sensors == one.sensors
    assert other.classes == one.classes


def test_it_holds_nothing_of_the_foundation_and_no_path_of_the_machine(run: Run, adapter: Path) -> None:
    assert sorted(p.name for p in adapter.iterdir()) == ["README.md", "adapter.safetensors", "config.json"]
    names = load_file(adapter / "adapter.safetensors")
    parts = {"experts", "stems", "aligners", "routers", "reliability", "mask_head", "pyramid_head"}
    assert {n.split(".")[0] for n in names} == parts
    text = (adapter / "config.json").read_text() + (adapter / "README.md").read_text()
    assert str(run.path.parent) not in text
    config = json.loads((adapter / "config.json").read_text())
    assert config["foundation"] == {
        "name": "nano", "family": "sam2", "sha256": load_foundation("nano").foundation.sha256,
    }  # fmt: skip


def test_the_card_has_what_the_hub_reads_and_the_stored_results(run: Run, adapter: Path) -> None:
    text = (adapter / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "mlesam"
    assert body.startswith("\n# street: semantic segmentation from rgb, depth and thermal")
    metrics = json.loads(next((run.path / "evaluation").glob("*.json")).read_text())
    for row in metrics["results"]:
        assert f"| {row['name']} | {100 * row['miou']:.1f} |" in body
    assert "ground, near, far" in body
    assert "Intended use" in body
    assert "base_model" not in head, "nano is no repository of the Hub"


def test_a_card_names_the_hubs_foundation_as_its_base(run: Run, tmp_path: Path) -> None:
    model = dataclasses.replace(run.recipe.model, foundation="facebook/sam2.1-hiera-tiny")
    named = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, model=model))
    out = export_adapter(named, tmp_path / "adapter")
    head = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert head["base_model"] == "facebook/sam2.1-hiera-tiny"


def test_a_sensor_can_be_left_out_without_training(run: Run, adapter: Path, tmp_path: Path) -> None:
    smaller = export_adapter(Run.load(adapter), tmp_path / "smaller", without=["rgb"])
    one, other = Segmenter.load(run.path), Segmenter.load(smaller)
    assert list(other.sensors) == ["depth", "thermal"]
    assert not [n for n in load_file(smaller / "adapter.safetensors") if "rgb" in n]
    for subset in (["depth"], ["thermal"], ["depth", "thermal"]):
        inputs = {m: scene()[m] for m in subset}
        assert np.array_equal(one(inputs).probabilities, other(inputs).probabilities)
    assert "rgb" not in (smaller / "README.md").read_text()
    with pytest.raises(RequestError, match="no sensor 'rgb'"):
        other({"rgb": scene()["rgb"]})
    with pytest.raises(RequestError, match="at least one of them must stay"):
        export_adapter(run, tmp_path / "none", without=list(run.sensors))
    with pytest.raises(RequestError, match="did you mean 'depth'"):
        export_adapter(run, tmp_path / "none", without=["deph"])
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- foundations


def test_another_foundation_is_refused_unless_told(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trained on another foundation than nano-random.*any_foundation"):
        Segmenter.load(adapter, foundation="nano-random")
    forced = Segmenter.load(adapter, foundation="nano-random", any_foundation=True)
    assert not np.array_equal(forced(scene()).probabilities, Segmenter.load(adapter)(scene()).probabilities)
    copy = shutil.copytree(NANO, tmp_path / "copy")
    same = Segmenter.load(adapter, foundation=str(copy))
    assert np.array_equal(same(scene()).probabilities, Segmenter.load(adapter)(scene()).probabilities)
    with pytest.raises(DataError, match="does not fit this model"):
        Segmenter.load(adapter, foundation="tiny", any_foundation=True)


def test_a_foundation_of_the_authors_machine_is_asked_for(adapter: Path) -> None:
    config = json.loads((adapter / "config.json").read_text())
    config["recipe"]["model"]["foundation"] = "sam2.1_hiera_tiny.pt"
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"sam2\.1_hiera_tiny\.pt', which lay on its author's machine.*--foundation"):
        Segmenter.load(adapter)
    assert Segmenter.load(adapter, foundation="nano")(scene()).labels.shape == (64, 96)


def test_a_local_foundation_is_named_by_its_last_part(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(NANO, tmp_path / "mine" / "sam2")
    model = dataclasses.replace(run.recipe.model, foundation=str(copy))
    named = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, model=model))
    text = (export_adapter(named, tmp_path / "adapter") / "config.json").read_text()
    assert '"sam2"' in text
    assert str(tmp_path) not in text


def test_a_model_whose_foundation_was_trained_is_no_adapter(run: Run, tmp_path: Path) -> None:
    model = dataclasses.replace(run.recipe.model, train="all")
    whole = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, model=model))
    with pytest.raises(RequestError, match="trained with its foundation"):
        export_adapter(whole, tmp_path / "adapter")


# ---------------------------------------------------------------- damage


def test_nothing_is_written_over_and_nothing_half_written(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="is not empty"):
        export_adapter(run, adapter)
    from mlesam.inference import adapter as module

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "replace_file", full)
    with pytest.raises(WorkError, match="no space left"):
        export_adapter(run, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(format="mlesam adapter 9"), "of the format 'mlesam adapter 9'"),
        (
            lambda c: c["recipe"]["model"].update(rang=3),
            r"config\.json: unknown key 'model\.rang'; did you mean 'rank'",
        ),
        (lambda c: c["recipe"]["data"].update(classes=None), "names no classes or sensors"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(adapter: Path, change, says: str) -> None:
    config = json.loads((adapter / "config.json").read_text())
    change(config)
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=says):
        Run.load(adapter)


def test_a_directory_that_is_neither_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no run and no adapter"):
        Segmenter.load(tmp_path)


# ---------------------------------------------------------------- the Hub and the command


def test_an_adapter_comes_from_the_hubs_cache_without_a_network(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--street" / "snapshots" / ("a" * 40)
    shutil.copytree(adapter, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(cache), raising=False)
    found = Run.load("someone/street")
    assert found.path == snapshot
    assert Segmenter.load("someone/street", revision="a" * 40)(scene()).labels.shape == (64, 96)
    with pytest.raises(
        DataError, match="there is no run or adapter someone/else here, and none can be had from the Hub"
    ):
        Run.load("someone/else")


def test_pushing_makes_the_repository_and_uploads_the_directory(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda self, name, **more: calls.append((name, more)))
    monkeypatch.setattr(api, "upload_folder", lambda self, **more: calls.append(more))
    assert push(adapter, "someone/street", private=True) == "https://huggingface.co/someone/street"
    assert calls[0] == ("someone/street", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == adapter
    assert calls[1]["repo_id"] == "someone/street"

    def refuse(self, name, **more):
        raise PermissionError("401 Client Error")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(WorkError, match=r"cannot be uploaded to someone/street \(401 Client Error\); log in"):
        push(adapter, "someone/street")
    with pytest.raises(RequestError, match="write owner/name"):
        push(adapter, "street")


def test_the_commands_take_an_adapter(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shared"
    assert main(["export", str(run.path), "--out", str(out), "--without", "thermal"]) == 0
    assert "adapter written to" in capsys.readouterr().out
    data = run.recipe.data.dataset or ""
    assert main(["evaluate", str(out), "--data", data, "--split", "val", "--out", str(tmp_path / "m.json")]) == 0
    rows = {r["name"]: r["miou"] for r in json.loads((tmp_path / "m.json").read_text())["results"]}
    stored = json.loads(next((run.path / "evaluation").glob("subsets-val*.json")).read_text())
    expected = {r["name"]: r["miou"] for r in stored["results"] if "thermal" not in r["present"]}
    assert rows == pytest.approx(expected)
    picture = Path(data.partition(":")[2]) / "rgb/val/val0.png"
    assert main(["predict", str(out), "--rgb", str(picture), "--out", str(tmp_path / "predictions")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    assert "names no dataset" in capsys.readouterr().err
    assert main(["export", str(run.path), "--out", str(tmp_path / "x"), "--format", "onxx"]) == 2
    assert main(["export", str(run.path), "--out", str(tmp_path / "x"), "--modality", "rgb"]) == 2
    assert "--modality does not go with --format adapter" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_run_can_start_from_an_adapter(run: Run, adapter: Path, tmp_path: Path) -> None:
    fields = {"data.dataset": run.recipe.data.dataset or "", "data.crop": "64", "data.workers": "0", "model.rank": "4"}
    fields |= {"training.steps": "1", "training.batch": "2"}
    second = train(load_recipe(None, fields), tmp_path / "second", init=adapter)
    assert torch.isfinite(second.load_model().mask_head.mask_tokens.weight).all()
