"""A first look at an image in the making, for next to nothing.

The VAE's latents are nearly a small image: every pixel of the preview is an affine function of
one latent, whose factors the export fits to the model's own VAE. A preview is as large as the
latents, an eighth of the image's width and height. It shows what is where; how true its colours
are depends on how nearly linear the VAE is. A bundle may have a small decoder for previews (TAESD)
instead, which gives images of full size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from kdrt.bundle import LatentFacts
from kdrt.errors import InvalidRequestError
from kdrt.images.output import to_images
from kdrt.sampling import Step
from kdrt.vae.coder import Decoder
from kdrt_engines import Engine


class Previewer:
    """From denoised latents to small images.

    Args:
        facts: of the model; ``preview`` holds the factors.
        engine: the ``preview_decoder`` component, which is used where there is one.
    """

    def __init__(self, facts: LatentFacts, engine: Engine | None = None) -> None:
        self._factors = None if facts.preview is None else torch.tensor(facts.preview)
        self._decoder = None if engine is None else Decoder(engine)

    @torch.no_grad()
    def __call__(self, denoised: Tensor) -> list[Image.Image]:
        """RGB images of ``denoised [B, C, h, w]``: ``w`` by ``h`` pixels each, or as large as the
        results where a preview decoder makes them.

        Raises:
            InvalidRequestError: the bundle has neither factors nor decoder.
        """
        if self._decoder is not None:
            return _images(self._decoder(denoised))
        if self._factors is None:
            raise InvalidRequestError(
                "this bundle was exported without previews; export the model again"
            )
        *weights, bias = self._factors.to(denoised.device)
        pixels = torch.einsum("bchw,cr->brhw", denoised.float(), torch.stack(weights))
        return _images(pixels + bias[:, None, None])


def _images(pixels: Tensor) -> list[Image.Image]:
    images = to_images(pixels, "pil")
    assert isinstance(images, list)
    return images


@dataclass(frozen=True, slots=True)
class PreviewStep(Step):
    """A completed step of a pipeline: a `kdrt.Step` that can also show the image so far."""

    previewer: Callable[[Tensor], list[Image.Image]] = field(repr=False)
    decoder: Callable[[Tensor], Tensor] = field(repr=False)

    def preview(self) -> list[Image.Image]:
        """A preview of each image as the model sees it now, without its noise: as small as the
        latents, or full-size if the bundle has a preview decoder.

        This reads the latents back, so on a GPU it waits until the step is done.

        Raises:
            InvalidRequestError: the bundle was exported without previews.
        """
        return self.previewer(self.denoised)

    def decode(self) -> list[Image.Image]:
        """The same at full size, decoded by the VAE, which costs as much as decoding a final
        image."""
        return _images(self.decoder(self.denoised))


def with_previews(
    steps: Iterator[Step],
    preview: Callable[[Tensor], list[Image.Image]],
    decode: Callable[[Tensor], Tensor],
    *,
    taken: int = 0,
) -> Generator[PreviewStep, None, Tensor]:
    """Steps that can be looked at; the latents ``[B, C, h, w]`` of the last are the result.

    Args:
        steps: of a run, at least one.
        preview: a `Previewer`.
        decode: the VAE's decoder.
        taken: steps that an earlier pass has taken, which count too.
    """
    for step in steps:
        index = taken + step.index
        yield PreviewStep(
            index, step.sigma, step.sigma_next, step.latents, step.denoised, preview, decode
        )
    return step.latents.clone()  # others may use the buffers before this is decoded
