"""The router: for each frame and pyramid level, how far each present sensor is trusted.

arXiv 2412.04220, equations 8 and 9: average each sensor's map over space, one linear layer gives a score, softmax over
the sensors, keep the top k, sum. The sum is mixed with the plain mean, which the paper's ablation needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlesam.errors import RequestError
from mlesam.model.experts import Segment


class Router(nn.Module):
    """Weights and fused maps for one pyramid level.

    Each modality has a scorer of its own, so that a sensor added later leaves the others' scorers alone.

    Args:
        modalities: in canonical order.
        width: channels of the maps.
        fusion: ``mean``, ``routed`` or ``mean+routed`` (fused = a * routed + (1 - a) * mean, a learned from 0.5).
        top_k: sensors kept; their weights are scaled to sum to 1. None: all.
    """

    def __init__(self, modalities: tuple[str, ...], width: int, fusion: str = "mean+routed", top_k: int | None = None):
        super().__init__()
        if fusion not in ("mean", "routed", "mean+routed"):
            raise RequestError(f"fusion is {fusion!r}; known: mean, routed, mean+routed.")
        self.modalities = modalities
        self.fusion = fusion
        self.top_k = top_k
        self.scorers = nn.ModuleDict()
        self.mix = nn.Parameter(torch.zeros(())) if fusion == "mean+routed" else None
        if fusion != "mean":
            self.scorers.update({m: nn.Linear(width, 1) for m in modalities})
        if len(modalities) == 1:
            self.requires_grad_(False)  # one sensor has nothing to be weighed against, so no gradient would come

    def weights(self, pooled_RC: Tensor, segments: tuple[Segment, ...], frames: list[Tensor], count: int) -> Tensor:
        """Each sensor's effective share in the fused map: (B, M) float32, 0 where absent, each row sums to 1.

        Args:
            pooled_RC: (R, C), each row's map averaged over space.
            frames: for each segment, which frame each of its rows belongs to.
            count: number of frames B.
        """
        present = torch.zeros(count, len(self.modalities), dtype=torch.bool, device=pooled_RC.device)
        scores = torch.full((count, len(self.modalities)), float("-inf"), device=pooled_RC.device)
        for segment, rows in zip(segments, frames, strict=True):
            column = torch.tensor(self.modalities.index(segment.modality), device=pooled_RC.device).expand_as(rows)
            present = present.index_put((rows, column), torch.ones_like(rows, dtype=torch.bool))
            if self.fusion != "mean":
                scorer: Any = self.scorers[segment.modality]
                score = scorer(pooled_RC[segment.start : segment.stop].to(scorer.weight.dtype))[:, 0].float()
                scores = scores.index_put((rows, column), score)
        mean = present.float() / present.sum(dim=1, keepdim=True)
        if self.fusion == "mean":
            return mean
        routed = keep_top(softmax(scores), self.top_k)
        if self.mix is None:
            return routed
        # mean + a (routed - mean): with one sensor both are 1, so the share is exactly 1 whatever a is.
        return mean + torch.sigmoid(self.mix) * (routed - mean)

    def forward(
        self, map_RCHW: Tensor, valid: tuple[int, int], segments: tuple[Segment, ...], frames: list[Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        """Fuse the maps of one level.

        Args:
            map_RCHW: (R, C, H, W), rows stacked by sensor.
            valid: height and width of the part that shows the frame; the rest is padding and not averaged.

        Returns:
            fused (B, C, H, W) and the shares (B, M).
        """
        pooled = map_RCHW[..., : valid[0], : valid[1]].float().mean(dim=(2, 3))
        shares = self.weights(pooled, segments, frames, count)
        fused = map_RCHW.new_zeros(count, *map_RCHW.shape[1:])
        parts = map_RCHW.split([s.rows for s in segments])
        for segment, rows, part in zip(segments, frames, parts, strict=True):
            share = shares[rows, self.modalities.index(segment.modality)].to(map_RCHW.dtype)
            fused = fused.index_add(0, rows, share[:, None, None, None] * part)
        return fused, shares


def softmax(scores_BM: Tensor) -> Tensor:
    """Softmax over the sensors, summed one by one: adding an absent sensor's exact zero changes no bit, so a model that
    learns a new sensor still gives the very same results without it."""
    powers = (scores_BM - scores_BM.amax(dim=1, keepdim=True).detach()).exp()
    total = powers[:, 0]
    for column in range(1, powers.shape[1]):
        total = total + powers[:, column]
    return powers / total[:, None]


def keep_top(weights_BM: Tensor, top_k: int | None) -> Tensor:
    """Keep each row's k largest weights, scaled to sum to 1. Absent sensors have weight 0 and stay there."""
    if top_k is None or top_k >= weights_BM.shape[1]:
        return weights_BM
    kept, columns = weights_BM.topk(top_k, dim=1)
    scaled = kept / kept.sum(dim=1, keepdim=True)
    if top_k == 1:
        # A single kept weight is 1 and has no gradient. Straight-through: forward 1, backward the softmax's own.
        scaled = scaled.detach() + (kept - kept.detach())
    return torch.zeros_like(weights_BM).scatter(1, columns, scaled)
