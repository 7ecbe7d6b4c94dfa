"""`mlesam ablate`: every cell of a grid is trained once, and what is compared is compared on the same draws."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mlesam.cli import main
from mlesam.errors import RequestError
from mlesam.evaluation.comparison import Row, compare, dot_plot, markdown
from mlesam.evaluation.metrics import block_bootstrap, mean_iou
from mlesam.training import ablation
from mlesam.training.ablation import read_result, run_all
from mlesam.training.grid import axes, parse_variant, parse_vary, plan

SMALL = {
    "data.crop": "64", "data.workers": "0", "training.batch": "2", "training.steps": "2",
}  # fmt: skip
WORDS = [word for key, value in SMALL.items() for word in (f"--{key}", value)]


# ---------------------------------------------------------------- what is varied


def test_an_axis_is_a_field_and_its_values() -> None:
    assert parse_vary("model.rank=4,8")[1].keys() == {"4", "8"}
    key, axis = parse_vary("data.modalities=[rgb,depth],[rgb],null")
    assert key == "data.modalities"
    assert list(axis) == ["rgb+depth", "rgb", "none"]
    assert yaml.safe_load(axis["rgb+depth"][key]) == ["rgb", "depth"]
    _, maps = parse_vary("data.label_map={255: 1},null")
    assert [yaml.safe_load(fields["data.label_map"]) for fields in maps.values()] == [{255: 1}, None]
    assert list(parse_vary("name=2024-01-01,b")[1]) == ["2024-01-01", "b"]


def test_a_variant_changes_fields_together() -> None:
    assert parse_variant(["full", "model.train=all", "training.lr=1e-3"]) == (
        "full",
        {"model.train": "all", "training.lr": "1e-3"},
    )


def test_seed_is_always_the_last_axis() -> None:
    assert list(axes(["seed=0,1", "model.rank=4,8"], [["a"], ["b", "model.top_k=1"]])) == [
        "model.rank",
        "variant",
        "seed",
    ]


@pytest.mark.parametrize(
    ("vary", "variants", "words"),
    [
        ([], [], "nothing is varied"),
        (["model.rank"], [], "'model.rank' cannot be read"),
        (["model.rank="], [], "cannot be read"),
        (["model.rank=4,[8"], [], "cannot be read"),
        (["model.rank=4,4"], [], "gives a value twice"),
        (["model.rank=4", "model.rank=8"], [], "names model.rank twice"),
        ([], [["model.rank=4"]], "cannot be read"),
        ([], [["full", "all"]], "cannot be read"),
        ([], [["a", "model.rank=4"], ["a", "model.rank=8"]], "names 'a' twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(vary: list[str], variants: list[list[str]], words: str) -> None:
    with pytest.raises(RequestError, match=words.replace("[", r"\[")):
        axes(vary, variants)


def test_a_grid_has_every_combination_and_a_folder_for_each_recipe(dataset: Path, tmp_path: Path) -> None:
    common = {**SMALL, "data.dataset": f"folder:{dataset}"}
    chosen = axes(["model.rank=0,2", "seed=0,1"], [["a"], ["b", "training.lr=1e-4"]])
    cells = plan(None, common, chosen, tmp_path / "runs")
    assert [list(c.labels.values()) for c in cells[:3]] == [["0", "a", "0"], ["0", "a", "1"], ["0", "b", "0"]]
    assert len({c.path for c in cells}) == len(cells) == 8
    again = plan(None, {**common, "name": "other"}, axes(["model.rank=2"], []), tmp_path / "runs")
    assert again[0].path == cells[4].path, "the name of a recipe is no part of it"
    said = plan(None, {**common, "training.clip": "1.0"}, axes(["model.rank=2"], []), tmp_path / "runs")
    assert said[0].path == cells[4].path, "a field at its default says nothing new"


def test_whatever_is_read_makes_another_training(dataset: Path, tmp_path: Path) -> None:
    common = {**SMALL, "data.dataset": f"folder:{dataset}"}
    seen = {path_of(common, tmp_path)}
    for file in dataset.glob("*/train/train0.png"):
        file.rename(file.with_name("new.png"))
    seen.add(path_of(common, tmp_path))
    picture = dataset / "labels" / "test" / "test0.png"
    picture.write_bytes(picture.read_bytes())  # the same size, written anew
    seen.add(path_of(common, tmp_path))
    for file in dataset.glob("*/test/test1.png"):
        file.unlink()
    seen.add(path_of(common, tmp_path))
    assert len(seen) == 4
    assert path_of(common, tmp_path) in seen


def path_of(common: dict[str, str], runs: Path) -> Path:
    return plan(None, common, axes(["model.rank=2"], []), runs)[0].path


def test_a_wrong_field_is_refused_before_anything_is_trained(dataset: Path, tmp_path: Path) -> None:
    common = {**SMALL, "data.dataset": f"folder:{dataset}"}
    with pytest.raises(RequestError, match="lr is -1"):
        plan(None, common, axes(["training.lr=1e-3,-1"], []), tmp_path)
    with pytest.raises(RequestError, match=r"training\.steps is set to 2 and varied by training\.steps as well"):
        plan(None, common, axes(["training.steps=2,4"], []), tmp_path)
    with pytest.raises(RequestError, match="rank is varied on two axes"):
        plan(None, common, axes(["model.rank=2,4"], [["a", "model.rank=8"]]), tmp_path)
    assert list(tmp_path.glob("*/recipe.yaml")) == []


# ---------------------------------------------------------------- the comparison


def matrices(seed: int, frames: int = 12, classes: int = 3) -> np.ndarray:
    """Predictions at random for the same labels: rows of the truth have sums that do not depend on the seed."""
    totals = np.random.default_rng(99).integers(100, 200, (frames, classes))
    share = np.random.default_rng(seed).dirichlet(np.ones(classes), (frames, classes))
    found = np.floor(share * totals[..., None]).astype(np.int64)
    found[..., 0] += totals - found.sum(axis=2)
    return found


def row(name: str, *runs: np.ndarray, group: str = "", frames: str = "abcdefghijkl") -> Row:
    facts = {"trainable": 10, "step_seconds": 0.1, "peak_mib": None}
    return Row(group, name, {str(i): run for i, run in enumerate(runs)}, tuple(frames), facts)


def test_with_one_seed_the_interval_is_the_bootstrap_over_frames() -> None:
    found = compare([row("a", matrices(0))])[0]
    assert found["interval"] == [round(v, 4) for v in block_bootstrap(matrices(0), 1)]
    assert found["miou"] == round(float(mean_iou(matrices(0).sum(0))), 4)


def test_several_seeds_are_averaged_and_widen_the_interval() -> None:
    good, bad = matrices(0) + 600 * np.eye(3, dtype=int), matrices(1)
    found = compare([row("a", good, bad)])[0]
    one, two = (float(mean_iou(m.sum(0))) for m in (good, bad))
    assert found["by_seed"] == {"0": round(one, 4), "1": round(two, 4)}
    assert found["miou"] == round((one + two) / 2, 4)
    # With two seeds, a quarter of the draws is the good one alone and a quarter the bad one alone.
    assert found["interval"][1] > one - 0.05
    assert found["interval"][0] < two + 0.05


def test_a_difference_is_paired_by_frame_and_seed() -> None:
    a, b = matrices(0), matrices(1)
    same = compare([row("first", a, b), row("same", a, b)])[1]
    assert (same["difference"], same["difference_interval"]) == (0.0, [0.0, 0.0])
    # A shift that is the same for every frame and seed has no spread, however much the frames and seeds differ.
    perfect = np.stack([np.eye(2, dtype=int) * k * 2 for k in range(1, 13)])
    half = np.stack([np.array([[k, k], [k, k]]) for k in range(1, 13)])
    shifted = compare([row("half", half, half), row("perfect", perfect, perfect)])[1]
    assert shifted["difference"] == round(1 - 1 / 3, 4)
    assert shifted["difference_interval"] == [0.6667, 0.6667]


def test_groups_have_their_own_first_row_and_other_frames_no_difference() -> None:
    a, b = matrices(0), matrices(1)
    found = compare([row("x", a, group="1"), row("y", b, group="1"), row("x", b, group="2"), row("y", b, group="2")])
    assert [r["difference"] is None for r in found] == [True, False, True, False]
    assert found[3]["difference"] == 0.0
    assert [r["difference_to"] for r in found] == [None, "x", None, "x"]
    other = compare([row("x", a), row("y", b, frames="bcdefghijklm"), row("z", a, a), row("w", a + 1)])
    assert [r["difference"] for r in other] == [None] * 4, "frames, seeds or labels differ"
    without = compare([row("x", a, group="1"), row("y", b, group="2"), row("z", b, group="2")])
    assert [r["difference"] for r in without] == [None] * 3, "the second group has no x"


def test_another_row_than_the_first_can_be_the_one_compared_with() -> None:
    rows = [row("x", matrices(0)), row("y", matrices(1)), row("z", matrices(2))]
    found = compare(rows, "y")
    assert [r["difference"] is None for r in found] == [False, True, False]
    turned = compare([rows[1], rows[0], rows[2]])
    assert [r["difference"] for r in (found[1], found[0], found[2])] == [r["difference"] for r in turned]
    assert found[0]["difference_interval"] == turned[1]["difference_interval"]


def test_the_table_and_the_plot_say_the_numbers_and_escape_the_names() -> None:
    rows = compare([row("a <b>", matrices(0), group="g&h"), row("b", matrices(1), group="g&h"), row("c", matrices(2))])
    text = markdown(rows, ("groups", "names"))
    assert text.splitlines()[0].startswith("| groups | names | mIoU | 95 % |")
    assert f"| {100 * rows[0]['miou']:.1f} |" in text
    assert f"| {100 * rows[1]['difference']:+.1f} |" in text
    drawing = ElementTree.fromstring(dot_plot(rows, "a & b"))
    words = [e.text for e in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b>", "g&h", "a & b", f"{100 * rows[0]['miou']:.1f}"} <= set(words)
    dots = [e for e in drawing.iter("{http://www.w3.org/2000/svg}circle") if e.get("class") == "mean"]
    places = [float(e.get("cx", "nan")) for e in dots]
    assert np.argsort(places).tolist() == np.argsort([r["miou"] for r in rows]).tolist()
    bars = [e for e in drawing.iter("{http://www.w3.org/2000/svg}line") if e.get("class") == "interval"]
    assert all(float(b.get("x1", "nan")) <= x <= float(b.get("x2", "nan")) for b, x in zip(bars, places, strict=True))


# ---------------------------------------------------------------- the command


def test_a_grid_is_trained_once_goes_on_and_shares_its_runs(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    words = ["ablate", "--data", f"folder:{dataset}", *WORDS, "--runs", str(runs)]
    grid = ["--vary", "model.rank=0,2", "--vary", "seed=0,1"]
    assert main([*words, *grid, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "[4/4] model.rank" in said
    content = json.loads((out / "ablation.json").read_text())
    assert {axis: list(labels) for axis, labels in content["axes"].items()} == {
        "model.rank": ["0", "2"],
        "seed": ["0", "1"],
    }
    frozen, experts = content["results"]
    assert (frozen["name"], experts["name"], frozen["seeds"], frozen["frames"]) == ("0", "2", 2, 3)
    assert experts["trainable"] > frozen["trainable"]
    assert experts["peak_mib"] > 100
    stored = json.loads((runs / frozen["runs"]["1"] / "evaluation" / "subsets-test-3.json").read_text())
    assert frozen["by_seed"]["1"] == pytest.approx(stored["summary"]["full"], abs=1e-4)
    assert (out / "ablation.md").read_text().count("\n") == 4
    assert ElementTree.fromstring((out / "ablation.svg").read_text()) is not None

    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/model.safetensors")}
    (runs / frozen["runs"]["0"] / "evaluation" / "frames.safetensors").unlink()  # killed before it was tested
    assert main([*words, "--vary", "training.lr=1e-4", "--out", str(out)]) == 2
    assert "holds another comparison" in capsys.readouterr().err
    assert main([*words, *grid, "--out", str(out)]) == 0, "the same one goes on"
    capsys.readouterr()
    (runs / frozen["runs"]["0"] / "evaluation" / "frames.safetensors").unlink()
    assert main([*words, *grid, "--out", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 trainings are done already" in said
    assert before == {path: path.stat().st_mtime_ns for path in runs.glob("*/model.safetensors")}
    assert json.loads((tmp_path / "other" / "ablation.json").read_text())["results"] == content["results"]

    last = experts["runs"]["1"]
    whole = read_result(runs / last)
    _cut_after_first_step(runs / last)
    chosen = axes(["model.rank=2", "seed=1"], [])
    cells = plan(None, {**SMALL, "data.dataset": f"folder:{dataset}"}, chosen, runs)
    assert cells[0].path == runs / last
    assert run_all(cells) == {}
    resumed = read_result(runs / last)
    assert all(np.array_equal(whole.confusions[k], resumed.confusions[k]) for k in whole.confusions)


def _cut_after_first_step(run: Path) -> None:
    """Leave what a training leaves that was killed as it wrote its first checkpoint."""
    shutil.rmtree(run / "evaluation")
    (run / "last.safetensors").rename(run / ".last.safetensors.writing")
    log = run / "log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")


def test_one_failure_leaves_the_others_and_their_comparison(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["ablate", "--data", f"folder:{dataset}", *WORDS, "--out", str(out), "--training.clip", "0"]
    status = main([*words, "--vary", "training.lr=1e-3,1e30"])
    captured = capsys.readouterr()
    assert status == 1
    assert captured.err.startswith("mlesam: 1 trainings failed and are not in the table, first: training.lr 1e30: the ")
    assert len(captured.err.splitlines()) == 1
    assert [r["name"] for r in json.loads((out / "ablation.json").read_text())["results"]] == ["1e-3"]


def test_labels_that_score_nothing_are_one_sentence(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (dataset / "labels" / "test").iterdir():
        Image.fromarray(np.full((48, 64), 255, dtype=np.uint8)).save(file)
    words = ["ablate", "--data", f"folder:{dataset}", *WORDS, "--out", str(tmp_path / "out"), "--vary", "model.rank=2"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "no pixel of split test" in error
    assert len(error.splitlines()) == 1
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["results"] == []


def test_two_grids_at_once_train_what_they_share_once(dataset: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mlesam", "ablate", "--data", f"folder:{dataset}", *WORDS]
    words += ["--runs", str(tmp_path / "runs"), "--vary", "seed=0"]
    both = [subprocess.Popen([*words, "--out", str(tmp_path / name)]) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    first, second = (json.loads((tmp_path / name / "ablation.json").read_text())["results"] for name in ("a", "b"))
    assert first == second
    (log,) = (tmp_path / "runs").glob("*/log.jsonl")
    steps = [e["step"] for e in map(json.loads, log.read_text().splitlines()) if e["event"] == "step"]
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--vary", "model.rank=2", "--jobs", "0"], "--jobs is 0, but it must be at least 1"),
        (["--vary", "model.ranks=2"], "unknown key 'model.ranks'; did you mean 'rank'?"),
        (["--vary", "model.rank=2", "--rank", "3"], "unknown option --rank"),
        ([], "nothing is varied"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    words: list[str], reason: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "--data", f"folder:{dataset}", *WORDS, "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1


def test_a_folder_with_something_else_in_it_is_not_written_to(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--data", f"folder:{dataset}", *WORDS, "--out", str(dataset), "--vary", "model.rank=2"]
    assert main(words) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert not (dataset / ablation.TABLE).with_suffix(".json").exists()
