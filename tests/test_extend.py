"""A sensor that comes later: what is trained, and that nothing else changes by a single bit."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from mlesam.cli import main
from mlesam.config import Recipe, load_recipe
from mlesam.errors import DataError, RequestError
from mlesam.model.checkpoints import file_sha256, load_tensors
from mlesam.model.router import softmax
from mlesam.model.run import LAST, WEIGHTS, Run
from mlesam.training.loop import train

SMALL = {
    "model.rank": "2",
    "data.crop": "64",
    "data.workers": "0",
    "training.batch": "2",
    "training.steps": "3",
    "training.validate_every": "3",
}


def recipe(dataset: Path, sensors: str, **changes: str) -> Recipe:
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe(None, {**SMALL, "data.dataset": f"folder:{dataset}", "data.modalities": sensors, **more})


@pytest.fixture
def first(dataset: Path, tmp_path: Path) -> Run:
    """A run with two sensors, neither of them first in the canonical order of all three."""
    return train(recipe(dataset, "[depth, thermal]", training__steps="6"), tmp_path / "first")


def inputs(*modalities: str) -> dict[str, torch.Tensor]:
    channels = {"rgb": 3, "depth": 1, "thermal": 1}
    generator = torch.Generator().manual_seed(5)
    drawn = {m: torch.randn(2, c, 64, 96, generator=generator) for m, c in channels.items()}
    return {m: drawn[m] for m in modalities}


@pytest.mark.parametrize("dropout", ["0.0", "0.3"])
def test_only_the_new_sensors_own_tensors_change(first: Run, dataset: Path, tmp_path: Path, dropout: str) -> None:
    changes = {} if dropout == "0.0" else {"training__modality_dropout": dropout}
    run = train(recipe(dataset, "[rgb, depth, thermal]", **changes), tmp_path / "second", extend=first.path)
    old, new = load_tensors(first.path / WEIGHTS)[0], load_tensors(run.path / WEIGHTS)[0]
    assert set(old) < set(new)
    added = set(new) - set(old)
    assert all(
        n.startswith(("experts.rgb.", "aligners.rgb.", "reliability.rgb.")) or ".scorers.rgb." in n for n in added
    ), added
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name
    assert all(new[n].any() for n in added if n.endswith(".b")), "the new expert has learned"
    optimised = {n.split(".", 1)[1] for n in load_tensors(run.path / LAST)[0] if n.startswith("optimizer.")}
    assert {n.rpartition(".")[0] for n in optimised} <= added, "no optimiser state for what is frozen"
    # What the old sensors' numbers mean has not changed either, nor what their subsets give.
    assert {m: run.sensors[m] for m in first.sensors} == first.sensors
    before, after = first.load_model(), run.load_model()
    with torch.inference_mode():
        for count in (1, 2):
            for subset in combinations(("depth", "thermal"), count):
                assert torch.equal(before(inputs(*subset)).logits, after(inputs(*subset)).logits), subset
                shares = after(inputs(*subset)).shares
                assert torch.equal(shares[..., 1:], before(inputs(*subset)).shares)
        everything = inputs("rgb", "depth", "thermal")
        assert not torch.equal(after(everything).logits, after(inputs("depth", "thermal")).logits)


def test_an_extension_says_where_it_comes_from_and_can_be_resumed(
    first: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((dataset / "thermal").rglob("*"), reverse=True):  # the new data lack a sensor that the run has
        path.unlink() if path.is_file() else path.rmdir()
    (dataset / "thermal").rmdir()
    whole = train(recipe(dataset, "[rgb, depth]", training__validate_every="1"), tmp_path / "whole", extend=first.path)
    record = json.loads((whole.path / "run.json").read_text())
    assert record["extends"] == {"run": str(first.path), "sha256": file_sha256(first.path / WEIGHTS)}
    assert whole.recipe.training.only == ("rgb",)
    assert list(whole.sensors) == ["rgb", "depth", "thermal"], "it stays in the model"
    from mlesam.training import loop

    step = loop.Trainer._one_step

    def killed(self, micro_batches):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, micro_batches)

    monkeypatch.setattr(loop.Trainer, "_one_step", killed)
    with pytest.raises(Exception, match="stopped at step 2"):
        train(recipe(dataset, "[rgb, depth]", training__validate_every="1"), tmp_path / "cut", extend=first.path)
    monkeypatch.setattr(loop.Trainer, "_one_step", step)
    resumed = train(Run.load(tmp_path / "cut").recipe, tmp_path / "cut", resume=True)
    one, other = (load_tensors(run.path / LAST)[0] for run in (whole, resumed))
    assert set(one) == set(other)
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_batches_without_the_new_sensor_teach_it_nothing_and_stop_nobody(
    first: Run, dataset: Path, tmp_path: Path
) -> None:
    for path in sorted((dataset / "rgb/train").iterdir())[1:]:
        path.unlink()
    run = train(recipe(dataset, "[rgb, depth]", training__batch="1"), tmp_path / "second", extend=first.path)
    assert "rgb" in run.sensors


@pytest.mark.parametrize(
    ("sensors", "changes", "says"),
    [
        ("[depth]", {}, r"has no sensor that .*first lacks \(depth, thermal\)"),
        ("[rgb]", {"model__rank": "8"}, "model.rank is 8, but .* was trained with 2"),
        ("[rgb]", {"data__classes": "[ground, near, sky]"}, "an extension keeps the classes"),
    ],
)
def test_what_an_extension_cannot_be_is_said(
    first: Run, dataset: Path, tmp_path: Path, sensors: str, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        train(recipe(dataset, sensors, **changes), tmp_path / "second", extend=first.path)
    assert not (tmp_path / "second").exists()


def test_a_shared_expert_cannot_be_extended(dataset: Path, tmp_path: Path) -> None:
    shared = train(recipe(dataset, "[depth, thermal]", model__experts="shared"), tmp_path / "shared")
    with pytest.raises(RequestError, match="share one expert"):
        train(recipe(dataset, "[rgb]"), tmp_path / "second", extend=shared.path)


def test_a_run_that_lost_a_tensor_is_no_start(first: Run, dataset: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(first.path / WEIGHTS)
    tensors.pop("mask_head.mask_tokens.weight")
    metadata = {"foundation_sha256": json.dumps(first.load_model().foundation_sha256)}
    save_file(tensors, first.path / WEIGHTS, metadata=metadata)
    with pytest.raises(DataError, match=r"missing: mask_head\.mask_tokens\.weight"):
        train(recipe(dataset, "[rgb]"), tmp_path / "second", extend=first.path)


def test_the_command_extends_and_its_dry_run_writes_nothing(
    first: Run, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = [word for key, value in SMALL.items() if key != "model.rank" for word in (f"--{key}", value)]
    words = [
        "train",
        "--data",
        f"folder:{dataset}",
        "--extend",
        str(first.path),
        "--out",
        str(tmp_path / "new"),
        *fields,
    ]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "new").exists()
    assert main(words) == 0
    assert "extending" in capsys.readouterr().out
    assert set(Run.load(tmp_path / "new").sensors) == {"rgb", "depth", "thermal"}
    assert main([*words, "--init", str(first.path)]) == 2
    assert "give one of the two" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_an_absent_sensor_changes_no_bit_of_the_others_weights(place: int) -> None:
    torch.manual_seed(place)
    scores = torch.randn(500, 3) * 5
    absent = torch.full((500, 1), float("-inf"))
    more = torch.cat([scores[:, :place], absent, scores[:, place:]], dim=1)
    kept = [i for i in range(4) if i != place]
    assert torch.equal(softmax(more)[:, kept], softmax(scores))
    assert not softmax(more)[:, place].any()
    torch.testing.assert_close(softmax(scores), torch.softmax(scores, dim=1))
