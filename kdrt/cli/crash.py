"""The record of a bug: a file with its traceback, for a report."""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from kdrt._version import __version__


def save_traceback(error: BaseException) -> Path | None:
    """Write the traceback of ``error``, with the command and the versions, into
    ``$KDRT_HOME/errors``, or into the system's temporary folder where that cannot be written.

    Returns:
        The file; None if neither can be written.
    """
    text = "\n".join(
        [
            f"kdrt {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {sys.argv[1:]!r}",
            "",
            *traceback.format_exception(error),
        ]
    )
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            name = time.strftime("kdrt-error-%Y%m%d-%H%M%S-")
            with tempfile.NamedTemporaryFile(
                "w",
                prefix=name,
                suffix=".txt",
                dir=folder,
                delete=False,
                encoding="utf-8",
                errors="backslashreplace",
            ) as file:
                file.write(text)
            return Path(file.name)
    return None


def _folders() -> tuple[Path, ...]:
    from kdrt.common.home import home

    return home() / "errors", Path(tempfile.gettempdir())
