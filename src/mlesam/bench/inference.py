"""Suite ``inference``: one frame through the whole model and through its parts."""

from __future__ import annotations

import math
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2VisionModel

from mlesam.bench.case import Case, Subject
from mlesam.bench.measure import Run
from mlesam.bench.naive import BY_HAND, PEFT, Naive
from mlesam.bench.peak import in_child
from mlesam.bench.setting import PRECISIONS, Setting
from mlesam.data.dataset import default_colors
from mlesam.inference.export import export_model
from mlesam.inference.exported import load_exported
from mlesam.inference.formats import PACKAGES, openvino_computes_bf16
from mlesam.inference.segmenter import Segmenter
from mlesam.model.experts import Segment
from mlesam.model.features import Features
from mlesam.model.foundation import LEVEL_STRIDES
from mlesam.model.mlesam import MLESAM, TOGETHER
from mlesam.model.sam2 import preset_config
from mlesam.sample import Classes
from mlesam.sensors.spec import SensorSpec

EQUAL = {"fp32": 1e-4, "bf16": 0.1}
"""How far ours may be from naive's, by precision."""


def whole(setting: Setting, precision: str = "fp32", together: int = TOGETHER, **changes: Any) -> Run:
    """Pictures to logits at the pictures' size, experts merged; ``changes`` are fields of the model's configuration, and beyond
    ``together`` pixels of all sensors each goes through the trunk alone."""
    setting = setting.with_(changes=(*setting.changes, *changes.items()))
    model, batch = setting.model().merge(), setting.frames()
    model.together = together
    for look in model.looks.values():
        look.ready = True  # type: ignore[assignment]  # which ones are kept changes no time
    if precision == "bf16":
        model.compute_in(torch.bfloat16)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(batch).logits

    return run


def naive(setting: Setting, precision: str, by_hand: bool = False) -> Run:
    """The same by transformers, sensor by sensor."""
    model, batch = Naive(setting.model(), by_hand=by_hand), setting.frames()
    if precision == "bf16":
        model.compute_in(torch.bfloat16)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(batch).logits

    return run


def floor(setting: Setting, precision: str = "fp32") -> Run:
    """The frozen trunk and neck alone, on as many rows of three channels as there are sensors."""
    foundation, rows = setting.model().foundation, _rows(setting)

    @torch.inference_mode()
    def run() -> Tensor:
        with setting.autocast(precision):
            return foundation(rows)[-1]

    return run


def vision(setting: Setting) -> Run:
    """The floor as ``transformers`` computes it: the same weights, all rows in one pass."""
    foundation: Any = setting.model().foundation
    config: Any = preset_config(setting.preset).vision_config
    with torch.device("meta"):
        made: Any = Sam2VisionModel(config)
    made.backbone, made.neck = foundation.trunk, foundation.neck
    rows = _rows(setting)

    @torch.inference_mode()
    def run() -> Tensor:
        return made.eval()(pixel_values=rows).fpn_hidden_states[-1]

    return run


def _rows(setting: Setting) -> Tensor:
    return torch.cat([image.mean(1, keepdim=True).expand(-1, 3, -1, -1) for image in setting.images().values()])


def fused(setting: Setting, merged: bool = False, **changes: Any) -> Run:
    """Pictures to the fused maps: everything before the heads."""
    setting = setting.with_(changes=(*setting.changes, *changes.items()))
    model, batch = setting.model(), setting.frames()
    if merged:
        model.merge()

    @torch.inference_mode()
    def run() -> Tensor:
        return fuse(model, model.encode(batch))[-1]

    return run


def with_experts(setting: Setting, merged: bool = False) -> Run:
    """Trunk and neck with the experts, on the floor's rows."""
    model, rows = setting.model(), _rows(setting)
    segments = tuple(Segment(m, i * setting.batch, (i + 1) * setting.batch) for i, m in enumerate(model.modalities))
    if merged:
        model.merge()

    @torch.inference_mode()
    def run() -> Tensor:
        return model.foundation(rows, (model.merged or model.experts).on(segments))[-1]

    return run


def one_head(setting: Setting) -> Run:
    """The whole without the mask head."""
    model, batch = setting.model().merge(), setting.frames()

    @torch.inference_mode()
    def run() -> Tensor:
        logits = model.pyramid_head(fuse(model, model.encode(batch)))
        return nn.functional.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)

    return run


