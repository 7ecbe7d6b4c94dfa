"""Looking before computing: sensors that are left behind early are as if they had been absent, and cost no more."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import write_dataset
from mlesam import MLESAM, Batch, ModelConfig, RequestError, Sample, Segmenter
from mlesam.cli import main
from mlesam.config import TrainingConfig
from mlesam.inference.stream import SensorMemory
from mlesam.model.checkpoints import load_metadata
from mlesam.model.experts import Segment
from mlesam.model.features import Features
from mlesam.model.look import best, seen
from mlesam.model.run import WEIGHTS, Run
from mlesam.sample import IGNORE, Broken
from mlesam.training import look as fitting
from mlesam.training.loss import ohem_cross_entropy
from mlesam.training.step import Step, led_pass

SENSORS = {"rgb": 3, "depth": 1, "lidar": 3, "thermal": 1}


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request: pytest.FixtureRequest) -> MLESAM:
    """Two of four sensors go on after a stage; experts, aligners and scores are random."""
    torch.manual_seed(0)
    made = MLESAM(SENSORS, 3, ModelConfig(rank=4, look=request.param, look_keep=2)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(".b") or name.startswith(("looks.", "aligners.")):
                parameter.normal_(std=0.05)
    for look in made.looks.values():
        look.fit_scale(torch.randn(50, look.mean.numel()))
    return made


def everything(model: MLESAM) -> MLESAM:
    """The same model without a look."""
    plain = MLESAM(SENSORS, 3, ModelConfig(rank=4)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    return plain


def given(frames: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {m: torch.randn(frames, c, 64, 96, generator=draw) for m, c in SENSORS.items()}


def three_frames() -> list[Sample]:
    """Two with all sensors, and one without depth."""
    inputs = given(3)
    samples = [Sample({m: x[i] * (1 + i) for m, x in inputs.items()}, id=str(i)) for i in range(2)]
    return [*samples, Sample({m: inputs[m][2] for m in ("rgb", "lidar", "thermal")}, id="three")]


def sets() -> list[tuple[str, ...]]:
    """All sets of sensors of which each of the three frames has one."""
    return [c for count in range(1, len(SENSORS) + 1) for c in combinations(SENSORS, count) if c != ("depth",)]


@torch.inference_mode()
def test_what_is_left_behind_is_as_if_it_were_absent(model: MLESAM) -> None:
    inputs = given()
    output = model(inputs)
    kept = [m for m, share in zip(model.modalities, output.shares[0].sum(dim=0), strict=True) if share > 0]
    assert len(kept) == 2
    alone = everything(model)({m: inputs[m] for m in kept})
    torch.testing.assert_close(output.logits, alone.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.shares, alone.shares, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_best_by_their_early_maps_go_on(model: MLESAM) -> None:
    maps: list[Tensor] = []
    inputs = given()
    everyone = model.encode(Batch.of(inputs), after=lambda stage, map_: maps.append(map_))
    assert everyone.modalities == model.modalities, "with a look at the maps all are computed"
    assert model.config.look is not None
    views = seen(maps[model.config.look])
    assert views.shape[1] == 2 * maps[model.config.look].shape[1]
    scores = {m: float(model.looks[m](views[i : i + 1])) for i, m in enumerate(model.modalities)}
    assert set(model.encode(Batch.of(inputs), early=True).modalities) == set(
        sorted(scores, key=scores.__getitem__)[-2:]
    )


@torch.inference_mode()
def test_every_frame_chooses_for_itself_and_a_batch_equals_its_frames(model: MLESAM) -> None:
    inputs = given(5)
    samples = [Sample({m: x[i] * (1 + i) for m, x in inputs.items()}, id=str(i)) for i in range(4)]
    samples.append(Sample({m: inputs[m][4] for m in ("lidar", "thermal")}, id="two"))
    samples.append(Sample({"depth": inputs["depth"][4]}, id="one"))
    together = model(Batch.stack(samples))
    for merged in (False, True):
        (model.merge if merged else model.unmerge)()
        for index, sample in enumerate(samples):
            alone = model(Batch.stack([sample]))
            torch.testing.assert_close(together.logits[index], alone.logits[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.shares[index], alone.shares[0], atol=1e-5, rtol=0)
    model.unmerge()
    assert ((together.shares.sum(dim=1) > 0).sum(dim=1) == torch.tensor([2, 2, 2, 2, 2, 1])).all()


@torch.inference_mode()
def test_any_part_of_an_encoding_gives_what_it_gives_alone(model: MLESAM) -> None:
    """Protocols encode a frame once and decode many sets of its sensors: who is left behind depends on the set."""
    batch = Batch.stack(three_frames())
    features = model.encode(batch)
    assert features.modalities == model.modalities
    for chosen in sets():
        part, alone = model.decode(features.select(chosen)), model(batch.select(chosen))
        torch.testing.assert_close(part.logits, alone.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(part.shares, alone.shares, atol=1e-5, rtol=0)
    parts = [model.encode(batch.select(chosen)) for chosen in (("rgb", "depth"), ("lidar", "thermal"))]
    joined = model.decode(Features.join(parts))
    torch.testing.assert_close(joined.logits, model(batch).logits, atol=1e-5, rtol=0)
    trusted = model.decode(features, torch.arange(len(features.levels[0])) / 5)
    assert ((trusted.shares.sum(dim=1) > 0).sum(dim=1) == 2).all()
    assert not torch.equal(trusted.shares, model.decode(features).shares), "trust follows its rows"


@torch.inference_mode()
def test_a_stream_leaves_behind_whom_a_frame_leaves_behind(model: MLESAM) -> None:
    memory, inputs = SensorMemory(model), given()
    for modality, image in inputs.items():
        memory.keep(model.encode(Batch.of({modality: image})), time=0.0)
    found, expected = model.decode(*memory.recall(0.0)), model(inputs)
    torch.testing.assert_close(found.shares, expected.shares, atol=1e-5, rtol=0)
    memory.keep(model.encode(Batch.of(inputs)), time=1.0)
    again = model.decode(*memory.recall(1.0))
    torch.testing.assert_close(again.shares, expected.shares, atol=1e-5, rtol=0)
    assert (expected.shares > 0).sum(dim=2).eq(2).all()


def test_the_best_rows_by_hand() -> None:
    segments = (Segment("rgb", 0, 3), Segment("depth", 3, 5), Segment("lidar", 5, 8))
    frames = (torch.tensor([0, 1, 2]), torch.tensor([0, 2]), torch.tensor([0, 1, 2]))
    scores = [torch.tensor([1.0, 5.0, 0.0]), torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0, -9.0])]
    rows, left, owners = best(scores, segments, frames, 3, 2)
    # Frame 0: depth and lidar; frame 1 has no depth; frame 2: depth and rgb.
    assert rows.tolist() == [1, 2, 3, 4, 5, 6]
    assert left == (Segment("rgb", 0, 2), Segment("depth", 2, 4), Segment("lidar", 4, 6))
    assert [o.tolist() for o in owners] == [[1, 2], [0, 2], [0, 1]]


@torch.inference_mode()
def test_later_stages_see_only_what_is_kept(model: MLESAM) -> None:
    rows: Counter[int] = Counter()
    original = model.foundation.trunk.blocks  # type: ignore[union-attr]
    hooks = [
        block.layer_norm2.register_forward_hook(lambda m, i, o, n=n: rows.update({n: len(o)}))  # type: ignore[misc]
        for n, block in enumerate(original)  # type: ignore[arg-type]
    ]
    model(given())
    for hook in hooks:
        hook.remove()
    ends = model.foundation.trunk.stage_ends  # type: ignore[union-attr]
    assert model.config.look is not None
    early = (0, *(end + 1 for end in ends))[model.config.look]  # type: ignore[union-attr]
    assert [rows[n] for n in range(len(original))] == [4] * early + [2] * (len(original) - early)  # type: ignore[arg-type]


def test_nothing_is_left_behind_before_it_is_learned_nor_in_training(model: MLESAM) -> None:
    fresh = MLESAM(SENSORS, 3, ModelConfig(look=1)).eval()
    assert fresh.encode(Batch.of(given()), early=True).modalities == fresh.modalities
    assert not any(p.requires_grad for p in fresh.looks.parameters())
    copied = copy.deepcopy(model).train()
    assert copied.encode(Batch.of(given()), early=True).modalities == copied.modalities
    again = MLESAM(SENSORS, 3, ModelConfig(rank=4, look=model.config.look)).eval()
    again.load_state_dict(model.state_dict())
    assert len(again.encode(Batch.of(given()), early=True).modalities) == 2, (
        "what was learned is known once it is loaded"
    )


def test_the_fit_finds_the_sensors_that_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames in which a sensor's level says whether it is of use, by what every pair costs."""
    torch.manual_seed(0)
    model = MLESAM({"rgb": 3, "depth": 1, "lidar": 3}, 3, ModelConfig(rank=0, look=1))
    width, names = model.looks["rgb"].mean.numel(), ("rgb", "depth", "lidar")  # type: ignore[union-attr]
    good = [torch.randn(3) for _ in range(60)]

    def prices(model: Any, sample: int, keep: int) -> fitting.Known:
        views = {m: torch.randn(width) * 0.1 + good[sample][i] for i, m in enumerate(names)}
        costs = {
            (a, b): -float(good[sample][i] + good[sample][j])
            for i, a in enumerate(names)
            for j, b in list(enumerate(names))[i + 1 :]
        }
        least = min(costs.values())
        return views, {pair: cost - least for pair, cost in costs.items()}

    monkeypatch.setattr(fitting, "_prices", prices)
    monkeypatch.setattr(fitting, "read_frame", lambda frame, *_: SimpleNamespace(images={"rgb": None}, index=frame))
    monkeypatch.setattr(fitting, "random_fault", lambda *_, **__: None)
    monkeypatch.setattr(fitting, "break_sample", lambda sample, *_: sample)
    monkeypatch.setattr(fitting, "evaluation_sample", lambda sample, *_: sample.index)
    fitting.fit_look(model, range(60), {}, None)  # type: ignore[arg-type]
    hits = 0
    for _ in range(200):
        level = torch.randn(3)
        scores = [float(model.looks[m](torch.randn(1, width) * 0.1 + level[i])) for i, m in enumerate(names)]
        hits += int(torch.tensor(scores).argmin() == level.argmin())
    assert hits > 170, "the sensor to be left out is that of the lowest level"
    assert not any(p.requires_grad for p in model.looks.parameters())


