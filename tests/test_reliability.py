"""What the router can see of a broken sensor, against hand-computed cases, and that nothing else about the model changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy
from torch import Tensor

from mlesam import MLESAM, Batch, ModelConfig
from mlesam.model.experts import Segment
from mlesam.model.heads import PyramidHead
from mlesam.model.reliability import SIGNS, Reliability, agreement, answer_signs, frame_signs
from mlesam.model.router import Router
from mlesam.sample import Sample

LEVEL, SPREAD, LOWEST, HIGHEST, ACROSS, DOWN, AROUND, ROWS, FLAT, OUTLIERS = range(10)
SENSORS = ("rgb", "depth", "lidar")
SEGMENTS = (Segment("rgb", 0, 2), Segment("depth", 2, 4), Segment("lidar", 4, 6))
FRAMES = [torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0, 1])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def smooth(rows: int = 1) -> Tensor:
    """A picture with soft structure and a little noise."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    picture = torch.sin(x / 7) + torch.cos(y / 5)
    return picture.expand(rows, 1, 32, 48) + 0.02 * torch.randn(rows, 1, 32, 48)


# ---------------------------------------------------------------- the signs of a frame


def test_signs_of_a_picture_by_hand() -> None:
    picture = torch.tensor([[0.0, 0.0, 1.0], [3.0, 0.0, 3.0]])[None, None]
    signs = frame_signs(picture)[0].double().numpy()
    grey = picture[0, 0].double().numpy()
    z = (grey - grey.mean()) / (grey.std() + 1e-3)
    expected = {
        LEVEL: grey.mean(), SPREAD: grey.std(), LOWEST: 3 / 6, HIGHEST: 2 / 6,
        ACROSS: np.abs(np.diff(z, axis=1)).mean(), DOWN: np.abs(np.diff(z, axis=0)).mean(),
        ROWS: np.sqrt((z.mean(axis=1) ** 2).mean()), FLAT: 0.0, OUTLIERS: np.sqrt((z**4).mean()),
    }  # fmt: skip
    for index, value in expected.items():
        assert signs[index] == pytest.approx(np.log1p(value), rel=1e-5), index


@pytest.mark.parametrize(
    ("broken", "sign"),
    [
        (lambda x: torch.full_like(x, -2.0), LOWEST),
        (lambda x: x.clamp(max=0.5), HIGHEST),
        (lambda x: x + torch.randn_like(x), ACROSS),
        (lambda x: x + torch.randn_like(x), AROUND),
        (lambda x: x + torch.arange(32.0)[:, None] * 0.2, ROWS),
        (lambda x: x.masked_fill((torch.arange(32) % 3 == 0)[:, None], 0.0), FLAT),
        (lambda x: x.masked_fill(torch.rand(x.shape) < 0.01, 12.0), OUTLIERS),
        (lambda x: 6 * x, SPREAD),
        (lambda x: x + 3, LEVEL),
    ],
)
def test_a_fault_shows_in_its_sign(broken, sign: int) -> None:
    picture = smooth()
    assert float(frame_signs(broken(picture))[0, sign]) > float(frame_signs(picture)[0, sign]) + 0.1


def test_blur_shows_as_smaller_steps() -> None:
    picture = smooth() + 0.3 * torch.randn(1, 1, 32, 48)
    blurred = torch.nn.functional.avg_pool2d(picture, (1, 9), 1, (0, 4))
    assert frame_signs(blurred)[0, ACROSS] < frame_signs(picture)[0, ACROSS] - 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (33, 65)])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_signs_are_finite_for_any_size_and_values(size: tuple[int, int], channels: int) -> None:
    for picture in (torch.zeros(2, channels, *size), 1e6 * torch.randn(2, channels, *size)):
        signs = frame_signs(picture)
        assert signs.shape == (2, 10)
        assert bool(torch.isfinite(signs).all())
        assert float(signs.abs().max()) < 20


