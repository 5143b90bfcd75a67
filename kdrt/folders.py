"""Folders that appear finished or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def put_in_place(partial: Path, target: Path) -> None:
    """Make the finished folder ``partial`` the folder ``target`` beside it, instead of what is
    there.

    All is on disk before the first rename. What was there comes back if the new folder cannot take
    its place; a crash between the two renames leaves it beside, as ``{partial.name}.old``.

    Raises:
        OSError: the file system does not let us.
    """
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    old = partial.with_name(f"{partial.name}.old")
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
