"""The zip that a benchmark's server scores: what must hold before frames are segmented, writing it, and checking one.

What the server of a dataset takes is said by its :class:`mlesam.data.dataset.Submission`.
"""

from __future__ import annotations

import io
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlesam.data.dataset import Dataset, Frame, Submission
from mlesam.errors import DataError, RequestError
from mlesam.model.checkpoints import published
from mlesam.sensors.files import image_size

SERVED = ("muses",)
"""Kinds of datasets that have a server."""
WRITTEN = (1980, 1, 1, 0, 0, 0)
"""Date of every file in the zip, the earliest there is, so that the same predictions give the same bytes."""


def submission_of(dataset: Dataset, split: str | None, path: Path) -> Submission:
    """What the dataset's server takes.

    Args:
        split: as asked for; None: the server's own. path: of the zip to write.

    Raises:
        RequestError: a dataset without a server, another split, or a path that is taken or no ``.zip``.
    """
    wanted = dataset.submission
    if wanted is None:
        raise RequestError(
            f"no server that takes predictions on {dataset.name} is known; --submission goes with "
            f"{', '.join(f'{kind}:PATH' for kind in SERVED)}."
        )
    if split not in (None, wanted.split):
        raise RequestError(
            f"--split is {split}, but {wanted.server} scores {wanted.split}; leave --split or --submission out."
        )
    if path.suffix.lower() != ".zip":
        raise RequestError(f"--submission is {path}, but a submission is a .zip; name one.")
    if path.exists():
        raise RequestError(f"{path} exists; choose another --submission.")
    return wanted


def check_frames(
    submission: Submission,
    dataset: Dataset,
    frames: Sequence[Frame],
    classes: Sequence[str],
    sensors: Collection[str],
) -> str | None:
    """What can be known before any frame is segmented.

    Args:
        frames: of the server's split. classes: of the model, by id. sensors: those that the model will be given.

    Returns:
        A note where the dataset is a miniature, whose submission no server takes.

    Raises:
        RequestError: a model of other classes, or a dataset that squashes its pictures.
        DataError: frames that are too few or too many, of another size, without any of the sensors, or of the same name.
    """
    if tuple(classes) != submission.classes:
        raise RequestError(
            f"the run has {len(classes)} classes ({_few(classes)}), but {submission.server} takes the ids of "
            f"{len(submission.classes)} ({_few(submission.classes)}) in that order; train a run on {dataset.name}."
        )
    width, height = submission.size
    for frame in frames:
        if frame.squash is not None:
            raise RequestError(
                f"{dataset.name} squashes pictures to {frame.squash} pixels, but {submission.server} takes {width}x{height}; "
                "leave squash out."
            )
        if "rgb" in frame.files and image_size(frame.files["rgb"]) != (height, width):
            found = "{1}x{0}".format(*image_size(frame.files["rgb"]))
            raise DataError(
                f"{frame.files['rgb']} is {found}, but {submission.server} takes {width}x{height}; put back the original."
            )
    without = [frame.id for frame in frames if not set(frame.files) & set(sensors)]
    if without:
        raise DataError(
            f"{len(without)} of {len(frames)} frames have no file of {', '.join(sensors)}, and {submission.server} scores every "
            f"frame: {_few(without)}; unpack them, or use other sensors."
        )
    twice = [name for name, count in Counter(map(submission.name, frames)).items() if count > 1]
    if twice:
        raise DataError(f"several frames of {dataset.name} would be called {_few(twice)} in the zip; rename them.")
    if len(frames) == submission.frames:
        return None
    numbers = f"{len(frames)} of the {submission.frames} frames that {submission.server} scores"
    if not dataset.miniature():
        raise DataError(
            f"split {submission.split!r} of {dataset.name} has {numbers}; unpack {dataset.source or 'it'} again."
        )
    return f"{dataset.name} is a miniature with {numbers}: for trying out, not for uploading"


def write_submission(path: Path, submission: Submission, pictures: Mapping[str, Path]) -> None:
    """Write the zip, whole or not at all, after checking what was written.

    Args:
        pictures: by name in the zip, see :meth:`Submission.name`, the PNG of class ids that ``mlesam predict`` wrote.

    Raises:
        RequestError: the path is taken. DataError: as :func:`check_submission`. WorkError: it cannot be written.
    """
    if path.exists():
        raise RequestError(f"{path} exists; choose another name.")
    with published(path, uuid.uuid4().hex) as temporary:
        with zipfile.ZipFile(temporary, "w") as packed:  # stored: a PNG is compressed already
            for name in sorted(pictures):
                member = zipfile.ZipInfo(name, WRITTEN)
                member.external_attr = 0o644 << 16
                packed.writestr(member, pictures[name].read_bytes())
        check_submission(temporary, submission, pictures, str(path))


def check_submission(path: Path, submission: Submission, names: Iterable[str], shown: str | None = None) -> None:
    """Whether a zip is what the server takes: one picture for every frame, each of the right name, size, type and values.

    Args:
        names: of the pictures that it must hold. shown: what messages call it.

    Raises:
        DataError: it is none, or the first thing in it that the server would not take.
    """
    shown = shown or str(path)
    if not path.is_file():
        raise DataError(f"there is no file {shown}; check the name.")
    if path.stat().st_size > submission.largest:
        raise DataError(
            f"{shown} has {path.stat().st_size / 1e6:.0f} MB, but {submission.server} takes {submission.largest / 1e6:.0f}; pack "
            "nothing but the class maps."
        )
    try:
        with zipfile.ZipFile(path) as packed:
            found = Counter(name for name in packed.namelist() if not name.endswith("/"))
            wanted = set(names)
            for problem, some in (
                ("lacks", wanted - set(found)),
                ("should not hold", set(found) - wanted),
                ("holds more than once", {name for name, count in found.items() if count > 1}),
            ):
                if some:
                    raise DataError(f"{shown} {problem} {_few(sorted(some))}; write it again with --submission.")
            for name in sorted(wanted):
                _check_picture(packed.read(name), f"{name} in {shown}", submission)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{shown} cannot be read as a zip ({error}); write it again with --submission.") from error


def _check_picture(content: bytes, name: str, submission: Submission) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            size, mode = picture.size, picture.mode
            fits = size == submission.size and mode == "L"
            largest = int(np.asarray(picture).max()) if fits else 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as a PNG ({error}); write it again with --submission.") from error
    if not fits:
        found, needed = ("{}x{}".format(*pair) for pair in (size, submission.size))
        raise DataError(
            f"{name} is {found} of mode {mode}, but {submission.server} takes {needed} of mode L, 8 bits of grey; write it again "
            "with --submission."
        )
    if largest >= len(submission.classes):
        raise DataError(
            f"{name} holds the id {largest}, but {submission.server} takes 0 to {len(submission.classes) - 1}; write it again "
            "with --submission."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