def test_a_rows_signs_do_not_depend_on_the_others() -> None:
    pictures = torch.randn(4, 3, 16, 24)
    together = frame_signs(pictures)
    for row in range(4):
        torch.testing.assert_close(frame_signs(pictures[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- agreement

OWNER = {(0, 0): 0, (1, 0): 1, (2, 1): 2, (0, 1): 3, (0, 2): 4, (1, 2): 5}  # (frame, sensor): row


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_agreement_by_hand_with_sensors_missing() -> None:
    maps = [torch.randn(6, 5, 4, 6) + 0.5, torch.randn(6, 5, 2, 3) + 0.5]
    answers = torch.randn(6, 4, 2, 3).softmax(dim=1)
    found = agreement(maps, answers, SEGMENTS, FRAMES, 3).numpy()
    for (frame, sensor), row in OWNER.items():
        others = [r for (f, s), r in OWNER.items() if f == frame and s != sensor]
        numbers = []
        for other in others:
            own = []
            for level in maps:
                a, b = (level[r].double().numpy().reshape(5, -1) for r in (row, other))
                cosine = (a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
                own += [cosine.mean(), correlation(a, b)]
            a, b = (answers[r].double().numpy().reshape(4, -1) for r in (row, other))
            chance, agreed = a.mean(axis=1) @ b.mean(axis=1), (a * b).sum(axis=0).mean()
            numbers.append([*own, (agreed - chance) / (1 - chance), correlation(a, b)])
        table = np.array(numbers) if others else np.zeros((1, 6))
        expected = np.concatenate([table.mean(axis=0), table.max(axis=0), table.min(axis=0)])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    assert not found[2].any(), "the third frame has depth alone"


def test_the_one_that_lies_agrees_least() -> None:
    segments = tuple(Segment(m, i, i + 1) for i, m in enumerate(SENSORS))

    def seen(shape: tuple[int, ...]) -> Tensor:
        truth = torch.randn(1, *shape)
        return torch.cat(
            [truth + 0.2 * torch.randn_like(truth), torch.randn_like(truth), truth + 0.2 * torch.randn_like(truth)]
        )

    found = agreement(
        [seen((8, 6, 6)), seen((8, 3, 3))], (3 * seen((4, 3, 3))).softmax(1), segments, [torch.tensor([0])] * 3, 1
    )
    assert found[:, :12].argmin(dim=0).tolist() == [1] * 12


def test_a_map_that_shows_nothing_correlates_with_none() -> None:
    """What is left of it without its mean is rounding, and rounding is no opinion."""
    pattern = torch.randn(1, 8, 1, 1, generator=torch.Generator().manual_seed(3)).expand(1, 8, 6, 6) * 0.3
    living = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(4))
    maps = torch.cat([pattern, living[:1], living[:1] + 5])
    segments = tuple(Segment(name, place, place + 1) for place, name in enumerate(("rgb", "depth", "lidar")))
    answers = living[:1].softmax(dim=1).expand(3, -1, -1, -1)
    found = agreement([maps, maps], answers, segments, [torch.tensor([0])] * 3, 1)
    correlations = found[:, [1, 3]]  # the mean over the other sensors, of either map
    assert correlations[0].eq(0).all()
    torch.testing.assert_close(
        correlations[1:], torch.full((2, 2), 0.5), rtol=0, atol=1e-4
    )  # 0 with it, 1 with each other


def test_how_sure_an_answer_is_against_scipy() -> None:
    answers = torch.randn(3, 5, 4, 6).softmax(dim=1)
    answers[2] = torch.eye(5)[1][:, None, None]  # sure of one class everywhere
    for row, found in zip(answers.double().numpy(), answer_signs(answers).numpy(), strict=True):
        expected = [row.max(axis=0).mean(), entropy(row, axis=0).mean(), entropy(row.mean(axis=(1, 2)))]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_coarse_answer_is_that_of_the_averaged_maps() -> None:
    head = PyramidHead(6, 8, 4)
    maps = [torch.randn(2, 6, 16 // 2**i, 24 // 2**i) for i in range(3)]
    small = [torch.nn.functional.avg_pool2d(m, 4 // 2**i) for i, m in enumerate(maps)]
    torch.testing.assert_close(head.coarse(maps), head(small).softmax(dim=1))


# ---------------------------------------------------------------- trust


def rows(count: int, seed: int) -> Tensor:
    """Signs of sound frames: correlated, of different scales, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, SIGNS)
    mix = torch.eye(SIGNS) + 0.3 * torch.ones(SIGNS, SIGNS)
    return (torch.randn(count, SIGNS, generator=generator) @ mix) * scale + 5 * scale


@pytest.fixture(scope="module")
def fitted() -> Reliability:
    """It has seen one fault alone: the first sign rises by six of its standard deviations."""
    sound = rows(300, 1)
    broken = rows(100, 2)
    broken[:, 0] += 6 * sound.std(dim=0)[0]
    reliability = Reliability()
    reliability.fit(torch.cat([sound, broken]), torch.cat([torch.ones(300), torch.zeros(100)]))
    return reliability


def test_fresh_it_tells_no_two_rows_apart() -> None:
    assert len(Reliability()(torch.randn(7, SIGNS)).unique()) == 1
    assert not any(p.requires_grad for p in Reliability().parameters())


def test_sound_rows_are_trusted_and_broken_ones_are_not(fitted: Reliability) -> None:
    sound, broken = rows(200, 3), rows(200, 4)
    broken[:, 0] += 6 * rows(300, 1).std(dim=0)[0]
    assert float(fitted(sound).exp().mean()) > 0.75
    assert float(fitted(broken).exp().mean()) < 0.15


@pytest.mark.parametrize("sign", range(1, SIGNS))
def test_a_fault_it_never_saw_is_trusted_less_as_well(fitted: Reliability, sign: int) -> None:
    strange = rows(200, 5)
    strange[:, sign] -= 10 * rows(300, 1).std(dim=0)[sign]
    assert float(fitted(strange).exp().mean()) < 0.75 * float(fitted(rows(200, 5)).exp().mean())


def test_fitting_is_repeatable_and_leaves_the_random_numbers_of_others_alone() -> None:
    known = torch.cat([rows(50, 1), rows(50, 2) + 100]), torch.cat([torch.ones(50), torch.zeros(50)])
    one, two = Reliability(), Reliability()
    torch.manual_seed(4)
    one.fit(*known)
    after = torch.rand(1)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(1), after)
    two.fit(*known)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_without_broken_or_sound_rows_nothing_is_learned() -> None:
    for trust in (torch.ones(20), torch.zeros(20)):
        reliability = Reliability()
        reliability.fit(rows(20, 1), trust)
        assert not reliability(rows(20, 2)).unique().numel() > 1


# ---------------------------------------------------------------- the router


def make(**options) -> Router:
    router = Router(SENSORS, 5, **options)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return router


def by_hand(router: Router, maps: np.ndarray, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fused maps and shares of every frame, pixel by pixel."""
    fused, shares = np.zeros((3, *maps.shape[1:])), np.zeros((3, 3))
    for frame in range(3):
        rows = {s: r for (f, s), r in OWNER.items() if f == frame}
        score, gate = {}, {}
        for sensor, row in rows.items():
            scorer = router.scorers[SENSORS[sensor]]
            weight, bias = scorer.weight.detach().double().numpy()[0], scorer.bias.item()
            own = maps[row] if router.per_pixel else maps[row].mean(axis=(1, 2), keepdims=True)
            gate[sensor] = trust[row]
            score[sensor] = np.einsum("c,chw->hw", weight, own) + bias + np.log(trust[row])
        routed = softmax(np.stack([score[s] for s in rows]), axis=0)
        a = expit(router.mix.item())
        for i, sensor in enumerate(rows):
            share = a * routed[i] + (1 - a) * gate[sensor] / sum(gate.values())
            fused[frame] += share * maps[rows[sensor]]
            shares[frame, sensor] = np.mean(share)
    return fused, shares


@pytest.mark.parametrize("reliability", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_router_is_the_one_computed_by_hand(per_pixel: bool, reliability: bool) -> None:
    router, maps = make(per_pixel=per_pixel), torch.randn(6, 5, 4, 6)
    trust = torch.rand(6) if reliability else torch.ones(6)
    fused, shares = router(maps, (4, 6), SEGMENTS, FRAMES, 3, trust.log() if reliability else None)
    expected, expected_shares = by_hand(router, maps.double().numpy(), trust.double().numpy())
    np.testing.assert_allclose(fused.detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(shares.detach().numpy(), expected_shares, atol=1e-6)
    assert torch.equal(fused[2], maps[2]), "a single sensor's map comes back exactly"
    assert shares[2].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("fusion", ["mean", "routed", "mean+routed"])
def test_a_sensor_without_trust_has_no_share_in_any_path(fusion: str) -> None:
    router = make(fusion=fusion)
    trust = torch.zeros(6)
    trust[0] = -40.0
    shares = router(torch.randn(6, 5, 4, 6), (4, 6), SEGMENTS, FRAMES, 3, trust)[1]
    assert shares[0, 0].item() < 1e-6
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))


def test_a_sensor_alone_has_all_of_the_share_however_little_it_is_trusted() -> None:
    shares = make()(torch.randn(6, 5, 4, 6), (4, 6), SEGMENTS, FRAMES, 3, torch.full((6,), -60.0))[1]
    assert shares[2].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("per_pixel", [False, True])
def test_rescaling_gives_the_fused_map_the_level_of_its_parts(per_pixel: bool) -> None:
    maps, owner = 3 * torch.randn(6, 5, 4, 6), {0: [0, 3, 4], 1: [1, 5], 2: [2]}
    plain, scaled = (make(per_pixel=per_pixel), Router(SENSORS, 5, per_pixel=per_pixel, rescale=True))
    scaled.load_state_dict(plain.state_dict())
    before, shares = (t.detach() for t in plain(maps, (3, 6), SEGMENTS, FRAMES, 3))
    after, same = (t.detach() for t in scaled(maps, (3, 6), SEGMENTS, FRAMES, 3))
    assert torch.equal(shares, same)
    assert torch.equal(after[2], maps[2]), "a single sensor's map comes back exactly"
    root = lambda x: x[..., :3, :].double().square().mean(dim=(-3, -2, -1)).sqrt()  # noqa: E731
    columns = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    for frame, rows in owner.items():
        expected = sum(float(shares[frame, columns[r]]) * float(root(maps[r])) for r in rows)
        assert float(root(after[frame])) == pytest.approx(expected, rel=2e-2 if per_pixel else 1e-5)
        torch.testing.assert_close(after[frame] / root(after[frame]), before[frame] / root(before[frame]))
    zero = scaled(torch.zeros_like(maps), (3, 6), SEGMENTS, FRAMES, 3)[0]
    assert not zero.any(), "a map of zeros stays one"


# ---------------------------------------------------------------- the model

CHANNELS = {"rgb": 3, "lidar": 3, "thermal": 1, "cube": 5}


OPTIONS = {
    "reliability": {"reliability": True},
    "pixel": {"router": "pixel"},
    "rescale": {"rescale": True},
    "all": {"reliability": True, "router": "pixel", "rescale": True},
}


@pytest.fixture(scope="module", params=OPTIONS)
def model(request: pytest.FixtureRequest) -> MLESAM:
    chosen = OPTIONS[request.param]
    torch.manual_seed(3)
    built = MLESAM(CHANNELS, 4, ModelConfig(rank=2, **chosen)).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.startswith(("routers", "reliability")) or name.endswith(".b"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return built


@torch.no_grad()
def test_order_batching_and_what_is_absent_change_nothing(model: MLESAM) -> None:
    sets = [("rgb", "thermal", "lidar", "cube"), ("thermal",), ("cube", "rgb"), ("lidar", "thermal")]
    samples = [Sample({m: torch.randn(CHANNELS[m], 64, 96) for m in s}, id=str(i)) for i, s in enumerate(sets)]
    together = model(Batch.stack(samples))
    for row, sample in enumerate(samples):
        alone = model(Batch.stack([sample]))
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.shares[0], together.shares[row], atol=1e-5, rtol=1e-5)
        turned = model(Batch.stack([Sample(dict(reversed(sample.images.items())), id="x")]))
        assert torch.equal(turned.logits, alone.logits)
    torch.testing.assert_close(together.shares.sum(dim=2), torch.ones(4, 3))
    assert not together.shares[1, :, [0, 1, 3]].any()
    given = samples[0].images
    features = model.encode(Batch.of({m: x[None] for m, x in given.items()}))
    part = model.decode(features.select(("rgb", "cube"))).logits
    torch.testing.assert_close(part, model({m: given[m][None] for m in ("rgb", "cube")}).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sensor_added_later_leaves_the_others_results_as_they_are(model: MLESAM) -> None:
    torch.manual_seed(3)
    more = MLESAM({**CHANNELS, "depth": 1}, 4, model.config).eval()
    old = model.state_dict()
    more.load_state_dict(old, strict=False)
    own = set(more.own_names("depth"))
    assert own == set(more.state_dict()) - set(old)
    given = {m: torch.randn(2, c, 64, 96) for m, c in CHANNELS.items()}
    assert torch.equal(more(given).logits, model(given).logits)


def test_every_part_of_the_router_is_trained() -> None:
    torch.manual_seed(0)
    model = MLESAM(CHANNELS, 4, ModelConfig(rank=2, router="pixel", reliability=True))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # what stands before a zero has its first gradient in the second step
        optimizer.zero_grad()
        model({m: torch.randn(2, c, 64, 64) for m, c in CHANNELS.items()}).logits.square().mean().backward()
        optimizer.step()
    silent = [n for n, p in model.named_parameters() if "routers" in n and (p.grad is None or not p.grad.any())]
    assert not silent
