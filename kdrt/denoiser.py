"""The denoiser: ``(x, σ) → denoised``, the one thing a sampler knows of the network.

A network is trained at variance-preserving scale and predicts ε or v; samplers work at
variance-exploding scale, ``x = x₀ + σ·ε``. With ``c = 1/√(σ² + 1)`` the network sees ``c·x``, and

    ε:  denoised = x − σ·ε                  v:  denoised = c²·x − c·σ·v

Both are ``skip·x + out·prediction`` with numbers that depend on σ alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import write_image_prompt
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule
from kdrt_engines import Engine, EngineSpec

PredictionType = Literal["epsilon", "v_prediction"]

FREEU_OFF = (1.0, 1.0, 1.0, 1.0)
"""(b1, b2, s1, s2) at which FreeU is exactly the identity."""

GUIDANCE_INPUT = "timestep_cond"
"""The input of distilled models, which take the guidance scale as an embedding."""


def is_doubled(unet: EngineSpec, guidance_scale: float, *, asked: bool = False) -> bool:
    """Whether there is a second, unconditional half of the batch: where guidance or the sampler
    (``asked``) needs one, and never for a distilled model, which takes the guidance scale as an
    input."""
    return (asked or guidance_scale > 1) and not unet.has_input(GUIDANCE_INPUT)


def guidance_embedding(guidance_scale: float, size: int) -> Tensor:
    """The guidance scale as sines and cosines, float32 ``[size]`` (Luo et al. 2023, "Latent
    Consistency Models", on w = guidance_scale − 1)."""
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32) / max(half - 1, 1)
    angles = 1000.0 * (guidance_scale - 1) * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(size - 2 * half)])


