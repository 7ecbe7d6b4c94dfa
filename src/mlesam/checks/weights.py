"""Checks of a foundation's weights by names, shapes and checksums. Nothing is computed with them, so that a large one is
checked as fast."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlesam.checks.findings import Findings
from mlesam.config import PRESETS, RANDOM_PRESETS
from mlesam.errors import DataError, MlesamError, did_you_mean
from mlesam.model import sam2, swin
from mlesam.model.checkpoints import file_sha256, load_pickle, not_finite, read_meta_checkpoint, rename
from mlesam.model.foundation import MODEL_TYPES
from mlesam.model.hub import cached_folder, is_hub_id
from mlesam.model.sam2 import NANO, preset_config

_VIDEO = "occlusion_spatial_embedding_parameter"  # what SAM 2.1 has and SAM 2.0 has not, in the names of `transformers`


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint whose names begin alike, and whether a segmenter uses them."""

    name: str
    tensors: int
    used: bool


@dataclass
class WeightsFindings(Findings):
    """Findings about weights, and what they turned out to be.

    Attributes:
        facts: lines of (what, value). groups: tensors by the beginning of their names.
        files: sha256 of each file. size, version: of a SAM2, where they can be told.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    size: str | None = None
    version: str | None = None


def check_foundation(name: str, revision: str | None = None) -> WeightsFindings:
    """Check what ``model.foundation`` names: a preset, a Hub id, a ``transformers`` folder or a ``.pt`` file."""
    findings = WeightsFindings()
    if name == "nano":
        findings.facts.append(("foundation", f"nano, pre-trained, in {NANO}"))
    elif name in RANDOM_PRESETS:
        findings.facts.append(("foundation", f"{name}, random weights drawn from the seed"))
    elif name.endswith((".pt", ".pth")) or Path(name).is_dir():
        return check_checkpoint(Path(name))
    elif is_hub_id(name):
        folder = cached_folder(name, revision)
        if folder is not None:
            return check_checkpoint(folder)
        findings.facts.append(("foundation", f"{name}, from the Hub"))
        findings.note("foundation", f"{name} is not in the Hub's cache on this machine and has to be downloaded first")
    else:
        findings.fault(
            "foundation",
            f"model.foundation {name!r} is no preset, Hub id (owner/name), transformers folder or .pt file"
            f"{did_you_mean(name, PRESETS)}",
        )
    return findings


def check_checkpoint(path: Path) -> WeightsFindings:
    """Check one of Meta's ``.pt`` files or a ``transformers`` folder (or the ``.safetensors`` file in it)."""
    findings = WeightsFindings()
    if path.is_dir() or path.suffix == ".safetensors":
        _check_folder(path if path.is_dir() else path.parent, findings)
    elif path.is_file():
        _check_pickle(path, findings)
    else:
        findings.fault("foundation", f"there is no checkpoint {path}; give the path of a SAM2 .pt file or folder.")
    return findings


def _check_pickle(path: Path, findings: WeightsFindings) -> None:
    _file_facts(path, findings)
    try:
        state = load_pickle(path)
    except DataError as error:
        findings.fault("unreadable files", str(error))
        return
    if zipfile.is_zipfile(path):  # torch does not look at the checksums
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            findings.fault(
                "damaged files", f"{path}: the checksum of {bad} is wrong; download the original file again."
            )
    _check_finite(state, findings)
    try:
        layout = read_meta_checkpoint(path)
    except DataError as error:
        findings.groups = _groups(state, {})
        findings.fault("foreign files", str(error))
        return
    findings.size, findings.version = layout.size, layout.version
    findings.facts += [
        ("layout", f"Meta's, SAM {layout.version}, size {layout.size}"),
        ("numbers", _number_types(state)),
        ("tensors", f"{len(state)}: {layout.used} used, {len(layout.ignored)} ignored"),
    ]
    findings.groups = _groups(state, dict.fromkeys(layout.ignored, False))
    own = {rename(name): name for name in state}
    expected = _expected(layout.size)
    for name, shape in expected.items():
        if name in layout.tensors and tuple(layout.tensors[name].shape) != shape:
            found = tuple(layout.tensors[name].shape)
            findings.fault("tensors of another shape", f"{own.get(name, name)} has the shape {found}, not {shape}.")
        elif name not in layout.tensors:
            findings.fault("missing tensors", f"{name} is missing (its name in transformers).")
    for name in layout.tensors:
        if name not in expected:
            findings.fault("unknown tensors", f"{own.get(name, name)} belongs to no SAM2; use the original file.")


