"""What can be seen of a sensor that lies, and how far it is trusted for it.

A router that only ever saw sound sensors does not notice a broken one. Here are numbers that show it: statistics of a sensor's
own frame, and how well its maps agree with those of the frame's other sensors. From them a small network per sensor says how
far to trust it, 0 to 1, which multiplies the sensor's share in the fused maps, in the plain mean as well. ``training/trust.py``
fits it after the training, on sound frames and on frames broken on purpose; until then all sensors are trusted alike.

Shape letters: R rows (one per frame and sensor), S signs, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.model.experts import Segment
from mlesam.model.features import by_frame

FRAME_SIGNS, ANSWER_SIGNS, AGREEMENT_SIGNS = 10, 3, 18
SIGNS = FRAME_SIGNS + ANSWER_SIGNS + AGREEMENT_SIGNS
REACH = 10.0
"""Standard deviations beyond which a sign says no more."""
FARTHEST = 4.0
"""Standard deviations to which the outliers of :meth:`Reliability.fit` reach."""


def frame_signs(image_RCHW: Tensor) -> Tensor:
    """(R, 10) float32 statistics of each row's normalised image, none of them growing without bound.

    Level and spread; shares of pixels at the lowest and highest value (black, saturated, nothing measured); steps to the right,
    downwards and against the mean of 3x3 (noise, blur); spread of the means of rows, and share of rows without any change
    (dead rows, drift); weight of the outliers (salt and pepper).
    """
    grey = image_RCHW.detach().float().mean(dim=1)
    height, width = grey.shape[1:]
    mean = grey.mean(dim=(1, 2))
    centred = grey - mean[:, None, None]
    squared = centred.square()
    deviation = squared.mean(dim=(1, 2)).sqrt()
    scale = 1 / (deviation + 1e-3)  # what is linear is taken to unit spread in the end, which spares a pass
    lowest, highest = torch.aminmax(grey, dim=2)
    low, high = lowest.amin(dim=1), highest.amax(dim=1)
    reach = 1e-3 * (high - low)
    around = _three(_three(centred, 1), 2) / (
        _three(grey.new_ones(height), 0)[:, None] * _three(grey.new_ones(width), 0)
    )
    signs = [
        mean, deviation,
        _share(grey <= (low + reach)[:, None, None]), _share(grey >= (high - reach)[:, None, None]),
        scale * _size(centred.diff(dim=2)), scale * _size(centred.diff(dim=1)), scale * _size(centred - around),
        scale * centred.mean(dim=2).square().mean(dim=1).sqrt(), (highest - lowest <= reach[:, None]).float().mean(dim=1),
        scale.square() * squared.square().mean(dim=(1, 2)).sqrt(),
    ]  # fmt: skip
    stacked = torch.stack(signs, dim=1)
    return stacked.sign() * stacked.abs().log1p()


def _three(x: Tensor, dim: int) -> Tensor:
    """The sum of each number and of its neighbours along a dimension; at an end there is one neighbour, or none."""
    padded = F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [1, 1])
    return padded.narrow(dim, 0, x.shape[dim]) + x + padded.narrow(dim, 2, x.shape[dim])


def _share(there_RHW: Tensor) -> Tensor:
    return there_RHW.float().mean(dim=(1, 2))


def _size(x_RHW: Tensor) -> Tensor:
    """(R,) mean of the amounts; 0 where there is none."""
    return x_RHW.abs().mean(dim=(1, 2)) if min(x_RHW.shape[1:]) else x_RHW.new_zeros(len(x_RHW))


def answer_signs(probabilities_RKHW: Tensor) -> Tensor:
    """(R, 3) float32, how sure a row's own coarse answer is: mean of the largest class probability, mean entropy over the pixels,
    and entropy of the mean over the pixels (low where one class is seen everywhere).

    Args:
        probabilities_RKHW: of K classes, the part that shows the frame.
    """
    p = probabilities_RKHW
    mean = p.mean(dim=(2, 3))
    return torch.stack([p.amax(dim=1).mean(dim=(1, 2)), _entropy(p).mean(dim=(1, 2)), _entropy(mean)], dim=1)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=1)


def agreement(
    maps: Sequence[Tensor],
    probabilities_RKHW: Tensor,
    segments: Sequence[Segment],
    frames: Sequence[Tensor],
    count: int,
) -> Tensor:
    """(R, 18) float32: how well a row agrees with those of the same frame's other sensors; 0 where there is no other.

    A sensor that is stale or moved shows nothing wrong by itself, but it disagrees. Six numbers for each pair of sensors: of each
    of two maps the mean over the pixels of the cosine between their features, and the correlation of the whole maps; of
    their own coarse answers how much more they agree than by chance (as Cohen's kappa), and the correlation. Of each number
    the mean, the largest and the smallest over the other sensors.

    Args:
        maps: two maps (R, C, h, w), probabilities_RKHW: of K classes; of all of them the part that shows the frame.
        frames, count: which of so many frames B each segment's rows belong to.
    """

    def products(x_RPC: Tensor) -> Tensor:
        """(B, M, M) of each pair of a frame's sensors."""
        x_BML = by_frame(x_RPC, frames, count).flatten(2)
        return x_BML @ x_BML.transpose(1, 2)

    numbers = []
    for x_RPC in (_pixels(m) for m in maps):
        x_BPMC = by_frame(x_RPC, frames, count).transpose(1, 2)
        pixels_BPMM = x_BPMC @ x_BPMC.transpose(2, 3)
        # Without each channel's mean: from the products at hand, which reads the maps no second time.
        own = products(x_RPC.mean(dim=1, keepdim=True)) * x_RPC.shape[1]
        numbers += [_cosines(pixels_BPMM).mean(dim=1), _correlation(pixels_BPMM.sum(dim=1), own)]
    p_RPK = _pixels(probabilities_RKHW)
    mean_R1K = p_RPK.mean(dim=1, keepdim=True)
    chance, agreed = products(mean_R1K), products(p_RPK) / p_RPK.shape[1]
    numbers += [(agreed - chance) / (1 - chance).clamp(min=1e-3), _cosines(products(p_RPK - mean_R1K))]
    found_BMM6 = torch.stack(numbers, dim=-1)
    frame_R, sensor_R = torch.cat(list(frames)), torch.cat([torch.full_like(f, i) for i, f in enumerate(frames)])
    there_BM = by_frame(torch.ones_like(frame_R, dtype=torch.bool), frames, count)
    oneself = torch.eye(len(segments), dtype=torch.bool, device=p_RPK.device)
    other = (there_BM[:, :, None] & there_BM[:, None, :] & ~oneself)[..., None]
    most = torch.where(other, found_BMM6, float("-inf")).amax(dim=2)
    least = torch.where(other, found_BMM6, float("inf")).amin(dim=2)
    mean = torch.where(other, found_BMM6, 0.0).sum(dim=2) / other.sum(dim=2).clamp(min=1)
    signs = torch.where(other.any(dim=2), torch.cat([mean, most, least], dim=2), 0.0)
    return signs[frame_R, sensor_R]


def _pixels(x_RCHW: Tensor) -> Tensor:
    """(R, H W, C) float32: in the order of memory, as the trunk delivers it."""
    return x_RCHW.detach().float().permute(0, 2, 3, 1).flatten(1, 2)


def _cosines(products_MM: Tensor) -> Tensor:
    """Of the products of vectors with each other (..., M, M) those of the vectors brought to length 1."""
    length = products_MM.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().clamp(min=1e-12)
    return products_MM / length[..., :, None] / length[..., None, :]


def _correlation(products_MM: Tensor, of_means_MM: Tensor) -> Tensor:
    """Cosines of vectors without their means, from the products with and of the means. What is left of a length where rounding
    is all that differs counts as nothing."""
    left_MM = products_MM - of_means_MM
    rounding_M = 1e-6 * products_MM.diagonal(dim1=-2, dim2=-1)
    constant_M = left_MM.diagonal(dim1=-2, dim2=-1) <= rounding_M
    found_MM = _cosines(left_MM).clamp(-1, 1)
    return torch.where(constant_M[..., :, None] | constant_M[..., None, :], 0.0, found_MM)


class Reliability(nn.Module):
    """From a sensor's signs to the logarithm of how far it is trusted (0 to 1).

    The signs are first brought to mean 0 and covariance 1 over sound frames, so that what no sound frame shows is far out. Fresh,
    it trusts every frame alike.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIGNS))
        self.register_buffer("whiten", torch.eye(SIGNS))
        self.layers = nn.Sequential(nn.Linear(SIGNS, hidden), nn.GELU(), nn.Linear(hidden, 1))
        last = self.layers[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.requires_grad_(False)  # no part of the training proper

    def logit(self, signs_RS: Tensor) -> Tensor:
        far = (signs_RS.to(self.mean.dtype) - self.mean) @ self.whiten
        return self.layers(far.clamp(-REACH, REACH) / 3)[:, 0].float()

    def forward(self, signs_RS: Tensor) -> Tensor:
        """(R,) float32, the logarithm of the trust."""
        return F.logsigmoid(self.logit(signs_RS))

    @torch.enable_grad()
    def fit(self, signs_RS: Tensor, trust_R: Tensor, seed: int = 0, steps: int = 400) -> None:
        """Learn from rows whose trust is known, and that whatever lies far from the sound ones deserves less.

        The second part is outlier exposure (Hendrycks et al., arXiv 1812.04606): random points around the sound rows, k
        standard deviations away in each sign or further in a few of them, deserve exp(-k). Without it the network says
        anything at all about a fault it never saw.

        Args:
            signs_RS: of sound and of broken rows. trust_R: 1 for sound rows, less for broken ones.
        """
        signs, trust = signs_RS.detach().float().cpu(), trust_R.float().cpu()
        sound = trust == 1
        if int(sound.sum()) < 2 or bool(sound.all()):
            return
        middle, spread = signs[sound].mean(dim=0), signs[sound].std(dim=0) + 1e-2
        scaled = (signs[sound] - middle) / spread
        covariance = torch.cov(scaled.T) + 0.1 * torch.eye(SIGNS)
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)) / spread[:, None]
        device = self.mean.device
        self.cpu()
        self.mean.copy_(middle)
        self.whiten.copy_(whiten)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        self.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=1e-2, weight_decay=1e-2)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        for _ in range(steps):
            far = torch.rand(int(sound.sum()), 1, generator=generator) * FARTHEST
            share = torch.rand(
                len(far), 1, generator=generator
            )  # of the signs that are strange: all, some, or one of them
            moved = (torch.rand(len(far), SIGNS, generator=generator) < share).float()
            step = torch.randn(len(far), SIGNS, generator=generator) * moved * spread
            strange = signs[sound] + far * step * (SIGNS / moved.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
            known = loss(self.logit(signs), trust, reduction="none")
            total = known[sound].mean() + known[~sound].mean() + loss(self.logit(strange), torch.exp(-far[:, 0]))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        optimizer.zero_grad()
        self.requires_grad_(False)
        self.to(device)
