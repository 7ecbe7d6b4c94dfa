"""The segmenter a user holds: any subset of sensors in, class map and each sensor's share out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlesam.data.dataset import Frame
from mlesam.data.reading import check_sizes
from mlesam.data.transforms import evaluation_sample
from mlesam.errors import RequestError, did_you_mean
from mlesam.inference.compiled import Compiled
from mlesam.inference.formats import SUFFIXES
from mlesam.model.calibration import Calibration
from mlesam.model.features import Features
from mlesam.model.heads import at_size
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import Run
from mlesam.sample import Batch, Classes, Prediction, Sample
from mlesam.sensors.faults import Earlier, SensorFault, break_sample
from mlesam.sensors.files import channels_last, read_array
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import SensorSpec, canonical_order


@dataclass(frozen=True)
class Measured:
    """What the sensors of one scene measured.

    Attributes:
        sample: values in the sensors' units, after their faults. stored: ``{modality: (H, W[, C])}``, the numbers that the values
            were made of, where no fault has changed them.
    """

    sample: Sample
    stored: Mapping[str, np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = next(iter(self.sample.images.values())).shape[-2:]
        return int(height), int(width)


class Segmenter:
    """A trained model with everything its inputs need. Without a ``calibration``, probabilities are the plain softmax.

    Example:
        >>> segmenter = Segmenter.load("runs/street")
        >>> prediction = segmenter({"rgb": "left.png", "depth": depth_array})
        >>> prediction.overlay().save("out.png")
    """

    def __init__(
        self,
        model: MLESAM,
        sensors: Mapping[str, SensorSpec],
        classes: Classes,
        resize: int | None = None,
        device: torch.device | str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self.sensors = {m: sensors[m] for m in canonical_order(sensors)}
        self.classes = classes
        self.resize = resize
        self.calibration = calibration
        self.compiled: Compiled | None = None

    def compile(self, backend: str = "inductor") -> Segmenter:
        """Compile the model with ``torch.compile``: each set of sensors and each size when it is first seen, which takes a minute
        or more. On a GPU a pass becomes a CUDA graph. What docs/performance.md says of its use on a CPU: little.

        Raises:
            RequestError: a model that leaves sensors behind on the way (``model.look``).
        """
        self.compiled = Compiled(self.model, backend)
        return self

    def warm_up(self, size: tuple[int, int], modalities: Iterable[str] | None = None) -> Segmenter:
        """Compute one frame of average values, so that the first real one is as fast as the rest.

        Args:
            size: height and width in pixels. modalities: None: all of the model's.
        """
        chosen = tuple(self.sensors if modalities is None else modalities)
        self.check(chosen)
        images = {
            m: torch.tensor(self.sensors[m].mean)[:, None, None].expand(self.sensors[m].channels, *size).clone()
            for m in canonical_order(chosen)
        }
        self._segment(Measured(Sample(images, id="warm-up"), {}))
        return self

    @staticmethod
    def load(
        path: str | Path,
        device: torch.device | str | None = None,
        *,
        foundation: str | None = None,
        any_foundation: bool = False,
        revision: str | None = None,
        precision: Literal["fp32", "bf16"] | None = None,
        compile: bool = False,
    ) -> Segmenter:
        """Load a run, an exported adapter directory, an adapter on the Hub (``owner/name``), or an exported model (``.onnx`` or
        ``.xml``, docs/export.md), which takes just the sensors and the size that it was exported for.

        Args:
            device: of an exported model the CPU.
            foundation: where the foundation is, instead of what the adapter names.
            any_foundation: take it even if it is not the one trained on. revision: branch, tag or commit on the Hub.
            precision: ``bf16`` computes in bfloat16 where that is safe: about half the time on processors made for it
                (docs/performance.md says what it costs in accuracy). None: ``fp32``; of an exported model that of its export.
            compile: see :meth:`compile`; :meth:`warm_up` does it ahead of the first frame.

        Raises:
            RequestError: there is neither, or its foundation is not here. DataError: damaged files, another foundation.
        """
        if Path(path).suffix in SUFFIXES.values():
            from mlesam.inference.exported import ExportedSegmenter, load_exported

            if compile:
                raise RequestError(f"{path} is an exported model, which cannot be compiled further; leave compile out.")
            return ExportedSegmenter(load_exported(Path(path), precision))
        run = Run.load(path, foundation=foundation, any_foundation=any_foundation, revision=revision)
        resize, calibration = run.recipe.data.resize, run.calibration
        if precision not in (None, "fp32", "bf16"):
            raise RequestError(f"precision is {precision!r}, but it must be fp32 or bf16.")
        model = run.load_model().merge()
        if precision == "bf16":
            model.compute_in(torch.bfloat16)
        segmenter = Segmenter(model, run.sensors, run.classes, resize, device, calibration)
        return segmenter.compile() if compile else segmenter

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        calibration: str | Path | Rig | None = None,
        faults: Iterable[SensorFault | str] = (),
        seed: int = 0,
        frame: str = "",
        earlier: Earlier | None = None,
    ) -> Prediction:
        """Segment one scene.

        Args:
            inputs: ``{modality: path, PIL image, array or tensor}`` for any subset of the model's sensors; None stands
                for an absent one. Whole numbers are taken as a file stores them. Floating-point values are in the
                sensor's unit (an rgb array in 0..1); NaN says that nothing was measured. A tensor is ``(C, H, W)`` or
                ``(H, W)``, an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``.
            calibration: a rig, or its file (docs/sensors/rig.md). Every sensor that it names is given as it was recorded, as
                ``points.bin`` or an array of points, and becomes a picture that is aligned with the camera's.
            faults: what is made to go wrong with the sensors, for example ``["rgb:fog:3"]``: docs/protocols.md.
            seed, frame: what the faults' random numbers depend on. earlier: brings earlier frames for faults in time.

        Raises:
            RequestError: no sensor, or one that the model does not have; a fault it cannot have; a wrong calibration.
            DataError: unreadable input, sensors of different size, or none left after the faults.
        """
        given = {m: x for m, x in inputs.items() if x is not None}
        if not given:
            raise RequestError(f"no sensor was given; this model needs at least one of {', '.join(self.sensors)}.")
        rig = calibration if isinstance(calibration, Rig) or calibration is None else Rig.load(calibration)
        if rig is not None:
            self.check(given)
            rig.check_given(given)
        return self._segment(self.read(given, rig, faults=faults, seed=seed, frame=frame, earlier=earlier))

    def frame(
        self,
        frame: Frame,
        modalities: Iterable[str] | None = None,
        *,
        faults: Iterable[SensorFault | str] = (),
        seed: int = 0,
        earlier: Earlier | None = None,
    ) -> Prediction:
        """Segment a frame of a dataset; the rest is as for :meth:`__call__`.

        Args:
            modalities: use only these sensors. None: all that the frame and the model have.
        """
        chosen = [m for m in self.sensors if m in frame.files and (modalities is None or m in modalities)]
        if not chosen:
            raise RequestError(
                f"frame {frame.id!r} has no file of {', '.join(self.sensors)}; this model needs at least one."
            )
        arrays = {m: frame.read(m, self.sensors[m].channels) for m in chosen}
        names = {m: str(frame.files[m]) for m in chosen}
        return self._segment(self._measured(arrays, names, faults, seed, frame.id, earlier))

    def check(self, modalities: Iterable[str]) -> None:
        """RequestError where the model does not have one of these sensors."""
        for modality in modalities:
            if modality not in self.sensors:
                raise RequestError(f"this model has no sensor {modality!r}{did_you_mean(modality, self.sensors)}")

    def read(
        self,
        given: Mapping[str, Any],
        rig: Rig | None = None,
        size: tuple[int, int] | None = None,
        *,
        faults: Iterable[SensorFault | str] = (),
        seed: int = 0,
        frame: str = "",
        earlier: Earlier | None = None,
    ) -> Measured:
        """What sensors measured, from any input that :meth:`__call__` takes.

        Args:
            rig: of the sensors that are given as they were recorded. size: width and height of the other sensors' pictures,
                where none is given here.
        """
        self.check(given)
        recorded = {} if rig is None else {m: x for m, x in given.items() if m in rig.sensors}
        pictures = {m: _stored_numbers(x, m, self.sensors[m].channels) for m, x in given.items() if m not in recorded}
        if pictures:
            height, width = next(iter(pictures.values())).shape[:2]
            size = width, height
        if rig is not None and size is not None:
            rig = rig.fitted(size)
        encoded = {} if rig is None else {m: rig.encode(m, x) for m, x in recorded.items()}
        arrays = {m: encoded[m] if m in encoded else pictures[m] for m in canonical_order(given)}
        names = {m: str(given[m]) if isinstance(given[m], (str, Path)) else m for m in arrays}
        return self._measured(arrays, names, faults, seed, frame, earlier)

    def _measured(
        self,
        arrays: Mapping[str, np.ndarray],
        names: Mapping[str, str],
        faults: Iterable[SensorFault | str],
        seed: int,
        frame: str,
        earlier: Earlier | None,
    ) -> Measured:
        """Stored numbers ``{modality: (H, W[, C])}``, which messages call by ``names``, with the faults."""
        images = {m: self.sensors[m].encode(a, names[m]) for m, a in arrays.items()}
        check_sizes({names[m]: tuple(x.shape[-2:]) for m, x in images.items()})
        wrong = [SensorFault.parse(f) if isinstance(f, str) else f for f in faults]
        broken = break_sample(Sample(images, id=frame), self.sensors, wrong, seed, earlier)
        stored = {m: arrays[m] for m, x in broken.images.items() if x is images[m]}
        return Measured(broken, stored)

    @torch.inference_mode()
    def encode(self, measured: Measured, early: bool = False) -> Features:
        """What the trunk says of every sensor; ``early`` as for :meth:`MLESAM.encode`."""
        return self.model.encode(self._batch(measured), early=early)

    def _batch(self, measured: Measured) -> Batch:
        """What the model is given."""
        return Batch.stack([evaluation_sample(measured.sample, self.sensors, self.resize)]).to(self.device)

    def _segment(self, measured: Measured) -> Prediction:
        if self.compiled is None:
            return self.decode(measured, self.encode(measured, early=True))
        with torch.inference_mode():
            logits, shares = self.compiled(self._batch(measured).images)
        return self._prediction(measured, logits, self._weights(measured, shares))

    @torch.inference_mode()
    def decode(self, measured: Measured, features: Features, trust: Tensor | None = None) -> Prediction:
        """The answer to what sensors measured.

        Args:
            features: what the trunk says of the same sensors. trust: see :meth:`MLESAM.decode`.
        """
        output = self.model.decode(features, trust)
        return self._prediction(measured, output.logits, self._weights(measured, output.shares))

    def _weights(self, measured: Measured, shares_BLM: Tensor) -> dict[str, float]:
        shares = shares_BLM[0].mean(dim=0).tolist()
        return {m: shares[self.model.modalities.index(m)] for m in measured.sample.images}

    def _prediction(self, measured: Measured, answer: Tensor, weights: dict[str, float]) -> Prediction:
        """The answer (1, K, h, w), class logits at any size, and each sensor's share as a prediction."""
        logits = at_size(answer, measured.size)
        images = measured.sample.images
        temperature = 1.0 if self.calibration is None else self.calibration.temperature(images)
        labels = logits[0].argmax(dim=0).cpu().numpy()
        probabilities = _with_winner((logits[0] / temperature).softmax(dim=0).float().cpu().numpy(), labels)
        modality = next(iter(images))
        values = images[modality].numpy()
        return Prediction(
            labels=labels.astype(np.uint8 if len(self.classes.names) <= 256 else np.int16),
            probabilities=probabilities,
            weights=weights,
            classes=self.classes.names,
            colors=self.classes.colors,
            background=picture(values, measured.stored.get(modality, values), self.sensors[modality]),
        )


