"""``kdrt generate --from``: the images of a file of requests, from where an earlier run ended."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import typer

import kdrt
from kdrt.bundle import open_bundle
from kdrt.cli.console import one_line, print_json
from kdrt.cli.image_progress import ImageProgress
from kdrt.cli.loading import PipelineOptions
from kdrt.cli.many import Entry, Folder, Task, make_many
from kdrt.cli.notices import note, printed_warnings
from kdrt.cli.request_digest import model_digest, request_digests
from kdrt.cli.requests_file import BadLine, BadLinesError, RequestLine
from kdrt.cli.run_record import RunRecord
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.request.fields import Request

_RANDOM_SEED_LIMIT = 2**32
"""Drawn seeds are those that web UIs accept too."""

_TOLD = 10
"""Failed lines whose numbers are told at the end; the record has all."""


class RequestsRun:
    """A run over a file of requests.

    Attributes:
        tasks: what is left to make; known within :meth:`resumed`.

    Args:
        name: of the file of requests, for messages.
        lines: all that it holds.
        folder: where the images go.
        overwrite: replace files that are there and belong to no request of the file.
        as_json: print entries of the record in place of paths and seeds.

    Raises:
        OutputError: the folder holds a record that is not kdrt's, or cannot be written.
    """

    def __init__(
        self,
        name: str,
        lines: Sequence[RequestLine],
        folder: Path,
        *,
        overwrite: bool = False,
        as_json: bool = False,
    ) -> None:
        self.tasks: list[Task] = []
        self._name = name
        self._lines = lines
        self._folder = Folder(folder, overwrite)
        self._as_json = as_json
        self._saved = 0
        self._failed: set[int] = set()
        self._record = RunRecord(folder)

    @contextmanager
    def resumed(self, model: str) -> Iterator[None]:
        """Within the block the record is this run's alone, and it is known what is left to make.

        Args:
            model: its digest: what another model made is not taken for what is asked of this one.

        Raises:
            OutputError: another run is at work in the folder, or it cannot be written.
        """
        with self._record.writing():
            kept: set[str] = set()
            for line, digest in zip(self._lines, request_digests(model, self._lines), strict=True):
                paths = [self._record.path_of(digest, index) for index in range(line.images)]
                missing = [index for index, path in enumerate(paths) if path is None]
                kept.update(path for path in paths if path is not None)
                if missing:
                    self.tasks.append(Task(line, digest, self._seed(line, digest), missing))
            self._folder = Folder(self._folder.path, self._folder.overwrite, frozenset(kept))
            if kept:
                total = sum(line.images for line in self._lines)
                note(
                    "note",
                    f"{len(kept)} of {total} images are in {one_line(self._folder.path)} already",
                )
            yield

    def check(self, resolve: Callable[[Request], object]) -> None:
        """Refuse what this model cannot make, before anything is made. Requests with files are left
        to their turn: to read all of them may take long.

        Args:
            resolve: raises InvalidRequestError for such a request.

        Raises:
            BadLinesError: there are such requests.
        """
        bad = []
        for task in self.tasks:
            if not task.has_files:
                try:
                    resolve(task.request())
                except InvalidRequestError as error:
                    bad.append(BadLine(task.line.number, str(error)))
        if bad:
            raise BadLinesError(self._name, bad)

    def make(self, open_batcher: Callable[[], kdrt.Batcher], *, progress: bool) -> None:
        """Make what is left.

        Args:
            open_batcher: what makes it.
            progress: whether to say how far it is.

        Raises:
            KdrtError: requests failed, after all others are made; or see
                :func:`kdrt.cli.many.make_many`. What is saved by then stays, and its number is
                told; likewise for Ctrl-C.
        """
        images = sum(len(task.missing) for task in self.tasks)
        with ImageProgress(images, shown=progress) as bar:
            try:
                make_many(self.tasks, open_batcher, self._folder, partial(self._keep, bar))
            except BaseException:
                bar.stop()
                typer.echo(
                    f"{self._saved} of {images} images are saved; the same command makes the "
                    "others.",
                    err=True,
                )
                raise
        if self._failed:
            raise KdrtError(self._failures())

    def _keep(self, bar: ImageProgress, entry: Entry) -> None:
        self._record.add(entry)
        with bar.paused():
            self._tell(entry)
        if "path" in entry:
            self._saved += 1
        else:
            self._failed.add(entry["line"])
        bar.image_done()

    def _failures(self) -> str:
        lines = sorted(self._failed)
        numbers = ", ".join(map(str, lines[:_TOLD])) + ", …" * (len(lines) > _TOLD)
        return (
            f"{len(lines)} of {len(self.tasks)} requests failed, line{'s' * (len(lines) > 1)} "
            f"{numbers} of {self._name}; {self._record.path} says why, and the same command tries "
            "them again"
        )

    def _seed(self, line: RequestLine, digest: str) -> int | None:
        """A seed where the line has none: the one of before, so that an image that was lost comes
        back the same."""
        if line.request.get("seed") is not None:
            return None
        known = self._record.seed(digest)
        return secrets.randbelow(_RANDOM_SEED_LIMIT - line.images) if known is None else known

    def _tell(self, entry: Entry) -> None:
        if self._as_json:
            print_json(dict(entry), indent=None)
            sys.stdout.flush()  # a reader need not wait for the last image
        elif "path" in entry:
            typer.echo(f"{one_line(self._folder.path / entry['path'])}\tseed {entry['seed']}")
        if "error" in entry and entry["line"] not in self._failed:  # once for all its images
            note("error", f"line {entry['line']} of {self._name}: {entry['error']}")


def make_requests(run: RequestsRun, pipeline: PipelineOptions, *, progress: bool) -> None:
    """Make what a run has left, with the pipeline that is asked for.

    Args:
        run: which knows what that is.
        pipeline: is only loaded if there is anything to make.
        progress: whether to say how far it is.

    Raises:
        BadLinesError: see :meth:`RequestsRun.check`.
        KdrtError: see :meth:`RequestsRun.make`.
    """
    loras = pipeline.read_loras()
    model = model_digest(open_bundle(pipeline.bundle).manifest, loras)
    with printed_warnings(), run.resumed(model):
        if run.tasks:
            pipe = pipeline.load(loras)
            run.check(lambda request: pipe.resolve(request, "pil"))
            run.make(lambda: kdrt.Batcher(pipe), progress=progress)
