"""What people write today: SAM2's vision model of ``transformers`` with LoRA by PEFT, one pass for each sensor.

The adapter is switched from pass to pass. Trunk and neck are those of ``transformers``, untouched; stems, aligners, router and
heads are ours, on whatever maps come out, so that the two differ in how the maps are made and in nothing else.

PEFT adapts whole modules and SAM2 has one projection for query, key and value, so LoRA of rank r on query and value is one of
rank 2 r on that projection, with zeros for the key (``model/peft.py``): the same function, to the last weight.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
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


def need_peft() -> None:
    """RequestError where PEFT is not installed."""
    if find_spec("peft") is None:
        raise RequestError('the baseline "naive" needs the package peft; install it with: pip install "mlesam[bench]"')


class Naive(nn.Module):
    """A model's weights in the naive implementation; it has the model's ``encode`` and ``decode``.

    Args:
        model: on a preset of SAM2, without padding to do: sides of its pictures are multiples of 32. It is taken apart:
            its trunk gets PEFT's layers, its experts become PEFT's.
        trainable: whether PEFT's weights get gradients.
    """

    def __init__(self, model: MLESAM, trainable: bool = False) -> None:
        need_peft()
        from peft import PeftModel

        super().__init__()
        device = next(model.parameters()).device
        config: Any = preset_config(model.config.foundation).vision_config
        with torch.device("meta"):  # only the code: weights come from the model
            vision = Sam2VisionModel(config)
        foundation: Any = model.foundation
        vision.backbone, vision.neck = foundation.trunk, foundation.neck
        adapted: Any = vision
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers what is deprecated there
            for modality in model.modalities:
                path = str(save_peft(model, modality, Path(folder) / modality))
                if adapted is vision:
                    adapted = PeftModel.from_pretrained(vision, path, adapter_name=modality, is_trainable=trainable)
                else:
                    adapted.load_adapter(path, adapter_name=modality, is_trainable=trainable)
        model.experts.clear()
        self.vision = adapted.to(device)
        self.model = model
        self.trainable = trainable
        self.train(trainable)
        self._want_gradients()

    def _want_gradients(self) -> None:
        """Switching to an adapter switches the gradients of the others off, also of those that were used before it."""
        for name, parameter in self.vision.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(self.trainable)

    def encode(self, batch: Batch) -> Features:
        model, levels, segments, signs, start = self.model, [], [], [], 0
        for modality, image in batch.images.items():
            if len(model.reliability) and not model.training:
                signs.append(frame_signs(image))
            if modality in model.stems:
                image = model.stems[modality](image)
            self.vision.set_adapter(modality, inference_mode=not self.trainable)
            levels.append(self.vision(pixel_values=image).fpn_hidden_states)
            segments.append(Segment(modality, start, start + len(image)))
            start += len(image)
        self._want_gradients()
        maps = [torch.cat([level[i] for level in levels]) for i in range(len(LEVEL_STRIDES))]
        frames = tuple(batch.frames.values())
        stacked = torch.cat(signs) if signs else None
        return Features(model.aligners(maps, segments), tuple(segments), frames, len(batch), batch.size, stacked)

    def decode(self, features: Features) -> Output:
        return self.model.decode(features)

    def forward(self, batch: Batch) -> Output:
        return self.decode(self.encode(batch))
