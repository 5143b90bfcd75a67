"""Does the demo model's ControlNet follow outlines, and does the prompt still hold?

    python benchmarks/control_fidelity.py [--controlnet FOLDER | --bundle NAME] [--sheet FILE] ...

Generates the held-out prompts, each guided by the outlines of its scene, at several scales; 0 is
without control, from the same seeds. diffusers makes the images, or kdrt with ``--bundle``. Prints
for every scale the prompt fidelity (the judge of ``benchmarks/fidelity.py``) and how well the
outlines were followed: the mean overlap (intersection over union) of the things in the image with
the scene's, and the share of images where it is at least 0.8. Then one line of JSON. ``--sheet``
saves images for a person to judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from rich.console import Console
from rich.table import Table

import kdrt
from kdrt_export.demo.fidelity import HELD_OUT_PROMPTS, held_out_prompts, judge, score
from kdrt_export.demo.outlines import draw_outlines, outline_overlap
from kdrt_export.demo.scenes import Scene
from kdrt_export.demo.train_control import CONTROL, MODEL

Generate = Callable[[Sequence[str], Sequence[Image.Image], float, Sequence[int]], list[Image.Image]]
"""From prompts, their outlines, a scale and seeds."""

FOLLOWED = 0.8
"""Overlap from which an image counts as following its outlines."""
ON_SHEET = 24


def main(
    controlnet: Annotated[Path, typer.Option(help="Folder of the ControlNet.")] = CONTROL,
    bundle: Annotated[
        str | None, typer.Option(help="Have kdrt make the images, from a bundle with a ControlNet.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Scales of control, by commas.")] = "0,0.5,1",
    steps: int = 20,
    guidance: float = 5.0,
    prompts: int = HELD_OUT_PROMPTS,
    batch: int = 24,
    seed: int = 0,
    without_text: Annotated[
        bool, typer.Option(help="Leave the prompts empty: outlines alone.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Save the first images on one sheet.")] = None,
) -> None:
    """Score a ControlNet of the demo model on held-out outlines and prompts."""
    chosen = held_out_prompts(prompts)
    generate = (
        by_diffusers(controlnet, steps, guidance)
        if bundle is None
        else by_kdrt(bundle, steps, guidance)
    )
    outlines = [draw_outlines(scene) for _, scene in chosen]
    rows: list[list[Image.Image]] = [outlines]
    results = []
    for scale in (float(part) for part in scales.split(",")):
        images: list[Image.Image] = []
        for start in range(0, len(chosen), batch):
            part = slice(start, start + batch)
            texts = ["" if without_text else text for text, _ in chosen[part]]
            seeds = range(seed + start, seed + start + len(texts))
            images += generate(texts, outlines[part], scale, seeds)
        rows.append(images)
        results.append({"scale": scale, **figures(images, [scene for _, scene in chosen])})

    if sheet is not None:
        contact_sheet(rows).save(sheet)
    table = Table("scale", "prompt fidelity", "overlap", "followed", "overlap with another scene")
    for result in results:
        shares = (f"{value:.1%}" for key, value in result.items() if key != "scale")
        table.add_row(f"{result['scale']:g}", *shares)
    Console(stderr=True).print(table)
    settings = {"prompts": prompts, "steps": steps, "guidance_scale": guidance, "seed": seed}
    print(json.dumps({**settings, "results": results}))


def by_diffusers(controlnet: Path, steps: int, guidance: float) -> Generate:
    """The demo model with a ControlNet, in float32 on the CPU."""
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(
        MODEL,
        controlnet=ControlNetModel.from_pretrained(controlnet, torch_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)

    def generate(
        texts: Sequence[str], outlines: Sequence[Image.Image], scale: float, seeds: Sequence[int]
    ) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            list(texts),
            image=list(outlines),
            controlnet_conditioning_scale=scale,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images

    return generate


def by_kdrt(bundle: str, steps: int, guidance: float) -> Generate:
    """A bundle of the demo model with one ControlNet, with the same sampler."""
    pipe = kdrt.load(bundle)

    def generate(
        texts: Sequence[str], outlines: Sequence[Image.Image], scale: float, seeds: Sequence[int]
    ) -> list[Image.Image]:
        return pipe(
            list(texts),
            control=kdrt.ControlImage(list(outlines), scale=scale),
            sampler="dpmpp_2m",
            schedule="karras",
            steps=steps,
            guidance_scale=guidance,
            seed=list(seeds),
        ).images

    return generate


def figures(images: list[Image.Image], scenes: list[Scene]) -> dict[str, float]:
    """What the judge says of images made for scenes. The overlap with the next scene's outlines
    instead of its own is what chance gives."""
    pairs = list(zip(images, scenes, strict=True))
    overlaps = [outline_overlap(image, scene) for image, scene in pairs]
    others = zip(images, scenes[1:] + scenes[:1], strict=True)
    return {
        "fidelity": score(judge(image, scene) for image, scene in pairs),
        "overlap": float(np.mean(overlaps)),
        "followed": float(np.mean([overlap >= FOLLOWED for overlap in overlaps])),
        "chance": float(np.mean([outline_overlap(image, scene) for image, scene in others])),
    }


def contact_sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """A row for the outlines and for every scale, twelve images wide."""
    side, columns = 66, 12
    count = min(len(rows[0]), ON_SHEET)
    blocks = -(-count // columns)
    sheet = Image.new("RGB", (columns * side, blocks * len(rows) * side), "grey")
    for row, images in enumerate(rows):
        for i, image in enumerate(images[:count]):
            block, column = divmod(i, columns)
            sheet.paste(image, (column * side, (block * len(rows) + row) * side))
    return sheet


if __name__ == "__main__":
    typer.run(main)
