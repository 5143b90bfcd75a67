"""What the TensorRT engines of a bundle cost to build and how well their attention fused.

    python benchmarks/tensorrt_builds.py sd15-random sdxl-random -o benchmarks/results
    python benchmarks/tensorrt_builds.py sdxl-random --quantized fp8 --gpu sm89,sm120 -o …

Reads the records that ``kdrt build`` left beside its engines and writes ``tensorrt_builds.json``
and ``tensorrt_builds.md``; the rows of other models that are there already stay. Nothing here runs
an engine: a build is no statement about its speed.

``--quantized`` builds the UNet of a float16 bundle with all layers of a format in it, as ``kdrt
build`` would, and writes the row of that. What the kernels multiply in, their memory and the size
of the engine follow from the layers alone. So nothing is calibrated: with random weights there is
nothing to calibrate, every activation has the same range. Such a network is of no other use, and
it is deleted with its engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from kdrt.backends.engine_files import engine_folders
from kdrt.backends.profiles import component_profiles
from kdrt.backends.records import in_few_bits, read_record
from kdrt.build.engines import build_engines
from kdrt.build.gpu_names import gpu_capabilities
from kdrt.bundle import Bundle, open_bundle
from kdrt.common.progress import BuildProgress
from kdrt.common.terminal_report import TerminalReport
from kdrt_engines.tensorrt.flavour import TENSORRT, TENSORRT_RTX
from kdrt_export.quantize.formats import Format, find_format
from kdrt_export.quantize.layers import (
    QuantizableLayer,
    activations_of,
    is_fused,
    quantizable_layers,
)
from kdrt_export.quantize.networks import Quantized
from kdrt_export.quantize.roofline import with_shapes

_HEADINGS = (
    *("model", "network", "parameters", "GPUs", "attention fused", "kernels", "in few bits"),
    *("scratch", "engine", "build, CPU time", "build, peak memory"),
)

_RANGE = 8.0
"""Of every activation where none is measured."""


def rows_of(bundle: Bundle) -> list[dict[str, Any]]:
    """One row an engine that lies in the bundle."""
    rows = []
    for flavour in (TENSORRT, TENSORRT_RTX):
        for folder in engine_folders(bundle, flavour):
            record = read_record(bundle, folder)
            built, key = record.built, record.key
            rows.append(
                {
                    "model": bundle.manifest.name,
                    "network": key.component,
                    "parameters": bundle.manifest.components[key.component].parameters,
                    "precision": key.dtype,
                    "format": _format(bundle, key.component),
                    "backend": f"{key.backend} {key.backend_version}",
                    "gpus": [f"sm{number}" for number in key.compute_capabilities],
                    "profiles": [profile.name for profile in key.profiles],
                    "attention_sites": built.attention_sites,
                    "fused_attention": built.fused_attention,
                    "kernels": built.kernels,
                    "multiplying": built.multiplying,
                    "scratch_bytes": built.scratch_memory,
                    "engine_bytes": record.size,
                    "cpu_seconds": built.cpu_seconds,
                    "wall_seconds": built.seconds,
                    "peak_bytes": built.peak_memory,
                    "kdrt": record.kdrt,
                }
            )
    return rows


def quantized_rows(
    bundle: Bundle, format: str, capabilities: Sequence[int], report: BuildProgress
) -> list[dict[str, Any]]:
    """The rows of a bundle's UNet with all layers quantised, built for the sake of the rows.

    Args:
        bundle: a float16 one.
        format: one of :data:`kdrt_export.quantize.formats.FORMATS`.
        capabilities: of the GPUs to build for, 89 for 8.9.
        report: receives the progress.
    """
    into = find_format(format)
    layers = _fused_layers(bundle, into)
    ranges = dict.fromkeys(activations_of(layers), _RANGE)
    with tempfile.TemporaryDirectory(prefix="kdrt-builds-") as folder:
        report.start(f"quantise {bundle.manifest.name}")
        networks = Quantized(into, layers, ranges).write(bundle, Path(folder))
        report.done(f"{len(layers)} layers to {format}")
        manifest = bundle.manifest.model_copy(
            update={
                "name": f"{bundle.manifest.name}-{format}, ranges not calibrated",
                "components": bundle.manifest.components | networks,
            }
        )
        made = Bundle(Path(folder), manifest)
        build_engines(made, TENSORRT_RTX, capabilities, components=["unet"], report=report)
        return [row | {"format": format} for row in rows_of(made)]


def _fused_layers(bundle: Bundle, into: Format) -> list[QuantizableLayer]:
    """The layers of a UNet that TensorRT-RTX computes as one kernel in a format."""
    component = bundle.manifest.components["unet"]
    (profile,) = component_profiles(bundle.manifest, "unet", ("any",))
    dims = profile.sizes("opt")
    path = bundle.file(component.onnx)
    inferred = with_shapes(
        onnx.load(path, load_external_data=False),
        {tensor.name: tensor.resolve(dims) for tensor in component.spec().inputs},
    )
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }
    layers = quantizable_layers(ir.load(path).graph, into)
    return [layer for layer in layers if is_fused(layer, shapes)]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|"]
    for row in rows:
        kernels = sum(row["kernels"].values()) if row["kernels"] else "?"
        fused = "?" if row["fused_attention"] is None else row["fused_attention"]
        cells = [
            row["model"],
            f"{row['network']} ({row.get('format') or row['precision']})",
            f"{row['parameters'] / 1e6:,.1f} M",
            ", ".join(row["gpus"]),
            f"{fused} of {row['attention_sites']}",
            str(kernels),
            _in_few_bits(row.get("multiplying")),
            _megabytes(row["scratch_bytes"]),
            _megabytes(row["engine_bytes"]),
            f"{row['cpu_seconds']:.0f} s",
            _megabytes(row["peak_bytes"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(bundle: Bundle, component: str) -> str | None:
    facts = bundle.manifest.quantization
    return facts.format if facts is not None and component in facts.components else None


def _in_few_bits(multiplying: dict[str, int] | None) -> str:
    return "?" if multiplying is None else in_few_bits(multiplying) or "none"


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:,.0f} MB"


def write_results(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write rows to a folder's results, in the place of those of the same models."""
    target = folder / "tensorrt_builds.json"
    if target.exists():
        new = {row["model"] for row in rows}
        before = json.loads(target.read_text())["engines"]
        rows = [row for row in before if row["model"] not in new] + rows
    rows.sort(key=lambda row: str(row["model"]))
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None}
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"machine": machine, "engines": rows}, indent=1) + "\n"
    target.write_text(document)
    backends = ", ".join(sorted({row["backend"] for row in rows}))
    (folder / "tensorrt_builds.md").write_text(
        f"# TensorRT engines, as built\n\nOn {machine['cores']} cores without a GPU; the weights "
        "of models called random are. Of a quantised network the convolutions, products and "
        "attentions that multiply in few bits are counted; an attention that is not fused is two "
        "products. Where ranges are not calibrated, all layers are quantised that the format is "
        f"for, and the network was made for this build alone. Backends: {backends}.\n\n"
        + table(rows)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", help="names or folders of bundles with engines")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quantized", metavar="FORMAT", help="build float16 UNets quantised to it")
    parser.add_argument("--gpu", default="sm89,sm120", help="to build those for")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for bundle in map(open_bundle, options.bundles):
        if options.quantized is None:
            rows += rows_of(bundle)
        else:
            capabilities = gpu_capabilities([options.gpu])
            rows += quantized_rows(bundle, options.quantized, capabilities, TerminalReport())
    write_results(rows, options.output)
    print(table(rows))


if __name__ == "__main__":
    main()
