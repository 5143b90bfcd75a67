"""Whether the files of a bundle are still those that were opened, without reading them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kdrt.bundle import MANIFEST
from kdrt_engines.tensorrt.flavour import FLAVOURS

_DERIVED = "engines"
_RECORD = "record.json"


@dataclass(frozen=True)
class Fingerprint:
    """Inode, size and time of every file that makes a bundle what it is: all but what a run writes
    beside it, so with the records of engines that were built, and without caches.

    Attributes:
        files: by path, in order.
    """

    files: tuple[tuple[str, int, int, int, int], ...]

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """That of the bundle in a folder; None where there is none, or it is being replaced."""
        try:
            (path / MANIFEST).stat()
            return cls(tuple(_facts(path, name) for name in _names(path)))
        except (OSError, ValueError):  # the latter of a name that no file can have
            return None


def _names(path: Path) -> list[str]:
    """Paths of the files inside of the folder."""
    names = []
    for place, folders, files in os.walk(path):
        below = Path(place).relative_to(path)
        if below == Path(_DERIVED):
            folders[:] = [name for name in folders if name in FLAVOURS]
        # Those of the engines: an unfinished one begins with a dot.
        folders[:] = [name for name in folders if not name.startswith(".")]
        is_derived = below.parts[:1] == (_DERIVED,)
        names += [(below / name).as_posix() for name in files if name == _RECORD or not is_derived]
    return sorted(names)


def _facts(path: Path, name: str) -> tuple[str, int, int, int, int]:
    stat = (path / name).stat()
    return name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
