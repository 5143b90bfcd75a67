"""Images for IP-Adapters, and their masks: of the command line, and of a request in JSON.

Each is a value with paths in the place of images: of one, a list of them, or a mapping of those by
the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kdrt.common.paths import user_path
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError

_NAMED = re.compile(r"(?P<file>.+):name=(?P<name>[^:/\\]+)")


def image_options(flag: str, texts: Sequence[str], *, at_once: bool) -> Any:
    """The value of ``FILE[:name=NAME]``, given once or more often: those of one name belong to one
    adapter.

    Args:
        flag: of the command, for errors.
        texts: what it was given.
        at_once: several files of an adapter are for one image that is made.

    Raises:
        InvalidRequestError: some have a name and others have none.
    """
    by_name: dict[str | None, list[Path]] = {}
    for text in texts:
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        file, name = (text, None) if match is None else (match["file"], match["name"])
        by_name.setdefault(name, []).append(user_path(file))
    values = {name: _value(paths, at_once=at_once) for name, paths in by_name.items()}
    if None not in values:
        return values
    if len(values) > 1:
        raise InvalidRequestError(
            f"{flag} needs the name of an IP-Adapter everywhere or nowhere, as in "
            f"{flag} face.png:name=face"
        )
    return values[None]


def json_images(name: str, value: object, folder: Path) -> Any:
    """The same of a file's name in JSON, a list of such, or an object of those by adapter.

    Args:
        name: of the field.
        value: of JSON.
        folder: where names of files begin.

    Raises:
        InvalidRequestError: it is something else.
    """
    if isinstance(value, str):
        return folder / user_path(value)
    if isinstance(value, list) and value:
        return [json_images(name, each, folder) for each in value]
    if isinstance(value, dict) and value:
        return {key: json_images(name, each, folder) for key, each in value.items()}
    raise InvalidRequestError(
        f"{name} must be the name of a file, a list of them, or those by IP-Adapter, as in "
        f'{{"face": "face.png"}}, not {excerpt(value)}'
    )


def paths_in(value: Any) -> Iterator[Path]:
    """The files of a value that are not read yet."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from paths_in(each)


def with_pictures(value: Any, read: Callable[[Path], Image.Image]) -> Any:
    """The same value with images in place of their paths."""
    if isinstance(value, Path):
        return read(value)
    if isinstance(value, list):
        return [with_pictures(each, read) for each in value]
    if isinstance(value, Mapping):
        return {name: with_pictures(each, read) for name, each in value.items()}
    return value


def _value(paths: list[Path], *, at_once: bool) -> Any:
    if len(paths) == 1:
        return paths[0]
    return [paths] if at_once else paths
