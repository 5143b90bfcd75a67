"""One image of every sampler at 5, 10, 20 and 40 steps: `docs/images/samplers.webp`.

    kdrt export demo
    python benchmarks/sampler_images.py docs/images/samplers.webp

All from one seed and one prompt, on Karras' schedule and the demo model. CFG++ samplers run at a
twelfth of the others' guidance scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import kdrt
from kdrt.sampling import SAMPLERS

PROMPT = "a black triangle on a yellow background"
SEED = 7
STEPS = (5, 10, 20, 40)
LABEL_WIDTH, GAP, BLOCKS = 150, 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--bundle", default="demo")
    arguments = parser.parse_args()

    pipe = kdrt.load(arguments.bundle)
    rows = {}
    for name, info in SAMPLERS.items():
        guidance = pipe.bundle.manifest.default_guidance_scale
        if name.endswith("cfg_pp"):
            guidance /= 12.5
        rows[name] = [
            pipe(PROMPT, sampler=name, steps=steps, seed=SEED, guidance_scale=guidance).images[0]
            for steps in STEPS
        ]
        print(info.label, flush=True)
    sheet(rows).save(arguments.output, quality=88, method=6)


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """The images as a table, its rows in blocks side by side."""
    width, height = (side + GAP for side in next(iter(rows.values()))[0].size)
    head = 20
    per_block = -(-len(rows) // BLOCKS)
    block_width = LABEL_WIDTH + len(STEPS) * width + 10
    canvas = Image.new("RGB", (BLOCKS * block_width, head + per_block * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for block in range(BLOCKS):
        for column, steps in enumerate(STEPS):
            left = block * block_width + LABEL_WIDTH + column * width
            draw.text((left + width // 2, head // 2), f"{steps}", "black", font, anchor="mm")
    for index, (name, images) in enumerate(rows.items()):
        block, row = divmod(index, per_block)
        left, top = block * block_width, head + row * height
        middle = (left + LABEL_WIDTH - 8, top + height // 2)
        draw.text(middle, name, "black", font, anchor="rm")
        for column, image in enumerate(images):
            canvas.paste(image, (left + LABEL_WIDTH + column * width, top))
    return canvas


if __name__ == "__main__":
    main()
