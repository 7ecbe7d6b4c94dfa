"""A dataset of one's own: the code that docs/data.md shows, run as a user would run it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import write_frame
from mlesam.data.dataset import KINDS, register
from mlesam.errors import RequestError

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The block of docs/data.md, and three days of recordings beside it; one second lacks its thermal picture."""
    block = re.search(r"```python\n(\"\"\"python patrol.*?)```", DOCS.read_text(), re.S)
    assert block is not None
    code = block[1]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    (tmp_path / "patrol.py").write_text(code)
    for day in range(3):
        for second in range(2):
            write_frame(tmp_path / "plain", "all", f"{day}-{second}", 10 * day + second)
            folder = tmp_path / f"recordings/day{day}/{second:04}"
            folder.mkdir(parents=True)
            plain = tmp_path / "plain"
            (plain / f"rgb/all/{day}-{second}.png").rename(folder / "left.png")
            (plain / f"labels/all/{day}-{second}.png").rename(folder / "mask.png")
            warm = np.asarray(Image.open(plain / f"thermal/all/{day}-{second}.png")).astype("<u2") * 20 + 27000
            if (day, second) != (2, 1):
                warm.astype("<u2").tofile(folder / "thermal.raw")
    return tmp_path / "patrol.py"


def run(script: Path, *words: str) -> str:
    command = [sys.executable, script.name, *words]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_checked_trained_tested_and_predicted(script: Path) -> None:
    assert "thermal" in run(script, "doctor", "patrol:recordings")
    short = ["--model.rank", "2", "--data.crop", "48", "--data.workers", "0", "--training.batch", "2", "--steps", "2"]
    run(script, "train", "--data", "patrol:recordings", "--out", "run", *short)
    run(script, "evaluate", "run", "--out", "metrics.json")
    metrics = json.loads((script.parent / "metrics.json").read_text())
    assert metrics["dataset"] == "patrol:recordings"
    assert metrics["frames"] == 2
    assert [row["name"] for row in metrics["results"]] == ["rgb", "thermal", "rgb+thermal"]
    assert list(metrics["tags"]) == ["day0"]
    run(script, "predict", "run", "--input", "patrol:recordings", "--out", "found")
    rows = json.loads((script.parent / "found/prediction.json").read_text())["frames"]
    assert {row["id"]: row["present"] for row in rows}["day2/0001"] == ["rgb"]
    assert len(rows) == 6


@pytest.mark.parametrize("kind", ["folder", "a:b", ""])
def test_a_kind_that_is_taken_or_no_word_is_refused(kind: str) -> None:
    before = dict(KINDS)
    with pytest.raises(RequestError, match="a kind of dataset cannot be called"):
        register(kind, KINDS["folder"])
    assert before == KINDS
