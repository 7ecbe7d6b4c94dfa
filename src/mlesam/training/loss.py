"""OHEM cross-entropy, the loss of the paper and its lineage; and what a pass with few sensors learns from one with all."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mlesam.model.foundation import LEVEL_STRIDES
from mlesam.model.mlesam import Output
from mlesam.sample import IGNORE


def ohem_cross_entropy(logits: Tensor, labels: Tensor, threshold: float = 0.7, keep: float = 1 / 16) -> Tensor:
    """Cross-entropy averaged over the hard pixels only (online hard example mining, arXiv 1604.03540).

    Args:
        logits: (B, C, H, W). labels: (B, H, W) int64 with ``IGNORE`` where not scored.
        threshold: a pixel is hard when its true class has less than this probability.
        keep: at least this share of the scored pixels counts, hardest first.

    Returns:
        A scalar; 0 (with a gradient of 0) where no pixel is scored.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    scored = losses[labels != IGNORE]
    if not len(scored):
        return logits.sum() * 0.0
    hard = scored[scored > -math.log(threshold)] if threshold < 1 else scored
    least = max(1, int(len(scored) * keep))
    if len(hard) < least:
        hard = torch.topk(scored, least).values
    return hard.mean()


def divergence(teacher: Output, student: Output) -> Tensor:
    """Kullback-Leibler divergence from the teacher's class probabilities to the student's (arXiv 1503.02531, temperature 1).

    Averaged over the pixels of the frame at stride 4, both heads joined. No gradient goes to the teacher.
    """
    height, width = (math.ceil(side / LEVEL_STRIDES[0]) for side in teacher.size)
    told, said = (o.combined[..., :height, :width].float().log_softmax(dim=1) for o in (teacher, student))
    told = told.detach()
    return (told.exp() * (told - said)).sum(dim=1).mean()
