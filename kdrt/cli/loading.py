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
    from kdrt.adapters.lora_merge import Scale


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

    def read_loras(self) -> list[tuple[LoraFile, Scale]]:
        """The LoRAs and their scales.

        Raises:
            InvalidRequestError: a file is missing or no LoRA, or a scale cannot be read.
        """
        from kdrt.adapters.lora_file import read_lora
        from kdrt.cli.lora_option import lora_option

        return [(read_lora(path), scale) for path, scale in map(lora_option, self.loras)]

    def load(self, loras: Sequence[tuple[LoraFile, Scale]]) -> kdrt.Pipeline:
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
    pipe: kdrt.Pipeline, loras: Sequence[tuple[LoraFile, Scale]], *, strict: bool
) -> None:
    if not loras:
        return
    scales: dict[str, Scale] = {}
    for file, scale in loras:
        pipe.adapters.load_lora(file, scale=0, strict=strict)
        scales[list(pipe.adapters.loras)[-1]] = scale
    swap = pipe.adapters.set_loras(scales)
    loaded = pipe.adapters.loras
    names = ", ".join(f"{name} at {loaded[name].scale_text()}" for name in scales)
    weights = f"{swap.weights} weight{'s' * (swap.weights != 1)}"
    typer.echo(f"LoRA {names}: {weights} changed in {swap.seconds:.1f} s", err=True)
