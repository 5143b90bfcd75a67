"""From a noise level to the numbers with which a network is called, and its result read.

A network is trained at variance-preserving scale; samplers work at variance-exploding scale,
``x = x₀ + σ·ε``. With the standard deviation d of the data and ``c = 1/√(σ² + d²)`` the network
sees ``c_in·x``, c_in = c, and the denoised images are ``c_skip·x + c_out·prediction`` (Karras et
al. 2022, equation 7), with scalars that depend on σ alone:

                                     c_skip     c_out
    noise (ε, d = 1)                 1          −σ         k-diffusion: DiscreteEpsDDPMDenoiser
    velocity (v)                     c²·d²      −c·d·σ     k-diffusion: DiscreteVDDPMDenoiser
    ε in the EDM formulation         c²·d²      c·d·σ      k-diffusion: layers.Denoiser
    the denoised images themselves   0          1

d is 1 except in the EDM formulation.

The numbers of a call are Python's where every operation is enqueued by itself; where a captured
call has to serve all noise levels, or images at different ones, they lie on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdrt.bundle import PredictionType
from kdrt.denoise.known_region import HARD
from kdrt.sampling import NoiseSchedule

Scalar = float | Tensor
"""A Python number; or a tensor on the device that broadcasts against ``[B, C, h, w]``."""


def host_scalar() -> Tensor:
    """A float32 tensor without dimensions, on the host, to fill with a factor of ``torch.mul``:
    that would make a tensor of a Python number at every call."""
    return torch.zeros((), dtype=torch.float32)


class Numbers(NamedTuple):
    """All that an evaluation of the denoiser needs to know of a noise level, and of guidance.

    Attributes:
        c_in, c_skip, c_out: see the module.
        timestep: of the network; on the device ``[B]``.
        guidance_scale: w in ``u + w·(c − u)``.
        rescale: φ of Lin et al. 2023, from 0 (off) to 1.
        guidance_method: 0 for CFG; the others, and the next two, are those of
            `kdrt.denoise.guidance_methods`.
        guidance_eta: η of adaptive projected guidance.
        guidance_threshold: its longest norm; infinity for any.
        pag_scale: s of `kdrt.denoise.perturbed_attention`.
        mask_threshold: see `kdrt.denoise.known_region.KnownRegion.threshold`.
        place: of the evaluation in its run, see `kdrt.denoise.progress`.
    """

    c_in: Scalar
    timestep: Scalar
    c_skip: Scalar
    c_out: Scalar
    guidance_scale: Scalar
    rescale: Scalar
    guidance_method: Scalar = 0.0
    guidance_eta: Scalar = 0.0
    guidance_threshold: Scalar = math.inf
    pag_scale: Scalar = 0.0
    mask_threshold: Scalar = HARD
    place: Scalar = 0.0

    @classmethod
    def of_rows(cls, rows: Tensor) -> Numbers:
        """Those that lie on the device: float32 ``[B, 12]``, a row for each image."""
        by_image = rows.view(*rows.shape, 1, 1, 1)
        c_in, _, *others = by_image.unbind(1)
        return cls(c_in, rows[:, 1], *others)


@dataclass(frozen=True)
class Scaling:
    """The scaling of one model.

    Attributes:
        prediction_type: what the UNet predicts.
        noise_schedule: gives the timestep of a σ.
        sigma_data: d of a model in the EDM formulation; None is any other model.
    """

    prediction_type: PredictionType
    noise_schedule: NoiseSchedule
    sigma_data: float | None = None

    @property
    def skips_whole(self) -> bool:
        """Whether c_skip is 1 at every noise level."""
        return self.prediction_type == "epsilon" and self.sigma_data is None

    def scalars(self, sigma: float) -> tuple[float, float, float, float]:
        """(c_in, timestep, c_skip, c_out) of a noise level."""
        data = 1.0 if self.sigma_data is None else self.sigma_data
        c_in = 1 / math.sqrt(sigma * sigma + data * data)
        if self.skips_whole:
            c_skip, c_out = 1.0, -sigma
        elif self.prediction_type == "sample":
            c_skip, c_out = 0.0, 1.0
        else:
            kept = c_in * data
            c_skip, c_out = kept * kept, sigma * kept
            if self.prediction_type == "v_prediction":
                c_out = -c_out
        return c_in, self.noise_schedule.timestep(sigma), c_skip, c_out
