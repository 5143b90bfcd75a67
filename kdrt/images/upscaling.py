"""Ways to enlarge an image between two passes, as latents or as pixels, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kdrt.images.masked_part import resized


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
