"""A row of figures, or of what went wrong; the file they are kept in; the page of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

Figures = dict[str, float | int | str]
"""By what they are, with their unit: ``{"step ms": 12.5}``."""

ROWS, PAGE = "rows.jsonl", "rows.md"


@dataclass(frozen=True)
class Row:
    """One line of the result: figures, or the reason why there are none."""

    part: str
    name: str
    figures: Figures = field(default_factory=dict)
    failed: str = ""

    def line(self) -> str:
        """For people."""
        said = " · ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())
        return f"| {self.part} | {_cell(self.name)} | {_cell(self.failed or said)} |"


class RowFile:
    """The rows of a folder, each on the disk as soon as it is made.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS

    def add(self, row: Row) -> None:
        """Append a row; it stays, whatever becomes of this process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Row]:
        """All rows so far, but for a last one that is not whole yet."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def page(rows: list[Row], heading: str) -> str:
    """The rows as Markdown."""
    lines = [f"# {heading}", "", "| part | row | figures |", "|---|---|---|"]
    return "\n".join([*lines, *(row.line() for row in rows)]) + "\n"


def _shown(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