# ---------------------------------------------------------------- sensors that hand over


@pytest.fixture(scope="module")
def led() -> MLESAM:
    """rgb and thermal go on, depth and lidar hand over what they saw."""
    torch.manual_seed(0)
    made = MLESAM(SENSORS, 3, ModelConfig(rank=4, look=1, look_keep=2, look_lead=("rgb", "thermal"))).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(".b") or name.startswith(("handovers.", "aligners.")):
                parameter.normal_(std=0.05)
    return made


@torch.inference_mode()
def test_leaders_go_on_from_the_start_and_get_what_the_others_saw(led: MLESAM) -> None:
    inputs = given()
    features = led.encode(Batch.of(inputs), early=True)
    assert features.modalities == ("rgb", "thermal")
    blind = led(inputs)
    changed = led(inputs | {"depth": inputs["depth"] + 1})
    assert (changed.logits - blind.logits).abs().max() > 1e-3, "a sensor that is left behind has its say"
    alone = led({m: inputs[m] for m in ("rgb", "thermal")})
    torch.testing.assert_close(alone.logits, everything(led)({m: inputs[m] for m in ("rgb", "thermal")}).logits)
    assert led.encode(Batch.of({m: inputs[m] for m in ("depth", "lidar", "rgb")}), early=True).modalities[0] == "rgb"


