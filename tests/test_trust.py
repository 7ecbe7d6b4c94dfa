"""Training with broken sensors, and learning whom to trust after it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mlesam import MLESAM, Batch, ModelConfig
from mlesam.config import Recipe, TrainingConfig, load_recipe
from mlesam.errors import RequestError, WorkError
from mlesam.model.checkpoints import load_metadata, load_tensors
from mlesam.model.features import Features
from mlesam.model.run import WEIGHTS, Run
from mlesam.sample import Sample
from mlesam.training.loop import train
from mlesam.training.step import Step
from mlesam.training.trust import explained, fit_trust

SENSORS = {"rgb": 3, "depth": 1, "thermal": 1}
SHORT = {
    "model.rank": "2", "model.reliability": "true", "data.crop": "64", "data.workers": "0", "training.batch": "2",
    "training.steps": "2",
}  # fmt: skip


def recipe(dataset: Path, sensors: str = "[rgb, depth]", **changes: str) -> Recipe:
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe(None, {**SHORT, "data.dataset": f"folder:{dataset}", "data.modalities": sensors, **more})


@pytest.fixture
def model() -> MLESAM:
    torch.manual_seed(0)
    return MLESAM(SENSORS, 4, ModelConfig(foundation="nano-random", rank=2, reliability=True)).eval()


def image(modality: str, seed: int) -> torch.Tensor:
    return torch.randn(SENSORS[modality], 64, 64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_broken_row_stands_in_the_place_of_its_own_frames_sound_one(model: MLESAM) -> None:
    samples = [Sample({m: image(m, 10 * i + k) for k, m in enumerate(SENSORS)}, id=str(i)) for i in range(3)]
    features = model.encode(Batch.stack(samples))
    one, two = image("depth", 100), image("rgb", 101)
    broken = [
        replace(samples[0], broken={"rgb": (two, 5)}),
        samples[1],
        replace(samples[2], broken={"depth": (one, 3)}),
    ]
    batch = Batch.stack(broken)
    assert batch.broken is not None
    step = Step(model, TrainingConfig())
    joined = model.decode(Features.join([features, step._broken(batch, batch.broken)])).logits
    seen = [
        replace(samples[0], images={**samples[0].images, "rgb": two}),
        samples[1],
        replace(samples[2], images={**samples[2].images, "depth": one}),
    ]
    torch.testing.assert_close(joined, model(Batch.stack(seen)).logits, rtol=1e-4, atol=1e-4)


def test_a_step_learns_from_the_broken_sensors_too(model: MLESAM) -> None:
    labels = torch.randint(0, 4, (64, 64), generator=torch.Generator().manual_seed(1))
    sample = Sample({"rgb": image("rgb", 1), "depth": image("depth", 2)}, labels, "a")
    step = Step(model.train(), TrainingConfig(modality_dropout=0))
    with torch.no_grad():
        plain = step(Batch.stack([sample]))["loss"]
        same = step(Batch.stack([replace(sample, broken={"rgb": (sample.images["rgb"], 1)})]))["loss"]
        other = step(Batch.stack([replace(sample, broken={"rgb": (image("rgb", 9), 5)})]))["loss"]
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)
    assert abs(float(other - plain)) > 1e-4


def test_what_is_fitted_changes_nothing_but_the_reliability_and_tells_noise_from_frames(
    dataset: Path, tmp_path: Path
) -> None:
    run = train(recipe(dataset), tmp_path / "run")
    assert load_metadata(run.path / WEIGHTS)["trust_fitted"] is True
    without = train(recipe(dataset, model__reliability="false"), tmp_path / "without")
    fitted, plain = (load_tensors(r.path / WEIGHTS)[0] for r in (run, without))
    assert {n for n in fitted if n not in plain} == {n for n in fitted if n.startswith("reliability.")}
    assert all(torch.equal(fitted[n], plain[n]) for n in plain)
    again = train(recipe(dataset), tmp_path / "again")
    assert all(torch.equal(a, fitted[n]) for n, a in load_tensors(again.path / WEIGHTS)[0].items())


def test_a_finished_run_that_is_resumed_learns_it_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlesam.training.trust.fit_trust", stopped)
    with pytest.raises(WorkError, match=r"finish with: mlesam train --out .* --resume"):
        train(recipe(dataset), tmp_path / "run")
    assert "trust_fitted" not in load_metadata(tmp_path / "run" / WEIGHTS)
    monkeypatch.undo()
    run = train(Run.load(tmp_path / "run").recipe, tmp_path / "run", resume=True)
    assert load_metadata(run.path / WEIGHTS)["trust_fitted"] is True
    with pytest.raises(RequestError, match="is finished"):
        train(run.recipe, run.path, resume=True)


def test_an_extension_learns_it_for_the_new_sensor_alone(dataset: Path, tmp_path: Path) -> None:
    first = train(recipe(dataset, "[depth, thermal]"), tmp_path / "first")
    run = train(recipe(dataset, "[rgb, depth, thermal]"), tmp_path / "second", extend=first.path)
    before, after = load_tensors(first.path / WEIGHTS)[0], load_tensors(run.path / WEIGHTS)[0]
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert after["reliability.rgb.mean"].any()
    given = {m: torch.randn(1, SENSORS[m], 64, 96) for m in ("depth", "thermal")}
    old, new = first.load_model(), run.load_model()
    with torch.inference_mode():
        for count in (1, 2):
            for subset in combinations(given, count):
                chosen = {m: given[m] for m in subset}
                assert torch.equal(old(chosen).logits, new(chosen).logits)


def test_what_a_broken_picture_still_explains() -> None:
    picture = image("rgb", 1)
    assert explained(picture, 3 * picture + 2) == pytest.approx(1)
    assert explained(picture, -picture) == 0
    assert explained(picture, torch.zeros_like(picture)) == 0
    noisy = picture + torch.randn(picture.shape, generator=torch.Generator().manual_seed(2))
    expected = np.corrcoef(picture.flatten().numpy(), noisy.flatten().numpy())[0, 1] ** 2
    assert explained(picture, noisy) == pytest.approx(expected)


def test_one_sensor_has_nothing_to_be_weighed_against(dataset: Path, tmp_path: Path) -> None:
    run = train(recipe(dataset, "[rgb]"), tmp_path / "run")
    assert "trust_fitted" not in load_metadata(run.path / WEIGHTS)
    model = run.load_model()
    fit_trust(model, [], run.sensors)
    assert not len(model.reliability)
