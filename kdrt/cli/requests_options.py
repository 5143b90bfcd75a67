"""What ``--from`` means beside the other options of ``kdrt generate``. Needs no torch, so that a
wrong line is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdrt.cli.notices import note
from kdrt.cli.prompts_file import name_of
from kdrt.cli.requests_file import BadLinesError, RequestLine, read_requests
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request

DEFAULT_FOLDER = Path("out")

_FILES = (".png", ".jpg", ".jpeg", ".webp", ".safetensors")
"""How names end of what other runs write to."""

_REFUSED = {
    "--prompts-file": "both say what to make; give one of them",
    "--like": "both say how to make it; give one of them",
    "--grid": "do not go together: its images may be of any number and size; leave --grid out",
    "--preview": "do not go together: its images are at different steps; leave --preview out",
    "--low-vram": "do not go together: images in flight need all networks at once; leave "
    "--low-vram out",
    "--batch-size": "do not go together: how many are made at once changes all the time; leave "
    "--batch-size out",
}


def asked_requests(
    file: Path, common: Request, prompts: Sequence[str], others: Mapping[str, object]
) -> list[RequestLine]:
    """The requests of ``--from``; where several lines are wrong, they are told.

    Args:
        file: what it was given.
        common: fields that were given as options.
        prompts: those on the command line.
        others: by their flags, options that do not go with it; None is not given.

    Raises:
        InvalidRequestError: one of ``prompts`` or ``others`` was given; or see
            :func:`kdrt.cli.requests_file.read_requests`.
        BadLinesError: likewise.
    """
    if prompts or common.get("prompt") is not None:
        raise InvalidRequestError(
            f"there are prompts on the command line, and --from {file} has its own; give only one"
        )
    for flag, value in others.items():
        if value is not None:
            raise InvalidRequestError(f"{flag} and --from {_REFUSED[flag]}")
    with told_lines(file):
        return read_requests(file, common)


@contextmanager
def told_lines(file: Path) -> Iterator[None]:
    """Where the block raises BadLinesError for several lines, they are told before."""
    try:
        yield
    except BadLinesError as error:
        if len(error.bad) > 1:
            for line in error.bad:
                note("error", f"line {line.number} of {name_of(file)}: {line.reason}")
        raise


def asked_folder(output: Path | None) -> Path:
    """Where the images of ``--from`` go.

    Raises:
        InvalidRequestError: it has the name of a file.
    """
    folder = user_path(output or DEFAULT_FOLDER)
    if folder.suffix.lower() in _FILES and not folder.is_dir():
        raise InvalidRequestError(
            f"with --from, -o is a folder, and {folder} has the name of a file; give one such as "
            f"-o {DEFAULT_FOLDER}"
        )
    return folder
