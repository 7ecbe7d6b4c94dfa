"""Where the time of a frame goes: every operation of the model on the clock, by the part and the stage it works for.

Operations are seen as PyTorch dispatches them, so that nothing of the model has to know of it. One that has a weight among
its arguments works for the part that the weight belongs to; one that has none works for the part before it. What Python does
between operations is not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlesam.bench.setting import Setting
from mlesam.model.mlesam import MLESAM

PARTS = (
    "stems", "frame signs", "patch embedding", "positions", "norms", "qkv", "experts", "attention", "projection", "mlp",
    "pooling", "copies", "residuals", "neck", "aligners", "trust", "router", "mask head", "pyramid head", "upsampling", "other",
)  # fmt: skip
"""In the order of the frame's way."""
FLOOR = PARTS[2:6] + PARTS[7:14]
"""What the frozen trunk and neck do by themselves."""
_BLOCK = {
    "layer_norm1": "norms", "layer_norm2": "norms", "attn.qkv": "qkv", "attn.proj": "projection", "mlp": "mlp",
    "proj": "pooling",
}  # fmt: skip
_PREFIXES = {
    "stems.": "stems", "foundation.trunk.patch_embed": "patch embedding", "foundation.trunk.pos_embed": "positions",
    "foundation.neck": "neck", "aligners.": "aligners", "reliability.": "trust", "routers.": "router",
    "mask_head.": "mask head", "foundation.": "mask head", "pyramid_head.": "pyramid head",
}  # fmt: skip
"""The rest of the foundation is what the mask head starts from."""
_KINDS = {
    "attention": ("scaled_dot_product", "softmax", "bmm", "baddbmm"),
    "pooling": ("max_pool",),
    "mlp": ("gelu", "relu"),
    "norms": ("layer_norm",),
    "copies": (
        "clone",
        "copy",
        "constant_pad",
        "contiguous",
        "cat",
        "index_select",
        "permute",
        "view",
        "slice",
        "split",
    ),
    "residuals": ("add",),
}
"""Inside a block, operations without a weight, by parts of their names."""
_KEPT = ("add", "mul", "cat", "bmm", "baddbmm", "index_add")
"""After an expert's weight these go on working for the experts."""


class _Clock(TorchDispatchMode):
    """Seconds by (stage, part); the stage is 0 outside of the blocks."""

    def __init__(self, model: MLESAM, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.now = time.thread_time if setting.counts_cpu_time else time.perf_counter
        ends = getattr(model.foundation, "trunk").stage_ends  # noqa: B009
        self.owners = {_place(t): _owner(name, ends) for name, t in (*model.named_parameters(), *model.named_buffers())}
        self.inside: list[str] = []
        self.last = (0, "other")
        self.seconds: dict[tuple[int, str], float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.setting.wait()
        began = self.now()
        result = func(*args, **(kwargs or {}))
        self.setting.wait()
        key = self._key(str(func), args)
        self.seconds[key] = self.seconds.get(key, 0.0) + self.now() - began
        return result

    def _key(self, name: str, args: Any) -> tuple[int, str]:
        own = next((o for t in _tensors(args) if (o := self.owners.get(_place(t))) is not None), None)
        if self.inside:
            return 0, self.inside[-1]
        if own is not None:
            self.last = own
            return own
        stage, part = self.last
        if not stage:
            return self.last
        if part == "experts" and any(word in name for word in _KEPT):
            return self.last
        return stage, next((k for k, words in _KINDS.items() if any(w in name for w in words)), part)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, everything works for one part."""
        self.inside.append(name)
        try:
            yield
        finally:
            self.inside.pop()


def _place(tensor: Tensor) -> int:
    """The same for a tensor and for every view of it: a part of a fused weight is its owner's as well."""
    return tensor.untyped_storage().data_ptr()


def _tensors(args: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _owner(name: str, ends: list[int]) -> tuple[int, str]:
    words = name.split(".")
    if "blocks" in words and not name.startswith(("mask_head", "pyramid_head")):
        at = words.index("blocks")
        stage = 1 + sum(int(words[at + 1]) > end for end in ends)
        rest = ".".join(words[at + 2 :])
        part = "experts" if words[0] == "experts" else next(p for k, p in _BLOCK.items() if rest.startswith(k))
        return stage, part
    return 0, next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), "other")


def profile(setting: Setting, rounds: int, precision: str = "fp32") -> dict[str, Any]:
    """Milliseconds of each part of one frame, medians over rounds.

    Returns:
        ``parts``: by part. ``stages``: by part for each of the trunk's stages. ``milliseconds``: their sum. ``floor``: of it,
        what trunk and neck take by themselves.
    """
    torch.set_num_threads(setting.threads)
    model, batch = setting.model(), setting.frames()
    found: dict[tuple[int, str], list[float]] = {}
    for number in range(rounds + 1):
        clock = _Clock(model, setting)
        with torch.inference_mode(), setting.autocast(precision), _watched(model, clock), clock:
            output = model(batch)
            with clock.part("upsampling"):
                _ = output.logits
        if number:
            for key in set(found) | set(clock.seconds):
                found.setdefault(key, []).append(clock.seconds.get(key, 0.0))
    medians = {key: 1e3 * statistics.median(values) for key, values in found.items()}
    parts = {part: sum(ms for (_, p), ms in medians.items() if p == part) for part in PARTS}
    stages = {
        str(stage): {p: round(medians[stage, p], 3) for p in PARTS if medians.get((stage, p))} for stage in range(1, 5)
    }
    return {
        "name": "stages" + setting.suffix,
        "milliseconds": round(sum(parts.values()), 2),
        "floor": round(sum(parts[p] for p in FLOOR), 2),
        "parts": {part: round(ms, 3) for part, ms in parts.items() if ms},
        "stages": stages,
        "conditions": f"{setting.describe()}; {precision}; median of {rounds} rounds; operations alone, no Python between them",
    }


@contextmanager
def _watched(model: MLESAM, clock: _Clock) -> Iterator[None]:
    """Tell the clock which part runs where weights alone would not tell."""
    handles = []
    inside: dict[str, nn.Module] = {"aligners": model.aligners, "mask head": model.mask_head}
    for name, module in (
        *inside.items(),
        ("pyramid head", model.pyramid_head),
        *(("router", r) for r in model.routers),
    ):
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: clock.inside.append(name)))
        handles.append(module.register_forward_hook(lambda *_: clock.inside.pop() and None))

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock.part(name):
                return function(*args, **kwargs)

        return call

    import mlesam.model.mlesam as whole

    places: list[tuple[str, Any, str]] = [("frame signs", whole, "frame_signs"), ("trust", model, "trust")]
    with ExitStack() as stack:
        for name, holder, attribute in places:
            function = within(name, getattr(holder, attribute))
            stack.enter_context(mock.patch.object(holder, attribute, function))
        for handle in handles:
            stack.callback(handle.remove)
        yield
