"""A series of images from the first batch to the last: made, saved, and told about."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kdrt.cli.batches import Series, Watch, chosen_batch_size, generate_batches
from kdrt.cli.console import one_line
from kdrt.cli.image_files import ImageFiles
from kdrt.cli.image_output import ImageOutput, LatentsOutput
from kdrt.cli.image_progress import ImageProgress
from kdrt.cli.latents_file import SUFFIX
from kdrt.cli.notices import note
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError
from kdrt.images.output import SUFFIXES

if TYPE_CHECKING:
    from kdrt import Pipeline, PreviewStep

DEFAULT_OUTPUT = Path("out.png")


def open_output(
    series: Series,
    path: Path | None,
    *,
    grid: Path | None,
    preview: Path | None,
    overwrite: bool,
    as_json: bool,
) -> ImageOutput | LatentsOutput:
    """Where a series goes, after making sure that it can be written.

    Args:
        series: the images to come.
        path: for images or, with the suffix of latents, for those; None is `DEFAULT_OUTPUT`.
        grid: for a sheet of all images, or None.
        preview: where previews go, which must be another file; None is nowhere.
        overwrite: replace files that are there.
        as_json: print JSON.

    Raises:
        OutputError: a place cannot be written.
        InvalidRequestError: a sheet is not possible, or two options name one file.
    """
    named = path or DEFAULT_OUTPUT
    if is_latents(path):
        if grid is not None:
            raise InvalidRequestError(
                "--grid puts images on a sheet, and latents are none; leave it out"
            )
        files = ImageFiles(named, 1, (SUFFIX,), overwrite=overwrite)
        output: ImageOutput | LatentsOutput = LatentsOutput(series, files, as_json=as_json)
    else:
        files = ImageFiles(named, len(series), (*SUFFIXES, SUFFIX), overwrite=overwrite)
        sheet = None if grid is None else ImageFiles(grid, 1, SUFFIXES, overwrite=overwrite)
        output = ImageOutput(series, files, sheet, as_json=as_json)
    _check_apart(files, grid, preview)
    if path is not None and files.is_taken:
        note(
            "note",
            f"{one_line(path)} is there and is kept, so a number is added; --overwrite replaces it",
        )
    return output


def _check_apart(files: ImageFiles, grid: Path | None, preview: Path | None) -> None:
    """Refuse options of which one would replace what another has written."""
    others = {
        flag: user_path(path)
        for flag, path in (("--grid", grid), ("--preview", preview))
        if path is not None
    }
    for flag, path in others.items():
        if files.names(path):
            raise InvalidRequestError(
                f"{flag} and -o would both write {path}; give each a file of its own"
            )
    if len(others) == 2 and len(set(map(os.path.realpath, others.values()))) == 1:
        raise InvalidRequestError(
            f"--grid and --preview would both write {grid}; give each a file of its own"
        )


def is_latents(path: Path | None) -> bool:
    """Whether a file of that name holds latents."""
    return path is not None and path.suffix.lower() == SUFFIX


def make_images(
    pipe: Pipeline,
    series: Series,
    output: ImageOutput | LatentsOutput,
    *,
    batch_size: int | None,
    preview: Callable[[PreviewStep], None] | None,
    progress: bool,
) -> None:
    """Make a series and save each batch when it is done.

    Args:
        pipe: what makes it.
        series: the images.
        output: where they go.
        batch_size: how many at once; None is up to us.
        preview: called after every step, or None.
        progress: whether to say how far it is.

    Raises:
        KdrtError: what is saved by then stays, and its number is told; likewise for Ctrl-C.
    """
    size = chosen_batch_size(series, pipe, batch_size)
    chunks = 1
    try:
        with ImageProgress(len(series), shown=progress) as bar:
            for result in generate_batches(pipe, series, size, _watch(bar, preview)):
                with bar.paused():
                    output.add(result)
                bar.batch_done(len(result.seeds))
                chunks = max(chunks, result.chunks)
        output.finish()
    except BaseException:
        if output.saved:
            typer.echo(f"{output.saved} of {len(series)} images are saved.", err=True)
        raise
    if chunks > 1:
        typer.echo(f"The longest prompt is read in {chunks} chunks.", err=True)


def _watch(bar: ImageProgress, preview: Callable[[PreviewStep], None] | None) -> Watch | None:
    if preview is None:
        return bar.step if bar.is_live else None

    def watch(step: PreviewStep, steps: int) -> None:
        preview(step)
        bar.step(step, steps)

    return watch
