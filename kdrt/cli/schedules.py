"""``kdrt schedules``: the noise schedules."""

from __future__ import annotations

from typing import Annotated

import typer

MEANINGS = {
    "karras": "even in the 7th root of sigma: more steps where the noise is low",
    "exponential": "even in the logarithm of sigma",
    "polyexponential": "like exponential, bent by an exponent (1 by default: the same)",
    "vp": "the continuous variance-preserving process; a range of its own",
    "scheduler": "the checkpoint's own grid: training noise levels at even timesteps",
}
"""One line on each of ``kdrt.sampling.SCHEDULES``."""


def schedules(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    List the noise schedules: how the noise levels of a run are spaced.
    """
    from kdrt.cli.console import print_json, print_table
    from kdrt.sampling import SCHEDULES

    if json:
        print_json([{"name": name, "meaning": MEANINGS[name]} for name in SCHEDULES])
        return
    print_table(("schedule", "noise levels"), [(name, MEANINGS[name]) for name in SCHEDULES])
