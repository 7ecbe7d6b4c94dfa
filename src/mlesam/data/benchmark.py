"""What the readers of published benchmarks share: fixed classes, options behind a ``?``, a folder that may be an archive.

``deliver:/data/DELIVER`` or ``deliver:/data/DELIVER.zip?squash=1024``. Each reader takes the layout as it is published and
changes nothing on disk.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mlesam.config import DataConfig, build, parse_yaml
from mlesam.data.dataset import Dataset, Frame
from mlesam.data.folder import packed_root
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sensors.archives import AnyPath, open_root
from mlesam.sensors.spec import canonical_order


@dataclass(frozen=True)
class Options:
    """What every benchmark takes behind a ``?``."""

    squash: int | None = None
    """Side in pixels that sensors and labels are squashed to, as some published evaluations do. None: native size."""

    def __post_init__(self) -> None:
        if self.squash is not None and not 32 <= self.squash <= 8192:
            raise RequestError(f"squash is {self.squash}, but it must be between 32 and 8192 pixels.")


T = TypeVar("T", bound=Options)
SPLITS = ("train", "val", "test")
MINIATURE = "MINIATURE.txt"
"""File at the top of a miniature that says what it is; `mlesam mini` writes it, and no reader of the originals looks at it."""
NOTHING: Mapping[Any, Any] = {}


class Benchmark(Dataset):
    """A published dataset in its own layout.

    Attributes:
        kind: the word before the colon. title: what people call it. source: where it is obtained.
        folders: top folder of each sensor. needed: top folders or files without which it is not this dataset.
        classes: names and colours by id. label_map: stored label value to id. specs: what the sensors' files hold.
        option_type: what may stand behind the ``?``.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    folders: Mapping[str, str]
    needed: ClassVar[tuple[str, ...]]
    classes: ClassVar[Mapping[str, tuple[int, int, int]]]
    label_map: ClassVar[Mapping[int, int]] = NOTHING
    specs: Mapping[str, Mapping[str, Any]] = NOTHING
    option_type: ClassVar[type[Options]] = Options

    def __init__(self, text: str, config: DataConfig) -> None:
        path, _, chosen = text.partition("?")
        self.name = f"{self.kind}:{text}"
        self.options = parse_options(chosen, self.option_type, self.name)
        self.root = self._open_root(Path(path))
        self._frames = cache(self._read_split)
        self.modalities = canonical_order(self._find_modalities())
        if not self.modalities:
            raise RequestError(
                f"{self.root} holds none of {self.title}'s sensor folders ({', '.join(self.folders.values())}); {self.mend()}"
            )
        self.declared = self._declare(config)

    def mend(self) -> str:
        """The end of a message about files that are not there."""
        return f"unpack {self.title} again, or fetch it from {self.source}."

    def miniature(self) -> bool:
        return (self.root / MINIATURE).is_file()

    def frames(self, split: str) -> list[Frame]:
        if split not in self.splits():
            raise RequestError(f"{self.name} has no split {split!r}{did_you_mean(split, self.splits())}")
        frames = self._frames(split)
        if not frames:
            raise DataError(f"split {split!r} of {self.name} holds no frame; {self.mend()}")
        return frames

    def _read_split(self, split: str) -> list[Frame]:
        return [dataclasses.replace(frame, squash=self.options.squash) for frame in self._list_frames(split)]

    @abstractmethod
    def _list_frames(self, split: str) -> Iterable[Frame]:
        """The frames of a split in a fixed order, also those that lack files."""

    def _find_modalities(self) -> Iterable[str]:
        return [m for m, folder in self.folders.items() if (self.root / folder).is_dir()]

    def _open_root(self, path: Path) -> AnyPath:
        if not path.exists():
            raise RequestError(f"there is no {path}; give the folder, zip or tar that {self.title} is in.")
        root = packed_root(open_root(path), self.needed)
        missing = [name for name in self.needed if not (root / name).exists()]
        if missing:
            inside = next((p for p in root.iterdir() if p.is_dir() and (p / missing[0]).exists()), None)
            hint = f"{self.kind}:{inside} seems to be meant" if inside else self.mend().rstrip(".")
            raise RequestError(
                f"there is no {missing[0]} in {root}, and {self.title} has {', '.join(self.needed)} at its top; {hint}."
            )
        return root

    def _declare(self, config: DataConfig) -> DataConfig:
        """The published classes, and the sensors' specs with the recipe's on top."""
        names = tuple(self.classes)
        if config.classes not in (None, names):
            raise RequestError(
                f"the classes of {self.title} are fixed ({len(names)}, from {names[0]} to {names[-1]}); leave data.classes out."
            )
        if config.rig is not None:
            raise RequestError(
                f"data.rig is {config.rig}, but only folder: datasets take a rig; leave it out for {self.title}."
            )
        for modality in config.sensors:
            if modality not in self.modalities:
                raise RequestError(f"{self.name} has no sensor {modality!r}{did_you_mean(modality, self.modalities)}")
        sensors = {m: {**self.specs.get(m, {}), **config.sensors.get(m, {})} for m in self.modalities}
        return dataclasses.replace(
            config, classes=names, colors=tuple(self.classes.values()), ignore=255, ignore_color=None,
            label_map=dict(self.label_map), sensors=sensors,
        )  # fmt: skip


def by_frame(
    files: Mapping[str, Mapping[str, AnyPath]], labels: Mapping[str, AnyPath]
) -> Iterator[tuple[str, dict[str, AnyPath], AnyPath | None]]:
    """From ``{modality: {id: file}}`` and ``{id: label}`` each frame's id, files by modality, and label, by id."""
    for name in sorted({*labels, *(i for found in files.values() for i in found)}):
        yield name, {m: found[name] for m, found in files.items() if name in found}, labels.get(name)


def parse_options(text: str, kind: type[T], name: str) -> T:
    """``"squash=1024,source=raw"`` as the options of a dataset. RequestError for what is unknown or out of range."""
    known = [f.name for f in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.strip().partition("=")
        if not equals or key not in known:
            raise RequestError(
                f"{name!r} has the option {part.strip()!r}; write ?NAME=VALUE,...{did_you_mean(key, known)}"
            )
        try:
            values[key] = parse_yaml(value)
        except ValueError:
            raise RequestError(f"{key} of {name!r} has the value {value!r}, which cannot be read.") from None
    return build(kind, values, name)
