"""Files and folders that appear finished or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdrt.errors import OutputError

UNFINISHED = ".unfinished-"
"""How the names begin of what is being written, or was when its process was killed."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file to write, beside ``target``. It takes the place of ``target`` when the block ends
    without an exception, and vanishes otherwise. Missing folders are made.

    Raises:
        OutputError: the system does not let it be written.
    """
    partial = target.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except Exception as error:
        system = _system_error(error)
        if system is None:
            raise
        raise OutputError(f"cannot write {target}: {system.strerror or system}") from error
    finally:
        # The folder may never have been made, or be a file.
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, beside ``target``. It takes the place of ``target``, and of what is there,
    when the block ends without an exception, and vanishes otherwise.

    All is on disk before the first rename. What was there comes back if the new folder cannot take
    its place; a crash between the two renames leaves it beside, with ``.old`` at its end.

    Raises:
        OutputError: the folder cannot be made, the disk is full, or the file system does not let
            it take its place.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        _put_in_place(partial, target)
    except Exception as error:
        system = _system_error(error)
        if system is not None and system.errno in _FULL:
            raise OutputError(f"cannot write {target}: the disk is full") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _system_error(error: Exception) -> OSError | None:
    """The system's error, or the one behind a library's; None if it is of another kind."""
    if isinstance(error, OSError):
        return error
    # Libraries in Rust, as safetensors, have errors of their own that end in the system's number.
    said = re.search(r"\(os error (\d+)\)", str(error))
    return None if said is None else OSError(int(said[1]), os.strerror(int(said[1])))


def _put_in_place(partial: Path, target: Path) -> None:
    try:
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        _exchange(partial, target)
        _sync(target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


def _exchange(partial: Path, target: Path) -> None:
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
