"""``kdrt bench``: a command of the benchmarks, which are no part of the runtime."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """
    Measure how fast this machine makes images with kdrt and with its peers.
    """
    from kdrt.cli.extension import run_extension

    run_extension("bench", context.args)
