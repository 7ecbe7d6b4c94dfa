"""Frames whose files are recordings as they left the device: a rig makes pictures of them when they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlesam.data.dataset import Frame
from mlesam.sensors.files import EXTENSIONS, image_size
from mlesam.sensors.rig import Rig


@dataclass(frozen=True)
class RecordedFrame(Frame):
    """The sensors that ``rig`` names are recordings; the others and the label are pictures."""

    rig: Rig = field(default_factory=Rig, compare=False, repr=False)

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        if modality not in self.rig.sensors:
            return super().read(modality, channels)
        return self.fitted_rig().encode(modality, self.files[modality])

    def fitted_rig(self) -> Rig:
        """The rig at the size of this frame's pictures, which may be smaller than those of the calibration."""
        camera = self.rig.camera
        pictures = [path for m, path in self.files.items() if m not in self.rig.sensors]
        beside = [*pictures, *([self.label] if self.label else [])]
        known = next((path for path in beside if path.suffix.lower() in EXTENSIONS), None)
        if camera is None or known is None:
            return self.rig
        height, width = image_size(known)
        return self.rig.fitted((width, height))
