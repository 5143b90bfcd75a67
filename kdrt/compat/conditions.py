"""What the UNet is told besides the latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kdrt.denoise.denoiser import FREEU_OFF
from kdrt.prompt import Conditioning


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told, for the whole batch: the unconditional half first, where there is
    one.

    Attributes:
        hidden: ``[n·B, L, D]``, n 2 with guidance and 1 without.
        pooled: SDXL's ``[n·B, P]``.
        time_ids: SDXL's ``[n·B, 6]``.
        doubled: whether n is 2.
        guidance_scale: w in ``u + w·(c − u)``.
        freeu: (b1, b2, s1, s2).
        image_tokens: what an IP-Adapter makes of images, ``[n·B, N, D]``; None without.
        image_scale: how much they count.
    """

    hidden: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    doubled: bool
    guidance_scale: float
    freeu: tuple[float, float, float, float] = FREEU_OFF
    image_tokens: Tensor | None = None
    image_scale: float = 1.0

    @property
    def halves(self) -> int:
        """2 with an unconditional half, else 1."""
        return 2 if self.doubled else 1

    def one(self, image: int) -> Conditions:
        """Those of one image alone."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[image :: len(tensor) // self.halves]

        return replace(
            self,
            hidden=self.hidden[image :: len(self.hidden) // self.halves],
            pooled=rows(self.pooled),
            time_ids=rows(self.time_ids),
            image_tokens=rows(self.image_tokens),
        )

    def split(self) -> list[Conditioning]:
        """The halves by themselves, the unconditional one first."""
        hidden = self.hidden.chunk(self.halves)
        if self.pooled is None:
            return [Conditioning(half, None) for half in hidden]
        pooled = self.pooled.chunk(self.halves)
        return [Conditioning(h, p) for h, p in zip(hidden, pooled, strict=True)]
