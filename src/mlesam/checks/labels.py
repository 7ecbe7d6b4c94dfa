"""Checks of the label files against the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlesam.checks.files import FrameFacts, LabelFile
from mlesam.checks.findings import Findings, counted, named
from mlesam.config import DataConfig
from mlesam.data.dataset import Dataset
from mlesam.data.reading import MOST_CLASSES, resolve_classes
from mlesam.errors import MlesamError


def check_labels(
    dataset: Dataset, facts: Sequence[FrameFacts], short: Callable[[object], str], findings: Findings
) -> tuple[tuple[str, ...], dict[str, dict[int, int]]]:
    """Check all label files.

    Args:
        dataset: declares classes, colours, ignored value and label map.
        short: a path as messages call it.

    Returns:
        Class names by id, and by split the scored pixels of each class.
    """
    declared = dataset.declared
    if declared.classes:
        try:
            resolve_classes(dataset, ())
        except MlesamError as error:
            findings.fault("classes", str(error))
    labelled = [(fact, fact.label) for fact in facts if fact.label is not None]
    if not labelled:
        return declared.classes or (), {}
    _check_map(declared, labelled, findings)
    colored = [short(fact.frame.label) for fact, label in labelled if label.colored]
    if colored and not (declared.classes and declared.colors):
        findings.fault(
            "classes",
            f"{counted(len(colored), 'label')} ({named(colored, 1)}) are pictures of colours, but the classes have none; list "
            "classes and colors in dataset.yaml or the recipe.",
        )
        return declared.classes or (), {}
    if colored and len(set(declared.colors or ())) < len(declared.colors or ()):
        findings.fault(
            "classes", "labels are pictures of colours, but two classes have the same one; give each its own."
        )
    names = declared.classes or _inferred(declared, labelled, findings)
    if not names:
        return (), {}
    ignore = _ignore(declared)
    if ignore in range(len(names)) and len(names) > 1:
        findings.note(
            "classes", f"class {names[ignore]!r} has the ignored value {ignore} and is never trained or scored"
        )
    pixels: dict[str, dict[int, int]] = {}
    for fact, label in labelled:
        ids = _ids(declared, names, label, short(fact.frame.label), findings)
        counts = pixels.setdefault(fact.split, dict.fromkeys(range(len(names)), 0))
        for class_id, count in ids.items():
            counts[class_id] += count
        if not ids and set(_mapped(declared, label)) == {ignore}:
            findings.note("empty labels", f"{short(fact.frame.label)} holds only the ignored value {ignore}")
    for split, counts in pixels.items():
        absent = [names[i] for i, n in counts.items() if n == 0 and i != ignore]
        if absent:
            findings.note(
                "classes that never occur",
                f"split {split!r}: {len(absent)} of {counted(len(names), 'class')} never occur: {named(absent)}",
            )
    return names, pixels


def _ignore(declared: DataConfig) -> int:
    return 255 if declared.ignore is None else declared.ignore


def _mapped(declared: DataConfig, label: LabelFile) -> dict[int, int]:
    """Pixels by value after ``label_map``."""
    counts: dict[int, int] = {}
    for value, count in label.values.items():
        target = (declared.label_map or {}).get(value, value)
        counts[target] = counts.get(target, 0) + count
    return counts


def _inferred(
    declared: DataConfig, labelled: Sequence[tuple[FrameFacts, LabelFile]], findings: Findings
) -> tuple[str, ...]:
    """As many classes as the train labels hold, which is what a training takes."""
    train = [label for fact, label in labelled if fact.split == "train"] or [label for _, label in labelled]
    ids = {value for label in train for value in _mapped(declared, label)} - {_ignore(declared)}
    top = max(ids, default=-1)
    if top > MOST_CLASSES:
        findings.fault(
            "classes",
            f"the labels hold the id {top}; declare the classes in dataset.yaml or the recipe, and ignore or label_map for "
            "ids that are none.",
        )
        return ()
    names = tuple(f"class {i}" for i in range(top + 1))
    if len(names) < 2:
        findings.fault(
            "classes",
            f"the labels hold {counted(len(names), 'class')}, and at least 2 are needed; declare classes in dataset.yaml or the "
            "recipe.",
        )
    else:
        findings.note("classes", f"the classes have no names; {len(names)} were read off the labels")
    return names


def _ids(declared: DataConfig, names: Sequence[str], label: LabelFile, name: str, findings: Findings) -> dict[int, int]:
    """Scored pixels by class id; what is no class becomes a fault."""
    if label.colored:
        codes = {(r << 16) | (g << 8) | b: i for i, (r, g, b) in enumerate(declared.colors or ())}
        void = declared.ignore_color
        ignored = {(void[0] << 16) | (void[1] << 8) | void[2]} if void else set()
        strange = [[v >> 16, (v >> 8) & 255, v & 255] for v in label.values if v not in codes and v not in ignored]
        if strange:
            what = "colour" if len(strange) == 1 else "colours"
            findings.fault(
                "labels with unknown colours",
                f"{name} holds the {what} {named([str(c) for c in strange])}, which no class has.",
                name,
            )
        return {codes[v]: n for v, n in label.values.items() if v in codes}
    mapped, label_map, ignore = _mapped(declared, label), declared.label_map or {}, _ignore(declared)
    wrong = [v for v in sorted(label.values) if (t := label_map.get(v, v)) != ignore and not 0 <= t < len(names)]
    if wrong:
        what = "label id" if len(wrong) == 1 else "label ids"
        findings.fault(
            "labels out of range",
            f"{name} holds the {what} {named([str(v) for v in wrong])}, but the classes are 0 to {len(names) - 1} and {ignore} "
            "is ignored; correct it, or map it with label_map.",
            name,
        )
    return {i: n for i, n in mapped.items() if i != ignore and 0 <= i < len(names)}


def _check_map(declared: DataConfig, labelled: Sequence[tuple[FrameFacts, LabelFile]], findings: Findings) -> None:
    label_map, ignore = declared.label_map or {}, _ignore(declared)
    held = {value for _, label in labelled if not label.colored for value in label.values}
    if declared.classes:
        for value, target in label_map.items():
            if target != ignore and not 0 <= target < len(declared.classes):
                findings.fault(
                    "classes",
                    f"label_map maps {value} to {target}, but the classes are 0 to {len(declared.classes) - 1} and {ignore} is "
                    "ignored.",
                )
    unused = sorted(set(label_map) - held)
    if unused:
        findings.note("classes", f"label_map names values that no label holds: {named([str(v) for v in unused])}")
    if len(held) == 2 and ignore in held and ignore not in label_map:
        other = next(iter(held - {ignore}))
        free = 0 if label_map.get(other, other) != 0 else 1
        findings.note(
            "classes",
            f"the labels hold only {min(held)} and {max(held)}, and {ignore} is ignored, so one class is left; if {ignore} is "
            f"a class, declare label_map: {{{ignore}: {free}}}",
        )
