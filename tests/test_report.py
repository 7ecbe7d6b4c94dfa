"""The report: one page that needs nothing but itself, and whose numbers are those of metrics.json."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from conftest import write_dataset
from mlesam.cli import main
from mlesam.data.loading import EvaluationFrames, batches, evaluation_loader
from mlesam.errors import RequestError
from mlesam.evaluation.charts import nice_ticks, smoothed
from mlesam.evaluation.evaluate import Evaluation, dumps, evaluate, open_split, store
from mlesam.evaluation.gallery import choose
from mlesam.evaluation.markup import change, h, percent
from mlesam.evaluation.pictures import EMPTY, MEANING, WRONG, error_picture, kind, sensor_picture
from mlesam.evaluation.protocols import predict
from mlesam.evaluation.report import write_report
from mlesam.model.run import Run
from mlesam.sample import IGNORE
from mlesam.sensors.spec import BUILTIN, SensorSpec

SMALL = ("--model.rank", "4", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")
HOSTILE = "<script>alert('far & near')</script>"
VOID = {"meta", "link", "img", "br", "col"}


class Page(HTMLParser):
    """A page taken apart. Opening and closing tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> was never opened"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with three sensors, a tag and names that are markup; ``run`` trained on it; two frames lack a sensor."""
    root = tmp_path_factory.mktemp("report")
    write_dataset(root / "data", test=5)
    (root / "data" / "dataset.yaml").write_text(f'classes: [ground, near, "{HOSTILE}"]\n')
    (root / "data" / "tags" / "<b>fog.txt").write_text("test1\ntest2\ntest3\n")
    (root / "data" / "depth" / "test" / "test2.png").unlink()
    (root / "data" / "thermal" / "test" / "test0.png").unlink()
    label = root / "data" / "labels" / "test" / "test1.png"
    array = np.asarray(Image.open(label)).copy()
    array[:10] = 255
    Image.fromarray(array).save(label)
    assert main(["train", "--data", f"folder:{root / 'data'}", "--out", str(root / "run"), *SMALL]) == 0
    return root


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    return Run.load(world / "run")


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    found = evaluate(run)
    store(run, found, None)
    return found


@pytest.fixture(scope="module")
def page(run: Run, evaluation: Evaluation) -> Page:
    return page_of(write_report(run))


# ---------------------------------------------------------------- the page


def test_the_page_needs_nothing_from_outside(run: Run, page: Page) -> None:
    text = (run.path / "report.html").read_text(encoding="utf-8")
    loaded = [
        a.get(key) or "" for _, a in page.tags for key in ("src", "srcset", "data", "poster", "action") if key in a
    ]
    loaded += [a["href"] or "" for a in page.all("link")]
    assert loaded
    assert all(address.startswith("data:") for address in loaded)
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not page.all("script")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert any(a.get("rel") == "icon" for a in page.all("link"))


def test_names_that_are_markup_are_shown_and_not_obeyed(page: Page) -> None:
    assert HOSTILE in page.text
    assert "<b>fog" in page.text
    assert not page.all("script")
    # Had the tag's name opened a <b>, the parser would have found it never closed.


def test_every_picture_says_what_it_is_and_every_link_leads_somewhere(page: Page) -> None:
    assert page.all("img")
    assert all(a.get("alt") for a in page.all("img"))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= ids
    assert [name for name, _ in page.tags if name == "h1"] == ["h1"]
    assert {
        "pictures",
        "subsets",
        "conditions",
        "classes",
        "confusion",
        "trust",
        "confidence",
        "training",
        "recipe",
    } == ids


@pytest.mark.parametrize("train", ["experts", "all"])
def test_the_page_says_whether_the_foundation_stayed_frozen(
    run: Run, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Literal["experts", "all"]
) -> None:
    monkeypatch.setattr("mlesam.evaluation.report.draw", lambda *_: [])
    changed = replace(run, recipe=replace(run.recipe, model=replace(run.recipe.model, train=train)))
    text = page_of(write_report(changed, tmp_path / "page.html", evaluation=evaluation)).text
    assert ("One frozen Segment Anything Model 2" in text) == (train == "experts")
    assert (", trained with everything else" in text) == (train == "all")


