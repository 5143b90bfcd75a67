"""One component: eager reference → rewritten → ONNX → verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from kdrt.bundle import (
    Component,
    Dtype,
    OrtGraphs,
    TensorInfo,
    Verification,
)
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.float32_search import find_float32
from kdrt_export.freed_memory import give_back_freed
from kdrt_export.keep_fp32 import KeepFp32
from kdrt_export.onnx.mixed_precision import Float32Part, float32_of
from kdrt_export.onnx.trace import OnnxFiles, onnx_from_component
from kdrt_export.options import PRECISIONS
from kdrt_export.programs import program_from_component
from kdrt_export.report import Report
from kdrt_export.sources.reading import refused
from kdrt_export.verify import Case, make_cases, sizes, verify_files
from kdrt_export.walk import Part

_INT8 = ("unet", "text_encoder")
"""What begins so can have its weights as bytes. The VAE cannot: it is small, and whatever it gets
wrong is in the pixels at once."""


_NAMED = 3
"""Modules that a line of the progress names."""


def export_component(
    part: Part,
    folder: Path,
    targets: Sequence[str],
    report: Report,
    int8: bool = False,
    keep: KeepFp32 | None = None,
) -> Component:
    """Export one component into a bundle, and verify its files against the eager network.

    Args:
        part: the component, and the sizes to trace and verify it at.
        folder: of the bundle.
        targets: see :func:`kdrt_export.stage.export`.
        report: told of every stage.
        int8: store the weights as bytes, where the component is one of those that allow it.
        keep: what stays in float32 of a component that is exported in float16.

    Raises:
        SourceError: the network does not run.
        VerificationError: a file does not compute what the network does.
    """
    component = part.component
    int8 = int8 and part.name.startswith(_INT8)
    own_precision = next(name for name, dtype in PRECISIONS.items() if dtype == part.dtype)
    report.start(f"{part.name}: eager reference")
    with refused(f"{part.name} cannot be run as its configuration describes it"):
        cases = make_cases(component, part.verified)
        neutral = bool(component.neutral)
        neutral_cases = make_cases(component, part.verified, neutral=True) if neutral else []
    report.done()

    report.start(f"{part.name}: trace")
    if not keep:
        component.cast(part.dtype)  # rewriting moves weights about, which takes room
    component.rewrite()
    float32 = None
    if keep and part.dtype == torch.float16:
        originals = float32_of(component)
        component.cast(part.dtype)
        if keep.auto:
            report.done()
            keep = _found(part, originals, cases, folder, report)
            report.start(f"{part.name}: trace")
        float32 = Float32Part(keep.selects(part.name), originals)
    component.cast(part.dtype)
    parameters = sum(p.numel() for p in component.parameters())
    files = onnx_from_component(
        component,
        part.traced,
        folder / "onnx" / (part.beside or part.name),
        int8_weights=int8,
        prefix="" if part.beside is None else f"{part.name.removeprefix(f'{part.beside}-')}-",
        float32=float32,
    )
    del float32  # it holds the weights a second time
    report.done(f"{parameters / 1e6:,.1f} M parameters")
    if "torch" in targets:
        report.start(f"{part.name}: torch program")
        program = folder / "engines" / "torch" / f"{part.name}.pt2"
        program_from_component(component, part.traced, program)
        report.done()

    if own_precision != "bf16":
        component.to("meta")  # the file is verified, beside whose weights a second copy may not fit
        give_back_freed()

    report.start(f"{part.name}: verify")
    figures = verify_files(
        part.name, component, files, cases, neutral_cases, own_precision, int8_weights=int8
    )
    report.done(f"relative error {_worst(figures)}")
    return Component(
        onnx=files.standard.relative_to(folder).as_posix(),
        onnxruntime=_ort_graphs(component, files, folder),
        inputs=tuple(_info(tensor) for tensor in component.spec.inputs),
        outputs=tuple(_info(tensor) for tensor in component.spec.outputs),
        parameters=parameters,
        verification=tuple(figures),
        float32=files.float32,
    )


def _found(
    part: Part,
    originals: dict[str, torch.Tensor],
    cases: Sequence[Case],
    folder: Path,
    report: Report,
) -> KeepFp32:
    """What a component in float16 has to keep in float32."""
    report.start(f"{part.name}: find what needs float32")
    found = find_float32(part.name, part.component, part.traced, originals, cases, folder)
    report.done(", ".join(found[:_NAMED]) + (" …" if len(found) > _NAMED else "") or "nothing")
    return KeepFp32(exactly=frozenset(found))


def _worst(figures: Sequence[Verification]) -> str:
    """The largest error at each set of sizes, over all graphs."""
    errors: dict[str, float] = {}
    for figure in figures:
        at = sizes(figure.dims)
        errors[at] = max(errors.get(at, 0.0), figure.relative_error)
    return ", ".join(f"{error:.1e} at {at}" for at, error in errors.items())


def _ort_graphs(component: ExportComponent, files: OnnxFiles, folder: Path) -> OrtGraphs:
    def relative(file: Path | None) -> str | None:
        return None if file is None else file.relative_to(folder).as_posix()

    return OrtGraphs(
        fused=files.fused.relative_to(folder).as_posix(),
        cpu=relative(files.cpu),
        plain=relative(files.plain),
        invariants=relative(files.invariants),
        neutral=dict(component.neutral),
        multiples=dict(component.multiples) if files.plain else {},
    )


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=cast(Dtype, tensor.dtype), shape=tensor.shape)
