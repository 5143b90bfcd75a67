"""Optimization profiles by name: the image sizes that an engine is built for.

    square · portrait · landscape · any      ranges around the model's default size
    static:HxWxB                             H by W pixels, B images, and nothing else

A name stands for ranges of image sizes, batch sizes and prompt lengths. What that means for a
network depends on the network: guidance doubles the batch of the UNet, a text encoder only sees
prompts, and the VAE decodes one image at a time, up to a size that its attention allows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kdrt.bundle import LatentFacts, Manifest
from kdrt.bundle.components import PAG_INPUT, SHALLOW_UNET, UPSCALER_COMPONENT
from kdrt.errors import EngineError
from kdrt_engines.profiles import Profile, Range

NAMES = ("square", "portrait", "landscape", "any")
DEFAULT = ("any",)

IMAGES = Range(1, 1, 4)
"""Images made at once, of the profiles that are not static."""

PROMPTS = Range(1, 1, 8)
"""Prompts, or chunks of one, that a text encoder takes at once."""

IMAGE_PROMPTS = Range(1, 1, 4)
"""Images for IP-Adapters that are encoded at once."""

UPSCALED = 64
"""The smallest side in pixels of an image that a network enlarges."""

CHUNKS = 3
"""Most chunks of a prompt; each is as long as the text encoder reads at once."""

VAE_LATENTS = 20_480
"""Most latents, height times width, that the VAE takes at once: 1280 × 1024 pixels where one
latent is 8 × 8. Its attention heads are too wide for a fused kernel, so the scores, the square of
this, are in memory. Larger images are decoded in tiles."""

_Sides = tuple[Fraction, Fraction, Fraction]


def _sides(least: str, best: str, most: str) -> _Sides:
    return Fraction(least), Fraction(best), Fraction(most)


# Height and width, as fractions of the default size. SDXL was trained at many shapes of one area,
# 1216 × 832 among them; its predecessors at one size, from which people stretch one side.
_SHAPES: dict[str, dict[str, tuple[_Sides, _Sides]]] = {
    "sd": {
        "square": (_sides("3/4", "1", "3/2"), _sides("3/4", "1", "3/2")),
        "portrait": (_sides("1", "3/2", "7/4"), _sides("3/4", "1", "1")),
        "any": (_sides("1/2", "1", "2"), _sides("1/2", "1", "2")),
    },
    "sdxl": {
        "square": (_sides("3/4", "1", "5/4"), _sides("3/4", "1", "5/4")),
        "portrait": (_sides("1", "19/16", "3/2"), _sides("5/8", "13/16", "1")),
        "any": (_sides("1/2", "1", "3/2"), _sides("1/2", "1", "3/2")),
    },
}
for _family in _SHAPES.values():
    _family["landscape"] = _family["portrait"][::-1]

_STATIC = re.compile(r"static:(\d+)x(\d+)x(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class _Sizes:
    """What a name stands for in a model: latent sizes, images at once, prompt tokens."""

    height: Range
    width: Range
    images: Range
    tokens: Range


def component_profiles(
    manifest: Manifest, component: str, names: Sequence[str] = DEFAULT
) -> tuple[Profile, ...]:
    """The profiles a component is built with; names that mean the same to it give one.

    Raises:
        EngineError: a name is unknown, a static size impossible, or the component has no profiles.
    """
    found: list[Profile] = []
    for name in names:
        profile = _profile(manifest, component, name)
        if all(dict(known.ranges) != dict(profile.ranges) for known in found):
            found.append(profile)
    return tuple(found)


def profile_for(manifest: Manifest, component: str, dims: dict[str, int]) -> str | None:
    """The name of a profile with which ``component`` takes ``dims``; None if there is none."""
    for name in (*NAMES, *_static_names(manifest, dims)):
        try:
            if _profile(manifest, component, name).allows(dims):
                return name
        except EngineError:
            continue
    return None


def is_guided(manifest: Manifest) -> bool:
    """Whether an image takes two rows of the UNet's batch: not for distilled models."""
    distilled = any(t.name == "timestep_cond" for t in manifest.components["unet"].inputs)
    return manifest.default_guidance_scale > 1 and not distilled


def _perturbs(manifest: Manifest, component: str) -> bool:
    """Whether an image takes one row more, for perturbed-attention guidance."""
    found = manifest.components.get(component)
    return found is not None and any(t.name == PAG_INPUT for t in found.inputs)


