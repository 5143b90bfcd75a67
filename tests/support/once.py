"""What a test run needs once, however many processes it has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills, by the first process of the run that asks for it.

    Args:
        factory: of the session.
        name: of the folder, in this run.
        make: called with the folder, which is empty.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder in that of the run
    folder, complete = base / f"once-{name}", base / f"once-{name}.complete"
    with FileLock(base / f"once-{name}.lock"):
        if not complete.exists():
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
