"""Other ways to combine the results with and without guidance than classifier-free guidance (CFG).

All of them work on the denoised images, D_c with the prompt and D_u without, image by image, and
take no further evaluation. With w the guidance scale, CFG is ``D_u + w·(D_c − D_u)``.

    apg             adaptive projected guidance: the part of D_c − D_u along D_c, which saturates
                    colours, counts less, and the whole is kept from growing too long (Sadat et al.
                    2024, arXiv:2410.02416; without the paper's momentum)
    cfg_zero_star   CFG-Zero*: the direction without the prompt is first scaled to fit the one with
                    it (Fan et al. 2025, arXiv:2503.18886, section 4.1; without the paper's first
                    steps of zero, which are for flow models)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.common.literals import GuidanceMethodName
from kdrt.denoise.scaling import Numbers, Scalar

APG, ZERO_STAR = 1.0, 2.0
"""The methods as numbers, for tables on the device; CFG is 0."""

_CODES = {"cfg": 0.0, "apg": APG, "cfg_zero_star": ZERO_STAR}
_ALL = (1, 2, 3)
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class GuidanceMethod:
    """How the results with and without guidance are combined.

    Attributes:
        name: see the module.
        eta: of ``apg``: how much the part along D_c counts; 1 is as much as in CFG.
        threshold: of ``apg``: D_c − D_u is shortened to this Euclidean norm, over all latents of an
            image; 0 leaves it as it is.
    """

    name: GuidanceMethodName = "cfg"
    eta: float = 0.0
    threshold: float = 0.0

    @property
    def numbers(self) -> tuple[float, float, float]:
        """For `kdrt.denoise.scaling.Numbers`: method, eta and threshold."""
        return _CODES[self.name], self.eta, self.threshold or math.inf

    @property
    def is_apg(self) -> bool:
        return self.name == "apg"

    @property
    def is_zero_star(self) -> bool:
        return self.name == "cfg_zero_star"


CFG = GuidanceMethod()


class MethodBuffers:
    """The arithmetic of the methods for B images, in float32 buffers made before.

    Args:
        like: float32 ``[B, C, h, w]``.
    """

    def __init__(self, like: Tensor) -> None:
        self.conditional = torch.empty_like(like)
        self.unconditional = torch.empty_like(like)
        self._first, self._second = torch.empty_like(like), torch.empty_like(like)
        by_image = like.new_empty(6, len(like), 1, 1, 1)
        self._dot, self._square, self._factor, *told = by_image.unbind()
        self._told = tuple(told)
        self._is_meant = torch.empty_like(self._dot, dtype=torch.bool)
        # Compared with a Python number, they would be made anew at every call.
        self._apg, self._zero_star = like.new_full((), APG), like.new_full((), ZERO_STAR)

    def apg(self, numbers: Numbers, into: Tensor) -> None:
        """Adaptive projected guidance, for the images whose method it is.

        With Δ = D_c − D_u and the threshold r: ``D_c + (w − 1)·min(1, r/‖Δ‖)·(Δ − (1 − η)·Δ∥)``,
        where Δ∥ is the projection of Δ on D_c.

        Args:
            numbers: hold w, the method, η and r.
            into: the result; that of other images stays.
        """
        told = (numbers.guidance_scale, numbers.guidance_eta, numbers.guidance_threshold)
        scale, eta, threshold = self._by_image(told)
        along, difference = self.conditional, self._first
        torch.sub(along, self.unconditional, out=difference)
        self._sum_of_products(difference, difference, self._square)
        # A norm of 0 gives infinity here, and 1 after the limit.
        torch.div(threshold, self._square.sqrt_(), out=self._factor).clamp_(max=1)

        self._sum_of_products(difference, along, self._dot)
        self._sum_of_products(along, along, self._square)
        kept_out = self._dot.div_(self._square.clamp_(min=_TINY))  # Δ∥ is this times D_c
        kept_out.addcmul_(kept_out, eta, value=-1)
        difference.addcmul_(along, kept_out, value=-1)

        less_guidance = torch.addcmul(self._factor, self._factor, scale, value=-1, out=self._square)
        torch.addcmul(along, difference, less_guidance, value=-1, out=self._second)
        self._keep(numbers, self._apg, into)

    def zero_star(self, x: Tensor, numbers: Numbers, into: Tensor) -> None:
        """CFG-Zero*, for the images whose method it is.

        The direction of the flow is x − D, up to a factor that cancels. With R_c and R_u for the
        two and ``s = R_c·R_u / ‖R_u‖²``: ``x − (s·R_u + w·(R_c − s·R_u))``.

        Args:
            x: the state, ``[B, C, h, w]``.
            numbers: hold w and the method.
            into: the result; that of other images stays.
        """
        (scale,) = self._by_image((numbers.guidance_scale,))
        torch.sub(x, self.conditional, out=self._first)
        torch.sub(x, self.unconditional, out=self._second)
        self._sum_of_products(self._second, self._second, self._square, work=self.unconditional)
        self._sum_of_products(self._first, self._second, self._dot, work=self.unconditional)
        self._second.mul_(self._dot.div_(self._square.clamp_(min=_TINY)))
        self._second.lerp_(self._first, scale)
        torch.sub(x, self._second, out=self._second)
        self._keep(numbers, self._zero_star, into)

    def _by_image(self, numbers: tuple[Scalar, ...]) -> list[Tensor]:
        """As tensors that broadcast against images: Python's numbers are written into buffers."""
        return [
            number if isinstance(number, Tensor) else buffer.fill_(number)
            for number, buffer in zip(numbers, self._told, strict=False)
        ]

    def _sum_of_products(
        self, one: Tensor, other: Tensor, out: Tensor, *, work: Tensor | None = None
    ) -> None:
        """The scalar product of two images, for each: ``[B, 1, 1, 1]``."""
        work = self._second if work is None else work
        torch.mul(one, other, out=work)
        torch.sum(work, _ALL, keepdim=True, out=out)

    def _keep(self, numbers: Numbers, method: Tensor, into: Tensor) -> None:
        """Put the result into that of the images whose method it is."""
        (told,) = self._by_image((numbers.guidance_method,))
        torch.eq(told, method, out=self._is_meant)
        torch.where(self._is_meant, self._second, into, out=into)
