"""What all encoders of raw recordings have in common, and what their pages in docs/sensors say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlesam.config import build
from mlesam.sensors import sensor_spec
from mlesam.sensors.depth import DepthEncoder
from mlesam.sensors.event_files import pack_events
from mlesam.sensors.events import EventsEncoder
from mlesam.sensors.polarization import PolarizationEncoder
from mlesam.sensors.spectral import SpectralEncoder
from mlesam.sensors.thermal import ThermalEncoder

DOCS = Path(__file__).resolve().parents[1] / "docs" / "sensors"
CAMERA = SimpleNamespace(size=(16, 12), matrix=np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]]), distortion=None)
RNG = np.random.default_rng(0)
EVENTS = pack_events(RNG.integers(0, 16, 50), RNG.integers(0, 12, 50), np.arange(50), RNG.integers(0, 2, 50))
COUNTS = RNG.integers(29_000, 31_000, (12, 16)).astype(np.uint16)

CASES: list[tuple[type, dict[str, Any], np.ndarray]] = [
    (EventsEncoder, {}, EVENTS),
    (EventsEncoder, {"representation": "voxels", "bins": 4}, EVENTS),
    *((DepthEncoder, {"encoding": encoding}, COUNTS) for encoding in ("metric", "inverse", "log", "hha")),
    (ThermalEncoder, {}, COUNTS),
    (PolarizationEncoder, {}, COUNTS),
    (PolarizationEncoder, {"output": ["aolp", "intensity"]}, COUNTS),
    (SpectralEncoder, {"bands": [1, 3]}, RNG.random((12, 16, 2), np.float32)),
    (SpectralEncoder, {"groups": 3}, RNG.random((12, 16, 8), np.float32)),
]
ENCODERS = {encoder.kind: encoder for encoder, _, _ in CASES}
PAGES = {
    "event": "events",
    "depth": "depth",
    "thermal": "thermal",
    "polarization": "polarization",
    "spectral": "spectral",
}


@pytest.mark.parametrize(("encoder", "options", "raw"), CASES, ids=lambda v: v.kind if isinstance(v, type) else "")
def test_a_recording_becomes_a_picture_with_the_channels_that_are_named(
    encoder: Any, options: dict[str, Any], raw: np.ndarray
) -> None:
    made = build(encoder, options)
    before = raw.copy()
    picture = made.encode(raw, CAMERA)
    assert picture.dtype == np.float32
    assert picture.shape == (12, 16, len(made.channels))
    assert np.isfinite(picture).any()
    np.testing.assert_array_equal(raw, before)
    assert len(set(made.channels)) == len(made.channels)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in made.suffixes)


@pytest.mark.parametrize(("page", "kind"), PAGES.items())
def test_the_blocks_of_its_page_are_valid_and_fit_each_other(page: str, kind: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    rig, data = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    (name, values), (modality, declared) = (*rig["sensors"].items(), *data["data"]["sensors"].items())
    assert name == modality
    assert values.pop("kind") == kind
    made = build(ENCODERS[kind], values, name)
    assert sensor_spec(modality, declared).channels == len(made.channels)
    fields = dataclasses.fields(made)
    choices = re.findall(r"['\"](\w+)['\"]", " ".join(str(field.type) for field in fields))
    assert set(re.findall(r"^\| `(\w+)", text, re.MULTILINE)) <= {field.name for field in fields} | set(choices)
