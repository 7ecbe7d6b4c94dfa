"""AdamW without decay on vectors, with linear warm-up and a polynomial decay that reaches zero."""

from __future__ import annotations

import torch
from torch import nn

from mlesam.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases, norms and other 1-D parameters are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate for 0-based ``step``: linear from a tenth over the warm-up, then (1 - t) ** power, 0 at ``steps``."""
    warmup = min(round(config.warmup * config.steps), config.steps - 1)
    if step < warmup:
        return config.lr * (0.1 + 0.9 * step / warmup)
    return config.lr * max(0.0, 1 - (step - warmup) / max(1, config.steps - warmup)) ** config.power
