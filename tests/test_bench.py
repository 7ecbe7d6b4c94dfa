"""The benchmark compares what computes the same, counts all of it, and says what it found. No test depends on a clock."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

import mlesam
from mlesam.bench import case, inference, measure, memory, naive, peak, result, scaling, stages, training
from mlesam.bench.case import Case, Subject, measure_cases
from mlesam.bench.measure import Run, compared, in_turns
from mlesam.bench.memory import Fit, largest_batch
from mlesam.bench.peak import Peak, in_child, measure_peak
from mlesam.bench.plots import Line, lines, stacked_bars
from mlesam.bench.setting import Setting
from mlesam.cli import main
from mlesam.errors import RequestError, WorkError
from mlesam.model.sam2 import NANO, preset_config
from mlesam.training.optimizer import make_optimizer
from mlesam.training.step import Step

SETTING = Setting("nano", 64, sensors=3, classes=4, rank=4)
ROW = {
    "name", "ratio", "baseline", "seconds", "baseline_seconds", "peak_mib", "baseline_peak_mib", "conditions"
}  # fmt: skip


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks without a process for each."""
    monkeypatch.setattr(case, "peak_mib", lambda build, setting: 1.0)
    monkeypatch.setattr(measure, "WARM_UP", 0)


def vision(state: dict[str, Tensor] | None = None) -> Sam2VisionModel:
    """nano as a user of `transformers` would hold it."""
    made = Sam2VisionModel(preset_config("nano").vision_config)  # type: ignore[arg-type]
    made.load_state_dict(state or Sam2Model.from_pretrained(NANO, dtype=torch.float32).vision_encoder.state_dict())
    return made.eval()


# ---------------------------------------------------------------- what is compared


