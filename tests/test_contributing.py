"""The worked examples of CONTRIBUTING.md run, each section by itself, and their tests pass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (Add [^\n]+)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))


def run_section(title: str) -> list[Callable[..., Any]]:
    """Run the Python blocks of a section as one module; the tests in it."""
    names: dict[str, Any] = {"__name__": "contributing"}
    section = SECTIONS[title]
    for block in re.finditer(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        before = PAGE[: PAGE.index(section) + block.start(1)].count("\n")
        exec(compile("\n" * before + block[1], str(ROOT / "CONTRIBUTING.md"), "exec"), names)
    return [each for name, each in names.items() if name.startswith("test_")]


def test_there_is_an_example_of_everything_that_people_add() -> None:
    assert [title.rpartition(" ")[2] for title in SECTIONS] == [
        "sampler",
        "schedule",
        "component",
        "engine",
        "pass",
    ]


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_passes_its_own_test(title: str, tmp_path: Path) -> None:
    tests = run_section(title)
    assert tests, f"'{title}' has no test"
    for test in tests:
        test(*[tmp_path] if "tmp_path" in inspect.signature(test).parameters else [])


def test_what_lives_somewhere_is_there() -> None:
    """Paths in the tables of "Where things live"."""
    part = PAGE[PAGE.index("## Where things live") : PAGE.index("## Add a sampler")]
    rooms = {path.name for path in (ROOT / "kdrt").iterdir() if (path / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)/`", part[: part.index("| to change")]))
    assert rooms <= named
    for path in re.findall(r"`([\w/]+/[\w./]*)`", part):
        candidates = (ROOT / path, ROOT / "kdrt" / path)
        assert any(candidate.exists() for candidate in candidates), path
