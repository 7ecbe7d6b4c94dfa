"""``mlesam export``: which format takes which options, and what is said about what was written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlesam.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from mlesam.model.run import Run

MODEL = ("modalities", "size", "precision", "data")
TAKES = {
    "adapter": ("without", "push", "private"), "peft": ("modality",),
    "onnx": MODEL, "openvino": MODEL, "torch": MODEL,
}  # fmt: skip
"""The options of each format."""


def check(options: Namespace) -> None:
    """Refuse an unknown format, and options of another one."""
    if options.format not in TAKES:
        raise RequestError(f"unknown format {options.format!r}{did_you_mean(options.format, TAKES)}")
    for name in {name for names in TAKES.values() for name in names} - set(TAKES[options.format]):
        if getattr(options, name):
            raise RequestError(f"--{name} does not go with --format {options.format}; see `mlesam export --help`.")


def export(run: Run, options: Namespace, say: Callable[[str], None]) -> None:
    """Write what the options ask for."""
    if TAKES[options.format] is MODEL:
        from mlesam.inference.export import export_run, parse_size

        export_run(
            run, options.out, options.format, modalities=options.modalities.split(",") if options.modalities else None,
            size=parse_size(options.size) if options.size else None, precision=options.precision or "fp32",
            data=options.data, say=say,
        )  # fmt: skip
        return
    if options.format == "peft":
        from mlesam.model.peft import save_peft

        if options.modality is None:
            raise RequestError(f"--format peft needs --modality, one of {', '.join(run.sensors)}.")
        save_peft(run.load_model(), options.modality, options.out)
        say(f"expert of {options.modality} written to {options.out}")
        return
    from mlesam.inference.adapter import export_adapter, push

    export_adapter(run, options.out, options.without.split(",") if options.without else ())
    size = sum(p.stat().st_size for p in options.out.iterdir()) / 2**20
    say(f"adapter written to {options.out}, {size:.1f} MiB")
    if options.push:
        say(push(options.out, options.push, options.private))