def _profile(manifest: Manifest, component: str, name: str) -> Profile:
    wanted = _sizes_of(manifest, name)
    rows = 1 + is_guided(manifest) + _perturbs(manifest, component)
    component = _part(manifest, component)
    if component in ("unet", SHALLOW_UNET):
        images = wanted.images
        return Profile(
            name,
            {
                # Guidance can be switched off: then the same images need fewer rows.
                "B": Range(images.min, rows * images.opt, rows * images.max),
                "L": wanted.tokens,
                "h": wanted.height,
                "w": wanted.width,
            },
        )
    for facts in manifest.text_encoders:
        if facts.component == component:
            return Profile("prompts", {"B": PROMPTS, "L": Range.fixed(facts.max_length)})
    if component in manifest.image_prompt_components:
        return Profile("images", {"B": IMAGE_PROMPTS})
    if component in ("vae_decoder", "vae_encoder", "preview_decoder"):
        height, width = _limited(wanted.height, wanted.width)
        return Profile(name, {"B": Range.fixed(1), "h": height, "w": width})
    if component == _OF_AN_IMAGE:
        images = Range(1, 1, wanted.images.max)
        return Profile(name, {"B": images, "h": wanted.height, "w": wanted.width})
    for upscaler, its in manifest.upscalers.items():
        if component == UPSCALER_COMPONENT + upscaler:
            side = Range(min(UPSCALED, its.tile), its.tile, its.tile)
            return Profile("tiles", {"B": Range.fixed(1), "H": side, "W": side})
    raise EngineError(f"kdrt knows no sizes for the component '{component}', so cannot build it")


_OF_AN_IMAGE = "image"


def _part(manifest: Manifest, component: str) -> str:
    """The component whose sizes another has: the one that it can stand in for, the UNet for a
    ControlNet, and ``_OF_AN_IMAGE`` for what looks at a control's image alone."""
    for parts in manifest.variants.values():
        for part, other in parts.items():
            if other == component:
                return part
    for name in manifest.controls:
        if component == f"controlnet-{name}":
            return "unet"
        if component in (f"controlnet-{name}-hint", f"t2i-adapter-{name}"):
            return _OF_AN_IMAGE
    return component


def _sizes_of(manifest: Manifest, name: str) -> _Sizes:
    length = manifest.text_encoders[0].max_length
    tokens = Range(length, length, CHUNKS * length)
    latents = manifest.latents
    if name in NAMES:
        height, width = _SHAPES[manifest.family][name]
        return _Sizes(
            _range(latents.default_height, latents.scale, height),
            _range(latents.default_width, latents.scale, width),
            IMAGES,
            tokens,
        )
    match = _STATIC.fullmatch(name)
    if match is None:
        raise EngineError(
            f"'{name}' is no profile; choose {', '.join(NAMES)}, or static:HxWxB "
            f"(static:{latents.default_height}x{latents.default_width}x1: pixels and images)"
        )
    height_, width_, count = (int(match[group]) for group in (1, 2, 3))
    chosen = int(match[4]) if match[4] else length
    if count < 1 or chosen < 1:
        raise EngineError(f"'{name}' makes no image; write at least static:HxWx1")
    return _Sizes(
        Range.fixed(_latents(name, height_, latents)),
        Range.fixed(_latents(name, width_, latents)),
        Range.fixed(count),
        Range.fixed(chosen),
    )


def _range(pixels: int, scale: int, parts: _Sides) -> Range:
    least, best, most = (part * pixels / scale for part in parts)
    best_size = max(round(best), 1)
    return Range(max(math.floor(least), 1), best_size, max(math.ceil(most), best_size))


def _latents(name: str, pixels: int, latents: LatentFacts) -> int:
    if pixels < latents.scale or pixels % latents.scale:
        raise EngineError(
            f"the sides of '{name}' must be multiples of {latents.scale} pixels for this model"
        )
    return pixels // latents.scale


def _limited(height: Range, width: Range) -> tuple[Range, Range]:
    """The two ranges with their greatest area brought down to ``VAE_LATENTS``: the longer side
    first, and neither below its best size unless the best area is itself too large."""
    side = math.isqrt(VAE_LATENTS)
    if height.opt * width.opt > VAE_LATENTS:
        height, width = _up_to(height, side), _up_to(width, side)
        # What is larger is decoded in square tiles, and those must fit.
        tile = min(height.max, width.max)
        height, width = (Range(min(r.min, tile), r.opt, r.max) for r in (height, width))
        return height, width
    if height.max * width.max <= VAE_LATENTS:
        return height, width
    most = max(side, VAE_LATENTS // min(height.max, width.max))
    height, width = (_up_to(r, max(most, r.opt)) for r in (height, width))
    if height.max * width.max > VAE_LATENTS:
        width = _up_to(width, max(width.opt, VAE_LATENTS // height.max))
        height = _up_to(height, max(height.opt, VAE_LATENTS // width.max))
    return height, width


def _up_to(sizes: Range, most: int) -> Range:
    return Range(min(sizes.min, most), min(sizes.opt, most), min(sizes.max, most))


def _static_names(manifest: Manifest, dims: dict[str, int]) -> list[str]:
    if not {"h", "w"} <= dims.keys():
        return []
    scale = manifest.latents.scale
    rows = dims.get("B", 1)
    images = rows // 2 if rows % 2 == 0 and is_guided(manifest) else rows
    name = f"static:{dims['h'] * scale}x{dims['w'] * scale}x{images}"
    length = dims.get("L")
    if length is None or length == manifest.text_encoders[0].max_length:
        return [name]
    return [f"{name}x{length}"]
