"""The names of the files that a command makes: nothing is replaced unless that was asked for.

one file   ``out.png``; if that is taken ``out-2.png``, ``out-3.png``, …
several    ``out-1.png``, ``out-2.png``, …, after the highest number that is taken
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kdrt.common.atomic_io import check_file
from kdrt.common.paths import user_path
from kdrt.errors import OutputError, OutputExistsError

_NUMBER = r"-(\d{1,6})"
"""What tells files of one name apart. A date (``out-20261129.png``) is no number to go on from."""

MAX_FILES = 1_000_000
"""Of one command: what such a number can count."""

Write = Callable[[Path, bool], object]
"""Writes a file, given its path and whether to replace what is there; raises OutputExistsError
where it must not."""


def named_path(output: Path, suffixes: tuple[str, ...]) -> Path:
    """``output`` with ``~`` expanded.

    Raises:
        OutputError: its suffix is none of ``suffixes``.
        InvalidRequestError: no file can have such a name.
    """
    if output.suffix.lower() not in suffixes:
        raise OutputError(f"cannot save '{output}': the name must end in {', '.join(suffixes)}")
    return user_path(output)


class ImageFiles:
    """The files of one command.

    Whether they can be written is checked at once: nothing is worse than an hour of work that
    cannot be saved.

    Attributes:
        is_taken: ``output`` itself is there and will be kept.

    Args:
        output: the name to begin with.
        count: how many files there will be.
        suffixes: those that ``output`` may have.
        overwrite: replace files; then numbers begin at 1.

    Raises:
        OutputError: another suffix, or a place that cannot be written.
    """

    def __init__(
        self, output: Path, count: int, suffixes: tuple[str, ...], *, overwrite: bool = False
    ) -> None:
        self._output = named_path(output, suffixes)
        self._overwrite = overwrite
        self._count = count
        self._is_single = count == 1
        self.is_taken = self._is_single and not overwrite and os.path.lexists(self._output)
        self._next = self._first_number()
        user_path(self._path(self._next + count - 1))  # a longer name than the first
        self._check()

    def names(self, path: Path) -> bool:
        """Whether ``path`` is one of the files to come, by the names that are free now."""
        path, output = (Path(os.path.realpath(each)) for each in (path, self._path(1)))
        if self._is_single and path == output:
            return True
        number = self._number(path.name)
        last = self._next + self._count - 1
        return path.parent == output.parent and number is not None and self._next <= number <= last

    def save(self, write: Write) -> Path:
        """Write the next file; its path. Other processes may take names at the same time."""
        while True:
            path = self._path(self._next)
            self._next += 1
            with suppress(OutputExistsError):
                write(path, self._overwrite)
                return path
            self._next = max(self._next, self._highest_number() + 1)

    def _check(self) -> None:
        first = self._path(self._next)
        check_file(self._output if self._is_single else first)
        if self._overwrite:
            for number in range(self._next + 1, self._next + self._count):
                if os.path.lexists(path := self._path(number)):
                    check_file(path)

    def _path(self, number: int) -> Path:
        if self._is_single and number == 1:
            return self._output
        return self._output.with_stem(f"{self._output.stem}-{number}")

    def _first_number(self) -> int:
        if self._overwrite or (self._is_single and not self.is_taken):
            return 1
        return max(self._highest_number(), int(self._is_single)) + 1

    def _highest_number(self) -> int:
        highest = 0
        with suppress(OSError):  # no such folder yet, or one that may be written but not read
            for entry in os.scandir(self._output.parent):
                highest = max(highest, self._number(entry.name) or 0)
        return highest

    def _number(self, name: str) -> int | None:
        """The number in the name of a file of this command; None where it is none of them."""
        stem, suffix = map(re.escape, (self._output.stem, self._output.suffix))
        match = re.fullmatch(f"{stem}{_NUMBER}{suffix}", name)
        return None if match is None else int(match[1])
