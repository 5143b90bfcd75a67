"""The house: who may import whom, which folder mirrors which, and how long a file may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGES = {
    "": ROOT / "kdrt",
    "export": ROOT / "export" / "kdrt_export",
    "engines": ROOT / "engines" / "kdrt_engines",
    "bench": ROOT / "benchmarks" / "kdrt_bench",
}
"""The four import packages, by the folder of ``tests/`` that mirrors each."""

SHARED = {"support", "oracles"}
"""Folders of ``tests/`` that tests import from."""
OF_NO_PACKAGE = SHARED | {"fuzz", "gpu", "integrations", "integrations/comfyui"}

FAMILIES = {"sampling/samplers", "sampling/schedules"}
"""Packages whose modules are members of one table: the tests of ``tests/sampling`` go through the
table, so that a new member is tested without a new file."""

LONGEST = 400
LONGER: dict[str, str] = {
    "kdrt/request/fields.py": "the one list of what a request may hold, with help and ranges",
    "kdrt/sampling/foreign.py": "what a sampler that is not ours may ask of us",
    "kdrt/sampling/samplers/__init__.py": "the table of samplers",
    "kdrt/adapters/lora.py": "the whole life of a LoRA, from its file to its removal",
}
"""Modules of more than ``LONGEST`` lines, and why."""


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """The dotted names that a module imports, the names in ``from a import b`` included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def test_no_test_imports_a_test() -> None:
    for file in modules(TESTS):
        for name in imports(file):
            assert not name.startswith("."), f"{file} imports {name}: write where that is"
            if name.startswith("tests."):
                assert name.split(".")[1] in SHARED, f"{file} imports {name}: use tests/support"


def changes_sys_path(file: Path) -> Iterator[int]:
    """Lines that assign to ``sys.path`` or an entry of it, or that call a method which adds."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        changed: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            changed = node.targets
        elif isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "syspath_prepend":
                yield node.lineno
            elif node.func.attr in {"append", "extend", "insert"}:
                changed = [node.func.value]
        for target in changed:
            place = target.value if isinstance(target, ast.Subscript) else target
            if ast.unparse(place) == "sys.path":
                yield target.lineno


CHANGES_PATH = {
    # The worker that builds engines imports what its parent can: here a stand-in for TensorRT.
    "engines/tensorrt/test_build.py",
    # Installs distributions without code, for importlib.metadata to find.
    "support/rtx_machine.py",
}


def test_no_test_changes_where_python_looks() -> None:
    found = {
        file.relative_to(TESTS).as_posix() for file in modules(TESTS) if [*changes_sys_path(file)]
    }
    assert found == CHANGES_PATH


@pytest.mark.parametrize(
    "code",
    [
        "sys.path.insert(0, x)",
        "sys.path[:0] = x",
        "sys.path += x",
        "sys.path = x",
        "monkeypatch.syspath_prepend(x)",
    ],
)
def test_every_way_to_change_it_is_seen(code: str, tmp_path: Path) -> None:
    (tmp_path / "it.py").write_text(f"print(sys.path)\n{code}\n")
    assert list(changes_sys_path(tmp_path / "it.py")) == [2]


def folders(root: Path) -> set[str]:
    """The packages inside a package, by their paths from it."""
    found = {file.parent.relative_to(root).as_posix() for file in root.rglob("__init__.py")}
    return found - {"."}


def test_the_folders_of_the_tests_are_those_of_the_code() -> None:
    code: set[str] = set()
    for mirror, package in PACKAGES.items():
        code |= {mirror} | {f"{mirror}/{folder}".strip("/") for folder in folders(package)}
    code -= FAMILIES | {""}
    assert code == folders(TESTS) - OF_NO_PACKAGE


def test_the_rooms_import_as_drawn() -> None:
    """The contracts in pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command as main; main()"
    paths = [str(package.parent) for package in PACKAGES.values()]
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_long_modules_have_a_reason() -> None:
    lengths = {
        file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES.values()
        for file in modules(package)
    }
    longer = {name for name, lines in lengths.items() if lines > LONGEST}
    assert longer - LONGER.keys() == set(), "split it, or say in LONGER why it is one thing"
    assert LONGER.keys() - longer == set(), "it is short now: take it out of LONGER"


def listed(init: Path) -> set[str]:
    """The names in the left column of "Its files" in a package's docstring."""
    docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    rows = docstring.partition("Its files:\n")[2].splitlines()
    return {row.split()[0] for row in rows if row.startswith("    ") and row[4] != " "}


PACKAGES_WITH_FILES = [
    init
    for package in (PACKAGES[""], PACKAGES["engines"], PACKAGES["export"])
    for init in sorted(package.rglob("__init__.py"))
    if init.parent != PACKAGES[""]
]


@pytest.mark.parametrize("init", PACKAGES_WITH_FILES, ids=lambda init: init.parent.name)
def test_a_package_names_each_of_its_files(init: Path) -> None:
    modules_here = {file.stem for file in init.parent.glob("*.py")} - {"__init__"}
    packages_here = {file.parent.name for file in init.parent.glob("*/__init__.py")}
    assert listed(init) == modules_here | packages_here
