"""Foundations from the Hugging Face Hub: the cache first, a pinned revision, and what is said without a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from conftest import write_dataset
from mlesam.config import ModelConfig, Recipe, build
from mlesam.errors import DataError
from mlesam.model.foundation import load_foundation
from mlesam.model.hub import cached_folder, fetch_folder, is_hub_id
from mlesam.model.mlesam import MLESAM
from mlesam.model.sam2 import Sam2Foundation
from mlesam.training.loop import train
from test_foundation import random_sam2

NAME = "facebook/sam2.1-hiera-nano"
OLD, NEW = "a" * 40, "b" * 40


def no_network(*args: object, **kwargs: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub on a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path


def store(cache: Path, commit: str, seed: int, refs: tuple[str, ...] = ()) -> Path:
    """What `hf download` leaves in the cache."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    random_sam2("nano", seed).save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)
    return repository / "snapshots" / commit


def test_cached_weights_come_in_without_a_network(cache: Path, capfd: pytest.CaptureFixture) -> None:
    store(cache, NEW, seed=1, refs=("main",))
    capfd.readouterr()
    foundation = load_foundation(NAME).foundation
    assert foundation.sha256 == Sam2Foundation(random_sam2("nano", 1), "").sha256
    assert foundation.source == NAME
    assert foundation.commit == NEW
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("revision", [OLD, "v1"])
def test_a_pinned_revision_is_taken_and_not_main(cache: Path, revision: str) -> None:
    store(cache, NEW, seed=1, refs=("main",))
    store(cache, OLD, seed=2, refs=("v1",))
    model = MLESAM({"rgb": 3}, 2, ModelConfig(NAME, revision, rank=2))
    assert model.foundation_sha256 == Sam2Foundation(random_sam2("nano", 2), "").sha256
    assert model.foundation.source == f"{NAME}@{revision}"
    assert model.foundation.commit == OLD


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
@pytest.mark.parametrize("revision", [None, "v1"])
def test_without_network_and_cache_one_sentence_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, offline: bool, revision: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError) as raised:
        load_foundation(NAME, revision)
    at = "" if revision is None else " --revision v1"
    assert str(raised.value) == (
        f"{NAME}{at} is not in the Hub's cache on this machine and the Hub cannot be reached; name a local .pt file or "
        f"transformers folder as model.foundation, or run `hf download {NAME} config.json model.safetensors{at}` where there "
        "is a network and bring its cache (HF_HOME) here."
    )
    assert capfd.readouterr().err == "", "no retries are shown"


def test_the_record_of_a_run_names_the_foundation_its_commit_and_its_hash(cache: Path, tmp_path: Path) -> None:
    store(cache, OLD, seed=2, refs=("v1",))
    recipe = {
        "data": {
            "dataset": f"folder:{write_dataset(tmp_path / 'data', train=2, val=1, test=0)}",
            "crop": 32,
            "workers": 0,
        },
        "model": {"foundation": NAME, "revision": "v1", "rank": 2},
        "training": {"steps": 1, "batch": 1},
    }
    run = train(build(Recipe, recipe), tmp_path / "run", command="mlesam train")
    assert json.loads((run.path / "run.json").read_text())["foundation"] == {
        "name": NAME,
        "revision": OLD,
        "source": f"{NAME}@v1",
        "sha256": Sam2Foundation(random_sam2("nano", 2), "").sha256,
    }
    assert run.recipe.model.train == "experts"


ANSWER: Any = SimpleNamespace(headers={}, request=None)
REFUSALS = {
    "no such model": (RepositoryNotFoundError("404", response=ANSWER), r"no such model on the Hub, or it is private"),
    "no such revision": (RevisionNotFoundError("404", response=ANSWER), r"has no revision 'v9' on the Hub"),
    "a gated model": (GatedRepoError("403", response=ANSWER), r"to approved users alone"),
    "a download that breaks off": (OSError("peer closed\nconnection"), r"failed \(peer closed connection\); try again"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_answers_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, says = REFUSALS[name]

    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=says) as raised:
        load_foundation(NAME, "v9")
    assert "\n" not in str(raised.value)


def test_a_name_that_the_hub_cannot_have_is_said_to_be_that(cache: Path) -> None:
    with pytest.raises(DataError, match=r"'my models/tiny' can be no name on the Hub"):
        load_foundation("my models/tiny")


def test_an_interrupted_download_is_taken_up_and_only_weights_are_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store(cache, NEW, seed=1, refs=("main",))
    (folder / "model.safetensors").rename(cache / "kept")
    assert cached_folder(NAME) is None
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        (cache / "kept").rename(folder / "model.safetensors")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_foundation(NAME).foundation.commit == NEW
    assert asked == [(NAME, None, ["config.json", "*.safetensors"])]
    assert fetch_folder(NAME) == folder
    assert len(asked) == 1, "what is in the cache is not asked for again"


def test_a_repository_without_safetensors_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "empty").mkdir()
    (cache / "empty" / "config.json").write_text(json.dumps({"model_type": "sam2"}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(cache / "empty"))
    with pytest.raises(DataError, match=r"came without config.json or without safetensors weights"):
        load_foundation(NAME)


def test_a_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert is_hub_id("facebook/sam2.1-hiera-tiny")
    assert not any(map(is_hub_id, ("models/tiny", "models/tiny.pt", "./tiny", "/models", "~/tiny", "tiny", "a/b/c")))


def test_the_record_of_a_checkpoint_is_the_same_in_every_form(tmp_path: Path) -> None:
    """Half the precision in the file is another model; the form of the file is not."""
    sam2 = random_sam2("nano", 3)
    sam2.save_pretrained(tmp_path / "one")
    sam2.save_pretrained(tmp_path / "two", max_shard_size="4MB")
    sam2.to(torch.float16).save_pretrained(tmp_path / "half")
    one, two, half = (load_foundation(str(tmp_path / n)).foundation for n in ("one", "two", "half"))
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    assert one.sha256 == two.sha256 != half.sha256
    assert {p.dtype for p in half.parameters()} == {torch.float32}
