"""A first look at a picture in the making, for next to nothing.

The VAE's latents are nearly a small picture: every pixel of the preview is an affine function of
one latent, whose factors the export fits to the model's own VAE. A preview is as large as the
latents, an eighth of the picture's width and height. It shows what is where; how true its colours
are depends on how nearly linear the VAE is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from kdrt.bundle import LatentFacts
from kdrt.errors import InvalidRequest
from kdrt.images import to_images
from kdrt.sampling import Step


class Previewer:
    """From denoised latents to small pictures.

    Args:
        facts: of the model; ``preview`` holds the factors.
    """

    def __init__(self, facts: LatentFacts) -> None:
        self._factors = None if facts.preview is None else torch.tensor(facts.preview)

    @torch.no_grad()
    def __call__(self, denoised: Tensor) -> list[Image.Image]:
        """RGB pictures of ``denoised [B, C, h, w]``, ``w`` by ``h`` pixels each.

        Raises:
            InvalidRequest: the bundle has no factors.
        """
        if self._factors is None:
            raise InvalidRequest(
                "this bundle was exported without previews; export the model again"
            )
        *weights, bias = self._factors.to(denoised.device)
        pixels = torch.einsum("bchw,cr->brhw", denoised.float(), torch.stack(weights))
        pictures = to_images(pixels + bias[:, None, None], "pil")
        assert isinstance(pictures, list)
        return pictures


@dataclass(frozen=True, slots=True)
class PreviewStep(Step):
    """A completed step of a pipeline: `kdrt.Step`, and a look at the picture."""

    previewer: Previewer = field(repr=False)
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
        pictures = to_images(self.decoder(self.denoised), "pil")
        assert isinstance(pictures, list)
        return pictures
