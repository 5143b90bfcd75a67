"""How much faster is a large UNet in int8 on this CPU, with each engine?

    kdrt export sd15 --random-weights --precision fp32
    python benchmarks/int8_on_cpu.py sd15-random --side 256 -o benchmarks/results

Times one evaluation in float32 and in int8, with ONNX Runtime and OpenVINO, in turns. Random
weights have no activations worth calibrating: one range stands for all, so nothing is said of the
loss, and no bundle is written. What `kdrt quantize` loses is measured by
`benchmarks/quantization.py`. The last line is JSON; ``-o`` writes ``int8_on_cpu.md`` and
``int8_on_cpu.json``.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer
from rich.console import Console

from kdrt.backends.doctor import examine
from kdrt.bundle import open_bundle
from kdrt_engines.base import Engine
from kdrt_engines.comparison import random_inputs
from kdrt_engines.installed import installed_version
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.openvino.config import config_of
from kdrt_engines.openvino.engine import OpenVinoEngine
from kdrt_engines.spec import EngineSpec
from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.layers import activations_of, quantizable_layers
from kdrt_export.quantize.networks import Quantized

_RANGE = 8.0
"""Of every activation."""


@dataclass(frozen=True)
class Row:
    """Seconds of an evaluation, the median, and how many times faster it is than float32 with ONNX
    Runtime: the median over rounds, the least and the most."""

    engine: str
    format: str
    seconds: float
    ratio: float
    least: float
    most: float


def main(
    bundle: str,
    side: Annotated[int, typer.Option(min=64, help="Of the image, in pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")] = None,
) -> None:
    """Time a UNet in float32 and int8 on this CPU."""
    opened = open_bundle(bundle)
    unet, manifest = opened.manifest.components["unet"], opened.manifest
    latent = side // manifest.latents.scale
    dims = {"B": 1, "L": manifest.text_encoders[0].max_length, "h": latent, "w": latent}
    original = opened.file(unet.onnx)
    layers = quantizable_layers(ir.load(original).graph, FORMATS["int8"])
    ranges = dict.fromkeys(activations_of(layers), _RANGE)
    with tempfile.TemporaryDirectory() as folder:
        Quantized(FORMATS["int8"], layers, ranges).write(opened, Path(folder))
        graphs = {"fp32": original, "int8": Path(folder) / unet.onnx}
        engines = {
            (engine, name): _engine(engine, path, unet.spec())
            for engine in ("onnxruntime", "openvino")
            for name, path in graphs.items()
        }
        rows = measure(engines, dims, rounds)
    versions = [f"{name} {installed_version(name)}" for name in ("onnxruntime", "openvino")]
    seen = examine()
    result = {
        "machine": f"{seen.processor}, {seen.cores} cores, {', '.join(versions)}",
        "model": manifest.name,
        "side": side,
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
    }
    page = markdown(rows, f"{manifest.name}, {side} x {side} pixels, {rounds} rounds", result)
    Console(stderr=True).print(page)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "int8_on_cpu.json").write_text(json.dumps(result, indent=2) + "\n")
        (output / "int8_on_cpu.md").write_text(page)
    print(json.dumps(result))


def _engine(name: str, path: Path, spec: EngineSpec) -> Engine:
    if name == "openvino":
        return OpenVinoEngine(path, spec, config_of(name))
    return OrtEngine(path, spec, OrtConfig())


def measure(engines: dict[tuple[str, str], Engine], dims: dict[str, int], rounds: int) -> list[Row]:
    """Run all engines in turns on the same inputs; the first is what others are compared with."""
    bindings = {key: engine.bind(**dims) for key, engine in engines.items()}
    for binding, engine in zip(bindings.values(), engines.values(), strict=True):
        for name, tensor in random_inputs(engine.spec, dims, 0).items():
            binding.inputs[name].copy_(tensor)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in bindings}
    for number in range(rounds + 1):  # the first is to warm up
        for key, binding in bindings.items():
            started = time.perf_counter()
            binding.run()
            if number:
                times[key].append(time.perf_counter() - started)
    first = next(iter(times.values()))
    rows = []
    for (engine_name, format_name), seen in times.items():
        ratios = [a / b for a, b in zip(first, seen, strict=True)]
        rows.append(
            Row(
                engine_name,
                format_name,
                statistics.median(seen),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
            )
        )
    return rows


def markdown(rows: list[Row], what: str, result: dict[str, object]) -> str:
    """The rows as a page."""
    lines = [
        "# A UNet in int8 on a CPU",
        "",
        f"One evaluation of {what}, in turns, on {result['machine']}. Ranges are not calibrated. "
        "By `benchmarks/int8_on_cpu.py`.",
        "",
        "| engine | format | time | speed | of all rounds |",
        "|---|---|---|---|---|",
        *[
            f"| {row.engine} | {row.format} | {row.seconds:.2f} s | {row.ratio:.2f} x | "
            f"{row.least:.2f} to {row.most:.2f} |"
            for row in rows
        ],
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
