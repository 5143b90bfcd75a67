"""The report's folder: it appears whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdrt.bench.page import page_of
from kdrt.bench.report import Report
from kdrt.errors import OutputError
from kdrt.outputs import new_folder

JSON, PAGE, IMAGES = "report.json", "report.html", "images"
_OURS = {JSON, PAGE, IMAGES}


@contextmanager
def new_report(folder: Path) -> Iterator[Path]:
    """A folder to write a report into, which takes its place at the end; a report that is there
    already stays until then.

    Raises:
        OutputError: something else is there, or :func:`kdrt.outputs.new_folder` raises it.
    """
    if folder.exists():
        others = set() if not folder.is_dir() else {p.name for p in folder.iterdir()} - _OURS
        if not folder.is_dir() or others:
            what = "is a file" if not folder.is_dir() else f"holds {sorted(others)[0]}"
            raise OutputError(f"{folder} {what}: give -o a new folder, or that of an old report")
    with new_folder(folder) as partial:
        yield partial


def write_report(report: Report, folder: Path) -> None:
    """Write the JSON and the page; pictures are there already."""
    (folder / JSON).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page_of(report, folder), encoding="utf-8")
