"""``mlesam doctor``: what it takes, what it prints, its exit status, and its checks of recipes and the installation."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import sys
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import mlesam.checks.installation
import mlesam.checks.show
import mlesam.model.hub
from conftest import write_dataset
from mlesam.checks.findings import Findings, counted, named, shown
from mlesam.checks.installation import check_installation
from mlesam.doctor import doctor, kind_of
from mlesam.errors import RequestError


def ask(target: object, width: int = 80, terminal: bool = False, **overrides: str) -> tuple[int, str]:
    """Exit status and what is printed."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    fields = {key.replace("__", "."): text for key, text in overrides.items()}
    return doctor(None if target is None else str(target), fields, console), out.getvalue()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole") / "data", train=3, val=2, test=2)


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "data")


def recipe_file(data: Path, text: str = "") -> Path:
    path = data.parent / "street.yaml"
    path.write_text(f"data: {{dataset: 'folder:{data}'}}\n{text}")
    return path


# ---------------------------------------------------------------- datasets


def test_a_dataset_without_a_fault_exits_with_0(whole: Path) -> None:
    status, text = ask(f"folder:{whole}")
    assert status == 0
    assert text.splitlines()[0] == f"dataset folder:{whole}"
    assert text.splitlines()[-1] == "no faults, 1 note"
    assert "classes  ground 8" in text


def test_faults_exit_with_1_and_are_listed_before_the_notes(data: Path) -> None:
    (data / "labels/train/train1.png").unlink()
    (data / "rgb/val/val0.png").write_bytes(b"")
    (data / "depth/train/train0.png").unlink()
    status, text = ask(f"folder:{data}")
    assert status == 1
    assert text.splitlines()[-1] == "2 faults, 2 notes"
    assert text.index("faults (2)") < text.index("rgb/val/val0.png") < text.index("notes (2)")


def test_fields_of_a_recipe_apply_to_a_dataset(whole: Path) -> None:
    status, text = ask(f"folder:{whole}", data__classes="[a, b]")
    assert status == 1
    assert "holds the label id 2, but the classes are 0 to 1" in text


def test_a_dataset_that_declares_nonsense_is_a_fault(data: Path) -> None:
    (data / "dataset.yaml").write_text("clases: [a, b]\n")
    status, text = ask(f"folder:{data}")
    assert status == 1
    assert "did you mean 'classes'?" in text
    assert "the files were not checked" in text


def test_a_declared_sensor_that_is_not_there_gets_the_nearest_name(whole: Path) -> None:
    status, text = ask(f"folder:{whole}", data__sensors="{thermall: {like: thermal}}")
    assert status == 1
    assert "a sensor 'thermall' is declared" in text
    assert "did you mean 'thermal'?" in text


# ---------------------------------------------------------------- recipes