class Denoiser:
    """A UNet bound to one set of sizes, and the guidance around it.

    :meth:`prepare` writes once what stays the same for a whole picture. A call then writes the
    sample and the timestep, runs the UNet, and computes in float32 buffers of its own: it
    allocates nothing and reads nothing back.

    Args:
        unet: the engine.
        noise_schedule: gives the timestep of a σ.
        prediction_type: what the UNet predicts.
        images: B, the number of pictures denoised together.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        doubled: run an unconditional half in front of the conditional one.

    Attributes:
        extra_channels: channels of the UNet's sample beyond the latents': inpainting models have
            some, which :meth:`write_extra_channels` fills.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self,
        unet: Engine,
        noise_schedule: NoiseSchedule,
        prediction_type: PredictionType,
        *,
        images: int,
        height: int,
        width: int,
        tokens: int,
        doubled: bool,
    ) -> None:
        halves = 2 if doubled else 1
        self._binding = unet.bind(B=halves * images, L=tokens, h=height, w=width)
        self._noise_schedule = noise_schedule
        self._predicts_v = prediction_type == "v_prediction"
        self._guidance_scale = 1.0
        self._rescale = 0.0

        # Views are made here, not in each step. The unconditional half comes first.
        inputs = self._binding.inputs
        channels = self._binding.outputs["noise_pred"].shape[1]
        self.extra_channels: int = inputs["sample"].shape[1] - channels
        self._extra = inputs["sample"][:, channels:].chunk(halves)
        self._samples = inputs["sample"][:, :channels].chunk(halves)
        self._timestep = inputs["timestep"]
        self._noise_pred = self._binding.outputs["noise_pred"]
        self._prediction = self._noise_pred
        if self._noise_pred.dtype != torch.float32:
            # Guidance amplifies differences: they must not be taken in half precision.
            self._prediction = torch.empty_like(self._noise_pred, dtype=torch.float32)
        self._predictions = self._prediction.chunk(halves)
        self._guided = torch.empty_like(self._predictions[0])
        self._denoised = torch.empty_like(self._predictions[0])
        self._unconditional: Tensor | None = None
        self._keeps_unconditional = False
        self._wanted_std = self._guided.new_empty(images, 1, 1, 1)
        self._actual_std = torch.empty_like(self._wanted_std)

    @torch.no_grad()
    def prepare(
        self,
        positive: Conditioning,
        negative: Conditioning | None,
        *,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        time_ids: Tensor | None = None,
        freeu: tuple[float, float, float, float] = FREEU_OFF,
        unconditional: bool = False,
    ) -> None:
        """Write all that does not change from step to step.

        Args:
            positive: conditioning of B prompts.
            negative: the same for the unconditional half; None exactly if not doubled.
            guidance_scale: w in ``u + w·(c − u)``.
            guidance_rescale: φ of Lin et al. 2023, from 0 (off) to 1.
            time_ids: SDXL's size conditioning, ``[B, 6]`` (the refiner's ``[B, 5]``), or twice as
                many with the negative half first if doubled.
            freeu: (b1, b2, s1, s2).
            unconditional: offer :attr:`unconditional` too; only if doubled.
        """
        self._keeps_unconditional = unconditional
        if unconditional and self._unconditional is None:
            self._unconditional = torch.empty_like(self._denoised)
        halves = [positive] if negative is None else [negative, positive]
        inputs = self._binding.inputs
        inputs["encoder_hidden_states"].copy_(torch.cat([h.encoder_hidden_states for h in halves]))
        pooled = [half.text_embeds for half in halves if half.text_embeds is not None]
        if "text_embeds" in inputs:
            inputs["text_embeds"].copy_(torch.cat(pooled))
        if time_ids is not None:
            inputs["time_ids"].copy_(time_ids)
        if "freeu" in inputs:
            inputs["freeu"].copy_(torch.tensor(freeu))
        if GUIDANCE_INPUT in inputs:
            embedding = inputs[GUIDANCE_INPUT]
            embedding.copy_(guidance_embedding(guidance_scale, embedding.shape[-1]))
        self._guidance_scale = guidance_scale
        self._rescale = guidance_rescale

    @property
    def unconditional(self) -> Tensor:
        """The last result without guidance, which CFG++ samplers need: float32 ``[B, C, h, w]``,
        overwritten by the next call.

        Raises:
            RuntimeError: :meth:`prepare` was not told to keep it.
        """
        if self._unconditional is None or not self._keeps_unconditional:
            raise RuntimeError("this denoiser was not prepared to keep its unconditional results")
        return self._unconditional

    @torch.no_grad()
    def write_extra_channels(self, channels: Tensor) -> None:
        """Write once what an inpainting UNet sees in every step besides the sample: ``[B,
        extra_channels, h, w]``. Unlike the sample it is not scaled with the noise."""
        for half in self._extra:
            half.copy_(channels)

    def prepare_image_prompt(self, tokens: Tensor | None, scale: float) -> None:
        """Write what an IP-Adapter's UNet attends to: tokens ``[B, N, D]``, or ``[2B, N, D]`` with
        the unconditional half first, and how much they count; None is exactly off."""
        write_image_prompt(self._binding.inputs, tokens, scale)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise float32 ``x [B, C, h, w]`` at noise level ``sigma``.

        Returns:
            float32 ``[B, C, h, w]``, overwritten by the next call.
        """
        scale = 1 / math.sqrt(sigma * sigma + 1)
        for half in self._samples:
            torch.mul(x, scale, out=half)
        self._timestep.fill_(self._noise_schedule.timestep(sigma))
        self._binding.run()
        if self._prediction is not self._noise_pred:
            self._prediction.copy_(self._noise_pred)

        guided = self._guided_prediction()
        skip, out = (scale * scale, -sigma * scale) if self._predicts_v else (1.0, -sigma)
        if self._keeps_unconditional and self._unconditional is not None:
            self._affine(x, skip, self._predictions[0], out, into=self._unconditional)
        return self._affine(x, skip, guided, out, into=self._denoised)

    def _affine(
        self, x: Tensor, skip: float, prediction: Tensor, out: float, *, into: Tensor
    ) -> Tensor:
        """``skip·x + out·prediction``; a skip of 1 spares a kernel."""
        if skip == 1:
            return torch.add(x, prediction, alpha=out, out=into)
        return torch.mul(x, skip, out=into).add_(prediction, alpha=out)

    def _guided_prediction(self) -> Tensor:
        """Classifier-free guidance, ``u + w·(c − u)``.

        It is defined on the denoised pictures. Those are the same affine map of the two
        predictions, with which a combination whose weights sum to 1 commutes; done before the
        map it costs one kernel, and rescaling needs it there.
        """
        if len(self._predictions) == 1:
            return self._predictions[0]
        unconditional, conditional = self._predictions
        torch.lerp(unconditional, conditional, self._guidance_scale, out=self._guided)
        if self._rescale > 0:
            self._rescale_to(conditional)
        return self._guided

    def _rescale_to(self, conditional: Tensor) -> None:
        """Pull each picture's standard deviation towards that of the conditional prediction:
        ``φ·x·std(c)/std(x) + (1 − φ)·x`` (Lin et al. 2023, arXiv:2305.08891, equations 15–16).
        As in the paper x is the network's output, not the denoised picture."""
        torch.std(conditional, dim=(1, 2, 3), keepdim=True, out=self._wanted_std)
        torch.std(self._guided, dim=(1, 2, 3), keepdim=True, out=self._actual_std)
        factor = self._wanted_std.div_(self._actual_std)
        self._guided.mul_(factor.mul_(self._rescale).add_(1 - self._rescale))
