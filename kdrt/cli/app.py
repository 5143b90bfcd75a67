"""What every typer application of kdrt has in common: help as it is written in docstrings, the
options that show it, and the right word for commands that are called otherwise elsewhere."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

_CALLED_HERE = {
    "benchmark": "bench",
    "compile": "build",
    "convert": "export",
    "delete": "rm",
    "engines": "doctor",
    "env": "doctor",
    "img2img": "generate",
    "import": "export",
    "inpaint": "generate",
    "ls": "list",
    "metadata": "info",
    "models": "list",
    "png-info": "info",
    "prompt": "generate",
    "remove": "rm",
    "run": "generate",
    "schedulers": "schedules",
    "show": "inspect",
    "txt2img": "generate",
    "uninstall": "rm",
}
"""Commands by what other programs call them, as far as the spelling alone does not tell."""


class Group(TyperGroup):
    """Commands, of which an unknown one is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in _CALLED_HERE and name not in self.commands:
            ctx.fail(f"No such command {name!r}. Did you mean {_CALLED_HERE[name]!r}?")
        return super().resolve_command(ctx, args)


def new_app(name: str, description: str = "", **settings: Any) -> typer.Typer:
    """An application without commands."""
    return typer.Typer(
        name=name,
        cls=Group,
        help=reflowed(description),
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def add_command(app: typer.Typer, function: Callable[..., None], **settings: Any) -> None:
    """Add a command, which has the name and the docstring of its function."""
    app.command(help=reflowed(function.__doc__ or ""), **settings)(function)


def reflowed(text: str) -> str:
    """Paragraphs as one line each, for the terminal to wrap; indented ones as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(_kept(p) if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


def _kept(paragraph: str) -> str:
    """Hide the indentation from typer, which would remove it."""
    return re.sub(r"^ +", r"[default]\g<0>[/default]", paragraph, flags=re.MULTILINE)
