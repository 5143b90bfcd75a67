"""The prompts of a command: typed, or read from a file with one on each line."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from kdrt.common.paths import user_path
from kdrt.common.validation import check_text, excerpt
from kdrt.errors import InvalidRequestError

STDIN = Path("-")
MAX_BYTES = 64 << 20
"""Of a file: far more than a command makes images in a year."""


def given_prompts(typed: list[str], file: Path | None) -> list[str]:
    """The prompts of a command.

    Args:
        typed: those on the command line.
        file: see :func:`read_prompts`.

    Raises:
        InvalidRequestError: there are none, or both kinds; one that was typed stands for a file;
            or the file cannot be used.
    """
    if file is not None:
        if typed:
            raise InvalidRequestError(
                f"there are prompts on the command line and in --prompts-file {file}; give only one"
            )
        return read_prompts(file)
    if not typed:
        raise InvalidRequestError(
            "there is no prompt; give one in quotes, or many with --prompts-file FILE"
        )
    prompts = [as_text(prompt) for prompt in typed]
    for prompt in prompts:
        _refuse_file_names(prompt)
    return prompts


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file, one on each line. Empty lines and those that begin with ``#`` are
    skipped.

    Args:
        file: in UTF-8; ``-`` is standard input.

    Raises:
        InvalidRequestError: it cannot be read, is not UTF-8, holds no prompt or one that is too
            long.
    """
    name = name_of(file)
    prompts = []
    for number, line in enumerate(read_file(file).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise InvalidRequestError(
                f"line {number} of {name} is not UTF-8: save it as UTF-8 text"
            ) from None
        if text and not text.startswith("#"):
            prompts.append(check_text(f"line {number} of {name}", text))
    if not prompts:
        raise InvalidRequestError(f"there is no prompt in {name}: write one on each line")
    return prompts


def name_of(file: Path) -> str:
    """What a file is called in messages; ``-`` is standard input."""
    return "standard input" if file == STDIN else str(file)


def read_file(file: Path) -> bytes:
    """The bytes of a file of lines; ``-`` is standard input.

    Raises:
        InvalidRequestError: it cannot be read, or is too large.
    """
    name = name_of(file)
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with user_path(file).open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {name}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise InvalidRequestError(
            f"{name} is larger than {MAX_BYTES >> 20} MB; split it into several files"
        )
    return content


def _refuse_file_names(prompt: str) -> None:
    """Other programs read a file where they are given ``-`` or ``@file``."""
    if prompt == "-":
        raise InvalidRequestError(
            "'-' is not a prompt; --prompts-file - reads prompts from standard input"
        )
    name = prompt.removeprefix("@")
    if name != prompt and name and not any(map(str.isspace, name)):
        raise InvalidRequestError(
            f"{excerpt(prompt)} is not a prompt; --prompts-file FILE reads prompts from a file, as "
            f"in --prompts-file {excerpt(name)[1:-1]}"
        )


def as_text(argument: str) -> str:
    """A prompt as it was typed, in UTF-8. Where Python takes the terminal for an ASCII one, all
    else arrives as lone surrogates that stand for its bytes."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):  # no byte's surrogate; the request's check refuses it
            return os.fsencode(argument).decode(errors="surrogateescape")
    return argument
