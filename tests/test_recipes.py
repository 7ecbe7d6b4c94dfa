"""The recipes of the published benchmarks: strict, alike, of the published length, and tried without their weights."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from mlesam import MLESAM
from mlesam.cli import main
from mlesam.config import Recipe, load_recipe
from mlesam.data import deliver, mcubes, muses
from mlesam.data.benchmark import Benchmark
from mlesam.model.foundation import Foundation
from mlesam.model.sam2 import HUB_PRESETS
from mlesam.training.dry_run import parameters_by_part
from mlesam.training.optimizer import learning_rate
from test_hub import no_network

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "recipes.md"
KINDS: dict[str, tuple[type[Benchmark], int, int]] = {
    "deliver": (deliver.Deliver, 25, 200),
    "muses": (muses.Muses, 19, 200),
    "mcubes": (mcubes.Mcubes, 20, 500),
}
"""Reader, classes and epochs of each benchmark."""
SETS = {
    "deliver": "rgb rgb-depth rgb-event rgb-lidar rgb-depth-event rgb-depth-lidar rgb-depth-event-lidar",
    "muses": "rgb rgb-event rgb-lidar rgb-event-lidar",
    "mcubes": "rgb rgb-aolp rgb-aolp-dolp rgb-aolp-dolp-nir",
}
NAMES = [f"{kind}_{sensors}" for kind, sets in SETS.items() for sensors in sets.split()]


def path(name: str) -> Path:
    return ROOT / "recipes" / f"{name}.yaml"


def recipe(name: str) -> Recipe:
    return load_recipe(path(name), {})


def test_every_set_of_sensors_has_its_recipe_and_no_other() -> None:
    found = {p.stem for kind in KINDS for p in (ROOT / "recipes").glob(f"{kind}_*.yaml")}
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_its_sensors_and_its_benchmark(name: str) -> None:
    kind, _, sensors = name.partition("_")
    reader, classes, epochs = KINDS[kind]
    loaded = recipe(name)
    assert loaded.name == name
    assert loaded.data.dataset is not None
    assert loaded.data.dataset.startswith(f"{reader.kind}:")
    assert loaded.data.modalities == tuple(sensors.split("-"))
    assert set(loaded.data.modalities) <= set(reader.folders)
    assert loaded.data.classes is None  # they are the benchmark's own
    assert len(reader.classes) == classes
    training = loaded.training
    assert training.steps == epochs * reader.published["train"][""] / training.batch
    assert round(training.warmup * epochs, 6) == 10
    assert HUB_PRESETS[loaded.model.foundation] == "base_plus"
    assert loaded.model.rank == 32


@pytest.mark.parametrize("name", NAMES)
def test_recipes_of_one_benchmark_differ_in_their_sensors_alone(name: str) -> None:
    first = f"{name.partition('_')[0]}_rgb"

    def rest(recipe_name: str) -> list[str]:
        lines = path(recipe_name).read_text().splitlines()[1:]
        return [line for line in lines if not line.startswith(("name: ", "  modalities: "))]

    assert rest(name) == rest(first)


def test_benchmarks_differ_in_data_and_schedule_alone() -> None:
    def rest(kind: str) -> Recipe:
        loaded = recipe(f"{kind}_rgb")
        data = dataclasses.replace(loaded.data, dataset=None)
        training = dataclasses.replace(loaded.training, steps=1, lr=1.0, warmup=0.0, validate_every=0)
        return dataclasses.replace(loaded, name="", data=data, training=training)

    assert rest("deliver") == rest("muses") == rest("mcubes")


def test_the_learning_rate_is_that_of_the_published_schedule() -> None:
    config = recipe("deliver_rgb").training
    epoch = config.steps / 200
    assert learning_rate(0, config) == pytest.approx(0.1 * config.lr)
    assert learning_rate(round(10 * epoch), config) == pytest.approx(config.lr, rel=1e-3)
    assert learning_rate(round(105 * epoch), config) == pytest.approx(config.lr * 0.5**0.9, rel=1e-3)


# ---------------------------------------------------------------- what the documentation says of them


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_has_every_recipe_with_its_steps(name: str) -> None:
    text = DOCS.read_text()
    assert f"`{name}.yaml`" in text
    assert f"{recipe(name).training.steps:,} steps" in text


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch):
    """Models without numbers, which are built in no time."""
    monkeypatch.setattr(Foundation, "sha256", "")
    with torch.device("meta"):
        yield


def test_the_documented_parameters_are_those_of_the_model(shapes_only: None) -> None:
    loaded = recipe("deliver_rgb-depth-event-lidar")
    ours = dataclasses.replace(loaded.model, foundation="base_plus", train="experts")
    published = dataclasses.replace(ours, align=False, rescale=False, reliability=False)
    text = DOCS.read_text()
    for config in (ours, published):
        model = MLESAM(dict.fromkeys(loaded.data.modalities or (), 3), 25, config)
        parts = parameters_by_part(model)
        total = sum(parts.values())
        assert total == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert f"{total:,}" in text
        missing = [part for part, count in parts.items() if f"{count:,}" not in text]
        assert not missing


def test_the_documented_estimates_are_the_stored_ones() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "estimate.json").read_text())["results"]
    rows = [row for row in stored if "estimated_mib" in row]
    assert [row["sensors"] for row in rows] == [1, 2, 3, 4]
    text = DOCS.read_text()
    for row in rows:
        sizes = " | ".join(f"{mib / 1024:.1f}" for mib in row["estimated_mib"].values())
        assert f"| {row['sensors']} | {row['trainable']:,} | {sizes} |" in text
    assert all(0.85 < row["kept_ratio"] < 1.15 for row in stored if "kept_ratio" in row)


def test_the_documented_command_line_is_the_method_as_published() -> None:
    (line,) = re.findall(r"^mlesam train recipes/\S+ (--model\.align .*)$", DOCS.read_text(), re.MULTILINE)
    words = line.split()
    changed = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    loaded = load_recipe(path("deliver_rgb-depth"), changed)
    chosen = (loaded.model.align, loaded.model.rescale, loaded.model.reliability)
    assert chosen == (False, False, False)
    assert loaded.training.modality_dropout == 0


# ---------------------------------------------------------------- a dry run without the weights


def write_deliver(root: Path, size: int = 96) -> Path:
    """Two frames of each split in DELIVER's layout."""
    rng = np.random.default_rng(0)
    folders = {"img": "rgb", "hha": "depth", "lidar": "lidar", "event": "event", "semantic": "semantic"}
    for split in ("train", "val", "test"):
        for weather in ("rain", "sun"):
            for folder, word in folders.items():
                picture = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
                if folder == "semantic":
                    picture = np.repeat(rng.integers(1, 26, (size, size, 1), dtype=np.uint8), 4, axis=2)
                    picture[:25, 0, 0] = np.arange(1, 26)
                file = root / folder / weather / split / "MAP_1_point1" / f"000001_{word}_front.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(picture).save(file)
    return root


