"""What every dataset offers, whatever its layout on disk: frames by split, classes, and what its sensors mean."""

from __future__ import annotations

import colorsys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlesam.config import DataConfig
from mlesam.errors import RequestError, did_you_mean
from mlesam.sensors.files import read_array

KINDS = ("folder", "world")


@dataclass(frozen=True)
class Frame:
    """The files of one scene. A sensor without a file is an absent key."""

    id: str
    files: dict[str, Path]
    label: Path | None = None
    tags: tuple[str, ...] = ()

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        """A sensor's file as stored, see :func:`mlesam.sensors.files.read_array`; ``channels`` where they are known."""
        others = [path for m, path in self.files.items() if m != modality]
        return read_array(self.files[modality], channels, [self.label, *others] if self.label else others)


class Dataset(ABC):
    """A dataset on disk.

    Attributes:
        name: ``KIND:PATH`` as given. modalities: the sensors it has, in canonical order.
        declared: classes, colours and sensors as the dataset and the recipe declare them; undeclared ones are None.
    """

    name: str
    modalities: tuple[str, ...]
    declared: DataConfig

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it has."""

    @abstractmethod
    def frames(self, split: str) -> list[Frame]:
        """The frames of a split in a fixed order. Raises RequestError where the split is unknown or empty."""

    def default_split(self) -> str:
        """The split that evaluation reports: ``test`` where it is labelled, else ``val``."""
        for split in ("test", "val"):
            if split in self.splits() and any(f.label for f in self.frames(split)):
                return split
        raise RequestError(
            f"{self.name} has neither a labelled test nor a val split; name one of {', '.join(self.splits())} with --split."
        )

    def sensor(self, modality: str) -> dict[str, Any]:
        """The declared fields of a sensor's spec."""
        return self.declared.sensors.get(modality, {})


def open_dataset(name: str, config: DataConfig | None = None) -> Dataset:
    """Open ``folder:PATH`` or ``world:OPTIONS``, with what a recipe declares on top of what the dataset itself says.

    Raises:
        RequestError: no such kind, path or option.
    """
    from mlesam.data.folder import FolderDataset
    from mlesam.data.world import WorldDataset

    kind, _, path = name.partition(":")
    if not path and Path(name).is_dir():
        raise RequestError(f"{name!r} does not say what kind of dataset it is; write folder:{name}.")
    if kind not in KINDS:
        raise RequestError(f"unknown kind of dataset {kind!r} in {name!r}{did_you_mean(kind, KINDS)}")
    if kind == "world":
        return WorldDataset(path, config or DataConfig())
    if not path:
        raise RequestError(f"{name!r} names no folder; write {kind}:PATH.")
    return FolderDataset(Path(path), config or DataConfig(), name)


def default_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ for any number of classes: hues a golden angle apart, in three brightnesses."""
    colors = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb((0.08 + i * 0.618034) % 1.0, 0.75, (0.95, 0.75, 0.55)[i % 3])
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)
