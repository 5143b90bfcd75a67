"""The page on reliability: every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reference" / "reliability.md"


def _defined(file: Path) -> set[str]:
    """Functions and classes of a test file: ``test_a``, ``TestB``, ``TestB::test_c``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if hasattr(each, "name")}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    return found


def test_every_row_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    rows = [row for row in rows if not row.startswith("| fault |")]
    assert len(rows) > 60
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)(?:::([\w:]+))?`", row.rpartition(" | ")[2])
        assert named, row
        for file, name in named:
            assert (TESTS / file).is_file(), row
            assert not name or name in _defined(TESTS / file), row
