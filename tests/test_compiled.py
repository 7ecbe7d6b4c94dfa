"""A compiled segmenter gives what the plain one gives, for every set of sensors, or says why it cannot."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config

from mlesam import MLESAM, ModelConfig, RequestError, Segmenter
from mlesam.inference.stream import SegmenterStream
from mlesam.sample import Classes
from mlesam.sensors import sensor_spec

SENSORS = {m: sensor_spec(m) for m in ("rgb", "depth", "lidar", "thermal")}
CLASSES = Classes(("ground", "near", "far"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def segmenter(**config: object) -> Segmenter:
    torch.manual_seed(0)
    model = MLESAM({m: s.channels for m, s in SENSORS.items()}, 3, ModelConfig(rank=4, **config))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b") or name.startswith("handovers."):
                parameter.normal_(std=0.02)
    return Segmenter(model.merge(), SENSORS, CLASSES, device="cpu")


def scene(size: tuple[int, int] = (40, 64)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {m: (*size, s.channels) if s.channels > 1 else size for m, s in SENSORS.items()}
    return {m: (SENSORS[m].mean[0] + 0.2 * rng.standard_normal(s)).astype(np.float32) for m, s in shapes.items()}


@torch._dynamo.config.patch(recompile_limit=1)
@pytest.mark.parametrize(
    "config", [{}, {"look": 0, "look_lead": ("rgb", "lidar")}], ids=["all computed", "others hand over"]
)
def test_sets_of_sensors_give_the_same(config: dict[str, object]) -> None:
    """More of them than torch compiles by itself. What it captures is tested; that its code is right is torch's."""
    plain, given = segmenter(**config), scene()
    compiled = copy.deepcopy(plain).compile(backend="eager")
    for chosen in (("depth",), ("rgb", "thermal"), tuple(SENSORS)):
        inputs = {m: given[m] for m in chosen}
        found, expected = compiled(inputs), plain(inputs)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        assert found.weights == pytest.approx(expected.weights, abs=1e-6)
    larger = {"rgb": scene((72, 40))["rgb"]}
    np.testing.assert_array_equal(compiled(larger).labels, plain(larger).labels)


def test_a_warm_up_changes_no_answer() -> None:
    plain, given = segmenter(), scene()
    before = plain(given).probabilities
    np.testing.assert_array_equal(plain.warm_up((40, 64)).warm_up((40, 64), ["rgb"])(given).probabilities, before)
    with pytest.raises(RequestError, match="no sensor 'rader'"):
        plain.warm_up((40, 64), ["rader"])


@torch.inference_mode()
def test_a_model_may_be_built_in_inference_mode() -> None:
    """Its weights have no counter of changes, which what is kept of a size asks for."""
    made = segmenter()
    np.testing.assert_array_equal(made(scene()).labels, made(scene()).labels)


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(RequestError, match=r"leaves sensors behind .* which cannot be compiled"):
        segmenter(look=1).compile()
    with pytest.raises(RequestError, match="exported or compiled model computes all of its sensors at once"):
        SegmenterStream(segmenter().compile())


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")  # by what comes next, where nothing was compiled before
@torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True})
def test_without_a_compiler_one_sentence_says_so() -> None:
    with pytest.raises(RequestError, match=r"torch.compile failed \(.*it needs a C\+\+ compiler on a CPU"):
        segmenter().compile().warm_up((32, 32), ["rgb"])
