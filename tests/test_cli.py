"""The commands as a user types them: what they write, what they say, and their exit status."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlesam.cli import main

SMALL = ("--model.rank", "4", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")


def mlesam(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], status: int, *words: object) -> str:
    """The one sentence a command says when it refuses."""
    got, _, error = mlesam(capsys, *words)
    assert got == status, error
    assert error.startswith("mlesam: ")
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset ``data`` and the run ``run``."""
    from conftest import write_dataset

    root = tmp_path_factory.mktemp("trained")
    write_dataset(root / "data")
    assert main(["train", "--data", f"folder:{root / 'data'}", "--out", str(root / "run"), *SMALL]) == 0
    return root


# ---------------------------------------------------------------- the main job


def test_own_data_train_with_one_command(trained: Path) -> None:
    assert {p.name for p in (trained / "run").iterdir()} == {
        "recipe.yaml",
        "run.json",
        "log.jsonl",
        "model.safetensors",
        "last.safetensors",
        "calibration.json",
    }


def test_evaluate_writes_the_metrics_of_every_subset(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = mlesam(capsys, "evaluate", trained / "run", "--out", tmp_path / "metrics.json")
    assert status == 0
    assert "rgb+depth+thermal" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == [
        "dataset", "split", "frames", "modalities", "classes", "protocol", "seed", "results", "summary", "tags",
        "frame_miou", "confusion", "reliability",
    ]  # fmt: skip
    assert metrics["split"] == "test"
    assert metrics["frames"] == 3
    assert metrics["modalities"] == ["rgb", "depth", "thermal"]
    assert [row["name"] for row in metrics["results"]] == [
        "rgb", "depth", "thermal", "rgb+depth", "rgb+thermal", "depth+thermal", "rgb+depth+thermal",
    ]  # fmt: skip
    for row in metrics["results"]:
        assert set(row) == {
            "name",
            "present",
            "miou",
            "iou",
            "pixel_accuracy",
            "miou_absent_as_zero",
            "weights",
            "frames",
            "temperature",
            "ece",
            "ece_uncalibrated",
            "aurc",
            "selective",
        }
        assert row["present"] == row["name"].split("+")
    known = [row["miou"] for row in metrics["results"]]
    assert metrics["summary"]["full"] == known[-1]
    assert metrics["summary"]["worst"] == min(known)
    assert metrics["summary"]["mean"] == pytest.approx(sum(known) / 7, abs=1e-6)
    assert metrics["tags"]["night"]["frames"] == 1
    assert len(metrics["tags"]["night"]["results"]) == 7
    stored = list((trained / "run" / "evaluation").glob("*.json"))
    assert (tmp_path / "metrics.json").read_text() in [path.read_text() for path in stored]


def test_the_metrics_are_those_of_the_written_predictions(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch import as_tensor
    from torchmetrics.functional.classification import multiclass_jaccard_index

    out = tmp_path / "predictions"
    data = f"folder:{trained / 'data'}"
    assert mlesam(capsys, "predict", trained / "run", "--input", data, "--split", "test", "--out", out)[0] == 0
    mlesam(capsys, "evaluate", trained / "run", "--out", tmp_path / "metrics.json")
    names = sorted(p.name for p in (out / "labels").iterdir())
    predicted = np.stack([np.asarray(Image.open(out / "labels" / n)) for n in names])
    truth = np.stack([np.asarray(Image.open(trained / "data/labels/test" / n)) for n in names])
    oracle = multiclass_jaccard_index(as_tensor(predicted).long(), as_tensor(truth).long(), num_classes=3)
    full = json.loads((tmp_path / "metrics.json").read_text())["results"][-1]["miou"]
    assert full == pytest.approx(float(oracle), abs=1e-6)


def test_predict_takes_any_subset_of_single_files(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = trained / "data"
    files = {m: data / m / "test/test0.png" for m in ("rgb", "depth", "thermal")}
    for subset in (["thermal"], ["depth", "rgb"]):
        out = tmp_path / "+".join(subset)
        # options before the run as well: their values are not mistaken for it
        words = [word for m in subset for word in (f"--{m}", files[m])]
        status, _, error = mlesam(capsys, "predict", *words, trained / "run", "--out", out)
        assert status == 0, error
        summary = json.loads((out / "prediction.json").read_text())
        (frame,) = summary["frames"]
        assert set(frame["present"]) == set(subset)
        assert sum(frame["weights"].values()) == pytest.approx(1, abs=1e-5)
        for name in ("labels", "overlay"):
            with Image.open(out / frame[name]) as picture:
                assert picture.size == (64, 48)


def test_predict_takes_a_plain_folder_without_labels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    for modality in ("rgb", "depth"):
        (folder / modality).mkdir(parents=True)
        source = trained / "data" / modality / "test/test1.png"
        (folder / modality / "a.png").write_bytes(source.read_bytes())
    (folder / "rgb" / "b.png").write_bytes((trained / "data/rgb/test/test2.png").read_bytes())
    assert mlesam(capsys, "predict", trained / "run", "--input", folder, "--out", tmp_path / "out")[0] == 0
    frames = json.loads((tmp_path / "out/prediction.json").read_text())["frames"]
    assert [(f["id"], f["present"]) for f in frames] == [("a", ["rgb", "depth"]), ("b", ["rgb"])]


def test_predict_uses_only_the_named_sensors(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--input",
        f"folder:{trained / 'data'}",
        "--split",
        "val",
        "--modalities",
        "depth",
        "--out",
        tmp_path / "o",
    )
    assert mlesam(capsys, "predict", trained / "run", *words)[0] == 0
    assert json.loads((tmp_path / "o/prediction.json").read_text())["frames"][0]["weights"] == {"depth": 1.0}


def test_other_data_are_scored_through_a_class_map(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_dataset

    other = write_dataset(tmp_path / "other")
    (other / "dataset.yaml").write_text("classes: [floor, box, wall]\n")
    words = ("evaluate", trained / "run", "--data", f"folder:{other}")
    assert "--class-map" in refused(capsys, 2, *words)
    mapping = tmp_path / "map.yaml"
    mapping.write_text("floor: ground\nbox: near\nwall: null\n")
    assert mlesam(capsys, *words, "--class-map", mapping, "--out", tmp_path / "m.json")[0] == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["classes"] == ["ground", "near", "far"]
    mapping.write_text("floor: ground\nbos: near\n")
    assert "did you mean 'box'" in refused(capsys, 2, *words, "--class-map", mapping)
    mapping.write_text("floor: ground\n")
    error = refused(capsys, 2, *words, "--class-map", mapping)
    assert "says nothing about box, wall" in error
    assert "with null for one that is not to be scored" in error
    assert "did you mean 'deliver-to-muses'" in refused(capsys, 2, *words, "--class-map", "deliver-to-mcubes")
    assert "is for another dataset" in refused(capsys, 2, *words[:2], "--class-map", mapping)


def test_answers_of_one_list_count_as_one_class_and_the_others_have_no_iou(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_dataset

    other = write_dataset(tmp_path / "other")
    (other / "dataset.yaml").write_text("classes: [floor, box, wall]\n")
    mapping = tmp_path / "map.yaml"
    mapping.write_text("floor: [ground, near, far]\nbox: null\nwall: null\n")
    words = (
        "evaluate",
        trained / "run",
        "--data",
        f"folder:{other}",
        "--class-map",
        mapping,
        "--out",
        tmp_path / "m.json",
    )
    assert mlesam(capsys, *words)[0] == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["class_map"] == {
        "name": str(mapping),
        "classes": {"floor": ["ground", "near", "far"], "box": None, "wall": None},
    }
    for row in metrics["results"]:  # whatever the model says is right
        assert row["iou"] == {"ground": 1.0, "near": None, "far": None}
        assert row["miou"] == row["pixel_accuracy"] == row["miou_absent_as_zero"] == 1.0
    assert "not scored: box, wall" in (tmp_path / "m.md").read_text()
    assert [p.name for p in (trained / "run/evaluation").glob("*-map-test-3.json")]


def test_a_sensor_that_means_something_else_there_is_refused_and_can_be_left_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_dataset

    other = write_dataset(tmp_path / "other")
    (other / "dataset.yaml").write_text("classes: [ground, near, far]\nsensors: {depth: {unit: feet}}\n")
    words = ("evaluate", trained / "run", "--data", f"folder:{other}", "--out", tmp_path / "m.json")
    error = refused(capsys, 2, *words)
    assert "depth of folder:" in error
    assert (
        "has the unit 'feet', but the run learned it with 'm'; choose those that fit with --modalities rgb,thermal"
        in error
    )
    assert mlesam(capsys, *words, "--modalities", "rgb,thermal")[0] == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["modalities"] == metrics["chosen"] == ["rgb", "thermal"]
    assert len(metrics["results"]) == 3
    assert "did you mean 'thermal'" in refused(capsys, 2, *words, "--modalities", "termal")


def test_views_are_stored_apart_and_the_tables_stand_beside(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", trained / "run", "--out", tmp_path / "m.json")
    assert mlesam(capsys, *words)[0] == 0
    plain = (tmp_path / "m.json").read_text()
    stored = trained / "run/evaluation"
    for options, name, views in (
        (("--scales", "1,1.5", "--flip"), "subsets-scales-1-1.5-flip-test-3", {"scales": [1.0, 1.5], "flip": True}),
        (("--window", "32", "--stride", "24"), "subsets-window-32-24-test-3", {"window": 32, "stride": 24}),
    ):
        status, out, _ = mlesam(capsys, *words, *options)
        assert status == 0
        assert "tables beside it: .md, .tex" in out
        found = json.loads((tmp_path / "m.json").read_text())
        assert found["views"] == views
        assert json.loads((stored / f"{name}.json").read_text()) == found
        assert found["results"] != json.loads(plain)["results"]
        for suffix in (".md", ".tex"):
            assert (stored / f"{name}{suffix}").read_text() == (tmp_path / f"m{suffix}").read_text()
        assert "windows of 32" in (tmp_path / "m.md").read_text() or "mirrored too" in (tmp_path / "m.md").read_text()
    assert (stored / "subsets-test-3.json").read_text() == plain
    assert mlesam(capsys, "report", trained / "run")[0] == 0
    from mlesam.evaluation.facts import stored_metrics
    from mlesam.model.run import Run

    assert stored_metrics(Run.load(trained / "run")) == json.loads(plain)


def test_the_same_kind_of_data_elsewhere_needs_no_class_map(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_dataset

    other = write_dataset(tmp_path / "other")
    (other / "dataset.yaml").unlink()
    (other / "labels/test/test1.png").unlink()
    status, out, _ = mlesam(
        capsys, "evaluate", trained / "run", "--data", f"folder:{other}", "--out", tmp_path / "m.json"
    )
    assert status == 0
    assert "1 frames have no label or none of the run's sensors and were left out: test1" in out
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["frames"] == 2
    assert metrics["classes"] == ["ground", "near", "far"]


def test_the_crack_recipe_runs_on_the_real_frames(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).resolve().parents[1] / "recipes/crack.yaml"
    small = ("--data.resize", "64", "--data.crop", "64", "--training.batch", "2", "--steps", "2", "--data.workers", "0")
    data = ("--data", f"folder:{shared / 'data/crack'}", "--training.validate_every", "2")
    assert mlesam(capsys, "train", recipe, *data, *small, "--out", tmp_path / "run")[0] == 0
    assert mlesam(capsys, "evaluate", tmp_path / "run", "--frames", "4", "--out", tmp_path / "m.json")[0] == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert [len(row["present"]) for row in metrics["results"]] == [1, 1, 1, 2, 2, 2, 3]
    assert metrics["tags"]["dark"]["frames"] == 4
    picture = shared / "data/crack/rgb" / "0085.jpg"
    assert mlesam(capsys, "predict", tmp_path / "run", "--rgb", picture, "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out/labels/0085.png") as labels:
        assert labels.size == (400, 400)


def test_a_dry_run_checks_everything_and_writes_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = mlesam(capsys, "train", "--data", f"folder:{trained / 'data'}", "--dry-run", *SMALL)
    assert status == 0
    assert "trainable parameters:" in out
    assert "all checks passed" in out
    assert not list(tmp_path.iterdir())


def test_frames_and_split_limit_an_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--split", "train", "--frames", "2", "--out", tmp_path / "m.json")
    assert mlesam(capsys, "evaluate", trained / "run", *words)[0] == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["split"], metrics["frames"]) == ("train", 2)


def test_a_frame_without_a_subset_is_left_out_of_its_row(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import write_dataset

    data = write_dataset(tmp_path / "data")
    (data / "depth/test/test0.png").unlink()
    words = ("evaluate", trained / "run", "--data", f"folder:{data}", "--out", tmp_path / "m.json")
    assert mlesam(capsys, *words)[0] == 0
    frames = {row["name"]: row["frames"] for row in json.loads((tmp_path / "m.json").read_text())["results"]}
    assert (frames["depth"], frames["rgb"], frames["rgb+depth"]) == (2, 3, 3)


# ---------------------------------------------------------------- bad input, one sentence each


def test_no_such_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no folder" in refused(capsys, 2, "train", "--data", f"folder:{tmp_path / 'nowhere'}")


def test_an_empty_split(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in dataset.glob("*/train/*.png"):
        path.unlink()
    error = refused(capsys, 2, "train", "--data", f"folder:{dataset}", "--out", tmp_path / "run")
    assert "split 'train'" in error
    assert "is empty" in error
    assert not (tmp_path / "run").exists()


def test_a_label_id_beyond_the_classes(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "dataset.yaml").write_text(f"classes: [{', '.join(f'c{i}' for i in range(12))}]\n")
    label = np.zeros((48, 64), dtype=np.uint8)
    label[5, 5] = 200
    for path in (dataset / "labels/train").iterdir():
        Image.fromarray(label).save(path)
    error = refused(capsys, 1, "train", "--data", f"folder:{dataset}", "--out", tmp_path / "run", *SMALL)
    assert "holds the label id 200, but there are 12 classes (0 to 11)" in error
    assert "labels/train/train" in error


def test_sensors_of_different_size(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (dataset / "depth/train").iterdir():
        Image.fromarray(np.ones((20, 30), dtype=np.uint16)).save(path)
    error = refused(capsys, 1, "train", "--data", f"folder:{dataset}", "--out", tmp_path / "run", *SMALL)
    assert "30x20" in error
    assert "64x48" in error
    assert "depth/train/train" in error


def test_a_sensor_that_does_not_exist(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, 2, "train", "--data", f"folder:{dataset}", "--data.modalities", "[rgb, dpeth]")
    assert "has no sensor 'dpeth'; did you mean 'depth'?" in error


def test_an_unknown_recipe_key(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("training: {stepz: 3}\n")
    error = refused(capsys, 2, "train", recipe, "--data", f"folder:{dataset}")
    assert "'training.stepz'; did you mean 'steps'?" in error
    assert "did you mean 'rank'" in refused(capsys, 2, "train", "--model.rnak", "3")


def test_a_truncated_png(dataset: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / "rgb/test/test0.png"
    path.write_bytes(path.read_bytes()[:200])
    error = refused(capsys, 1, "predict", trained / "run", "--rgb", path, "--out", tmp_path / "out")
    assert "test0.png cannot be decoded" in error
    assert not (tmp_path / "out").exists()


def test_an_image_that_claims_to_be_enormous(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    path = tmp_path / "bomb.png"
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"")
    path.write_bytes(start + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)))
    error = refused(capsys, 1, "predict", trained / "run", "--rgb", path, "--out", tmp_path / "out")
    assert "bomb.png claims to have 10,000,000,000 pixels" in error


def test_a_directory_that_already_holds_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, 2, "train", "--data", f"folder:{trained / 'data'}", "--out", trained / "run", *SMALL)
    assert "already holds a run" in error


def test_zero_sensors(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give either --input" in refused(capsys, 2, "predict", trained / "run", "--out", tmp_path / "out")
    data = f"folder:{trained / 'data'}"
    assert "no sensor was chosen" in refused(capsys, 2, "train", "--data", data, "--data.modalities", "[]")


def test_a_prediction_is_not_written_over(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("predict", trained / "run", "--rgb", trained / "data/rgb/test/test0.png", "--out", tmp_path / "out")
    assert mlesam(capsys, *words)[0] == 0
    assert "already holds a prediction" in refused(capsys, 2, *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trian",), "did you mean 'train'?"),
        (("train", "--resum", "x"), "did you mean '--resume'?"),
        (("train", "--resume"), "--resume needs the run"),
        (("train", "--resume", "--out", "x", "--training.lr", "1"), "give --out RUN --resume alone"),
        (("train",), "no dataset was named"),
        (("train", "missing.yaml"), "there is no file missing.yaml"),
        (("train", "--data", "foldr:x"), "did you mean 'folder'?"),
        (("train", "--steps", "many"), "invalid int value"),
        (("train", "--model.foundation", "nanoo", "--data", "x"), "unknown kind of dataset"),
        (("evaluate",), "RUN"),
        (("evaluate", "nowhere"), "nowhere is no run"),
        (("evaluate", "nowhere", "--protocl", "x"), "unknown option --protocl"),
        (("evaluate", "nowhere", "--scales", "big"), "--scales is 'big'"),
        (("evaluate", "nowhere", "--stride", "9"), "say their size, --window PIXELS"),
        (("evaluate", "nowhere", "--out", "table.md"), "name table.json"),
        (("predict", "nowhere", "--rgb", "a.png", "--out", "x"), "nowhere is no run"),
    ],
)
def test_a_wrong_request_gets_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(capsys, 2, *words)


def test_an_unknown_foundation(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "--data", f"folder:{dataset}", "--out", tmp_path / "run", "--model.foundation", "nanoo")
    assert "did you mean 'nano'?" in refused(capsys, 2, *words)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlesam", "evaluate", "nowhere", "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
