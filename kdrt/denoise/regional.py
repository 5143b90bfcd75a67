"""Regional prompts: several predictions of an image, each with a prompt of its own, combined place
by place (Bar-Tal et al. 2023, "MultiDiffusion", arXiv:2302.08113, section 4.2).

With the weights mᵢ of the image's own prompt and of every region at a place of the latents, the
conditional result there is ``Σ mᵢ·Dᵢ / Σ mᵢ``. The denoised images Dᵢ are the same affine map of
the predictions, with which a combination whose weights sum to 1 commutes, so the predictions are
combined. Guidance follows, with one unconditional prediction for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_REGIONS = 8
"""Of an image. Each is a row of the UNet's batch."""


def relative_weights(masks: Tensor, weights: Sequence[float], base_weight: float) -> Tensor:
    """What each prompt counts for at each place.

    The image's own prompt counts ``base_weight`` everywhere, and fills what the masks leave
    open: 1 where there is none, the rest to 1 where they are grey.

    Args:
        masks: float32 ``[N, h, w]`` from 0 to 1, one of each region.
        weights: of each region, above 0.
        base_weight: of the image's own prompt, 0 or more.

    Returns:
        float32 ``[1 + N, 1, h, w]``: as in `kdrt.denoise.inputs.RegionalPrompts`, of one image.
    """
    open_left = (1 - masks.sum(0)).clamp(min=0)
    counts = torch.cat(
        [(base_weight + open_left)[None], masks * masks.new_tensor(weights)[:, None, None]]
    )
    return (counts / counts.sum(0))[:, None]


def no_regions(images: int, height: int, width: int, device: torch.device) -> Tensor:
    """Weights of images that have none: ``[B, 1 + MAX_REGIONS, 1, h, w]``."""
    weights = torch.zeros(images, 1 + MAX_REGIONS, 1, height, width, device=device)
    weights[:, 0] = 1
    return weights


def combined(predictions: Sequence[Tensor], weights: Sequence[Tensor], into: Tensor) -> Tensor:
    """``Σ wᵢ·pᵢ``, which allocates nothing; of predictions ``[B, C, h, w]`` and weights
    ``[B, 1, h, w]``."""
    torch.mul(predictions[0], weights[0], out=into)
    for prediction, weight in zip(predictions[1:], weights[1:], strict=False):
        into.addcmul_(prediction, weight)
    return into
