"""Views: what several looks at a frame come to is what one gets by hand, whatever the protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.config import ModelConfig
from mlesam.data.dataset import Frame
from mlesam.errors import RequestError
from mlesam.evaluation.confidence import calibration_error, histogram
from mlesam.evaluation.faulted import Faults
from mlesam.evaluation.metrics import confusion_matrix
from mlesam.evaluation.protocols import Condition, Protocol, Subsets
from mlesam.evaluation.protocols import run as run_protocol
from mlesam.evaluation.published import EntireMissing, Noisy, RandomMissing
from mlesam.evaluation.views import Viewer, Views, described
from mlesam.model.calibration import Calibration
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM, Output
from mlesam.sample import IGNORE, Batch
from mlesam.sensors.spec import BUILTIN

SENSORS = ("rgb", "depth")
SPECS = {m: BUILTIN[m] for m in SENSORS}
SIZE = (48, 64)


@pytest.fixture(scope="module")
def model() -> MLESAM:
    torch.manual_seed(0)
    made = MLESAM({m: BUILTIN[m].channels for m in SENSORS}, 3, ModelConfig(rank=4, reliability=False)).eval()
    with torch.no_grad():  # fresh heads answer alike everywhere
        made.pyramid_head.requires_grad_(False)
        for parameter in made.pyramid_head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def batch() -> Batch:
    """One frame, its label with pixels that are not scored."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, 4, 6, 8, generator=generator)
    images = F.interpolate(coarse, SIZE, mode="bilinear") + 0.2 * torch.randn(1, 4, *SIZE, generator=generator)
    labels = torch.randint(0, 3, (1, *SIZE), generator=generator)
    labels[:, :5] = IGNORE
    return Batch.of({"rgb": images[:, :3], "depth": images[:, 3:]}, labels)


FRAMES = [Frame("0", {})]


def run(
    protocol: Protocol, model: MLESAM, batch: Batch, views: Views | None, calibration: Calibration | None = None
) -> list[Condition]:
    viewer = None if views is None else Viewer(model, views, SPECS)
    return run_protocol(protocol, model, [batch], SENSORS, FRAMES, calibration=calibration, viewer=viewer)


def scaled(images: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """By the interpolation of each sensor: smooth for rgb, of whole pixels for depth."""
    size = tuple(math.floor(n * factor + 0.5) for n in SIZE)
    found = {}
    for modality, image in images.items():
        if modality == "depth":
            found[modality] = F.interpolate(image, size, mode="nearest-exact")
        else:
            found[modality] = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=factor < 1)
    return found


@torch.inference_mode()
def by_hand(model: MLESAM, images: dict[str, Tensor], views: Views, temperature: float = 1.0) -> Tensor:
    """Mean probabilities (C, H, W) over scales and mirroring, mean logits over windows, with a count for every pixel."""
    answers = []
    for factor in views.scales:
        for flip in (False, True) if views.flip else (False,):
            seen = images if factor == 1 else scaled(images, factor)
            seen = {m: x.flip(-1) for m, x in seen.items()} if flip else seen
            height, width = next(iter(seen.values())).shape[-2:]
            side, step = views.window or 10**6, views.step if views.window else 1
            total, count = torch.zeros(1, 3, height, width), torch.zeros(height, width)
            for top in grid(height, side, step):
                for left in grid(width, side, step):
                    rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                    total[..., rows, columns] += model({m: x[..., rows, columns] for m, x in seen.items()}).logits
                    count[rows, columns] += 1
            logits = at_size(total / count, SIZE)
            answers.append(((logits.flip(-1) if flip else logits) / temperature).softmax(dim=1)[0])
    return torch.stack(answers).mean(dim=0)


def grid(length: int, side: int, step: int) -> list[int]:
    """Where windows start, as MMSegmentation's slide_inference counts them."""
    count = max(length - side + step - 1, 0) // step + 1
    return [max(min(i * step + side, length) - side, 0) for i in range(count)]


def matrix(probabilities: Tensor, batch: Batch) -> np.ndarray:
    assert batch.labels is not None
    return confusion_matrix(probabilities.argmax(dim=0), batch.labels[0], 3).numpy()


