"""Sensors of many bands: 12 and 100 of them go from the recipe alone through every command, and ``doctor --stats``
measures them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from rich.console import Console

import mlesam.checks.bands
import mlesam.data.statistics
from mlesam import Segmenter
from mlesam.checks.bands import shown_number, shown_share
from mlesam.cli import main
from mlesam.config import DataConfig, load_recipe
from mlesam.data import open_dataset
from mlesam.data.reading import STATISTICS_FRAMES, read_frame, resolve_sensors
from mlesam.doctor import doctor
from mlesam.errors import RequestError
from mlesam.training.dry_run import dry_run
from mlesam.training.progress import Progress

SIZE = (48, 64)
EMPTY = 4
"""Rows of every cube in which nothing was measured."""


def cube(bands: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``(H, W, bands)`` uint16 reflectances in which 0 is a hole, and the label that they show."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SIZE, np.uint8)
    top, left = rng.integers(EMPTY, 20), rng.integers(0, 30)
    label[top : top + 20, left : left + 25] = 1
    spectra = np.stack([np.linspace(800, 3000, bands), np.linspace(4000, 600, bands)])
    values = spectra[label] + rng.normal(0, 100, (*SIZE, bands))
    values[:EMPTY] = 0
    return values.clip(0).round().astype(np.uint16), label


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(array).save(path)


def write(root: Path, bands: int, suffix: str, train: int = 3) -> Path:
    """A folder with a camera and a sensor ``bands``: TIFF as stored, ``.npy`` as reflectance with NaN for holes."""
    for split, count in (("train", train), ("val", 1), ("test", 2)):
        for i in range(count):
            values, label = cube(bands, 10 * len(split) + i)
            rgb = np.repeat((60 + 120 * label)[..., None], 3, axis=2).astype(np.uint8)
            rgb[..., 0] += 10
            if suffix == ".npy":
                values = np.where(values > 0, values / 10_000, np.nan).astype(np.float32)
            save(root / f"bands/{split}/{split}{i}{suffix}", values)
            save(root / f"rgb/{split}/{split}{i}.png", rgb)
            save(root / f"labels/{split}/{split}{i}.png", label)
    return root


def recipe_text(data: Path, bands: int, suffix: str) -> str:
    meaning = "missing: 0, scale: 0.0001, range: [0, 2]" if suffix == ".tif" else "dtype: float32"
    return (
        f"data:\n  dataset: folder:{data}\n  classes: [ground, plant]\n"
        f"  sensors: {{bands: {{channels: {bands}, {meaning}}}}}\n  crop: 48\n  workers: 0\n"
        "model: {foundation: nano, rank: 4}\ntraining: {steps: 2, batch: 2, validate_every: 2}\n"
    )


KINDS = {"12 bands in a TIFF": (12, ".tif"), "100 bands in an array": (100, ".npy")}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A folder with ``data`` and ``recipe.yaml``; the number of bands; the kind of file."""
    bands, suffix = KINDS[request.param]
    root = tmp_path_factory.mktemp("bands")
    write(root / "data", bands, suffix)
    (root / "recipe.yaml").write_text(recipe_text(root / "data", bands, suffix))
    return root, bands, suffix


@pytest.fixture(scope="module")
def run(kind: tuple[Path, int, str]) -> Path:
    root, _, _ = kind
    assert main(["train", str(root / "recipe.yaml"), "--out", str(root / "run")]) == 0
    return root / "run"


def stats(target: object, width: int = 80, **options: object) -> tuple[int, str]:
    out = io.StringIO()
    fields = options.pop("fields", {})
    status = doctor(str(target), fields, Console(file=out, width=width), stats=True, **options)  # type: ignore[arg-type]
    return status, out.getvalue()


def block(text: str) -> str:
    """What a user copies: everything after the line that says where it goes."""
    return text[text.index("# statistics of") :]


def rows(text: str, bands: int) -> np.ndarray:
    """The numbers of the last table of so many bands; percents as they stand, - as NaN."""
    lines = [line.replace(" %", "").replace("< ", "").split() for line in text.splitlines()]
    lines = [words for words in lines if len(words) == 9 and words[0].isdigit()][-bands:]
    assert [words[0] for words in lines] == [str(i + 1) for i in range(bands)]
    return np.array([[np.nan if word == "-" else float(word) for word in words[1:]] for words in lines])


