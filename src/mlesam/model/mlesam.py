"""MLESAM: stems, experts in the frozen trunk, aligners, routers, and the two heads, as one plain ``torch.nn.Module``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.config import ModelConfig
from mlesam.errors import RequestError, did_you_mean
from mlesam.model.aligner import Aligners
from mlesam.model.experts import SHARED, Experts, Segment, unchanged
from mlesam.model.foundation import LEVEL_STRIDES, load_foundation
from mlesam.model.heads import MaskHead, PyramidHead
from mlesam.model.reliability import Reliability, agreement, answer_signs, frame_signs
from mlesam.model.router import Router
from mlesam.sample import Batch
from mlesam.sensors.spec import canonical_order


@dataclass(frozen=True)
class Features:
    """What the trunk says about a batch, before the sensors are fused.

    Any subset of the sensors can be decoded from it without running the trunk again.

    Attributes:
        levels: three maps (R, C, h, w) at strides 4, 8, 16, aligned, rows stacked by sensor.
        segments: which rows belong to which sensor.
        frames: for each segment, (n,) the frame of each row.
        count: frames in the batch; size: height and width of the input in pixels.
        signs: (R, 10) statistics of each row's image, where the router looks at its reliability.
    """

    levels: tuple[Tensor, ...]
    segments: tuple[Segment, ...]
    frames: tuple[Tensor, ...]
    count: int
    size: tuple[int, int]
    signs: Tensor | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(s.modality for s in self.segments)

    def keep(self, rows: Mapping[str, Tensor]) -> Features:
        """Only these rows: ``{modality: (n,) bool}`` over each segment's rows. Sensors left out are absent."""
        picked, segments, frames, start = [], [], [], 0
        for segment, owners in zip(self.segments, self.frames, strict=True):
            if segment.modality not in rows:
                continue
            index = torch.nonzero(rows[segment.modality], as_tuple=True)[0]
            if not len(index):
                continue
            picked.append(index + segment.start)
            frames.append(owners[index])
            segments.append(Segment(segment.modality, start, start + len(index)))
            start += len(index)
        if not segments:
            raise RequestError("no sensor is left; at least one is needed.")
        index = torch.cat(picked)
        levels = tuple(level.index_select(0, index) for level in self.levels)
        signs = None if self.signs is None else self.signs[index]
        return replace(self, levels=levels, segments=tuple(segments), frames=tuple(frames), signs=signs)

    def covered(self) -> Tensor:
        """(B,) bool: which frames have at least one sensor left."""
        seen = torch.zeros(self.count, dtype=torch.bool, device=self.levels[0].device)
        for owners in self.frames:
            seen[owners] = True
        return seen

    def check_covered(self) -> None:
        """RequestError where a frame has no sensor left: its fused map would be 0 / 0."""
        if any(len(owners) == self.count for owners in self.frames):
            return  # the shapes say it already, without waiting for the device
        covered = self.covered()
        if not bool(covered.all()):
            blind = int(torch.nonzero(~covered)[0])
            raise RequestError(
                f"frame {blind} of {self.count} has none of {', '.join(self.modalities)}; decode only the frames that do: "
                "features.of_frames(features.covered())."
            )

    def of_frames(self, wanted: Tensor) -> Features:
        """Only the frames where ``wanted`` (B,) is true, numbered anew."""
        kept = self.keep({s.modality: wanted[f] for s, f in zip(self.segments, self.frames, strict=True)})
        number = torch.cumsum(wanted, dim=0) - 1
        return replace(kept, frames=tuple(number[f] for f in kept.frames), count=int(wanted.sum()))

    def apart(self) -> Features:
        """Every row as a frame of its own: each sensor alone, all of them decoded at once."""
        rows = len(self.levels[0])
        frames = torch.arange(rows, device=self.levels[0].device).split([s.rows for s in self.segments])
        return replace(self, frames=tuple(frames), count=rows)

    @staticmethod
    def join(parts: Iterable[Features]) -> Features:
        """Features of the same frames as one encode of all their sensors would give them. Where several parts have a sensor of
        a frame, the last one counts, so that what changed can be put in the place of what was."""
        parts = list(parts)
        found: dict[str, list[tuple[Features, Segment, Tensor]]] = {}
        for part in parts:
            for segment, owners in zip(part.segments, part.frames, strict=True):
                found.setdefault(segment.modality, []).append((part, segment, owners))
        levels: list[list[Tensor]] = [[] for _ in parts[0].levels]
        signs: list[Tensor] = []
        segments, frames, start = [], [], 0
        for modality in canonical_order(found):
            own = found[modality]
            owners = torch.cat([o for _, _, o in own])
            order = torch.arange(len(owners), device=owners.device)
            if len(own) > 1:
                latest = {int(frame): row for row, frame in enumerate(owners.tolist())}
                order = torch.tensor([latest[frame] for frame in sorted(latest)], device=owners.device)
            for i, joined in enumerate(levels):
                joined.append(torch.cat([p.levels[i][s.start : s.stop] for p, s, _ in own])[order])
            if all(p.signs is not None for p, _, _ in own):
                signs.append(torch.cat([p.signs[s.start : s.stop] for p, s, _ in own if p.signs is not None])[order])
            frames.append(owners[order])
            segments.append(Segment(modality, start, start + len(order)))
            start += len(order)
        return replace(
            parts[0],
            levels=tuple(torch.cat(maps) for maps in levels),
            segments=tuple(segments),
            frames=tuple(frames),
            signs=torch.cat(signs) if len(signs) == len(found) else None,
        )

    def select(self, modalities: Iterable[str]) -> Features:
        """Only these sensors. To be decoded, every frame must have one of them: see :meth:`covered`."""
        wanted = set(modalities)
        if wanted >= set(self.modalities):
            return self
        rows = {
            s.modality: torch.ones(s.stop - s.start, dtype=torch.bool, device=self.levels[0].device)
            for s in self.segments
            if s.modality in wanted
        }
        return self.keep(rows)


