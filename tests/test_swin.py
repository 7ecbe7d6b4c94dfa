"""Swin as a foundation: the trunk is that of `transformers`, every form of it comes in, and it can be trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SwinConfig, SwinForImageClassification
from transformers.utils import logging

logging.disable_progress_bar()
SIZES = {
    "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4, "image_size": 64,
}  # fmt: skip


def save_swin(folder: Path, model_class: type = SwinForImageClassification, seed: int = 0, **config) -> Path:
    """A small Swin in which every tensor is random, as ``transformers`` saves it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(SwinConfig(**{**SIZES, **config}))
        for parameter in model.parameters():
            # The weights of `transformers` are made for loading: so small that every window looks alike.
            parameter.add_(torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1))
        model.save_pretrained(folder)
    return folder
