"""``kdrt inspect``: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdrt.bundle import Bundle, SchedulerFacts

_LINTED_SIDE = 8
"""Latents on each side of what the nodes of a graph are run on."""

_CONTROLS = {"controlnet": "ControlNet", "t2i-adapter": "T2I-Adapter"}
"""By kind, how they are called."""


def inspect(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    graph: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK",
            show_default=False,
            help="Show the graph of this network instead, and lint it.",
        ),
    ] = None,
) -> None:
    """
    Show what a bundle holds: its source, networks, verification figures and noise schedule, and
    the engines built from it.

    kdrt first checks every file against its recorded SHA-256.

    With [cyan]--graph[/], Polygraphy describes the graph of one network and lints it: it runs every
    node by itself and names those that cannot run. This takes a minute for a UNet.

    [bold]Examples[/bold]

      [cyan]kdrt inspect demo[/cyan]
      [cyan]kdrt inspect ./my-bundle --json[/cyan]
      [cyan]kdrt inspect demo --graph vae_decoder[/cyan]
    """
    from kdrt.bundle import open_bundle
    from kdrt.cli.bundle_rows import folder_size, precisions
    from kdrt.cli.console import print_json, print_rows, print_table
    from kdrt.cli.quantization_rows import print_loss
    from kdrt.common.units import size

    opened = open_bundle(bundle)
    manifest = opened.manifest
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    if graph is not None:
        _print_graph(opened, graph)
        return

    total = sum(opened.file(name).stat().st_size for name in manifest.files)
    latents, scheduler, baked = manifest.latents, manifest.scheduler, manifest.baked
    quantized = () if manifest.quantization is None else manifest.quantization.components
    print_rows(
        manifest.name,
        [
            ("folder", str(opened.path)),
            ("model", size(total)),
            ("on disk", f"{size(folder_size(opened.path))}, with engines and caches"),
            ("family", manifest.family),
            ("source", manifest.source + (f" @ {manifest.revision}" if manifest.revision else "")),
            ("precision", ", ".join(precisions(manifest))),
            ("default size", f"{latents.default_width} x {latents.default_height} pixels"),
            (
                "latents",
                f"{latents.channels} channels, one for {latents.scale} x {latents.scale} pixels",
            ),
            ("fused QKV", "yes" if baked.fused_qkv else "no"),
            ("FreeU", "an input of the UNet" if baked.freeu else "no"),
            *[("LoRA", f"{lora.file} at {lora.scale:g}") for lora in baked.loras],
            *([("variants", ", ".join(manifest.variants))] if manifest.variants else []),
            *[
                (f"IP-Adapter {name}", f"{facts.file}, {facts.kind}")
                for name, facts in manifest.ip_adapters.items()
            ],
            *[
                (f"{_CONTROLS[facts.kind]} {name}", facts.source)
                for name, facts in manifest.controls.items()
            ],
            *[
                (f"upscaler {name}", f"{facts.scale} x, {facts.architecture}, {facts.source}")
                for name, facts in manifest.upscalers.items()
            ],
            ("made with", ", ".join(f"{k} {v}" for k, v in sorted(manifest.tools.items()))),
        ],
    )
    typer.echo()
    print_table(
        ("network", "parameters#", "size#", "relative error at"),
        [
            (
                name,
                f"{component.parameters:,}",
                size(sum(_sizes(opened.file(component.onnx).parent))),
                "\n".join(
                    f"{check.relative_error:.1e}  "
                    + " ".join(f"{symbol}={value}" for symbol, value in check.dims.items())
                    + (f" ({check.graph})" if check.graph != "standard" else "")
                    + (" (torch)" if check.engine == "torch" else "")
                    for check in component.verification
                )
                or ("quantised, see below" if name in quantized else "not verified"),
            )
            for name, component in manifest.components.items()
        ],
    )
    if manifest.quantization is not None:
        typer.echo()
        print_loss(manifest.quantization)
    mixed = [(n, ", ".join(c.float32)) for n, c in manifest.components.items() if c.float32]
    if mixed:
        typer.echo()
        print_rows("kept in float32", mixed)
    typer.echo()
    print_rows(
        "noise schedule",
        [
            ("predicts", scheduler.prediction_type),
            *_noise_levels(scheduler),
        ],
    )
    typer.echo()
    print_rows(
        "text encoders",
        [
            (
                facts.component,
                f"{facts.layers} layers of width {facts.hidden_size}, "
                f"{facts.max_length} tokens, layer {facts.layer}",
            )
            for facts in manifest.text_encoders
        ],
    )
    _print_engines(opened)
    _print_memory(opened)


def _print_graph(bundle: Bundle, name: str) -> None:
    """What is in the graph of a network, and what is wrong with it."""
    from kdrt.cli.console import print_table
    from kdrt.cli.export_checks import needs_export
    from kdrt.errors import BundleError

    components = bundle.manifest.components
    if name not in components:
        raise BundleError(
            f"the bundle '{bundle.manifest.name}' has no network '{name}'; it has "
            f"{', '.join(components)}"
        )
    with needs_export("looking into a graph"):
        from kdrt_export.graph_inspection import count_operators, describe, lint

    component = components[name]
    path = bundle.file(component.onnx)
    typer.echo(describe(path))
    typer.echo()
    print_table(
        ("operator", "nodes#", "in float32#", "in half precision#", ""),
        [
            (each.operator, str(each.count), str(each.float32), str(each.half), "")
            for each in count_operators(path)
        ],
    )
    typer.echo()
    if any(tensor.dtype == "bfloat16" for tensor in component.inputs):
        typer.echo("not linted: ONNX Runtime, which runs the nodes, has no bfloat16 on a CPU")
        return
    dims = dict.fromkeys(component.spec().symbols(), _LINTED_SIDE)
    dims |= {"B": 1, "L": bundle.manifest.text_encoders[0].max_length}
    findings = lint(path, component.spec(), dims)
    for finding in findings:
        typer.echo(f"{finding.level}: {', '.join(finding.nodes)}: {finding.message}")
    if not findings:
        typer.echo("the linter finds nothing wrong")


def _noise_levels(facts: SchedulerFacts) -> list[tuple[str, str]]:
    if edm := facts.edm:
        return [
            ("sigma", f"{edm.sigma_min:g} to {edm.sigma_max:g}, continuous (EDM)"),
            ("sigma of the data", f"{edm.sigma_data:g}"),
            ("spacing", edm.sigma_schedule),
        ]
    betas = f"{facts.beta_schedule}, {facts.beta_start} to {facts.beta_end}"
    if facts.trained_betas:
        betas = f"{len(facts.trained_betas)} trained values"
    return [
        ("betas", betas),
        ("timesteps", str(facts.num_train_timesteps)),
        ("spacing", f"{facts.timestep_spacing}, offset {facts.steps_offset}"),
    ]


def _print_memory(bundle: Bundle) -> None:
    from kdrt.cli.console import print_table
    from kdrt.errors import EngineUnavailableError
    from kdrt.pipeline.memory import estimate_memory

    try:
        memory = estimate_memory(bundle, ask_device=False)
    except EngineUnavailableError:
        return
    latents = bundle.manifest.latents
    width, height = latents.default_width, latents.default_height
    typer.echo()
    print_table(
        ("memory", "weights#", "activations#", ""),
        [(*row, "") for row in memory.table()],
        title=f"with {memory.engine} on {memory.device}, an image of {width} x {height} pixels",
    )


def _print_engines(bundle: Bundle) -> None:
    from kdrt.backends.inductor_cache import INDUCTOR
    from kdrt.backends.openvino_cache import OPENVINO
    from kdrt.backends.ort_cache import optimized
    from kdrt.cli.console import print_rows
    from kdrt.cli.engine_rows import rows
    from kdrt.common.units import size

    for title, engines in rows(bundle).items():
        typer.echo()
        print_rows(title, engines)
    kept = {name: optimized(bundle, name) for name in bundle.manifest.components}
    optimised = [(name, size(sum(_sizes(k.folder)))) for name, k in kept.items() if k is not None]
    if optimised:
        typer.echo()
        print_rows("ONNX Runtime, optimised for this CPU", optimised)
    for store, title, reference in (
        (OPENVINO, "OpenVINO, compiled for this machine", "float32"),
        (INDUCTOR, "Inductor, compiled for this machine", "eager PyTorch"),
    ):
        compiled = [
            (each.record.component, each.record.summary(reference)) for each in store.all(bundle)
        ]
        if compiled:
            typer.echo()
            print_rows(title, compiled)


def _sizes(folder: Path) -> list[int]:
    return [file.stat().st_size for file in folder.iterdir() if file.is_file()]
