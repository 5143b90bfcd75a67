"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError

_NAME_MAX = 255
"""Bytes of one name, on all common file systems."""


def user_path(value: str | os.PathLike[str]) -> Path:
    """``value`` as a path, with ``~`` and ``~user`` expanded.

    Raises:
        InvalidRequestError: there is no such user, or no file system can hold such a name.
    """
    try:
        path = Path(value).expanduser()
        encoded = os.fsencode(path)
    except TypeError as error:
        raise InvalidRequestError(f"a path must be a string, not {excerpt(value)}") from error
    except RuntimeError as error:
        user = Path(value).parts[0]
        raise InvalidRequestError(f"'{value}': there is no home folder for {user}") from error
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{str(value)!r} cannot be the name of a file") from error
    if b"\0" in encoded:
        raise InvalidRequestError(f"{str(value)!r} holds a zero character, which no path can")
    if any(len(name) > _NAME_MAX for name in encoded.split(b"/")):
        raise InvalidRequestError(
            f"'{str(value)[:40]}…' has a name of over {_NAME_MAX} bytes, which no file can have"
        )
    return path
