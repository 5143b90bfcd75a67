"""``kdrt samplers``: the samplers and their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdrt.sampling import SamplerInfo


def samplers(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    List the samplers, what a run costs, and which options each one takes.

    The names are those of k-diffusion; the names of the web UI ("DPM++ 2M") and of ComfyUI work
    too. Give an option to [cyan]kdrt generate[/] as [cyan]--sampler-option eta=0.5[/].
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
                    "capturable": info.capturable,
                    "diffusers": info.diffusers,
                    "aliases": list(info.aliases),
                    "source": info.source,
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
        ("sampler", "order#", "noise", "calls", "graph", "web UI name · options · diffusers"),
        [
            (
                info.name,
                "-" if info.order is None else str(info.order),
                "yes" if info.stochastic else "no",
                info.evaluations,
                "yes" if info.capturable else "no",
                "\n".join(filter(None, (info.label, _options(info), info.diffusers))),
            )
            for info in SAMPLERS.values()
        ],
    )
    typer.echo(
        "\nCalls of the UNet in N steps; graph: whether a CUDA graph can hold the loop. With noise "
        "too, the same seed gives the same image."
    )


_INFINITY = float("inf")


def _options(info: SamplerInfo) -> str:
    """The options with their defaults: "eta=1 s_noise=1"."""
    return " ".join(
        f"{name}={default:g}" if isinstance(default, float) else f"{name}={default}"
        for name, default in info.options.items()
    )
