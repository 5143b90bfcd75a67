"""What the commands share to print: tables, sizes, times, JSON."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on standard output, never wrapped or coloured; without ``indent`` on one
    line."""
    # Elsewhere JSON's own escapes are the only ones that are JSON.
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=not unicode) + "\n")


def one_line(text: object) -> str:
    """A path for people to read: control characters escaped, so that it is one line and does not
    steer the terminal."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c
        for c in str(text)
    )


def print_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A titled list of names and values."""
    table = Table.grid(padding=(0, 3), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  [cyan]{escape(name)}[/]", escape(value))
    out = Console()
    out.print(f"[bold]{escape(title)}[/]")
    out.print(table)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table without frame. A column whose heading ends in ``#`` holds numbers; the last one
    takes what room is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(
            heading.rstrip("#"),
            justify="right" if heading.endswith("#") else "left",
            no_wrap=index < len(headings) - 1,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    out = Console()
    if title:
        out.print(f"[bold]{escape(title)}[/]")
    out.print(table)
