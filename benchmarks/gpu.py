"""How fast is a GPU, by engine and by graph level, and with requests in flight together?

    python benchmarks/gpu.py BUNDLE [--engine NAME …] [--steps N] [--rounds N] [-o FILE]

For every engine that loads and every graph level: milliseconds for the text encoders, for a step,
for the VAE and for a whole image, medians of CUDA events around warmed-up runs; and what the
profiler of PyTorch saw the host do for one image: launches of kernels and of graphs, and waits.
(Kernels that an engine launches itself are seen where its library goes through CUDA's runtime.)

Then for every engine, of in-flight batching (`kdrt.Batcher`): a request by itself against the
pipeline, in turns; 1, 2, 4 and 8 images at once, and what a tick of them costs; and a stream of
requests of 4 to 50 steps that come at random, against one request at a time.

Prints the rows of the README's table of GPUs, then one line of JSON; ``-o`` also writes both.
An engine that does not load is a row that says why. Without a GPU it prints one sentence;
``--on-cpu`` tries the rows of in-flight batching on the CPU.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

import kdrt
from kdrt.bundle import open_bundle
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.errors import KdrtError
from kdrt_bench.cuda_calls import count_calls
from kdrt_bench.in_flight import PROMPT, InFlightRows, measure_in_flight
from kdrt_engines.openvino.config import is_openvino
from kdrt_engines.registry import ENGINES

LEVELS: tuple[CudaGraphLevel, ...] = get_args(CudaGraphLevel)
PACKAGES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "onnxruntime-cuda": "onnxruntime-gpu",
    "onnxruntime-tensorrt": "onnxruntime-gpu",
    "torch": "torch",
}


@dataclass(frozen=True)
class Row:
    """One engine at one level, in milliseconds; what the host called for one image."""

    engine: str
    version: str
    graph: str
    text: float = 0.0
    step: float = 0.0
    vae: float = 0.0
    image: float = 0.0
    memory: int = 0
    launches: int = 0
    graph_launches: int = 0
    waits: int = 0
    failed: str = ""


@dataclass(frozen=True)
class InFlight:
    """In-flight batching with one engine."""

    engine: str
    rows: InFlightRows | None = None
    failed: str = ""


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Median of ``rounds`` runs by CUDA events, after two that do not count."""
    times = []
    for count in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if count >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(
    bundle: kdrt.Bundle, engine: str, graph: CudaGraphLevel, steps: int, rounds: int
) -> Row:
    """One row; an engine that cannot run is a row too."""
    try:
        installed = version(PACKAGES[engine])
    except PackageNotFoundError:
        return Row(engine, "", graph, failed="not installed")
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        free = torch.cuda.mem_get_info()[0]
        pipe = kdrt.load(bundle, engine=engine, cuda_graph=graph)

        def text() -> object:
            pipe.prompt_encoder.invalidate()  # or it would be remembered
            return pipe.encode_prompt(PROMPT)

        def image(count: int = steps) -> object:
            return pipe(PROMPT, seed=7, steps=count, output_type="latent")

        whole = milliseconds(image, rounds)
        fewer = max(steps // 2, 1)
        half = milliseconds(lambda: image(fewer), rounds)
        latents = pipe(PROMPT, seed=7, steps=2, output_type="latent").images
        decode = pipe.cuda_stream.calling(pipe.vae.decoder)
        vae = milliseconds(lambda: decode(latents), rounds)
        texts = milliseconds(text, rounds)
        launches, graphs, waits = count_calls(image).values()
    except KdrtError as error:
        return Row(engine, installed, graph, failed=str(error).splitlines()[0])
    return Row(
        engine,
        installed,
        graph,
        text=texts,
        # The difference leaves out what an image costs once.
        step=(whole - half) / max(steps - fewer, 1),
        vae=vae,
        image=texts + whole + vae,
        memory=free - torch.cuda.mem_get_info()[0],
        launches=launches,
        graph_launches=graphs,
        waits=waits,
    )


def measure_together(
    bundle: kdrt.Bundle, engine: str, steps: int, rounds: int, requests: int
) -> InFlight:
    """In-flight batching with one engine; one that cannot run is a row too."""
    try:
        pipe = kdrt.load(bundle, engine=engine)
        return InFlight(engine, measure_in_flight(pipe, steps, rounds, requests))
    except KdrtError as error:
        return InFlight(engine, failed=str(error).splitlines()[0])


def driver() -> str:
    """The version of NVIDIA's driver, from its own file; a question mark where there is none."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "?"


def markdown(rows: list[Row], bundle: kdrt.Bundle, steps: int) -> str:
    """The rows of the README's table."""
    name = f"{torch.cuda.get_device_name()} (driver {driver()}, CUDA {torch.version.cuda})"
    lines = [
        "| GPU | model | engine | graph | text ms | step ms | VAE ms | image ms | memory "
        "| launches · graphs · waits |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    model = f"{bundle.manifest.name} {bundle.manifest.precision}, {steps} steps"
    for row in rows:
        start = f"| {name} | {model} | {row.engine} {row.version} | {row.graph} |"
        if row.failed:
            lines.append(f"{start} did not run: {row.failed} ||||||")
            continue
        lines.append(
            f"{start} {row.text:.2f} | {row.step:.2f} | {row.vae:.2f} | {row.image:.1f} "
            f"| {row.memory / 1e9:.2f} GB | {row.launches} · {row.graph_launches} · {row.waits} |"
        )
    return "\n".join(lines)


def markdown_in_flight(results: list[InFlight]) -> str:
    """In-flight batching: a table of images at once, and a sentence for each of the other two."""
    lines = [
        "| engine | images | rows | images/s | tick ms | host µs | launches · graphs · waits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    sentences = []
    for result in results:
        if result.rows is None:
            lines.append(f"| {result.engine} | did not run: {result.failed} ||||||")
            continue
        for row in result.rows.together:
            calls = f"{row.launches:.1f} · {row.graph_launches:.1f} · {row.waits:.1f}"
            lines.append(
                f"| {result.engine} | {row.images} | {row.rows} | {row.per_second:.2f} "
                f"| {row.tick:.2f} | {row.host:.0f} | {calls} |"
            )
        lone, stream = result.rows.lone, result.rows.stream
        sentences.append(
            f"{result.engine}, a request by itself: {lone.batcher:.1f} ms through the batcher, "
            f"{lone.pipeline:.1f} ms through the pipeline, ratio {lone.ratio:.3f}."
        )
        if stream is not None:
            sentences.append(
                f"{result.engine}, {stream.requests} requests of 4 to 50 steps at 90 % of the "
                "load of one at a time, p50 and p99: "
                f"{stream.batcher.p50:.0f} and {stream.batcher.p99:.0f} ms; one at a time "
                f"{stream.one_at_a_time.p50:.0f} and {stream.one_at_a_time.p99:.0f} ms."
            )
    return "\n".join([*lines, "", *sentences])


def main(
    bundle: Annotated[str, typer.Argument(help="Name or folder.")] = "demo",
    engine: Annotated[list[str] | None, typer.Option(help="All that load, if none.")] = None,
    steps: Annotated[int, typer.Option(min=2)] = 20,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    stream: Annotated[int, typer.Option(min=0, help="Requests; 0 leaves the stream out.")] = 24,
    on_cpu: Annotated[bool, typer.Option("--on-cpu", help="Try in-flight batching here.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Measure this machine's GPU."""
    if not torch.cuda.is_available() and not on_cpu:
        typer.echo("CUDA sees no GPU here: nothing was measured", err=True)
        raise typer.Exit(2)
    opened = open_bundle(bundle)
    here = [name for name in ENGINES if not is_openvino(name)]
    names = engine or [name for name in here if (name == "onnxruntime") == on_cpu]
    rows = []
    if not on_cpu:
        rows = [measure(opened, name, level, steps, rounds) for name in names for level in LEVELS]
    together = [measure_together(opened, name, steps, rounds, stream) for name in names]
    text = markdown_in_flight(together)
    if rows:
        text = f"{markdown(rows, opened, steps)}\n\n{text}"
    result = json.dumps(
        {
            "gpu": None if on_cpu else torch.cuda.get_device_name(),
            "rows": [asdict(row) for row in rows],
            "in flight": [asdict(row) for row in together],
        }
    )
    typer.echo(f"{text}\n\n{result}")
    if output is not None:
        output.write_text(f"{text}\n\n{result}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
