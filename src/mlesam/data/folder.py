"""The ``folder`` layout, for anyone's own data.

``ROOT/<modality>/<split>/<id>.<ext>`` with ``ROOT/labels/<split>/<id>.png``, or ``ROOT/<modality>/<id>.<ext>`` with
``ROOT/splits/<split>.txt``. ``ROOT/tags/<tag>.txt`` lists ids, ``ROOT/dataset.yaml`` says what the files mean, and may name a
rig, whose sensors' files are recordings. ROOT is a folder, or a zip or tar that holds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from mlesam.config import DataConfig, build, check_classes, read_yaml
from mlesam.data.dataset import Dataset, Frame
from mlesam.data.recorded import RecordedFrame
from mlesam.errors import DataError, RequestError, did_you_mean
from mlesam.sensors.archives import AnyPath, ArchivePath, below, open_root
from mlesam.sensors.files import EXTENSIONS
from mlesam.sensors.polarization import PolarizationEncoder
from mlesam.sensors.rig import Rig
from mlesam.sensors.spec import canonical_order

RESERVED = ("labels", "splits", "tags")


@dataclass(frozen=True)
class DatasetFile:
    """``dataset.yaml``. ``classes`` are names, or mappings with ``name`` and ``color``."""

    classes: tuple[Any, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore: int | None = None
    ignore_color: tuple[int, int, int] | None = None
    label_map: dict[int, int] | None = None
    sensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    rig: str | None = None


@dataclass(frozen=True)
class ClassEntry:
    """A class in ``dataset.yaml`` that says more than its name."""

    name: str = ""
    color: tuple[int, int, int] | None = None


class FolderDataset(Dataset):
    def __init__(self, root: str | Path, config: DataConfig, name: str | None = None) -> None:
        root = Path(root)
        self.name = name or f"folder:{root}"
        if not root.exists():
            raise RequestError(f"there is no folder {root}; give the path of a dataset.")
        self.root = packed_root(open_root(root), ("labels", "dataset.yaml", "splits"))
        folders = [p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")]
        self.modalities = canonical_order(f for f in folders if f not in RESERVED)
        if not self.modalities:
            raise RequestError(f"{root} holds no sensor folder; put files into {root}/<modality>/<split>/<id>.png.")
        self.declared, self.rig = _declare(self.root, config)
        self._check_rig()
        specs = {m: {**self.rig.spec(m), **self.declared.sensors.get(m, {})} for m in self.rig.sensors if m in folders}
        self.declared = dataclasses.replace(self.declared, sensors={**self.declared.sensors, **specs})
        for modality in self.declared.sensors:
            if modality not in self.modalities:
                raise RequestError(
                    f"{self.name} declares a sensor {modality!r} that it does not have"
                    f"{did_you_mean(modality, self.modalities)}"
                )
        self._files = cache(self._list_files)

    def _check_rig(self) -> None:
        if self.rig.sensors and not set(self.rig.sensors) & set(self.modalities):
            raise RequestError(
                f"{self.name} has none of its rig's sensors ({', '.join(self.rig.sensors)}), only {', '.join(self.modalities)}; "
                "name the sensors in the rig after the folders."
            )
        for modality, encoder in self.rig.sensors.items():
            if isinstance(encoder, PolarizationEncoder) and encoder.layout == "files":
                raise RequestError(
                    f"{modality} of the rig has the layout files, four for each frame, but a folder has one file for each; "
                    "store them as one with four channels (layout: stack)."
                )

    def suffixes(self, folder: str) -> tuple[str, ...]:
        """Of the files that are read in a sensor's folder, or in ``labels``."""
        encoder = self.rig.sensors.get(folder)
        return EXTENSIONS if encoder is None else encoder.suffixes

    def make_frame(
        self, name: str, files: Mapping[str, AnyPath], label: AnyPath | None = None, tags: tuple[str, ...] = ()
    ) -> Frame:
        if not set(files) & set(self.rig.sensors):
            return Frame(name, files, label, tags)
        return RecordedFrame(name, files, label, tags, rig=self.rig)

    def splits(self) -> tuple[str, ...]:
        lists = self.root / "splits"
        if lists.is_dir():
            return tuple(sorted(p.stem for p in lists.glob("*.txt")))
        found = {p.name for m in self.modalities for p in (self.root / m).iterdir() if p.is_dir()}
        return tuple(sorted(name for name in found if not name.startswith(".")))

    def frames(self, split: str) -> list[Frame]:
        frames = self.all_frames(split)
        for frame in frames:
            if not frame.files:
                raise DataError(
                    f"frame {frame.id!r} of split {split!r} has no file of any sensor in {self.root}; "
                    "add one or take the frame off the list."
                )
        return frames

    def all_frames(self, split: str) -> list[Frame]:
        """The frames of a split, also those without any sensor's file."""
        if split not in self.splits():
            raise RequestError(f"{self.name} has no split {split!r}{did_you_mean(split, self.splits())}")
        listing = self.root / "splits" / f"{split}.txt"
        flat = listing.is_file()
        files = {m: self._files(m, None if flat else split) for m in self.modalities}
        labels = self._files("labels", None if flat else split)
        ids = read_list(listing) if flat else sorted({i for named in files.values() for i in named} | set(labels))
        if not ids:
            raise RequestError(f"split {split!r} of {self.name} is empty; put frames into it or choose another.")
        tags = self.tags()
        return [
            self.make_frame(
                i,
                {m: named[i] for m, named in files.items() if i in named},
                labels.get(i),
                tuple(tag for tag, members in tags.items() if i in members),
            )
            for i in ids
        ]

    def loose_frames(self) -> list[Frame]:
        """All frames of a folder without splits: ``ROOT/<modality>/<id>.<ext>``."""
        files = {m: self._files(m, None) for m in self.modalities}
        ids = sorted({i for named in files.values() for i in named})
        if not ids:
            kinds = dict.fromkeys(suffix for m in self.modalities for suffix in self.suffixes(m))
            raise RequestError(f"{self.root} holds no {', '.join(kinds)} file under <modality>/; nothing to do.")
        return [self.make_frame(i, {m: named[i] for m, named in files.items() if i in named}) for i in ids]

    def tags(self) -> dict[str, set[str]]:
        folder = self.root / "tags"
        return {p.stem: set(read_list(p)) for p in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}

    def _list_files(self, folder: str, split: str | None) -> dict[str, AnyPath]:
        base = self.root / folder if split is None else self.root / folder / split
        found: dict[str, AnyPath] = {}
        suffixes = self.suffixes(folder)
        if not base.is_dir():
            return found
        for path in sorted(base.rglob("*")):
            inside = below(path, base)
            if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in inside.parts):
                continue
            name = inside.with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{found[name]} and {path} are both {folder} of frame {name!r}; keep one of them.")
            found[name] = path
        return found


