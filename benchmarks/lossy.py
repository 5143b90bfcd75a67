"""What does each lossy mode gain, and what does it lose?

    python benchmarks/lossy.py [-o benchmarks/results] [--prompts N] [--rounds N] ...

Exports the demo model twice (with a shallow UNet, and with int8 weights), and for every mode
measures, against the plain run of the same seeds:

- speed: the time of one batch, all modes in turn in every round, as the median of the ratios;
- the relative error of the latents, and PSNR of the images (the mean over images);
- the prompt-fidelity score of `benchmarks/fidelity.py`;
- the size of the bundle's networks.

Then, by arithmetic on the architectures of SD 1.5 and SDXL, what a deep cache leaves of the UNet's
operations. Prints a table; the last line is JSON. ``-o`` writes ``lossy.md`` and ``lossy.json``.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import kdrt
from kdrt.images.output import to_images
from kdrt_export.demo.fidelity import HELD_OUT_PROMPTS, held_out_prompts, judge, score

INTERVALS = ((0.28, 5.42), (0.5, 15.0), (1.0, 15.0), (-1.0, 3.0))
CACHES = (2, 3, 5)


@dataclass
class Row:
    """One mode. Speed is how many times faster than plain; errors are None for plain itself."""

    mode: str
    speed: float
    relative_error: float | None
    psnr: float | None
    fidelity: float
    megabytes: float


@dataclass(frozen=True)
class Mode:
    name: str
    pipe: kdrt.Pipeline
    options: dict[str, Any]


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")] = None,
    prompts: int = HELD_OUT_PROMPTS,
    rounds: int = 9,
    steps: int = 20,
    batch: int = 8,
    engine: str | None = None,
    flops: Annotated[bool, typer.Option(help="Count operations of SD 1.5 and SDXL too.")] = True,
) -> None:
    """Measure every lossy mode on the demo model."""
    from kdrt_export.stage import export

    with tempfile.TemporaryDirectory() as folder:
        deep = export("demo", Path(folder) / "deep", variants=["deepcache"])
        bytes_ = export("demo", Path(folder) / "int8", weights="int8")
        pipes = [kdrt.load(path, engine=engine) for path in (deep, bytes_)]
        modes = _modes(*pipes)
        rows = measure(modes, prompts, rounds, steps, batch)
    left = {name: cached_share(name) for name in ARCHITECTURES} if flops else {}
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__},
        "engine": engine or "best",
        "prompts": prompts,
        "rounds": rounds,
        "steps": steps,
        "batch": batch,
        "modes": [asdict(row) for row in rows],
        "shallow_share_of_flops": left,
    }
    Console(stderr=True).print(_table(rows))
    for name, share in left.items():
        Console(stderr=True).print(f"{name}: {_fewer(share)}")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "lossy.json").write_text(json.dumps(result, indent=2) + "\n")
        (output / "lossy.md").write_text(_markdown(rows, left, result))
    print(json.dumps(result))


def _modes(deep: kdrt.Pipeline, int8: kdrt.Pipeline) -> list[Mode]:
    intervals = [
        Mode(f"guidance interval {low:g} to {high:g}", deep, {"guidance_interval": (low, high)})
        for low, high in INTERVALS
    ]
    caches = [Mode(f"deep cache {every}", deep, {"deep_cache": every}) for every in CACHES]
    both = {"guidance_interval": INTERVALS[1], "deep_cache": 2}
    return [
        Mode("plain", deep, {}),
        *intervals,
        *caches,
        Mode("guidance interval 0.5 to 15, deep cache 2", deep, both),
        Mode("int8 weights", int8, {}),
    ]


def measure(modes: list[Mode], prompts: int, rounds: int, steps: int, batch: int) -> list[Row]:
    """The first mode is the one that others are compared with."""
    chosen = held_out_prompts(prompts)
    texts = [text for text, _ in chosen]
    speeds = _speeds(modes, texts[:batch], rounds, steps)
    rows: list[Row] = []
    plain: tuple[torch.Tensor, np.ndarray] | None = None
    for mode, speed in zip(modes, speeds, strict=True):
        latents = torch.cat(
            [
                mode.pipe(
                    texts[start : start + batch],
                    seed=start,
                    steps=steps,
                    output_type="latent",
                    **mode.options,
                ).images
                for start in range(0, len(texts), batch)
            ]
        )
        images = to_images(mode.pipe.vae.decoder(latents), "pil")
        verdicts = [judge(p, scene) for p, (_, scene) in zip(images, chosen, strict=True)]
        pixels = np.stack([np.asarray(image) for image in images]) / 255
        error = psnr = None
        if plain is not None:
            error = float((latents - plain[0]).norm() / plain[0].norm())
            psnr = _psnr(pixels, plain[1])
        plain = plain or (latents, pixels)
        rows.append(Row(mode.name, speed, error, psnr, score(verdicts), _size(mode.pipe)))
    return rows


def _speeds(modes: list[Mode], texts: list[str], rounds: int, steps: int) -> list[float]:
    """The median over rounds of the first mode's time by each mode's."""
    times: list[list[float]] = [[] for _ in modes]
    for number in range(rounds + 1):  # the first is to warm up
        for mode, seen in zip(modes, times, strict=True):
            started = time.perf_counter()
            mode.pipe(texts, seed=0, steps=steps, output_type="latent", **mode.options)
            if number:
                seen.append(time.perf_counter() - started)
    first = times[0]
    return [statistics.median(a / b for a, b in zip(first, seen, strict=True)) for seen in times]


def _psnr(pixels: np.ndarray, wanted: np.ndarray) -> float:
    """In decibels, the mean over images; equal ones count as 100."""
    errors = ((pixels - wanted) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def _size(pipe: kdrt.Pipeline) -> float:
    """Megabytes of the networks that an image needs without shortcuts."""
    bundle = pipe.bundle
    folders = [
        bundle.file(component.onnx).parent
        for name, component in bundle.manifest.components.items()
        if name != "unet_shallow"
    ]
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir()) / 1e6


_SD15: dict[str, Any] = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
ARCHITECTURES = {"SD 1.5": _SD15, "SDXL": _SDXL}


def cached_share(name: str) -> float:
    """What part of the UNet's operations the shallow one has, at the model's own size."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from kdrt_export.components import ExportUNet
    from kdrt_export.components.shallow_unet import ExportShallowUNet

    counts = []
    for kind in (ExportShallowUNet, ExportUNet):
        with torch.device("meta"):
            component = kind(UNet2DConditionModel(**ARCHITECTURES[name]))
        component.rewrite()
        size = component.unet.config.sample_size
        dims = {"B": 1, "L": 77, "h": size, "w": size}
        inputs = [
            torch.empty(tensor.resolve(dims), device="meta") for tensor in component.spec.inputs
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            component(*inputs)
        counts.append(counter.get_total_flops())
    shallow, whole = counts
    return float(shallow / whole)


def _fewer(share: float) -> str:
    """How many times fewer operations a run has at each interval."""
    times = [f"{every / (1 + (every - 1) * share):.2f} x at interval {every}" for every in CACHES]
    return f"the shallow UNet is {share:.1%} of the whole; fewer operations: {', '.join(times)}"


def _cells(row: Row) -> list[str]:
    return [
        row.mode,
        f"{row.speed:.2f} x",
        "–" if row.relative_error is None else f"{row.relative_error:.3f}",
        "–" if row.psnr is None else f"{row.psnr:.1f} dB",
        f"{row.fidelity:.1%}",
        f"{row.megabytes:.1f} MB",
    ]


_HEADS = ("mode", "speed", "relative error", "PSNR", "prompt fidelity", "networks")


def _table(rows: list[Row]) -> Table:
    table = Table(*_HEADS, title="Lossy modes of the demo model")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _markdown(rows: list[Row], left: dict[str, float], result: dict[str, Any]) -> str:
    lines = [
        "# Lossy modes of the demo model",
        "",
        f"{result['machine']['cpu']}, {torch.get_num_threads()} threads, {result['prompts']} "
        f"prompts, {result['steps']} steps, batches of {result['batch']}, {result['rounds']} "
        "rounds. Written by `benchmarks/lossy.py`.",
        "",
        "| " + " | ".join(_HEADS) + " |",
        "|---" * len(_HEADS) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        *(f"{name}, counted: {_fewer(share)}." for name, share in left.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
