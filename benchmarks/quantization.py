"""What does each format of `kdrt quantize` lose on the demo model?

    python benchmarks/quantization.py [-o benchmarks/results] [--images docs/images] ...

Quantises the demo model to every format with the command's defaults, and judges the bundle and each
of the results on the held-out prompts of `benchmarks/fidelity.py`. Prints a table; the last line is
JSON. ``-o`` writes ``quantization.md`` and ``quantization.json``; ``--images`` a sheet of images of
the same seeds, and the plot of each scan. Speed is not measured: a CPU has no kernels for most of
this.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

import kdrt
from kdrt.backends.doctor import examine
from kdrt.bundle import open_bundle
from kdrt_bench.image_sheet import Sheet
from kdrt_engines.installed import installed_version
from kdrt_engines.openvino.config import check_installed
from kdrt_export.demo.fidelity import HELD_OUT_PROMPTS
from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.loss import demo_fidelity
from kdrt_export.quantize.stage import quantize

SHOWN = (
    "a small green star on the right on an orange background",
    "a large purple heart on a yellow background",
    "a blue square left of a white triangle on a red background",
    "a yellow cross on a purple background",
)
"""Prompts of the sheet."""


@dataclass(frozen=True)
class Row:
    """One format; what was lost is None for the bundle itself."""

    format: str
    fidelity: float
    megabytes: float
    layers: int | None = None
    left: int | None = None
    error: float | None = None
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True)
class Speed:
    """One engine: the median of seconds that an image takes, and of how many times faster it is
    than float32 with ONNX Runtime."""

    format: str
    engine: str
    seconds: float
    ratio: float
    fidelity: float


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder for the sheet and the plots.")] = None,
    bundle: str = "demo",
    prompts: int = HELD_OUT_PROMPTS,
    calibration: int = 16,
    compared: int = 4,
    rounds: int = 15,
) -> None:
    """Measure every format on the demo model."""
    rows: list[Row] = []
    columns: dict[str, list[Image.Image]] = {}
    check_installed()  # of OpenVINO, before the minutes that all of it takes
    if images is not None:
        images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"fp32": open_bundle(bundle).path}
        for name in FORMATS:
            place = Path(folder) / name
            quantize(bundle, place, format=name, calibration=calibration, images=compared)
            bundles[name] = place
        for name, path in bundles.items():
            pipe = kdrt.load(path)
            facts = pipe.bundle.manifest.quantization
            unet = pipe.bundle.file(pipe.bundle.manifest.components["unet"].onnx).parent
            weights = sum(file.stat().st_size for file in unet.glob("*.bin"))
            row = Row(name, demo_fidelity(pipe, prompts, steps=20), weights / 1e6)
            if facts is not None:
                loss = facts.loss
                row = replace(
                    row,
                    layers=facts.layers,
                    left=len(facts.left),
                    error=loss.error,
                    psnr=loss.psnr,
                    ssim=loss.ssim,
                )
            rows.append(row)
            columns[name] = pipe(list(SHOWN), seed=40, steps=20).images
            if images is not None and facts is not None:
                plot = pipe.bundle.file("quantization/layers.png").read_bytes()
                (images / f"quantization-{name}.png").write_bytes(plot)
        faster = speeds([(name, bundles[name]) for name in ("fp32", "int8")], rounds, prompts)
    if images is not None:
        sheet = Sheet(list(columns))
        for number, prompt in enumerate(SHOWN):
            sheet.add(prompt, [made[number] for made in columns.values()])
        sheet.draw().save(images / "precision.webp", quality=90, method=6)
    Console(stderr=True).print(_table(rows))
    result = {
        "machine": processor_and_cores(),
        "prompts": prompts,
        "calibration": calibration,
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
        "speeds": [asdict(speed) for speed in faster],
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "quantization.json").write_text(json.dumps(result, indent=2) + "\n")
        (output / "quantization.md").write_text(markdown(rows, faster, prompts))
    print(json.dumps(result))


def speeds(bundles: list[tuple[str, Path]], rounds: int, prompts: int) -> list[Speed]:
    """Time one image with each bundle and engine, in turns; the first is what others are compared
    with."""
    pipes = {
        (name, engine): kdrt.load(path, engine=engine)
        for engine in ("onnxruntime", "openvino")
        for name, path in bundles
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in pipes}
    for number in range(rounds + 1):  # the first is to warm up
        for key, pipe in pipes.items():
            started = time.perf_counter()
            pipe(SHOWN[0], seed=0, steps=20)
            if number:
                times[key].append(time.perf_counter() - started)
    first = next(iter(times.values()))
    return [
        Speed(
            name,
            engine,
            statistics.median(seen),
            statistics.median(a / b for a, b in zip(first, seen, strict=True)),
            demo_fidelity(pipes[name, engine], prompts, steps=20),
        )
        for (name, engine), seen in times.items()
    ]


def processor_and_cores() -> str:
    """What the figures of speed are of."""
    seen = examine()
    packages = ", ".join(
        f"{name} {installed_version(name)}" for name in ("onnxruntime", "openvino")
    )
    return f"{seen.processor}, {seen.cores} cores, {packages}"


_HEADINGS = ("format", "layers", "left", "error", "PSNR", "SSIM", "as asked", "weights")


def _cells(row: Row) -> list[str]:
    def told(value: float | None, how: str) -> str:
        return "" if value is None else how.format(value)

    return [
        row.format,
        told(row.layers, "{}"),
        told(row.left, "{}"),
        told(row.error, "{:.1%}"),
        told(row.psnr, "{:.1f} dB"),
        told(row.ssim, "{:.3f}"),
        f"{row.fidelity:.1%}",
        f"{row.megabytes:.1f} MB",
    ]


def _table(rows: list[Row]) -> Table:
    table = Table(*_HEADINGS)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown(rows: list[Row], faster: list[Speed], prompts: int) -> str:
    """The table as a page."""
    lines = [
        "# Quantised demo models",
        "",
        f"The defaults of `kdrt quantize`; {prompts} held-out prompts, 20 steps. By "
        "`benchmarks/quantization.py`.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|" + "---|" * len(_HEADINGS),
        *[f"| {' | '.join(_cells(row))} |" for row in rows],
        "",
        f"An image on a CPU ({processor_and_cores()}), in turns:",
        "",
        "| format | engine | time | speed | as asked |",
        "|---|---|---|---|---|",
        *[
            f"| {each.format} | {each.engine} | {1000 * each.seconds:.0f} ms | {each.ratio:.2f} x "
            f"| {each.fidelity:.1%} |"
            for each in faster
        ],
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