def distinct(metrics: dict[str, Any]) -> dict[str, Any]:
    """The same evaluation with numbers that differ from row to row, so that none can stand in another's place."""
    changed = copy.deepcopy(metrics)
    rng = np.random.default_rng(0)
    for table in (changed, *changed["tags"].values()):
        for row in table["results"]:
            if row["miou"] is not None:
                row["miou"] = float(rng.uniform(0.2, 0.9))
                row["iou"] = {name: float(rng.uniform(0.2, 0.9)) for name in row["iou"]}
        known = [row["miou"] for row in table["results"] if row["miou"] is not None]
        table["summary"] = {"mean": sum(known) / len(known), "full": table["results"][-1]["miou"], "worst": min(known)}
    return changed


def test_the_numbers_are_those_of_the_metrics(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    metrics = distinct(evaluation.metrics)
    text = page_of(write_report(run, tmp_path / "page.html", evaluation=replace(evaluation, metrics=metrics))).text
    summary, full = metrics["summary"], metrics["results"][-1]
    assert f"all sensors {percent(summary['full'])}" in text
    assert f"mean of subsets {percent(summary['mean'])} 7 subsets" in text
    assert f"worst subset {percent(summary['worst'])}" in text
    single = max((r for r in metrics["results"] if len(r["present"]) == 1), key=lambda r: r["miou"])
    assert f"best single sensor {percent(single['miou'])} {single['name']} alone" in text
    assert f"night {percent(metrics['tags']['night']['summary']['full'])}" in text
    assert f"pixel accuracy {percent(full['pixel_accuracy'])}" in text
    for word in (
        "5 frames of split test",
        "2 of 2 steps",
        "rgb, depth, thermal",
        "seed 0",
    ):
        assert word in text
    # Each subset has a row in the chart (all frames, then night) and in the heat map (all, the tags by frequency).
    for row in metrics["results"]:
        present = row["present"]
        night = next(r for r in metrics["tags"]["night"]["results"] if r["present"] == present)["miou"]
        fog = next(r for r in metrics["tags"]["<b>fog"]["results"] if r["present"] == present)["miou"]
        assert f"{percent(row['miou'])} {percent(night)}" in text
        assert f"{percent(row['miou'])} {percent(fog)} {percent(night)}" in text
    # Each class: IoU, share of pixels, and what each lost sensor costs.
    counts = np.array(metrics["confusion"])
    rows = {tuple(r["present"]): r for r in metrics["results"]}
    without = [rows["depth", "thermal"], rows["rgb", "thermal"], rows["rgb", "depth"]]
    lost = {m: row["miou"] - full["miou"] for m, row in zip(metrics["modalities"], without, strict=True)}
    dear, cheap = min(lost, key=lambda m: lost[m]), max(lost, key=lambda m: lost[m])
    assert lost[dear] < 0
    assert f"losing {dear} {change(lost[dear])} points" in text
    assert f"{dear} is missed most ({change(lost[dear])} points) and {cheap} least ({change(lost[cheap])})" in text
    for i, name in enumerate(metrics["classes"]):
        iou = full["iou"][name]
        costs = " ".join(change(r["iou"][name] - iou) for r in without)
        assert f"{name} {percent(iou)} {percent(counts[i].sum() / counts.sum())} {costs}" in text
    assert f"all frames 5 frames {' '.join(percent(w) for w in full['weights'].values())}" in text


def test_the_frames_are_the_medians_of_their_tags_and_an_absent_sensor_is_said(
    page: Page, evaluation: Evaluation
) -> None:
    values = evaluation.metrics["frame_miou"]
    fog = sorted(("test1", "test2", "test3"), key=lambda f: (values[f], f))[1]
    assert f"<b>fog frame {fog} · mIoU {percent(values[fog])}" in page.text
    assert f"night frame test0 · mIoU {percent(values['test0'])}" in page.text
    assert "thermal is absent in this frame" in {a.get("aria-label") for a in page.all("div")}  # test0 has none
    assert "thermal absent" in page.text
    assert "no change" in page.text


def test_the_run_tells_how_it_was_made(page: Page, run: Run) -> None:
    assert "mlesam train" in page.text
    assert f"mlesam evaluate {run.path} --split test" in page.text
    assert f"mlesam report {run.path}" in page.text
    assert "modality_dropout: 0.5" in page.text  # of the recipe
    assert re.search(r"torch \d", page.text)
    lines = [a for a in page.all("polyline") if a["points"]]
    assert len(lines) >= 6 + 6 + 3 + 1  # losses faint and smooth, validation, trust, learning rate


def test_what_validation_warned_about_is_listed(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run.path, other)
    log = [json.loads(line) for line in (other / "log.jsonl").read_text().splitlines()]
    for event in log:
        if event["event"] == "validation":
            event["warnings"] = ["the router trusts <i>rgb alone"]
    (other / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log) + '{"event": "step", "st')
    text = page_of(write_report(Run.load(other))).text
    assert "What validation warned about step 1 the router trusts <i>rgb alone" in text


