"""One frozen SAM2, one LoRA expert per sensor, a router that knows which sensors to trust.

The public names below are imported on first use, so that ``import mlesam`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "Segmenter": "mlesam.inference.segmenter",
    "SegmenterStream": "mlesam.inference.stream",
    "MLESAM": "mlesam.model.mlesam",
    "ModelConfig": "mlesam.config",
    "Recipe": "mlesam.config",
    "Sample": "mlesam.sample",
    "Batch": "mlesam.sample",
    "Prediction": "mlesam.sample",
    "SensorSpec": "mlesam.sensors.spec",
    "MlesamError": "mlesam.errors",
    "RequestError": "mlesam.errors",
    "DataError": "mlesam.errors",
    "WorkError": "mlesam.errors",
}

__all__ = [
    "MLESAM",
    "Batch",
    "DataError",
    "MlesamError",
    "ModelConfig",
    "Prediction",
    "Recipe",
    "RequestError",
    "Sample",
    "Segmenter",
    "SegmenterStream",
    "SensorSpec",
    "WorkError",
    "__version__",
]

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from mlesam.config import ModelConfig, Recipe
    from mlesam.errors import DataError, MlesamError, RequestError, WorkError
    from mlesam.inference.segmenter import Segmenter
    from mlesam.inference.stream import SegmenterStream
    from mlesam.model.mlesam import MLESAM
    from mlesam.sample import Batch, Prediction, Sample
    from mlesam.sensors.spec import SensorSpec


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mlesam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