@torch.inference_mode()
def test_the_sum_that_is_handed_over_by_hand(led: MLESAM) -> None:
    """After the first stage, by the trunk's own blocks: rgb's map and the projections of depth's and lidar's."""
    maps: dict[int, Tensor] = {}
    inputs = given()
    led.encode(Batch.of(inputs), after=lambda stage, map_: maps.update({stage: map_.clone()}))
    rows = dict(zip(led.modalities, maps[1], strict=True))
    given_over = sum(
        torch.einsum("oc,chw->ohw", led.handovers[m].weight, rows[m])  # type: ignore[arg-type]
        for m in ("depth", "lidar")
    )
    second = led.foundation.trunk.blocks[1]  # type: ignore[union-attr,index]
    seen_by: list[Tensor] = []
    hook = second.register_forward_pre_hook(lambda m, args: seen_by.append(args[0]))  # type: ignore[union-attr]
    norm = second.layer_norm1.register_forward_pre_hook(lambda m, args: seen_by.append(args[0]))  # type: ignore[union-attr]
    led.encode(Batch.of(inputs), early=True)
    hook.remove(), norm.remove()
    for row, modality in enumerate(("rgb", "thermal")):
        torch.testing.assert_close(seen_by[0][row].permute(2, 0, 1), rows[modality] + given_over, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 2])
