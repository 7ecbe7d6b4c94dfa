"""The router, against equations 8 and 9 of the paper computed by hand with numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from mlesam.errors import RequestError
from mlesam.model.experts import Segment
from mlesam.model.router import Router, keep_top

SENSORS = ("rgb", "depth", "lidar")
WIDTH, SIZE = 6, (4, 5)
# Three frames: the first has every sensor, the second rgb and lidar, the third depth alone.
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=bool)
SEGMENTS = (Segment("rgb", 0, 2), Segment("depth", 2, 4), Segment("lidar", 4, 6))
FRAMES = [torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0, 1])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rows_of(modality: str) -> dict[int, int]:
    """Frame -> row of the stack."""
    index = SENSORS.index(modality)
    return {int(frame): SEGMENTS[index].start + i for i, frame in enumerate(FRAMES[index])}


def by_hand(router: Router, maps: np.ndarray, valid: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Fused maps and shares, frame by frame."""
    fused = np.zeros((len(PRESENT), *maps.shape[1:]))
    shares = np.zeros(PRESENT.shape)
    for frame, present in enumerate(PRESENT):
        names = [m for m, there in zip(SENSORS, present, strict=True) if there]
        mine = {m: maps[rows_of(m)[frame]].astype(np.float64) for m in names}
        mean = np.full(len(names), 1 / len(names))
        routed = mean
        if router.fusion != "mean":
            scores = [
                router.scorers[m].weight.detach().double().numpy()[0]
                @ mine[m][:, : valid[0], : valid[1]].mean(axis=(1, 2))
                + router.scorers[m].bias.item()
                for m in names
            ]
            routed = softmax(scores)
            if router.top_k is not None:
                routed[np.argsort(routed)[: -router.top_k]] = 0
                routed /= routed.sum()
        a = {"mean": 0.0, "routed": 1.0}.get(router.fusion)
        if a is None:
            a = 1 / (1 + np.exp(-router.mix.item()))
        weights = a * routed + (1 - a) * mean
        for name, weight in zip(names, weights, strict=True):
            shares[frame, SENSORS.index(name)] = weight
            fused[frame] += weight * mine[name]
    return fused, shares


def run(router: Router, maps: Tensor, valid: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    return router(maps, valid, SEGMENTS, FRAMES, len(PRESENT))


def make(fusion: str = "mean+routed", top_k: int | None = None, mix: float | None = None) -> Router:
    """A router whose scores differ clearly between sensors."""
    router = Router(SENSORS, WIDTH, fusion, top_k)
    for i, scorer in enumerate(router.scorers.values()):
        torch.nn.init.normal_(scorer.weight, std=2.0)
        torch.nn.init.constant_(scorer.bias, 0.3 * i)
    if mix is not None:
        torch.nn.init.constant_(router.mix, mix)
    return router


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("fusion", "mix"), [("mean", None), ("routed", None), ("mean+routed", None), ("mean+routed", 1.3)]
)
def test_every_fusion_is_the_one_computed_by_hand(fusion: str, mix: float | None, top_k: int | None) -> None:
    router = make(fusion, top_k, mix)
    maps = torch.randn(6, WIDTH, *SIZE)
    fused, shares = run(router, maps)
    expected_fused, expected_shares = by_hand(router, maps.numpy())
    np.testing.assert_allclose(shares.detach().numpy(), expected_shares, atol=1e-6)
    np.testing.assert_allclose(fused.detach().numpy(), expected_fused, atol=1e-5)


@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize("fusion", ["mean", "routed", "mean+routed"])
def test_shares_sum_to_one_and_an_absent_sensor_has_none(fusion: str, top_k: int | None) -> None:
    _, shares = run(make(fusion, top_k, 2.0 if fusion == "mean+routed" else None), torch.randn(6, WIDTH, *SIZE))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    assert (shares[~torch.from_numpy(PRESENT)] == 0).all()
    assert (shares >= 0).all()


