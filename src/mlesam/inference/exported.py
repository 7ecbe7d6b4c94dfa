"""Exported models in use: a file with what it is about, and a segmenter around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlesam.config import build, plain
from mlesam.data.transforms import at_short_side
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.inference.formats import OUTPUTS, SUFFIXES, Runner, open_onnx, open_openvino
from mlesam.inference.segmenter import Measured, Segmenter
from mlesam.model.calibration import Calibration
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Classes, Prediction
from mlesam.sensors.spec import SensorSpec


@dataclass(frozen=True)
class Exported:
    """An exported model, ready to run.

    Attributes:
        path: of its file. about: what the file says of itself, see docs/export.md. precision: in which it runs.
    """

    path: Path
    about: dict[str, Any]
    precision: str
    run: Runner

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.about["modalities"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.about["height"], self.about["width"]

    @property
    def sensors(self) -> dict[str, SensorSpec]:
        """What its inputs mean. The file itself brings a frame to its own mean where a sensor wants that, so they do not."""
        return {
            m: dataclasses.replace(_read_spec(self.about["sensors"][m], m), normalize="dataset")
            for m in self.modalities
        }

    @property
    def classes(self) -> Classes:
        return Classes(tuple(self.about["classes"]), tuple((r, g, b) for r, g, b in self.about["colors"]))

    def __call__(self, images: Mapping[str, Tensor | np.ndarray]) -> dict[str, np.ndarray]:
        """Run one frame.

        Args:
            images: ``{modality: (1, C, H, W)}`` float32 in the sensors' units, NaN where nothing was measured.

        Returns:
            ``logits`` (1, K, H, W), whose softmax is calibrated, and ``weights`` (1, M), each sensor's share.

        Raises:
            RequestError: other sensors or another size than the model was exported for.
        """
        self.check(images)
        arrays = {m: np.ascontiguousarray(np.asarray(images[m], dtype=np.float32)) for m in self.modalities}
        return dict(zip(OUTPUTS, self.run(arrays), strict=True))

    def check(self, images: Mapping[str, Tensor | np.ndarray]) -> None:
        """Refuse what the graph was not made for."""
        if set(images) != set(self.modalities):
            raise RequestError(
                f"{self.path} was exported for {' + '.join(self.modalities)} together and cannot take "
                f"{' + '.join(images) or 'no sensor'}; give just these, or export the run with --modalities {','.join(images)}."
            )
        height, width = self.size
        for modality, image in images.items():
            if tuple(image.shape[-2:]) != (height, width):
                found = f"{image.shape[-1]}x{image.shape[-2]}"
                raise RequestError(
                    f"{self.path} was exported for {width}x{height} pixels and {modality} has {found}; resize the frame, or "
                    f"export the run with --size {found}."
                )


def load_exported(path: str | Path, precision: str | None = None, threads: int | None = None) -> Exported:
    """Load an exported ONNX or OpenVINO model.

    Args:
        precision: to run in, where the format leaves a choice: an OpenVINO file of ``fp32`` can run in ``bf16`` and the other way
            round. None: that of the export, or ``fp32`` where the CPU has no bf16.
        threads: None: all cores.

    Raises:
        RequestError: no such file, format or precision, or a package is not installed. DataError: the file is damaged.
    """
    path = Path(path)
    if path.suffix == SUFFIXES["torch"]:
        raise RequestError(
            f"{path} is a torch.export program, a format that can execute code, so this package does not open it; export to "
            "onnx or openvino, or load a file that you trust with torch.export.load."
        )
    openers = {SUFFIXES["onnx"]: open_onnx, SUFFIXES["openvino"]: open_openvino}
    if path.suffix not in openers:
        raise RequestError(f"{path} is no exported model by its name{did_you_mean(path.suffix, openers)}")
    if not path.is_file():
        raise RequestError(f"there is no file {path}; give what `mlesam export` wrote.")
    return Exported(path, *openers[path.suffix](path, precision, threads))


class ExportedSegmenter(Segmenter):
    """A segmenter of one set of sensors at one size, around an exported model.

    It reads its inputs as that of the run does and gives the same answers. Where the run resizes its frames, so does this.
    """

    def __init__(self, exported: Exported) -> None:
        self.device = torch.device("cpu")
        self.exported = exported
        self.sensors = exported.sensors
        self.classes = exported.classes
        self.resize = exported.about["resize"]
        # The temperature is inside the logits already.
        self.calibration = None if exported.about["temperature"] is None else Calibration(base=0.0)

    @property
    def model(self) -> MLESAM:  # type: ignore[override]
        raise RequestError(
            f"{self.exported.path} computes all its sensors at once and holds no model; this needs the run."
        )

    @torch.inference_mode()
    def _segment(self, measured: Measured) -> Prediction:
        images = measured.sample.images
        found = self.exported({m: at_short_side(x, self.resize, self.sensors[m])[None] for m, x in images.items()})
        shares = dict(zip(self.exported.modalities, found["weights"][0].tolist(), strict=True))
        return self._prediction(measured, torch.from_numpy(found["logits"]), {m: shares[m] for m in images})


def plain_spec(spec: SensorSpec) -> dict[str, Any]:
    """A spec as JSON, which has no infinity: a range without an end has null there."""
    values = plain(spec)
    values["range"] = [v if math.isfinite(v) else None for v in spec.range]
    return values


def _read_spec(values: Mapping[str, Any], modality: str) -> SensorSpec:
    low, high = values["range"]
    ends = [-math.inf if low is None else low, math.inf if high is None else high]
    try:
        return build(SensorSpec, {**values, "range": ends}, f"sensors.{modality}")
    except RequestError as error:
        raise DataError(f"the exported model cannot be read: {error}") from None
