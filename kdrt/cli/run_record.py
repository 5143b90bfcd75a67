"""The record of a run: which images are made, so that an interrupted run goes on where it was.

``images.jsonl`` lies beside the images and has a JSON object a line for each image. A line is added
when its image is saved or its request has failed, and never changed. What was written
last counts; an image that is not there any more counts as not made. A last line that was cut short
is taken away, since its end will never come.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdrt.common.atomic_io import check_file
from kdrt.errors import OutputError

NAME = "images.jsonl"
_LOCK = ".images.lock"


class RunRecord:
    """What is known of the images in a folder.

    Attributes:
        path: of the record.

    Args:
        folder: which need not be there yet.

    Raises:
        OutputError: the record cannot be read or written, or is a file of somebody else's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._folder = folder
        self._paths: dict[tuple[str, int], str] = {}
        self._owners: dict[str, tuple[str, int]] = {}
        self._seeds: dict[str, int] = {}
        self._file: FileIO | None = None
        check_file(self.path)
        self._read()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block, entries can be added, by this process alone.

        Raises:
            OutputError: another process adds to this record, or the folder cannot be written.
        """
        with self._locked(), self._opened() as file:
            self._file = file
            yield

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a line, whole or not at all; when this returns, the system has it.

        Raises:
            OutputError: it cannot be written.
        """
        assert self._file is not None, "only within writing()"
        line = json.dumps(entry).encode() + b"\n"
        before = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(before)
            raise self._unwritable(error) from error
        self._take(entry)

    def path_of(self, request: str, index: int) -> str | None:
        """Where an image is, by its path in the folder; None if it was not made, or is not there
        any more.

        Args:
            request: its digest.
            index: which of the request's images, from 0 on.
        """
        path = self._paths.get((request, index))
        if path is None or self._owners[path] != (request, index):
            return None
        try:
            # Of a file whose content was not on the disk yet, a loss of power leaves the name.
            return path if (self._folder / path).stat().st_size else None
        except OSError:
            return None

    def seed(self, request: str) -> int | None:
        """The seed of the first image of a request that was made, or failed; None if it was
        neither."""
        return self._seeds.get(request)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self._folder / _LOCK)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"another kdrt makes images in {self._folder}; wait for it, or choose another "
                "folder with -o"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _opened(self) -> FileIO:
        """The file, ready for the next line: without buffer, which would hold lines back."""
        complete = self._read()
        try:
            file = FileIO(self.path, "a")
            file.truncate(complete)
            file.seek(complete)
        except OSError as error:
            raise self._unwritable(error) from error
        return file

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.path}: {error.strerror or error}")

    def _read(self) -> int:
        """Take all complete lines; how many bytes they are."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from error
        complete = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:complete].split(b"\n")[:-1], start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise OutputError(
                    f"{self.path} is not kdrt's record of images, by its line {number}; choose "
                    "another folder with -o, or move that file away"
                ) from None
        return complete

    def _take(self, entry: Mapping[str, Any]) -> None:
        request, index = entry["request"], entry["image"] - 1
        if "seed" in entry:
            self._seeds[request] = entry["seed"] - index
        if "path" in entry:
            self._paths[request, index] = entry["path"]
            self._owners[entry["path"]] = (request, index)
