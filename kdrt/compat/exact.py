"""The removed pipelines' own arithmetic: k-diffusion's functions on an engine.

Operation by operation, and in the dtype of the embeddings, what CompVisDenoiser, CompVisVDenoiser
and the pipelines' guidance did. With a float32 engine that computes what the original networks
compute (``engine="torch"``, exported without fused projections) latents are equal bit by bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import write_image_prompt
from kdrt.bundle.components import IMAGE_TOKENS_INPUT
from kdrt.compat.conditions import Conditions
from kdrt.compat.grid import TrainingTable
from kdrt.compat.noise import Seeds
from kdrt.denoise.bound_unet import GUIDANCE_INPUT, guidance_embedding
from kdrt.errors import InvalidRequestError
from kdrt.sampling.k_diffusion import append_dims, k_diffusion_module
from kdrt_engines import Binding, Engine

StepCallback = Callable[[int, float, Tensor], None]
"""Called after a step with its number, the σ it began at, and the new latents."""

_NEED_TWO_STEPS = ("dpmpp_2m_sde", "dpmpp_3m_sde")
"""k-diffusion's crash in a single step; the result of that step is the denoised image."""


class ExactDenoiser:
    """``(x [B, C, h, w], sigma [B]) → denoised``, in the dtype of ``x``.

    Args:
        unet: the engine.
        table: gives the timestep of a σ.
        predicts_v: whether the UNet predicts v, not ε.
        conditions: what it is told.
        latents: a tensor of the shape that will be denoised.
    """

    def __init__(
        self,
        unet: Engine,
        table: TrainingTable,
        predicts_v: bool,
        conditions: Conditions,
        latents: Tensor,
    ) -> None:
        batch, _, height, width = latents.shape
        self._halves = conditions.halves
        self._binding: Binding = unet.bind(
            B=self._halves * batch, L=conditions.hidden.shape[1], h=height, w=width
        )
        self._table = table
        self._predicts_v = predicts_v
        self._guidance_scale = conditions.guidance_scale
        inputs = self._binding.inputs
        inputs["encoder_hidden_states"].copy_(conditions.hidden)
        if conditions.pooled is not None and conditions.time_ids is not None:
            inputs["text_embeds"].copy_(conditions.pooled)
            inputs["time_ids"].copy_(conditions.time_ids)
        if "freeu" in inputs:
            inputs["freeu"].copy_(torch.tensor(conditions.freeu))
        if IMAGE_TOKENS_INPUT in inputs:
            write_image_prompt(inputs, conditions.image_tokens, conditions.image_weights)
        if GUIDANCE_INPUT in inputs:
            embedding = inputs[GUIDANCE_INPUT]
            embedding.copy_(guidance_embedding(conditions.guidance_scale, embedding.shape[-1]))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self._halves == 1:
            return self._denoise(x, sigma)
        denoised = self._denoise(torch.cat([x] * 2), torch.cat([sigma] * 2))
        unconditional, conditional = denoised.chunk(2)
        return unconditional + self._guidance_scale * (conditional - unconditional)

    def _denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        c_in = append_dims(1 / (sigma**2 + 1.0) ** 0.5, x.ndim)
        inputs = self._binding.inputs
        inputs["sample"].copy_(x * c_in)
        inputs["timestep"].copy_(self._table.timestep(sigma))
        self._binding.run()
        prediction = self._binding.outputs["noise_pred"].to(x.dtype)
        if not self._predicts_v:
            return x + prediction * append_dims(-sigma, x.ndim)
        c_skip = append_dims(1.0 / (sigma**2 + 1.0), x.ndim)
        c_out = append_dims(-sigma / (sigma**2 + 1.0) ** 0.5, x.ndim)
        return prediction * c_out + x * c_skip


@torch.no_grad()
def run_exact(
    sampler: str,
    denoise: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    sigmas: Tensor,
    seeds: Callable[[], Seeds],
    callback: StepCallback,
) -> Tensor:
    """Sample with k-diffusion's own function.

    Args:
        sampler: its name without ``sample_``.
        denoise: ``(x, sigma [B]) → denoised``.
        latents: already scaled by ``sigmas[0]``.
        sigmas: the grid, in the dtype and on the device of the latents.
        seeds: asked for once, and only if the sampler draws from Brownian trees.
        callback: told of every step.

    Raises:
        InvalidRequestError: k-diffusion is not installed, or has no such sampler.
    """
    module = _sampling()
    function = exact_sampler(sampler)
    steps = len(sigmas) - 1
    if steps == 1 and sampler in _NEED_TWO_STEPS:
        result = denoise(latents, sigmas[0] * latents.new_ones([len(latents)]))
        callback(0, float(sigmas[0]), result)
        return result
    options: dict[str, Any] = {}
    if "noise_sampler" in inspect.signature(function).parameters:
        positive = sigmas[sigmas > 0]
        options["noise_sampler"] = module.BrownianTreeNoiseSampler(
            latents, positive.min(), sigmas.max(), seeds()
        )

    def report(state: dict[str, Any]) -> None:
        # k-diffusion tells of a step before it is taken: its x is what the step before gave.
        if state["i"] > 0:
            callback(state["i"] - 1, float(sigmas[state["i"] - 1]), state["x"])

    result = function(denoise, latents, sigmas, callback=report, disable=True, **options)
    callback(steps - 1, float(sigmas[steps - 1]), result)
    return result


def exact_sampler(name: str) -> Callable[..., Tensor]:
    """k-diffusion's function of a sampler that walks a grid.

    Raises:
        InvalidRequestError: k-diffusion is not installed, or has no such sampler.
    """
    found: Any = getattr(_sampling(), f"sample_{name}", None)
    if found is None or list(inspect.signature(found).parameters)[2:3] != ["sigmas"]:
        raise InvalidRequestError(
            f"the original pipelines cannot run {name!r}, as k-diffusion has no such sampler that "
            "walks a grid of sigmas; leave exact=True out, or choose another sampler"
        )
    function: Callable[..., Tensor] = found
    return function


def _sampling() -> ModuleType:
    return k_diffusion_module("sampling", "exact=True")
