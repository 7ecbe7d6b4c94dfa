"""`mlesam demo`: from nothing to a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlesam.demo
from mlesam.cli import main
from mlesam.world import WorldOptions


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The whole way, on few small frames."""
    monkeypatch.setattr(mlesam.demo, "OPTIONS", WorldOptions(frames=10, size=64))
    steps = ["--training.steps", "2", "--training.batch", "2", "--data.crop", "32", "--data.workers", "0"]
    return ["demo", *steps]


def test_the_demo_leaves_metrics_a_report_and_the_run(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main([*small, "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"world", "run", "metrics.json", "report.html"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"] == "subsets"
    assert metrics["split"] == "test"
    assert metrics["frames"] == 2
    assert len(metrics["results"]) == 15
    assert metrics["modalities"] == ["rgb", "depth", "lidar", "thermal"]
    assert set(metrics["tags"]) == {"day", "night"}
    assert "<html" in (out / "report.html").read_text()
    text = capsys.readouterr().out
    for command in ("mlesam world", "mlesam train", "mlesam evaluate", "mlesam report"):
        assert f"$ {command}" in text, "every step names the command that does it"
    assert "frozen" in text
    record = json.loads((out / "run" / "run.json").read_text())
    assert record["command"].startswith("mlesam demo")


def test_the_foundation_of_the_demo_stays_frozen(small: list[str], tmp_path: Path) -> None:
    from safetensors import safe_open

    assert main([*small, "--out", str(tmp_path / "demo")]) == 0
    with safe_open(tmp_path / "demo" / "run" / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert not [name for name in names if name.startswith("foundation.")]


def test_the_demo_writes_over_nothing(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("keep")
    assert main([*small, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} exists and is not empty; choose a new directory with --out." in error
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_without_a_name_the_demo_takes_the_first_free_one(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "report.html").write_text("an earlier demo")
    assert main(small) == 0
    assert (tmp_path / "runs" / "demo-2" / "report.html").is_file()
    assert (tmp_path / "runs" / "demo" / "report.html").read_text() == "an earlier demo"


def test_a_wrong_field_of_the_recipe_is_refused_before_anything_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--training.step", "3"]) == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
