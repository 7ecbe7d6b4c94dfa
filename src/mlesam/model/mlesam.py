"""MLESAM: stems, experts in the frozen trunk, aligners, routers, and the two heads, as one plain ``torch.nn.Module``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlesam.config import ModelConfig
from mlesam.errors import RequestError, did_you_mean
from mlesam.model.aligner import Aligners
from mlesam.model.experts import SHARED, Experts, Project, Segment
from mlesam.model.features import Features
from mlesam.model.foundation import LEVEL_STRIDES, After, load_foundation
from mlesam.model.heads import MaskHead, PyramidHead
from mlesam.model.look import Handover, Leading, Look, Looking
from mlesam.model.merged import Merged
from mlesam.model.reliability import Reliability, agreement, answer_signs, frame_signs
from mlesam.model.router import Router
from mlesam.sample import Batch
from mlesam.sensors.spec import canonical_order


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


TOGETHER = 2**19
"""Pixels of all sensors up to which a CPU takes them through the trunk in one pass. Beyond, products are large enough anyway, and
the maps of one sensor at a time stay nearer to it: docs/performance.md."""


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def belongs_to(name: str, modality: str) -> bool:
    """Whether a tensor of a model is one sensor's own: of its stem, expert, aligner, scorers, reliability, look or
    handover."""
    parts = ("stems", "experts", "aligners", "reliability", "looks", "handovers")
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
        for field, named in (("half", config.half), ("look_lead", config.look_lead)):
            for modality in named:
                if modality not in sensors:
                    raise RequestError(f"model.{field} names {modality!r}{did_you_mean(modality, sensors)}")
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
        self.merged: Merged | None = None
        self.together = TOGETHER
        self.mask_head = MaskHead(loaded.decoder, num_classes)
        self.pyramid_head = PyramidHead(width, config.pyramid_width or width, num_classes)
        weighed = self.modalities if config.reliability and len(self.modalities) > 1 else ()
        self.reliability = nn.ModuleDict({m: Reliability() for m in weighed})
        looking = self.modalities if config.look is not None and len(self.modalities) > config.look_keep else ()
        first = max(config.look or 0, 1) - 1  # embedded patches are as wide as the first stage
        early = self.foundation.lateral(first)[0].shape[1]
        self.looks = nn.ModuleDict({m: Look(early) for m in looking if not config.look_lead})
        self.handovers = nn.ModuleDict({m: Handover(early) for m in looking if config.look_lead})
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
            raise RequestError("the experts are merged for inference; call unmerge() before training.")
        super().train(mode)
        if self.config.train != "all":
            self.foundation.eval()
        for expert in self.experts.values():  # one that is not trained has no dropout either
            expert.train(mode and any(p.requires_grad for p in expert.parameters()))
        return self

    def merge(self) -> MLESAM:
        """Work experts and aligners into projections of each sensor's own, for inference: no sensor costs more than a pass of the
        bare foundation, and the same logits come out within rounding. Takes the memory of these projections once for each
        sensor; what is trained stays as it is, and cannot be trained further until :meth:`unmerge`."""
        self.eval()
        self.merged = Merged(self.foundation, self.experts, self.aligners, self.modalities)
        return self

    def unmerge(self) -> MLESAM:
        """Undo :meth:`merge`."""
        self.merged = None
        return self

    def compute_in(self, dtype: torch.dtype) -> MLESAM:
        """Trunk, pyramid and heads in another precision, for inference: ``torch.bfloat16`` halves their memory and, where the
        processor has instructions for it, about their time. Routers, reliability and positions stay as they are. There is no
        way back but to load the weights again."""
        position = self.foundation.position
        for part in (
            self.foundation,
            self.stems,
            self.experts,
            self.aligners,
            self.mask_head,
            self.pyramid_head,
            self.handovers,
            self.merged,
        ):
            if part is not None:
                part.to(dtype)
        self.foundation.position = position
        return self.eval()

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

    def encode(
        self,
        batch: Batch,
        after: After | None = None,
        early: bool = False,
    ) -> Features:
        """All present sensors of a batch through the trunk, as one stacked pass, or one for each sensor where maps are large
        (:data:`TOGETHER`). Absent ones are never computed.

        Args:
            after: called after each of the trunk's stages, to see its map; all sensors are computed then.
            early: with ``model.look``, those that promise least or do not lead are left behind on the way, for who decodes what
                comes back and no part of it. Without it :meth:`decode` leaves them out, so that any set of sensors gives what
                it gives alone.
        """
        unknown = [m for m in batch.images if m not in self.modalities]
        if unknown:
            raise RequestError(f"this model has no sensor {unknown[0]!r}{did_you_mean(unknown[0], self.modalities)}")
        present = [m for m in self.modalities if m in batch.images and len(batch.images[m])]
        if not present:
            raise RequestError(f"no sensor was given; this model needs at least one of {', '.join(self.modalities)}.")
        self._check_coverage(batch, present)
        height, width = batch.size
        stride = self.foundation.stride * (2 if self.config.half else 1)
        padding = (0, -width % stride, 0, -height % stride)
        segments, start = [], 0
        for modality in present:
            self._check_image(modality, batch.images[modality], (height, width))
            segments.append(Segment(modality, start, start + len(batch.images[modality])))
            start = segments[-1].stop
        segments_ = tuple(segments)
        images = tuple(batch.images[m] for m in present)
        frames = tuple(batch.frames[m].to(images[0].device) for m in present)
        if len(self.handovers) and not (early or self.training or after):
            return Features((), segments_, frames, len(batch), (height, width), images=images)
        maps, signs = [], []
        for modality, image in zip(present, images, strict=True):
            if len(self.reliability) and not self.training:
                signs.append(frame_signs(image))
            image = image.to(next(self.foundation.parameters()).dtype)
            if modality in self.stems:
                image = self.stems[modality](image)
            maps.append(F.pad(image, padding))
        seen = torch.cat(signs) if signs else None
        promised = None
        pixels = sum(m[0, 0].numel() * len(m) for m in maps)
        projects, aligned = self._projects(pixels, len(maps))
        looking = not self.training and len(self.looks) and all(self.looks[m].ready for m in present)
        leading = early and len(self.handovers) and len(present) > self.config.look_keep
        by_name = dict(zip(present, maps, strict=True))
        if after is None and (looking or leading):
            rows = self.config.look or 0, self.config.look_keep, segments_, frames, len(batch), projects
            pass_ = (
                Looking(self.looks, early, *rows) if looking else Leading(self.handovers, self.config.look_lead, *rows)
            )
            if isinstance(pass_, Leading) and pass_.alike and self._one_by_one(maps[0].device, pixels):
                levels = pass_.one_by_one(self.foundation, by_name)
            else:
                levels = self.foundation(_stacked(maps), pass_.project, pass_.after)
            segments_, frames, promised = pass_.segments, pass_.frames, pass_.scores
            seen = seen if seen is None or pass_.rows is None else seen[pass_.rows]
        elif after is not None:
            levels = self.foundation(_stacked(maps), projects(segments_), after)
        else:
            levels = self._levels(by_name, pixels, projects)
        levels = self.aligners(levels, segments_, aligned)
        return Features(tuple(levels), segments_, frames, len(batch), (height, width), seen, promised)

    def _projects(self, pixels: int, sensors: int) -> tuple[Callable[[tuple[Segment, ...]], Project], frozenset[int]]:
        """What a trunk calls in a pass over so many pixels of all sensors, and the levels whose maps come out aligned."""
        if self.merged is not None:
            return self.merged.on, self.merged.aligned
        levels = self.aligners.sooner_folded(self.foundation, pixels // LEVEL_STRIDES[0] ** 2, sensors)

        def projects(segments: tuple[Segment, ...]) -> Project:
            return self.aligners.into(self.experts.on(segments), segments, self.foundation, levels)

        return projects, levels

    def _levels(
        self, maps: Mapping[str, Tensor], pixels: int, projects: Callable[[tuple[Segment, ...]], Project]
    ) -> list[Tensor]:
        """The levels of all sensors, stacked, whose maps have so many pixels together."""
        found: dict[str, list[Tensor]] = {}
        passes = self._passes(maps, pixels)
        for modalities in passes:
            half = modalities[0] in self.config.half
            own = {m: F.avg_pool2d(maps[m], 2) if half else maps[m] for m in modalities}
            stops = list(itertools.accumulate(len(x) for x in own.values()))
            segments = tuple(Segment(m, n - len(x), n) for (m, x), n in zip(own.items(), stops, strict=True))
            levels = self.foundation(_stacked(list(own.values())), projects(segments))
            if half:
                levels = [F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) for x in levels]
            if len(passes) == 1:
                return levels
            for level in levels:
                for segment, part in zip(segments, level.split([s.rows for s in segments]), strict=True):
                    found.setdefault(segment.modality, []).append(part)
        return [torch.cat(parts) for parts in zip(*(found[m] for m in maps), strict=True)]

    def _passes(self, maps: Mapping[str, Tensor], pixels: int) -> list[list[str]]:
        """Which sensors go through the trunk together: all of one size, or each alone."""
        if self._one_by_one(next(iter(maps.values())).device, pixels):
            return [[m] for m in maps]
        return [own for half in (False, True) if (own := [m for m in maps if (m in self.config.half) == half])]

    def _one_by_one(self, device: torch.device, pixels: int) -> bool:
        """Whether each sensor goes through the trunk alone: on a CPU, where the maps of all of them are large."""
        return device.type == "cpu" and not torch.compiler.is_compiling() and pixels > self.together

    def _check_coverage(self, batch: Batch, present: list[str]) -> None:
        if any(len(batch.frames[m]) == len(batch) for m in present):
            return  # the shapes say it already, without waiting for the device or stopping a trace
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

    def chosen(self, features: Features, trust: Tensor | None = None) -> tuple[Features, Tensor | None]:
        """What of ``features`` is fused, with its rows' trust: what ``model.look`` leaves behind in this company is not.

        Raises:
            RequestError: a trust in sensors that hand over to each other.
        """
        features.check_covered()
        if features.images is not None:
            if trust is not None:
                raise RequestError(
                    "sensors that hand over to each other (model.look_lead) cannot be trusted one by one."
                )
            return self.encode(features.batch(), early=True), None
        features, rows = features.promising(self.config.look_keep)
        return features, trust if trust is None or rows is None else trust[rows]

    def signs(self, features: Features) -> Tensor:
        """(R, S) what is seen of each row's reliability, in the company that the frame has in ``features``."""
        if features.signs is None:
            raise RequestError("this model does not look at its sensors' reliability; build it with model.reliability.")
        valid = _valid(features.size)
        shown = [m[..., :h, :w] for m, (h, w) in zip(features.levels, valid, strict=True)]
        height, width = valid[-1]
        with torch.no_grad():
            answers = self.pyramid_head.coarse(features.levels)[..., :height, :width]
            agreed = agreement(shown[1:], answers, features.segments, features.frames, features.count)
        return torch.cat([features.signs, answer_signs(answers), agreed], dim=1)

    def trust(self, features: Features) -> Tensor | None:
        """(R,) float32, the logarithm of how far each row is trusted. None where the model does not look at it, where there is no
        other sensor to weigh against, and while the model is trained: trust is learned after that."""
        if self.training or not len(self.reliability) or len(features.segments) < 2:
            return None
        signs = self.signs(features)
        return torch.cat([self.reliability[s.modality](signs[s.start : s.stop]) for s in features.segments])

    def decode(self, features: Features, trust: Tensor | None = None) -> Output:
        """Fuse the sensors in ``features`` and run both heads.

        Args:
            trust: (R,) logarithm of a further trust in each row, beside the model's own. None or zeros: no other bits.
        """
        features, trust = self.chosen(features, trust)
        fused, shares = [], []
        valid = _valid(features.size)
        own = self.trust(features)
        trust = own if trust is None else trust if own is None else own + trust
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
        return self.decode(self.encode(batch if isinstance(batch, Batch) else Batch.of(batch), early=True))
