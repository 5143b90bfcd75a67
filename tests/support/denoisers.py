"""Denoisers to test samplers with: one that is rough, and two whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def rough(channels: int, dtype: torch.dtype = torch.float64) -> Denoise:
    """A fixed random two-layer network over the channels, preconditioned as in Karras et al."""
    generator = torch.Generator().manual_seed(1)

    def weights(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (values / math.sqrt(shape[-1])).to(dtype)

    inward, bias, outward = weights(16, channels), weights(16, 2), weights(channels, 16)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        scale = 1 / math.sqrt(1 + sigma * sigma)
        shift = (bias @ torch.tensor([1.0, math.log(sigma)], dtype=dtype))[:, None, None]
        hidden = torch.tanh(torch.einsum("oc,bchw->bohw", inward, x * scale) + shift)
        return x * scale**2 + torch.einsum("co,bohw->bchw", outward, hidden) * sigma * scale

    return denoise


class unguided:
    """A denoiser without guidance, for samplers that ask for the result without guidance too."""

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.unconditional = self._denoise(x, sigma)
        return self.unconditional


def gaussian(variance: float) -> Denoise:
    """The posterior mean for data N(0, variance): linear in x."""
    return lambda x, sigma: x * (variance / (variance + sigma * sigma))


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The posterior mean for a mixture of three Gaussians in the plane; ``x`` is [B, 2]."""
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]], dtype=x.dtype)
    variances = torch.tensor([0.20, 0.12, 0.30], dtype=x.dtype)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=x.dtype)
    offsets = x[:, None, :] - means
    spread = variances + sigma * sigma
    # In two dimensions a Gaussian's peak falls with its variance.
    logits = shares.log() - spread.log() - offsets.square().sum(-1) / (2 * spread)
    means_given_x = means + (variances / spread)[:, None] * offsets
    return (logits.softmax(-1)[..., None] * means_given_x).sum(1)


def flow(denoise: Denoise, x: Tensor, sigma: float, sigma_end: float, steps: int = 400) -> Tensor:
    """The exact end of dx/dλ = D - x, λ = -ln σ (the probability flow), by classical RK4."""
    h = math.log(sigma / sigma_end) / steps

    def slope(x: Tensor, step: float) -> Tensor:
        return denoise(x, sigma * math.exp(-step * h)) - x

    for step in range(steps):
        k1 = slope(x, step)
        k2 = slope(x + h / 2 * k1, step + 0.5)
        k3 = slope(x + h / 2 * k2, step + 0.5)
        k4 = slope(x + h * k3, step + 1)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
