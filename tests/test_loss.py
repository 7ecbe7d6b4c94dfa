"""OHEM cross-entropy against plain numpy, and the optimiser with its schedule."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import Tensor, nn

from mlesam.config import TrainingConfig
from mlesam.model.mlesam import Output
from mlesam.sample import IGNORE
from mlesam.training.loss import divergence, ohem_cross_entropy
from mlesam.training.optimizer import learning_rate, make_optimizer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_case(sharpness: float = 3.0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 5, (2, 12, 16))
    logits = torch.randn(2, 5, 12, 16) + sharpness * F.one_hot(labels, 5).permute(0, 3, 1, 2)
    return logits, labels.masked_fill(torch.rand(labels.shape) < ignored, IGNORE)


def pixel_losses(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Cross-entropy of the scored pixels, one after another."""
    scored = labels.numpy() != IGNORE
    log_probabilities = log_softmax(logits.double().numpy(), axis=1).transpose(0, 2, 3, 1)[scored]
    return -log_probabilities[np.arange(scored.sum()), labels.numpy()[scored]]


@pytest.mark.parametrize("keep", [1 / 16, 0.4, 1.0])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("sharpness", [0.0, 3.0, 9.0])
def test_ohem_is_the_mean_over_the_hard_pixels_but_over_a_least_share(
    sharpness: float, threshold: float, keep: float
) -> None:
    logits, labels = random_case(sharpness)
    losses = np.sort(pixel_losses(logits, labels))[::-1]
    hard = losses[np.exp(-losses) < threshold]
    least = int(len(losses) * keep)
    expected = (hard if len(hard) >= least else losses[:least]).mean()
    assert ohem_cross_entropy(logits, labels, threshold, keep).item() == pytest.approx(expected, rel=1e-5)


def test_when_every_pixel_is_easy_the_hardest_share_is_kept() -> None:
    logits, labels = random_case(sharpness=12.0, ignored=0.0)
    losses = pixel_losses(logits, labels)
    assert (np.exp(-losses) > 0.7).all()
    expected = np.sort(losses)[-(len(losses) // 16) :].mean()
    assert ohem_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-4)


def test_with_threshold_one_it_is_the_mean_cross_entropy() -> None:
    logits, labels = random_case()
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(ohem_cross_entropy(logits, labels, threshold=1.0), expected)


def test_where_nothing_is_scored_the_loss_is_zero_and_so_is_its_gradient() -> None:
    logits, labels = random_case(ignored=1.0)
    logits.requires_grad_()
    assert bool((labels == IGNORE).all())
    loss = ohem_cross_entropy(logits, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_and_easy_pixels_have_no_gradient_and_hard_ones_have() -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    ohem_cross_entropy(logits, labels).backward()
    probability = logits.detach().softmax(dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    hard = (probability < 0.7) & (labels != IGNORE)
    assert 0 < hard.sum() < hard.numel() / 2
    assert torch.equal((logits.grad != 0).any(dim=1), hard)


def test_a_single_scored_pixel_counts() -> None:
    logits, labels = random_case(sharpness=20.0, ignored=1.0)
    labels[0, 3, 4] = 2
    expected = F.cross_entropy(logits[0, :, 3, 4], labels[0, 3, 4])
    torch.testing.assert_close(ohem_cross_entropy(logits, labels), expected)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, labels = random_case()
    loss = ohem_cross_entropy(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ohem_cross_entropy(logits.bfloat16().float(), labels))


# ---------------------------------------------------------------- optimiser


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.tokens = nn.Embedding(5, 4)
        self.mix = nn.Parameter(torch.tensor(0.5))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_tensors_of_two_dimensions_and_more_are_decayed() -> None:
    model = Mixed()
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.3, lr=0.1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name in ("conv.weight", "tokens.weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.3 if decayed else 1))


def test_a_frozen_tensor_is_not_known_to_the_optimiser() -> None:
    model = Mixed()
    known = {id(p) for group in make_optimizer(model, TrainingConfig()).param_groups for p in group["params"]}
    assert known == {id(p) for n, p in model.named_parameters() if not n.startswith("frozen.")}


def test_the_rate_warms_up_from_a_tenth_and_reaches_zero_at_the_last_step() -> None:
    config = TrainingConfig(steps=200, warmup=0.1, lr=2e-3, power=0.9)
    rates = [learning_rate(step, config) for step in range(201)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[10] == pytest.approx(2e-3 * 0.55)
    assert rates[20] == max(rates) == 2e-3
    assert rates[110] == pytest.approx(2e-3 * 0.5**0.9)
    assert rates[200] == 0.0
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert learning_rate(250, config) == 0.0


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_the_shortest_trainings_have_a_positive_rate_at_every_step(steps: int, warmup: float) -> None:
    config = TrainingConfig(steps=steps, warmup=warmup, lr=1.0)
    assert all(0 < learning_rate(step, config) <= 1 for step in range(steps))
    assert learning_rate(steps, config) == 0.0


def test_without_warm_up_it_begins_at_the_full_rate() -> None:
    assert learning_rate(0, TrainingConfig(steps=10, warmup=0.0, lr=0.3)) == 0.3


# ---------------------------------------------------------------- what few sensors learn from all


def output(logits: torch.Tensor, size: tuple[int, int]) -> Output:
    return Output(logits, logits + 0.5, torch.zeros(1, 3, 1), size, "mask")


def test_the_divergence_is_that_of_torch_over_the_frame_alone() -> None:
    teacher, student = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    found = divergence(output(teacher, (17, 30)), output(student, (17, 30)))
    told, said = teacher[..., :5, :8].log_softmax(1), student[..., :5, :8].log_softmax(1)
    expected = F.kl_div(said, told, log_target=True, reduction="none").sum(dim=1).mean()
    torch.testing.assert_close(found, expected)
    assert divergence(output(teacher, (17, 30)), output(teacher, (17, 30))).item() == 0.0


def test_the_teacher_learns_nothing_from_its_pupil() -> None:
    teacher, student = (torch.randn(1, 4, 4, 4, requires_grad=True) for _ in range(2))
    divergence(output(teacher, (16, 16)), output(student, (16, 16))).backward()
    assert teacher.grad is None
    assert student.grad is not None
