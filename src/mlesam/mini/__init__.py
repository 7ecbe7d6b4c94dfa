"""Miniatures of the benchmarks: their exact layout and encodings, with frames of the procedural world.

They are for tests, and for trying a reader or a training before a download of 12 to 20 GB. A number on one says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlesam import __version__
from mlesam.data.benchmark import MINIATURE as ABOUT
from mlesam.errors import RequestError, did_you_mean

NAMES = ("deliver", "muses", "mcubes")
PROJECTED = ("png", "npy", "npz")
"""Files in which MUSES' own script stores its projections."""


@dataclass(frozen=True)
class Miniature:
    """What was written. frames: of each split. bytes: of all files."""

    frames: dict[str, int]
    bytes: int


def write_mini(
    name: str,
    root: Path,
    seed: int = 0,
    projected: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Miniature:
    """Write a miniature to ``root``, which must not exist or be empty: whole or not at all, and the same bytes for a seed.

    Args:
        name: deliver, muses or mcubes. projected: png, npy or npz: for muses, also what the SDK's projection script writes
            (npy takes 57 MB a frame). advance: called with frames done and frames in all.

    Raises:
        RequestError: an unknown name, a seed or projection that cannot be, or something in ``root`` already.
        WorkError: the disk is full or cannot be written.
    """
    if name not in NAMES:
        raise RequestError(f"there is no miniature of {name!r}{did_you_mean(name, NAMES)}")
    if not 0 <= seed < 2**31:
        raise RequestError(f"seed is {seed}, but it must be between 0 and 2147483647.")
    if projected is not None and name != "muses":
        raise RequestError(f"projected is {projected!r}, but only muses has projections; leave it out for {name}.")
    if projected is not None and projected not in PROJECTED:
        raise RequestError(f"projected is {projected!r}{did_you_mean(projected, PROJECTED)}")
    from mlesam.mini import deliver, mcubes, muses
    from mlesam.world.writer import written_whole

    with written_whole(root, last=ABOUT) as temporary:
        if name == "muses":
            frames = muses.write(temporary, seed, advance, projected)
        else:
            frames = {"deliver": deliver, "mcubes": mcubes}[name].write(temporary, seed, advance)
        (temporary / ABOUT).write_text(_about(name, seed, projected))
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return Miniature(frames, size)


def _about(name: str, seed: int, projected: str | None) -> str:
    option = f" --projected {projected}" if projected else ""
    return (
        f"A miniature of {name} with frames of a procedural world, written by mlesam {__version__}:\n"
        f"    mlesam mini {name} DIR --seed {seed}{option}\n"
        "It is no part of the dataset and holds none of its data; only the layout and the encodings are the same.\n"
        "Numbers measured on it say nothing about the dataset.\n"
    )


__all__ = ["ABOUT", "NAMES", "PROJECTED", "Miniature", "write_mini"]
