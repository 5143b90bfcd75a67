"""The UNet of a run and all around it: ``(x, σ) → denoised``, all that a sampler knows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from kdrt.denoise.bound_unet import GUIDANCE_INPUT, BoundUNet
from kdrt.denoise.controls import ControlEngines
from kdrt.denoise.guidance import Guidance
from kdrt.denoise.inputs import DenoiserInputs, GuidanceSettings
from kdrt.denoise.known_region import KnownRegion, threshold_of
from kdrt.denoise.parts import Parts
from kdrt.denoise.scaling import Numbers, Scaling
from kdrt.denoise.shortcuts import (
    NO_SHORTCUTS,
    WHOLE,
    DenoiseByKind,
    DenoiseInOrder,
    EvaluationKind,
    Shortcuts,
)
from kdrt.sampling import Denoise
from kdrt_engines import Engine, EngineSpec


def is_doubled(unet: EngineSpec, guidance_scale: float, *, asked: bool = False) -> bool:
    """Whether there is a second, unconditional half of the batch: where guidance or the sampler
    (``asked``) needs one, and never for a distilled model, which takes the guidance scale as an
    input."""
    return (asked or guidance_scale > 1) and not unet.has_input(GUIDANCE_INPUT)


def for_one_run(
    denoise: DenoiseByKind, shortcuts: Shortcuts, place: Callable[[float], float] | None = None
) -> Denoise:
    """A denoiser whose calls are the evaluations of one run, in order.

    Args:
        denoise: the denoiser.
        shortcuts: of the run.
        place: of `kdrt.denoise.progress.places_of`, where something depends on it.
    """
    if shortcuts == NO_SHORTCUTS and place is None:
        return denoise
    return DenoiseInOrder(denoise, shortcuts, place)


class Denoiser:
    """A UNet bound to one set of sizes, and the guidance around it.

    :meth:`prepare` writes what stays the same for a whole run. A call then writes the sample and
    the timestep, runs the UNet, and computes in float32 buffers made before. Whatever the options,
    it allocates nothing and reads nothing back. On a CPU there are two exceptions: PyTorch writes
    the sample of a half precision network by way of a temporary, and ``guidance_rescale`` for a
    single image makes one number in ``torch.std``.

    Args:
        unet: the engine.
        scaling: of the model.
        images: B, the number of images denoised together.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        parts: of the batch.
        shallow: gives the shallow UNet, called when :meth:`prepare` first needs it.
        controls: what is added to the layers of the UNet; None is nothing.

    Attributes:
        extra_channels: channels of the UNet's sample beyond the latents': inpainting models have
            some.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self,
        unet: Engine,
        scaling: Scaling,
        *,
        images: int,
        height: int,
        width: int,
        tokens: int,
        parts: Parts,
        shallow: Callable[[], Engine] | None = None,
        controls: ControlEngines | None = None,
    ) -> None:
        def bind(kind: EvaluationKind) -> BoundUNet:
            engine = unet
            if not kind.full:
                assert shallow is not None  # the request is refused where there is none
                engine = shallow()
            return BoundUNet(
                engine,
                images=images,
                parts=parts if kind.guided else parts.without_guidance,
                height=height,
                width=width,
                tokens=tokens,
                controls=controls,
            )

        self._bind = bind
        self._networks = {WHOLE: bind(WHOLE)}
        """One for each kind of evaluation that was ever needed."""
        self._own_scaling = self._scaling = scaling
        self._settings = GuidanceSettings()

        network = self._networks[WHOLE]
        self.extra_channels = network.extra_channels
        self._like = network.predictions.conditional
        self._guidance = Guidance(self._like, skips_whole=scaling.skips_whole)
        self._unconditional: Tensor | None = None
        self._keeps_unconditional = False
        self._keeps_deep_feature = False
        self._region: KnownRegion | None = None
        self._imposes_region = False
        self._weights = self._like.new_empty(images, 1 + parts.regions, 1, height, width)
        """Of the prompts; see `kdrt.denoise.inputs.RegionalPrompts`."""
        self._weights_by_prompt = self._weights.unbind(1)

    @torch.no_grad()
    def prepare(self, inputs: DenoiserInputs, *, unconditional: bool = False) -> None:
        """Write all that does not change from step to step.

        Args:
            inputs: what the denoiser is told, for B images; in the parts that it has, and with a
                deep cache only if there is ``shallow``.
            unconditional: offer :attr:`unconditional` too; only if there is such a part, and not
                with a guidance interval.

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
        self._write_region(inputs.known_region)
        self._scaling = self._own_scaling
        if inputs.noise_schedule is not None:
            self._scaling = replace(self._own_scaling, noise_schedule=inputs.noise_schedule)
        self._settings = inputs.guidance
        if inputs.regions is not None:
            self._weights.copy_(inputs.regions.weights)

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
    def __call__(
        self, x: Tensor, sigma: float, kind: EvaluationKind = WHOLE, place: float = 0.0
    ) -> Tensor:
        """Denoise ``x`` at a noise level.

        Args:
            x: float32 ``[B, C, h, w]``.
            sigma: the noise level.
            kind: one of the possible kinds of the shortcuts that :meth:`prepare` was given. One
                that is not full continues from the last full one.
            place: of the evaluation in its run, for controls.

        Returns:
            float32 ``[B, C, h, w]``, overwritten by the next call.
        """
        return self._evaluate(x, self.numbers(sigma, place), kind)

    @torch.no_grad()
    def denoise(self, x: Tensor, numbers: Tensor, kind: EvaluationKind = WHOLE) -> Tensor:
        """As a call, with the :meth:`numbers` of the noise level as float32 ``[B, 12]`` on the
        device, a row for each image.

        Whatever depends on the noise level or on the guidance scale is read on the device when
        the operations run, so a captured call serves every value of either.
        """
        return self._evaluate(x, Numbers.of_rows(numbers), kind)

    def numbers(self, sigma: float, place: float = 0.0) -> Numbers:
        """All that a call needs to know of a noise level and a place, and of the guidance of this
        run."""
        told = self._settings.numbers(self._scaling.scalars(sigma))
        threshold = threshold_of(self._region, sigma)
        return told._replace(mask_threshold=threshold, place=place)

    def mode(self) -> Hashable:
        """What decides which operations a call enqueues, besides its kind and the sizes."""
        return (
            self._settings.rescale > 0,
            self._settings.method.name,
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
            self._region = KnownRegion(
                torch.empty_like(self._like), torch.empty_like(self._like[:, :1])
            )
        self._region = replace(self._region, sigmas=region.sigmas)
        self._region.latents.copy_(region.latents)
        self._region.mask.copy_(region.mask)

    def _evaluate(self, x: Tensor, numbers: Numbers, kind: EvaluationKind) -> Tensor:
        network = self._networks[kind]
        predictions = network.predict(x, numbers.c_in, numbers.timestep, numbers.place)
        if kind.full and self._keeps_deep_feature:
            self._networks[EvaluationKind(kind.guided, full=False)].take_deep_feature(network)

        region = self._region if self._imposes_region else None
        if self._keeps_unconditional:
            assert predictions.unconditional is not None  # then there is no guidance interval
            self._unconditional = self._guidance.unconditional(
                x, predictions.unconditional, numbers, region
            )
        settings = self._settings
        return self._guidance.denoised(
            x,
            predictions,
            numbers,
            region,
            rescales=settings.rescale > 0,
            apg=settings.method.is_apg,
            zero_star=settings.method.is_zero_star,
            weights=self._weights_by_prompt,
        )
