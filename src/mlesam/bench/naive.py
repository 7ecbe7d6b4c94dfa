"""What people write today: SAM2's vision model of ``transformers`` with LoRA by PEFT, one pass for each sensor.

The adapter is switched from pass to pass. Trunk and neck are those of ``transformers``, untouched; stems, aligners, router and
heads are ours, on whatever maps come out, so that the two differ in how the maps are made and in nothing else.

PEFT adapts whole modules and SAM2 has one projection for query, key and value, so LoRA of rank r on query and value is one of
rank 2 r on that projection, with zeros for the key (``model/peft.py``): the same function, for more work than by hand. So the way
by hand is there as well: LoRA added into the projection's output, as the published SAM code does (SAMed, arXiv 2304.13785).
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2VisionModel

from mlesam.errors import RequestError
from mlesam.model.experts import Segment
from mlesam.model.features import Features
from mlesam.model.foundation import LEVEL_STRIDES
from mlesam.model.mlesam import MLESAM, Output
from mlesam.model.peft import save_peft
from mlesam.model.reliability import frame_signs
from mlesam.model.sam2 import preset_config
from mlesam.sample import Batch

PEFT = "transformers' SAM2 with PEFT LoRA, a pass for each sensor"
BY_HAND = "transformers' SAM2 with LoRA by hand, a pass for each sensor"


def need_peft() -> None:
    """RequestError where PEFT is not installed."""
    if find_spec("peft") is None:
        raise RequestError('the baseline "naive" needs the package peft; install it with: pip install "mlesam[bench]"')


class Naive(nn.Module):
    """A model's weights in the naive implementation; it has the model's ``encode`` and ``decode``.

    Args:
        model: on a preset of SAM2, without padding to do: sides of its pictures are multiples of 32. It is taken apart:
            its trunk gets PEFT's layers, its experts become PEFT's.
        trainable: whether the adapters' weights get gradients. by_hand: without PEFT.
    """

    def __init__(self, model: MLESAM, trainable: bool = False, by_hand: bool = False) -> None:
        super().__init__()
        config: Any = preset_config(model.config.foundation).vision_config
        with torch.device("meta"):  # only the code: weights come from the model
            vision = Sam2VisionModel(config)
        foundation: Any = model.foundation
        vision.backbone, vision.neck = foundation.trunk, foundation.neck
        self.vision: Any = _by_hand(vision, model) if by_hand else _by_peft(vision, model, trainable)
        model.experts.clear()
        self.by_hand = by_hand
        self.model = model
        self.trainable = trainable
        self.train(trainable)
        self._want_gradients()

    def _want_gradients(self) -> None:
        """Switching to an adapter switches the gradients of the others off, also of those that were used before it."""
        for name, parameter in self.vision.named_parameters():
            if "lora_" in name or ".lora." in name:
                parameter.requires_grad_(self.trainable)

    def _switch(self, modality: str) -> None:
        if not self.by_hand:
            self.vision.set_adapter(modality, inference_mode=not self.trainable)
            return
        for block in self.vision.backbone.blocks:
            block.attn.qkv.active = modality

    def compute_in(self, dtype: torch.dtype) -> Naive:
        """As :meth:`MLESAM.compute_in`: weights are converted once."""
        self.vision.to(dtype)
        self.model.compute_in(dtype)
        return self

    def encode(self, batch: Batch) -> Features:
        model, levels, segments, signs, start = self.model, [], [], [], 0
        for modality, image in batch.images.items():
            if len(model.reliability) and not model.training:
                signs.append(frame_signs(image))
            image = image.to(next(self.vision.parameters()).dtype)
            if modality in model.stems:
                image = model.stems[modality](image)
            self._switch(modality)
            levels.append(self.vision(pixel_values=image).fpn_hidden_states)
            segments.append(Segment(modality, start, start + len(image)))
            start += len(image)
        if self.trainable:
            self._want_gradients()
        maps = [torch.cat([level[i] for level in levels]) for i in range(len(LEVEL_STRIDES))]
        frames = tuple(batch.frames.values())
        stacked = torch.cat(signs) if signs else None
        return Features(model.aligners(maps, segments), tuple(segments), frames, len(batch), batch.size, stacked)

    def decode(self, features: Features) -> Output:
        return self.model.decode(features)

    def forward(self, batch: Batch) -> Output:
        return self.decode(self.encode(batch))


def _by_peft(vision: Sam2VisionModel, model: MLESAM, trainable: bool) -> nn.Module:
    """An adapter of each sensor, by its name."""
    need_peft()
    from peft import PeftModel

    adapted: Any = None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers what is deprecated there
        for modality in model.modalities:
            path = str(save_peft(model, modality, Path(folder) / modality))
            if adapted is None:
                adapted = PeftModel.from_pretrained(vision, path, adapter_name=modality, is_trainable=trainable)
            else:
                adapted.load_adapter(path, adapter_name=modality, is_trainable=trainable)
    return adapted.to(next(model.parameters()).device)


def _by_hand(vision: Sam2VisionModel, model: MLESAM) -> nn.Module:
    blocks: Any = vision.backbone.blocks
    for index, block in enumerate(blocks):
        own = {m: {name: model.experts.of(m).update(index, name) for name in "qv"} for m in model.modalities}
        lora = nn.ModuleDict({m: nn.ModuleDict(updates) for m, updates in own.items()})  # type: ignore[arg-type]
        block.attn.qkv = FusedWithLora(block.attn.qkv, lora)
    return vision


class FusedWithLora(nn.Module):
    """A projection to query, key and value, and each sensor's LoRA on the first and the last of them."""

    def __init__(self, base: nn.Module, lora: nn.ModuleDict) -> None:
        super().__init__()
        self.base, self.lora = base, lora
        self.active = next(iter(lora))

    def forward(self, x: Tensor) -> Tensor:
        lora: Any = self.lora[self.active]
        qkv = self.base(x)
        width = qkv.shape[-1] // 3
        qkv[..., :width] += lora["q"](x)
        qkv[..., -width:] += lora["v"](x)
        return qkv
