"""Files and folders that appear finished or not at all, where nothing else is lost for them.

What is being written lies beside its target, under a name that says who writes it. The next write
to that place removes what a killed process left there. Links are followed before anything is
written: the new file or folder goes where a link points, and the link stays.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

from kdrt.errors import OutputError, OutputExistsError

UNFINISHED = ".unfinished-"
"""How the names begin of what is being written, or was when its process was killed."""

_OWNED = re.compile(rf"{re.escape(UNFINISHED)}([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]{{8}}")
"""Host, process id and start of the process (seconds since 1970) that owns it."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_logger = logging.getLogger("kdrt")


@contextmanager
def new_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A file to write, beside ``target``. It takes the place of ``target`` when the block ends
    without an exception, and vanishes otherwise. Missing folders are made.

    Args:
        target: where the file will be.
        overwrite: replace a file that is there.

    Raises:
        OutputExistsError: something is there and ``overwrite`` is off. Of several processes that
            write to one place, only one succeeds.
        OutputError: the system does not let it be written, or :func:`check_file` raises it.
    """
    place = check_file(target)
    partial = place.with_name(owned_name())
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers_once(place.parent)
        yield partial
        if overwrite:
            partial.replace(place)
        else:
            _publish(partial, place)
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
def new_folder(target: Path, foreign: Callable[[Path], str | None] | None = None) -> Iterator[Path]:
    """A folder to fill, beside ``target``. It takes the place of ``target``, and of what is there,
    when the block ends without an exception, and vanishes otherwise.

    All is on disk before the first rename. What was there comes back if the new folder cannot take
    its place. If the process is killed between the two renames, the next call puts it back.

    Args:
        target: where the folder will be.
        foreign: see :func:`check_folder`.

    Raises:
        OutputError: the folder cannot be made, the disk is full, the file system does not let
            it take its place, or :func:`check_folder` raises it.
    """
    place = check_folder(target, foreign)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(place.parent)
        working = place.with_name(owned_name())
        working.mkdir(mode=0o700)
        partial = working / "new"
        partial.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write to {place.parent}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        check_folder(target, foreign)  # hours may have gone by
        _put_in_place(partial, place)
    except Exception as error:
        system = _system_error(error)
        if system is not None and system.errno in _FULL:
            raise OutputError(f"cannot write {target}: the disk is full") from error
        raise
    finally:
        with suppress(OSError):
            _discard(working)


def check_file(target: Path) -> Path:
    """Where a file at ``target`` will be: links are followed.

    Raises:
        OutputError: there is something else than a regular file, or the place cannot be written.
    """
    place = _resolved(target)
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    else:
        if stat.S_ISDIR(mode):
            raise OutputError(f"cannot write {target}: it is a folder")
        if not stat.S_ISREG(mode):
            raise OutputError(f"cannot write {target}: it is a device or a pipe, and no file")
    refuse_mounts(target, place)
    _check_writable(target, place)
    return place


def check_folder(target: Path, foreign: Callable[[Path], str | None] | None = None) -> Path:
    """Where a folder at ``target`` will be: links are followed. Nothing is written.

    Args:
        target: the folder.
        foreign: says what in a folder kdrt did not write, as in "holds notes.txt"; None if it
            wrote all. Without it, a folder that holds anything is not replaced.

    Raises:
        OutputError: there is a file, a mount point or a folder that is not to be replaced, or the
            place cannot be written.
    """
    place = _resolved(target)
    try:
        if place.is_dir():
            stranger = (foreign or other_files)(place)
            if stranger is not None:
                raise OutputError(
                    f"{target} {stranger}; choose another place with -o, or empty this one yourself"
                )
        elif place.exists():
            raise OutputError(f"cannot write {target}: it is a file, not a folder")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    refuse_mounts(target, place)
    _check_writable(target, place)
    return place


def other_files(folder: Path, known: Callable[[str], bool] = lambda _: False) -> str | None:
    """That a folder holds a file which is not ``known`` by its path inside the folder; links and
    devices never are. None if there is no such file: empty folders do not count."""
    for place, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted((*links, *files)):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(path.lstat().st_mode) or not known(relative):
                return f"holds {relative}, which kdrt did not write there"
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that are no more left unfinished in a folder. What one of them was
    about to replace is put back. What another machine left stays: its processes cannot be seen."""
    with suppress(OSError, ValueError):  # a path that no file system can hold
        for left in [path for path in folder.iterdir() if _is_left(path)]:
            _discard(left)
            _logger.warning("removed %s, left by a killed process", left)


def _publish(partial: Path, place: Path) -> None:
    """Give a finished file its name, unless the name is taken: checked and done in one call."""
    try:
        try:
            os.link(partial, place)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            place.touch(exist_ok=False)
            partial.replace(place)
    except FileExistsError as error:
        raise OutputExistsError(f"cannot write {place}: it exists; choose another name") from error


def _discard(working: Path) -> None:
    """Remove what was being written, and put back what it has moved away but not replaced."""
    moved = working / "old"
    for old in () if moved.is_symlink() else moved.glob("*"):
        if not os.path.lexists(working.parent / old.name):
            old.rename(working.parent / old.name)
            _logger.warning("put back %s", working.parent / old.name)
    shutil.rmtree(working) if working.is_dir() else working.unlink()


@cache
def _clear_leftovers_once(folder: Path) -> None:
    # A folder of images may be large, and is written to often.
    clear_leftovers(folder)


def _is_left(path: Path) -> bool:
    match = _OWNED.fullmatch(path.name)
    if match is None or path.is_symlink() or match[1] != _host():
        return False
    try:
        owner = psutil.Process(int(match[2]))
        # A process that began later only has the number of the one that is gone.
        reused = owner.create_time() > int(match[3]) + 2
        return bool(reused or owner.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def owned_name() -> str:
    """A name for what this process is at work on; what it leaves under it when it is killed is
    removed by :func:`clear_leftovers`."""
    pid = os.getpid()
    started = int(psutil.Process(pid).create_time())
    return f"{UNFINISHED}{_host()}-{pid}-{started}-{uuid.uuid4().hex[:8]}"


@cache
def _host() -> str:
    """Where process ids mean what they mean here: this machine, and this container of it."""
    names = [socket.gethostname()]
    with suppress(OSError):
        names.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _resolved(target: Path) -> Path:
    try:
        return target.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise OutputError(f"cannot write to {str(target)!r}: {error}") from error


def refuse_mounts(target: Path, place: Path) -> None:
    """A mount point cannot be renamed, and what is mounted inside a folder is not part of it.

    Raises:
        OutputError: something is mounted there. ``place`` is ``target`` without links.
    """
    mounts = []
    with suppress(OSError):
        mounts = [Path(each.mountpoint) for each in psutil.disk_partitions(all=True)]
    if os.path.ismount(place) or any(place == m or place in m.parents for m in mounts):
        raise OutputError(
            f"cannot replace {target}: something is mounted there; choose a place inside of it"
        )


def _check_writable(target: Path, place: Path) -> None:
    folder = next(parent for parent in place.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise OutputError(f"cannot write {target}: File exists at {folder}, which is no folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


def _raise(error: OSError) -> None:
    raise error


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
    """If the second rename does not come to pass, :func:`_discard` takes back the first."""
    old = partial.with_name("old") / target.name
    if target.exists():
        old.parent.mkdir()
        target.rename(old)
    partial.rename(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