def packed_root(root: AnyPath, holds: Iterable[str]) -> AnyPath:
    """An archive's top, or the only folder in it where that ``holds`` one of these names: archives are packed both ways."""
    if isinstance(root, ArchivePath):
        inner = list(root.iterdir())
        if len(inner) == 1 and any((inner[0] / name).exists() for name in holds):
            return inner[0]
    return root


def parse_ids(text: str) -> list[str]:
    """Ids, one per line; blank lines and comments (#) are passed over, a file extension is dropped."""
    ids = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [str(PurePosixPath(i).with_suffix("")) if PurePosixPath(i).suffix.lower() in EXTENSIONS else i for i in ids]


def read_list(path: AnyPath) -> list[str]:
    """The ids of a list, see :func:`parse_ids`. DataError where it is no text or an id stands twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no UTF-8 text; write one frame id per line.") from None
    ids = parse_ids(text)
    repeated = next((i for n, i in enumerate(ids) if i in ids[:n]), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise DataError(f"{path} lists {repeated!r} twice; keep one line.")
    return ids


def _declare(root: AnyPath, config: DataConfig) -> tuple[DataConfig, Rig]:
    """What ``dataset.yaml`` says, with what the recipe says on top, and the rig."""
    path = root / "dataset.yaml"
    if not path.is_file():
        return config, Rig() if config.rig is None else Rig.load(config.rig)
    stored = build(DatasetFile, _flat(read_yaml(path), path), where="dataset.yaml")
    names, colors = _classes(stored, path)
    sensors = {
        m: {**stored.sensors.get(m, {}), **config.sensors.get(m, {})} for m in {**stored.sensors, **config.sensors}
    }
    own = None if stored.rig is None else root / stored.rig
    rig = config.rig or own
    declared = dataclasses.replace(
        config,
        classes=config.classes or names,
        colors=config.colors or colors,
        ignore=stored.ignore if config.ignore is None else config.ignore,
        ignore_color=config.ignore_color or stored.ignore_color,
        label_map=stored.label_map if config.label_map is None else config.label_map,
        sensors=sensors,
    )
    return declared, Rig() if rig is None else Rig.load(rig)


def _flat(values: dict[str, Any], path: AnyPath) -> dict[str, Any]:
    """The keys may stand under ``data``, as they do in a recipe, so that a block of YAML fits both."""
    inner = values.pop("data", None) or {}
    if not isinstance(inner, dict):
        raise RequestError(f"{path}: data is {inner!r}, but it must be a mapping of keys to values.")
    for key in inner:
        if key in values:
            raise RequestError(f"{path} says {key!r} twice, at its top level and under data; keep one of them.")
    return {**values, **inner}


def _classes(
    stored: DatasetFile, path: AnyPath
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """Names and colours, whether the classes are names or mappings."""
    entries = []
    for i, value in enumerate(stored.classes or ()):
        where = f"dataset.yaml.classes[{i}]"
        entry = build(ClassEntry, value if isinstance(value, dict) else {"name": value}, where)
        if not entry.name:
            raise RequestError(f"{where} has no name; a class is a name, or has the keys name and color.")
        entries.append(entry)
    names = tuple(e.name for e in entries) or None
    colors = stored.colors
    if any(e.color for e in entries):
        if not all(e.color for e in entries):
            bare = next(e.name for e in entries if e.color is None)
            raise RequestError(f"{path}: the class {bare!r} has no color; give every class one, or none.")
        colors = tuple(e.color for e in entries if e.color)
    check_classes(names, colors, f"{path}: ")
    return names, colors
