"""The reference of the command line, made from the commands themselves.

`kdrt --help` and the page come from one source, so they cannot differ. In `reference/cli.md` the
mark `<!-- commands -->` is where they go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PAGE = "reference/cli.md"
MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the commands."""
    return markdown.replace(MARK, commands()) if page.file.src_uri == PAGE else markdown


def commands() -> str:
    """Markdown: a section for each command, with a table of its arguments and options."""
    from kdrt.cli import app

    return "\n\n".join(_sections("", typer.main.get_command(app)))


def _sections(before: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _sections(f"{before}{name} ", command)
        else:
            yield _section(before + name, command)


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["kdrt", name, *command.collect_usage_pieces(context)])
    parts = [f"## kdrt {name}", f"    {usage}", _prose(command.help)]
    panels: dict[str, list[str]] = {"": []}
    for parameter in command.params:
        row = _row(*parameter.get_help_record(context))
        panels.setdefault(parameter.rich_help_panel or "", []).append(row)
    for panel, rows in panels.items():
        if panel:
            parts.append(
                f"### {panel} {{ #{name.replace(' ', '-')}-{panel.lower().replace(' ', '-')} }}"
            )
        if rows:
            parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _row(names: str, meaning: str) -> str:
    return f"| `{names}` | {_markdown(meaning)} |"


def _prose(text: str) -> str:
    """Paragraphs of a help text; indented ones are examples."""
    paragraphs = text.replace("[default]  [/default]", "    ").split("\n\n")
    return "\n\n".join(_plain(p) if p.startswith(" ") else _markdown(p) for p in paragraphs)


def _markdown(text: str) -> str:
    """Rich's markup as Markdown: coloured is code, bold is bold."""
    text = re.sub(r"\[cyan\](.*?)\[/(?:cyan)?\]", r"`\1`", text)
    return re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", r"**\1**", text)


def _plain(text: str) -> str:
    return re.sub(r"\[/?(?:bold|cyan|default)?\]", "", text)
