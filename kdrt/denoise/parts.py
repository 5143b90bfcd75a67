"""Which rows of the UNet's batch an image has, and what the UNet made of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Parts(NamedTuple):
    """The parts of a batch of B images, with a row for each image in every part. In order: the
    unconditional one, the conditional one, which is always there, one for each region's prompt,
    and the perturbed one.

    Attributes:
        unconditional: without the prompt, for classifier-free guidance and some samplers.
        regions: prompts of `kdrt.denoise.regional`, beside the image's own.
        perturbed: of `kdrt.denoise.perturbed_attention`.
    """

    unconditional: bool = False
    regions: int = 0
    perturbed: bool = False

    @property
    def rows(self) -> int:
        """How many parts there are: the rows of the UNet that an image takes."""
        return 1 + self.unconditional + self.regions + self.perturbed

    @property
    def without_guidance(self) -> Parts:
        """Those with a prompt, which an evaluation outside of the guidance interval has."""
        return Parts(regions=self.regions)


class Predictions(NamedTuple):
    """What a UNet made of the parts of B images, float32 ``[B, C, h, w]`` each.

    Attributes:
        conditional: with the prompt.
        unconditional: without; None where no image has this part, and so for the others.
        regions: with the prompt of each region.
        perturbed: with the prompt, and without the structure that self-attention gives.
    """

    conditional: Tensor
    unconditional: Tensor | None = None
    regions: tuple[Tensor, ...] = ()
    perturbed: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Tensor, parts: Parts) -> Predictions:
        """Views of the predictions of a whole batch, ``[parts.rows · B, C, h, w]``."""
        rest = list(batch.chunk(parts.rows))
        unconditional = rest.pop(0) if parts.unconditional else None
        perturbed = rest.pop() if parts.perturbed else None
        return cls(rest[0], unconditional, tuple(rest[1:]), perturbed)
