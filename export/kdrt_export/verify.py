"""Compare an exported network with eager PyTorch, at sizes it was not traced at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kdrt.bundle import GraphName, Verification
from kdrt_engines.base import Engine
from kdrt_engines.comparison import relative_error as relative_error
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportComponent
from kdrt_export.errors import VerificationError
from kdrt_export.onnx.trace import OnnxFiles

BOUNDS = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-2}
"""Largest relative error an export may have, by precision. In float32 the networks differ by the
order of additions alone; in the half precisions by the rounding of weights and of every layer; with
int8 weights, in whatever precision they are computed with, by the rounding of those."""


@dataclass(frozen=True)
class Case:
    """Inputs at one set of sizes, and what the untouched float32 network makes of them."""

    dims: dict[str, int]
    inputs: tuple[torch.Tensor, ...]
    expected: tuple[torch.Tensor, ...]


@torch.inference_mode()
def make_cases(
    component: ExportComponent, shapes: Sequence[dict[str, int]], *, neutral: bool = False
) -> list[Case]:
    """Ask the untouched network; call before ``component.rewrite()``. ``neutral``: at usual sizes,
    those next to the given ones, and with the inputs that can turn something off at the values that
    do."""
    cases = []
    for seed, dims in enumerate(shapes, start=1):
        if neutral:
            dims = {s: _next_multiple(n, component.multiples.get(s, 1)) for s, n in dims.items()}
        inputs = component.example_inputs(dims, seed)
        if neutral:
            named = zip(component.spec.inputs, inputs, strict=True)
            inputs = tuple(
                torch.tensor(component.neutral[t.name]).expand_as(value)
                if t.name in component.neutral
                else value
                for t, value in named
            )
        cases.append(Case(dims, inputs, component.reference(*inputs)))
    return cases


def verify(
    name: str,
    engine: Engine,
    cases: Sequence[Case],
    precision: str,
    graph: GraphName = "standard",
) -> list[Verification]:
    """Run an engine, which has loaded this ``graph`` of a component, on every case.

    Raises:
        VerificationError: an output is not finite, or further off than ``BOUNDS`` allows.
    """
    kind: Literal["torch", "onnxruntime"]
    kind = "torch" if isinstance(engine, TorchEngine) else "onnxruntime"
    results = []
    for case in cases:
        binding = engine.bind(**case.dims)
        for tensor, value in zip(binding.inputs.values(), case.inputs, strict=True):
            tensor.copy_(value)
        binding.run()
        pairs = zip(binding.outputs.values(), case.expected, strict=True)
        error = max(relative_error(out, expected) for out, expected in pairs)
        if not error <= BOUNDS[precision]:
            raise VerificationError(
                f"the exported {name} is off by {error:.2g} relative at {sizes(case.dims)}, where "
                f"{precision} allows {BOUNDS[precision]:.0e}; nothing was written: try another "
                "--precision or --weights, or report the model"
            )
        results.append(Verification(graph=graph, dims=case.dims, relative_error=error, engine=kind))
    return results


def verify_files(
    name: str,
    component: ExportComponent,
    files: OnnxFiles,
    cases: Sequence[Case],
    neutral_cases: Sequence[Case],
    precision: str,
    *,
    int8_weights: bool = False,
) -> list[Verification]:
    """Run every file of a component with ONNX Runtime, built to spare memory. It has no bfloat16
    kernels on a CPU: there the rewritten network runs in PyTorch instead, and the manifest says so.

    Raises:
        VerificationError: see :func:`verify`.
    """
    if precision == "bf16":
        return verify(name, TorchEngine(component, component.spec), cases, precision)

    def on_file(path: Path, invariants: Path | None = None) -> Engine:
        others = OrtGraph(invariants) if invariants else None
        network = OrtNetwork(OrtGraph(path), invariants=others)
        return OrtEngine(network, component.spec, OrtConfig(lean=True))

    bound = "int8" if int8_weights else precision
    figures = verify(name, on_file(files.standard), cases, bound)
    figures += verify(name, on_file(files.fused), cases, bound, "fused")
    if files.cpu is not None:
        figures += verify(name, on_file(files.cpu, files.invariants), cases, bound, "cpu")
    if files.plain is not None:
        figures += verify(
            name, on_file(files.plain, files.invariants), neutral_cases, bound, "plain"
        )
    return figures


def _next_multiple(size: int, divisor: int) -> int:
    return -(-size // divisor) * divisor


def sizes(dims: dict[str, int]) -> str:
    """``B=1 h=8 w=12``, for messages."""
    return " ".join(f"{symbol}={size}" for symbol, size in dims.items())