def test_a_recipe_shows_how_the_sensors_will_be_read(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "street.yaml"
    path.write_text(f"data: {{dataset: 'folder:{whole}', modalities: [rgb, depth]}}\nmodel: {{train: all}}\n")
    status, text = ask(path)
    assert status == 0
    assert "depth  1 channel, uint16, stored value x 0.001 = m, 0 to 100 m, mean" in text
    assert "rgb    3 channels, 0 to 1 of full scale, mean 0.485 0.456 0.406" in text
    assert "thermal" not in text
    assert "foundation  nano" in text


def test_all_faults_of_a_recipe_are_listed_and_the_data_are_checked_nevertheless(data: Path) -> None:
    (data / "labels/train/train1.png").unlink()
    path = data.parent / "street.yaml"
    path.write_text(
        f"data: {{dataset: 'folder:{data}', crop: 5, flipp: 1, modalities: [rgb, dpeth]}}\n"
        "model: {foundation: tinny, train: expert}\ntrainig: {steps: 3}\ntraining: {batch: 4, accumulate: 3}\n"
    )
    status, text = ask(path)
    assert status == 1
    for part in (
        "data.crop is 5", "unknown key 'data.flipp'", "did you mean 'depth'?", "did you mean 'tiny'?",
        "model.train is 'expert'", "unknown key 'trainig'", "training.accumulate is 3", "frame 'train1'",
    ):  # fmt: skip
        assert part in text
    assert text.splitlines()[-1].startswith("8 faults")


def test_overrides_come_before_the_check(data: Path) -> None:
    path = recipe_file(data, "training: {steps: 0}\n")
    assert ask(path)[0] == 1
    assert ask(path, training__steps="1")[0] == 0


RECIPE_FAULTS: dict[str, tuple[str, str]] = {
    "no YAML": ("data: [", "is not valid YAML"),
    "a list in a recipe's place": ("[1, 2]", "must hold a mapping"),
    "a dataset that is not there": ("data: {dataset: 'folder:nowhere'}", "there is no folder nowhere"),
    "a kind of dataset that is unknown": ("data: {dataset: 'foldr:x'}", "did you mean 'folder'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPE_FAULTS)
def test_it_is_a_fault_of_a_recipe_to_have(name: str, tmp_path: Path) -> None:
    content, text = RECIPE_FAULTS[name]
    (tmp_path / "street.yaml").write_text(content)
    status, printed = ask(tmp_path / "street.yaml")
    assert status == 1
    assert text in printed


def test_a_recipe_needs_a_train_split(data: Path) -> None:
    for folder in ("rgb", "depth", "thermal", "labels"):
        shutil.rmtree(data / folder / "train")
    status, text = ask(recipe_file(data))
    assert status == 1
    assert "there is no train split; training needs" in text


def test_a_recipe_needs_every_sensor_in_the_train_split(data: Path) -> None:
    shutil.rmtree(data / "depth/train")
    status, text = ask(recipe_file(data))
    assert status == 1
    assert "no train frame" in text
    assert "leave this sensor out" in text


def test_a_recipe_without_a_dataset_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "street.yaml").write_text("model: {train: all}\n")
    status, text = ask(tmp_path / "street.yaml")
    assert status == 0
    assert "no data were checked" in text


def test_a_frozen_preset_is_a_note(data: Path) -> None:
    assert (
        "has random weights, and train: experts keeps them frozen"
        in ask(recipe_file(data, "model: {foundation: nano-random, train: experts}\n"))[1]
    )
    assert "random weights, and" not in ask(recipe_file(data))[1]


def test_tensorboard_must_be_there_if_it_is_asked_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe_file(data, "training: {tensorboard: true}\n")
    assert ask(path)[0] == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "training.tensorboard needs the package tensorboard" in ask(path)[1]


def test_the_foundation_of_a_recipe_is_checked_as_a_checkpoint(data: Path) -> None:
    (data.parent / "sam2.pt").write_bytes(b"no weights")
    status, text = ask(recipe_file(data, f"model: {{foundation: '{data.parent}/sam2.pt'}}\n"))
    assert status == 1
    assert "sam2.pt cannot be read as weights" in text


# ---------------------------------------------------------------- which target is what


def test_a_target_is_known_by_what_lies_there(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("")
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "cut.pt.part").write_bytes(b"PK\x03\x04...")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    found = [kind_of(str(tmp_path / name)) for name in ("a.yml", "a.pt", "cut.pt.part", "run", "folder")]
    assert found == ["recipe", "checkpoint", "checkpoint", "run", "checkpoint"]
    assert kind_of(f"folder:{whole}") == "dataset"


def test_a_model_in_the_cache_of_the_hub_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlesam.model.hub, "cached_folder", lambda name, revision=None: tmp_path)
    status, text = ask("nobody/sam2")
    assert status == 1
    assert "holds no config.json" in text


def test_a_run_and_a_checkpoint_are_checked(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    status, text = ask(tmp_path)
    assert status == 1
    assert text.splitlines()[0] == f"run {tmp_path}"
    assert "run.json is not valid JSON" in text


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "the folder of a dataset": (lambda p: (p / "rgb").mkdir(), "", "write folder:"),
    "an empty folder": (lambda p: None, "", "holds no recipe, no weights and no dataset"),
    "the description of a dataset": (lambda p: (p / "dataset.yaml").write_text(""), "dataset.yaml", "mlesam doctor folder:"),
    "a picture": (lambda p: (p / "a.png").write_bytes(b"\x89PNG"), "a.png", "is nothing that can be checked"),
    "the weights of a run": (
        lambda p: [(p / n).write_text("") for n in ("recipe.yaml", "model.safetensors")],
        "model.safetensors",
        "belongs to a run",
    ),
    "what is not there": (lambda p: None, "nowhere.yaml", "there is no "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_a_wrong_request_to_name(name: str, tmp_path: Path) -> None:
    make, target, text = REFUSED[name]
    make(tmp_path)
    with pytest.raises(RequestError, match=text):
        ask(tmp_path / target)


def test_a_dataset_that_is_not_there_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        ask("folder:nowhere/at/all")


def test_a_model_that_is_not_in_the_cache_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="there is no 'nobody/no-such-model'"):
        ask("nobody/no-such-model")


def test_a_recipe_whose_fault_is_no_key_s_is_given_up(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cls: type, values: object) -> None:
        raise RequestError("this cannot be meant.")

    path = recipe_file(data)
    monkeypatch.setattr("mlesam.doctor.build", refuse)
    status, text = ask(path)
    assert status == 1
    assert text.splitlines()[-1] == "1 fault"


def test_fields_of_a_recipe_go_with_recipes_and_datasets_only() -> None:
    with pytest.raises(RequestError, match=r"--data\.crop sets a field of a recipe"):
        ask(None, data__crop="64")


# ---------------------------------------------------------------- the installation


def test_this_installation_is_sound() -> None:
    status, text = ask(None)
    assert status == 0
    for name in (
        "python",
        "mlesam",
        "torch",
        "transformers",
        "accelerate",
        "numpy",
        "opencv",
        "tifffile",
        "cpu",
        "gpu",
    ):
        assert f"  {name} " in text
    assert "extra tensorboard" in text


def test_a_package_that_does_not_import_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mlesam.checks.installation.PACKAGES, "numpy", "no_such_module")
    found = check_installation()
    (fault,) = found.faults
    assert "numpy cannot be imported (ModuleNotFoundError" in fault
    assert ("numpy", "does not import") in found.facts


def test_a_broken_torchvision_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = check_installation().faults
    assert "torchvision is installed but does not import beside this torch (RuntimeError: operator" in fault


def test_a_torchvision_that_imports_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("__version__ = '1.2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = check_installation()
    sys.modules.pop("torchvision")  # monkeypatch would put it back for the tests that follow
    assert found.faults == []
    assert ("torchvision", "1.2, not needed") in found.facts


def test_a_transformers_without_sam2_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlesam.checks.installation, "TRANSFORMERS_MODEL", ("transformers", "Sam99Model"))
    (fault,) = check_installation().faults
    assert "transformers.Sam99Model cannot be imported" in fault


def test_a_transformers_that_is_not_there_is_one_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mlesam.checks.installation.PACKAGES, "transformers", "no_such_module")
    monkeypatch.setattr(mlesam.checks.installation, "TRANSFORMERS_MODEL", ("no_such_module", "Sam2Model"))
    assert len(check_installation().faults) == 1


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    (gpu,) = [(what, value) for what, value in check_installation().facts if what.startswith("gpu")]
    assert gpu[0] == "gpu 0"
    assert gpu[1].startswith("NVIDIA H100, 80.0 GiB")


