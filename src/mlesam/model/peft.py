"""One sensor's expert as an adapter of the package PEFT, and back.

PEFT adapts whole modules, and SAM2 computes query, key and value by one fused projection. An expert's updates of q and v,
each of rank r, are one update of the fused projection of rank 2 r: A stacks A_q on A_v, B is block-diagonal with an empty block
of rows for k. The two are the same function, so nothing is lost on the way out. On the way in, what a fused update does to
k has to be zero, or the model must have k among its targets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlesam.errors import DataError, RequestError, did_you_mean, refuse_occupied
from mlesam.model.checkpoints import load_plain, replace_file, save_plain
from mlesam.model.experts import LowRank, scale, targets
from mlesam.model.foundation import FAMILIES
from mlesam.model.mlesam import MLESAM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FUSED = "attn.qkv"
MODULES = {"proj": "attn.proj", "mlp_in": "mlp.proj_in", "mlp_out": "mlp.proj_out"}
"""Modules of a block of ``transformers.Sam2VisionModel`` by the names of our projections; q, k and v are parts of ``FUSED``."""
PREFIX = "base_model.model.backbone.blocks."


def save_peft(model: MLESAM, modality: str, out: Path) -> Path:
    """Write a sensor's expert as a LoRA adapter for ``transformers.Sam2VisionModel``, which PEFT loads.

    The stem of a sensor with other than three channels, the aligner, the router and the heads are not part of it.

    Returns:
        ``out``, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        RequestError: no such sensor, no experts, ``out`` is not empty, or the foundation is no SAM2.
    """
    _check(model, modality)
    refuse_occupied(out)
    expert, rank, factor = model.experts.of(modality), model.config.rank, scale(model.config)
    chosen = targets(model.config)
    fused = [name for name in "qkv" if name in chosen]
    tensors: dict[str, Tensor] = {}
    for index in range(len(expert.blocks)):
        parts = {name: expert.update(index, name) for name in "qkv"}
        if fused:
            outputs = next(part.b.shape[0] for part in parts.values() if part is not None)
            b = torch.zeros(3 * outputs, rank * len(fused))
            for column, name in enumerate(fused):
                row = "qkv".index(name) * outputs
                b[row : row + outputs, column * rank : (column + 1) * rank] = parts[name].b.detach()  # type: ignore[union-attr]
            a = torch.cat([parts[name].a.detach().cpu() for name in fused])  # type: ignore[union-attr]
            tensors |= _pair(index, FUSED, a, b)
        for name, module in MODULES.items():
            update = expert.update(index, name)
            if update is not None:
                tensors |= _pair(index, module, update.a.detach(), update.b.detach())
    modules = ([FUSED] if fused else []) + [module for name, module in MODULES.items() if name in chosen]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": model.config.foundation,
        "target_modules": modules,
        "r": rank,
        "lora_alpha": factor * rank,
        "rank_pattern": {FUSED: rank * len(fused)} if fused else {},
        "alpha_pattern": {FUSED: factor * rank * len(fused)} if fused else {},
        "bias": "none",
        "inference_mode": True,
    }
    save_plain(out / WEIGHTS, tensors)
    replace_file(out / CONFIG, json.dumps(config, indent=2) + "\n")
    return out


def _pair(index: int, module: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {f"{PREFIX}{index}.{module}.lora_A.weight": a, f"{PREFIX}{index}.{module}.lora_B.weight": b}


@torch.no_grad()
def load_peft(model: MLESAM, modality: str, folder: Path) -> None:
    """Take a LoRA adapter that PEFT wrote for a SAM2 trunk over as a sensor's expert. Projections that it leaves alone get
    a fresh update, which adds zero.

    Raises:
        RequestError: the model's rank or targets cannot hold it. DataError: it is no plain LoRA of this trunk.
    """
    _check(model, modality)
    config, tensors = _read(folder)
    expert, rank, chosen = model.experts.of(modality), model.config.rank, targets(model.config)
    prepared: list[tuple[LowRank, Tensor, Tensor]] = []
    used: set[str] = set()
    for index in range(len(expert.blocks)):
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in {**MODULES, "qkv": FUSED}.items():
            keys = [f"blocks.{index}.{module}.lora_{part}.weight" for part in "AB"]
            if not all(key in tensors for key in keys):
                continue
            used |= set(keys)
            a, b = (tensors[key].float() for key in keys)
            b = b * (_factor(config, f"blocks.{index}.{module}") / scale(model.config))
            found |= (
                dict(zip("qkv", ((a, part) for part in b.chunk(3)), strict=True)) if name == "qkv" else {name: (a, b)}
            )
        for name, (a, b) in found.items():
            active = b.abs().amax(dim=0) > 0
            a, b = a[active], b[:, active]
            if name not in chosen and len(a):
                raise RequestError(
                    f"{folder} changes {name} of block {index}, and this model's experts do not; train it with model.targets "
                    f"[{', '.join([*model.config.targets, name.split('_')[0]])}]."
                )
            if len(a) > rank:
                raise RequestError(
                    f"{folder} needs rank {len(a)} for {name} of block {index}, and this model has {rank}; set model.rank."
                )
            update = expert.update(index, name)
            if update is None:
                continue
            if (a.shape[1], b.shape[0]) != (update.a.shape[1], update.b.shape[0]):
                raise DataError(
                    f"{folder} belongs to another trunk: {name} of block {index} has the widths {a.shape[1]} and {b.shape[0]}, "
                    f"not {update.a.shape[1]} and {update.b.shape[0]}."
                )
            prepared.append((update, a, b))
    foreign = sorted(set(tensors) - used)
    if foreign or not used:
        raise DataError(
            f"{folder} adapts {foreign[0] if foreign else 'nothing of this trunk'}, which is none of {FUSED}, "
            f"{', '.join(MODULES.values())} of this trunk's {len(expert.blocks)} blocks."
        )
    for block in range(len(expert.blocks)):
        for name in chosen:
            update = expert.update(block, name)
            assert update is not None
            update.b.zero_()
    for update, a, b in prepared:
        update.a[: len(a)] = a  # the rows beyond stay as drawn, so that they can still be trained
        update.b[:, : len(a)] = b


def _check(model: MLESAM, modality: str) -> None:
    if modality not in model.modalities:
        raise RequestError(f"this model has no sensor {modality!r}{did_you_mean(modality, model.modalities)}")
    if model.foundation.family != "sam2":
        raise RequestError(
            f"PEFT adapters are for SAM2, and {model.foundation.source} is a {FAMILIES[model.foundation.family]}; share the "
            "experts with `mlesam export`."
        )
    if not len(model.experts):
        raise RequestError("this model has no experts (model.rank is 0).")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter's config, and its tensors by names that begin with ``blocks.``."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} cannot be read ({error}); give a directory that PEFT wrote.") from None
    plain = {"peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, [])}
    wrong = [f"{key} {config.get(key)!r}" for key, fine in plain.items() if config.get(key) not in fine]
    if wrong:
        raise DataError(f"{folder} has {', '.join(wrong)}; only plain LoRA without biases can be taken over.")
    tensors = load_plain(folder / WEIGHTS)
    return config, {name[name.find("blocks.") if "blocks." in name else 0 :]: t for name, t in tensors.items()}


def _factor(config: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r), with PEFT's patterns: a regular expression or a suffix of the module's name."""

    def of(pattern: str, default: float) -> float:
        for key, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return float(value)
        return float(default)

    rank, alpha = of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
