"""``kdrt doctor``: what this machine has, and which engine will be used."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    Show what this machine has and which engine makes the images.

    Please include the output when you report a problem.
    """
    from kdrt.backends.doctor import examine
    from kdrt.cli.console import print_json, print_rows, print_table
    from kdrt.common.units import size

    machine = examine()
    if json:
        print_json(machine.as_dict())
        return

    gpus = [
        (f"GPU {i}", f"{gpu.name}, {size(gpu.memory)}, compute capability {gpu.compute_capability}")
        for i, gpu in enumerate(machine.gpus)
    ] or [("GPU", "none that CUDA sees")]
    print_rows(
        f"kdrt {machine.kdrt}",
        [
            ("system", machine.system),
            ("Python", machine.python),
            ("processor", f"{machine.processor}, {machine.cores} cores"),
            ("memory", f"{size(machine.memory)}, {size(machine.memory_free)} free"),
            ("CUDA of torch", machine.cuda or "none: a CPU build"),
            *gpus,
        ],
    )
    typer.echo()
    print_rows(
        "packages",
        [(name, version or "not installed") for name, version in machine.packages.items()],
    )
    typer.echo()
    print_table(
        ("  engine", "usable", "version", "why"),
        [
            (
                f"  {engine.name}",
                "yes" if engine.usable else "no",
                engine.version or "",
                engine.reason,
            )
            for engine in machine.engines
        ],
        title="engines, best first",
    )
    typer.echo(
        f"\nImages will be made with {machine.chosen}; --engine chooses another."
        if machine.chosen
        else "\nNo engine is usable: pip install onnxruntime"
    )
    for name, found in machine.tuned.items():
        typer.echo()
        print_rows(f"{name}, by kdrt tune on this machine", list(found.items()))
    typer.echo()
    print_rows(
        "bundles",
        [("home", machine.home), ("found", ", ".join(machine.bundles) or "none yet")],
    )
