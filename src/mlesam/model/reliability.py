"""What can be seen of a sensor that is broken, without knowing the scene: statistics of its frame, and whether the others agree.

A feature map averaged over space says what a sensor shows. It says little about a frame that is black, washed out, full of noise,
or of another place: the trunk makes plausible features of anything. These numbers say it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.model.experts import Segment

FRAME_SIGNS, AGREEMENT_SIGNS = 10, 2
SIGNS = FRAME_SIGNS + AGREEMENT_SIGNS


def frame_signs(image_RCHW: Tensor) -> Tensor:
    """(R, 10) float32 statistics of each row's normalised image, none of them growing without bound.

    Level and spread; shares of pixels at the lowest and highest value (black, saturated, nothing measured); steps to the right,
    downwards and against the mean of 3x3 (noise, blur); spread of the means of rows, and share of rows without any change
    (dead rows, drift); weight of the outliers (salt and pepper).
    """
    grey = image_RCHW.detach().float().mean(dim=1)
    mean = grey.mean(dim=(1, 2), keepdim=True)
    deviation = (grey - mean).square().mean(dim=(1, 2), keepdim=True).sqrt()
    low, high = grey.amin(dim=(1, 2), keepdim=True), grey.amax(dim=(1, 2), keepdim=True)
    reach = 1e-3 * (high - low)
    z = (grey - mean) / (deviation + 1e-3)
    around = F.avg_pool2d(z[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    flat_rows = (grey.amax(dim=2) - grey.amin(dim=2) <= reach[:, :, 0]).float()
    signs = [
        mean[:, 0, 0], deviation[:, 0, 0],
        (grey <= low + reach).float().mean(dim=(1, 2)), (grey >= high - reach).float().mean(dim=(1, 2)),
        _steps(z, 2), _steps(z, 1), (z - around).abs().mean(dim=(1, 2)),
        z.mean(dim=2).square().mean(dim=1).sqrt(), flat_rows.mean(dim=1), z.pow(4).mean(dim=(1, 2)).sqrt(),
    ]  # fmt: skip
    stacked = torch.stack(signs, dim=1)
    return stacked.sign() * stacked.abs().log1p()


def _steps(z: Tensor, dim: int) -> Tensor:
    if z.shape[dim] < 2:
        return z.new_zeros(len(z))
    return z.diff(dim=dim).abs().mean(dim=(1, 2))


def agreement(
    map_RCHW: Tensor, valid: tuple[int, int], segments: Sequence[Segment], frames: Sequence[Tensor]
) -> Tensor:
    """(R, 2) float32: mean and largest cosine between a row's map and those of the same frame's other sensors; 0 where there is
    no other.

    A sensor that lies (stale, shifted, of another scene) shows nothing wrong by itself. It disagrees.

    Args:
        valid: height and width of the part that shows the frame.
    """
    maps = F.normalize(map_RCHW[..., : valid[0], : valid[1]].detach().float(), dim=1)
    parts = maps.split([s.rows for s in segments])
    found: list[Tensor] = []
    for i, (part, own) in enumerate(zip(parts, frames, strict=True)):
        total, most, others = (part.new_zeros(len(part)) for _ in range(3))
        for j, (other, theirs) in enumerate(zip(parts, frames, strict=True)):
            if i == j:
                continue
            same = own[:, None] == theirs[None, :]
            shared = same.any(dim=1)
            cosine = (part * other[same.int().argmax(dim=1)]).sum(dim=1).mean(dim=(1, 2))
            cosine = torch.where(shared, cosine, 0.0)
            total, others = total + cosine, others + shared
            most = torch.where(shared & ((others == 1) | (cosine > most)), cosine, most)
        found.append(torch.stack([total / others.clamp(min=1), most], dim=1))
    return torch.cat(found)


class Reliability(nn.Module):
    """From the signs to two numbers: what is added to a sensor's score, and the gate (0 to 1) in front of the plain mean.

    Starts by telling no two sensors apart: score 0, one gate for all.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIGNS, hidden), nn.GELU(), nn.Linear(hidden, 2))
        last = self.layers[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, signs_RS: Tensor) -> tuple[Tensor, Tensor]:
        score, gate = self.layers(signs_RS.to(self.layers[0].weight.dtype)).float().unbind(dim=1)  # type: ignore[union-attr]
        return score, gate
