"""The two heads: SAM2's mask decoder with one token per class, and the multi-scale MLP head."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from mlesam.model.foundation import LEVEL_STRIDES, Foundation


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) maps or logits to (B, C, H, W)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def fourier_position(matrix: Tensor, height: int, width: int) -> Tensor:
    """SAM's positional encoding of a grid: (1, C, H, W) from the (2, C / 2) matrix, coordinates in -1..1."""
    y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
    x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    angle = 2 * math.pi * ((2 * grid - 1) @ matrix)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).permute(2, 0, 1)[None]


class MaskHead(nn.Module):
    """SAM2's mask decoder as a class head: exactly one mask token per class, no prompt, no IoU or object-score head.

    The decoder's transformer, upscaling and token embeddings start from the checkpoint. The tokens of the IoU and
    object-score outputs stay in the sequence, since the pre-trained attention expects them. Class c starts from mask
    token c mod 4 of the checkpoint (and its MLP), with a little noise that tells the copies apart.
    """

    def __init__(self, decoder: Sam2MaskDecoder, num_classes: int) -> None:
        super().__init__()
        decoder = copy.deepcopy(decoder)
        self.transformer = decoder.transformer
        self.conv_s0, self.conv_s1 = decoder.conv_s0, decoder.conv_s1
        self.upscale_conv1, self.upscale_conv2 = decoder.upscale_conv1, decoder.upscale_conv2
        self.upscale_layer_norm = decoder.upscale_layer_norm
        self.obj_score_token, self.iou_token = decoder.obj_score_token, decoder.iou_token
        width = decoder.mask_tokens.embedding_dim
        originals = decoder.mask_tokens.num_embeddings
        self.mask_tokens = nn.Embedding(num_classes, width)
        self.hypernetworks = nn.ModuleList(
            copy.deepcopy(decoder.output_hypernetworks_mlps[c % originals]) for c in range(num_classes)
        )
        with torch.no_grad():
            start = decoder.mask_tokens.weight[torch.arange(num_classes) % originals]
            noise = torch.randn_like(start) * 0.1 * start.std().clamp(min=1e-3)
            self.mask_tokens.weight.copy_(start + noise)
        self.requires_grad_(True)

    def freeze_decoder(self) -> None:
        """Leave only the class tokens and their MLPs trainable."""
        self.requires_grad_(False)
        self.mask_tokens.requires_grad_(True)
        self.hypernetworks.requires_grad_(True)

    def forward(self, fused: list[Tensor], foundation: Foundation) -> Tensor:
        """Fused maps (B, C, H, W) at strides 4, 8 and 16 to class logits (B, classes, H, W) at stride 4."""
        fine, middle, coarse = fused
        batch, _, height, width = coarse.shape
        image = coarse + foundation.no_memory + foundation.no_mask
        position = fourier_position(foundation.position, height, width).to(image.dtype)
        tokens = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens, image = self.transformer(
            point_embeddings=tokens.expand(batch, 1, -1, -1),
            image_embeddings=image,
            image_positional_embeddings=position.expand(batch, -1, -1, -1),
            attention_similarity=None,
        )
        image = image.transpose(2, 3).reshape(batch, -1, height, width)
        image = self.upscale_layer_norm(self.upscale_conv1(image) + self.conv_s1(middle))
        image = F.gelu(self.upscale_conv2(F.gelu(image)) + self.conv_s0(fine))
        classes = [mlp(tokens[:, 0, 2 + c]) for c, mlp in enumerate(self.hypernetworks)]
        return torch.einsum("bkc,bchw->bkhw", torch.stack(classes, dim=1), image)


class PyramidHead(nn.Module):
    """An MLP for each level, all brought to stride 4, joined and classified (after SegFormer's head).

    Joining by concatenation and a 1x1 projection equals a sum of one projection per level. It is done per level before
    upsampling, where maps are 4 and 16 times smaller.

    Args:
        width: channels of the fused maps. hidden: channels inside.
    """

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in LEVEL_STRIDES
        )
        self.norm = nn.LayerNorm(hidden)  # over channels only: no frame and no pixel depends on another
        self.classify = nn.Linear(hidden, num_classes)

    def forward(self, fused: Sequence[Tensor]) -> Tensor:
        """Fused maps (B, C, H, W), finest first, to class logits (B, classes, H, W) at the finest level."""
        fine, *coarser = (p(m.permute(0, 2, 3, 1)) for p, m in zip(self.project, fused, strict=True))
        middle, coarse = (at_size(x.permute(0, 3, 1, 2), fine.shape[1:3]) for x in coarser)
        joined = fine + (middle + coarse).permute(0, 2, 3, 1)
        return self.classify(F.gelu(self.norm(joined))).permute(0, 3, 1, 2)

    def coarse(self, maps: Sequence[Tensor]) -> Tensor:
        """The answer at the coarsest level alone, for a sixteenth of the cost or less: finer maps are averaged down to it.

        Args:
            maps: (R, C, H, W), finest first; each side a multiple of the coarsest one's.

        Returns:
            Class probabilities (R, classes, H, W), float32.
        """
        height, width = maps[-1].shape[-2:]
        small = [F.adaptive_avg_pool2d(m, (height, width)) for m in maps[:-1]]
        return self.forward([*small, maps[-1]]).float().softmax(dim=1)
