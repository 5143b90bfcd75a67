"""Warnings of kdrt on standard error, each sentence once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer


def note(kind: str, text: str) -> None:
    """``kind: text`` on standard error; the kind, such as ``warning``, is highlighted."""
    typer.secho(f"{kind}:", err=True, fg=typer.colors.YELLOW, bold=True, nl=False)
    typer.echo(f" {text}", err=True)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Within the block, kdrt's own warnings are told when they arise, each text once, and of hints
    for prompts each advice once. All others go their usual way."""
    from kdrt.adapters.warning import AdapterWarning
    from kdrt.backends.fallback import FallbackWarning
    from kdrt.denoise.graph_level import CaptureWarning
    from kdrt.images.metadata import MetadataWarning
    from kdrt.prompt import PromptSyntaxWarning, TruncationWarning

    kinds: dict[type[Warning], str] = {PromptSyntaxWarning: "hint"} | dict.fromkeys(
        (
            AdapterWarning,
            CaptureWarning,
            FallbackWarning,
            MetadataWarning,
            TruncationWarning,
        ),
        "warning",
    )
    told: set[str] = set()

    with warnings.catch_warnings():
        for category in kinds:
            warnings.simplefilter("always", category)
        show_other = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category not in kinds:
                show_other(message, category, filename, lineno, file, line)
                return
            key = message.advice if isinstance(message, PromptSyntaxWarning) else str(message)
            if key not in told:
                told.add(key)
                note(kinds[category], str(message))

        warnings.showwarning = show
        yield
