"""``world:`` datasets: the procedural world, rendered when it is first asked for and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from mlesam.config import DataConfig
from mlesam.data.folder import FolderDataset
from mlesam.errors import MlesamError
from mlesam.world import WorldOptions, write_world
from mlesam.world.render import VERSION
from mlesam.world.writer import ABOUT


class WorldDataset(FolderDataset):
    """``world:`` or ``world:NAME=VALUE,...`` with the fields of :class:`WorldOptions`."""

    def __init__(self, text: str, config: DataConfig) -> None:
        options = WorldOptions.parse(text)
        root = cache_folder(options)
        name = f"world:{options.text()}"
        if not (root / ABOUT).is_file():
            print(f"rendering {name} ({options.frames} frames, kept in {root})", file=sys.stderr, flush=True)
            try:
                write_world(root, options)
            except MlesamError:
                if not (root / ABOUT).is_file():  # another process was faster
                    raise
        super().__init__(root, config, name)


def cache_folder(options: WorldOptions) -> Path:
    """Where the files of a world are kept: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(options.text().encode()).hexdigest()[:12]
    return Path(base) / "mlesam" / f"world-{VERSION}" / key
