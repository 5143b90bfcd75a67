"""The report's folder: it appears whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdrt.bench.page import page_of
from kdrt.bench.report import Report
from kdrt.errors import OutputError

JSON, PAGE, IMAGES = "report.json", "report.html", "images"
_OURS = {JSON, PAGE, IMAGES}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a report into, which takes its place at the end; a report that is there
    already stays until then.

    Raises:
        OutputError: something else is there, or it cannot be written.
    """
    if folder.exists():
        others = set() if not folder.is_dir() else {p.name for p in folder.iterdir()} - _OURS
        if not folder.is_dir() or others:
            what = "is a file" if not folder.is_dir() else f"holds {sorted(others)[0]}"
            raise OutputError(f"{folder} {what}: give -o a new folder, or that of an old report")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_report(report: Report, folder: Path) -> None:
    """Write the JSON and the page; pictures are there already."""
    (folder / JSON).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page_of(report, folder), encoding="utf-8")