def test_a_dry_run_needs_no_weights_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    data = write_deliver(tmp_path / "DELIVER")
    small = ("--model.foundation", "facebook/sam2.1-hiera-tiny", "--data.crop", "512")  # a tenth of the work
    assert main(["train", str(path("deliver_rgb-depth")), "--data", f"deliver:{data}", "--dry-run", *small]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "facebook/sam2.1-hiera-tiny is not in the Hub's cache on this machine" in text
    assert "random weights of the same size, tiny" in text
    assert "foundation: tiny (random weights, seed 3407)" in text
    assert "starts from random weights, so all of it is trained" not in text
    assert "foundation" not in text.partition("expert of rgb")[2].partition("measured on")[0]
    assert "sensors: rgb (3 channels, 96x96), depth (3 channels, 96x96); labels 96x96" in text
    assert "25 classes: Building, Fence" in text
    assert "99,575 steps of 8 frames" in text
    assert "one frame with all sensors, crops of 224 pixels" in text
    assert "scaled to 512 pixels" in text
    assert re.search(r"memory: at least [\d.]+ [GM]iB for 2 frames at a time", text)
    assert re.search(r"memory by training.accumulate: 1: .*, 2: .*, 4: .*, 8: ", text)
    assert re.search(r"time: at least \S+ \S+ for a step of 8 frames on this machine", text)
    assert text.endswith("all checks passed; nothing was written.")


def test_weights_that_nobody_published_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    data = write_deliver(tmp_path / "DELIVER")
    other = ("--model.foundation", "somebody/sam2.1-hiera-tiny")
    assert main(["train", str(path("deliver_rgb")), "--data", f"deliver:{data}", "--dry-run", *other]) == 1
    assert "somebody/sam2.1-hiera-tiny is not in the Hub's cache" in capsys.readouterr().err
