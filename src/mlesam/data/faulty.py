"""Frames whose sensors are at fault: what a fault in time shows, and one broken sensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from mlesam.data.dataset import Frame
from mlesam.data.reading import read_frame
from mlesam.data.transforms import evaluation_sample
from mlesam.sample import Sample
from mlesam.sensors.faults import SensorFault, break_sample, earlier_index
from mlesam.sensors.spec import SensorSpec


def earlier_values(
    frames: Sequence[Frame],
    sensors: Mapping[str, SensorSpec],
    index: int,
    modality: str,
    fault: str,
    parameter: int,
) -> Tensor | None:
    """What a fault in time shows in the place of frame ``index``: a sensor of an earlier frame of ``frames``.

    A frame without the sensor was never recorded: the nearest one before it that has the sensor is shown instead. None where
    there is none, or where it is the frame itself.
    """
    for place in range(earlier_index(index, fault, parameter), -1, -1):
        if modality in frames[place].files:
            if place == index:
                return None
            return read_frame(frames[place], {modality: sensors[modality]}).images[modality]
    return None


class BrokenFrames:
    """A split's frames with one sensor at fault, normalised as a model takes them.

    Args:
        frames: the whole split in its order, which faults in time go back in.
        resize: short side in pixels, see :class:`mlesam.config.DataConfig`.
        seed: of the faults.
    """

    def __init__(
        self, frames: Sequence[Frame], sensors: Mapping[str, SensorSpec], resize: int | None, seed: int
    ) -> None:
        self.frames, self.sensors, self.resize, self.seed = frames, sensors, resize, seed
        self.index = {frame.id: i for i, frame in enumerate(frames)}
        self._read: tuple[str, str, Sample] | None = None

    def image(self, frame: str, fault: SensorFault) -> Tensor | None:
        """``(C, H, W)`` of the broken sensor in a frame that has it; None where the fault removes it.

        Args:
            frame: its id.
        """
        index, sensor = self.index[frame], fault.sensor
        if self._read is None or self._read[:2] != (frame, sensor):  # all faults of a sensor come one after the other
            self._read = frame, sensor, read_frame(self.frames[index], {sensor: self.sensors[sensor]})
        if fault.fault.removes:
            return None
        earlier = partial(earlier_values, self.frames, self.sensors, index)
        broken = break_sample(self._read[2], self.sensors, [fault], self.seed, earlier)
        return evaluation_sample(broken, self.sensors, self.resize).images[sensor]
