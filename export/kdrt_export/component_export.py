"""One component: eager reference → rewritten → ONNX → verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from kdrt.bundle import (
    Component,
    Dtype,
    OrtGraphs,
    TensorInfo,
    Verification,
)
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.onnx.trace import OnnxFiles, onnx_from_component
from kdrt_export.options import PRECISIONS
from kdrt_export.programs import program_from_component
from kdrt_export.report import Report
from kdrt_export.sources.reading import refused
from kdrt_export.verify import make_cases, sizes, verify_files
from kdrt_export.walk import Part

_INT8 = ("unet", "text_encoder")
"""What begins so can have its weights as bytes. The VAE cannot: it is small, and whatever it gets
wrong is in the pixels at once."""


def export_component(
    part: Part, folder: Path, targets: Sequence[str], report: Report, int8: bool = False
) -> Component:
    """Export one component into a bundle, and verify its files against the eager network.

    Args:
        part: the component, and the sizes to trace and verify it at.
        folder: of the bundle.
        targets: see :func:`kdrt_export.stage.export`.
        report: told of every stage.
        int8: store the weights as bytes, where the component is one of those that allow it.

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
    component.rewrite()
    component.cast(part.dtype)
    parameters = sum(p.numel() for p in component.parameters())
    files = onnx_from_component(
        component,
        part.traced,
        folder / "onnx" / (part.beside or part.name),
        int8_weights=int8,
        prefix="" if part.beside is None else f"{part.name.removeprefix(f'{part.beside}-')}-",
    )
    report.done(f"{parameters / 1e6:,.1f} M parameters")
    if "torch" in targets:
        report.start(f"{part.name}: torch program")
        program = folder / "engines" / "torch" / f"{part.name}.pt2"
        program_from_component(component, part.traced, program)
        report.done()

    if own_precision != "bf16":
        component.to("meta")  # the file is verified, beside whose weights a second copy may not fit

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
    )


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