def fuse(model: MLESAM, features: Features) -> list[Tensor]:
    """The fused maps, as ``decode`` gives them to the heads."""
    height, width = features.size
    trust = model.trust(features)
    return [
        router(
            level, (-(-height // stride), -(-width // stride)), features.segments, list(features.frames), features.count, trust
        )[0]
        for stride, router, level in zip(LEVEL_STRIDES, model.routers, features.levels, strict=True)
    ]  # fmt: skip


def exported(setting: Setting, precision: str) -> Run:
    """The whole through ONNX in OpenVINO."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "whole.xml"
        in_child(export, setting, precision, out)  # whose memory is none of the exported model's
        loaded = load_exported(out, precision, threads=setting.threads)
    images = {m: x[:1].cpu() for m, x in setting.images().items()}

    def run() -> Tensor:
        return torch.from_numpy(loaded(images)["logits"])

    return run


def export(setting: Setting, precision: str, out: Path) -> None:
    """Write the exported model; int8's ranges are those of the pictures."""
    torch.set_num_threads(setting.threads)
    # Pictures are drawn normalised, so the file is told to leave numbers as they are.
    as_they_are = {
        m: SensorSpec(c, range=(-math.inf, math.inf), mean=(0.0,), std=(1.0,)) for m, c in setting.channels.items()
    }
    classes = Classes(tuple(f"class {i}" for i in range(setting.classes)), default_colors(setting.classes))
    segmenter = Segmenter(setting.model(), as_they_are, classes, device="cpu")
    size, ranges = (setting.size, setting.size), [{m: x[0].cpu() for m, x in setting.images().items()}]
    export_model(segmenter, out, "openvino", size=size, precision=precision, ranges=ranges)


WHOLE = {
    p: Subject(f"whole-{p}", f"pictures to logits, {p}, experts merged", partial(whole, precision=p), p)
    for p in PRECISIONS
}
NAIVE = {p: Subject(f"naive-{p}", f"{PEFT}, {p}, heads as ours", partial(naive, precision=p), p) for p in PRECISIONS}
OPENVINO = {
    p: Subject(
        f"openvino-{p}", f"the whole, exported through ONNX to OpenVINO in {p}", partial(exported, precision=p), p
    )
    for p in ("bf16", "int8")
}
HAND = Subject("by-hand-fp32", f"{BY_HAND}, fp32, heads as ours", partial(naive, precision="fp32", by_hand=True))
FLOOR = Subject("floor-fp32", "the frozen trunk and neck alone on the stacked rows, fp32", floor)
VISION = Subject("transformers-fp32", "SAM2's vision model of transformers on the stacked rows, fp32", vision)
PAPER = {"align": False, "rescale": False, "reliability": False}
"""The model as published."""


def left_out(setting: Setting) -> str | None:
    """A sentence that says why the exported model is not measured here; None where it is."""
    why = None
    if setting.device != "cpu":
        why = "it runs on the CPU"
    elif any(find_spec(package) is None for package in (*PACKAGES["openvino"], "nncf")):
        why = 'it needs packages that are not installed: pip install "mlesam[export]"'
    elif not openvino_computes_bf16():
        why = "this CPU has no bf16 instructions"
    return why and f"the exported model is not measured: {why}"


def early(setting: Setting) -> list[Subject]:
    """The whole, with sensors that are left behind early."""
    ways = {
        "early-k2": ("two sensors go on after stage 1, the others hand over", 1, 2, True),
        "early-k2-scored": ("the two sensors that promise most go on after stage 1", 1, 2, False),
        "early-k2-patches": ("two sensors go on before stage 1, the others hand over", 0, 2, True),
        "early-k3-patches": ("three sensors go on before stage 1, the others hand over", 0, 3, True),
    }
    return [
        Subject(
            name,
            f"{about}, fp32",
            partial(whole, look=stage, look_keep=keep, look_lead=tuple(setting.channels)[: keep if lead else 0]),
        )
        for name, (about, stage, keep, lead) in ways.items()
    ]


def cases(setting: Setting) -> list[Case]:
    """Cases of the suite, by the names that its results have."""
    ours, fp32, bf16 = WHOLE["fp32"], EQUAL["fp32"], EQUAL["bf16"]
    unmerged = Subject("unmerged", "pictures to fused maps, the experts as products of their own, fp32", fused)
    trunk = Subject("trunk-unmerged", "trunk and neck with the experts as products of their own, fp32", with_experts)
    single = Subject("one-head", "the whole without the mask head, fp32", one_head)
    mean = Subject("no-router", "the whole with a plain mean, fp32", partial(whole, fusion="mean", reliability=False))
    merged = Subject("merged", "pictures to fused maps, experts and aligners merged, fp32", partial(fused, merged=True))
    bare = Subject(
        "merged-paper",
        "the same without aligners, rescaling and reliability, fp32",
        partial(fused, merged=True, **PAPER),
    )
    trunk_merged = Subject(
        "trunk-merged", "trunk and neck with merged experts, fp32", partial(with_experts, merged=True)
    )
    alone = Subject("alone", "the whole, sensor by sensor through the trunk, fp32", partial(whole, together=0))
    once = Subject("once", "the whole, all sensors in one pass, fp32", partial(whole, together=sys.maxsize))
    paper = Subject("paper", "the whole without aligners, rescaling and reliability, fp32", partial(whole, **PAPER))
    found = [
        Case("whole-fp32", ours, NAIVE["fp32"], (HAND,), tolerance=fp32),
        Case("whole-bf16", WHOLE["bf16"], NAIVE["fp32"], (NAIVE["bf16"],), tolerance=bf16),
        Case("floor", FLOOR, VISION, tolerance=fp32),
        Case("experts-merged", merged, FLOOR),
        Case("experts-merged-paper", bare, FLOOR),
        Case("experts-unmerged", unmerged, FLOOR),
        Case("trunk-merged", trunk_merged, FLOOR),
        Case("trunk-unmerged", trunk, FLOOR),
        *(Case(own.name, own, ours) for own in early(setting)),
        Case("sensor-by-sensor", alone, once, tolerance=fp32),
        Case("two-heads", ours, single),
        Case("router", ours, mean),
        Case("additions", ours, paper),
    ]
    if left_out(setting) is None:
        found += [
            Case("whole-openvino-bf16", OPENVINO["bf16"], NAIVE["fp32"], (ours,), tolerance=bf16),
            Case("int8", OPENVINO["int8"], ours, (NAIVE["fp32"],), tolerance=bf16),
        ]
    return found
