"""How often does the demo model draw what the prompt says?

    python benchmarks/fidelity.py [BUNDLE] [--engine NAME] [--sheet FILE] ...

Generates the held-out prompts, judges every image by plain image analysis, and prints the
score: a table by kind of prompt, then one line of JSON. The score gauges an engine, a sampler or
a precision end to end; ``--sheet`` saves the images for a person to judge the judge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

import kdrt
from kdrt_export.demo.fidelity import HELD_OUT_PROMPTS, Verdict, held_out_prompts, judge, score
from kdrt_export.demo.scenes import Scene


def main(
    bundle: Annotated[str, typer.Argument(help="Bundle of the demo model.")] = "demo",
    engine: str | None = None,
    sampler: str = "dpmpp_2m",
    schedule: str = "karras",
    steps: int = 20,
    guidance: float | None = None,
    prompts: int = HELD_OUT_PROMPTS,
    batch: int = 24,
    seed: int = 0,
    sheet: Annotated[Path | None, typer.Option(help="Save all images on one sheet.")] = None,
) -> None:
    """Score a bundle of the demo model on held-out prompts."""
    chosen = held_out_prompts(prompts)
    pipe = kdrt.load(bundle, engine=engine)
    images: list[Image.Image] = []
    for start in range(0, len(chosen), batch):
        images += pipe(
            [text for text, _ in chosen[start : start + batch]],
            sampler=sampler,
            schedule=schedule,
            steps=steps,
            guidance_scale=guidance,
            seed=seed + start,
        ).images
    verdicts = [judge(image, scene) for image, (_, scene) in zip(images, chosen, strict=True)]
    if sheet is not None:
        contact_sheet(images, chosen, verdicts).save(sheet)

    single = [v for v in verdicts if len(v.things) == 1]
    pairs = [v for v in verdicts if len(v.things) == 2]
    summary = {
        "prompts": len(chosen),
        "fidelity": score(verdicts),
        "fidelity_one_thing": score(single) if single else None,
        "fidelity_two_things": score(pairs) if pairs else None,
        "background": float(np.mean([v.background for v in verdicts])),
        "sampler": sampler,
        "schedule": schedule,
        "steps": steps,
        "guidance_scale": guidance or pipe.bundle.manifest.default_guidance_scale,
        "seed": seed,
    }
    table = Table("", "share", title=f"Prompt fidelity of {bundle}, {len(chosen)} prompts")
    for key in ("fidelity", "fidelity_one_thing", "fidelity_two_things", "background"):
        value = summary[key]
        table.add_row(key.replace("_", " "), "–" if value is None else f"{value:.1%}")
    Console(stderr=True).print(table)
    print(json.dumps(summary))


def contact_sheet(
    images: list[Image.Image], prompts: list[tuple[str, Scene]], verdicts: list[Verdict]
) -> Image.Image:
    """Every image with its prompt below; a red frame where the judge missed something."""
    columns, width, height = 12, 104, 112
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, (text, _), verdict) in enumerate(zip(images, prompts, verdicts, strict=True)):
        left, top = i % columns * width, i // columns * height
        if not verdict.shown:
            pen.rectangle((left + 16, top, left + 87, top + 71), fill="red")
        sheet.paste(image, (left + 20, top + 4))
        words, line, lines = text.split(), "", []
        for word in words:
            if len(line) + len(word) > 17:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        for number, content in enumerate([*lines, line][:4]):
            pen.text((left + 2, top + 72 + 10 * number), content, fill="black")
    return sheet


if __name__ == "__main__":
    typer.run(main)
