"""What the UNet is told besides the latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdrt.denoiser import FREEU_OFF
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
    """

    hidden: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    doubled: bool
    guidance_scale: float
    freeu: tuple[float, float, float, float] = FREEU_OFF

    @property
    def halves(self) -> int:
        """2 with an unconditional half, else 1."""
        return 2 if self.doubled else 1

    def split(self) -> list[Conditioning]:
        """The halves by themselves, the unconditional one first."""
        hidden = self.hidden.chunk(self.halves)
        if self.pooled is None:
            return [Conditioning(half, None) for half in hidden]
        pooled = self.pooled.chunk(self.halves)
        return [Conditioning(h, p) for h, p in zip(hidden, pooled, strict=True)]