@dataclass(frozen=True)
class Output:
    """What the model returns.

    Attributes:
        mask_logits, pyramid_logits: each head's class logits (B, C, H / 4, W / 4) on the padded frame.
        shares: (B, levels, M) each sensor's effective share in the fused maps, canonical order, 0 where absent.
        size: height and width of the input; combine: rule that joins the heads.
    """

    mask_logits: Tensor
    pyramid_logits: Tensor
    shares: Tensor
    size: tuple[int, int]
    combine: str

    @property
    def combined(self) -> Tensor:
        """Both heads joined, at stride 4."""
        if self.combine == "mask":
            return self.mask_logits
        if self.combine == "pyramid":
            return self.pyramid_logits
        if self.combine == "probabilities":
            both = torch.stack([self.mask_logits.log_softmax(1), self.pyramid_logits.log_softmax(1)])
            return both.logsumexp(dim=0) - math.log(2.0)
        return (self.mask_logits + self.pyramid_logits) / 2

    @property
    def logits(self) -> Tensor:
        """(B, C, H, W) class logits at the input's size."""
        return self.at_input_size(self.combined)

    def at_input_size(self, logits: Tensor) -> Tensor:
        """Upsample stride-4 logits and cut the padding off."""
        full = F.interpolate(logits.float(), scale_factor=float(LEVEL_STRIDES[0]), mode="bilinear", align_corners=False)
        return full[..., : self.size[0], : self.size[1]]