@torch.inference_mode()
def test_naive_gives_the_maps_of_transformers_with_merged_weights() -> None:
    model, images = SETTING.model(), SETTING.images()
    plain = vision()(pixel_values=images["rgb"]).fpn_hidden_states
    theirs = naive.Naive(SETTING.model())
    for modality, image in images.items():
        image = model.stems[modality](image) if modality in model.stems else image
        merged = copy.deepcopy(model.foundation)
        for index, block in enumerate(model.experts.of(modality).blocks):
            for name, update in block.items():  # type: ignore[operator]
                merged.weight(index, name).add_(update.b @ update.a, alpha=update.scale)
        state = {f"backbone.{n}": t for n, t in merged.trunk.state_dict().items()}  # type: ignore[union-attr]
        state |= {f"neck.{n}": t for n, t in merged.neck.state_dict().items()}  # type: ignore[union-attr]
        expected = vision(state)(pixel_values=image).fpn_hidden_states
        theirs.vision.set_adapter(modality)
        for one, two, frozen in zip(theirs.vision(pixel_values=image).fpn_hidden_states, expected, plain, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
            assert modality != "rgb" or (one - frozen).abs().max() > 0.01, "an expert must change something"


@pytest.mark.parametrize("by_hand", [False, True])
@torch.inference_mode()
def test_naive_equals_the_model(by_hand: bool) -> None:
    batch = SETTING.frames()
    ours, theirs = SETTING.model()(batch), naive.Naive(SETTING.model(), by_hand=by_hand)(batch)
    assert ours.logits.std() > 0.1
    torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.shares, ours.shares, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("by_hand", [False, True])
def test_naive_has_the_gradients_of_the_model(by_hand: bool) -> None:
    """Also for the adapters that were switched off again before the backward pass."""
    batch, config = SETTING.with_(batch=2).frames(), training.TrainingConfig(modality_dropout=0.0)
    model, theirs = SETTING.model(), naive.Naive(SETTING.model(), trainable=True, by_hand=by_hand)
    losses = []
    for module in (model, theirs):
        loss = Step(module, config).train()(batch)["loss"]  # type: ignore[arg-type]
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trained = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert all(g is not None for g in trained.values()), "every trainable weight of naive must get a gradient"
    for modality in model.modalities:
        for block in (0, 6):
            one = model.experts.of(modality)
            a = torch.cat([one.update(block, name).a.grad for name in "qv"])  # type: ignore[union-attr,misc]
            where = f"blocks.{block}.attn.qkv." + (f"lora.{modality}.{{}}.a" if by_hand else f"lora_A.{modality}")
            found = [next(g for n, g in trained.items() if where.format(name) in n) for name in "qv"[: 1 + by_hand]]
            torch.testing.assert_close(torch.cat(found), a, atol=1e-4 * float(a.abs().max()), rtol=1e-3)  # type: ignore[arg-type]
    assert sum(p.numel() for g in make_optimizer(theirs, config).param_groups for p in g["params"]) > 0


@torch.inference_mode()
def test_the_floor_is_the_vision_model_of_transformers() -> None:
    images = torch.cat([x.mean(1, keepdim=True).expand(-1, 3, -1, -1) for x in SETTING.images().values()])
    expected = vision()(pixel_values=images).fpn_hidden_states[-1]
    found = inference.floor(SETTING)()
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_is_fused_before_the_heads_is_what_the_heads_get() -> None:
    model, seen = SETTING.model(), []
    model.pyramid_head.register_forward_hook(lambda module, inputs, output: seen.extend(inputs[0]))
    model(SETTING.frames())
    for mine, theirs in zip(inference.fuse(model, model.encode(SETTING.frames())), seen, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


# ---------------------------------------------------------------- measuring


def test_runs_take_turns_and_the_first_rounds_do_not_count() -> None:
    order: list[str] = []
    clock = in_turns({name: partial(order.append, name) for name in "ABC"}, 3, SETTING)
    rounds = ["".join(order[start : start + 3]) for start in range(0, 15, 3)]
    assert {"".join(sorted(own)) for own in rounds} == {"ABC"}
    assert len(set(rounds)) > 1, "none always follows the same one"
    assert {name: len(values) for name, values in clock.items()} == dict.fromkeys("ABC", 3)


def test_a_ratio_is_that_of_the_medians_exactly() -> None:
    found = compared([0.1, 0.3, 0.7], [0.2, 0.4, 0.5])
    assert found["ratio"] == found["seconds"] / found["baseline_seconds"] == 0.3 / 0.4
    assert found["ratio_by_round"] == [0.75, 0.5, 1.4]


def constant(setting: Setting, value: float) -> Run:
    return lambda: torch.tensor([1.0, value])


def test_no_ratio_for_what_does_not_compute_the_same(no_processes: None) -> None:
    one, two = (Subject(f"of-{v}", "a constant", partial(constant, value=v)) for v in (2.0, 2.01))
    with pytest.raises(WorkError, match=r"of-2\.0 and of-2\.01 differ by 5\.0e-03.*only 0\.0001 is allowed"):
        measure_cases([Case("equal", one, two, tolerance=1e-4)], SETTING, 1)
    rows = measure_cases([Case("near", one, two, tolerance=0.1), Case("apart", one, two)], SETTING, 1)
    assert [row["error"] for row in rows] == [pytest.approx(0.00498, abs=1e-5), None]
    broken = Subject("broken", "no number", partial(constant, value=float("nan")))
    with pytest.raises(WorkError, match="differ by nan"):
        measure_cases([Case("equal", broken, two, tolerance=1e-4)], SETTING, 1)


def holding(setting: Setting, mib: int) -> Run:
    def run() -> Tensor:
        return torch.ones(mib * 2**18).sum()

    return run


def peaks() -> list[Peak | None]:
    """Of 16 and 80 MiB, and of 600 where no more than 150 may be held."""
    return [
        *(measure_peak(partial(holding, mib=mib), SETTING) for mib in (16, 80)),
        measure_peak(partial(holding, mib=600), SETTING, 150.0),
    ]


def test_a_peak_is_that_of_the_case_alone() -> None:
    kept = torch.ones(200 * 2**18)  # of this process, and none of the child's business
    small, large, refused = in_child(peaks)
    assert 12 < small.mib < 60
    assert 56 < large.mib - small.mib < 80
    assert refused is None, "the system must refuse what is beyond the limit"
    assert kept.sum() == len(kept)


# ---------------------------------------------------------------- suites


def run(out: Path, *words: str) -> dict:
    assert main(["bench", "--preset", "nano", "--size", "64", "--rounds", "1", "--out", str(out), *words]) == 0
    return json.loads(out.read_text())


EXPORTED = () if inference.left_out(SETTING) else ("whole-openvino-bf16", "int8")


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize(
    ("suite", "names"),
    [
        ("inference", {"whole-fp32", "whole-bf16", "experts-merged", "experts-unmerged", "early-k2", *EXPORTED}),
        ("training", {"train-64", "train-64-bf16", "train-64-subsets", "train-64-checkpointed"}),
        ("stream", {"stream-1of4", "stream-1of4-plain"}),
    ],
)
def test_a_suite_writes_what_the_design_fixes(tmp_path: Path, capsys: pytest.CaptureFixture, suite, names) -> None:
    found = run(tmp_path / "out.json", "--suite", suite)
    assert list(found) == ["name", "command", "commit", "machine", "date", "seed", "results"]
    assert found["name"] == f"bench-{suite}"
    assert found["command"].startswith("mlesam bench --preset nano")
    assert names <= {row["name"].removesuffix("@nano-64") for row in found["results"]}
    for row in found["results"]:
        assert set(row) >= ROW
        assert row["name"].endswith("@nano-64")
        for own in (row, *row.get("against", {}).values()):
            assert own["ratio"] == own["seconds"] / own["baseline_seconds"]
        assert "nano, batch" in row["conditions"]
    equal = {row["name"]: row["error"] for row in found["results"] if row["error"] is not None}
    assert max(v for n, v in equal.items() if "bf16" not in n and "int8" not in n) < 1e-4
    assert max(equal.values()) < 0.1, "bf16 and int8 round, but they compute the same"
    assert f"written to {tmp_path / 'out.json'}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.usefixtures("no_processes")
def test_scaling_says_what_one_more_sensor_costs_and_draws_it(tmp_path: Path) -> None:
    rows = scaling.scaling(SETTING, 1, lambda done, total: None, {"sensors": (1, 2), "classes": (3, 5)})
    assert [row["name"] for row in rows] == [f"{n}@nano-64" for n in (
        "sensors-1", "sensors-2", "per-sensor", "classes-3", "classes-5")]  # fmt: skip
    assert [row["conditions"].split("; ")[0] for row in rows if "axis" in row] == [
        f"nano, batch 1, 64x64, sensors {sensors}, {classes} classes, rank {SETTING.rank}"
        for sensors, classes in (("rgb", 4), ("rgb, depth", 4), *((", ".join(SETTING.channels), n) for n in (3, 5)))
    ]
    assert rows[2]["seconds"] == pytest.approx(rows[1]["seconds"] - rows[0]["seconds"], abs=2e-6)
    assert all(row["ratio"] == row["seconds"] / row["baseline_seconds"] for row in rows)
    written = result.write(tmp_path / "scaling.json", {"results": rows})
    assert [path.name for path in written] == ["scaling.json", "scaling-sensors.svg", "scaling-classes.svg"]
    assert ET.fromstring(written[1].read_text()).tag.endswith("svg")


def test_the_model_of_cost_finds_what_times_were_made_of() -> None:
    def made(setting: Setting) -> float:
        pixels = (setting.size / 64) ** 2
        return 0.01 + setting.sensors * pixels * (0.2 + 0.03 * pixels) + setting.classes * pixels * 0.002

    axes = {"sensors": (1, 2, 3), "classes": (5, 10), "pixels": (32, 64, 128), "rank": (0, 4)}
    fields = {"pixels": "size"}
    rows = [
        {"name": f"{axis}-{v}", "axis": axis, "value": v, "seconds": made(SETTING.with_(**{fields.get(axis, axis): v}))}
        for axis, values in axes.items() for v in values
    ]  # fmt: skip
    found = scaling.cost(rows, SETTING)
    assert found["coefficients"] == pytest.approx(
        {"constant": 0.01, "sensor": 0.2, "sensor_pixels": 0.03, "class": 0.002}
    )
    assert found["ratio"] == pytest.approx(1, abs=1e-4)
    rows[1]["seconds"] *= 1.2
    found = scaling.cost(rows, SETTING)
    assert found["baseline"] == "sensors-2", "the row tells which time the model does not explain"
    assert found["ratio"] < 0.9


@pytest.mark.usefixtures("no_processes")
def test_the_suite_of_memory_says_which_batch_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    frames = {"naive-training-fp32": 100.0, "ours-training-fp32": 80.0, "ours-training-fp32-checkpointed": 25.0}

    def attempt(subject: Subject, setting: Setting, limit_mib: float) -> Fit | None:
        peak = frames[subject.name] * setting.batch
        return Fit(setting.batch, peak, frames[subject.name] / 100) if peak <= limit_mib else None

    monkeypatch.setattr(memory, "attempt", attempt)
    found = run(tmp_path / "memory.json", "--suite", "memory", "--memory", "1")["results"]
    assert [row["name"] for row in found] == [f"{name}@nano-64" for name in (
        "inference-memory", "training-memory", "largest-batch", "largest-batch-checkpointed")]  # fmt: skip
    assert [(row["batch"], row["baseline_batch"], row["ratio"]) for row in found[2:]] == [(12, 10, 0.8), (40, 10, 0.25)]
    assert "largest-batch-checkpointed within 1,024 MiB: 40, naive 10" in capsys.readouterr().out


@pytest.mark.parametrize("most", [1, 2, 3, 37, 1000])
def test_the_largest_batch_is_found_to_the_frame(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    tried: list[int] = []

    def attempt(subject: Subject, setting: Setting, limit_mib: float) -> Fit | None:
        tried.append(setting.batch)
        peak = 50.0 + 10.0 * setting.batch + 0.01 * setting.batch**1.5  # a little more than two small steps say
        return Fit(setting.batch, peak, 0.1) if setting.batch <= most else None

    monkeypatch.setattr(memory, "attempt", attempt)
    found = largest_batch(training.subject("fp32"), SETTING, 50.0 + 10.0 * most + 0.01 * most**1.5)
    assert found is not None
    assert found.batch == most
    assert len(tried) < 20
    assert max(tried) <= 1.2 * most + 3, "a try must not take the machine down"


def test_what_does_not_fit_is_refused_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "peak_within", lambda build, setting, limit_mib: None)
    subject = Subject("large", "too large", partial(constant, value=1.0))
    with pytest.raises(WorkError, match=r"nano, batch 1, 64x64.* needs more than the .* MiB that are free"):
        measure_cases([Case("large", subject, subject)], SETTING, 1)


# ---------------------------------------------------------------- where the time goes


def test_every_part_of_a_frame_is_on_the_clock() -> None:
    found = stages.profile(SETTING, 1)
    assert set(stages.PARTS) - set(found["parts"]) <= {
        "other",
        "positions",
    }  # made once for a size, before the clock runs
    assert found["parts"].get("other", 0.0) < 0.05 * found["milliseconds"]
    assert set(found["stages"]) == set("1234")
    assert all(stage["experts"] for stage in found["stages"].values())
    frozen = stages.profile(SETTING.with_(rank=0, changes=(("align", False), ("reliability", False))), 1)
    assert not {"experts", "aligners", "trust", "frame signs"} & set(frozen["parts"])


def test_pictures_are_xml_and_show_every_point() -> None:
    picture = lines([Line("<a>", [(1, 2.0), (2, 3.5)]), Line("b", [(1, 1.0)])], "growth", "sensors", "times")
    root = ET.fromstring(picture)
    dots = [e for e in root.iter() if e.tag.endswith("circle") and e.get("r") == "3.5"]
    assert len(dots) == 3
    bars = ET.fromstring(stacked_bars({"tiny-256": {"qkv": 3.0, "mlp": 1.0}, "nano": {"mlp": 2.0}}, "parts", "ms"))
    widths = [float(e.get("width", 0)) for e in bars.iter() if len(e) and e.tag.endswith("rect")]
    assert widths == [420.0, 140.0, 560.0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--suite", "inferense"), "there is no suite 'inferense'; did you mean 'inference'?"),
        (
            ("--preset", "tini"),
            "--preset 'tini' is none of the foundations that need no download; did you mean 'tiny'?",
        ),
        (("--size", "100"), "--size is 100, but it must be a multiple of 32."),
        (("--size", "big"), "--size is 'big', but it must be whole numbers with commas between them."),
        (("--rounds", "0"), "--rounds is 0, but it must be at least 1."),
        (("--memory", "0"), "--memory is 0.0, but it must be above 0 GiB."),
        (("--device", "tpu"), "--device is 'tpu', but it must be cpu or cuda."),
        (("--speed", "9"), "unknown option --speed for `mlesam bench`"),
    ],
)
def test_a_wrong_request_is_one_sentence(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_without_peft_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(naive, "find_spec", lambda name: None)
    assert main(["bench"]) == 2
    assert 'pip install "mlesam[bench]"' in capsys.readouterr().err
    with pytest.raises(RequestError, match="needs the package peft"):
        naive.Naive(SETTING.model())


def test_a_result_names_the_commit_and_without_a_checkout_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(result.commit().removesuffix("-dirty")) >= 7
    monkeypatch.setattr(result, "_git", lambda *words: "")
    assert result.commit() == f"mlesam {mlesam.__version__}"
