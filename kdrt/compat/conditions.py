"""The conditioning of the UNet, as the drop-in classes build it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdrt.adapters.ip_adapter import ImageWeights
from kdrt.denoise.freeu import FREEU_OFF, FreeU
from kdrt.denoise.inputs import DenoiserInputs, UNetConditioning
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule


@dataclass(frozen=True)
class Conditions:
    """The conditioning for the whole batch: the unconditional half first, if there is one.

    Attributes:
        hidden: ``[n·B, L, D]``, n 2 with guidance and 1 without.
        pooled: SDXL's ``[n·B, P]``.
        time_ids: SDXL's ``[n·B, 6]``.
        doubled: whether n is 2.
        guidance_scale: w in ``u + w·(c − u)``.
        freeu: (b1, b2, s1, s2).
        image_tokens: what IP-Adapters make of images, ``[n·B, N, D]``; None without.
        image_weights: how much they count.
    """

    hidden: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    doubled: bool
    guidance_scale: float
    freeu: FreeU = FREEU_OFF
    image_tokens: Tensor | None = None
    image_weights: ImageWeights | None = None

    @property
    def halves(self) -> int:
        """2 with an unconditional half, else 1."""
        return 2 if self.doubled else 1

    def inputs(self, noise_schedule: NoiseSchedule) -> DenoiserInputs:
        """The same, by halves, as kdrt's own denoiser takes it."""
        parts = (self.hidden, self.pooled, self.time_ids, self.image_tokens)
        by_half = zip(*(self._split(part) for part in parts), strict=True)
        *negative, positive = (
            UNetConditioning(Conditioning(hidden, pooled), time_ids, image_tokens)
            for hidden, pooled, time_ids, image_tokens in by_half
        )
        return DenoiserInputs(
            positive=positive,
            negative=negative[0] if negative else None,
            guidance_scale=self.guidance_scale,
            freeu=self.freeu,
            image_weights=self.image_weights,
            noise_schedule=noise_schedule,
        )

    def _split(self, rows: Tensor | None) -> Sequence[Any]:
        return [None] * self.halves if rows is None else rows.chunk(self.halves)
