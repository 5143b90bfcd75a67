"""The pipeline that a command asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import typer

from kdrt.cli.notices import note

if TYPE_CHECKING:
    import kdrt
    from kdrt.adapters.lora_file import LoraFile


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a command says of its pipeline.

    Attributes:
        bundle: a name or a folder.
        loras: each as ``FILE[:SCALE]``.
        strict_lora: refuse a LoRA of which a layer has no effect.
        engine, threads, fallback, cuda_graph, low_vram: see :func:`kdrt.load`.
    """

    bundle: str
    loras: Sequence[str] = ()
    strict_lora: bool = False
    engine: str | None = None
    threads: int | None = None
    fallback: str | None = None
    cuda_graph: str | None = None
    low_vram: bool = False

    def read_loras(self) -> list[tuple[LoraFile, float]]:
        """The LoRAs and their scales.

        Raises:
            InvalidRequestError: a file is missing or no LoRA.
        """
        from kdrt.adapters.lora_file import lora_option, read_lora

        return [(read_lora(path), scale) for path, scale in map(lora_option, self.loras)]

    def load(self, loras: Sequence[tuple[LoraFile, float]]) -> kdrt.Pipeline:
        """The pipeline with its LoRAs, after a look at what it will take and whether they fit it.

        Raises:
            KdrtError: see :func:`kdrt.load`; or a LoRA does not fit.
        """
        import kdrt
        from kdrt.adapters.lora import LoraStack
        from kdrt.bundle import open_bundle
        from kdrt.pipeline.memory import estimate_memory

        opened = open_bundle(self.bundle)
        stack = LoraStack(opened)
        for file, scale in loras:
            stack.check(file, scale, strict=self.strict_lora)
        level = cast(Any, self.cuda_graph)  # checked where it is used
        memory = estimate_memory(opened, self.engine, cuda_graph=level, low_vram=self.low_vram)
        if sys.stderr.isatty():
            typer.echo(memory.line(), err=True)
        advice = memory.advice()
        if advice is not None:
            note("warning", advice)
        pipe = kdrt.load(
            opened,
            engine=self.engine,
            threads=self.threads,
            cuda_graph=level,
            fallback=self.fallback,
            low_vram=self.low_vram,
        )
        _load_loras(pipe, loras, strict=self.strict_lora)
        return pipe


def _load_loras(
    pipe: kdrt.Pipeline, loras: Sequence[tuple[LoraFile, float]], *, strict: bool
) -> None:
    if not loras:
        return
    scales: dict[str, float] = {}
    for file, scale in loras:
        pipe.adapters.load_lora(file, scale=0, strict=strict)
        scales[list(pipe.adapters.loras)[-1]] = scale
    swap = pipe.adapters.set_loras(scales)
    names = ", ".join(f"{name} at {scale:g}" for name, scale in scales.items())
    weights = f"{swap.weights} weight{'s' * (swap.weights != 1)}"
    typer.echo(f"LoRA {names}: {weights} changed in {swap.seconds:.1f} s", err=True)