def test_a_driver_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert "the driver is too old" in check_installation().faults[0]


def requiring(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    message = Message()
    message["Provides-Extra"] = "serve"
    for line in lines:
        message["Requires-Dist"] = line
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: message)


def test_versions_that_are_too_old_or_missing_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    requiring(monkeypatch, "torch>=99", "no-such-package>=1", 'fastapi-that-is-not-here; extra == "serve"')
    found = check_installation()
    assert any("mlesam needs torch>=99, but 2." in fault for fault in found.faults)
    assert "mlesam needs no-such-package>=1, but it is not installed." in found.faults
    assert len(found.faults) == 2
    assert ("extra serve", "no (lacks fastapi-that-is-not-here; pip install 'mlesam[serve]')") in found.facts


def test_another_build_of_opencv_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    requiring(monkeypatch, "opencv-contrib-python>=4")
    assert check_installation().faults == []


def test_a_package_used_from_its_source_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    assert "imported from its source" in check_installation().notes[0]


# ---------------------------------------------------------------- what is printed


def test_more_than_twenty_of_a_kind_are_counted() -> None:
    findings = Findings()
    for i in range(33):
        findings.fault("unreadable files", f"{i}.png is broken.", f"{i}.png")
    findings.fault("splits", "there are no splits.")
    lines = shown(findings.found_faults)
    assert len(lines) == 22
    assert lines[:2] == ["0.png is broken.", "1.png: the same"]
    assert lines[20] == "... and 13 more unreadable files"
    assert len(findings.faults) == 34


def test_counts_and_names_read_well() -> None:
    assert [counted(1, "fault"), counted(2, "fault"), counted(2, "class"), counted(1000, "note")] == [
        "1 fault", "2 faults", "2 classes", "1,000 notes",
    ]  # fmt: skip
    assert named(["a", "b", "c"], 2) == "a, b and 1 more"
    findings = Findings()
    findings.fault("x", "y")
    assert findings.verdict == "1 fault"


def test_names_of_files_are_neither_markup_nor_commands_to_the_terminal(data: Path) -> None:
    evil = "[bold]\x1b[31m\udcff"
    (data / "rgb/train" / f"{evil}.png").write_bytes(b"")
    shutil.copytree(data / "thermal", data / "[red]x[")
    _, text = ask(f"folder:{data}", width=200)
    assert "\x1b" not in text
    assert r"rgb/train/[bold]\x1b[31m\udcff.png cannot be decoded" in text
    assert "  [red]x[ " in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_wrapped_text_and_a_pipe_gets_whole_lines(width: int, data: Path) -> None:
    for path in (data / "rgb/train").iterdir():
        path.write_bytes(b"")
    (data / "thermal/val/val0.png").write_bytes((data / "depth/val/val0.png").read_bytes())
    _, terminal = ask(f"folder:{data}", width, terminal=True)
    report = terminal[terminal.index("faults (") :]
    assert max(len(line) for line in report.splitlines()) <= width
    _, piped = ask(f"folder:{data}", width)
    assert any("cannot be decoded" in line and "write it again." in line for line in piped.splitlines())


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reading files" in ask(f"folder:{whole}", terminal=True)[1]
    assert "read " not in ask(f"folder:{whole}")[1]
    monkeypatch.setattr(mlesam.checks.show, "PLAIN_SECONDS", -1.0)
    assert "read 28 of 28 files" in ask(f"folder:{whole}")[1]


def test_the_cracks_have_no_fault(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    status, text = ask("recipes/crack.yaml", data__modalities="[infrared]", data__dataset=f"folder:{shared}/data/crack")
    assert status == 0
    assert "from the colour map iron" in text
    assert "tag 'dark': 56 frames (train 31, val 5, test 20)" in text