def _with_winner(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, H, W) probabilities whose largest is that of the labels (H, W). Rounding can make two classes equal whose logits
    differ, and at every temperature other ones; the class that won keeps the last digit."""
    tied = np.nonzero(probabilities.argmax(axis=0) != labels)
    top = probabilities[:, *tied].max(axis=0)
    probabilities[labels[tied], *tied] = np.nextafter(top, np.float32(2.0))
    return probabilities


def _stored_numbers(value: Any, name: str, channels: int) -> np.ndarray:
    """Any accepted input as ``(H, W)`` or ``(H, W, C)`` uint8, uint16 or float32."""
    if isinstance(value, (str, Path)):
        return read_array(value, channels)
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        picture_like = hasattr(value, "mode") and hasattr(value, "getbands")
        if picture_like and value.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
            value = value.convert("RGB")
        array = np.asarray(value)
        array = channels_last(array, channels) if array.ndim == 3 else array
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise RequestError(f"{name} has the shape {array.shape}; give (H, W), (H, W, C), or a tensor (C, H, W).")
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint16)  # what a 16-bit file becomes in libraries without an unsigned type
    raise RequestError(f"{name} holds {array.dtype} values; give uint8, uint16 or floating-point numbers.")


def picture(values: np.ndarray, stored: np.ndarray, spec: SensorSpec) -> np.ndarray:
    """A sensor as an ``(H, W, 3)`` uint8 picture to look at: three channels as they are, one in grey, others in false
    colour.

    Args:
        values: ``(C, H, W)`` as :meth:`SensorSpec.encode` returns it. stored: the numbers it came from.
    """
    if stored.dtype == np.uint8 and stored.ndim == 3 and stored.shape[2] in (3, 4) and spec.channels <= 3:
        return np.ascontiguousarray(stored[..., :3])
    if len(values) not in (1, 3):
        return false_color(values)
    low, high = spec.range
    if spec.photometric == "color" and spec.normalize == "dataset" and np.isfinite(high - low):
        scaled = np.where(np.isfinite(values), (values - low) / max(float(high - low), 1e-6), 0.0).clip(0, 1)
    else:
        scaled = stretched(values)
    grey = np.moveaxis((scaled * 255).astype(np.uint8), 0, -1)
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else np.ascontiguousarray(grey)


def false_color(values: np.ndarray) -> np.ndarray:
    """Bands ``(C, H, W)`` as an ``(H, W, 3)`` uint8 picture: the means of the first, middle and last third of them are
    blue, green and red, each stretched on its own. For a spectrum in order of wavelength the longest waves are red, as
    the eye has it. Of two bands both are in the middle.
    """
    thirds = [values[:1], values, values[1:]] if len(values) == 2 else np.array_split(values, 3)
    channels = [stretched(_mean(third)) for third in reversed(thirds)]
    return (np.stack(channels, axis=-1) * 255).astype(np.uint8)


def stretched(values: np.ndarray) -> np.ndarray:
    """To 0..1 between the 1st and 99th percentile of what is measured; nothing measured (NaN) is 0."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.float32)
    low, high = np.percentile(values[finite], [1, 99])
    return np.where(finite, (values - low) / max(float(high - low), 1e-6), 0.0).clip(0, 1).astype(np.float32)


def _mean(bands: np.ndarray) -> np.ndarray:
    """Over the bands that measured something; NaN where none did."""
    measured = np.isfinite(bands)
    count = measured.sum(axis=0)
    total = np.where(measured, bands, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
