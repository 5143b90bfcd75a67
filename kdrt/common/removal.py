"""Folders that are removed whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdrt.common.atomic_io import clear_leftovers, owned_name, refuse_mounts
from kdrt.errors import OutputError


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that nobody finds half of it: of a process that is
    killed in between, :func:`kdrt.common.atomic_io.clear_leftovers` removes the rest.

    Raises:
        OutputError: it cannot be renamed or deleted, or something is mounted in it.
    """
    place = folder.resolve()
    refuse_mounts(folder, place)
    clear_leftovers(place.parent)
    working = place.with_name(owned_name())
    try:
        working.mkdir(mode=0o700)
        try:
            place.rename(working / "removed")
        finally:
            shutil.rmtree(working)
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from error
