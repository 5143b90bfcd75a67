"""The images of `docs/gallery.md`: what can be done with an image, shown with the demo model.

    kdrt export demo
    python benchmarks/gallery.py docs/images/gallery [--only strength] ...

Every sheet is a table of images from fixed prompts and seeds, made on the CPU. Prompts and masks
are chosen to show what an option does; seeds are not tried until one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps

import kdrt
from kdrt import Pipeline, Request
from kdrt.common.literals import InpaintFill
from kdrt_export.demo.scenes import Scene, Thing, draw

ZOOM = 2
"""The demo model's images are small."""
GAP, HEAD, LABEL_WIDTH = 4, 22, 130

CIRCLE = Scene((Thing("circle", "red", 0.5, 0.5, 0.3),), "blue")


class Sheet:
    """Images in rows, with a label for every column and row."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.rows: list[tuple[str, list[Image.Image]]] = []

    def add(self, label: str, images: Sequence[Image.Image]) -> None:
        """One more row, with as many images as there are columns."""
        if len(images) != len(self.columns):
            raise ValueError(f"{label}: {len(images)} images for {len(self.columns)} columns")
        self.rows.append((label, [enlarge(image) for image in images]))

    def draw(self) -> Image.Image:
        """The sheet as one image."""
        margin = LABEL_WIDTH if any(label for label, _ in self.rows) else 0
        widths = [max(row[i].width for _, row in self.rows) + GAP for i in range(len(self.columns))]
        heights = [max(image.height for image in row) + GAP for _, row in self.rows]
        canvas = Image.new("RGB", (margin + sum(widths), HEAD + sum(heights)), "white")
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
        left = margin
        for text, width in zip(self.columns, widths, strict=True):
            pen.text((left + width // 2, HEAD // 2), text, "black", font, anchor="mm")
            left += width
        top = HEAD
        for (label, images), height in zip(self.rows, heights, strict=True):
            middle = (margin - 8, top + height // 2)
            pen.multiline_text(middle, label, "black", font, anchor="rm", align="right")
            left = margin
            for image, width in zip(images, widths, strict=True):
                canvas.paste(image, (left, top))
                left += width
            top += height
        return canvas


def enlarge(image: Image.Image) -> Image.Image:
    size = (image.width * ZOOM, image.height * ZOOM)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def image_of(pipe: Pipeline, request: Request) -> Image.Image:
    """The only image of a request."""
    (image,) = pipe.generate(request).images
    assert isinstance(image, Image.Image)
    return image


def strength(pipe: Pipeline) -> Sheet:
    """An image and a prompt: the more strength, the less of the image is left."""
    strengths = (0.3, 0.5, 0.7, 0.9)
    image = draw(CIRCLE)
    sheet = Sheet(["image", *(f"strength {value}" for value in strengths)])
    for prompt in ("a green star on a blue background", "a yellow heart on a black background"):
        made = [
            image_of(pipe, {"prompt": prompt, "image": image, "strength": value, "seed": 7})
            for value in strengths
        ]
        sheet.add(two_lines(prompt), [image, *made])
    return sheet


def inpainting(pipe: Pipeline) -> Sheet:
    """What lies under the mask to begin with, at falling strength."""
    image = draw(Scene((Thing("circle", "red", 0.5, 0.5, 0.2),), "blue"))
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((8, 8, 55, 55), fill=255)
    fills: tuple[InpaintFill, ...] = ("original", "blurred", "noise", "nothing")
    sheet = Sheet(["image", "mask", *fills])
    for value in (1.0, 0.8, 0.6):
        made = [
            image_of(
                pipe,
                {
                    "prompt": "a yellow star on a blue background",
                    "image": image,
                    "mask_image": mask,
                    "inpaint_fill": fill,
                    "strength": value,
                    "seed": 1,
                },
            )
            for fill in fills
        ]
        sheet.add(f"strength {value:g}", [image, mask, *made])
    return sheet


def masked_part(pipe: Pipeline) -> Sheet:
    """A small part of an image twice as wide and high as the model's own: repainted as it is, and
    cut out, made at the model's size, and put back."""
    things = (Thing("square", "green", 0.35, 0.35, 0.25), Thing("circle", "red", 0.8, 0.8, 0.12))
    image = draw(Scene(things, "white"), 128, 128)
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((82, 82, 123, 123), fill=255)
    request: Request = {
        "prompt": "a purple heart on a white background",
        "image": image,
        "mask_image": mask,
        "seed": 1,
    }
    sheet = Sheet(["image", "mask", "the whole image", "the masked part"])
    made = [image_of(pipe, request), image_of(pipe, {**request, "inpaint_padding": 8})]
    sheet.add("", [image, mask, *made])
    return sheet


def soft_mask(pipe: Pipeline) -> Sheet:
    """A mask of greys: taken for an edge, and blended in the end; and taken for strengths."""
    image = draw(CIRCLE)
    down = Image.linear_gradient("L").resize(image.size)
    outwards = ImageOps.invert(Image.radial_gradient("L")).resize(image.size)
    sheet = Sheet(["image", "mask", "a mask", "a soft mask"])
    for prompt, mask in (
        ("a yellow heart on a blue background", down),
        ("a green star on a blue background", outwards),
    ):
        request: Request = {"prompt": prompt, "image": image, "mask_image": mask, "seed": 3}
        made = [image_of(pipe, {**request, "soft_mask": soft}) for soft in (False, True)]
        sheet.add(two_lines(prompt), [image, mask, *made])
    return sheet


def guidance(pipe: Pipeline) -> Sheet:
    """Ways to combine what the model says with and without the prompt, at rising guidance.

    The threshold is the default one, 15, scaled from latents of 128 by 128 to ones of 16 by 16.
    """
    prompt = "a small white star and a red triangle on a green background"
    methods: dict[str, Request] = {
        "cfg": {"guidance_method": "cfg"},
        "apg": {"guidance_method": "apg", "apg_threshold": 0},
        "apg, threshold 1.9": {"guidance_method": "apg", "apg_threshold": 1.9},
        "cfg_zero_star": {"guidance_method": "cfg_zero_star"},
    }
    scales = (2, 5, 10, 20, 30)
    sheet = Sheet([f"guidance {scale}" for scale in scales])
    for label, method in methods.items():
        made = [
            image_of(pipe, {**method, "prompt": prompt, "guidance_scale": scale, "seed": 4})
            for scale in scales
        ]
        sheet.add(label, made)
    return sheet


def two_lines(text: str) -> str:
    """A label of two lines, broken at a space near the middle."""
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


SHEETS: dict[str, Callable[[Pipeline], Sheet]] = {
    "strength": strength,
    "inpainting": inpainting,
    "masked-part": masked_part,
    "soft-mask": soft_mask,
    "guidance": guidance,
}


def main(
    folder: Annotated[Path, typer.Argument(help="Where the sheets are written.")],
    bundle: Annotated[str, typer.Option(help="Bundle of the demo model.")] = "demo",
    only: Annotated[list[str] | None, typer.Option(help="Make this sheet alone.")] = None,
) -> None:
    """Make the images of the gallery."""
    pipe = kdrt.load(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SHEETS.items():
        if not only or name in only:
            make(pipe).draw().save(folder / f"{name}.webp", quality=88, method=6)
            print(name, flush=True)


if __name__ == "__main__":
    typer.run(main)
