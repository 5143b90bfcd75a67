"""What kdrt keeps on the user's side, in one folder: bundles with a name, and what is known of
files that this user has checked, made or come to trust.

    bundles/     bundles with a name
    checked/     the SHA-256 of files by size and dates, so that unchanged ones are not read again
    trusted/     one empty file for everything derived that this user made or trusts
    kernels/     what TensorRT compiled when engines ran

None of this is kept inside of a bundle, where a stranger could have written it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import platformdirs

from kdrt.common.atomic_io import check_file, new_file
from kdrt.common.paths import user_path
from kdrt.errors import OutputError
from kdrt_engines.regular_files import open_regular, read_regular

_RECORD_BYTES = 16 * 2**20
_GOOD = ""


def home() -> Path:
    """``$KDRT_HOME``, else the user's cache folder.

    Raises:
        InvalidRequestError: the variable names what cannot be a folder.
    """
    return user_path(os.environ.get("KDRT_HOME") or platformdirs.user_cache_dir("kdrt"))


class Digests:
    """The SHA-256 of files in a folder. A file is read once, and again when its size or its dates
    have changed; the date of its last change of any kind is one that no program can set.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:32]
        self._record = home() / "checked" / f"{name}.json"
        self._known: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            self._known = dict(json.loads(read_regular(self._record, _RECORD_BYTES)))
        self._before = dict(self._known)

    def of(self, relative: str) -> str:
        """The digest of a regular file, by its path inside the folder.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        with open_regular(self._folder / relative) as file:
            stat = os.fstat(file.fileno())
            seen: list[object] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            known = self._known.get(relative)
            if not isinstance(known, list) or known[:-1] != seen:
                known = [*seen, hashlib.file_digest(cast(Any, file), "sha256").hexdigest()]
                self._known[relative] = known
        return str(known[-1])

    @property
    def changed(self) -> bool:
        """Whether a file was read that was not known."""
        return self._known != self._before

    def was_good(self, what: str) -> bool:
        """Whether :meth:`save` was called last with these words."""
        return self._known.get(_GOOD) == [_digest(what)]

    def save(self, good: str = "") -> None:
        """Keep what is known now, and of what the files were found good for. A home that cannot be
        written is no error: then files are read every time."""
        self._known[_GOOD] = [_digest(good)]
        if self.changed:
            with contextlib.suppress(OutputError), new_file(self._record) as partial:
                partial.write_text(json.dumps(self._known))
            self._before = dict(self._known)


def check_home() -> None:
    """Whether what is made now can be noted as this user's.

    Raises:
        OutputError: it cannot.
    """
    try:
        check_file(_note(""))
    except OutputError as error:
        raise OutputError(
            f"kdrt notes in {home()} which engines are yours, and it cannot be written "
            f"({error}); set KDRT_HOME to a folder of your own"
        ) from error


def trust(*what: str) -> None:
    """Note that this user made, or trusts, what these words describe; digests among them.

    Raises:
        OutputError: see :func:`check_home`.
    """
    note = _note(*what)
    if not note.is_file():
        check_home()
        with new_file(note) as partial:
            partial.touch()


def is_trusted(*what: str) -> bool:
    """Whether :func:`trust` was called with these words."""
    return _note(*what).is_file()


def _note(*what: str) -> Path:
    return home() / "trusted" / _digest("\n".join(what))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
