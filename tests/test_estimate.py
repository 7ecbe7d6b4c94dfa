"""What a dry run says a training will take: bytes are counted, and scaling them is held against counting at the real size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from conftest import write_dataset
from mlesam import MLESAM, Batch, ModelConfig
from mlesam.config import TrainingConfig, load_recipe
from mlesam.model import sam2
from mlesam.model.foundation import load_foundation
from mlesam.sample import IGNORE, Broken
from mlesam.training import dry_run
from mlesam.training.estimate import Estimate, estimate, measure, measuring_crop, part, passes, saved_bytes
from mlesam.training.loop import prepare
from mlesam.training.progress import Progress, duration
from mlesam.training.step import Step

SENSORS = ("rgb", "depth", "thermal")
CLASSES = 5


@pytest.fixture(scope="module")
def step() -> Step:
    model = MLESAM(dict.fromkeys(SENSORS, 3), CLASSES, ModelConfig(train="experts", rank=8))
    return Step(model, TrainingConfig()).train()


def batch(frames: int, side: int, sensors: tuple[str, ...] = SENSORS) -> Batch:
    torch.manual_seed(0)
    labels = torch.randint(0, CLASSES, (frames, side, side))
    return Batch.of({m: torch.randn(frames, 3, side, side) for m in sensors}, labels)


def estimated(step: Step, crop: int, measured: int, autocast: bool = False) -> Estimate:
    return estimate(step, [batch(n, crop) for n in (1, 2)], crop, measured, autocast)


def test_the_bytes_are_those_that_autograd_keeps() -> None:
    layers: Any = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 4)
    with saved_bytes(layers) as found:
        layers(x)
    assert found == [4 * 16 * (4 + 8)]  # the input and what ReLU returned, once; no weights
    with saved_bytes(layers) as found, torch.no_grad():
        layers(x)
    assert found == [0]


def test_watching_changes_no_gradient(step: Step) -> None:
    real = batch(1, 64)
    torch.manual_seed(0)
    step(real, passes(real, step.config))["loss"].backward()
    plain = {n: p.grad.clone() for n, p in step.model.named_parameters() if p.grad is not None}
    step.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    measure(step, real, autocast=False)
    assert plain
    for name, parameter in step.model.named_parameters():
        assert (parameter.grad is None) == (name not in plain)
        assert parameter.grad is None or torch.equal(parameter.grad, plain[name]), name
    step.zero_grad(set_to_none=True)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_small_crop_tells_what_the_real_one_keeps(step: Step, autocast: bool) -> None:
    found = estimated(step, 256, 128, autocast)
    for frames in (1, 2, 4):
        counted = measure(step, batch(frames, 256), autocast).saved
        assert found.fixed + frames * found.frame == pytest.approx(counted, rel=0.1)


def test_the_real_crop_is_counted_exactly(step: Step) -> None:
    found = estimated(step, 64, 64)
    assert found.fixed + 2 * found.frame == pytest.approx(measure(step, batch(2, 64), False).saved, rel=0.05)
    again = estimated(step, 64, 64)
    assert (found.fixed, found.frame) == (again.fixed, again.frame)


def test_memory_and_time_are_linear_in_the_frames(step: Step) -> None:
    found = estimated(step, 64, 64)
    assert found.memory(5) - found.memory(4) == found.memory(2) - found.memory(1) == found.frame > 0
    assert found.step_seconds(8) == pytest.approx(8 * found.step_seconds(1))


def test_weights_gradients_and_optimizer_are_counted(step: Step) -> None:
    found = estimated(step, 64, 64)
    trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    own = [*step.model.parameters(), *step.model.buffers()]
    assert found.weights == 4 * sum(t.numel() for t in own)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    assert found.memory(1) == found.weights + 12 * trained + found.activations
    assert all(p.grad is None for p in step.model.parameters())


def test_a_frozen_trunk_keeps_less_than_a_trained_one() -> None:
    kept = {}
    for train in ("experts", "all"):
        model = MLESAM({"rgb": 3}, CLASSES, ModelConfig(foundation="nano-random", train=train, rank=0))  # type: ignore[arg-type]
        kept[train] = measure(Step(model, TrainingConfig()).train(), batch(1, 64, ("rgb",)), False).saved
    assert kept["experts"] < 0.7 * kept["all"]


# ---------------------------------------------------------------- what is measured


def foundation(weights: int, tile: int) -> Any:
    return SimpleNamespace(parameters=lambda: [torch.empty(weights, device="meta")], tile=tile)


@pytest.mark.parametrize(
    ("weights", "sensors", "crop", "device", "expected"),
    [
        (4_000_000, 4, 256, "cpu", 256),  # nano is measured as it is
        (69_000_000, 4, 1024, "cpu", 224),  # base_plus is not
        (69_000_000, 1, 1024, "cpu", 224),
        (27_000_000, 1, 1024, "cpu", 448),  # whole windows
        (69_000_000, 4, 192, "cpu", 192),
        (69_000_000, 4, 1024, "cuda", 1024),
    ],
)
def test_the_measured_crop_is_the_real_one_or_fills_windows(
    weights: int, sensors: int, crop: int, device: str, expected: int
) -> None:
    assert measuring_crop(foundation(weights, 224), sensors, crop, device) == expected


@pytest.mark.parametrize(("name", "tile"), [("nano", 128), ("tiny", 224)])
@torch.no_grad()
def test_a_tile_needs_no_padding_and_no_smaller_side_does(
    name: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded: list[bool] = []
    real = sam2._scaled

    def watched(attention: Any, *qkv: torch.Tensor, beyond: int = 0) -> torch.Tensor:
        padded.append(beyond > 0)
        return real(attention, *qkv, beyond=beyond)

    monkeypatch.setattr(sam2, "_scaled", watched)
    trunk = load_foundation(name).foundation
    assert trunk.tile == tile
    for side in range(trunk.stride, tile + 1, trunk.stride):
        padded.clear()
        trunk(torch.zeros(1, 3, side, side))
        assert any(padded) == (side < tile), side


def test_the_middle_of_what_is_scored_is_measured() -> None:
    whole = batch(2, 64)
    assert whole.labels is not None
    whole.labels.fill_(IGNORE)
    whole.labels[:, 40:60, 0:20] = 1
    found = part(whole, 32)
    assert found.labels is not None
    assert found.size == (32, 32)
    assert int((found.labels == 1).sum()) == 2 * 20 * 20
    assert torch.equal(found.images["depth"], whole.images["depth"][..., 32:64, 0:32])
    whole.labels.fill_(IGNORE)
    assert torch.equal(part(whole, 32).images["rgb"], whole.images["rgb"][..., 16:48, 16:48])


def test_broken_copies_are_measured_as_well(step: Step) -> None:
    whole = batch(1, 64)
    broken = Broken({"depth": whole.images["depth"]}, {"depth": torch.tensor([0])}, {"depth": torch.tensor([3])})
    both = Batch(whole.images, whole.frames, whole.ids, whole.labels, whole.tags, broken)
    cut = part(both, 32)
    assert cut.broken is not None
    assert cut.broken.images["depth"].shape[-2:] == (32, 32)
    assert measure(step, both, False).saved > 1.2 * measure(step, whole, False).saved


@pytest.mark.parametrize(("dropout", "kept"), [(0.5, 2), (0.9, 1), (0.1, 2)])
def test_further_passes_have_the_usual_number_of_sensors(dropout: float, kept: int) -> None:
    found = passes(batch(2, 32), TrainingConfig(modality_dropout=dropout, subsets=3))
    assert [len(rows) for rows in found] == [kept] * 3
    assert all(bool(rows.all()) and len(rows) == 2 for keep in found for rows in keep.values())
    assert len({tuple(keep) for keep in found}) == 3


def test_nothing_is_left_out_where_nothing_can_be() -> None:
    assert passes(batch(1, 32, ("rgb",)), TrainingConfig()) == []
    assert passes(batch(1, 32), TrainingConfig(modality_dropout=0.0)) == []


# ---------------------------------------------------------------- the dry run around it


SMALL = {"model.rank": "4", "data.crop": "64", "data.workers": "0", "training.batch": "2"}


def test_it_measures_a_frame_that_has_every_sensor(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    (data / "depth/train/train0.png").unlink()
    prepared = prepare(load_recipe(None, {**SMALL, "data.dataset": f"folder:{data}"}))
    assert dry_run.fullest(prepared.train, tuple(prepared.sensors)) == 1
    faulty = prepare(load_recipe(None, {**SMALL, "data.dataset": f"folder:{data}", "data.faults": "0.1"}))
    sound = dry_run.take_steps(prepared, prepared.model(), False)
    broken = dry_run.take_steps(faulty, faulty.model(), False)
    assert broken.frame > 1.2 * sound.frame


def test_a_gpu_that_is_too_small_is_measured_on_small_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = dry_run.estimate, []

    def short(*words: Any) -> Estimate:
        tried.append(words[3])
        if words[3] == 256:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*words)

    monkeypatch.setattr(dry_run, "estimate", short)
    data = f"folder:{write_dataset(tmp_path / 'data')}"
    prepared = prepare(load_recipe(None, {**SMALL, "data.crop": "256", "data.dataset": data}))
    found = dry_run.take_steps(prepared, prepared.model(), False)
    assert tried == [256, 128]
    assert (found.crop, found.measured) == (256, 128)


def test_a_loss_that_is_no_number_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    broken = Estimate(64, 64, 1, 1, 1, 1, 1, 1.0, float("nan"))
    monkeypatch.setattr(dry_run, "take_steps", lambda *args: broken)
    chosen = load_recipe(None, {**SMALL, "data.dataset": f"folder:{write_dataset(tmp_path / 'data')}"})
    out = StringIO()
    assert dry_run.dry_run(chosen, None, Progress(Console(file=out, width=200))) == 1
    assert "the loss of the first step is nan" in out.getvalue()
    assert "all checks passed" not in out.getvalue()


def test_the_parts_are_all_that_is_trained(step: Step) -> None:
    parts = dry_run.parameters_by_part(step.model)
    assert sum(parts.values()) == sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    assert {f"expert of {m}" for m in SENSORS} < set(parts)
    assert parts["class tokens and their MLPs"] == sum(
        p.numel() for n, p in step.model.mask_head.named_parameters() if n.startswith(("mask_tokens", "hypernetworks"))
    )


def test_long_trainings_are_told_in_days() -> None:
    assert duration(86_400 * 1000) == "1,000 days"
    assert duration(86_400) == "24.0 h"
