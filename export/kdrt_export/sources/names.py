"""Networks that are added to a model by a name of their own: ``SOURCE`` or ``SOURCE:NAME``."""

from __future__ import annotations

import re
from pathlib import Path

from kdrt.common.paths import user_path
from kdrt_export.errors import ExportError
from kdrt_export.sources.part import short_name

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")


def split_name(text: str) -> tuple[str, str | None]:
    """The source and the name, where one is given.

    Raises:
        ExportError: what comes after an existing file or folder is no name.
    """
    source, colon, name = text.rpartition(":")
    if not colon or not source or user_path(text).exists():
        return text, None
    if _NAME.fullmatch(name):
        return source, name
    if user_path(source).exists():
        raise ExportError(
            f"{text!r}: {name!r} is no name; use small letters, digits, - and _, 41 at most, "
            "beginning with a letter or a digit"
        )
    return text, None  # of a file on the hub, perhaps


def default_name(source: str) -> str:
    """The last part of a source, in the letters that a name may have.

    Raises:
        ExportError: it has none of them.
    """
    last = Path(short_name(source).rpartition(":")[2]).name
    stem = re.sub(r"\.(safetensors|ckpt|pth?|bin)$", "", last.lower())
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.partition("@")[0]).strip("-_")[:40]
    if not _NAME.fullmatch(name):
        raise ExportError(f"no name follows from {source!r}; give one with {source}:NAME")
    return name
