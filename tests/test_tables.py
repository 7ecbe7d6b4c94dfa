"""Tables: what stands in them, beside whom, and that no name can break them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlesam import mini
from mlesam.config import DataConfig
from mlesam.data.benchmark import MINIATURE
from mlesam.data.deliver import CLASSES, Deliver
from mlesam.data.mcubes import Mcubes
from mlesam.data.muses import Muses
from mlesam.errors import RequestError
from mlesam.evaluation.peers import peers, published, rule
from mlesam.evaluation.protocols import subsets
from mlesam.evaluation.results import title
from mlesam.evaluation.stored import check_out
from mlesam.evaluation.tables import Setting, sheet
from mlesam.evaluation.typeset import Sheet, Table, latex, markdown

FOUR = ("rgb", "depth", "lidar", "event")
SQUASHED = "deliver:/data/DELIVER?squash=1024"


def result(
    dataset: str = SQUASHED, split: str = "val", sensors: tuple[str, ...] = FOUR, classes: Any = CLASSES, **more: Any
) -> dict[str, Any]:
    """``metrics.json`` of protocol subsets, with a mIoU of 0.5 and one hundredth for each sensor."""
    rows = [
        {
            "name": "+".join(own), "present": list(own), "miou": 0.5 + 0.01 * len(own), "pixel_accuracy": 0.9, "frames": 2005,
            "iou": {name: None if i == 3 else 0.01 * i for i, name in enumerate(classes)}, "temperature": None, "ece": 0.04,
        }
        for own in subsets(sensors)
    ]  # fmt: skip
    summary = {"mean": 0.4242, "full": rows[-1]["miou"], "worst": 0.51}
    tags = {tag: {"frames": 7, "results": rows, "summary": summary} for tag in ("cloud", "night")}
    return {
        "dataset": dataset, "split": split, "frames": 2005, "modalities": list(sensors), "classes": list(classes),
        "protocol": "subsets", "seed": 0, **more, "results": rows, "summary": summary, "tags": tags,
    }  # fmt: skip


SETTING = Setting("sam2.1-hiera-tiny", FOUR)


def named(found: Sheet, start: str) -> Table:
    return next(table for table in found.tables if table.title.startswith(start))


# ---------------------------------------------------------------- ours


def test_there_are_rows_by_sensors_classes_and_cases() -> None:
    found = sheet(result(), SETTING)
    by_row = named(found, "mIoU by sensors")
    assert by_row.heads == ("sensors", "mIoU", "pixel accuracy", "ECE", "frames")
    assert [row[0] for row in by_row.rows] == ["+".join(own) for own in subsets(FOUR)]
    assert by_row.rows[-1] == ("rgb+depth+lidar+event", "54.00", "90.00", "4.00", "2005")
    by_class = named(found, "IoU by class")
    assert by_class.heads == ("class", *FOUR, "+".join(FOUR))
    assert [row[0] for row in by_class.rows] == [*CLASSES, "mean"]
    assert by_class.rows[3][1:] == ("–",) * 5  # a class that is not there has no IoU
    assert by_class.rows[-1][-1] == "54.00"
    by_case = named(found, "mIoU by case")
    assert by_case.heads == ("sensors", "cloud", "night", "all")
    assert by_case.rows[-1] == ("frames", "7", "7", "2005")


def test_what_a_number_depends_on_stands_below_every_table() -> None:
    metrics = result(about="Labels are labels.", views={"scales": [1.0], "flip": True})
    found = sheet(metrics, Setting("nano", FOUR, resize=512))
    assert found.title == f"{SQUASHED}, split val, 2005 frames, protocol subsets, scale 1, mirrored too"
    assert found.notes == (
        "mIoU and IoU in %. mlesam on nano; 1024 x 1024 pixels, labels as well, frames at a short side of 512 pixels, scale 1, "
        "mirrored too; seed 0.",
        "Labels are labels.",
    )
    for text in (markdown(found), latex(found)):
        assert "Labels are labels." in text
    mapped = result(class_map={"name": "m", "classes": {"a": "b", "c": None}})
    assert sheet(mapped, SETTING).notes[-1] == "Another dataset's classes, by the class map m; not scored: c."


# ---------------------------------------------------------------- others'


def test_peers_stand_beside_our_row_with_backbone_and_source() -> None:
    found = published(result(), "sam2.1-hiera-tiny", FOUR, None)
    first = found[0]
    assert first.title == (
        "Trained and tested with the same sensors: deliver val, rgb+depth+event+lidar, 1024 x 1024 pixels, labels as well"
    )
    assert first.heads == ("model", "backbone", "mIoU", "source")
    assert first.rows[0] == ("mlesam (ours), 2005 frames", "sam2.1-hiera-tiny", "54.00", "this evaluation")
    assert first.rows[1][:3] == ("CMNeXt", "MiT-B2", "66.30")
    means = next(table for table in found if table.title.startswith("One model tested with every subset"))
    assert means.rows[0][2] == "42.42"


def test_what_was_scored_otherwise_is_in_a_table_of_its_own() -> None:
    for metrics in (result(), result("deliver:/data/DELIVER"), result(views={"scales": [0.5, 1.0], "flip": False})):
        for table in published(metrics, "nano", FOUR, None):
            ours = [row for row in table.rows if row[0].startswith("mlesam")]
            theirs = [row for row in table.rows if not row[0].startswith("mlesam")]
            if ours and theirs:
                assert rule(metrics, None) == "1024 x 1024 pixels, labels as well"
                assert table.title.endswith("1024 x 1024 pixels, labels as well")
            elif theirs:
                assert any("not to be put into one table" in note for note in table.notes)
    native = published(result("deliver:/data/DELIVER"), "nano", FOUR, None)
    assert len(native[0].rows) == 1
    assert native[0].title.endswith("labels at native size")


@pytest.mark.parametrize(
    ("metrics", "sensors"),
    [
        (result(split_frames=2005, frames=10), FOUR),
        (result(miniature=True), FOUR),
        (result(class_map={"name": "m", "classes": {"a": "b"}}), FOUR),
        (result(chosen=list(FOUR)), (*FOUR, "radar")),
        (result(), (*FOUR, "radar")),  # trained with more than it is tested with
        (result(split="train"), FOUR),
        (result(dataset="folder:/data/deliver"), FOUR),
        (result(sensors=("rgb", "lidar")), ("rgb", "lidar")),
    ],
    ids=("part", "miniature", "class map", "chosen", "other training", "split", "dataset", "sensors"),
)
def test_nobody_stands_beside_what_cannot_be_compared(metrics: dict[str, Any], sensors: tuple[str, ...]) -> None:
    assert published(metrics, "nano", sensors, None) == []
    assert "CMNeXt" not in markdown(sheet(metrics, Setting("nano", sensors)))


def test_a_part_of_the_split_and_a_miniature_are_called_that() -> None:
    part = sheet({**result(split_frames=2005), "frames": 10}, SETTING)
    assert "part of the split: 10 of 2005 frames" in part.title
    assert "Part of the split: the first 10 of 2005 frames." in part.notes
    assert "part of the split" in latex(part)
    small = sheet(result(miniature=True), SETTING)
    assert "miniature: numbers for the machinery only" in markdown(small)
    assert "miniature: numbers for the machinery only" in latex(small)


def test_the_numbers_of_other_protocols_are_found_where_they_stand() -> None:
    emm = result(protocol="emm")
    emm["summary"] |= {"miou_avg": 0.4, "miou_e": {"0.2": 0.51, "0.1": 0.52, "0.05": 0.53}}
    assert published(emm, "nano", FOUR, None)[0].rows[0][2:6] == ("40.00", "51.00", "52.00", "53.00")
    rmm = result(protocol="rmm")
    rmm["summary"] |= {"drops": {r: {"miou_avg": v} for r, v in (("0.25", 0.3), ("0.5", 0.2), ("0.75", 0.1))}}
    assert published(rmm, "nano", FOUR, None)[0].rows[0][2:5] == ("10.00", "20.00", "30.00")
    nm = result(protocol="nm")
    nm["results"] = [{"name": n, "miou": v} for n, v in (("low", 0.3), ("mid", 0.2), ("high", None), ("clean", 0.5))]
    assert published(nm, "nano", FOUR, None)[0].rows[0][2:5] == ("30.00", "20.00", "–")
    cases = result(protocol="cases")
    cases["results"] = [{"name": n, "miou": 0.1} for n in ("cloud", "fog", "night")]
    assert published(cases, "nano", FOUR, None)[0].rows[0][2:4] == ("10.00", "10.00")


def test_the_published_numbers_are_whole() -> None:
    keys = [(b.dataset, b.split, b.sensors, b.protocol, b.question, b.rule) for b in peers()]
    assert len(set(keys)) == len(keys)
    for block in peers():
        assert block.protocol in ("subsets", "emm", "rmm", "nm", "cases")
        for row in block.rows:
            assert len(row.values) == len(block.columns)
            assert all(value is not None and 0 < value < 100 for value in row.values)
            assert row.source
    # A model has one number for one question; two would be two backbones.
    for block in peers():
        names = [(row.model, row.backbone) for row in block.rows]
        assert len(set(names)) == len(names)


# ---------------------------------------------------------------- as text


NASTY = "a|b & 50% of $x_1 #2 {y} \\z ~^ <b>*c* [d]\n| new line"


def test_markdown_keeps_every_cell_in_its_place() -> None:
    text = markdown(Sheet("t", (Table("of", ("a", "b"), ((NASTY, "1"), ("plain_name", "2"))),)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    unescaped = [row.replace("\\\\", "").replace("\\|", "") for row in rows]
    assert all(row.count("|") == 3 for row in unescaped)
    assert "\\<b>\\*c\\*" in text
    assert "| plain_name | 2 |" in text


def test_latex_escapes_whatever_has_a_meaning() -> None:
    text = latex(Sheet(NASTY, (Table(NASTY, ("a", "b"), ((NASTY, "1"), ("[x]", "†"), ("*", "–"))),), (NASTY,)))
    assert r"a\textbar{}b \& 50\% of \$x\_1 \#2 \{y\} \textbackslash{}z \textasciitilde{}\textasciicircum{}" in text
    assert r"\textless{}b\textgreater{}{*}c{*} {[}d]" in text
    body = [line for line in text.splitlines() if line.rstrip().endswith("\\\\")]
    assert len(body) == 4
    assert all(line.count("&") - line.count(r"\&") == 1 for line in body)
    assert r"    {[}x] & \textdagger{} \\" in text
    for word in (
        "toprule",
        "midrule",
        "bottomrule",
        "begin{table}",
        "end{table}",
        "begin{tabular}{lr}",
        "end{tabular}",
    ):
        assert text.count(word) == 1
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert len(comments) == 2  # a line break in a name does not end a comment


def test_a_whole_result_has_one_float_for_each_table() -> None:
    found = sheet(result(), SETTING)
    text = latex(found)
    assert text.count("\\begin{table}") == text.count("\\end{table}") == len(found.tables)
    assert text.count("\\toprule") == len(found.tables)
    lines = markdown(found).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert lines[number - 1].count("|") == line.count("|") == lines[number + 1].count("|")


def test_tables_do_not_write_over_the_json() -> None:
    check_out(Path("m.json"))
    with pytest.raises(RequestError, match=r"--out m.MD gets JSON.*name m.json"):
        check_out(Path("m.MD"))


# ---------------------------------------------------------------- splits


def deliver(root: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for folder, word in (("img", "rgb"), ("semantic", "semantic")):
        for split in splits:
            place = root / folder / "sun" / split / "MAP_1_point1"
            place.mkdir(parents=True)
            (place / f"000001_{word}_front.png").write_bytes(b"")
    return root


def test_deliver_reports_val_and_says_what_the_other_split_is(tmp_path: Path) -> None:
    dataset = Deliver(str(deliver(tmp_path / "a")), DataConfig())
    assert dataset.default_split() == "val"
    assert "?squash=1024" in (dataset.about("val") or "")
    assert "compared with test alone" in (dataset.about("test") or "")
    assert dataset.about("train") is None
    assert Deliver(str(deliver(tmp_path / "b", ("train", "test"))), DataConfig()).default_split() == "test"


def test_mcubes_reports_its_test_list(tmp_path: Path) -> None:
    for folder in ("polL_color", "GT"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    (tmp_path / "list_folder").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "list_folder" / f"{split}.txt").write_text("a\n")
    dataset = Mcubes(str(tmp_path), DataConfig())
    assert dataset.default_split() == "test"
    assert "call it val" in (dataset.about("test") or "")
    assert "not the list" in (dataset.about("val") or "")


def test_muses_reports_val_since_the_labels_of_test_are_with_the_server(tmp_path: Path) -> None:
    for folder, word in (("frame_camera", "frame_camera"), ("gt_semantic", "gt_labelTrainIds")):
        for split in ("val", "test"):
            place = tmp_path / folder / split / "fog" / "night"
            place.mkdir(parents=True)
            if (folder, split) != ("gt_semantic", "test"):
                (place / f"REC0_frame_1_{word}.png").write_bytes(b"")
    dataset = Muses(str(tmp_path), DataConfig())
    assert dataset.default_split() == "val"
    assert "road" in (dataset.about("val") or "")
    assert dataset.about("test") is None


def test_a_miniature_says_that_it_is_one_also_inside_an_archive(tmp_path: Path) -> None:
    assert mini.ABOUT == MINIATURE
    root = deliver(tmp_path / "mini")
    assert not Deliver(str(root), DataConfig()).miniature()
    (root / "MINIATURE.txt").write_text("not the original\n")
    assert Deliver(str(root), DataConfig()).miniature()
    with zipfile.ZipFile(tmp_path / "mini.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    assert Deliver(str(tmp_path / "mini.zip"), DataConfig()).miniature()


def test_the_title_says_what_is_not_plain() -> None:
    metrics = result(published_noise=8, views={"window": 64, "stride": 40}, class_map={"name": "m", "classes": {}})
    assert title(metrics).endswith("published noise on batches of 8, windows of 64 pixels every 40, class map m")