def _check_folder(folder: Path, findings: WeightsFindings) -> None:
    config = _config(folder, findings)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        findings.fault(
            "missing files", f"{folder} holds no .safetensors file; pickled weights (.bin) are refused, convert them."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        _file_facts(file, findings)
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
                    _check_finite({name: opened.get_tensor(name)}, findings)
        except (SafetensorError, OSError) as error:
            findings.fault("unreadable files", f"{file} cannot be read ({error}); download it again.")
    if config is None or not shapes or findings.found_faults:
        return
    family, what = (swin, "Swin") if MODEL_TYPES[config["model_type"]] == "swin" else (sam2, "SAM2")
    try:
        model, fit = family.read(folder, str(folder), numbers=False)
    except MlesamError as error:
        findings.fault("foreign files", str(error))
        return
    unused = dict.fromkeys(family.unused(shapes, model) | set(fit.unexpected), False)
    findings.facts += [
        ("layout", _swin_layout(model.config) if what == "Swin" else _sam2_layout(config, shapes, findings)),
        ("tensors", f"{len(shapes)}: {len(shapes) - len(unused)} used, {len(unused)} ignored"),
    ]
    findings.groups = _groups(shapes, unused)
    for name in fit.missing:
        findings.fault("missing tensors", f"{name} is missing.")
    for name, found, wanted in fit.misshapen:
        findings.fault("tensors of another shape", f"{name} has the shape {found}, not {wanted}.")
    for name in fit.unexpected:
        findings.fault("unknown tensors", f"{name} belongs to no {what}; use the original folder.")


def _config(folder: Path, findings: Findings) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        findings.fault("missing files", f"{folder} holds no config.json; a transformers folder needs one.")
        return None
    except (OSError, ValueError) as error:
        findings.fault("unreadable files", f"{folder / 'config.json'} is not valid JSON ({error}); download it again.")
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        findings.fault(
            "foreign files", f"{folder / 'config.json'} describes a {kind!r} model, which is none of {known}."
        )
        return None
    return config


def _sam2_layout(config: Mapping[str, Any], names: Mapping[str, object], findings: WeightsFindings) -> str:
    findings.size, findings.version = _size(config), _version(names)
    return f"transformers, SAM {findings.version or '2.0 or 2.1 (an image model does not tell)'}, size {findings.size}"


def _swin_layout(config: Any) -> str:
    blocks = ", ".join(map(str, config.depths))
    return f"transformers, Swin, width {config.embed_dim}, blocks {blocks}, windows of {config.window_size}"


def _expected(size: str) -> dict[str, tuple[int, ...]]:
    from transformers import Sam2Model

    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in Sam2Model(preset_config(size)).state_dict().items()}


def _size(config: Mapping[str, Any]) -> str:
    trunk = config.get("vision_config", {}).get("backbone_config", {})
    width, blocks = trunk.get("hidden_size"), trunk.get("blocks_per_stage")
    for name in PRESETS:
        known: Any = preset_config(name).vision_config.backbone_config  # type: ignore[union-attr]
        if (known.hidden_size, list(known.blocks_per_stage)) == (width, blocks):
            return name
    return f"of its own (width {width}, blocks {blocks})"


def _version(names: Mapping[str, object]) -> str | None:
    """``2.0`` or ``2.1``; None for the weights of an image model, which has the same tensors in both."""
    if not any(name.startswith("memory_attention.") for name in names):
        return None
    return "2.1" if _VIDEO in names else "2.0"


def _groups(names: Mapping[str, object], used: Mapping[str, bool]) -> list[Group]:
    """Tensors by the first part of their names, by the first two within the image encoder."""
    counts: Counter[tuple[str, bool]] = Counter()
    for name in names:
        parts = name.split(".")
        depth = 2 if parts[0] in ("image_encoder", "vision_encoder", "swin") else 1
        counts[".".join(parts[:depth]), used.get(name, True)] += 1
    return [Group(name, n, kept) for (name, kept), n in sorted(counts.items(), key=lambda c: (not c[0][1], c[0][0]))]


def _number_types(state: Mapping[str, Tensor]) -> str:
    counts = Counter(str(t.dtype).removeprefix("torch.") for t in state.values())
    return ", ".join(f"{name}" if len(counts) == 1 else f"{name} ({n})" for name, n in counts.most_common())


def _check_finite(state: Mapping[str, Tensor], findings: Findings) -> None:
    for name in not_finite(state):
        findings.fault("tensors that are not finite", f"{name} holds NaN or infinity; download the file again.")


def _file_facts(path: Path, findings: WeightsFindings) -> None:
    digest = findings.files[path.name] = file_sha256(path)
    findings.facts += [("file", f"{path.name}, {path.stat().st_size / 2**20:,.1f} MiB"), ("sha256", digest)]
