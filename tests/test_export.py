"""Exported models: a file for one set of sensors gives what the model gives and says what it is, or it is not written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

from conftest import trained_for_a_moment
from mlesam import MLESAM, DataError, ModelConfig, RequestError, Segmenter, WorkError
from mlesam.cli import main
from mlesam.inference import export, formats
from mlesam.inference.export import FixedSensors, export_model, parse_size, random_scene
from mlesam.inference.exported import Exported, ExportedSegmenter, load_exported
from mlesam.inference.formats import openvino_computes_bf16
from mlesam.inference.stream import SegmenterStream
from mlesam.model.calibration import Calibration
from mlesam.model.experts import plain
from mlesam.model.foundation import decoder_config, load_foundation
from mlesam.model.run import Run
from mlesam.model.sam2 import run_block
from mlesam.sample import Classes
from mlesam.sensors import SensorSpec, sensor_spec

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="needs mlesam[export]")

SIZE = (48, 64)
CLASSES = Classes(("ground", "near", "far"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
SENSORS = {
    "depth": sensor_spec("depth", {"range": [0.0, float("inf")]}),
    "thermal": sensor_spec("thermal", {"normalize": "frame"}),
    "bands": SensorSpec(channels=5, mean=(0.3,), std=(0.1,), missing=0.0),
}


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The smallest SAM2: four blocks, so that a trace takes seconds."""
    widths = [16, 32, 64, 128]
    trunk = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, blocks_per_stage=[1, 1, 1, 1], embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 2, 4], window_size_per_stage=[8, 4, 4, 2], global_attention_blocks=[2],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=widths[::-1], fpn_hidden_size=32)
    config = Sam2Config(
        vision_config=vision, mask_decoder_config=decoder_config(32), prompt_encoder_config={"hidden_size": 32}
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam2")
    Sam2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def segmenter(foundation: str) -> Segmenter:
    """Everything on: a stem of five channels, top-k, a router for each pixel, reliability, temperatures."""
    config = ModelConfig(foundation=foundation, train="experts", rank=2, top_k=2, router="pixel", reliability=True)
    model = MLESAM({m: spec.channels for m, spec in SENSORS.items()}, 3, config)
    torch.manual_seed(1)
    for parameter in (*model.experts.parameters(), *model.aligners.parameters(), *model.reliability.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    return Segmenter(model, SENSORS, CLASSES, calibration=Calibration(0.5, {"bands": 0.2}))


@pytest.fixture(scope="module")
def run(foundation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("street")
    import conftest

    short = conftest.main
    conftest.main = lambda words: short(
        [*words, "--model.foundation", foundation, "--model.train", "experts", "--model.reliability", "false"]
    )
    try:
        return trained_for_a_moment(root) / "run"
    finally:
        conftest.main = short


@pytest.fixture(scope="module")
def full(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full") / "model.onnx"
    export_model(segmenter, out, size=SIZE, name="street")
    return out


@pytest.fixture(scope="module")
def subset(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("subset") / "model.xml"
    export_model(segmenter, out, "openvino", modalities=["thermal", "depth"], size=SIZE)
    return out


def scene(*modalities: str, seed: int = 3) -> dict[str, torch.Tensor]:
    """A frame with holes and with a value beyond the sensor's range, in the sensors' units."""
    torch.manual_seed(seed)
    images = {}
    for modality in modalities:
        spec = SENSORS[modality]
        values = torch.tensor(spec.mean)[:, None, None] + torch.randn(spec.channels, *SIZE) * spec.std[0]
        values[:, :10, 5:30] = float("nan")
        values[:, 30, 30] = 1e6
        images[modality] = values[None]
    return images


def eager(segmenter: Segmenter, images: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """What the model gives, by its own way of reading: no code of the export."""
    known = {m: SENSORS[m] for m in segmenter.model.modalities if m in images}
    arrays = {m: np.moveaxis(images[m][0].numpy(), 0, -1) for m in known}
    inputs = {m: spec.normalized(spec.encode(arrays[m]))[None] for m, spec in known.items()}
    with torch.inference_mode():
        output = segmenter.model(inputs)
    assert segmenter.calibration is not None
    logits = output.logits / segmenter.calibration.temperature(images)
    columns = [segmenter.model.modalities.index(m) for m in known]
    return [logits.numpy(), output.shares.mean(dim=1)[:, columns].numpy()]


# ---------------------------------------------------------------- the same answers


def test_onnx_gives_what_the_model_gives(segmenter: Segmenter, full: Path) -> None:
    images = scene("depth", "thermal", "bands")
    found = load_exported(full)(images)
    logits, weights = eager(segmenter, images)
    assert found["logits"].shape == (1, 3, *SIZE)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)


def test_openvino_gives_what_the_model_gives_of_a_subset(segmenter: Segmenter, subset: Path) -> None:
    images = scene("depth", "thermal")
    exported = load_exported(subset, threads=1)
    found = exported(images)
    logits, weights = eager(segmenter, images)
    assert exported.modalities == ("depth", "thermal")
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)


def test_an_openvino_file_also_runs_in_bf16(subset: Path) -> None:
    if not openvino_computes_bf16():
        with pytest.raises(RequestError, match="no bf16 instructions"):
            load_exported(subset, precision="bf16")
        return
    images = scene("depth", "thermal")
    rough, exact = load_exported(subset, precision="bf16"), load_exported(subset)
    assert (rough.precision, exact.precision) == ("bf16", "fp32")
    apart = np.abs(rough(images)["logits"] - exact(images)["logits"]).max()
    assert 0 < apart < 0.2


class LastBlock(torch.nn.Module):
    """A block of SAM2's tiny size on a map of 8x8 tokens: its windows of 7 leave one token alone in the corner."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = load_foundation("tiny").foundation.trunk

    def forward(self, x_RHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = run_block(self.trunk.blocks[11], x_RHWC, 11, plain)
        return found, found.mean(dim=(1, 2))


def test_bf16_holds_where_windows_reach_beyond_the_map(tmp_path: Path) -> None:
    """OpenVINO read past the end of a mask of a single row, in bf16 alone."""
    if not openvino_computes_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    import openvino

    block, x = LastBlock().eval(), torch.randn(4, 8, 8, 768, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = block(x)[0]
    formats.convert("openvino", block, {"x": x}, "fp32", [])(tmp_path / "block.xml", {})
    core = openvino.Core()
    for hint, allowed in (("f32", 1e-4), ("bf16", 0.05)):
        compiled = core.compile_model(str(tmp_path / "block.xml"), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        apart = torch.from_numpy(compiled([x.numpy()])[0]) - expected
        assert apart.abs().max() < allowed * expected.abs().max()


def test_a_sensor_without_any_measurement_is_no_nan(full: Path) -> None:
    images = scene("depth", "thermal", "bands")
    images["depth"] = torch.full_like(images["depth"], float("nan"))
    images["bands"] = torch.zeros_like(images["bands"])  # 0 is what this sensor stores where nothing was measured
    found = load_exported(full)(images)
    assert np.isfinite(found["logits"]).all()
    images["bands"] = torch.full_like(images["bands"], float("nan"))
    np.testing.assert_array_equal(load_exported(full)(images)["logits"], found["logits"])


def test_int8_keeps_the_labels(segmenter: Segmenter, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs mlesam[export]")
    scenes = [{m: x[0] for m, x in scene("bands", seed=s).items()} for s in range(3)]
    with pytest.raises(RequestError, match="int8 needs frames"):
        export_model(segmenter, tmp_path / "m.xml", "openvino", modalities=["bands"], size=SIZE, precision="int8")
    about = export_model(
        segmenter, tmp_path / "m.xml", "openvino", modalities=["bands"], size=SIZE, precision="int8",
        frames=scenes[:1], ranges=scenes,
    )  # fmt: skip
    assert about["checked"]["real"]["equal_labels"] > 0.95
    assert "i8" in (tmp_path / "m.xml").read_text(), "no weight is stored in 8 bits"
    graph = ElementTree.parse(tmp_path / "m.xml")
    layers = {layer.attrib["id"]: layer.attrib for layer in graph.iter("layer")}
    edges = [(layers[e.attrib["from-layer"]], layers[e.attrib["to-layer"]]["name"]) for e in graph.iter("edge")]
    rounded = " ".join(taker for giver, taker in edges if giver["type"] == "FakeQuantize")
    assert "blocks" in rounded
    assert "foundation/" in rounded, "attention and MLPs too"
    assert "mask_head" in rounded
    assert not any(word in rounded for word in ("hypernetworks", "reliability", "routers", "classify"))
    with pytest.raises(RequestError, match="cannot run in fp32"):
        load_exported(tmp_path / "m.xml", precision="fp32")


# ---------------------------------------------------------------- what a file says


@pytest.mark.parametrize("name", ["full", "subset"])
def test_a_file_says_what_it_is(name: str, request: pytest.FixtureRequest, segmenter: Segmenter) -> None:
    exported = load_exported(request.getfixturevalue(name))
    about = exported.about
    assert about["format"] == "mlesam export 1"
    assert about["classes"] == ["ground", "near", "far"]
    assert about["colors"][1] == [255, 0, 0]
    assert (about["height"], about["width"]) == SIZE
    assert about["temperature"] == pytest.approx(segmenter.calibration.temperature(exported.modalities))
    assert about["checked"]["random"]["probabilities"] < 1e-3
    assert exported.sensors["depth"] == SENSORS["depth"]
    json.loads(json.dumps(about, allow_nan=False))


def test_inputs_are_named_after_the_sensors_and_no_path_of_the_machine_is_inside(full: Path) -> None:
    import onnx

    model = onnx.load(str(full))
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert shapes == {m: [1, spec.channels, *SIZE] for m, spec in SENSORS.items()}
    assert [o.name for o in model.graph.output] == ["logits", "weights"]
    assert b"site-packages" not in full.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in full.read_bytes()


def test_no_map_is_moved_there_and_back(full: Path) -> None:
    import onnx

    graph = onnx.load(full).graph
    moves = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    orders = {name: list(node.attribute[0].ints) for name, node in moves.items()}
    twice = [(orders[node.input[0]], orders[name]) for name, node in moves.items() if node.input[0] in moves]
    assert len(moves) > 10
    assert not [pair for pair in twice if [pair[0][place] for place in pair[1]] == sorted(pair[0])]


def test_a_torch_program_holds_the_same_and_is_not_opened_by_this_package(segmenter: Segmenter, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    export_model(segmenter, out, "torch", modalities=["bands"], size=SIZE)
    about = {formats.KEY: ""}
    program = torch.export.load(out, extra_files=about)
    images = scene("bands")
    logits, weights = program.module()(*images.values())
    np.testing.assert_allclose(logits.detach().numpy(), eager(segmenter, images)[0], atol=1e-4)
    assert weights.tolist() == [[1.0]]
    assert json.loads(about[formats.KEY])["modalities"] == ["bands"]
    with pytest.raises(RequestError, match="can execute code"):
        Segmenter.load(out)


# ---------------------------------------------------------------- the segmenter around it


def test_the_command_exports_a_run_and_the_segmenter_takes_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "street.onnx"
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "rgb + depth + thermal at 64x48 pixels, onnx in fp32" in said
    assert "on 3 frames" in said, "one of the four test frames lacks a sensor"
    data = run.parent / "data"
    files = {m: data / m / "test/test0.png" for m in ("thermal", "rgb", "depth")}
    one, other = Segmenter.load(run), Segmenter.load(out)
    expected, found = one(files), other(files)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert found.weights == pytest.approx(expected.weights, abs=1e-5)
    assert list(found.weights) == list(expected.weights)
    assert (found.classes, found.colors) == (expected.classes, expected.colors)
    np.testing.assert_array_equal(found.background, expected.background)
    broken = {"faults": ["rgb:fog:3"]}
    np.testing.assert_array_equal(other(files, **broken).labels, one(files, **broken).labels)
    with pytest.raises(RequestError, match="holds no model; this needs the run"):
        SegmenterStream(other)
    with pytest.raises(RequestError, match=r"exported for rgb \+ depth \+ thermal together and cannot take rgb;"):
        other({"rgb": files["rgb"]})
    with pytest.raises(RequestError, match="exported for 64x48 pixels and rgb has 32x40"):
        other({"rgb": np.zeros((40, 32, 3), np.uint8), "depth": np.ones((40, 32)), "thermal": np.ones((40, 32))})
    words = [word for m, path in files.items() for word in (f"--{m}", str(path))]
    assert main(["predict", str(out), *words, "--out", str(tmp_path / "predicted")]) == 0
    assert json.loads((tmp_path / "predicted/prediction.json").read_text())["calibrated"]
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


def test_a_run_that_resizes_its_frames_does_so_when_exported(segmenter: Segmenter, full: Path) -> None:
    exported = load_exported(full)
    exported.about["resize"] = 48
    other = ExportedSegmenter(exported)
    one = Segmenter(segmenter.model, SENSORS, CLASSES, 48, calibration=segmenter.calibration)
    rng = np.random.default_rng(0)
    large = {m: rng.random((96, 128, spec.channels), np.float32) for m, spec in SENSORS.items()}
    np.testing.assert_array_equal(other(large).labels, one(large).labels)
    assert other(large).labels.shape == (96, 128)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "onxx"}, "unknown format 'onxx'; did you mean 'onnx'"),
        ({"precision": "int4"}, "onnx is exported in fp32, not in 'int4'"),
        ({"modalities": ["deph"]}, "no sensor 'deph'; did you mean 'depth'"),
        ({"modalities": []}, "no sensor was chosen"),
        ({"size": (20, 64)}, "the size is 64x20 pixels, but each side needs at least 32"),
        ({"out": "model.xml"}, "of the format onnx ends with .onnx, and --out is"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    segmenter: Segmenter, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    options = {"format": "onnx", "size": SIZE, **changes}
    with pytest.raises(RequestError, match=says):
        export_model(segmenter, tmp_path / options.pop("out", "model.onnx"), **options)
    assert not list(tmp_path.iterdir())


def test_a_model_that_leaves_sensors_behind_is_exported_for_as_few(foundation: str, tmp_path: Path) -> None:
    config = ModelConfig(foundation=foundation, train="experts", rank=2, look=1, look_keep=1)
    looking = Segmenter(
        MLESAM({"rgb": 3, "depth": 1}, 3, config), {m: sensor_spec(m) for m in ("rgb", "depth")}, CLASSES
    )
    with pytest.raises(RequestError, match=r"all but 1 of a frame's sensors behind .* export 1 sensors at most"):
        export_model(looking, tmp_path / "model.pt2", "torch", size=SIZE)
    looking.model.compute_in(torch.bfloat16)
    with pytest.raises(RequestError, match="another precision than float32"):
        export_model(looking, tmp_path / "model.pt2", "torch", modalities=["rgb"], size=SIZE)


def test_sensors_that_hand_over_are_exported(foundation: str, tmp_path: Path) -> None:
    config = ModelConfig(foundation=foundation, train="experts", rank=2, look=1, look_keep=1, look_lead=("thermal",))
    model = MLESAM({"depth": 1, "thermal": 1}, 3, config)
    nn.init.normal_(model.handovers["depth"].weight, std=0.1)  # type: ignore[arg-type]
    sensors = {m: SENSORS[m] for m in ("depth", "thermal")}
    leading = Segmenter(model, sensors, CLASSES, calibration=Calibration(0.5))
    export_model(leading, tmp_path / "model.onnx", "onnx", size=SIZE)
    images = scene("depth", "thermal")
    found, (logits, weights) = load_exported(tmp_path / "model.onnx")(images), eager(leading, images)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)
    blind, _ = eager(leading, {"thermal": images["thermal"]})
    assert np.abs(blind - logits).max() > 1e-3, "what depth handed over is in thermal's map"


def test_a_missing_package_is_named(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(formats.importlib, "import_module", absent)
    with pytest.raises(RequestError, match=r'need the package onnx, .*pip install "mlesam\[export\]"'):
        export_model(segmenter, tmp_path / "model.onnx", size=SIZE)


@pytest.mark.parametrize(("format", "name"), [("torch", "m.pt2")])
def test_an_export_that_differs_is_not_written(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str
) -> None:
    convert = export.convert

    def wrong(format: str, module: FixedSensors, *rest: Any) -> Any:
        bias = module.model.pyramid_head.classify.bias
        plain = bias.detach().clone()
        with torch.no_grad():
            bias += torch.tensor([0.0, 1.0, 0.0])
            save = convert(format, module, *rest)
            module.model.pyramid_head.classify.bias = torch.nn.Parameter(plain)
        return save

    monkeypatch.setattr(export, "convert", wrong)
    with pytest.raises(WorkError, match=r"is not written: on random inputs .*probabilities 0\.\d+"):
        export_model(segmenter, tmp_path / name, format, modalities=["bands"], size=SIZE)
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_wrong_on_one_thread_is_not_written(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, precision: str | None = None, threads: int | None = None) -> Exported:
        found = load_exported(path, precision, threads)
        if threads != 1:
            return found
        return dataclasses.replace(found, run=lambda inputs: [-found.run(inputs)[0], found.run(inputs)[1]])

    monkeypatch.setattr(export, "load_exported", wrong)
    with pytest.raises(WorkError, match=r"is not written: on one thread .*probabilities"):
        export_model(segmenter, tmp_path / "model.onnx", modalities=["bands"], size=SIZE)
    assert not list(tmp_path.iterdir())


def test_what_is_no_exported_model_is_refused(tmp_path: Path, full: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        Segmenter.load(tmp_path / "absent.onnx")
    for name in ("damaged.onnx", "damaged.xml"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(DataError, match="cannot be read"):
            load_exported(tmp_path / name)
    import onnx

    foreign = onnx.load(str(full))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(DataError, match="was not written by"):
        load_exported(tmp_path / "foreign.onnx")
    with pytest.raises(RequestError, match="runs in fp32, not in bf16"):
        load_exported(full, precision="bf16")


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from mlesam.inference.formats import needed\n"
        "openvino = needed('openvino')\n"
        "from openvino_telemetry import Telemetry\n"
        "assert Telemetry().consent is False\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks are Linux's here")
def test_a_thread_keeps_its_signal_stack(run: Path, tmp_path: Path) -> None:
    """One that OpenVINO had left behind, and freed, killed the process when a child ended."""
    code = (
        "import ctypes, sys\n"
        "from mlesam.inference.exported import load_exported\n"
        "from mlesam.inference.formats import _Stack\n"
        "def now():\n"
        "    found = _Stack()\n"
        "    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))\n"
        "    return found.place, found.flags, found.size\n"
        "before = now()\n"
        "exported = load_exported(sys.argv[1])\n"
        "assert now() == before, (now(), before)\n"
    )
    out = tmp_path / "m.xml"
    words = ("--format", "openvino", "--modalities", "rgb", "--size", "64x64", "--out", str(out))
    assert main(["export", str(run), *words]) == 0
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)


def test_options_of_models_go_with_models(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "adapter"), "--size", "64"]) == 2
    assert "--size does not go with --format adapter" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "m.xml"), "--format", "openvino", "--size", "64xx"]) == 2
    assert "write WIDTHxHEIGHT" in capsys.readouterr().err
    assert parse_size("640x480") == (480, 640)
    assert parse_size("96") == (96, 96)


def test_an_adapter_without_its_dataset_is_checked_on_random_numbers(
    run: Path, foundation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "adapter")]) == 0
    adapter = Run.load(tmp_path / "adapter", foundation=foundation)
    asked: dict[str, Any] = {}

    def remember(*arguments: Any, **options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"checked": {}}

    monkeypatch.setattr(export, "export_model", remember)
    said: list[str] = []
    export.export_run(adapter, tmp_path / "m.pt2", "torch", say=said.append)
    assert (asked["frames"], asked["size"]) == ([], (256, 256))  # an adapter does not say what it was trained on
    assert "names no dataset" in said[0]
    data = f"folder:{run.parent / 'data'}"
    export.export_run(adapter, tmp_path / "m.xml", "openvino", modalities=["depth"], precision="int8", data=data)
    assert (len(asked["frames"]), len(asked["ranges"]), asked["size"]) == (3, 6, SIZE)
    assert asked["frames"][0]["depth"].shape == (1, *SIZE)


def test_random_scenes_have_holes() -> None:
    made = random_scene(SENSORS, (40, 40))
    assert {m: x.shape[0] for m, x in made.items()} == {m: spec.channels for m, spec in SENSORS.items()}
    assert all(0.01 < float(x.isnan().float().mean()) < 0.1 for x in made.values())
