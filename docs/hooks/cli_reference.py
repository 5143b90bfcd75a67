"""The reference of the command line, made from the commands themselves.

`kdrt --help` and the page come from one source, so they cannot differ. In `reference/cli.md` the
mark `<!-- commands -->` is where they go.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from rich.text import Text

PAGE = "reference/cli.md"
MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the commands."""
    return markdown.replace(MARK, commands()) if page.file.src_uri == PAGE else markdown


def commands() -> str:
    """Markdown: a section for each command, with a table of its arguments and options."""
    from kdrt.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["kdrt", name, *command.collect_usage_pieces(context)])
    parts = [f"## kdrt {name}", f"    {usage}", _prose(command.help)]
    for panel, parameters in groupby(command.params, lambda p: p.rich_help_panel):
        if panel:
            parts.append(f"### {panel} {{ #{name}-{panel.lower().replace(' ', '-')} }}")
        rows = [_row(*p.get_help_record(context)) for p in parameters if not p.hidden]
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _row(names: str, meaning: str) -> str:
    cells = (f"`{names}`", _code(meaning))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _prose(text: str) -> str:
    """Paragraphs of a help text; indented ones are examples."""
    paragraphs = text.replace("[default]  [/default]", "    ").split("\n\n")
    return "\n\n".join(_plain(p) if p.startswith(" ") else _code(p) for p in paragraphs)


def _code(text: str) -> str:
    """Rich's markup as Markdown: coloured is code, bold is bold."""
    text = re.sub(r"\[cyan\](.*?)\[/(?:cyan)?\]", r"`\1`", text)
    text = re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", r"**\1**", text)
    return _plain(text)


def _plain(text: str) -> str:
    return Text.from_markup(text).plain
