"""Aligners: what they compute, that they start as nothing, and that runs from before they existed still load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from mlesam.config import ModelConfig, load_recipe
from mlesam.model.aligner import Aligners
from mlesam.model.experts import Segment
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import RECIPE, Run
from mlesam.sample import Batch
from mlesam.training.loop import train

SENSORS = {"rgb": 3, "depth": 1, "thermal": 1}
PLAIN = ModelConfig(foundation="nano-random", rank=2, align=False)
WITH = replace(PLAIN, align=True)


def images(*modalities: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {m: torch.randn(2, c, 64, 64, generator=generator) for m, c in SENSORS.items()}
    return {m: drawn[m] for m in modalities}


def shake(model: MLESAM) -> MLESAM:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.aligners.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture
def model() -> MLESAM:
    return shake(MLESAM(SENSORS, 4, WITH).eval())


def test_each_sensor_gets_its_own_1x1_convolution_of_each_level() -> None:
    aligners = Aligners(("rgb", "depth"), width=5, levels=2)
    for parameter in aligners.parameters():
        torch.nn.init.normal_(parameter)
    maps = (torch.randn(3, 5, 8, 4), torch.randn(3, 5, 4, 2))
    segments = (Segment("depth", 0, 1), Segment("rgb", 1, 3))
    found = aligners(maps, segments)
    for level, (before, after) in enumerate(zip(maps, found, strict=True)):
        for segment in segments:
            own = aligners[segment.modality].levels[level]
            rows = slice(segment.start, segment.stop)
            expected = before[rows] + F.conv2d(before[rows], own.weight[:, :, None, None], own.bias)
            torch.testing.assert_close(after[rows], expected)


def test_a_fresh_model_gives_the_frozen_foundations_maps_bit_for_bit() -> None:
    model = MLESAM(SENSORS, 4, WITH).eval()
    frozen = model.foundation(images("rgb")["rgb"])
    for own, plain in zip(model.encode(Batch.of(images("rgb"))).levels, frozen, strict=True):
        assert torch.equal(own, plain)


def test_an_absent_sensors_aligner_changes_nothing(model: MLESAM) -> None:
    before = model(images("rgb", "depth")).logits
    with torch.no_grad():
        for parameter in model.aligners["thermal"].parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(model(images("rgb", "depth")).logits, before)


def test_a_sensor_in_company_is_aligned_as_it_is_alone(model: MLESAM) -> None:
    together = model.encode(Batch.of(images("rgb", "depth", "thermal")))
    alone = model.encode(Batch.of(images("depth")))
    for mine, all_ in zip(alone.levels, together.select(["depth"]).levels, strict=True):
        torch.testing.assert_close(mine, all_, rtol=0, atol=1e-5)


def test_it_belongs_to_its_sensor(model: MLESAM) -> None:
    assert {n for n in model.own_names("depth") if n.startswith("aligners.")} == {
        f"aligners.depth.levels.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    }
    model.train_only(["depth"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("aligners.")}
    assert trained == {n for n in model.own_names("depth") if n.startswith("aligners.")}


def test_without_them_there_is_not_one_parameter() -> None:
    assert not list(MLESAM(SENSORS, 4, PLAIN).aligners.parameters())


def test_a_merged_expert_keeps_its_aligner(model: MLESAM) -> None:
    before = model(images("depth")).logits
    torch.testing.assert_close(model.merge()(images("depth")).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("field", ["align", "rescale", "reliability"])
def test_a_run_from_before_the_field_existed_still_loads(dataset: Path, tmp_path: Path, field: str) -> None:
    changes = {f"model.{field}": "false", "data.dataset": f"folder:{dataset}", "data.modalities": "[rgb, depth]"}
    short = {"data.crop": "64", "data.workers": "0", "training.batch": "2", "training.steps": "2", "model.rank": "2"}
    run = train(load_recipe(None, {**short, **changes}), tmp_path / "run")
    path = run.path / RECIPE
    stored = yaml.safe_load(path.read_text())
    assert stored["model"].pop(field) is False
    path.write_text(yaml.safe_dump(stored))
    old = Run.load(run.path)
    assert getattr(old.recipe.model, field) is False
    given = images("rgb", "depth")
    with torch.inference_mode():
        assert torch.equal(old.load_model()(given).logits, run.load_model()(given).logits)
