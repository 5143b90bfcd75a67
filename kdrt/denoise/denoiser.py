"""The denoiser: ``(x, σ) → denoised``, the one thing a sampler knows of the network.

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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from kdrt.bundle import PredictionType
from kdrt.denoise.bound_unet import GUIDANCE_INPUT, BoundUNet, Scalar, host_scalar
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.shortcuts import (
    NO_SHORTCUTS,
    WHOLE,
    DenoiseByKind,
    DenoiseInOrder,
    EvaluationKind,
    Shortcuts,
)
from kdrt.sampling import Denoise, NoiseSchedule
from kdrt_engines import Engine, EngineSpec


def is_doubled(unet: EngineSpec, guidance_scale: float, *, asked: bool = False) -> bool:
    """Whether there is a second, unconditional half of the batch: where guidance or the sampler
    (``asked``) needs one, and never for a distilled model, which takes the guidance scale as an
    input."""
    return (asked or guidance_scale > 1) and not unet.has_input(GUIDANCE_INPUT)


def for_one_run(denoise: DenoiseByKind, shortcuts: Shortcuts) -> Denoise:
    """A denoiser whose calls are the evaluations of one run, in order."""
    return denoise if shortcuts == NO_SHORTCUTS else DenoiseInOrder(denoise, shortcuts)


class Denoiser:
    """A UNet bound to one set of sizes, and the guidance around it.

    :meth:`prepare` writes what stays the same for a whole run. A call then writes the sample and
    the timestep, runs the UNet, and computes in float32 buffers made before. Whatever the options,
    it allocates nothing and reads nothing back. On a CPU there are two exceptions: PyTorch writes
    the sample of a half precision network by way of a temporary, and ``guidance_rescale`` for a
    single image makes one number in ``torch.std``.

    Args:
        unet: the engine.
        noise_schedule: the training table, which gives the timestep of a σ.
        prediction_type: what the UNet predicts.
        sigma_data: d of a model in the EDM formulation; None is any other model.
        images: B, the number of images denoised together.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        doubled: run an unconditional half in front of the conditional one.
        shallow: gives the shallow UNet, called when :meth:`prepare` first needs it.

    Attributes:
        extra_channels: channels of the UNet's sample beyond the latents': inpainting models have
            some.

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
        def bind(kind: EvaluationKind) -> BoundUNet:
            engine = unet
            if not kind.full:
                assert shallow is not None  # the request is refused where there is none
                engine = shallow()
            halves = 2 if doubled and kind.guided else 1
            return BoundUNet(
                engine, images=images, halves=halves, height=height, width=width, tokens=tokens
            )

        self._bind = bind
        self._networks = {WHOLE: bind(WHOLE)}
        """One for each kind of evaluation that was ever needed."""
        self._own_schedule = self._noise_schedule = noise_schedule
        self._prediction_type = prediction_type
        self._sigma_data = sigma_data
        self._skips_whole = prediction_type == "epsilon" and sigma_data is None
        self._guidance_scale = 1.0
        self._rescale = 0.0
        self._guidance_scalars = torch.zeros(2, device=unet.device)
        """Device copies of both scalars, for captured graphs."""

        self.extra_channels = self._networks[WHOLE].extra_channels
        self._guided = torch.empty_like(self._networks[WHOLE].predictions[0])
        self._denoised = torch.empty_like(self._guided)
        self._unconditional: Tensor | None = None
        self._keeps_unconditional = False
        self._keeps_deep_feature = False
        self._region: KnownRegion | None = None
        self._imposes_region = False
        self._wanted_std = self._guided.new_empty(images, 1, 1, 1)
        self._actual_std = torch.empty_like(self._wanted_std)
        self._one = torch.ones_like(self._wanted_std)
        self._c_skip = host_scalar()

    @torch.no_grad()
    def prepare(self, inputs: DenoiserInputs, *, unconditional: bool = False) -> None:
        """Write all that does not change from step to step.

        Args:
            inputs: what the denoiser is told, for B images; with a negative half exactly if
                doubled, and with a deep cache only if there is ``shallow``.
            unconditional: offer :attr:`unconditional` too; only if doubled, and not with a
                guidance interval.

        Raises:
            ShapeError: the shallow engine does not allow these sizes.
        """
        shortcuts = inputs.shortcuts
        kinds = (WHOLE,) if shortcuts == NO_SHORTCUTS else shortcuts.possible_kinds()
        for kind in kinds:
            if kind not in self._networks:
                self._networks[kind] = self._bind(kind)
            self._networks[kind].write(inputs)
        self._keeps_deep_feature = shortcuts.deep_cache is not None
        self._keeps_unconditional = unconditional
        if unconditional and self._unconditional is None:
            self._unconditional = torch.empty_like(self._denoised)
        self._write_region(inputs.known_region)
        self._noise_schedule = inputs.noise_schedule or self._own_schedule
        self._guidance_scale = inputs.guidance_scale
        self._rescale = inputs.guidance_rescale
        self._guidance_scalars.copy_(torch.tensor([self._guidance_scale, self._rescale]))

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
    def __call__(self, x: Tensor, sigma: float, kind: EvaluationKind = WHOLE) -> Tensor:
        """Denoise ``x`` at a noise level.

        Args:
            x: float32 ``[B, C, h, w]``.
            sigma: the noise level.
            kind: one of the possible kinds of the shortcuts that :meth:`prepare` was given. One
                that is not full continues from the last full one.

        Returns:
            float32 ``[B, C, h, w]``, overwritten by the next call.
        """
        return self._evaluate(x, self.scalars(sigma), self._guidance_scale, self._rescale, kind)

    @torch.no_grad()
    def denoise(self, x: Tensor, scalars: Tensor, kind: EvaluationKind = WHOLE) -> Tensor:
        """As a call, with the :meth:`scalars` of the noise level as float32 ``[4]`` on the device.

        Whatever depends on the noise level or on the guidance scale is read on the device when
        the operations run, so a captured call serves every value of either.
        """
        guidance_scale, rescale = self._guidance_scalars.unbind()
        return self._evaluate(x, scalars.unbind(), guidance_scale, rescale, kind)

    def scalars(self, sigma: float) -> tuple[float, float, float, float]:
        """(c_in, timestep, c_skip, c_out) of a noise level; see the module's docstring."""
        data = 1.0 if self._sigma_data is None else self._sigma_data
        c_in = 1 / math.sqrt(sigma * sigma + data * data)
        if self._skips_whole:
            c_skip, c_out = 1.0, -sigma
        elif self._prediction_type == "sample":
            c_skip, c_out = 0.0, 1.0
        else:
            kept = c_in * data
            c_skip, c_out = kept * kept, sigma * kept
            if self._prediction_type == "v_prediction":
                c_out = -c_out
        return c_in, self._noise_schedule.timestep(sigma), c_skip, c_out

    def mode(self) -> Hashable:
        """What decides which operations a call enqueues, besides its kind and the sizes."""
        return (
            self._rescale > 0,
            self._keeps_unconditional,
            self._keeps_deep_feature,
            self._imposes_region,
        )

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return tuple(held for network in self._networks.values() for held in network.held())

    def _write_region(self, region: KnownRegion | None) -> None:
        """Keep a region at the addresses that captured graphs read."""
        self._imposes_region = region is not None
        if region is None:
            return
        if self._region is None:
            mask = torch.empty(region.mask.shape, dtype=torch.bool, device=self._denoised.device)
            self._region = KnownRegion(torch.empty_like(self._denoised), mask)
        self._region.latents.copy_(region.latents)
        self._region.mask.copy_(region.mask)

    def _evaluate(
        self,
        x: Tensor,
        scalars: Sequence[Scalar],
        guidance_scale: Scalar,
        rescale: Scalar,
        kind: EvaluationKind,
    ) -> Tensor:
        c_in, timestep, c_skip, c_out = scalars
        network = self._networks[kind]
        predictions = network.predict(x, c_in, timestep)
        if kind.full and self._keeps_deep_feature:
            self._networks[EvaluationKind(kind.guided, full=False)].take_deep_feature(network)

        guided = self._guided_prediction(predictions, guidance_scale, rescale)
        if self._keeps_unconditional and self._unconditional is not None:
            self._denoise(x, c_skip, predictions[0], c_out, into=self._unconditional)
        return self._denoise(x, c_skip, guided, c_out, into=self._denoised)

    def _denoise(
        self, x: Tensor, c_skip: Scalar, prediction: Tensor, c_out: Scalar, *, into: Tensor
    ) -> Tensor:
        """``c_skip·x + c_out·prediction``, and the known region over it. Where c_skip is always 1
        it costs no kernel."""
        if not self._skips_whole:
            factor = c_skip if isinstance(c_skip, Tensor) else self._c_skip.fill_(c_skip)
            x = torch.mul(x, factor, out=into)
        if isinstance(c_out, Tensor):
            torch.addcmul(x, prediction, c_out, out=into)
        else:
            torch.add(x, prediction, alpha=c_out, out=into)
        if self._imposes_region and self._region is not None:
            self._region.impose(into)
        return into

    def _guided_prediction(
        self, predictions: Sequence[Tensor], guidance_scale: Scalar, rescale: Scalar
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

    def _rescale_to(self, conditional: Tensor, rescale: Scalar) -> None:
        """Pull each image's standard deviation towards that of the conditional prediction:
        ``φ·x·std(c)/std(x) + (1 − φ)·x`` (Lin et al. 2023, arXiv:2305.08891, equations 15–16).
        As in the paper x is the network's output, not the denoised image."""
        torch.std(conditional, dim=(1, 2, 3), keepdim=True, out=self._wanted_std)
        torch.std(self._guided, dim=(1, 2, 3), keepdim=True, out=self._actual_std)
        factor = self._wanted_std.div_(self._actual_std)
        self._guided.mul_(torch.lerp(self._one, factor, rescale, out=factor))
