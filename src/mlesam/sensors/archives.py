"""Files inside a zip or tar, read in place: an :class:`ArchivePath` stands where a ``pathlib.Path`` would.

A benchmark comes as one archive of tens of thousands of small files. Unpacking it costs its size again, and on a network
file system minutes of opening. A plain tar and a zip both allow to jump to any file; a compressed tar does not.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mlesam.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
"""Archives that would have to be read from their start for every file."""


@dataclass(frozen=True)
class Status:
    """The part of ``os.stat_result`` that the package asks for."""

    st_size: int
    st_mtime_ns: int


TOP = PurePosixPath()


@dataclass(frozen=True, order=True)
class ArchivePath:
    """A file or folder inside an archive, with those methods of ``pathlib.Path`` that reading needs.

    Attributes:
        archive: the zip or tar. inside: the place in it; ``.`` is its top.
    """

    archive: Path
    inside: PurePosixPath = TOP

    def __str__(self) -> str:
        return f"{self.archive}/{self.inside}" if self.inside.parts else str(self.archive)

    def __truediv__(self, name: str | PurePosixPath) -> ArchivePath:
        return ArchivePath(self.archive, self.inside / name)

    @property
    def name(self) -> str:
        return self.inside.name or self.archive.name

    @property
    def stem(self) -> str:
        return self.inside.stem

    @property
    def suffix(self) -> str:
        return self.inside.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.archive.parts, *self.inside.parts)

    @property
    def parent(self) -> ArchivePath:
        return ArchivePath(self.archive, self.inside.parent)

    def is_file(self) -> bool:
        return str(self.inside) in _index(self.archive).files

    def is_dir(self) -> bool:
        return str(self.inside) in _index(self.archive).folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[ArchivePath]:
        for name in _index(self.archive).folders.get(str(self.inside), ()):
            yield self / name

    def rglob(self, pattern: str) -> Iterator[ArchivePath]:
        """Everything below whose name matches, folders included."""
        for path in self.iterdir():
            if path.inside.match(pattern):
                yield path
            if path.is_dir():
                yield from path.rglob(pattern)

    def glob(self, pattern: str) -> Iterator[ArchivePath]:
        """Everything directly in this folder whose name matches."""
        return (path for path in self.iterdir() if path.inside.match(pattern))

    def stat(self) -> Status:
        """Size of the file; the time is the archive's."""
        size = _index(self.archive).files.get(str(self.inside))
        if size is None:
            raise FileNotFoundError(2, "no such file in the archive", str(self))
        return Status(size, self.archive.stat().st_mtime_ns)

    def read_bytes(self, count: int = -1) -> bytes:
        """The file's bytes, or the first ``count`` of them."""
        if not self.is_file():
            raise FileNotFoundError(2, "no such file in the archive", str(self))
        try:
            return _index(self.archive).read(str(self.inside), count)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:  # zipfile checks the checksum
            raise DataError(f"{self} cannot be read ({error}); the archive is damaged, fetch it again.") from error

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file's bytes; archives are never written to."""
        if mode != "rb":
            raise ValueError(f"mode is {mode!r}, but files inside an archive are only read, as 'rb'")
        return io.BytesIO(self.read_bytes())


AnyPath = Path | ArchivePath
"""A file on disk or inside an archive."""


def any_path(path: str | AnyPath) -> AnyPath:
    return Path(path) if isinstance(path, str) else path


def below(path: AnyPath, folder: AnyPath) -> PurePosixPath:
    """The place of ``path`` seen from ``folder``, which it lies in."""
    if isinstance(path, Path):
        assert isinstance(folder, Path)
        return PurePosixPath(path.relative_to(folder).as_posix())
    assert isinstance(folder, ArchivePath)
    return path.inside.relative_to(folder.inside)


def head(path: AnyPath, count: int) -> bytes:
    """The first bytes of a file, of which no more is read than that."""
    if isinstance(path, ArchivePath):
        return path.read_bytes(count)
    with path.open("rb") as file:
        return file.read(count)


def readable(path: AnyPath) -> Path | io.BytesIO:
    """What decoders take: the path itself, or the bytes of a file inside an archive."""
    return path if isinstance(path, Path) else io.BytesIO(path.read_bytes())


@contextmanager
def unpacked(path: AnyPath) -> Iterator[Path]:
    """A file on disk, for readers that map or seek: the path itself, or a copy of a file inside an archive.

    A DataError that names the copy is raised again with the name in the archive.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        try:
            yield copy
        except DataError as error:
            raise DataError(str(error).replace(str(copy), str(path))) from None


def open_root(path: Path) -> AnyPath:
    """A dataset's top folder: the folder itself, or the top of the zip or tar that ``path`` is.

    Raises:
        DataError: a damaged or cut-off archive, or one that cannot be read in place.
    """
    if not path.is_file():
        return path
    if path.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"{path} is compressed as a whole, so a file in it cannot be read without all before it; unpack it, or pack "
            "the files into a zip or a plain tar."
        )
    if not zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
        raise DataError(f"{path} is neither a folder nor a whole zip or tar; give one of these, or fetch it again.")
    root = ArchivePath(path.absolute())
    _index(root.archive)
    return root


class _Index:
    """The names in an archive. Reading is safe from any number of threads and forked processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self.folders: dict[str, dict[str, None]] = {".": {}}
        self._offsets: dict[str, int] | None = None
        self._names: dict[str, str] = {}
        self._local = threading.local()
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for entry in archive.infolist():
                        self._add(entry.filename, entry.file_size, entry.is_dir())
            else:
                self._offsets = {}
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        name = self._add(member.name, member.size, member.isdir())
                        if member.isreg() and name:
                            self._offsets[name] = member.offset_data
        except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}); it is damaged or cut off, fetch it again.") from error
        last = max(self._offsets, key=self._offsets.__getitem__) if self._offsets else None
        if self._offsets and last and self._offsets[last] + self.files[last] > path.stat().st_size:
            raise DataError(f"{path} ends inside of {last}; it is cut off, fetch it again.")

    def _add(self, stored: str, size: int, folder: bool) -> str:
        pure = PurePosixPath(stored)
        if pure.is_absolute() or ".." in pure.parts:
            return ""  # such a name means no place in the archive
        name = str(pure)
        if not folder:
            self.files[name] = size
            self._names[name] = stored
        elif pure.parts:
            self.folders.setdefault(name, {})
        while pure.parts:  # an archive need not list its folders
            self.folders.setdefault(str(pure.parent), {})[pure.name] = None
            pure = pure.parent
        return name

    def read(self, name: str, count: int = -1) -> bytes:
        """Its first ``count`` bytes; all of them, which alone are held against a zip's checksum, where that is below 0."""
        if self._offsets is None:
            with self._zip().open(self._names[name]) as file:
                return file.read(count)
        wanted = self.files[name] if count < 0 else min(count, self.files[name])
        with self.path.open("rb") as file:
            file.seek(self._offsets[name])
            content = file.read(wanted)
        if len(content) < wanted:
            raise EOFError("it is shorter than it says")
        return content

    def _zip(self) -> zipfile.ZipFile:
        """This thread's own handle: a file position shared with a forked process or a thread would be moved by it."""
        if getattr(self._local, "process", None) != os.getpid():
            self._local.process, self._local.archive = os.getpid(), zipfile.ZipFile(self.path)
        return self._local.archive


def _index(path: Path) -> _Index:
    status = path.stat()
    return _cached(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _cached(path: Path, size: int, time: int) -> _Index:
    return _Index(path)
