"""The two heads: the mask head against `Sam2MaskDecoder`, the pyramid head against its literal formulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2Model

from mlesam.model.heads import MaskHead, PyramidHead, fourier_position
from mlesam.model.sam2 import Sam2Foundation
from test_foundation import random_sam2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["nano", "tiny"])
def sam2(request: pytest.FixtureRequest) -> Sam2Model:
    return random_sam2(request.param, seed=5)


@pytest.fixture(scope="session")
def nano() -> Sam2Model:
    return random_sam2("nano", seed=5)


def fused_maps(width: int, batch: int = 2, coarse: tuple[int, int] = (3, 5)) -> list[Tensor]:
    return [torch.randn(batch, width, coarse[0] * s, coarse[1] * s) for s in (4, 2, 1)]


# ---------------------------------------------------------------- mask head


@pytest.mark.parametrize("coarse", [(4, 4), (3, 5), (6, 2)])
def test_the_mask_head_is_sam2s_decoder_without_a_prompt(sam2: Sam2Model, coarse: tuple[int, int]) -> None:
    decoder, width = sam2.mask_decoder, sam2.hidden_dim
    head, foundation = MaskHead(decoder, 4), Sam2Foundation(sam2, "random")
    with torch.no_grad():
        head.mask_tokens.weight.copy_(decoder.mask_tokens.weight)  # without the noise that tells copies apart
    fine, middle, low = fused_maps(width, coarse=coarse)
    decoder.dynamic_multimask_via_stability = False  # token 0 itself, not the best of the others
    y, x = ((torch.arange(n) + 0.5) / n for n in coarse)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    position = sam2.shared_image_embedding(grid).permute(2, 0, 1)[None]
    with torch.no_grad():
        masks = [
            decoder(
                image_embeddings=low + sam2.no_memory_embedding.reshape(1, width, 1, 1),
                image_positional_embeddings=position.expand(2, -1, -1, -1),
                sparse_prompt_embeddings=torch.zeros(2, 1, 0, width),
                dense_prompt_embeddings=sam2.prompt_encoder.no_mask_embed.weight.reshape(1, width, 1, 1),
                multimask_output=several,
                high_resolution_features=[decoder.conv_s0(fine), decoder.conv_s1(middle)],
            )[0]
            for several in (False, True)
        ]
        ours = head([fine, middle, low], foundation)
    theirs = torch.cat(masks, dim=2)[:, 0]
    assert ours.shape == theirs.shape == (2, 4, 4 * coarse[0], 4 * coarse[1])
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("added", ["no_memory", "no_mask"])
def test_both_embeddings_for_nothing_are_added_to_the_coarse_map(nano: Sam2Model, added: str) -> None:
    head, foundation = MaskHead(nano.mask_decoder, 3), Sam2Foundation(nano, "random")
    fused = fused_maps(foundation.width)
    with torch.no_grad():
        before = head(fused, foundation)
        getattr(foundation, added).add_(1.0)
        assert not torch.allclose(head(fused, foundation), before, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4, 7, 25])
def test_there_is_exactly_one_mask_token_per_class_and_no_head_for_iou_or_object_score(
    nano: Sam2Model, classes: int
) -> None:
    head, foundation = MaskHead(nano.mask_decoder, classes), Sam2Foundation(nano, "random")
    assert head.mask_tokens.weight.shape == (classes, foundation.width)
    assert len(head.hypernetworks) == classes
    assert not [n for n, _ in head.named_parameters() if "iou_prediction" in n or "pred_obj" in n or "prompt" in n]
    lengths = []
    head.transformer.register_forward_pre_hook(
        lambda m, a, k: lengths.append(k["point_embeddings"].shape), with_kwargs=True
    )
    assert head(fused_maps(foundation.width), foundation).shape == (2, classes, 12, 20)
    assert lengths == [(2, 1, 2 + classes, foundation.width)], "object, iou and class tokens, and no prompt"


@pytest.mark.parametrize("chosen", range(5))
def test_every_class_depends_on_its_own_token_and_its_own_mlp(nano: Sam2Model, chosen: int) -> None:
    head, foundation = MaskHead(nano.mask_decoder, 5), Sam2Foundation(nano, "random")
    fused = fused_maps(foundation.width)
    with torch.no_grad():
        before = head(fused, foundation)
        head.hypernetworks[chosen].proj_out.bias.add_(1.0)
        after = head(fused, foundation)
    changed = (before != after).flatten(2).any(dim=2).all(dim=0)
    assert changed.tolist() == [c == chosen for c in range(5)]


def test_class_tokens_start_from_the_checkpoints_four_and_differ_from_each_other(nano: Sam2Model) -> None:
    decoder = nano.mask_decoder
    head = MaskHead(decoder, 9)
    for c in range(9):
        assert torch.equal(
            head.hypernetworks[c].proj_in.weight, decoder.output_hypernetworks_mlps[c % 4].proj_in.weight
        )
        start = decoder.mask_tokens.weight[c % 4]
        mine = head.mask_tokens.weight[c]
        assert 0 < (mine - start).norm() < 0.3 * start.norm()
    assert len(torch.unique(head.mask_tokens.weight, dim=0)) == 9


def test_the_head_is_a_copy_so_that_training_it_leaves_the_loaded_decoder_alone(nano: Sam2Model) -> None:
    before = {n: p.clone() for n, p in nano.mask_decoder.state_dict().items()}
    head = MaskHead(nano.mask_decoder, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1.0)
    for name, value in nano.mask_decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_whole_decoder_is_trained_unless_it_is_frozen_to_its_class_parts(nano: Sam2Model) -> None:
    head = MaskHead(nano.mask_decoder, 3)
    assert all(p.requires_grad for p in head.parameters())
    head.freeze_decoder()
    trainable = {n.split(".")[0] for n, p in head.named_parameters() if p.requires_grad}
    frozen = {n.split(".")[0] for n, p in head.named_parameters() if not p.requires_grad}
    assert trainable == {"mask_tokens", "hypernetworks"}
    assert frozen >= {"transformer", "upscale_conv1", "conv_s0", "iou_token", "obj_score_token"}
    assert not trainable & frozen


def test_the_position_code_is_that_of_transformers(sam2: Sam2Model) -> None:
    size = tuple(sam2.prompt_encoder.image_embedding_size)
    theirs = sam2.get_image_wide_positional_embeddings()
    ours = fourier_position(sam2.shared_image_embedding.positional_embedding, *size)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- pyramid head


def test_the_pyramid_head_equals_concatenating_the_levels_and_projecting_once() -> None:
    width, hidden, classes = 10, 7, 5
    head = PyramidHead(width, hidden, classes)
    torch.nn.init.normal_(head.norm.weight)
    torch.nn.init.normal_(head.norm.bias)
    fused = fused_maps(width)
    size = fused[0].shape[-2:]
    with torch.no_grad():
        wide = []
        for project, level in zip(head.project, fused, strict=True):
            x = F.gelu(F.conv2d(level, project[0].weight[:, :, None, None], project[0].bias))
            wide.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        weight = torch.cat([p[2].weight for p in head.project], dim=1)[:, :, None, None]
        joined = F.conv2d(torch.cat(wide, dim=1), weight, sum(p[2].bias for p in head.project))
        mean = joined.mean(dim=1, keepdim=True)
        spread = joined.var(dim=1, keepdim=True, correction=0)
        normed = (joined - mean) / (spread + 1e-5).sqrt()
        normed = normed * head.norm.weight[:, None, None] + head.norm.bias[:, None, None]
        expected = F.conv2d(F.gelu(normed), head.classify.weight[:, :, None, None], head.classify.bias)
        ours = head(fused)
    assert ours.shape == (2, classes, *size)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_no_frame_of_a_batch_depends_on_another(nano: Sam2Model) -> None:
    foundation = Sam2Foundation(nano, "random")
    fused = fused_maps(foundation.width, batch=3)
    mask, pyramid = MaskHead(nano.mask_decoder, 3), PyramidHead(foundation.width, 16, 3)
    with torch.no_grad():
        together = mask(fused, foundation), pyramid(fused)
        for i in range(3):
            own = [level[i : i + 1] for level in fused]
            torch.testing.assert_close(mask(own, foundation), together[0][i : i + 1], atol=1e-5, rtol=0)
            torch.testing.assert_close(pyramid(own), together[1][i : i + 1], atol=1e-5, rtol=0)
