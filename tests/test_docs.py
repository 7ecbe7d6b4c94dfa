"""The documentation: links lead somewhere, every dataset and sensor has a page with a picture, and pages say what code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

from mlesam.data.benchmark import Benchmark
from mlesam.data.dataset import KINDS as DATASETS
from mlesam.data.deliver import Deliver
from mlesam.data.mcubes import Mcubes
from mlesam.data.muses import Muses
from mlesam.sensors.rig import KINDS as ENCODERS
from mlesam.sensors.spec import BUILTIN, SensorSpec

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BENCHMARKS: list[type[Benchmark]] = [Deliver, Muses, Mcubes]
DATASET_PAGES = {"folder": "data.md", "world": "world.md"}
"""Pages of datasets that are no benchmark; those of the others are ``datasets/<kind>.md``."""
SENSOR_PAGES = {"points": "lidar", "events": "event", "aolp": "polarization", "dolp": "polarization"}
"""Pages that are not called what they are about."""
LARGEST = 120_000
"""Bytes of a picture on a dataset's or a sensor's page."""


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "", text)


def headings(page: Path) -> set[str]:
    """What may stand behind a ``#``, as GitHub makes it of the page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        title = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """Relative links and pictures that lead nowhere."""
    text = prose(page)
    targets = re.findall(r"]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    found = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings(file)):
            found.append(target)
    return found


def pictures(page: Path) -> dict[Path, str]:
    """Picture files of a page with the text that stands for them."""
    return {page.parent / file: text for text, file in re.findall(r"!\[([^]]*)]\(([^)\s]+)\)", prose(page))}


def page_of_sensor(name: str) -> Path:
    return ROOT / "docs" / "sensors" / f"{SENSOR_PAGES.get(name, name)}.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_of_a_page_is_there(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("[a](gone.md)", "gone.md"), ("[a](b.md#gone)", "b.md#gone"), ("[a](#gone)", "#gone"), ("![a](gone.webp)", "gone.webp"),
        ('<img src="gone.webp">', "gone.webp"),
    ],
)  # fmt: skip
def test_a_broken_link_is_found(tmp_path: Path, text: str, target: str) -> None:
    (tmp_path / "b.md").write_text("# B\n## Its `parts`, [two](x)\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        f"# A\n[ok](b.md#its-parts-two) [ok](#a) [ok](https://x.y/z#w)\n```\n[code](none.md)\n```\n`[code](none.md)` {text}\n"
    )
    assert broken(page) == [target]
    assert "no-heading" not in headings(tmp_path / "b.md")


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_has_a_page_with_a_picture(kind: str) -> None:
    page = ROOT / "docs" / DATASET_PAGES.get(kind, f"datasets/{kind}.md")
    shown = pictures(page)
    assert shown, f"{page} has no picture"
    assert all(shown.values()), f"{page} has a picture without a text that stands for it"


@pytest.mark.parametrize("name", sorted({*ENCODERS, *BUILTIN, "rig"}))
def test_every_sensor_has_a_page_with_a_picture(name: str) -> None:
    page = page_of_sensor(name)
    picture = page.with_suffix(".webp")
    assert pictures(page).get(picture), f"{page} does not show {picture.name}, or no text stands for it"
    assert f"`python benchmarks/sensor_pictures.py {page.stem}`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["datasets", "sensors"])
def test_pictures_are_small_and_each_stands_on_its_page(folder: str) -> None:
    for picture in (ROOT / "docs" / folder).glob("*.webp"):
        assert picture in pictures(picture.with_suffix(".md")), f"no page shows {picture.name}"
        assert picture.stat().st_size < LARGEST
        with Image.open(picture) as opened:
            assert 900 <= opened.width <= 1300


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.kind)
def test_a_datasets_page_has_its_options_classes_and_counts(benchmark: type[Benchmark]) -> None:
    text = (ROOT / "docs" / "datasets" / f"{benchmark.kind}.md").read_text(encoding="utf-8")
    section = re.search(r"^## Options$(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE)
    assert section is not None
    told = re.findall(r"^\| `(\w+)` \|", section[1], flags=re.MULTILINE)
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(benchmark.option_type))
    assert ", ".join(benchmark.classes) in " ".join(text.split())
    for counts in benchmark.published.values():
        assert all(str(count) in text for count in counts.values())
    assert f"`python benchmarks/dataset_pictures.py {benchmark.kind}`" in text


@pytest.mark.parametrize("name", [*BUILTIN, "any other name"])
def test_a_sensors_page_has_its_built_in_spec(name: str) -> None:
    spec = BUILTIN.get(name, SensorSpec())
    numbers = lambda values: ", ".join(f"{v:g}" for v in values)  # noqa: E731
    cells = [
        name, str(spec.channels), spec.unit, f"{spec.range[0]:g} to {spec.range[1]:g}", numbers(spec.mean), numbers(spec.std),
        spec.interpolation, "NaN" if spec.missing is None else f"{spec.missing:g}, NaN",
        "/ full scale" if spec.scale is None else f"x {spec.scale:g}", spec.photometric,
    ]  # fmt: skip
    page = page_of_sensor("spectral" if name not in BUILTIN else name)
    assert f"| {' | '.join(cells)} |" in page.read_text(encoding="utf-8")
