"""What the documentation site adds to the pages: the reference of the command line, files of the
repository, docstrings without roles; and that the modules which pages name are there. (Links and
the rest are checked by ``mkdocs build`` in ``.ci/run``.)
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer

from kdrt.cli import app

ROOT = Path(__file__).resolve().parents[1]
CODE = ("kdrt", "export", "engines", "benchmarks", "tests", "examples", "docs")
GROUP: Any = typer.main.get_command(app)

pytest.importorskip("mkdocs")


def commands_of(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its whole name, as in ``lora inspect``."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        found |= commands_of(command, f"{before}{name} ") if nested else {before + name: command}
    return found


COMMANDS = commands_of(GROUP)


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The reference of each command."""
    text = hook("cli_reference").commands()
    return dict(re.findall(r"^## kdrt ([\w -]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))


def test_every_command_has_a_section(sections: dict[str, str]) -> None:
    assert list(sections) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_holds_every_option_once_and_no_markup(
    name: str, sections: dict[str, str]
) -> None:
    rows = re.findall(r"^\| `(.*?)` \|", sections[name], re.MULTILINE)
    shown = [re.findall(r"(?<![\w-])--?[a-z][\w-]*", row) for row in rows]
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            names = [*parameter.opts, *parameter.secondary_opts]
            assert sum(set(names) <= set(row) for row in shown) == 1, names
    assert len(rows) == len(COMMANDS[name].params)
    assert not re.search(r"\[/|\[(?:cyan|bold|default)\]", sections[name])


def test_the_page_has_a_place_for_the_commands() -> None:
    cli_reference = hook("cli_reference")
    page = ROOT / "docs" / cli_reference.PAGE
    assert cli_reference.MARK in page.read_text(encoding="utf-8")


def test_modules_that_the_pages_name_exist() -> None:
    """By their whole path or the end of it, as in `sampling/plan.py`."""
    code = [file for folder in CODE for file in (ROOT / folder).rglob("*.py")]
    paths = [f"/{file.relative_to(ROOT).as_posix()}" for file in code]
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        if page.name != "CHANGELOG.md":  # which tells of what has gone, too
            for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
                assert any(path.endswith(f"/{name}") for path in paths), f"{page.name}: {name}"


def test_files_of_the_repository_that_are_shown_exist() -> None:
    assert all((ROOT / path).is_file() for path in hook("repository_files").PAGES)


@pytest.mark.parametrize(
    ("here", "link", "there"),
    [
        (
            "howto/tensorrt.md",
            "../../SECURITY.md#engines-are-code",
            "../security.md#engines-are-code",
        ),
        ("contributing.md", "docs/explanation/plans.md", "explanation/plans.md"),
        ("howto/lossy.md", "../../benchmarks/results/lossy.md", "../measured/lossy.md"),
        ("howto/gpu.md", "tensorrt.md", "tensorrt.md"),
        ("howto/gpu.md", "#streams", "#streams"),
        ("howto/gpu.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("howto/gpu.md", "../../pyproject.toml", "../../pyproject.toml"),  # strict: refused
    ],
)
def test_links_lead_to_places_on_the_site(here: str, link: str, there: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=here))
    rewritten = hook("repository_files").on_page_markdown(
        f"see [it]({link}).", page=page, config=None, files=None
    )
    assert rewritten == f"see [it]({there})."


def test_roles_become_code() -> None:
    docstring = SimpleNamespace(
        value="See :func:`kdrt.load` and :class:`~kdrt.Pipeline`; `x` stays."
    )
    rewritten = SimpleNamespace(path="kdrt.load", docstring=docstring)
    hook("docstrings").Docstrings().on_object(obj=rewritten)
    assert docstring.value == "See `kdrt.load` and `kdrt.Pipeline`; `x` stays."


def test_fields_of_a_request_are_described() -> None:
    griffe = pytest.importorskip("griffe")
    roots = [str(ROOT)]
    extensions = griffe.load_extensions(str(ROOT / "docs" / "hooks" / "docstrings.py"))
    kdrt = griffe.load("kdrt", search_paths=roots, extensions=extensions, allow_inspection=False)
    call = kdrt["pipeline.signatures.Calling.__call__"].docstring.value
    assert "{fields}" not in call
    assert "\n    negative_prompt: What" in call
    assert "\n    **fields: " in call
    scale = kdrt["request.fields.RequestFields.guidance_scale"]
    assert scale.docstring.value.startswith("How closely")
    assert "Annotated" not in str(scale.annotation)
