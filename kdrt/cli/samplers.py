"""``kdrt samplers``: the samplers and their options."""

from __future__ import annotations

from typing import Annotated

import typer


def samplers(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    List the samplers, what a run costs and which options they take.

    Names are those of k-diffusion; the web UI's names work too ("DPM++ 2M"). Options are given
    to [cyan]kdrt generate[/] as [cyan]--sampler-option eta=0.5[/].
    """
    from kdrt.cli.console import print_json, print_table
    from kdrt.sampling import SAMPLERS

    if json:
        print_json(
            [
                {
                    "name": info.name,
                    "label": info.label,
                    "order": info.order,
                    "stochastic": info.stochastic,
                    "evaluations": info.evaluations,
                    # Strict JSON has no infinity.
                    "options": {
                        k: str(v) if v == _INFINITY else v for k, v in info.options.items()
                    },
                }
                for info in SAMPLERS.values()
            ]
        )
        return
    print_table(
        ("sampler", "web UI name", "order#", "noise", "calls", "options"),
        [
            (
                info.name,
                info.label,
                str(info.order),
                "yes" if info.stochastic else "no",
                info.evaluations,
                " ".join(
                    f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in info.options.items()
                ),
            )
            for info in SAMPLERS.values()
        ],
    )
    typer.echo(
        "\nCalls of the UNet in N steps. With noise too, the same seed gives the same picture."
    )


_INFINITY = float("inf")
