"""Checks of a dataset: every file is decoded, and everything that is wrong or odd is named, not only the first.

Faults are what a training or an evaluation would refuse, or what would make its numbers wrong without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlesam.checks.files import Advance, FrameFacts, read_facts
from mlesam.checks.findings import Findings, named
from mlesam.checks.labels import check_labels
from mlesam.checks.layout import survey
from mlesam.checks.values import check_values
from mlesam.data.dataset import Dataset, Frame
from mlesam.errors import MlesamError, did_you_mean
from mlesam.sensors.spec import SensorSpec, canonical_order, sensor_spec


@dataclass
class Summary:
    """What a dataset holds.

    Attributes:
        frames, labels: number by split. sensors: frames that have it, by modality and split.
        sizes: (height, width) and kinds: (number type, channels) with their number of files, by modality; the sizes of
            labels stand under ``labels``.
        label_values: stored values of the labels that hold ids. classes: names by id. pixels: by split, scored pixels of
            each class.
    """

    frames: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    sensors: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    kinds: dict[str, Counter[tuple[str, int]]] = field(default_factory=dict)
    label_values: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    pixels: dict[str, dict[int, int]] = field(default_factory=dict)


@dataclass
class DatasetFindings(Findings):
    """Findings about a dataset, and what it holds."""

    summary: Summary = field(default_factory=Summary)


def check_dataset(
    dataset: Dataset, config_modalities: Sequence[str] | None = None, advance: Advance | None = None
) -> DatasetFindings:
    """Check a dataset's layout and every one of its files.

    Args:
        dataset: with the classes and sensors that it and the recipe declare.
        config_modalities: the sensors that will be used. None: all.
        advance: called with the number of files read so far and of all files.

    Returns:
        Faults and notes, one sentence each, with paths relative to the dataset's root; and a summary.
    """
    findings = DatasetFindings()
    frames = survey(dataset, findings)
    modalities = _chosen(dataset, config_modalities, findings)
    specs = _specs(dataset, modalities, findings)
    for split, members in frames.items():
        _check_labelled(split, members, findings)
        _check_present(split, members, modalities, bool(dataset.published), findings)
        if dataset.published:
            _check_published(dataset, split, members, findings)
    for split, why in (
        ("train", "there is nothing to train on"),
        ("val", "the weights of the last step are kept, not the best ones"),
        ("test", "val is what evaluation reports"),
    ):
        if frames and split not in frames and (split != "test" or "val" in frames):
            findings.note("missing splits", f"there is no {split} split: {why}")
    declared = dataset.declared
    void = () if declared.ignore_color is None else (declared.ignore_color,)
    facts = read_facts(frames, specs, (*(declared.colors or ()), *void), advance)
    root = getattr(dataset, "root", None)

    def short(text: object) -> str:
        return str(text) if root is None else str(text).replace(f"{root}/", "")

    for fact in facts:
        for path, text in fact.unreadable:
            findings.fault("unreadable files", short(text), short(path))
    _check_sizes(facts, short, findings)
    for modality, spec in specs.items():
        check_values(modality, spec, dataset.sensor(modality), facts, short, findings)
    summary = findings.summary
    summary.classes, summary.pixels = check_labels(dataset, facts, short, findings)
    _summarize(summary, frames, facts, modalities)
    return findings


def _chosen(dataset: Dataset, wanted: Sequence[str] | None, findings: Findings) -> tuple[str, ...]:
    for modality in wanted or ():
        if modality not in dataset.modalities:
            findings.fault(
                "unknown sensors",
                f"there is no sensor {modality!r} in {dataset.name}{did_you_mean(modality, dataset.modalities)}",
            )
    if wanted is not None and not wanted:
        findings.fault(
            "unknown sensors", f"no sensor was chosen; name at least one of {', '.join(dataset.modalities)}."
        )
    chosen = dataset.modalities if wanted is None else [m for m in wanted if m in dataset.modalities]
    return canonical_order(set(chosen))


def _specs(dataset: Dataset, modalities: Sequence[str], findings: Findings) -> dict[str, SensorSpec]:
    specs = {}
    for modality in canonical_order({*modalities, *dataset.declared.sensors}):
        try:
            specs[modality] = sensor_spec(modality, dataset.sensor(modality))
        except MlesamError as error:
            findings.fault("wrong sensor specs", str(error))
            specs[modality] = sensor_spec(modality)
    return {m: specs[m] for m in modalities}


def _check_labelled(split: str, frames: list[Frame], findings: Findings) -> None:
    bare = [f for f in frames if f.label is None and f.files]
    if bare and len(bare) == len(frames):
        if split in ("train", "val"):
            findings.fault("frames without a label", f"no frame of split {split!r} has a label ({len(bare)} frames).")
        else:  # a benchmark keeps the labels of its test split to itself
            findings.note("unlabelled splits", f"no frame of split {split!r} has a label, so it cannot be scored")
        return
    for frame in bare:
        findings.fault("frames without a label", f"frame {frame.id!r} of split {split!r} has no label.")


def _check_present(
    split: str, frames: list[Frame], modalities: Sequence[str], published: bool, findings: Findings
) -> None:
    for frame in frames:
        if frame.files and not set(frame.files) & set(modalities):
            findings.fault(
                "frames without a sensor",
                f"frame {frame.id!r} of split {split!r} has no file of {', '.join(modalities) or 'any chosen sensor'}.",
            )
        elif frame.label is not None and not frame.files:
            findings.fault(
                "frames without a sensor",
                f"frame {frame.id!r} of split {split!r} has no sensor's file, only its label; add one or take the label away.",
            )
    seeing = [f for f in frames if set(f.files) & set(modalities)]
    for modality in modalities:
        lacking = [f.id for f in seeing if modality not in f.files]
        if lacking and len(lacking) == len(seeing):
            findings.note("frames that lack sensors", f"no frame of split {split!r} has {modality}")
        elif lacking and not published:
            findings.note(
                "frames that lack sensors",
                f"{len(lacking)} of {len(frames)} frames of split {split!r} lack {modality}: {named(lacking)}",
            )


def _check_published(dataset: Dataset, split: str, frames: list[Frame], findings: Findings) -> None:
    """A published dataset is whole or was half unpacked; another number of frames may be a part of it."""
    for modality in dataset.modalities:
        lacking = [f.id for f in frames if modality not in f.files]
        if lacking:
            findings.fault(
                "half unpacked",
                f"{len(lacking)} of {len(frames)} frames of split {split!r} lack {modality}, and all of the published ones have "
                f"it: {named(lacking)}; unpack it again, or fetch it from {dataset.source}.",
            )
    found = Counter(tag for frame in frames for tag in ("", *frame.tags))
    counts = [
        f"{found[tag]:,} of {count:,} {tag or 'published frames'}"
        for tag, count in dataset.published.get(split, {}).items()
        if found[tag] != count
    ]
    if counts:
        findings.note("other counts than published", f"split {split!r} has {', '.join(counts)}")


def _check_sizes(facts: list[FrameFacts], short: Callable[[object], str], findings: Findings) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    for fact in facts:
        sizes = {short(fact.frame.files[m]): f.size for m, f in fact.sensors.items()}
        if fact.label is not None:
            sizes[short(fact.frame.label)] = fact.label.size
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} is {w}x{h}" for name, (h, w) in sizes.items())
            findings.fault("misfits", f"the files of frame {fact.frame.id!r} do not fit each other: {said}.")
        elif sizes:
            seen[next(iter(sizes.values()))] += 1
    if len(seen) > 1:
        said = named([f"{w}x{h} ({n:,})" for (h, w), n in seen.most_common()])
        findings.note("frame sizes", f"frames differ in size: {said}")


def _summarize(
    summary: Summary, frames: dict[str, list[Frame]], facts: list[FrameFacts], modalities: Sequence[str]
) -> None:
    for split, members in frames.items():
        summary.frames[split] = len(members)
        summary.labels[split] = sum(f.label is not None for f in members)
    for modality in modalities:
        files = [f.sensors[modality] for f in facts if modality in f.sensors]
        summary.sensors[modality] = {s: sum(modality in f.files for f in members) for s, members in frames.items()}
        summary.sizes[modality] = Counter(f.size for f in files)
        summary.kinds[modality] = Counter((f.dtype, f.channels) for f in files)
    labels = [f.label for f in facts if f.label is not None]
    summary.sizes["labels"] = Counter(label.size for label in labels)
    summary.label_values = tuple(sorted({v for label in labels if not label.colored for v in label.values}))
