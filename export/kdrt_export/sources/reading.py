"""Files that others wrote: whatever is wrong with one becomes a single sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdrt.common.placeholders import placeholder
from kdrt.errors import KdrtError
from kdrt_engines.regular_files import read_regular
from kdrt_export.errors import SourceError

_MAX_JSON = 16 * 2**20
"""Bytes of a JSON file; a configuration has some thousands."""


@contextmanager
def refused(what: str, hint: str = "") -> Iterator[None]:
    """Turn whatever a library raises over what it reads into a :class:`SourceError`.

    Args:
        what: what cannot be done, as the sentence begins.
        hint: what to do about it.
    """
    try:
        yield
    except KdrtError:
        raise
    except Exception as error:  # each library has types of its own, and bare Exceptions too
        advice = f"; {hint}" if hint else ""
        raise SourceError(f"{what}: {reason(error)}{advice}") from error


def reason(error: BaseException) -> str:
    """An exception's message in one line, or its type's name."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # transformers says what is wrong after a heading.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file, in UTF-8.
        otherwise: how the sentence of a :class:`SourceError` begins.
    """
    try:
        content = json.loads(read_regular(path.resolve(), _MAX_JSON).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise SourceError(f"{otherwise}: {path.name} is missing") from error
    except OSError as error:
        raise SourceError(f"{otherwise}: {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        check_fetched(path)
        raise SourceError(f"{otherwise}: {path.name} is not JSON") from error
    if not isinstance(content, dict):
        raise SourceError(
            f"{otherwise}: {path.name} holds a {type(content).__name__}, not an object with keys"
        )
    return content


def check_fetched(path: Path) -> None:
    """Refuse a file that only stands for the one that was meant.

    Raises:
        SourceError: it cannot be read, or is a Git LFS pointer or a web page.
    """
    with refused(f"{path} cannot be read"), path.open("rb") as file:
        fault = placeholder(file.read(512))
    if fault is not None:
        raise SourceError(f"{path} {fault}")
