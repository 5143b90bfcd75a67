"""The denoiser: ``(x, σ) → denoised``, the one thing a sampler knows of the network.

A network is trained at variance-preserving scale; samplers work at variance-exploding scale,
``x = x₀ + σ·ε``. With the standard deviation d of the data and ``c = 1/√(σ² + d²)`` the network
sees ``c·x``, and the denoised images are ``skip·x + out·prediction`` (Karras et al. 2022,
equation 7), with numbers that depend on σ alone:

                                     skip       out
    noise (ε, d = 1)                 1          −σ         k-diffusion: DiscreteEpsDDPMDenoiser
    velocity (v)                     c²·d²      −c·d·σ     k-diffusion: DiscreteVDDPMDenoiser
    ε in the EDM formulation         c²·d²      c·d·σ      k-diffusion: layers.Denoiser
    the denoised images themselves   0          1

d is 1 but in the EDM formulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from kdrt.bundle import PredictionType
from kdrt.denoise.bound_unet import GUIDANCE_INPUT, BoundUNet, Number, host_number
from kdrt.denoise.shortcuts import Course, Evaluation, Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule
from kdrt_engines import Engine, EngineSpec

FREEU_OFF = (1.0, 1.0, 1.0, 1.0)
"""(b1, b2, s1, s2) at which FreeU is exactly the identity."""

_PLAIN = Evaluation()


def is_doubled(unet: EngineSpec, guidance_scale: float, *, asked: bool = False) -> bool:
    """Whether there is a second, unconditional half of the batch: where guidance or the sampler
    (``asked``) needs one, and never for a distilled model, which takes the guidance scale as an
    input."""
    return (asked or guidance_scale > 1) and not unet.has_input(GUIDANCE_INPUT)


class Denoiser:
    """A UNet bound to one set of sizes, and the guidance around it.

    :meth:`prepare` writes once what stays the same for a whole image. A call then writes the
    sample and the timestep, runs the UNet, and computes in float32 buffers of its own: it
    allocates nothing and reads nothing back.

    Args:
        unet: the engine.
        noise_schedule: gives the timestep of a σ.
        prediction_type: what the UNet predicts.
        sigma_data: d of a model in the EDM formulation; None is any other model.
        images: B, the number of images denoised together.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        doubled: run an unconditional half in front of the conditional one.
        shallow: gives the shallow UNet, asked when :meth:`prepare` first needs it.

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
        sigma_data: float | None = None,
        images: int,
        height: int,
        width: int,
        tokens: int,
        doubled: bool,
        shallow: Callable[[], Engine] | None = None,
    ) -> None:
        def bind(evaluation: Evaluation) -> BoundUNet:
            engine = unet
            if not evaluation.full:
                assert shallow is not None  # the request is refused where there is none
                engine = shallow()
            halves = 2 if doubled and evaluation.guided else 1
            return BoundUNet(
                engine, images=images, halves=halves, height=height, width=width, tokens=tokens
            )

        self._bind = bind
        self._networks = {_PLAIN: bind(_PLAIN)}
        """One for each kind of evaluation that was ever needed."""
        self._noise_schedule = noise_schedule
        self._prediction_type = prediction_type
        self._sigma_data = sigma_data
        self._skips_whole = prediction_type == "epsilon" and sigma_data is None
        self._shortcuts = Shortcuts()
        self._course = Course(self._shortcuts)
        self._guidance_scale = 1.0
        self._rescale = 0.0
        self._guidance_numbers = torch.zeros(2, device=unet.device)
        """Both again, where operations that run later read them."""

        self.extra_channels = self._networks[_PLAIN].extra_channels
        self._guided = torch.empty_like(self._networks[_PLAIN].predictions[0])
        self._denoised = torch.empty_like(self._guided)
        self._unconditional: Tensor | None = None
        self._keeps_unconditional = False
        self._wanted_std = self._guided.new_empty(images, 1, 1, 1)
        self._actual_std = torch.empty_like(self._wanted_std)
        self._one = torch.ones_like(self._wanted_std)
        self._skip = host_number()

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
        shortcuts: Shortcuts | None = None,
    ) -> None:
        """Write all that does not change from step to step, and begin a run.

        Args:
            positive: conditioning of B prompts.
            negative: the same for the unconditional half; None exactly if not doubled.
            guidance_scale: w in ``u + w·(c − u)``.
            guidance_rescale: φ of Lin et al. 2023, from 0 (off) to 1.
            time_ids: SDXL's size conditioning, ``[B, 6]`` (the refiner's ``[B, 5]``), or twice as
                many with the negative half first if doubled.
            freeu: (b1, b2, s1, s2).
            unconditional: offer :attr:`unconditional` too; only if doubled, and not with a
                guidance interval.
            shortcuts: which evaluations do less; a deep cache only with ``shallow``.

        Raises:
            ShapeError: the shallow engine does not allow these sizes.
        """
        self._shortcuts = shortcuts or Shortcuts()
        self._course = Course(self._shortcuts)
        self._keeps_unconditional = unconditional
        if unconditional and self._unconditional is None:
            self._unconditional = torch.empty_like(self._denoised)
        for evaluation in self._shortcuts.kinds():
            if evaluation not in self._networks:
                self._networks[evaluation] = self._bind(evaluation)
        halves = [positive] if negative is None else [negative, positive]
        for network in self._networks.values():
            network.write(halves, guidance_scale=guidance_scale, time_ids=time_ids, freeu=freeu)
        self._guidance_scale = guidance_scale
        self._rescale = guidance_rescale
        self._guidance_numbers.copy_(torch.tensor([guidance_scale, guidance_rescale]))

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
        for network in self._networks.values():
            network.write_extra_channels(channels)

    def prepare_image_prompt(self, tokens: Tensor | None, scale: float) -> None:
        """Write what an IP-Adapter's UNet attends to: tokens ``[B, N, D]``, or ``[2B, N, D]`` with
        the unconditional half first, and how much they count; None is exactly off."""
        for network in self._networks.values():
            network.write_image_prompt(tokens, scale)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise float32 ``x [B, C, h, w]`` at noise level ``sigma``: the next evaluation of the
        run that :meth:`prepare` began.

        Returns:
            float32 ``[B, C, h, w]``, overwritten by the next call.
        """
        evaluation = self._course.next(sigma)
        numbers = self.numbers(sigma)
        return self._evaluate(x, numbers, self._guidance_scale, self._rescale, evaluation)

    @torch.no_grad()
    def denoise(self, x: Tensor, numbers: Tensor, evaluation: Evaluation = _PLAIN) -> Tensor:
        """Denoise ``x`` with the :meth:`numbers` of a noise level, float32 ``[4]`` on its device.

        Whatever depends on the noise level or on the guidance scale is read on the device when
        the operations run, so a captured call serves every value of either. Which operations
        those are is up to the ``evaluation``, one of :meth:`evaluations`.
        """
        guidance_scale, rescale = self._guidance_numbers.unbind()
        return self._evaluate(x, numbers.unbind(), guidance_scale, rescale, evaluation)

    def numbers(self, sigma: float) -> tuple[float, float, float, float]:
        """(c, timestep, skip, out) of a noise level; see the module's docstring."""
        data = 1.0 if self._sigma_data is None else self._sigma_data
        scale = 1 / math.sqrt(sigma * sigma + data * data)
        if self._skips_whole:
            skip, out = 1.0, -sigma
        elif self._prediction_type == "sample":
            skip, out = 0.0, 1.0
        else:
            kept = scale * data
            skip, out = kept * kept, sigma * kept
            if self._prediction_type == "v_prediction":
                out = -out
        return scale, self._noise_schedule.timestep(sigma), skip, out

    def evaluations(self, sigmas: Iterable[float]) -> tuple[Evaluation, ...]:
        """What kind of evaluation each of a run at these noise levels is."""
        return self._shortcuts.evaluations(sigmas)

    def mode(self) -> Hashable:
        """What decides which operations a call enqueues, besides the sizes and the kind of
        evaluation."""
        return self._rescale > 0, self._keeps_unconditional, self._shortcuts.deep_cache is not None

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.held`."""
        return tuple(held for network in self._networks.values() for held in network.held())

    def _evaluate(
        self,
        x: Tensor,
        numbers: Sequence[Number],
        guidance_scale: Number,
        rescale: Number,
        evaluation: Evaluation,
    ) -> Tensor:
        scale, timestep, skip, out = numbers
        network = self._networks[evaluation]
        predictions = network.predict(x, scale, timestep)
        if evaluation.full and self._shortcuts.deep_cache is not None:
            self._networks[Evaluation(evaluation.guided, full=False)].take_deep_feature(network)

        guided = self._guided_prediction(predictions, guidance_scale, rescale)
        if self._keeps_unconditional and self._unconditional is not None:
            self._affine(x, skip, predictions[0], out, into=self._unconditional)
        return self._affine(x, skip, guided, out, into=self._denoised)

    def _affine(
        self, x: Tensor, skip: Number, prediction: Tensor, out: Number, *, into: Tensor
    ) -> Tensor:
        """``skip·x + out·prediction``; where skip is always 1 it costs no kernel."""
        if not self._skips_whole:
            factor = skip if isinstance(skip, Tensor) else self._skip.fill_(skip)
            x = torch.mul(x, factor, out=into)
        if isinstance(out, Tensor):
            return torch.addcmul(x, prediction, out, out=into)
        return torch.add(x, prediction, alpha=out, out=into)

    def _guided_prediction(
        self, predictions: Sequence[Tensor], guidance_scale: Number, rescale: Number
    ) -> Tensor:
        """Classifier-free guidance, ``u + w·(c − u)``.

        It is defined on the denoised images. Those are the same affine map of the two
        predictions, with which a combination whose weights sum to 1 commutes; done before the
        map it costs one kernel, and rescaling needs it there.
        """
        if len(predictions) == 1:
            return predictions[0]
        unconditional, conditional = predictions
        torch.lerp(unconditional, conditional, guidance_scale, out=self._guided)
        if self._rescale > 0:
            self._rescale_to(conditional, rescale)
        return self._guided

    def _rescale_to(self, conditional: Tensor, rescale: Number) -> None:
        """Pull each image's standard deviation towards that of the conditional prediction:
        ``φ·x·std(c)/std(x) + (1 − φ)·x`` (Lin et al. 2023, arXiv:2305.08891, equations 15–16).
        As in the paper x is the network's output, not the denoised image."""
        torch.std(conditional, dim=(1, 2, 3), keepdim=True, out=self._wanted_std)
        torch.std(self._guided, dim=(1, 2, 3), keepdim=True, out=self._actual_std)
        factor = self._wanted_std.div_(self._actual_std)
        self._guided.mul_(torch.lerp(self._one, factor, rescale, out=factor))
