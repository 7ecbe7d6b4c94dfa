"""Checks of where a dataset's files lie, before any of them is decoded: frames, splits, lists of ids, tags.

The reading code stops at the first fault. This one goes on, so that all of them are named in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from mlesam.checks.findings import Findings, counted, named
from mlesam.data.dataset import Dataset, Frame
from mlesam.data.folder import RESERVED, FolderDataset, parse_ids
from mlesam.errors import MlesamError
from mlesam.sensors.archives import AnyPath, below

UNREAD = (".bmp", ".exr", ".gif", ".jfif", ".jp2", ".mat", ".npz", ".pfm", ".pgm", ".ppm", ".webp")
"""Pictures and arrays that somebody may have put there to be read, and that are not."""
LABEL_NAMES = ("annotation", "annotations", "gt", "groundtruth", "ground_truth", "label", "mask", "masks", "seg")
"""Folder names under which other datasets keep labels, and which would be taken for a sensor here."""

ORDER = ("train", "val", "test")
"""The order in which splits are spoken of; others follow by name."""


def survey(dataset: Dataset, findings: Findings) -> dict[str, list[Frame]]:
    """The frames of all splits, empty splits left out. What is wrong with their layout goes into ``findings``."""
    frames: dict[str, list[Frame]] = {}
    if isinstance(dataset, FolderDataset):
        frames = _survey_folder(dataset, findings)
    else:
        for split in dataset.splits():
            try:
                frames[split] = dataset.frames(split)
            except MlesamError as error:
                findings.fault("splits that cannot be listed", str(error))
    return {split: frames[split] for split in _ordered(frames)}


def _ordered(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=lambda s: (ORDER.index(s) if s in ORDER else len(ORDER), s))


def _survey_folder(dataset: FolderDataset, findings: Findings) -> dict[str, list[Frame]]:
    root = dataset.root
    lists = sorted((root / "splits").glob("*.txt"))
    splits = dataset.splits()
    if (root / "splits").is_dir() and not lists:
        findings.fault("splits", "splits/ holds no .txt list; write ids into splits/train.txt, or remove the folder.")
    elif not splits:
        findings.fault(
            "splits",
            "there are no splits: put the files into <modality>/<split>/<id>.png, or list ids in splits/train.txt.",
        )
    for modality in dataset.modalities:
        if modality.lower() in LABEL_NAMES:
            findings.note(
                "suspicious folders", f"the folder {modality} is taken for a sensor; labels belong into labels/."
            )
    tags = {path.stem: read_ids(path, root, findings) for path in sorted((root / "tags").glob("*.txt"))}
    tagged = {tag: set(ids) for tag, ids in tags.items()}
    folders = (*dataset.modalities, "labels")
    frames: dict[str, list[Frame]] = {}
    if lists:
        files = {folder: _listing(dataset, root / folder, folder, findings) for folder in folders}
        listed = {path.stem: read_ids(path, root, findings) for path in lists}
        for split, ids in listed.items():
            frames[split] = _frames(dataset, ids, files, tagged)
        _check_lists(root, listed, files, findings)
    elif splits:
        for split in splits:
            files = {folder: _listing(dataset, root / folder / split, folder, findings) for folder in folders}
            frames[split] = _frames(dataset, sorted({i for ids in files.values() for i in ids}), files, tagged)
        _check_strays(dataset, folders, splits, findings)
    for split in [s for s in frames if not frames[s]]:
        findings.fault("empty splits", f"split {split!r} is empty; put frames into it or remove it.")
        del frames[split]
    _check_tags(tagged, frames, findings)
    return frames


def read_ids(path: AnyPath, root: AnyPath, findings: Findings) -> list[str]:
    """Ids of a list, each once, as :func:`mlesam.data.folder.read_list` understands them."""
    name = below(path, root)
    try:
        ids = parse_ids(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        findings.fault("unreadable files", f"{name} is no UTF-8 text; write one frame id per line.")
        return []
    for i, count in Counter(ids).items():
        if count > 1:
            findings.fault("repeated ids", f"{name} lists {i!r} {'twice' if count == 2 else f'{count} times'}.")
    return list(dict.fromkeys(ids))


def _listing(dataset: FolderDataset, base: AnyPath, folder: str, findings: Findings) -> dict[str, AnyPath]:
    root, suffixes = dataset.root, dataset.suffixes(folder)
    found: dict[str, AnyPath] = {}
    unread: Counter[str] = Counter()
    for path in sorted(base.rglob("*")):
        extension, inside = path.suffix.lower(), below(path, base)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if extension in UNREAD and extension not in suffixes:
            unread[extension] += 1
        if extension not in suffixes:
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            findings.fault(
                "duplicates",
                f"{below(found[name], root)} and {below(path, root)} are both {folder} of frame {name!r}; "
                "keep one of them.",
            )
        else:
            found[name] = path
    for extension, count in unread.items():
        findings.note(
            "files that are not read",
            f"{below(base, root)} holds {counted(count, f'{extension} file')}, which no reader takes; convert to "
            f"{', '.join(e[1:] for e in suffixes)}.",
        )
    return found


def _frames(
    dataset: FolderDataset, ids: list[str], files: dict[str, dict[str, AnyPath]], tags: dict[str, set[str]]
) -> list[Frame]:
    return [
        dataset.make_frame(
            i,
            {m: found[i] for m, found in files.items() if i in found and m not in RESERVED},
            files["labels"].get(i),
            tuple(tag for tag, members in tags.items() if i in members),
        )
        for i in ids
    ]


def _check_lists(
    root: AnyPath, listed: dict[str, list[str]], files: dict[str, dict[str, AnyPath]], findings: Findings
) -> None:
    seen = {i for folder, found in files.items() if folder not in RESERVED for i in found}
    labels = files["labels"]
    homes: dict[str, list[str]] = {}
    for split, ids in listed.items():
        for i in ids:
            homes.setdefault(i, []).append(split)
            if i not in seen and i not in labels:
                findings.fault("unknown ids", f"splits/{split}.txt names {i!r}, of which there is no file.")
    for i, splits in homes.items():
        if len(splits) > 1:
            findings.fault(
                "frames in two splits",
                f"frame {i!r} is in {' and '.join(f'splits/{s}.txt' for s in splits)}; a frame that is trained on cannot "
                "test anything.",
            )
    for i in sorted(set(labels) - seen - set(homes)):
        _orphan(below(labels[i], root), findings)
    unlisted = sorted(seen - set(homes))
    if unlisted:
        findings.note("unlisted frames", f"{counted(len(unlisted), 'frame')} in no split: {named(unlisted)}")


def _check_strays(
    dataset: FolderDataset, folders: tuple[str, ...], splits: tuple[str, ...], findings: Findings
) -> None:
    """Files beside the split folders, and label folders of splits that no sensor has."""
    root = dataset.root
    for folder in folders:
        loose = [p for p in (root / folder).glob("*") if p.suffix.lower() in dataset.suffixes(folder) and p.is_file()]
        if loose and splits:
            findings.note(
                "files that are not read",
                f"{folder} holds {counted(len(loose), 'file')} outside any split's folder, which are not read: "
                f"{named(sorted(p.name for p in loose), 3)}",
            )
    labels = root / "labels"
    for folder in sorted(p for p in labels.glob("*") if p.is_dir() and p.name not in splits):
        for path in _listing(dataset, folder, "labels", findings).values():
            _orphan(below(path, root), findings)


def _orphan(label: PurePosixPath, findings: Findings) -> None:
    text = f"{label} has no sensor's file; add one or take the label away."
    findings.fault("labels without a sensor", text, str(label))


def _check_tags(tags: dict[str, set[str]], frames: dict[str, list[Frame]], findings: Findings) -> None:
    known = {frame.id for members in frames.values() for frame in members}
    for tag, ids in tags.items():
        counts = {split: sum(tag in f.tags for f in frames[split]) for split in _ordered(frames)}
        where = ", ".join(f"{split} {n}" for split, n in counts.items() if n)
        findings.note("tags", f"tag {tag!r}: {counted(sum(counts.values()), 'frame')}{f' ({where})' if where else ''}")
        unknown = sorted(ids - known)
        if unknown:
            findings.note(
                "unknown tagged ids",
                f"tags/{tag}.txt names {counted(len(unknown), 'id')} that no split has: {named(unknown)}",
            )
