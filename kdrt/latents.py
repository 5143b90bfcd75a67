"""From latents to pixels, and the refusal to show a broken picture."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.errors import NonFiniteError
from kdrt.recent import Recent
from kdrt_engines import Binding, Engine

_BINDINGS = 4


class Decoder:
    """The VAE's decoder, run on a slice of the batch at a time.

    Decoding is what needs most memory, and needs it for every picture at once. In slices of one,
    the default, the peak does not grow with the batch, and neither does a picture depend on it.

    Args:
        engine: the ``vae_decoder`` component.
        batch: the most pictures decoded together.
    """

    def __init__(self, engine: Engine, batch: int = 1) -> None:
        self._engine = engine
        self._batch = batch
        self._bindings: Recent[tuple[int, int, int], Binding] = Recent(_BINDINGS)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Decode ``latents [B, C, h, w]`` to float32 ``[B, 3, H, W]`` in about [-1, 1].

        Raises:
            NonFiniteError: a pixel is not finite.
            ShapeError: the engine does not allow this size.
        """
        starts = range(0, len(latents), self._batch)
        pixels = torch.cat([self._decode(latents[i : i + self._batch]) for i in starts])
        if not _is_finite(pixels):
            raise NonFiniteError(
                "the VAE's decoder gave pixels that are not finite, as it does where it overflows "
                "in float16; export the model with --precision fp32 or bf16"
            )
        return pixels

    def _decode(self, latents: Tensor) -> Tensor:
        count, _, height, width = latents.shape
        binding = self._bindings.get(
            (count, height, width), lambda: self._engine.bind(B=count, h=height, w=width)
        )
        binding.inputs["latents"].copy_(latents)
        binding.run()
        return binding.outputs["image"].to(torch.float32, copy=True)


def check_latents(latents: Tensor) -> None:
    """Raise NonFiniteError unless every latent is finite."""
    if not _is_finite(latents):
        raise NonFiniteError(
            "sampling ended in latents that are not finite: the UNet overflowed, or the sampler "
            "diverged; lower guidance_scale, take more steps or the default sampler_options, or "
            "export the model with --precision fp32 or bf16"
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