def alike(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for pixels on the border of two classes, which fall to either side within rounding."""
    return int(np.abs(found - expected).sum()) <= 4


VIEWS = [
    Views(flip=True),
    Views((0.5, 1.0, 1.5)),
    Views((0.75, 1.25), flip=True),
    Views(window=32),
    Views(window=32, stride=17),
    Views((1.0, 1.5), flip=True, window=40, stride=30),
]


# ---------------------------------------------------------------- the plain view


def test_one_look_as_it_is_equals_the_plain_evaluation_bit_for_bit(model: MLESAM, batch: Batch) -> None:
    calibration = Calibration(0.4, {"depth": 0.2})
    plain = run(Subsets(SENSORS), model, batch, None, calibration)
    for views in (Views(), Views((1.0,)), Views(window=64), Views(window=500, stride=3)):
        for one, other in zip(plain, run(Subsets(SENSORS), model, batch, views, calibration), strict=True):
            np.testing.assert_array_equal(one.confusions, other.confusions)
            np.testing.assert_array_equal(one.shares, other.shares)
            assert one.confidences is not None
            assert other.confidences is not None
            np.testing.assert_array_equal(one.confidences.after[None], other.confidences.after[None])
            np.testing.assert_array_equal(one.confidences.before[None], other.confidences.before[None])


@torch.inference_mode()
def test_the_plain_evaluation_is_one_forward_pass(model: MLESAM, batch: Batch) -> None:
    (found,) = run(Subsets(SENSORS), model, batch, None)[-1:]
    output = model(batch.images)
    np.testing.assert_array_equal(found.confusions[0], matrix(output.logits[0].softmax(dim=0), batch))
    np.testing.assert_array_equal(found.shares[0], output.shares[0].double().mean(dim=0).numpy())


def test_the_trunk_sees_each_sensor_once_for_each_view(
    model: MLESAM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = model.foundation.forward

    def counting(images: Tensor, *rest: Any) -> Any:
        seen.append(tuple(images.shape))
        return forward(images, *rest)

    monkeypatch.setattr(model.foundation, "forward", counting)
    run(Subsets(SENSORS), model, batch, None)
    assert [shape[0] for shape in seen] == [2]
    seen.clear()
    run(Subsets(SENSORS), model, batch, Views((1.0, 1.5), flip=True))
    assert [shape[0] for shape in seen] == [2] * 4


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("views", VIEWS, ids=lambda v: described(v.facts()))
def test_every_subset_is_the_mean_of_its_views(model: MLESAM, batch: Batch, views: Views) -> None:
    for condition in run(Subsets(SENSORS), model, batch, views):
        images = {m: batch.images[m] for m in condition.present}
        assert alike(condition.confusions[0], matrix(by_hand(model, images, views), batch))
        assert condition.shares[0].sum() == pytest.approx(1)


def test_the_temperature_is_applied_to_each_view_before_the_mean(model: MLESAM, batch: Batch) -> None:
    assert batch.labels is not None
    calibration, views = Calibration(0.7, {"depth": 0.3}), Views((1.0, 1.5), flip=True)
    scored = batch.labels[0] != IGNORE
    for condition in run(Subsets(SENSORS), model, batch, views, calibration):
        images = {m: batch.images[m] for m in condition.present}
        # The label is that of the plain mean: as everywhere, a temperature changes no label.
        right = (by_hand(model, images, views).argmax(dim=0) == batch.labels[0])[scored]
        assert condition.confidences is not None
        scores = condition.confidences.scores()
        for key, temperature in (("ece_uncalibrated", 1.0), ("ece", calibration.temperature(condition.present))):
            confidence = by_hand(model, images, views, temperature).amax(dim=0)[scored]
            assert scores[key] == pytest.approx(calibration_error(histogram(confidence, right)), abs=2e-4)


def test_the_trust_in_a_sensor_is_the_mean_over_the_views(model: MLESAM, batch: Batch) -> None:
    plain, mirrored = (
        run(Subsets(SENSORS), model, replace(batch, images=images), None)[-1].shares
        for images in (batch.images, {m: x.flip(-1) for m, x in batch.images.items()})
    )
    both = run(Subsets(SENSORS), model, batch, Views(flip=True))[-1].shares
    np.testing.assert_allclose(both, (plain + mirrored) / 2, atol=1e-6)


@torch.inference_mode()
def test_a_frame_that_is_its_own_mirror_image_gets_an_answer_that_is_too(model: MLESAM, batch: Batch) -> None:
    images = {m: (x + x.flip(-1)) / 2 for m, x in batch.images.items()}
    # Twice the size: taking whole pixels for others leaves some between two and rounds them up, which is not symmetric.
    viewer = Viewer(model, Views((1.0, 2.0), flip=True), SPECS)
    outputs = [model.decode(look.encode(Batch.of(images))) for group in viewer.looks(SIZE) for look in group]
    once = model(images).logits.softmax(dim=1)
    both = viewer.merged(outputs, SIZE, SIZE)[0].softmax(dim=1)
    torch.testing.assert_close(both, both.flip(-1), atol=1e-5, rtol=0)
    assert not torch.allclose(once, once.flip(-1), atol=1e-4), "one look is not symmetric by itself"


def test_the_mirror_turns_the_sign_of_what_points_sideways() -> None:
    """A normalised sine, as if it had been mirrored before it was normalised; what measured nothing stays nothing."""
    spec = replace(BUILTIN["aolp"], mean=(0.2, -0.3), std=(0.5, 0.8))
    angle = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    seen = torch.cat([angle.sin(), angle.cos()])
    seen[:, 2, 5] = float("nan")
    before = spec.normalized(torch.stack([-seen[0], seen[1]]).flip(-1))
    look = Viewer(MLESAM({"aolp": 2}, 2), Views(flip=True), {"aolp": spec}).looks((8, 8))[1][0]
    torch.testing.assert_close(look._seen(spec.normalized(seen)[None], "aolp")[0], before)
    assert (before[:, 2, 2] == 0).all()


# ---------------------------------------------------------------- what is broken is broken in the whole frame


def zeros(batch: Batch, protocol: Protocol) -> list[dict[str, Tensor]]:
    return [
        {m: x if m in row.present else torch.zeros_like(x) for m, x in batch.images.items()} for row in protocol.rows
    ]


def noise(batch: Batch, protocol: Protocol) -> list[dict[str, Tensor]]:
    assert isinstance(protocol, Noisy)
    levels = ("low", "mid", "high")
    changed = [{m: protocol._changed(x, m, level, batch) for m, x in batch.images.items()} for level in levels]
    return [*changed, batch.images]


def gaps(batch: Batch, protocol: Protocol) -> list[dict[str, Tensor]]:
    assert isinstance(protocol, RandomMissing)
    return [
        {
            m: x if m in row.present else protocol._dropped(x, m, batch.ids, row.details["drop"])
            for m, x in batch.images.items()
        }
        for row in protocol.rows
    ]


@pytest.mark.parametrize("views", [Views((1.0, 1.5), flip=True), Views(window=40, stride=20)], ids=("scales", "window"))
@pytest.mark.parametrize(
    ("protocol", "broken"),
    [(EntireMissing(SENSORS), zeros), (Noisy(SPECS, seed=4), noise), (RandomMissing(SENSORS, seed=4), gaps)],
    ids=("emm", "nm", "rmm"),
)
def test_the_published_protocols_change_the_frame_and_then_look_at_it(
    model: MLESAM, batch: Batch, protocol: Protocol, broken: Any, views: Views
) -> None:
    found = run(protocol, model, batch, views)
    expected = broken(batch, protocol)
    for number in {0, len(found) // 2, len(found) - 1}:
        assert alike(found[number].confusions[0], matrix(by_hand(model, expected[number], views), batch))


def test_faults_break_the_frame_and_then_look_at_it(model: MLESAM, batch: Batch) -> None:
    def image(frame: str, fault: Any) -> Tensor:
        return batch.images[fault.sensor][0].roll(fault.severity, dims=-1) * 0.5

    views = Views((1.0, 1.5), flip=True)
    protocol = Faults(SimpleNamespace(sensors=SPECS, image=image))  # type: ignore[arg-type]
    found = run(protocol, model, batch, views)
    for group in (protocol.groups[0], protocol.groups[-1]):
        number, fault = group[-1]
        images = dict(batch.images)
        if fault.fault.removes:
            del images[fault.sensor]
        else:
            images[fault.sensor] = image("0", fault)[None]
        assert alike(found[number].confusions[0], matrix(by_hand(model, images, views), batch))
    assert alike(found[-1].confusions[0], matrix(by_hand(model, batch.images, views), batch))


# ---------------------------------------------------------------- windows


def answered(viewer: Viewer, size: tuple[int, int], logits: Any) -> list[Output]:
    """Stand-ins for the outputs of each view: ``logits`` of its window."""
    return [logits(look) for group in viewer.looks(size) for look in group]


@pytest.mark.parametrize("size", [(48, 64), (100, 70), (33, 200), (20, 20), (64, 32)])
@pytest.mark.parametrize(("window", "stride"), [(32, None), (32, 32), (40, 7), (64, 1)])
def test_overlapping_windows_are_averaged_as_a_loop_with_counts_does_it(
    size: tuple[int, int], window: int, stride: int | None, batch: Batch
) -> None:
    views = Views(window=window, stride=stride)
    viewer = Viewer(None, views, SPECS)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    drawn: list[Tensor] = []

    def logits(look: Any) -> Any:
        rows, columns = look.window
        drawn.append(torch.randn(2, 5, rows.stop - rows.start, columns.stop - columns.start, generator=generator))
        return SimpleNamespace(logits=drawn[-1])

    found, _ = viewer.merged(answered(viewer, size, logits), size, size)
    places = [(t, left) for t in grid(size[0], window, views.step) for left in grid(size[1], window, views.step)]
    assert len(places) == len(drawn)
    total, count = torch.zeros(2, 5, *size), torch.zeros(size)
    for (top, left), values in zip(places, drawn, strict=True):
        for row in range(values.shape[-2]):
            total[:, :, top + row, left : left + values.shape[-1]] += values[:, :, row]
            count[top + row, left : left + values.shape[-1]] += 1
    assert count.min() >= 1
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("views", VIEWS, ids=lambda v: described(v.facts()))
@pytest.mark.parametrize("size", [(48, 64), (45, 61)])
def test_a_model_that_always_says_the_same_does_so_through_all_views(views: Views, size: tuple[int, int]) -> None:
    viewer = Viewer(None, views, SPECS)  # type: ignore[arg-type]
    answer = torch.tensor([0.5, -1.0, 2.0])[None, :, None, None]

    def logits(look: Any) -> Any:
        rows, columns = look.window
        return SimpleNamespace(logits=answer.expand(1, 3, rows.stop - rows.start, columns.stop - columns.start))

    found, calibrated = viewer.merged(answered(viewer, size, logits), size, (50, 70), [2.0])
    torch.testing.assert_close(found.softmax(dim=1), answer.softmax(dim=1).expand(1, 3, 50, 70))
    assert calibrated[0] is not None
    torch.testing.assert_close(calibrated[0].softmax(dim=0), (answer[0] / 2).softmax(dim=0).expand(3, 50, 70))


# ---------------------------------------------------------------- the request


def test_views_say_what_they_are() -> None:
    assert Views().facts() == {}
    assert Views().plain
    assert Views.parse("1").plain
    assert Views(flip=True).facts() == {"scales": [1.0], "flip": True}
    assert Views.parse("1.5,0.5,1").facts() == {"scales": [0.5, 1.0, 1.5], "flip": False}
    assert Views(window=1024, stride=768).facts() == {"window": 1024, "stride": 768}
    assert (Views(window=512).step, Views(window=769).step) == (341, 513)  # those of MMSegmentation's configurations
    assert described(Views((0.5, 1.0), True, 96, 64).facts()) == (
        "scales 0.5, 1, mirrored too, windows of 96 pixels every 64"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("0.5,x",), "--scales is '0.5,x', but it must be numbers"),
        (("",), "--scales is ''"),
        (("0",), "--scales has 0.0, but a scale must be between 0.1 and 4"),
        (("nan",), "--scales has nan"),
        (("1,1.0",), "name each scale once"),
        ((None, False, 8), "--window is 8, but a window has at least 32 pixels"),
        ((None, False, None, 8), "--stride 8 is the way between windows; say their size"),
        ((None, False, 64, 65), "--stride is 65, but it must be between 1 and the window's 64"),
        ((None, False, 64, 0), "--stride is 0"),
    ],
)
def test_views_that_cannot_be_meant(words: Sequence[Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        Views.parse(*words)
