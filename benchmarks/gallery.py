"""The images of `docs/gallery.md`: what can be done with an image, shown with the demo model.

    kdrt export demo --controlnet demo --variant pag --pag-layers down_blocks.1 \\
        --pag-layers up_blocks.1 --name gallery
    python benchmarks/gallery.py docs/images/gallery [--only strength] ...

Every sheet is a table of images from fixed prompts and seeds, made on the CPU. Prompts and masks
are chosen to show what an option does; seeds are not tried until one fits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageOps

import kdrt
from kdrt import ControlImage, Pipeline, Region, Request
from kdrt.common.literals import InpaintFill
from kdrt_bench.image_sheet import WIDTH, Sheet
from kdrt_export.demo.outlines import draw_outlines
from kdrt_export.demo.scenes import Scene, Thing, draw

CIRCLE = Scene((Thing("circle", "red", 0.5, 0.5, 0.3),), "blue")


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
        sheet.add(prompt, [image, *made])
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
                    "inpaint_fill": content,
                    "strength": value,
                    "seed": 1,
                },
            )
            for content in fills
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
    sheet = Sheet(["image", "mask", "the whole image", "the masked part"], 2 * WIDTH)
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
        sheet.add(prompt, [image, mask, *made])
    return sheet


def control_scale(pipe: Pipeline) -> Sheet:
    """Outlines and a prompt, with the outlines counting more and more."""
    scales = (0, 0.25, 0.5, 1, 1.5)
    sheet = Sheet(["outlines", *(f"scale {scale:g}" for scale in scales)])
    for scene, prompt in (
        (
            Scene((Thing("star", "yellow", 0.3, 0.35, 0.26),), "black"),
            "a yellow star on a black background",
        ),
        (
            Scene(
                (Thing("circle", "red", 0.72, 0.28, 0.2), Thing("square", "blue", 0.3, 0.7, 0.22)),
                "white",
            ),
            "a red circle and a blue square on a white background",
        ),
        (
            Scene((Thing("heart", "white", 0.4, 0.55, 0.36),), "purple"),
            "a heart on a purple background",
        ),
    ):
        lines = draw_outlines(scene)
        made = [
            image_of(
                pipe, {"prompt": prompt, "control": ControlImage(lines, scale=scale), "seed": 2}
            )
            for scale in scales
        ]
        sheet.add(prompt, [lines, *made])
    return sheet


def control_window(pipe: Pipeline) -> Sheet:
    """Outlines that count in a part of the steps alone."""
    windows = ((0, 1), (0, 0.5), (0, 0.2), (0.2, 1), (0.5, 1))
    sheet = Sheet(["outlines", *(f"{start:g} to {end:g}" for start, end in windows)])
    lines = draw_outlines(Scene((Thing("cross", "green", 0.65, 0.62, 0.3),), "orange"))
    for prompt in (
        "a green cross on an orange background",
        "a green circle on an orange background",
    ):
        made = [
            image_of(
                pipe,
                {
                    "prompt": prompt,
                    "control": ControlImage(lines, start=start, end=end),
                    "seed": 5,
                },
            )
            for start, end in windows
        ]
        sheet.add(prompt, [lines, *made])
    return sheet


def control_canny(pipe: Pipeline) -> Sheet:
    """The edges of an image, in other colours."""
    prompts = (
        "a blue heart and an orange triangle on a white background",
        "a white heart and a yellow triangle on a red background",
        "a heart and a triangle",
        "",
    )
    things = (
        Thing("heart", "black", 0.28, 0.4, 0.2),
        Thing("triangle", "purple", 0.72, 0.6, 0.22),
    )
    image = draw(Scene(things, "green"))
    sheet = Sheet(["image", *(prompt or "no prompt" for prompt in prompts)])
    for seed in (1, 2):
        made = [
            image_of(
                pipe,
                {
                    "prompt": prompt,
                    "control": ControlImage(image, process="canny"),
                    "seed": seed,
                },
            )
            for prompt in prompts
        ]
        sheet.add(f"seed {seed}", [image, *made])
    return sheet


def control_other(pipe: Pipeline) -> Sheet:
    """Outlines unlike those of the training: shapes turned, stretched, and drawn with a gap."""
    canvas = Image.new("L", (64, 64), 0)
    turned, oval, gap = canvas.copy(), canvas.copy(), canvas.copy()
    ImageDraw.Draw(turned).polygon([(32, 8), (56, 32), (32, 56), (8, 32)], outline=255)
    ImageDraw.Draw(oval).ellipse((6, 20, 57, 44), outline=255)
    ImageDraw.Draw(gap).arc((12, 12, 52, 52), 30, 330, fill=255)
    sheet = Sheet(["outlines", "square", "circle", "star", "no prompt"])
    for label, lines in (("turned", turned), ("stretched", oval), ("with a gap", gap)):
        prompts = [f"a red {kind} on a white background" for kind in ("square", "circle", "star")]
        made = [
            image_of(pipe, {"prompt": prompt, "control": ControlImage(lines), "seed": 3})
            for prompt in (*prompts, "")
        ]
        sheet.add(label, [lines, *made])
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


def perturbed_attention(pipe: Pipeline) -> Sheet:
    """Perturbed-attention guidance, without and with guidance by the prompt."""
    scales = (0, 1, 2, 4, 8)
    sheet = Sheet([f"pag_scale {scale}" for scale in scales])
    stars = "a small white star and a red triangle on a green background"
    for prompt, guidance_scale, seed in (
        (stars, 1, 4),
        ("a purple cross on a white background", 1, 6),
        (stars, 5, 4),
    ):
        made = [
            image_of(
                pipe,
                {
                    "prompt": prompt,
                    "guidance_scale": guidance_scale,
                    "pag_scale": scale,
                    "seed": seed,
                },
            )
            for scale in scales
        ]
        sheet.add(f"guidance {guidance_scale}", made)
    return sheet


def regions(pipe: Pipeline) -> Sheet:
    """A prompt for the left half and one for the right, beside the one of the whole image."""
    weights = (0, 0.2, 0.5, 1)
    halves = []
    for left in (0, 32):
        halves.append(Image.new("L", (64, 64), 0))
        halves[-1].paste(255, (left, 0, left + 32, 64))
    sheet = Sheet(["no regions", *(f"base weight {weight:g}" for weight in weights)])
    for whole, *parts, seed in (
        (
            "a red star and a blue star on a yellow background",
            "a red star on the left on a yellow background",
            "a blue star on the right on a yellow background",
            3,
        ),
        (
            "a red circle and a blue square on a white background",
            "a red circle on a white background",
            "a blue square on a white background",
            11,
        ),
    ):
        asked = [Region(text, mask) for text, mask in zip(parts, halves, strict=True)]
        made = [
            image_of(
                pipe,
                {"prompt": whole, "regions": asked, "region_base_weight": weight, "seed": seed},
            )
            for weight in weights
        ]
        sheet.add(whole, [image_of(pipe, {"prompt": whole, "seed": seed}), *made])
    return sheet


def hires(pipe: Pipeline) -> Sheet:
    """A second pass at twice the size, beside an image made at that size at once."""
    passes: dict[str, Request] = {
        f"{upscaler} {strength:g}": {
            "hires_scale": 2,
            "hires_upscaler": upscaler,
            "hires_strength": strength,
        }
        for upscaler in ("latent", "lanczos")
        for strength in (0.3, 0.5, 0.7)
    }
    sheet = Sheet(["64 pixels", "128 pixels", *passes])
    for prompt, seed in (
        ("a yellow star on a blue background", 4),
        ("a red heart and a green cross on a white background", 2),
    ):
        request: Request = {"prompt": prompt, "seed": seed}
        made = [image_of(pipe, request), image_of(pipe, {**request, "width": 128, "height": 128})]
        made += [image_of(pipe, {**request, **second}) for second in passes.values()]
        sheet.add(prompt, made)
    return sheet


SHEETS: dict[str, Callable[[Pipeline], Sheet]] = {
    "control-scale": control_scale,
    "control-window": control_window,
    "control-canny": control_canny,
    "control-other": control_other,
    "strength": strength,
    "inpainting": inpainting,
    "masked-part": masked_part,
    "soft-mask": soft_mask,
    "hires": hires,
    "regions": regions,
    "guidance": guidance,
    "perturbed-attention": perturbed_attention,
}


def main(
    folder: Annotated[Path, typer.Argument(help="Where the sheets are written.")],
    bundle: Annotated[str, typer.Option(help="Bundle of the demo model.")] = "gallery",
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
