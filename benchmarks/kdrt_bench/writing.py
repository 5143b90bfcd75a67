"""The report's folder: it appears whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdrt.common.atomic_io import new_folder, other_files
from kdrt_bench.page import page_of
from kdrt_bench.report import Report, read_report

JSON, PAGE = "report.json", "report.html"


@contextmanager
def new_report(folder: Path) -> Iterator[Path]:
    """A folder to write a report into, which takes its place at the end; a report that is there
    already stays until then.

    Raises:
        OutputError: something else is there, or :func:`kdrt.common.atomic_io.new_folder` raises it.
    """
    with new_folder(folder, _foreign) as partial:
        yield partial


def _foreign(folder: Path) -> str | None:
    """What in a folder is not of a report."""
    named: set[str] = set()
    with suppress(OSError, ValueError):
        rows = [row for each in read_report(folder / JSON).experiments for row in each.rows]
        named = {JSON, PAGE, *(row.image for row in rows if row.image)}
    return other_files(folder, named.__contains__)


def write_report(report: Report, folder: Path) -> None:
    """Write the JSON and the page; images are there already."""
    (folder / JSON).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page_of(report, folder), encoding="utf-8")