@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize(
    ("fusion", "mix"), [("mean", None), ("routed", None), *(("mean+routed", m) for m in (0.0, 0.3, -2.1, 7.7, -40.0))]
)
def test_a_single_sensor_comes_back_as_its_own_map_exactly(fusion: str, mix: float | None, top_k: int | None) -> None:
    maps = torch.randn(6, WIDTH, *SIZE)
    fused, shares = run(make(fusion, top_k, mix), maps)
    assert torch.equal(fused[2], maps[2]), "the third frame has depth alone, in row 2"
    assert torch.equal(shares[2], torch.tensor([0.0, 1.0, 0.0]))


def test_the_router_begins_half_way_between_mean_and_routed() -> None:
    router = make("mean+routed")
    maps = torch.randn(6, WIDTH, *SIZE)
    plain, routed = make("mean"), Router(SENSORS, WIDTH, "routed")
    routed.load_state_dict(router.state_dict(), strict=False)
    assert torch.sigmoid(router.mix).item() == 0.5
    torch.testing.assert_close(run(router, maps)[0], (run(plain, maps)[0] + run(routed, maps)[0]) / 2)


def test_what_lies_beyond_the_frame_is_not_averaged() -> None:
    router = make()
    maps = torch.randn(6, WIDTH, *SIZE)
    _, shares = run(router, maps, valid=(3, 4))
    np.testing.assert_allclose(shares.detach().numpy(), by_hand(router, maps.numpy(), (3, 4))[1], atol=1e-6)
    maps[:, :, 3:] = 1e4
    maps[:, :, :, 4:] = -3e4
    assert torch.equal(run(router, maps, valid=(3, 4))[1], shares)
    assert not torch.equal(run(router, maps)[1], shares)


def test_each_sensor_has_a_scorer_of_its_own() -> None:
    router = make()
    assert set(router.scorers) == set(SENSORS)
    maps = torch.randn(6, WIDTH, *SIZE)
    before = run(router, maps)[1]
    torch.nn.init.normal_(router.scorers["rgb"].weight, std=3.0)
    after = run(router, maps)[1]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2]), "the third frame has no rgb"


def test_a_batch_without_a_sensor_gives_its_scorer_no_gradient() -> None:
    router = make()
    maps = torch.randn(4, WIDTH, *SIZE)
    segments = (Segment("depth", 0, 2), Segment("lidar", 2, 4))
    fused, _ = router(maps, SIZE, segments, [torch.arange(2), torch.arange(2)], 2)
    fused.square().sum().backward()
    assert router.scorers["rgb"].weight.grad is None
    assert router.scorers["depth"].weight.grad.abs().max() > 0
    assert router.mix.grad.abs() > 0


@pytest.mark.parametrize("fusion", ["routed", "mean+routed"])
def test_with_one_sensor_kept_the_scorers_still_learn(fusion: str) -> None:
    router = make(fusion, top_k=1)
    fused, shares = run(router, torch.randn(6, WIDTH, *SIZE))
    fused.square().sum().backward()
    for scorer in router.scorers.values():
        assert scorer.weight.grad.abs().max() > 1e-3, "rounding alone leaves a trace of a gradient"
    if fusion == "routed":
        assert torch.equal(shares.max(dim=1).values, torch.ones(3)), "the kept sensor has all the trust, exactly"


def test_keep_top_keeps_the_largest_and_scales_them_to_one() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]])
    assert keep_top(weights, None) is weights
    assert keep_top(weights, 5) is weights
    torch.testing.assert_close(keep_top(weights, 2), torch.tensor([[0.625, 0.375, 0.0], [0.1, 0.0, 0.9]]))
    torch.testing.assert_close(keep_top(weights, 1), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


def test_the_plain_mean_has_nothing_to_learn() -> None:
    assert not list(Router(SENSORS, WIDTH, "mean").parameters())


def test_a_router_for_one_sensor_has_nothing_to_learn() -> None:
    assert not any(p.requires_grad for p in Router(("rgb",), WIDTH).parameters())


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(RequestError, match=r"fusion is 'sum'; known: mean, routed, mean\+routed"):
        Router(SENSORS, WIDTH, "sum")
