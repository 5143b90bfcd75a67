"""One build at a time in a folder of engines, and nothing left there of those that were killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdrt.common.atomic_io import clear_leftovers
from kdrt.errors import OutputError


@contextmanager
def only_builder(folder: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Wait until no other process builds into this folder, which need not be there yet, and keep
    others out. ``note`` is told if there is one to wait for. What killed builds left is removed.

    Raises:
        OutputError: the folder cannot be written to.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note("another build is at work in this bundle; waiting for it")
            lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()
