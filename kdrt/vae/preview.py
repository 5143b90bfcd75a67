"""A first look at a picture in the making, for next to nothing.

The VAE's latents are nearly a small picture: every pixel of the preview is an affine function of
one latent, whose factors the export fits to the model's own VAE. A preview is as large as the
latents, an eighth of the picture's width and height. It shows what is where; how true its colours
are depends on how nearly linear the VAE is. A bundle may have a small decoder for previews (TAESD)
instead, which gives pictures of full size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from kdrt.bundle import LatentFacts
from kdrt.errors import InvalidRequest
from kdrt.images.output import to_images
from kdrt.sampling import Step
from kdrt.vae.coder import Decoder
from kdrt_engines import Engine


class Previewer:
    """From denoised latents to small pictures.

    Args:
        facts: of the model; ``preview`` holds the factors.
        engine: the ``preview_decoder`` component, which is used where there is one.
    """

    def __init__(self, facts: LatentFacts, engine: Engine | None = None) -> None:
        self._factors = None if facts.preview is None else torch.tensor(facts.preview)
        self._decoder = None if engine is None else Decoder(engine)

    @torch.no_grad()
    def __call__(self, denoised: Tensor) -> list[Image.Image]:
        """RGB pictures of ``denoised [B, C, h, w]``: ``w`` by ``h`` pixels each, or as large as the
        results where a preview decoder makes them.

        Raises:
            InvalidRequest: the bundle has neither factors nor decoder.
        """
        if self._decoder is not None:
            return _pictures(self._decoder(denoised))
        if self._factors is None:
            raise InvalidRequest(
                "this bundle was exported without previews; export the model again"
            )
        *weights, bias = self._factors.to(denoised.device)
        pixels = torch.einsum("bchw,cr->brhw", denoised.float(), torch.stack(weights))
        return _pictures(pixels + bias[:, None, None])


def _pictures(pixels: Tensor) -> list[Image.Image]:
    pictures = to_images(pixels, "pil")
    assert isinstance(pictures, list)
    return pictures


@dataclass(frozen=True, slots=True)
class PreviewStep(Step):
    """A completed step of a pipeline: `kdrt.Step`, and a look at the picture."""

    previewer: Callable[[Tensor], list[Image.Image]] = field(repr=False)
    decoder: Callable[[Tensor], Tensor] = field(repr=False)

    def preview(self) -> list[Image.Image]:
        """A small picture of each image as the model sees it now, without its noise.

        It reads the latents back, so on a GPU it waits for the step to be done.

        Raises:
            InvalidRequest: the bundle was exported without previews.
        """
        return self.previewer(self.denoised)

    def decode(self) -> list[Image.Image]:
        """The same in full: what the VAE makes of the picture as it stands, at the VAE's cost."""
        return _pictures(self.decoder(self.denoised))
