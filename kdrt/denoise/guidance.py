"""From a network's predictions to the denoised images: classifier-free guidance, the affine map of
the model's scaling, and the region that is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdrt.denoise.guidance_methods import MethodBuffers
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Predictions
from kdrt.denoise.regional import combined
from kdrt.denoise.scaling import Numbers, Scalar, host_scalar


class Guidance:
    """The arithmetic around a network for B images, in float32 buffers made before: it allocates
    nothing and reads nothing back. (On a CPU, ``rescale`` for a single image makes one number in
    ``torch.std``.)

    All of its numbers may be Python's, or tensors that broadcast against ``[B, C, h, w]``, one
    number an image.

    Args:
        like: float32 ``[B, C, h, w]``.
        skips_whole: c_skip is 1 at every noise level; see `kdrt.denoise.scaling.Scaling`.
    """

    def __init__(self, like: Tensor, *, skips_whole: bool) -> None:
        self._skips_whole = skips_whole
        self._guided = torch.empty_like(like)
        self._denoised = torch.empty_like(like)
        self._unconditional: Tensor | None = None
        self._methods: MethodBuffers | None = None
        self._combined: Tensor | None = None
        self._difference: Tensor | None = None
        self._wanted_std = like.new_empty(len(like), 1, 1, 1)
        self._actual_std = torch.empty_like(self._wanted_std)
        self._one = torch.ones_like(self._wanted_std)
        self._c_skip, self._mask_threshold = host_scalar(), host_scalar()
        self._decides = torch.empty_like(like[:, :1], dtype=torch.bool)

    def guided(
        self,
        predictions: Predictions,
        numbers: Numbers,
        *,
        rescales: bool,
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Classifier-free guidance, ``u + w·(c − u)``, and perturbed-attention guidance beside it.

        Both are defined on the denoised images. Those are the same affine map of the predictions,
        with which a combination whose weights sum to 1 commutes; done before the map it costs one
        kernel, and rescaling needs it there.

        Args:
            predictions: of the network.
            numbers: w, s and φ of :meth:`_rescale_to`.
            rescales: some image has a φ above 0.
            weights: of the image's own prompt and of each region, ``[B, 1, h, w]``.

        Returns:
            The guided and the conditional prediction, ``[B, C, h, w]``, overwritten by the next
            call. The latter is that of all regions.
        """
        own, unconditional, regions, perturbed = predictions
        conditional = own
        if regions:
            if self._combined is None:
                self._combined = torch.empty_like(self._guided)
            conditional = combined((own, *regions), weights, self._combined)
        guided = conditional
        if unconditional is not None:
            guided = torch.lerp(
                unconditional, conditional, numbers.guidance_scale, out=self._guided
            )
        if perturbed is not None:
            guided = self._led_away(guided, own, perturbed, numbers.pag_scale)
        if rescales and unconditional is not None:
            self._rescale_to(conditional, numbers.rescale)
        return guided, conditional

    def denoised(
        self,
        x: Tensor,
        predictions: Predictions,
        numbers: Numbers,
        region: KnownRegion | None,
        *,
        rescales: bool = False,
        apg: bool = False,
        zero_star: bool = False,
        weights: Sequence[Tensor] = (),
    ) -> Tensor:
        """The denoised images, with guidance where there is more than a conditional prediction.

        Args:
            x: the state, ``[B, C, h, w]``.
            predictions: see :meth:`guided`.
            numbers: of the noise level, and of guidance.
            region: what is known, over the result; None is nothing.
            rescales: some image has a guidance rescale.
            apg: some image has adaptive projected guidance.
            zero_star: some image has CFG-Zero*.
            weights: see :meth:`guided`.

        Returns:
            ``[B, C, h, w]``, overwritten by the next call.
        """
        guided, conditional = self.guided(predictions, numbers, rescales=rescales, weights=weights)
        denoised = self._mapped(x, guided, numbers, self._denoised)
        if predictions.unconditional is not None and (apg or zero_star):
            if self._methods is None:
                self._methods = MethodBuffers(self._denoised)
            methods = self._methods
            self._mapped(x, predictions.unconditional, numbers, methods.unconditional)
            self._mapped(x, conditional, numbers, methods.conditional)
            if apg:
                methods.apg(numbers, denoised)
            if zero_star:
                methods.zero_star(x, numbers, denoised)
        if region is not None:
            self._impose(region, denoised, numbers)
        return denoised

    def unconditional(
        self, x: Tensor, prediction: Tensor, numbers: Numbers, region: KnownRegion | None
    ) -> Tensor:
        """The denoised images of one prediction, without guidance, in a buffer of their own.

        Returns:
            ``[B, C, h, w]``, overwritten by the next call.
        """
        if self._unconditional is None:
            self._unconditional = torch.empty_like(self._denoised)
        into = self._mapped(x, prediction, numbers, self._unconditional)
        if region is not None:
            self._impose(region, into, numbers)
        return into

    def _impose(self, region: KnownRegion, denoised: Tensor, numbers: Numbers) -> None:
        threshold = numbers.mask_threshold
        if not isinstance(threshold, Tensor):
            threshold = self._mask_threshold.fill_(threshold)
        region.impose(denoised, threshold, self._decides)

    def _mapped(self, x: Tensor, prediction: Tensor, numbers: Numbers, into: Tensor) -> Tensor:
        """``c_skip·x + c_out·prediction``."""
        c_skip, c_out = numbers.c_skip, numbers.c_out
        # Where c_skip is always 1 it costs no kernel.
        if not self._skips_whole:
            factor = c_skip if isinstance(c_skip, Tensor) else self._c_skip.fill_(c_skip)
            x = torch.mul(x, factor, out=into)
        if isinstance(c_out, Tensor):
            torch.addcmul(x, prediction, c_out, out=into)
        else:
            torch.add(x, prediction, alpha=c_out, out=into)
        return into

    def _led_away(
        self, guided: Tensor, conditional: Tensor, perturbed: Tensor, scale: Scalar
    ) -> Tensor:
        """``guided + s·(c − p)`` of `kdrt.denoise.perturbed_attention`."""
        if self._difference is None:
            self._difference = torch.empty_like(self._guided)
        torch.sub(conditional, perturbed, out=self._difference)
        if isinstance(scale, Tensor):
            return torch.addcmul(guided, self._difference, scale, out=self._guided)
        return torch.add(guided, self._difference, alpha=scale, out=self._guided)

    def _rescale_to(self, conditional: Tensor, rescale: Scalar) -> None:
        """Pull each image's standard deviation towards that of the conditional prediction:
        ``φ·x·std(c)/std(x) + (1 − φ)·x`` (Lin et al. 2023, arXiv:2305.08891, equations 15–16).
        As in the paper x is the network's output, not the denoised image."""
        torch.std(conditional, dim=(1, 2, 3), keepdim=True, out=self._wanted_std)
        torch.std(self._guided, dim=(1, 2, 3), keepdim=True, out=self._actual_std)
        factor = self._wanted_std.div_(self._actual_std)
        self._guided.mul_(torch.lerp(self._one, factor, rescale, out=factor))
