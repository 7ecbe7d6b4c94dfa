"""The router: for each frame and pyramid level, how far each present sensor is trusted.

arXiv 2412.04220, equations 8 and 9: average each sensor's map over space, one linear layer gives a score, softmax over
the sensors, keep the top k, sum. The sum is mixed with the plain mean, which the paper's ablation needs.
Beyond the paper, and optional: scores per pixel, a trust in each sensor that holds for both (``reliability.py``), and rescaling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlesam.errors import RequestError
from mlesam.model.experts import Segment
from mlesam.model.features import by_frame


class Router(nn.Module):
    """Weights and fused maps for one pyramid level.

    Each modality has a scorer of its own, so that a sensor added later leaves the others' scorers alone.

    Args:
        modalities: in canonical order.
        width: channels of the maps.
        fusion: ``mean``, ``routed`` or ``mean+routed`` (fused = a * routed + (1 - a) * mean, a learned from 0.5).
        top_k: sensors kept; their weights are scaled to sum to 1. None: all.
        per_pixel: score every pixel of the maps instead of their average.
        rescale: bring the fused map to the level of the maps it was made of. A mean of maps that differ is smaller than each of
            them, so that the heads would see another level with every set of sensors.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        width: int,
        fusion: str = "mean+routed",
        top_k: int | None = None,
        per_pixel: bool = False,
        rescale: bool = False,
    ):
        super().__init__()
        if fusion not in ("mean", "routed", "mean+routed"):
            raise RequestError(f"fusion is {fusion!r}; known: mean, routed, mean+routed.")
        self.modalities = modalities
        self.fusion = fusion
        self.top_k = top_k
        self.per_pixel = per_pixel
        self.rescale = rescale
        self.scorers = nn.ModuleDict()
        self.mix = nn.Parameter(torch.zeros(())) if fusion == "mean+routed" else None
        if fusion != "mean":
            self.scorers.update({m: nn.Linear(width, 1) for m in modalities})
        if len(modalities) == 1:
            self.requires_grad_(False)  # one sensor has nothing to be weighed against, so no gradient would come

    def weights(
        self,
        features_RHWC: Tensor,
        segments: tuple[Segment, ...],
        frames: list[Tensor],
        count: int,
        trust_R: Tensor | None = None,
    ) -> Tensor:
        """Each sensor's effective share in the fused map: (B, M, H, W) float32, 0 where absent, sums to 1 over M.

        Args:
            features_RHWC: each row's map, averaged over space (H = W = 1) where the router does not work per pixel.
            frames: for each segment, which frame each of its rows belongs to, in rising order; as many rows as frames are all.
            count: number of frames B.
            trust_R: logarithm of how far each row is trusted. A sensor's part of the mean is its trust by the sum of all
                trusts, and its score is raised by the logarithm, so that a sensor with no trust has no share in either.
        """
        shape = (count, len(self.modalities), *features_RHWC.shape[1:3])
        device = features_RHWC.device
        scores = torch.full(shape, float("-inf"), device=device)
        gates = torch.full((*shape[:2], 1, 1), float("-inf"), device=device)
        for segment, rows in zip(segments, frames, strict=True):
            column = torch.full_like(rows, self.modalities.index(segment.modality))
            score = features_RHWC.new_zeros((segment.rows, *shape[2:]), dtype=torch.float32)
            gate = score.new_zeros(segment.rows)
            if self.fusion != "mean":
                scorer: Any = self.scorers[segment.modality]
                own = features_RHWC[segment.start : segment.stop].to(scorer.weight.dtype)
                score = scorer(own)[..., 0].float()
            if trust_R is not None:
                gate = trust_R[segment.start : segment.stop].float()
                score = score + gate[:, None, None]
            scores = scores.index_put((rows, column), score)
            gates = gates.index_put((rows, column), gate[:, None, None])
        mean = softmax(gates).expand(shape)  # absent: exp(-inf) is 0
        if self.fusion == "mean":
            return mean
        routed = keep_top(softmax(scores), self.top_k)
        if self.mix is None:
            return routed
        # mean + a (routed - mean): with one sensor both are 1, so the share is exactly 1 whatever a is.
        return mean + torch.sigmoid(self.mix) * (routed - mean)

    def forward(
        self,
        map_RCHW: Tensor,
        valid: tuple[int, int],
        segments: tuple[Segment, ...],
        frames: list[Tensor],
        count: int,
        trust_R: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse the maps of one level.

        Args:
            map_RCHW: (R, C, H, W), rows stacked by sensor.
            valid: height and width of the part that shows the frame; the rest is padding and not averaged.
            trust_R: see :meth:`weights`.

        Returns:
            fused (B, C, H, W) and the shares (B, M), averaged over the frame where they differ by pixel.
        """
        # Channels last, in the order of memory, as the trunk delivers the maps: nothing is moved, in an exported graph neither.
        map_RHWC = map_RCHW.permute(0, 2, 3, 1)
        shown_RHWC = map_RHWC[:, : valid[0], : valid[1]].float()
        seen_RHWC = map_RHWC if self.per_pixel else shown_RHWC.mean(dim=(1, 2), keepdim=True)
        shares_BMHW = self.weights(seen_RHWC, segments, frames, count, trust_R)
        places = [self.modalities.index(s.modality) for s in segments]
        own_BMHW = torch.stack([shares_BMHW[:, place] for place in places], dim=1)
        # One product over the sensors of each frame, or of each pixel: the maps are read once.
        form, by = ("bmhw,bmhwc->bhwc", own_BMHW) if self.per_pixel else ("bm,bmhwc->bhwc", own_BMHW[..., 0, 0])
        fused_BHWC = torch.einsum(form, by.to(map_RHWC.dtype), by_frame(map_RHWC, frames, count))
        if self.rescale:
            share_BM = own_BMHW[..., : valid[0], : valid[1]].mean(dim=(2, 3))
            level_B = (share_BM * by_frame(_level(shown_RHWC), frames, count)).sum(dim=1)
            growth_B = level_B / _level(fused_BHWC[:, : valid[0], : valid[1]].float()).clamp(min=1e-12)
            several_B = by_frame(torch.ones_like(map_RHWC[:, 0, 0, 0]), frames, count).sum(dim=1) > 1
            growth_B = torch.where(several_B, growth_B, 1.0)  # a single map comes back as it is, without a rounding
            fused_BHWC = fused_BHWC * growth_B[:, None, None, None].to(fused_BHWC.dtype)
        return fused_BHWC.permute(0, 3, 1, 2), shares_BMHW[..., : valid[0], : valid[1]].mean(dim=(2, 3))


def _level(maps_NHWC: Tensor) -> Tensor:
    """(N,) length of each map as one vector; of maps of one size these compare as their root mean squares do."""
    return torch.linalg.vector_norm(maps_NHWC, dim=(1, 2, 3))


def softmax(scores_BM: Tensor) -> Tensor:
    """Softmax over the sensors (dimension 1), summed one by one: adding an absent sensor's exact zero changes no bit, so a model
    that learns a new sensor still gives the very same results without it."""
    amounts_BM = (scores_BM - scores_BM.amax(dim=1, keepdim=True).detach()).exp()
    total = amounts_BM[:, 0]
    for column in range(1, amounts_BM.shape[1]):
        total = total + amounts_BM[:, column]
    return amounts_BM / total[:, None]


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