def reflectances(data: Path, split: str = "train") -> np.ndarray:
    """All files of the sensor by other readers, ``(pixels, bands)`` float64, NaN where nothing was measured."""
    made = []
    for path in sorted((data / "bands" / split).iterdir()):
        array = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
        values = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if path.suffix == ".tif":
            values[(values == 0).all(axis=1)] = np.nan
            values *= 1e-4
        made.append(values)
    return np.concatenate(made)


# ---------------------------------------------------------------- every command


def test_many_bands_go_through_every_command_from_the_recipe_alone(
    kind: tuple[Path, int, str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, bands, suffix = kind
    data = root / "data"
    capsys.readouterr()
    assert main(["doctor", str(root / "recipe.yaml")]) == 0
    said = capsys.readouterr().out
    assert f"{bands} channels" in said
    assert max(len(line) for line in said.splitlines() if "std" in line) < 160  # from which to which, not all of them
    assert main(["evaluate", str(run)]) == 0
    (stored,) = (run / "evaluation").glob("*.json")
    assert [row["name"] for row in json.loads(stored.read_text())["results"]] == ["rgb", "bands", "rgb+bands"]
    alone = ["--bands", str(data / f"bands/test/test0{suffix}")]
    assert main(["predict", str(run), *alone, "--out", str(root / "alone")]) == 0
    with_rgb = [*alone, "--rgb", str(data / "rgb/test/test0.png")]
    assert main(["predict", str(run), *with_rgb, "--out", str(root / "both")]) == 0
    weights = [
        json.loads((root / n / "prediction.json").read_text())["frames"][0]["weights"] for n in ("alone", "both")
    ]
    assert weights[0] == {"bands": 1.0}
    assert set(weights[1]) == {"rgb", "bands"}
    overlay = np.asarray(Image.open(root / "alone/overlays/test0.png"))
    assert overlay.shape == (*SIZE, 3)


def test_the_segmenter_takes_a_cube_either_way_round(kind: tuple[Path, int, str], run: Path) -> None:
    root, _, suffix = kind
    segmenter = Segmenter.load(run)
    path = root / f"data/bands/test/test0{suffix}"
    expected = segmenter({"bands": path})
    stored = np.load(path) if suffix == ".npy" else tifffile.imread(path)
    turned = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
    tensor = torch.from_numpy(turned if suffix == ".npy" else turned.astype(np.int32))
    for given in (stored, turned, tensor):
        np.testing.assert_array_equal(segmenter({"bands": given}).probabilities, expected.probabilities)
    assert expected.background is not None
    assert np.ptp(expected.background.astype(int), axis=2).max() > 50  # false colour, not a grey first band
    both = segmenter({"bands": stored, "rgb": root / "data/rgb/test/test0.png"})
    assert set(both.weights) == {"rgb", "bands"}
    assert both.labels.shape == SIZE


def test_one_file_with_another_number_of_bands_is_refused_by_name(
    kind: tuple[Path, int, str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, bands, suffix = kind
    data = shutil.copytree(root / "data", tmp_path / "data")
    path = data / f"bands/train/train0{suffix}"  # the first one, which must not be taken for the rule
    stored = np.load(path) if suffix == ".npy" else tifffile.imread(path)
    save(path, stored[..., : bands - 5])
    sentence = f"{path} has {bands - 5} channels, but its sensor has {bands}; correct the file or the spec."
    (tmp_path / "recipe.yaml").write_text(recipe_text(data, bands, suffix))
    for target in ([str(tmp_path / "recipe.yaml")], ["--data", f"folder:{data}"]):  # declared, and read off the files
        capsys.readouterr()
        assert main(["train", *target, "--out", str(tmp_path / "run")]) == 1
        assert capsys.readouterr().err == f"mlesam: {sentence}\n"
    for target in (str(tmp_path / "recipe.yaml"), f"folder:{data}"):
        status, text = stats(target)
        assert status == 1
        assert sentence in text
        assert "# statistics" not in text  # of the files that are left
        assert main(["doctor", target]) == 1
        assert sentence.replace(f"{data}/", "") in capsys.readouterr().out
    assert main(["predict", str(run), "--bands", str(path), "--out", str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err


# ---------------------------------------------------------------- doctor --stats


def test_the_table_holds_what_numpy_says(kind: tuple[Path, int, str]) -> None:
    root, bands, _ = kind
    status, text = stats(root / "recipe.yaml")
    assert status == 0
    values = reflectances(root / "data")
    low, middle, high = np.nanpercentile(values, [1, 50, 99], axis=0)
    expected = [
        np.nanmin(values, 0),
        low,
        middle,
        high,
        np.nanmax(values, 0),
        np.nanmean(values, 0),
        np.nanstd(values, 0),
    ]
    found = rows(text, bands)
    np.testing.assert_allclose(found[:, :7], np.stack(expected, axis=1), rtol=6e-4, atol=1e-7)  # four digits
    np.testing.assert_allclose(found[:, 7], 100 * np.isnan(values).mean(axis=0), atol=0.051)
    assert found[0, 7] == pytest.approx(100 * EMPTY / SIZE[0], abs=0.051)


def test_the_block_holds_what_numpy_says_and_a_line_fits_80_columns(kind: tuple[Path, int, str]) -> None:
    root, bands, suffix = kind
    text = block(stats(root / "recipe.yaml")[1])
    sensor = yaml.safe_load(text)["data"]["sensors"]["bands"]
    values = reflectances(root / "data")
    np.testing.assert_allclose(sensor["mean"], np.nanmean(values, axis=0), rtol=1e-6)
    np.testing.assert_allclose(sensor["std"], np.nanstd(values, axis=0), rtol=1e-6)
    assert sensor["channels"] == bands
    assert sensor.get("range") == ([0, 2] if suffix == ".tif" else None)
    assert max(len(line) for line in text.splitlines()[1:]) <= 80


def test_the_block_goes_into_a_recipe_and_a_training_takes_it(kind: tuple[Path, int, str], tmp_path: Path) -> None:
    root, _, _ = kind
    recipe = tmp_path / "pasted.yaml"
    lines = [line for line in (root / "recipe.yaml").read_text().splitlines() if not line.startswith("  sensors:")]
    pasted = block(stats(root / "recipe.yaml")[1]).splitlines()[2:]  # below the recipe's own `data:`
    recipe.write_text("\n".join([lines[0], *pasted, *lines[1:]]) + "\n")
    assert block(stats(recipe)[1]) == block(stats(root / "recipe.yaml")[1])
    out = io.StringIO()
    assert dry_run(load_recipe(recipe), None, Progress(Console(file=out, width=200))) == 0
    assert "all checks passed" in out.getvalue()


Draw = Callable[[np.random.Generator], np.ndarray]


def whole(top: int, *channels: int, dtype: str = "uint8") -> Draw:
    return lambda rng: rng.integers(0, top, (*SIZE, *channels), dtype=dtype)


def returns(rng: np.random.Generator) -> np.ndarray:
    return whole(99, 3)(rng) * (rng.random((*SIZE, 1)) < 0.1)


def grey(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(whole(255, 1)(rng), 3, axis=2)


def kelvin(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(300, 5, SIZE).astype(np.float32)


SENSORS: dict[str, tuple[str, dict[str, object], Draw, str]] = {
    "a depth of 16 bits": ("depth", {}, whole(9000, dtype="uint16"), ".png"),
    "a depth of 8 bits": ("depth", {}, whole(200), ".png"),
    "a float of any range": ("thermal", {}, kelvin, ".npy"),
    "sparse returns": ("lidar", {}, returns, ".png"),
    "a colour map": ("ir", {"like": "thermal", "colormap": "gray"}, grey, ".png"),
    "each frame by itself": ("nir", {"normalize": "frame"}, whole(99), ".png"),
    "a statistic of somebody else's": ("nir", {"mean": [9.0], "missing": 0}, whole(99), ".png"),
    "bands": ("bands", {"missing": 0}, whole(9, 12, dtype="uint16"), ".tif"),
    "a camera": ("rgb", {}, whole(255, 3), ".png"),
}


@pytest.mark.parametrize("place", ["recipe", "dataset.yaml"])
@pytest.mark.parametrize("name", SENSORS)
def test_the_block_gives_the_same_numbers_to_the_last_bit(name: str, place: str, tmp_path: Path) -> None:
    modality, declared, draw, suffix = SENSORS[name]
    for i in range(3):
        save(tmp_path / f"{modality}/train/{i}{suffix}", draw(np.random.default_rng(i)))
    config = DataConfig(sensors={modality: declared} if declared else {})
    without = {k: v for k, v in declared.items() if k not in ("mean", "std")}
    inferred, frames = resolved(tmp_path, DataConfig(sensors={modality: without} if without else {}))
    fields = {"data.sensors": json.dumps(config.sensors)}
    status, text = stats(f"folder:{tmp_path}", fields=fields)
    assert status == 0
    if place == "recipe":
        pasted, _ = resolved(tmp_path, DataConfig(**yaml.safe_load(block(text))["data"]))
    else:
        (tmp_path / "dataset.yaml").write_text(f"classes: [a, b]\n{block(text)}")
        pasted, _ = resolved(tmp_path, DataConfig())
    spec = pasted[modality]
    assert spec == inferred[modality]
    for frame in frames:
        old, new = (s[modality].normalized(read_frame(frame, s).images[modality]) for s in (inferred, pasted))
        assert torch.equal(old, new)
    pasted_fields = (
        {} if place == "dataset.yaml" else {"data.sensors": json.dumps(yaml.safe_load(block(text))["data"]["sensors"])}
    )
    assert stats(f"folder:{tmp_path}", fields=pasted_fields) == (0, text)


def resolved(root: Path, config: DataConfig):
    data = open_dataset(f"folder:{root}", config)
    frames = data.frames("train")
    return resolve_sensors(data, data.modalities, frames)[0], frames


def test_a_camera_is_measured_and_keeps_the_statistics_of_sam2(kind: tuple[Path, int, str]) -> None:
    root, _, _ = kind
    text = stats(root / "recipe.yaml", fields={"data.modalities": "[rgb]", "data.sensors": "{}"})[1]
    pictures = np.stack([np.asarray(Image.open(p)) for p in sorted((root / "data/rgb/train").iterdir())])
    np.testing.assert_allclose(rows(text, 3)[:, 5], pictures.mean(axis=(0, 1, 2)) / 255, rtol=6e-4)
    assert "# a colour camera keeps its spec's mean and std" in text
    assert yaml.safe_load(block(text))["data"]["sensors"]["rgb"]["mean"] == [0.485, 0.456, 0.406]


def test_the_numbers_are_in_the_sensors_unit_also_where_each_frame_is_normalised_by_itself(tmp_path: Path) -> None:
    stored = whole(9000, dtype="uint16")(np.random.default_rng(0))
    save(tmp_path / "depth/train/a.png", stored)
    text = stats(f"folder:{tmp_path}", fields={"data.sensors": "{depth: {normalize: frame}}"})[1]
    metres = stored[stored > 0] / 1000
    assert rows(text, 1)[0, 5:7] == pytest.approx([metres.mean(), metres.std()], rel=6e-4)
    sensor = yaml.safe_load(block(text))["data"]["sensors"]["depth"]
    assert sensor["mean"] == pytest.approx([metres.mean()], rel=1e-6)
    assert (sensor["normalize"], sensor["channels"], sensor["range"]) == ("frame", 1, [0, 100])


def test_a_split_and_a_number_of_frames_can_be_chosen(kind: tuple[Path, int, str]) -> None:
    root, bands, _ = kind
    text = stats(root / "recipe.yaml", split="test")[1]
    assert "split test" in block(text).splitlines()[0]
    values = reflectances(root / "data", "test")
    np.testing.assert_allclose(rows(text, bands)[:, 5], np.nanmean(values, axis=0), rtol=6e-4)
    text = stats(root / "recipe.yaml", frames=2)[1]
    ends = reflectances(root / "data").reshape(3, -1, bands)[[0, 2]].reshape(-1, bands)
    np.testing.assert_allclose(rows(text, bands)[:, 5], np.nanmean(ends, axis=0), rtol=6e-4)
    assert "2 files, 6,144 pixels; percentiles exact" in text


def test_as_many_frames_as_a_training_takes_give_its_very_numbers(tmp_path: Path) -> None:
    for i in range(STATISTICS_FRAMES + 20):
        save(tmp_path / f"fog/train/{i:03}.npy", np.random.default_rng(i).normal(i, 1, (4, 5)).astype(np.float32))
    inferred, _ = resolved(tmp_path, DataConfig())
    chosen = yaml.safe_load(block(stats(f"folder:{tmp_path}", frames=STATISTICS_FRAMES)[1]))
    assert tuple(chosen["data"]["sensors"]["fog"]["mean"]) == inferred["fog"].mean
    everything = yaml.safe_load(block(stats(f"folder:{tmp_path}")[1]))
    assert everything["data"]["sensors"]["fog"]["mean"] != chosen["data"]["sensors"]["fog"]["mean"]


def test_percentiles_of_a_sample_are_called_that(kind: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, bands, _ = kind
    small = mlesam.data.statistics.BandStatistics
    monkeypatch.setattr(mlesam.data.statistics, "BandStatistics", lambda channels: small(channels, 2000 * channels))
    text = stats(root / "recipe.yaml")[1]
    assert "9,216 pixels; percentiles of 1," in text
    assert "of them drawn at random" in text
    np.testing.assert_allclose(
        rows(text, bands)[:, 5], np.nanmean(reflectances(root / "data"), axis=0), rtol=6e-4
    )  # the mean is of all of them


def test_a_long_table_repeats_its_header(kind: tuple[Path, int, str]) -> None:
    root, bands, _ = kind
    text = stats(root / "recipe.yaml", fields={"data.modalities": "[bands]"})[1]
    assert text.count(" median ") == -(-bands // mlesam.checks.bands.REPEAT)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (None, {"stats": True}, "name a recipe or a dataset"),
        ("run", {"stats": True}, "name a recipe or a dataset"),
        ("data", {"split": "val"}, "--split and --frames go with --stats"),
        ("data", {"frames": 3}, "--split and --frames go with --stats"),
        ("data", {"stats": True, "frames": 0}, "--frames is 0, but it must be at least 1"),
        ("data", {"stats": True, "split": "tarin"}, "has no split 'tarin'; did you mean 'train'?"),
        ("bare.yaml", {"stats": True}, "names no dataset to measure"),
    ],
)
def test_it_is_a_wrong_request(target: str | None, options: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "bare.yaml").write_text("seed: 1\n")
    save(tmp_path / "data/rgb/train/a.png", np.zeros((*SIZE, 3), np.uint8))
    name = None if target is None else f"folder:{tmp_path}/data" if target == "data" else str(tmp_path / target)
    with pytest.raises(RequestError, match=message):
        doctor(name, {}, Console(file=io.StringIO()), **options)


def test_the_options_reach_it_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        save(tmp_path / f"fog/val/{i}.npy", np.full((2, 2), i, np.float32))
    assert main(["doctor", f"folder:{tmp_path}", "--stats", "--split", "val", "--frames", "2"]) == 0
    assert "2 files, 8 pixels" in capsys.readouterr().out
    assert main(["doctor", f"folder:{tmp_path}", "--stats"]) == 2
    assert "no split 'train'" in capsys.readouterr().err


def test_every_sensor_that_cannot_be_read_is_a_fault_and_the_others_are_measured(tmp_path: Path) -> None:
    save(tmp_path / "rgb/train/a.png", np.zeros((*SIZE, 3), np.uint8))
    for name in ("fog", "mist"):
        save(tmp_path / f"{name}/train/a.npy", np.zeros(SIZE, np.float32))
        (tmp_path / f"{name}/train/a.npy").write_bytes(b"\x93NUMPY")
    status, text = stats(f"folder:{tmp_path}")
    assert status == 1
    assert "fog/train/a.npy cannot be decoded" in text
    assert "mist/train/a.npy cannot be decoded" in text
    assert text.splitlines()[-1] == "2 faults"
    assert rows(text, 3)[:, 0].tolist() == [0, 0, 0]


def test_numbers_are_legible() -> None:
    numbers = [0, 1, -0.5, 0.04706, 300.123, 9999.6, 123456.7, 1.5e-5, -3e9, float("nan")]
    shown = ["0", "1.000", "-0.5000", "0.04706", "300.1", "10000", "123457", "1.50e-05", "-3.00e+09", "-"]
    assert [shown_number(v) for v in numbers] == shown
    assert [shown_share(v) for v in (0, 1, 0.25, 1e-5, 1 - 1e-5)] == ["0 %", "100 %", "25.0 %", "< 0.1 %", "> 99.9 %"]
