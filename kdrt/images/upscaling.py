"""Ways to enlarge an image between two passes, as latents or as pixels, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from PIL import Image

from kdrt.common.validation import unknown_word
from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    # Their names are read without torch.
    from torch import Tensor

    from kdrt.bundle import UpscalerFacts


@dataclass(frozen=True)
class LatentUpscaling:
    """Latents are enlarged as they are: fast, and the second pass has blur to work on.

    Attributes:
        label: the AUTOMATIC1111 web UI's name of it.
        mode: of `torch.nn.functional.interpolate`.
        antialias: likewise.
    """

    label: str
    mode: str
    antialias: bool = False

    def enlarged(self, latents: Tensor, height: int, width: int) -> Tensor:
        """``[B, C, h, w]`` as float32 ``[B, C, height, width]``."""
        import torch.nn.functional as F

        return F.interpolate(
            latents.float(), (height, width), mode=self.mode, antialias=self.antialias
        )


@dataclass(frozen=True)
class PixelUpscaling:
    """Latents are decoded, the pixels are enlarged, and encoded again.

    Attributes:
        label: the AUTOMATIC1111 web UI's name of it.
        resampling: Pillow's.
    """

    label: str
    resampling: Image.Resampling

    def enlarged(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """float32 ``[B, 3, h, w]`` as ``[B, 3, height, width]`` in [-1, 1], on the same device."""
        import torch

        from kdrt.images.masked_part import resized

        each = [resized(image, height, width, self.resampling) for image in pixels.cpu()]
        return torch.stack(each).clamp_(-1, 1).to(pixels.device)


Upscaling = LatentUpscaling | PixelUpscaling

UPSCALINGS: Mapping[str, Upscaling] = {
    "latent": LatentUpscaling("Latent", "bilinear"),
    "latent_antialiased": LatentUpscaling("Latent (antialiased)", "bilinear", antialias=True),
    "latent_bicubic": LatentUpscaling("Latent (bicubic)", "bicubic"),
    "latent_bicubic_antialiased": LatentUpscaling(
        "Latent (bicubic antialiased)", "bicubic", antialias=True
    ),
    "latent_nearest": LatentUpscaling("Latent (nearest)", "nearest"),
    "latent_nearest_exact": LatentUpscaling("Latent (nearest-exact)", "nearest-exact"),
    "lanczos": PixelUpscaling("Lanczos", Image.Resampling.LANCZOS),
    "nearest": PixelUpscaling("Nearest", Image.Resampling.NEAREST),
}
"""By name."""

_NO_MODELS: Mapping[str, UpscalerFacts] = MappingProxyType({})


def find_upscaler(name: object, models: Mapping[str, UpscalerFacts] = _NO_MODELS) -> str:
    """The name of an upscaler, of which case and punctuation do not matter, or the web UI's label.

    Args:
        name: as it was asked for.
        models: the networks of a bundle that enlarge images, by name.

    Raises:
        InvalidRequestError: there is none.
    """
    if isinstance(name, str):
        for known, label in upscaler_labels(models).items():
            if _folded(name) in (_folded(known), _folded(label)):
                return known
    raise InvalidRequestError(
        f"{unknown_word('hires_upscaler', name, [*UPSCALINGS, *models])} (`kdrt add upscaler "
        "BUNDLE FILE` gives a bundle a network that enlarges images)"
    )


def upscaler_labels(models: Mapping[str, UpscalerFacts] = _NO_MODELS) -> dict[str, str]:
    """What upscalers are called in the web UI, by name; networks of a bundle keep their name."""
    labels = {name: upscaling.label for name, upscaling in UPSCALINGS.items()}
    return labels | {name: name for name in models}


def _folded(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
