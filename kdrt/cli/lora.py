"""``kdrt lora``: what there is to know of a LoRA file before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrt.cli.app import add_command, new_app

if TYPE_CHECKING:
    from kdrt.adapters.lora import LoraStack
    from kdrt.adapters.lora_facts import LoraFacts
    from kdrt.adapters.lora_file import LoraFile

lora = new_app("lora", "Show what LoRA files hold.")

_TOLD = (
    "modelspec.title",
    "modelspec.author",
    "ss_output_name",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_network_args",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_resolution",
    "ss_num_train_images",
    "ss_steps",
    "ss_training_comment",
)
"""Metadata that people ask for; ``--json`` has all."""


def inspect_lora(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A LoRA.")],
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            show_default=False,
            help="Also show which layers fit this bundle, given by name or folder.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON, with every layer.")] = False,
) -> None:
    """
    Show what a LoRA file holds: its kind, ranks and strengths, the base model it was made for, the
    blocks it changes, the trained words and other metadata that its trainer wrote.

    [bold]Examples[/bold]

      [cyan]kdrt lora inspect style.safetensors[/cyan]
      [cyan]kdrt lora inspect style.safetensors --bundle demo --json[/cyan]
    """
    from kdrt.adapters.lora import LoraStack
    from kdrt.adapters.lora_facts import facts_of
    from kdrt.adapters.lora_file import read_lora
    from kdrt.bundle import open_bundle
    from kdrt.cli.console import print_json

    stack = None if bundle is None else LoraStack(open_bundle(bundle))
    read = read_lora(file)
    facts = facts_of(read)
    fit = None if stack is None else _fit(stack, read)
    if json:
        print_json(_as_json(read, facts) | ({} if fit is None else {"bundle": bundle} | fit))
    else:
        _print(read, facts, None if fit is None or bundle is None else (bundle, fit))


add_command(lora, inspect_lora, name="inspect")


def _fit(stack: LoraStack, file: LoraFile) -> dict[str, Any]:
    from kdrt.errors import InvalidRequestError

    try:
        stack.check(file)
        refusal = None
    except InvalidRequestError as error:
        refusal = str(error)
    try:
        misfits = stack.misfits(file)
    except InvalidRequestError:
        misfits = tuple(f"{n}.{path}" for n, layers in file.layers.items() for path in layers)
    return {
        "fitting": len(file) - len(misfits),
        "not_fitting": list(misfits),
        "refusal": refusal,
    }


def _as_json(file: LoraFile, facts: LoraFacts) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "file": str(file.path),
        "sha256": file.sha256,
        "base": facts.base,
        "evidence": facts.evidence,
        "kinds": facts.kinds(),
        "ranks": sorted(facts.ranks()),
        "changes_nothing": facts.changes_nothing,
        "trained_words": list(facts.words),
        "embeddings": list(facts.embeddings),
        "metadata": dict(facts.metadata),
        "layers": [asdict(layer) for layer in facts.layers],
    }


def _print(file: LoraFile, facts: LoraFacts, fit: tuple[str, dict[str, Any]] | None) -> None:
    from kdrt.cli.console import one_line, print_rows

    strengths = sorted({layer.strength for layer in facts.layers if layer.strength is not None})
    ranks = ", ".join(f"{rank} ({count})" for rank, count in facts.ranks().items())
    rows = [
        ("kind", ", ".join(f"{kind} ({count})" for kind, count in facts.kinds().items())),
        ("base", f"{facts.base or 'unknown'}: {facts.evidence}"),
        ("rank", ranks or "none"),
        ("alpha / rank", _range(strengths)),
    ]
    if facts.changes_nothing:
        rows.append(("effect", "none: no layer changes a weight"))
    if fit is not None:
        name, found = fit
        rows.append(("fits " + name, f"{found['fitting']} of {_layers(len(file))}"))
        if found["refusal"]:
            rows.append(("refused, since", found["refusal"]))
    if facts.words:
        rows.append(("trained words", ", ".join(facts.words)))
    if facts.embeddings:
        rows.append(("words of its own", ", ".join(facts.embeddings)))
    print_rows(one_line(file.path), [(name, one_line(value)) for name, value in rows])
    typer.echo(f"  SHA-256   {file.sha256}")  # not in the table, which would break it at 80 columns
    for network, layers in file.layers.items():
        typer.echo()
        blocks = facts.blocks(network)
        counts = [(one_line(block), str(count)) for block, count in blocks.items()]
        shown = counts[:30]
        if len(counts) > len(shown):
            shown.append(("…", f"{len(counts) - len(shown)} more, see --json"))
        print_rows(f"{network}, {_layers(len(layers))}", shown)
    told = [(key, facts.metadata[key]) for key in _TOLD if facts.metadata.get(key)]
    if told:
        typer.echo()
        print_rows("metadata", [(key, one_line(value)[:200]) for key, value in told])


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _range(values: list[float]) -> str:
    if not values:
        return "none"
    least, most = values[0], values[-1]
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
