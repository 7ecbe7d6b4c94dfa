"""Class maps: every class of a dataset is scored as it is written, or not at all, and nothing is guessed."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from mlesam.data.class_maps import ClassMap, read_class_map, shipped
from mlesam.data.deliver import CLASSES as DELIVER
from mlesam.data.muses import CLASSES
from mlesam.errors import RequestError
from mlesam.evaluation.metrics import class_iou, mean_iou, scores

MUSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""The classes that Cityscapes evaluates, in the order of their train ids."""
SIDES = {"deliver-to-muses": (tuple(DELIVER), MUSES), "muses-to-deliver": (MUSES, tuple(DELIVER))}


def test_the_classes_of_muses_are_those_that_the_maps_were_written_for() -> None:
    assert tuple(CLASSES) == MUSES


# ---------------------------------------------------------------- those of the package


def test_the_package_has_both_directions() -> None:
    assert shipped() == tuple(sorted(SIDES))


@pytest.mark.parametrize("name", SIDES)
def test_each_says_something_about_every_class_and_names_only_classes_that_exist(name: str) -> None:
    source, target = SIDES[name]
    found = read_class_map(name, "the dataset", source, target)
    assert tuple(found.answers) == source
    assert len(found.translate) == len(source)
    assert len(found.counts_as) == len(found.reached) == len(target)


@pytest.mark.parametrize("name", SIDES)
def test_each_class_has_its_reason_beside_it(name: str) -> None:
    folder = Path(importlib.import_module("mlesam.data").__file__ or "").parent / "maps"
    lines = (folder / f"{name}.yaml").read_text().splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert len(rows) == len(SIDES[name][0])
    assert all(len(row.partition(" # ")[2]) > 3 for row in rows)


def test_there_and_back_no_class_becomes_another() -> None:
    there, back = (read_class_map(n, n, *SIDES[n]) for n in ("deliver-to-muses", "muses-to-deliver"))
    for name, answers in there.answers.items():
        for answer in answers:
            assert back.answers[answer] == () or name in back.answers[answer]


def test_what_cannot_be_decided_is_not_scored() -> None:
    there, back = (read_class_map(n, n, *SIDES[n]) for n in ("deliver-to-muses", "muses-to-deliver"))
    assert [n for n, a in there.answers.items() if not a] == [
        "Other", "Ground", "Bridge", "RailTrack", "GroundRail", "Static", "Dynamic", "Water",
    ]  # fmt: skip
    assert [n for n, a in back.answers.items() if not a] == ["rider", "train"]
    assert there.answers["TwoWheeler"] == ("bicycle", "motorcycle")
    assert back.answers["road"] == ("Road", "RoadLine")


# ---------------------------------------------------------------- what they do


SMALL = ClassMap("x", {"lane": ("road", "line"), "kerb": ("walk",), "fog": ()}, ("sky", "road", "line", "walk"))


def test_labels_become_the_classes_of_the_run_and_alternatives_count_as_the_first() -> None:
    assert SMALL.translate == (1, 3, None)
    assert SMALL.counts_as == (0, 1, 1, 3)  # the answer line counts as road, any other as itself
    assert SMALL.reached == (False, True, False, True)
    assert SMALL.facts() == {"name": "x", "classes": {"lane": ["road", "line"], "kerb": "walk", "fog": None}}


def test_an_answer_that_no_label_can_be_is_wrong_and_has_no_iou() -> None:
    # 10 pixels of road, of which 4 were called sky, and 5 of walk, all right. No label can say sky.
    confusion = np.zeros((4, 4), dtype=np.int64)
    confusion[1, 1], confusion[1, 0], confusion[3, 3] = 6, 4, 5
    assert class_iou(confusion).tolist()[0] == 0.0
    iou = class_iou(confusion, SMALL.reached)
    assert iou[1] == 0.6
    assert np.isnan(iou[[0, 2]]).all()
    assert mean_iou(confusion, SMALL.reached) == pytest.approx((0.6 + 1) / 2)
    found = scores(confusion, SMALL.target, SMALL.reached)
    assert found["iou"] == {"sky": None, "road": 0.6, "line": None, "walk": 1.0}
    assert found["pixel_accuracy"] == pytest.approx(11 / 15, abs=1e-6)
    assert found["miou_absent_as_zero"] == 0.8  # of the classes that could be there
    confusion[3] = 0  # no walk in these labels: it counts as 0 for those who count so
    assert scores(confusion, SMALL.target, SMALL.reached)["miou_absent_as_zero"] == 0.3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lane: road", "says nothing about kerb, fog; it needs a line for every class of folder:x, with null"),
        ("{lane: road, kerb: walk, fgo: null}", "maps 'fgo', which folder:x does not have; did you mean 'fog'?"),
        ("{lane: rood, kerb: walk, fog: null}", "maps 'lane' to 'rood', which the run does not have; did you mean 'road'?"),
        ("{lane: [road, lina], kerb: null, fog: null}", "maps 'lane' to 'lina', which the run does not have"),
        ("{lane: null, kerb: null, fog: null}", "maps every class to null, so nothing would be scored"),
        ("{lane: [road, road], kerb: null, fog: null}", "name each class once, or write null"),
        ("{lane: [], kerb: walk, fog: null}", "name each class once, or write null"),
        ("{lane: [road, line], kerb: line, fog: null}", "lets 'line' count as 'road' .*, but 'kerb' is scored as 'line'"),
        ("{lane: [road, line], kerb: [walk, line], fog: null}", "an answer counts as one class"),
        ("{lane: {road: line}, kerb: null, fog: null}", "which the run does not have"),
        ("{lane: 3, kerb: null, fog: null}", "maps 'lane' to 3, which the run does not have"),
        ("[lane]", "must hold a mapping"),
        ("{lane: road, lane: line}", "the key 'lane' stands twice"),
    ],
)  # fmt: skip
def test_a_map_that_says_too_little_or_too_much_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=sentence):
        read_class_map(path, "folder:x", tuple(SMALL.answers), SMALL.target)


def test_one_list_may_serve_several_classes(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("{lane: [road, line], kerb: [road, line], fog: sky}")
    found = read_class_map(path, "folder:x", tuple(SMALL.answers), SMALL.target)
    assert found.translate == (1, 1, 0)
    assert found.counts_as == (0, 1, 1, 3)


def test_an_unknown_name_gets_the_nearest_of_the_package() -> None:
    with pytest.raises(RequestError, match=r"no file delivr-to-muses, .* did you mean 'deliver-to-muses'\?"):
        read_class_map("delivr-to-muses", "x", ("a",), ("b",))
