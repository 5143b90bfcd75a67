"""A copy of a bundle that costs nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdrt.bundle import Bundle


def linked_bundle(source: Path, target: Path) -> Bundle:
    """A bundle whose files are links to another's, with nothing made from it."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("engines"))
    return Bundle.open(target)
