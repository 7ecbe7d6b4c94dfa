"""What every dataset offers, whatever its layout on disk: frames by split, classes, and what its sensors mean.

A dataset of one's own is a subclass of :class:`Dataset`, made known with :func:`register` (docs/data.md).
"""

from __future__ import annotations

import colorsys
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlesam.config import DataConfig
from mlesam.errors import RequestError, did_you_mean
from mlesam.sensors.archives import AnyPath
from mlesam.sensors.files import read_array, read_label


@dataclass(frozen=True)
class Frame:
    """The files of one scene. A sensor without a file is an absent key.

    A dataset whose files are no plain pictures returns frames of a subclass that reads them.

    Attributes:
        id: unique in its split. files: by modality; a dataset's own reading may look at others beside it.
        label: None where there is none. tags: such as weather and fault.
        squash: side in pixels that sensors and label are brought to, whatever their proportions. None: as they are.
    """

    id: str
    files: Mapping[str, AnyPath]
    label: AnyPath | None = None
    tags: tuple[str, ...] = ()
    squash: int | None = None

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        """A sensor's file as stored, see :func:`mlesam.sensors.files.read_array`; ``channels`` where they are known."""
        others = [path for m, path in self.files.items() if m != modality]
        return read_array(self.files[modality], channels, [self.label, *others] if self.label else others)

    def read_label(self, colors: Collection[tuple[int, int, int]] = ()) -> np.ndarray:
        """The label file as stored, see :func:`mlesam.sensors.files.read_label`."""
        assert self.label is not None
        return read_label(self.label, colors)


@dataclass(frozen=True)
class Submission:
    """What the server of a benchmark scores: a zip with one 8-bit grey PNG of class ids for every frame of a split.

    Attributes:
        server: where it is uploaded. split: whose frames it holds. frames: how many those are.
        classes: by id; a picture holds no other values. size: width and height of every picture.
        folder: at the top of the zip, around the pictures. largest: bytes of the zip.
    """

    server: str
    split: str
    frames: int
    classes: tuple[str, ...]
    size: tuple[int, int]
    folder: str
    largest: int

    def name(self, frame: Frame) -> str:
        """Of a frame's picture inside the zip."""
        return f"{self.folder}/{frame.id.rpartition('/')[2]}.png"


UNPUBLISHED: Mapping[str, Mapping[str, int]] = {}


class Dataset(ABC):
    """A dataset on disk.

    Attributes:
        name: ``KIND:PATH`` as given. modalities: the sensors it has, in canonical order.
        declared: classes, colours and sensors as the dataset and the recipe declare them; undeclared ones are None.
        published: of a published dataset the number of frames by split and tag, as far as known; the tag "" stands for all.
            Every frame of such a dataset has every sensor.
        source: where a published dataset is obtained.
        submission: of a dataset whose test labels are with a benchmark's server, what that server takes.
    """

    name: str
    modalities: tuple[str, ...]
    declared: DataConfig
    published: Mapping[str, Mapping[str, int]] = UNPUBLISHED
    source: str = ""
    submission: Submission | None = None

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

    def about(self, split: str) -> str | None:
        """What somebody who reads a number of this split must know, for ``metrics.json``, tables and the report."""
        return None

    def miniature(self) -> bool:
        """Whether it only stands in for a published dataset, in its layout: numbers on it are compared with nobody's."""
        return False


Opener = Callable[[str, DataConfig], Dataset]
"""Opens what stands behind the colon of ``KIND:PATH``, with what a recipe declares on top."""


def _lazily(module: str, name: str) -> Opener:
    """A dataset of the package, whose module is imported when it is first asked for."""

    def opener(path: str, config: DataConfig) -> Dataset:
        return getattr(importlib.import_module(f"mlesam.data.{module}"), name)(path, config)

    return opener


KINDS: dict[str, Opener] = {
    "folder": _lazily("folder", "FolderDataset"),
    "world": _lazily("world", "WorldDataset"),
    "deliver": _lazily("deliver", "Deliver"),
    "muses": _lazily("muses", "Muses"),
    "mcubes": _lazily("mcubes", "Mcubes"),
}
"""What ``KIND:PATH`` may start with. Only code adds to it, with :func:`register`; a recipe cannot."""


def register(kind: str, opener: Opener) -> None:
    """Make ``kind:PATH`` known in this process, for a recipe, :func:`open_dataset` and ``mlesam.cli.main``.

    Args:
        kind: a word without a colon. opener: a :class:`Dataset` subclass or a function of the path and the recipe's part.

    Raises:
        RequestError: the kind has a colon or is taken.
    """
    if ":" in kind or not kind or kind in KINDS:
        raise RequestError(f"a kind of dataset cannot be called {kind!r}; it must be a new word without a colon.")
    KINDS[kind] = opener


def open_dataset(name: str, config: DataConfig | None = None) -> Dataset:
    """Open ``KIND:PATH``, with what a recipe declares on top of what the dataset itself says.

    Raises:
        RequestError: no such kind, path or option.
    """
    kind, _, path = name.partition(":")
    if not path and Path(name).is_dir():
        raise RequestError(f"{name!r} does not say what kind of dataset it is; write folder:{name}.")
    if kind not in KINDS:
        raise RequestError(f"unknown kind of dataset {kind!r} in {name!r}{did_you_mean(kind, KINDS)}")
    if not path and kind != "world":
        raise RequestError(f"{name!r} names no folder; write {kind}:PATH.")
    return KINDS[kind](path, config or DataConfig())


def default_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ for any number of classes: hues a golden angle apart, in three brightnesses."""
    colors = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb((0.08 + i * 0.618034) % 1.0, 0.75, (0.95, 0.75, 0.55)[i % 3])
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)
