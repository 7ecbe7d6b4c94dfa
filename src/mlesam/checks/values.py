"""Checks of one sensor's files against each other and against what its spec says about them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlesam.checks.files import FrameFacts, SensorFile
from mlesam.checks.findings import Findings, counted, named
from mlesam.errors import DataError
from mlesam.sensors.spec import SensorSpec

OFF_MAP = 0.3
"""Mean share of pixels off the colour map from which the map is doubted. Black holes and burnt-in logos stay below."""
WORDS = {"uint8": "8-bit", "uint16": "16-bit", "float32": "floating-point"}


@dataclass(frozen=True)
class _File:
    """A file as messages call it, and what it holds."""

    name: str
    held: SensorFile


def check_values(
    modality: str,
    spec: SensorSpec,
    declared: Mapping[str, Any],
    facts: Sequence[FrameFacts],
    short: Callable[[object], str],
    findings: Findings,
) -> None:
    """Check one sensor's files.

    Args:
        spec: the sensor's spec; declared: those of its fields that the dataset or the recipe set.
        short: a path as messages call it.
    """
    files = [_File(short(f.frame.files[modality]), f.sensors[modality]) for f in facts if modality in f.sensors]
    if not files:
        return
    _check_flat(modality, files, findings)
    _check_encoding(modality, spec, declared, files, findings)
    if spec.colormap is not None:
        _check_colormap(modality, spec, files, findings)
    else:
        _check_types(modality, spec, declared, files, findings)
        _check_range(modality, spec, declared, files, findings)


def _check_encoding(
    modality: str, spec: SensorSpec, declared: Mapping[str, Any], files: list[_File], findings: Findings
) -> None:
    """Put one pixel of each file's type and channels through the spec: what training would refuse is refused here."""
    if "channels" not in declared and spec.photometric != "color" and spec.colormap is None:
        # Files that are all grey hold one channel, three times over: the reader takes them so.
        grey = all(f.held.grey for f in files if f.held.channels in (3, 4))
        channels = Counter(_folded(f, grey) for f in files).most_common(1)[0][0]
        spec = dataclasses.replace(spec, channels=channels, mean=(0.0,), std=(1.0,))
    for f in files:
        pixel = np.zeros(f.held.channels) if f.held.grey else np.arange(f.held.channels)
        try:
            spec.encode(pixel[None, None].astype(f.held.dtype), f.name)
        except DataError as error:
            findings.fault(f"{modality} files that do not fit its spec", str(error), f.name)


def _folded(file: _File, grey: bool) -> int:
    if file.held.channels in (3, 4) and grey:
        return 1
    return 3 if file.held.channels == 4 and file.name.lower().endswith(".png") else file.held.channels


def _check_types(
    modality: str, spec: SensorSpec, declared: Mapping[str, Any], files: list[_File], findings: Findings
) -> None:
    """What one file alone does not show: mixed number types, and 8-bit files where physical values are meant."""
    counts = Counter(f.held.dtype for f in files)
    if len(counts) > 1 and spec.dtype is None:
        widest = "float32" if "float32" in counts else "uint16"
        for f in files:
            if f.held.dtype != widest:
                findings.fault(
                    f"{modality} files of another number type",
                    f"{f.name} holds {WORDS[f.held.dtype]} values, but other {modality} files ({counts[widest]:,}) hold "
                    f"{WORDS[widest]} ones; export the original values (a conversion to 8 bits loses them).",
                    f.name,
                )
    elif set(counts) == {"uint8"} and spec.dtype is None and spec.scale is not None:
        if declared.get("scale") is not None:
            findings.fault(
                "8-bit files of a physical sensor",
                f"{modality} declares that a stored value x {spec.scale:g} is in {spec.unit}, but all of its files hold 8-bit "
                f"values, as {files[0].name} does; export the original values, or declare dtype: uint8 if that is meant.",
            )
        else:
            findings.note(
                "8-bit files of a physical sensor",
                f"{modality}: the files hold 8-bit values, which are read as a fraction of full scale and not in {spec.unit}; "
                "if the sensor recorded 16 bits, export those",
            )
    if set(counts) == {"uint16"} and 0 < max(f.held.high or 0.0 for f in files) <= 255:
        findings.note(
            "8-bit values in 16-bit files", f"{modality}: no 16-bit file holds a value above 255; were they 8-bit once?"
        )


def _check_flat(modality: str, files: list[_File], findings: Findings) -> None:
    flat = [f for f in files if f.held.flat]
    if len(flat) == len(files) > 1:
        findings.note(
            "constant sensors", f"{modality} is constant: in each of its {len(files)} files all pixels are the same"
        )
        return
    for f in flat:
        said = "nothing was measured in any pixel" if f.held.low is None else f"every pixel is {f.held.low:g}"
        findings.note("constant files", f"{f.name} is constant: {said}")


def _check_colormap(modality: str, spec: SensorSpec, files: list[_File], findings: Findings) -> None:
    map_ = repr(spec.colormap) if isinstance(spec.colormap, str) else "of its spec"
    off = float(np.mean([f.held.off_map for f in files]))
    if off > OFF_MAP:
        findings.note(
            "doubtful colour maps",
            f"{modality}: {off:.0%} of the pixels have a colour that the colour map {map_} does not have and count as not "
            "measured; is it another map?",
        )


def _check_range(
    modality: str, spec: SensorSpec, declared: Mapping[str, Any], files: list[_File], findings: Findings
) -> None:
    low, high = spec.range
    beyond, extremes = [], []
    for f in files:
        if f.held.low is None or f.held.high is None:
            continue
        if f.held.dtype == "float32":
            if spec.unit == "1" and "range" not in declared:
                continue  # the reader takes any range
            factor = 1.0
        elif f.held.dtype == "uint8" and spec.scale is not None and "scale" not in declared:
            continue  # read as a fraction of full scale
        else:
            factor = spec.scale if spec.scale is not None else 1.0 / np.iinfo(f.held.dtype).max
        slack = 1e-6 * (high - low)  # rounding in float32
        outside = [v for v in (f.held.low * factor, f.held.high * factor) if not low - slack <= v <= high + slack]
        if outside:
            beyond.append(f.name)
            extremes += outside
    if beyond:
        unit = "" if spec.unit == "1" else f" {spec.unit}"
        worst = max(extremes, key=lambda v: max(low - v, v - high))
        findings.note(
            "values out of range",
            f"{modality}: {len(beyond)} of {counted(len(files), 'file')} hold values outside {low:g} to {high:g}{unit} (as far "
            f"as {worst:.4g}), which are clipped: {named(beyond, 3)}",
        )
