"""What a request will take at least, known before anything is allocated.

Of a request the latents, their noise and the decoded images are known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kdrt.bundle import LatentFacts
from kdrt.common.memory import free_memory, obtainable_memory
from kdrt.common.units import size
from kdrt.errors import InvalidRequestError

_FLOAT = 4


_WORTH_ASKING = 1 << 28
"""Bytes. Whoever needs less is let through, as asking takes longer than the answer is worth."""


def request_memory(
    facts: LatentFacts,
    images: int,
    height: int,
    width: int,
    *,
    draws: int = 0,
    controls: int = 0,
    decoded: bool,
) -> int:
    """Bytes that a request takes at least, whatever the networks need: the state of the sampler
    before and after a step, ``draws`` of noise, float32 pixels, once by image and once together,
    and those of so many ``controls``, which all images may share. Buffers that may be there from
    the request before do not count.
    """
    latents = images * facts.channels * (height // facts.scale) * (width // facts.scale) * _FLOAT
    pixels = images * 3 * height * width * _FLOAT if decoded else 0
    return (2 + draws) * latents + 2 * pixels + controls * 3 * height * width * _FLOAT


def check_request_fits(
    facts: LatentFacts,
    images: int,
    height: int,
    width: int,
    *,
    draws: int = 0,
    controls: int = 0,
    decoded: bool = True,
    device: torch.device,
) -> None:
    """Raises InvalidRequestError: the :func:`request_memory` is more than is free on ``device``."""
    needed = request_memory(
        facts, images, height, width, draws=draws, controls=controls, decoded=decoded
    )
    if needed < _WORTH_ASKING:
        return
    free = free_memory(device)
    if free is not None and needed > free:
        what = f"{images} images" if images > 1 else "an image"
        raise InvalidRequestError(
            f"{what} of {height} by {width} pixels"
            + (f" with {draws} draws of noise" if draws else "")
            + f" would take at least {size(needed)} of memory on {device.type}, and "
            f"{size(free)} are free: ask for fewer, smaller ones, or fewer steps"
        )


def check_unet_fits(needed: int, height: int, width: int) -> None:
    """Of a UNet on the CPU, where a system ends the process instead of refusing memory.

    Args:
        needed: bytes that it takes at least for an image of ``height`` by ``width`` pixels.

    Raises:
        InvalidRequestError: that is more than this process can have.
    """
    _check_obtainable("UNet", needed, height, width, "ask for a smaller one")


def check_decoder_fits(needed: int, height: int, width: int, is_tiled: Callable[[], bool]) -> None:
    """The same of a VAE decoder, unless it runs in tiles."""
    advice = "ask for a smaller one, or call pipe.vae.enable_tiling()"
    try:
        _check_obtainable("VAE decoder", needed, height, width, advice)
    except InvalidRequestError:
        if not is_tiled():  # asked last, as an engine may have to be loaded for it
            raise


def check_enlarged_fits(height: int, width: int) -> None:
    """The same of what a network makes that enlarges images: what its tiles are summed in, and a
    copy of that."""
    advice = "ask for a smaller one, or for another hires_upscaler"
    _check_obtainable("upscaler", 2 * 3 * height * width * _FLOAT, height, width, advice)


def _check_obtainable(network: str, needed: int, height: int, width: int, advice: str) -> None:
    if needed < _WORTH_ASKING:
        return
    most = obtainable_memory()
    if needed > most:
        raise InvalidRequestError(
            f"an image of {height} by {width} pixels would take at least {size(needed)} of memory "
            f"in the {network}, and at most {size(most)} can be had: {advice}"
        )