def _valid(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the part of each level that shows the frame; the rest is padding."""
    return [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in LEVEL_STRIDES]


def belongs_to(name: str, modality: str) -> bool:
    """Whether a tensor of a model is one sensor's own: of its stem, expert, aligner, scorers or reliability."""
    parts = ("stems", "experts", "aligners", "reliability")
    return name.startswith(tuple(f"{part}.{modality}." for part in parts)) or f".scorers.{modality}." in name


class Stem(nn.Module):
    """1x1 projection from any number of channels to the trunk's three.

    Starts as an average: output i averages the i-th third of the channels, so that one channel is shown three times
    and a hyperspectral cube as a false-colour picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, 3, kernel_size=1)
        edges = torch.arange(channels + 1) / channels * 3
        low, high = edges[:-1], edges[1:]
        third = torch.arange(3)[:, None]
        overlap = (torch.minimum(high, third + 1) - torch.maximum(low, third)).clamp(min=0)
        with torch.no_grad():
            self.project.weight.copy_((overlap / overlap.sum(1, keepdim=True))[:, :, None, None])
            nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.project(image)


class MLESAM(nn.Module):
    """Mixture of LoRA experts on SAM2 for semantic segmentation with any set of aligned sensors (arXiv 2412.04220).

    Args:
        sensors: ``{modality: channels}``; the order does not matter.
        num_classes: C.
        config: foundation, rank, fusion, heads.
        seed: draws the weights of a preset foundation, and what other foundations do not bring.

    Example:
        >>> model = MLESAM({"rgb": 3, "depth": 1}, num_classes=5)
        >>> output = model({"rgb": torch.rand(1, 3, 64, 64), "depth": torch.rand(1, 1, 64, 64)})
        >>> output.logits.shape
        torch.Size([1, 5, 64, 64])
    """

    def __init__(
        self, sensors: Mapping[str, int], num_classes: int, config: ModelConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        config = config or ModelConfig()
        if not sensors:
            raise RequestError("a model needs at least one sensor; give {modality: channels}.")
        if num_classes < 2:
            raise RequestError(f"a model needs at least 2 classes, not {num_classes}.")
        for modality in sensors:
            taken = hasattr(nn.ModuleDict(), modality) or hasattr(Experts, modality) or modality == SHARED
            if not modality or "." in modality or taken:
                raise RequestError(
                    f"a sensor cannot be called {modality!r}: names have no dot and are no attribute of torch.nn.Module, nor "
                    "'all'; rename it."
                )
        self.config = config
        self.modalities = canonical_order(sensors)
        self.channels = {m: int(sensors[m]) for m in self.modalities}
        self.num_classes = num_classes
        loaded = load_foundation(config.foundation, config.revision, seed)
        self.foundation = loaded.foundation
        self.foundation_sha256 = self.foundation.sha256
        self.stems = nn.ModuleDict({m: Stem(c) for m, c in self.channels.items() if c != 3})
        self.experts = Experts(self.modalities, self.foundation.projections, config)
        width = self.foundation.width
        self.aligners = Aligners(self.modalities if config.align else (), width, len(LEVEL_STRIDES))
        routing = (config.fusion, config.top_k, config.router == "pixel", config.rescale)
        self.routers = nn.ModuleList(Router(self.modalities, width, *routing) for _ in LEVEL_STRIDES)
        self.merged: str | None = None
        self._plain_weights: dict[tuple[int, str], Tensor] = {}
        self.mask_head = MaskHead(loaded.decoder, num_classes)
        self.pyramid_head = PyramidHead(width, config.pyramid_width or width, num_classes)
        weighed = self.modalities if config.reliability and len(self.modalities) > 1 else ()
        self.reliability = nn.ModuleDict({m: Reliability() for m in weighed})
        if config.mask_decoder == "freeze":
            if loaded.decoder_is_drawn:
                raise RequestError(
                    f"model.mask_decoder is freeze, but {self.foundation.source} brings no mask decoder; let it be trained."
                )
            self.mask_head.freeze_decoder()
        if config.train == "all":
            self.foundation.requires_grad_(True)

    def own_names(self, modality: str) -> list[str]:
        """Names of the tensors that belong to one sensor: stem, expert, aligner, and what the routers score it with."""
        return [name for name in self.state_dict() if belongs_to(name, modality)]

    def train_only(self, modalities: Iterable[str]) -> MLESAM:
        """Freeze everything but what belongs to these sensors."""
        chosen = {name for modality in modalities for name in self.own_names(modality)}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        return self

    def train(self, mode: bool = True) -> MLESAM:
        if mode and self.merged is not None:
            raise RequestError(f"the expert of {self.merged} is merged into the trunk; call unmerge() before training.")
        super().train(mode)
        if self.config.train != "all":
            self.foundation.eval()
        for expert in self.experts.values():  # one that is not trained has no dropout either
            expert.train(mode and any(p.requires_grad for p in expert.parameters()))
        return self

    @torch.no_grad()
    def merge(self, modality: str) -> MLESAM:
        """Add one sensor's expert to the trunk's own weights, for inference at the cost of the bare foundation.

        Until :meth:`unmerge` the model takes this sensor alone (every sensor, if they share one expert), and the same
        logits come out within rounding.
        """
        if modality not in self.modalities:
            raise RequestError(f"this model has no sensor {modality!r}{did_you_mean(modality, self.modalities)}")
        if self.merged is not None:
            raise RequestError(f"the expert of {self.merged} is merged already; call unmerge() first.")
        self.eval()
        self.merged = modality
        for index, block in enumerate(self.experts.of(modality).blocks if len(self.experts) else ()):
            for name, update in block.items():  # type: ignore[operator]
                weight = self.foundation.weight(index, name)
                self._plain_weights[index, name] = weight.clone()
                weight += update.matrix().to(weight.dtype)
        return self

    @torch.no_grad()
    def unmerge(self) -> MLESAM:
        """Undo :meth:`merge`. The trunk's weights are again what they were, bit for bit."""
        for (index, name), plain in self._plain_weights.items():
            self.foundation.weight(index, name).copy_(plain)
        self._plain_weights.clear()
        self.merged = None
        return self

    @property
    def saved_names(self) -> list[str]:
        """Names of the tensors a checkpoint holds: everything but what of the foundation stayed frozen."""

        def frozen(name: str) -> bool:
            return name.startswith("foundation.") and not self.foundation.adds(name.removeprefix("foundation."))

        return [name for name in self.state_dict() if self.config.train == "all" or not frozen(name)]

    def parameter_summary(self) -> str:
        total = sum(p.numel() for p in self.parameters())
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.1%})"

    def encode(self, batch: Batch) -> Features:
        """All present sensors of a batch through the trunk, as one stacked pass. Absent ones are never computed."""
        unknown = [m for m in batch.images if m not in self.modalities]
        if unknown:
            raise RequestError(f"this model has no sensor {unknown[0]!r}{did_you_mean(unknown[0], self.modalities)}")
        present = [m for m in self.modalities if m in batch.images and len(batch.images[m])]
        if not present:
            raise RequestError(f"no sensor was given; this model needs at least one of {', '.join(self.modalities)}.")
        if self.merged is not None and not self.experts.shared and present != [self.merged]:
            raise RequestError(
                f"the expert of {self.merged} is merged into the trunk, so this model takes that sensor alone; call unmerge() "
                f"to use {', '.join(present)}."
            )
        self._check_coverage(batch, present)
        height, width = batch.size
        stride = self.foundation.stride
        padding = (0, -width % stride, 0, -height % stride)
        maps, segments, signs, start = [], [], [], 0
        for modality in present:
            image = batch.images[modality]
            self._check_image(modality, image, (height, width))
            if len(self.reliability):
                signs.append(frame_signs(image))
            if modality in self.stems:
                image = self.stems[modality](image)
            maps.append(F.pad(image, padding))
            segments.append(Segment(modality, start, start + len(image)))
            start += len(image)
        stacked = maps[0] if len(maps) == 1 else torch.cat(maps)
        segments_ = tuple(segments)
        levels = self.foundation(stacked, unchanged if self.merged else self.experts.on(segments_))
        frames = tuple(batch.frames[m].to(stacked.device) for m in present)
        return Features(
            self.aligners(levels, segments_),
            segments_,
            frames,
            len(batch),
            (height, width),
            torch.cat(signs) if signs else None,
        )

    def _check_coverage(self, batch: Batch, present: list[str]) -> None:
        seen = {int(i) for m in present for i in batch.frames[m].tolist()}
        if len(seen) < len(batch):
            blind = next(i for i in range(len(batch)) if i not in seen)
            raise RequestError(f"frame {batch.ids[blind]!r} has none of this model's sensors; it needs at least one.")

    def _check_image(self, modality: str, image: Tensor, size: tuple[int, int]) -> None:
        if image.ndim != 4 or image.shape[1] != self.channels[modality]:
            raise RequestError(
                f"{modality} has the shape {tuple(image.shape)}; this model needs (frames, {self.channels[modality]}, "
                "height, width)."
            )
        if tuple(image.shape[-2:]) != size:
            found = f"{image.shape[-1]}x{image.shape[-2]}"
            raise RequestError(
                f"{modality} is {found} pixels, but another sensor is {size[1]}x{size[0]}; align them first."
            )

    def signs(self, features: Features) -> Tensor:
        """(R, S) what is seen of each row's reliability, in the company that the frame has in ``features``."""
        if features.signs is None:
            raise RequestError("this model does not look at its sensors' reliability; build it with model.reliability.")
        shown = [m[..., :h, :w] for m, (h, w) in zip(features.levels, _valid(features.size), strict=True)]
        height, width = shown[-1].shape[-2:]
        with torch.no_grad():
            answers = self.pyramid_head.coarse(features.levels)[..., :height, :width]
            agreed = agreement(shown[1:], answers, features.segments, features.frames)
        return torch.cat([features.signs, answer_signs(answers), agreed], dim=1)

    def trust(self, features: Features) -> Tensor | None:
        """(R,) float32, the logarithm of how far each row is trusted; None where the model does not look at it, and while it is
        trained: trust is learned after that."""
        if self.training or not len(self.reliability):
            return None
        signs = self.signs(features)
        return torch.cat([self.reliability[s.modality](signs[s.start : s.stop]) for s in features.segments])

    def decode(self, features: Features) -> Output:
        """Fuse the sensors in ``features`` and run both heads."""
        features.check_covered()
        fused, shares = [], []
        valid = _valid(features.size)
        trust = self.trust(features)
        for shown, router, level in zip(valid, self.routers, features.levels, strict=True):
            map_, share = router(level, shown, features.segments, list(features.frames), features.count, trust)
            fused.append(map_)
            shares.append(share)
        return Output(
            self.mask_head(fused, self.foundation),
            self.pyramid_head(fused),
            torch.stack(shares, dim=1),
            features.size,
            self.config.combine,
        )

    def forward(self, batch: Batch | Mapping[str, Tensor]) -> Output:
        """Segment a batch, or ``{modality: (B, C, H, W)}`` where every frame has every given sensor."""
        return self.decode(self.encode(batch if isinstance(batch, Batch) else Batch.of(batch)))