# ---------------------------------------------------------------- what is evaluated


def test_report_evaluates_first_where_nothing_is_stored_and_only_then(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run.path, other, ignore=shutil.ignore_patterns("evaluation", "report.html"))
    calls: list[tuple[int, int]] = []
    assert (
        write_report(Run.load(other), advance=lambda done, total: calls.append((done, total))) == other / "report.html"
    )
    assert calls[-1] == (5, 5)
    assert (other / "evaluation" / "subsets-test-5.json").is_file()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("mlesam.evaluation.report.evaluate", never)
    write_report(Run.load(other), tmp_path / "elsewhere" / "page.html")
    assert page_of(tmp_path / "elsewhere" / "page.html").text


def test_an_evaluation_of_other_weights_is_done_again(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run.path, other)
    path = other / "evaluation" / "subsets-test-5.json"
    stale = json.loads(path.read_text())
    stale["frame_miou"] = dict.fromkeys(stale["frame_miou"], 0.99)
    stale["summary"]["mean"] = 0.987
    path.write_text(json.dumps(stale))
    assert "98.7" not in page_of(write_report(Run.load(other))).text
    assert json.loads(path.read_text())["summary"] == evaluation.metrics["summary"]


def test_an_evaluation_of_another_dataset_is_refused(run: Run, evaluation: Evaluation) -> None:
    other = Evaluation({**evaluation.metrics, "dataset": "folder:other"}, [], [], [])
    with pytest.raises(RequestError, match="the evaluation is of folder:other, but a report is about the run's own"):
        write_report(run, evaluation=other)


def test_a_part_of_the_split_is_called_a_part(run: Run, tmp_path: Path) -> None:
    path = write_report(run, tmp_path / "page.html", evaluation=evaluate(run, limit=2))
    assert "2 of 5 frames of split test" in page_of(path).text
    assert "--split test --frames 2" in page_of(path).text


def test_without_the_frames_the_numbers_stand(run: Run, evaluation: Evaluation, world: Path, tmp_path: Path) -> None:
    moved = world / "moved"
    (world / "data").rename(moved)
    try:
        found = page_of(write_report(run, tmp_path / "page.html"))
    finally:
        moved.rename(world / "data")
    assert not found.all("img")
    assert "The frames cannot be read, so there are no pictures" in found.text
    assert f"all sensors {percent(evaluation.metrics['summary']['full'])}" in found.text


