"""Many different requests as fast as the machine can: in flight together, saved and recorded one by
one.

At any time no more than `WINDOW` requests are handed over, so that memory does not grow with their
number. The batcher's thread makes images, a few threads of our own save them, and the calling
thread does all the rest: it hands over, keeps the record, and tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from kdrt.cli.control_option import paths_of
from kdrt.cli.image_files import ImageFiles
from kdrt.cli.interrupts import Interrupt, interrupts_told
from kdrt.cli.ip_adapter_image import paths_in
from kdrt.cli.region_option import mask_files
from kdrt.cli.request_json import CONTROL, REGIONS, with_files
from kdrt.cli.requests_file import RequestLine
from kdrt.errors import CancelledError, KdrtError, OutputError, PipelineClosedError
from kdrt.images.output import SUFFIXES
from kdrt.request.fields import Request

if TYPE_CHECKING:
    from kdrt import Batcher, Handle, Result

WINDOW = 32
"""Requests that are handed over and not saved yet: enough that some of a kind are always at hand to
join those in flight, few enough that memory holds an image to begin with for each."""

_SAVERS = 4
"""Threads that save. To compress a PNG takes a processor longer than a GPU makes a small image."""

_ENDS_RUN = (OutputError, PipelineClosedError, CancelledError)
"""What is not the fault of one request."""

Entry = Mapping[str, Any]
"""A line of the record."""

Finished = SimpleQueue[Future[list[Entry]] | Interrupt]
"""Requests that are saved or failed, in that order."""


@dataclass(frozen=True)
class Task:
    """A request to hand over.

    Attributes:
        line: where it stands.
        digest: see :func:`kdrt.cli.request_digest.request_digests`.
        seed: where the line gives none.
        missing: which of its images to save, from 0 on; the others are there.
    """

    line: RequestLine
    digest: str
    seed: int | None
    missing: Sequence[int]

    @property
    def has_files(self) -> bool:
        """Whether :meth:`request` reads any."""
        controls: Any = self.line.request.get(CONTROL) or ()
        regions: Any = self.line.request.get(REGIONS) or ()
        return (
            any(any(paths_in(value)) for value in self.line.request.values())
            or any(map(paths_of, controls))
            or bool(mask_files(regions))
        )

    def request(self) -> Request:
        """What to hand over.

        Raises:
            InvalidRequestError: a file cannot be read any more.
        """
        request = with_files(self.line.request)
        return request if self.seed is None else {**request, "seed": self.seed}


@dataclass(frozen=True)
class Folder:
    """Where images go.

    Attributes:
        path: of the folder.
        overwrite: replace files that are there, but for those that are ``kept``.
        kept: names of files in it.
    """

    path: Path
    overwrite: bool = False
    kept: frozenset[str] = frozenset()

    def save(self, made: Result[Any], index: int, name: str) -> str:
        """Save one image under a name, or under the next number where it is taken; the name.

        Raises:
            OutputError: it cannot be written.
        """
        overwrite = self.overwrite and name not in self.kept
        files = ImageFiles(self.path / name, 1, SUFFIXES, overwrite=overwrite)
        path = files.save(lambda path, overwrite: made.save(path, index, overwrite=overwrite))
        return path.relative_to(self.path).as_posix()


def make_many(
    tasks: Sequence[Task],
    open_batcher: Callable[[], Batcher],
    folder: Folder,
    keep: Callable[[Entry], object],
) -> None:
    """Make all images.

    Args:
        tasks: what to make.
        open_batcher: what makes them; it is left when all are made, or with the exception that
            ends the run.
        folder: where they go.
        keep: called, in this thread, with an entry for every image that is saved or whose request
            failed; also for those that were saved while the run was ending.

    Raises:
        OutputError: an image cannot be saved.
        KdrtError: the pipeline was closed, or ``keep`` raised it. What a request failed with is no
            reason to end.
    """
    finished: Finished = SimpleQueue()

    def hand_over(task: Task) -> None:
        begun = time.monotonic()

        def save(handle: Handle[Any]) -> None:
            seconds = time.monotonic() - begun
            saving = savers.submit(_entries, task, handle.result, folder, seconds)
            saving.add_done_callback(finished.put)

        try:
            handle = batcher.submit(task.request())
        except KdrtError as error:
            if isinstance(error, _ENDS_RUN):
                raise
            refused: Future[list[Entry]] = Future()
            refused.set_result(_failures(task, error))
            finished.put(refused)
        else:
            handle.add_done_callback(save)

    waiting = iter(tasks)
    with interrupts_told(finished.put):
        try:
            # The batcher is left first: it still hands images to the savers.
            with ThreadPoolExecutor(_SAVERS, "save") as savers, open_batcher() as batcher:
                for task in islice(waiting, WINDOW):
                    hand_over(task)
                for _ in tasks:
                    for entry in _next(finished):
                        keep(entry)
                    for task in islice(waiting, 1):
                        hand_over(task)
        finally:
            _keep_rest(finished, keep)


def _next(finished: Finished) -> list[Entry]:
    """What was finished next, waited for.

    Raises:
        KdrtError: what ends the run.
        BaseException: it was interrupted.
    """
    done = finished.get()
    if isinstance(done, Interrupt):
        done.answer()
        return []
    return done.result()


def _keep_rest(finished: Finished, keep: Callable[[Entry], object]) -> None:
    """Keep what was saved while the run was ending; what else went wrong then is left out."""
    interrupt = None
    while not finished.empty():
        done = finished.get()
        if isinstance(done, Interrupt):
            interrupt = done
        elif done.exception() is None:
            for entry in done.result():
                keep(entry)
    if interrupt is not None:
        interrupt.answer()


def _entries(
    task: Task, result: Callable[[], Result[Any]], folder: Folder, seconds: float
) -> list[Entry]:
    """What is to be said of a request that has ended, once its images are saved."""
    try:
        made = result()
    except KdrtError as error:
        if isinstance(error, _ENDS_RUN):
            raise
        return _failures(task, error)
    names, prompts = task.line.names, task.line.prompts
    return [
        {
            "line": task.line.number,
            "image": index + 1,
            "path": folder.save(made, index, names[index]),
            "seed": made.seeds[index],
            "prompt": prompts[index],
            "seconds": round(seconds, 3),
            "in_flight": made.in_flight,
            "request": task.digest,
        }
        for index in task.missing
    ]


def _failures(task: Task, error: KdrtError) -> list[Entry]:
    prompts = task.line.prompts
    return [
        {
            "line": task.line.number,
            "image": index + 1,
            **({} if task.seed is None else {"seed": task.seed + index}),
            "prompt": prompts[index],
            "error": str(error),
            "kind": type(error).__name__,
            "request": task.digest,
        }
        for index in task.missing
    ]
