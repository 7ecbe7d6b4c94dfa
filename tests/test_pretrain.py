"""Pre-training of nano: masks from points, no classes, places that no dataset has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Sam2Model

from mlesam.model.sam2 import preset_config
from mlesam.training.pretrain import (
    CROP,
    HELD_OUT,
    NOTHING,
    POINTS,
    PROMPTS,
    TRAIN,
    PointPrompted,
    Yards,
    livelier_start,
    losses,
    mask_iou,
    mask_losses,
    pretrain,
    prompts,
)


@pytest.fixture(scope="module")
def sam2() -> Sam2Model:
    torch.manual_seed(0)
    model = Sam2Model(preset_config("nano"))
    livelier_start(model)
    return model.eval()


def test_points_lie_in_their_mask_or_outside_as_they_say() -> None:
    rng = np.random.default_rng(0)
    instances = rng.integers(0, 5, (8, 8)).repeat(16, axis=0).repeat(16, axis=1)
    targets, points, labels = prompts(instances, rng)
    assert targets.shape == (PROMPTS, 128, 128)
    assert points.shape == (PROMPTS, POINTS, 2)
    for target, own, says in zip(targets, points, labels, strict=True):
        assert len(np.unique(instances[target.bool().numpy()])) == 1, "a target is one object, and all of it"
        assert target.sum() == (instances == instances[target.bool().numpy()][0]).sum()
        assert says[0] == 1, "the first point is in the object"
        for (x, y), label in zip(own.long(), says, strict=True):
            if label != NOTHING:
                assert target[y, x] == label


def test_an_example_holds_no_class_and_the_held_out_yards_are_others() -> None:
    train, held_out = Yards()[TRAIN, 3], Yards()[HELD_OUT, 3]
    assert set(train) == {"image", "targets", "points", "labels", "pixels", "same"}
    assert set(torch.unique(train["labels"]).tolist()) <= {NOTHING, 0, 1}, "these say inside or outside"
    assert train["image"].shape == (3, CROP, CROP)
    assert not torch.equal(train["image"], held_out["image"])
    assert torch.equal(Yards()[TRAIN, 3]["image"], train["image"]), "the same address gives the same example"


def test_a_pixel_is_alike_to_its_own_object() -> None:
    example = Yards()[HELD_OUT, 5]
    for (x, y), same in zip(example["pixels"].long(), example["same"], strict=True):
        assert same[y, x] == 1


def test_losses_equal_those_computed_by_hand() -> None:
    torch.manual_seed(0)
    masks, share = torch.randn(1, 1, 2, 4, 4), torch.rand(1, 1, 1, 4, 4)
    focal, dice = mask_losses(masks, share)
    p, t = masks[0, 0, 1].sigmoid().double(), share[0, 0, 0].double()
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    assert float(focal[0, 0, 1]) == pytest.approx(float(((p - t) ** 2 * entropy).mean()), rel=1e-5)
    expected = 1 - (2 * float((p * t).sum()) + 1) / (float(p.sum() + t.sum()) + 1)
    assert float(dice[0, 0, 1]) == pytest.approx(expected, rel=1e-5)


def test_only_the_best_of_three_masks_is_trained() -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., :8] = 1
    good = F.interpolate(target, size=(4, 4)) * 8 - 4
    masks = torch.stack([-good, good, torch.zeros_like(good)], dim=2).requires_grad_()
    quality = torch.zeros(1, 1, 3)
    alike = torch.zeros(1, 1, 1, 4, 4)
    losses(masks, quality, alike, target, target)["loss"].backward()
    assert masks.grad is not None
    assert masks.grad[0, 0, 1].abs().sum() > 0
    assert not masks.grad[0, 0, [0, 2]].any()


def test_iou_of_a_mask_by_hand() -> None:
    logits = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    share = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(mask_iou(logits, share)) == pytest.approx(1 / 3)
    assert float(mask_iou(-torch.ones(2, 2), torch.zeros(2, 2))) == 0


@torch.no_grad()
def test_the_forward_pass_is_that_of_transformers(sam2: Sam2Model) -> None:
    """At the size that `Sam2Model` can do by itself, with the same points (it adds a padding point of its own)."""
    config = preset_config("nano")
    config.prompt_encoder_config.image_size = 128
    config.vision_config.backbone_feature_sizes = [[32, 32], [16, 16], [8, 8]]
    theirs = Sam2Model(config).eval()
    theirs.load_state_dict(sam2.state_dict())
    images = torch.randn(2, 3, 128, 128)
    points = torch.tensor([[[[40.0, 60.0]], [[10.0, 90.0]]], [[[64.0, 64.0]], [[100.0, 20.0]]]])
    labels = torch.ones(2, 2, 1, dtype=torch.long)
    expected = theirs(pixel_values=images, input_points=points, input_labels=labels, multimask_output=True)
    padded = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=NOTHING)
    masks, quality, _ = PointPrompted(sam2).eval()(images, *padded, points[:, :, 0], True)
    assert (masks - expected.pred_masks).abs().max() < 1e-4
    assert (quality - expected.iou_scores).abs().max() < 1e-5
    sam2.requires_grad_(True)


def test_a_short_training_writes_a_folder_that_transformers_reads(tmp_path: Path) -> None:
    result = pretrain(tmp_path / "nano", steps=2, batch=2, lr=1e-3, workers=0)
    assert result["pictures"] == 4
    loaded, report = Sam2Model.from_pretrained(tmp_path / "nano", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.isfinite(t).all() for t in loaded.state_dict().values())
    assert (tmp_path / "nano" / "training.json").is_file()