def test_one_sensor_without_tags_or_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", val=0, test=3)
    for name in ("rgb", "depth", "tags"):
        shutil.rmtree(tmp_path / "data" / name)
    assert main(["train", "--data", f"folder:{tmp_path / 'data'}", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    assert f"report written to {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    found = page_of(tmp_path / "run" / "report.html")
    metrics = json.loads((tmp_path / "run" / "evaluation" / "subsets-test-3.json").read_text())
    assert f"thermal {percent(metrics['summary']['full'])}" in found.text
    assert "median frame" in found.text
    assert "The log holds no validation." in found.text
    assert not {"conditions", "trust"} & {a.get("id") for _, a in found.tags}


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"mlesam: {tmp_path} is no run and no adapter: it has no recipe.yaml and no config.json; give the directory that "
        "`mlesam train` or `mlesam export` wrote.\n"
    )
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what the evaluation keeps for it


def test_the_weights_of_a_row_sum_to_one_and_are_those_of_the_model(run: Run, evaluation: Evaluation) -> None:
    for table in (evaluation.metrics, *evaluation.metrics["tags"].values()):
        for row in table["results"]:
            assert list(row["weights"]) == row["present"]
            if row["frames"]:
                assert sum(row["weights"].values()) == pytest.approx(1, abs=2e-6)
            else:  # night is test0, which has no thermal
                assert set(row["weights"].values()) == {None}
    scored, model = open_split(run), run.load_model()
    frames = EvaluationFrames(scored.frames, scored.sensors, scored.classes, None)
    direct = []
    with torch.inference_mode():
        for batch in batches(evaluation_loader(frames)):
            direct.append(model(batch).shares.mean(dim=1)[0].numpy())
    shares = np.stack(direct)
    full = evaluation.conditions[-1]
    np.testing.assert_allclose(full.shares, shares, atol=1e-6)
    assert full.shares[2, 1] == 0  # test2 has no depth
    weights = evaluation.metrics["results"][-1]["weights"]
    np.testing.assert_allclose(list(weights.values()), shares.mean(axis=0), atol=2e-6)
    depth = evaluation.conditions[1]
    assert depth.present == ("depth",)
    np.testing.assert_array_equal(depth.shares[:, 1], depth.counted)


def test_the_confusion_is_that_of_torchmetrics_over_the_whole_split(run: Run, evaluation: Evaluation) -> None:
    scored, model = open_split(run), run.load_model()
    oracle = MulticlassConfusionMatrix(3, ignore_index=IGNORE)
    with torch.inference_mode():
        for batch in batches(evaluation_loader(EvaluationFrames(scored.frames, scored.sensors, scored.classes, None))):
            assert batch.labels is not None
            oracle.update(predict(model(batch).logits, (48, 64)), batch.labels)
    found = evaluation.metrics["confusion"]
    assert found == oracle.compute().tolist()
    assert sum(map(sum, found)) == 5 * 48 * 64 - 10 * 64  # ten rows of test1 are not scored


def test_the_confusion_has_one_row_a_line_and_reads_back_the_same(evaluation: Evaluation) -> None:
    metrics = {**evaluation.metrics, "dataset": 'folder:\n  "confusion": null'}
    text = dumps(metrics)
    assert json.loads(text) == json.loads(json.dumps(metrics))
    for row in metrics["confusion"]:
        assert f"\n    {json.dumps(row)}" in text


# ---------------------------------------------------------------- pictures and charts


def test_single_points_of_a_sparse_sensor_stay_visible_in_a_thumbnail() -> None:
    values = np.full((3, 800, 800), np.nan, dtype=np.float32)
    values[:, 100::200, 100::200] = 0.3
    values[:, 100, 100] = 0.6
    drawn = sensor_picture("lidar", values, BUILTIN["lidar"], 160)
    assert drawn.shape == (160, 160, 3)
    bright = np.abs(drawn.astype(int) - EMPTY).sum(axis=2) > 60
    assert bright[18:23, 18:23].any()
    assert bright.sum() >= 16 * 2
    assert (drawn[60:100, 25:55] == EMPTY).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("make", [np.zeros, lambda s: np.full(s, np.nan), np.random.default_rng(0).random])
def test_a_sensor_of_any_channels_has_a_picture(channels: int, make: Callable[..., np.ndarray]) -> None:
    values = make((channels, 30, 50)).astype(np.float32)
    for name, spec in (
        ("mine", SensorSpec(channels=channels)),
        ("lidar", BUILTIN["lidar"]),
        ("event", BUILTIN["event"]),
    ):
        drawn = sensor_picture(name, values, spec, 25)
        assert (drawn.shape, drawn.dtype) == ((15, 25, 3), np.uint8)


def test_bands_are_drawn_in_false_colour_by_thirds() -> None:
    values = np.zeros((12, 1, 5), dtype=np.float32)
    for place, third in enumerate((slice(0, 4), slice(4, 8), slice(8, 12))):
        values[third, 0, place] = 1.0
    values[3, 0, 3] = values[..., 4] = np.nan
    drawn = sensor_picture("cube", values, SensorSpec(channels=12), 5)[0].astype(int)
    blue, green, red, _, hole = drawn
    assert [int(color.argmax()) for color in (red, green, blue)] == [0, 1, 2]
    assert tuple(hole) == EMPTY
    assert MEANING[kind("cube", SensorSpec(channels=12))].startswith("false colours")
    assert MEANING[kind("cube", SensorSpec(channels=12, photometric="color"))].startswith("false colours")


def test_three_channels_that_are_no_camera_by_name_keep_their_order() -> None:
    values = np.zeros((3, 1, 3), dtype=np.float32)
    values[0, 0, 0] = values[1, 0, 1] = values[2, 0, 2] = 1.0
    drawn = sensor_picture("left", values, SensorSpec(channels=3), 3)[0]
    assert [int(color.argmax()) for color in drawn] == [0, 1, 2]


def test_near_is_bright_and_nothing_measured_is_dark() -> None:
    depth = np.array([[[1.0, 10.0, 50.0, np.nan]]], dtype=np.float32)
    near, middle, far, hole = sensor_picture("depth", depth, BUILTIN["depth"], 10)[0].astype(int)
    assert near.sum() > middle.sum() > far.sum()
    assert tuple(hole) == EMPTY


def test_only_wrong_scored_pixels_are_marked_as_errors() -> None:
    truth = np.array([[0, 1, IGNORE, IGNORE]])
    drawn = error_picture(np.array([[0, 0, 0, 1]]), truth, 10)[0]
    assert [tuple(p) == WRONG for p in drawn] == [False, True, False, False]
    assert tuple(drawn[0]) != tuple(drawn[2])


def test_a_frame_stands_for_one_tag_only() -> None:
    values = {"a": 0.1, "b": 0.5, "c": 0.9, "d": None}
    assert choose(values, {"night": ["a", "b", "c", "d"], "fog": ["b", "c"]}, 5) == {"b": "night", "c": "fog"}
    assert list(choose(values, {}, 3)) == ["b", "a", "c"]
    assert choose(values, {"night": ["a", "b", "c"], "fog": ["b"]}, 1) == {"b": "night"}
    assert choose({"d": None}, {}, 5) == {}


def test_text_in_markup_is_escaped_and_markup_is_not() -> None:
    assert h("p", "<", h("b", "&"), None, title='"<') == '<p title="&quot;&lt;">&lt;<b>&amp;</b></p>'


def test_numbers_have_one_decimal_and_a_true_minus() -> None:
    assert [percent(v) for v in (0.7123, 0.0, 1.0, None)] == ["71.2", "0.0", "100.0", "–"]
    assert [change(v) for v in (-0.031, 0.004, -0.0001, None)] == ["−3.1", "+0.4", "0.0", "–"]


def test_axes_end_on_round_numbers_and_smoothing_keeps_a_constant() -> None:
    assert nice_ticks(0, 37.2) == [0, 10, 20, 30, 40]
    assert nice_ticks(0, 0.9) == [0, 0.5, 1.0]
    assert smoothed([2.0] * 5, 3) == pytest.approx([2.0] * 5)
    assert smoothed([0.0, 1.0], 0) == [0.0, 1.0]
