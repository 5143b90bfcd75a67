"""Runs what the README and the pages of ``docs/`` show, so that they cannot rot.

Shell blocks: ``kdrt`` commands are run, but exports, builds, benchmarks, tuning and removals are
parsed only (models need a network, the demo model is exported once for all tests, benchmarks take
minutes); one slow test exports as the README does, and the tests of TensorRT-RTX build. Python
blocks are run as they stand. Blocks of one page share a folder, in order; one that does not import
kdrt goes on with the names of the one before.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer

from kdrt import cli
from kdrt.request.recipes import RECIPES
from kdrt.sampling import NOISES, SAMPLERS, SCHEDULES

ROOT = Path(__file__).parent.parent
PARSED_ONLY = ("add", "bench", "build", "compare", "export", "quantize", "rm", "serve", "tune")
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def path_of(page: Path) -> str:
    """The path of a page in the repository, without its suffix."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=path_of)
linking = pytest.mark.parametrize(
    "page", sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("examples/*.md")}), ids=path_of
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of every code block of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(content)) for _, language, content in found]


def commands(shell: str) -> list[list[str]]:
    """The ``kdrt`` commands of a shell block, without ``kdrt`` itself."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            program, *arguments = shlex.split(part)
            if Path(program).name == "kdrt":
                found.append(arguments)
    return found


def every_command(page: Path) -> list[list[str]]:
    return [
        command
        for language, content in blocks(page)
        if language == "sh"
        for command in commands(content)
    ]


@pytest.fixture
def folder(tmp_path: Path, demo_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder where ``demo`` can be found."""
    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pages
def test_what_a_page_shows_runs(page: Path, folder: Path) -> None:
    names: dict[str, object] = {}
    for language, content in blocks(page):
        assert language in {"sh", "python", "text"}, f"a block of {page.name} has no language"
        if language == "python":
            if re.search(r"^(import|from) kdrt", content, flags=re.MULTILINE):
                names = {"__name__": page.stem}
            exec(compile(content, page.name, "exec"), names)
        elif language == "sh":
            for command in commands(content):
                if command[0] not in PARSED_ONLY:
                    assert cli.run(command) == 0, shlex.join(["kdrt", *command])


@pages
def test_the_exports_and_builds_a_page_shows_parse(page: Path) -> None:
    for command in every_command(page):
        if command[0] in PARSED_ONLY:
            parser: Any = typer.main.get_group(cli.app)
            while hasattr(parser, "commands"):
                name, *command = command
                parser = parser.commands[name]
            parser.make_context(name, command).close()


@pytest.mark.slow
def test_the_first_command_of_the_readme(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands(marked("first command")):
        assert cli.run(command) == 0, shlex.join(["kdrt", *command])
    assert (tmp_path / "red-circle.png").is_file()


@linking
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


def test_the_readme_names_every_command_sampler_and_schedule() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*SAMPLERS, *SCHEDULES]:
        assert f"`{name}`" in readme
    shown = {command[0] for page in PAGES for command in every_command(page)}
    assert shown >= set(typer.main.get_group(cli.app).commands)


def test_the_table_of_samplers_is_that_of_the_code() -> None:
    page = (DOCS / "reference" / "samplers.md").read_text(encoding="utf-8")
    expected = [
        (
            f"`{name}`",
            info.label,
            "-" if info.order is None else str(info.order),
            "yes" if info.stochastic else "no",
            info.evaluations,
            "yes" if info.capturable else "no",
            ", ".join(f"`{option}`" for option in info.options) or "-",
            f"`{info.diffusers}`" if info.diffusers else "-",
        )
        for name, info in SAMPLERS.items()
    ]
    table = page[page.index("| sampler |") : page.index("*Order*")].strip().splitlines()
    assert [tuple(line.strip("| ").split(" | ")) for line in table[2:]] == expected


def test_the_tables_of_schedules_and_noise_are_those_of_the_code() -> None:
    page = (DOCS / "reference" / "schedules.md").read_text(encoding="utf-8")
    for name, info in SCHEDULES.items():
        own = ", ".join(f"`{o}`" for o in info.options if o != "discard_penultimate")
        cells = (f"`{name}`", info.label, info.covers, info.meaning, own)
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in page
    page = (DOCS / "reference" / "noise.md").read_text(encoding="utf-8")
    for name, noise in NOISES.items():
        options = ", ".join(f"`{option}`" for option in noise.options)
        row = [f"`{name}`", noise.meaning, "yes" if noise.has_noise_seed else "no", options]
        assert f"| {' | '.join(row)} |".replace("|  |", "| |") in page


def test_the_table_of_recipes_is_that_of_the_code() -> None:
    page = (DOCS / "howto" / "few-steps.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(told) == sorted(RECIPES)
    scales = {None: "the model's", 1.0: "off"}
    for names, made_for, *settings in rows:
        for name in re.findall(r"`([^`]+)`", names):
            recipe = RECIPES[name]
            assert f"({recipe.source})" in made_for
            options = [
                f", `{key}={value:g}`" for key, value in (recipe.sampler_options or {}).items()
            ]
            levels = f"`{recipe.schedule}`"
            if recipe.timesteps is not None:
                (timestep,) = recipe.timesteps
                levels = f"timestep {timestep:g}"
            guidance = scales[recipe.guidance_scale]
            if recipe.distilled_guidance_scale is not None:
                guidance += f"; {recipe.distilled_guidance_scale:g} for whole LCM models"
            assert settings == [f"`{recipe.sampler}`{''.join(options)}", levels, guidance]


def test_the_bounds_of_an_export_are_those_of_the_code() -> None:
    from kdrt_export.verify import BOUNDS

    page = (DOCS / "reference" / "export.md").read_text(encoding="utf-8")
    for precision, bound in BOUNDS.items():
        assert f"| {precision} | {bound:.0e} |" in page


def test_the_bounds_of_a_refittable_engine_are_those_of_the_code() -> None:
    from kdrt_engines.comparison import BOUNDS

    page = (DOCS / "howto" / "tensorrt.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    bounds = {dtype: f"{bound:.0e}".replace("e-0", "e-") for dtype, bound in BOUNDS.items()}
    assert " and ".join(f"{bound} in {dtype}" for dtype, bound in bounds.items()) in said


def test_every_page_is_reached_from_another() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for page in PAGES[1:]:
        link = re.compile(rf"\]\([^)]*\b{re.escape(page.name)}[)#]")
        assert any(link.search(text) for other, text in texts.items() if other != page), page


def marked(name: str) -> str:
    """The code block between the README's marks of this name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```\n<!-- end -->", text, flags=re.DOTALL)
    assert match is not None, f"the README has no mark '{name}'"
    return match[1]