def test_sensor_by_sensor_gives_what_one_pass_gives(stage: int, merged: bool, frames: int) -> None:
    """As large maps go on a CPU; here small ones."""
    torch.manual_seed(1)
    model = MLESAM(SENSORS, 3, ModelConfig(rank=4, look=stage, look_keep=2, look_lead=("rgb", "thermal"))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".b") or name.startswith(("handovers.", "aligners.")):
            nn.init.normal_(parameter, std=0.05)
    if merged:
        model.merge()
    batch = Batch.of(given(frames))
    rows: list[int] = []
    model.foundation.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    expected = model.encode(batch, early=True)
    model.together = 0
    found = model.encode(batch, early=True)
    assert rows == [4 * frames, *4 * [frames]]
    assert (found.segments, found.modalities) == (expected.segments, ("rgb", "thermal"))
    for mine, theirs in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert found.signs is not None
    assert torch.equal(found.signs, expected.signs)
    torch.testing.assert_close(model.decode(found).logits, model(batch).logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_frames_that_lack_sensors_go_in_one_pass(led: MLESAM) -> None:
    led, batch, passes = copy.deepcopy(led), Batch.stack(three_frames()), list[int]()
    expected = led(batch).logits
    led.together = 0
    led.foundation.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    assert torch.equal(led(batch).logits, expected)
    assert len(passes) == 1


@torch.inference_mode()
def test_parts_of_what_is_handed_over_are_what_they_are_alone(led: MLESAM) -> None:
    samples = three_frames()
    batch = Batch.stack(samples)
    features = led.encode(batch)
    for chosen in sets():
        part, alone = led.decode(features.select(chosen)), led(batch.select(chosen))
        torch.testing.assert_close(part.logits, alone.logits, atol=1e-5, rtol=0)
    parts = [led.encode(batch.select(chosen)) for chosen in (("rgb", "depth"), ("lidar", "thermal"))]
    torch.testing.assert_close(led.decode(Features.join(parts)).logits, led(batch).logits, atol=1e-5, rtol=0)
    for index, sample in enumerate(samples):
        torch.testing.assert_close(led(batch).logits[index], led(Batch.stack([sample])).logits[0], atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match="cannot be trusted one by one"):
        led.decode(features, torch.zeros(11))
    with pytest.raises(RequestError, match="cannot stand in for later frames"):
        SensorMemory(led)


def test_the_pass_that_leaves_sensors_behind_counts_as_much_as_all_others(led: MLESAM) -> None:
    batch = Batch.stack(three_frames())
    batch = replace(batch, labels=torch.randint(0, 3, (3, *batch.size), generator=torch.Generator().manual_seed(0)))
    led = copy.deepcopy(led).train()
    step = Step(led, TrainingConfig())
    own = led_pass(led, batch, np.random.default_rng(0))
    assert own is not None
    with torch.no_grad():
        apart, together = step(batch)["loss"], step(batch, led=own)["loss"]
        output = led.decode(led.encode(own, early=True))
        both = [
            ohem_cross_entropy(output.at_input_size(x), batch.labels)
            for x in (output.mask_logits, output.pyramid_logits)
        ]
    torch.testing.assert_close(together, (apart + sum(both)) / 2)
    assert led_pass(everything(led), batch, np.random.default_rng(0)) is None


@pytest.mark.parametrize("alone", [False, True])
def test_checkpointing_gives_the_gradients_of_a_pass_that_leaves_sensors_behind(led: MLESAM, alone: bool) -> None:
    """Blocks that are computed again are those of the rows that there were then."""
    batch = Batch.of(given(2))
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = copy.deepcopy(led).train()
        model.foundation.checkpointing = checkpointing
        model.together = 0 if alone else model.together
        model.decode(model.encode(batch, early=True)).logits.square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert {name.split(".")[1] for name in found[0] if name.startswith(("experts.", "handovers."))} == set(SENSORS)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_frames_that_lack_sensors_hand_over_in_bfloat16_too(led: MLESAM) -> None:
    batch = Batch.stack(three_frames())
    with torch.no_grad():
        expected = led.decode(led.encode(batch, early=True)).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = led.decode(led.encode(batch, early=True)).logits
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_what_is_handed_over_is_learned_from_broken_sensors_too(led: MLESAM) -> None:
    batch = Batch.stack(three_frames())
    image = batch.images["depth"][:1]
    batch = replace(
        batch, broken=Broken({"depth": image + 1}, {"depth": torch.tensor([0])}, {"depth": torch.tensor([3])})
    )
    shown = {
        float((led_pass(led, batch, np.random.default_rng(i)).images["depth"][:1] - image).mean()) for i in range(9)
    }  # type: ignore[union-attr]
    assert {round(v, 4) for v in shown} == {0.0, 1.0}


def test_a_training_with_leaders_teaches_what_is_handed_over(tmp_path: Path) -> None:
    data, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    words = ["--model.rank", "2", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "4"]
    words += [
        "--model.look",
        "1",
        "--model.look_keep",
        "2",
        "--model.look_lead",
        "[rgb, thermal]",
        "--data.faults",
        "0.5",
    ]
    assert main(["train", "--data", f"folder:{data}", "--out", str(run), *words]) == 0
    model = Run.load(run).load_model()
    assert model.handovers["depth"].weight.any(), "depth is left behind in most frames and learns to hand over"
    for protocol in ("subsets", "emm", "faults"):
        out = tmp_path / f"{protocol}.json"
        assert main(["evaluate", str(run), "--protocol", protocol, "--frames", "2", "--out", str(out)]) == 0
        assert {row["frames"] for row in json.loads(out.read_text())["results"]} == {2}
    files = {m: str(data / m / "test/test0.png") for m in ("rgb", "depth", "thermal")}
    assert Segmenter.load(run)(files).labels.any()


def test_the_balanced_loss_by_hand() -> None:
    logits = torch.randn(1, 3, 2, 4)
    label = torch.tensor([[[0, 0, 0, 0], [0, 2, IGNORE, 2]]])
    each = -logits.log_softmax(1)[0]
    wall = each[0][label[0] == 0].mean()
    pole = each[2][label[0] == 2].mean()
    assert fitting.balanced_loss(logits, label) == pytest.approx(float((wall + pole) / 2), rel=1e-5)


def test_a_training_learns_it_and_a_segmenter_says_who_was_left_out(tmp_path: Path) -> None:
    data, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    short = ("--model.rank", "2", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")
    early = ("--model.look", "1", "--model.look_keep", "1")
    assert main(["train", "--data", f"folder:{data}", "--out", str(run), *short, *early]) == 0
    assert load_metadata(run / WEIGHTS)["look_fitted"] is True
    assert load_metadata(run / WEIGHTS)["trust_fitted"] is True
    files = {m: str(data / m / "test/test0.png") for m in ("rgb", "depth", "thermal")}
    weights = Segmenter.load(run)(files).weights
    assert sorted(weights.values()) == [0.0, 0.0, 1.0]
    for protocol, rows in (("subsets", 7), ("emm", 7), ("faults", None)):
        out = tmp_path / f"{protocol}.json"
        words = ("--protocol", protocol, "--frames", "2", "--out", str(out))
        assert main(["evaluate", str(run), *words]) == 0
        found = json.loads(out.read_text())["results"]
        assert rows is None or len(found) == rows
        assert {row["frames"] for row in found} == {2}, "every set of sensors is scored on every frame"
    assert all(isinstance(look, nn.Module) and look.ready for look in Run.load(run).load_model().looks.values())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"look": 4}, "model.look is 4, but it must be null"),
        ({"half": ("lidar",), "look": 1}, r"model.half is \['lidar'\], but it must be empty where model.look chooses"),
        ({"rank": -1}, "model.rank is -1, but it must be at least 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_python_too(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        ModelConfig(**values)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model.look", "4"), "model.look is 4, but it must be null, or a stage from 0 to 3"),
        (("--model.look_keep", "0"), "model.look_keep is 0, but it must be at least 1"),
        (("--model.look_lead", "[rgb]"), "empty, or come with model.look and name at most model.look_keep sensors"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: tuple[str, str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", f"folder:{tmp_path}", *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert said.count("model.") == 1 + sentence.count(" model."), "the section is named once"
