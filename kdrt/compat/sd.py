"""Stable Diffusion 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrt.common.validation import check_int, check_texts
from kdrt.compat.absent import refuse_arguments
from kdrt.compat.base import KDiffusionPipeline
from kdrt.compat.checks import (
    check_callback,
    check_exclusive,
    check_prompt,
    check_shapes,
    check_size,
)
from kdrt.compat.conditions import Conditions
from kdrt.compat.device_arguments import as_device
from kdrt.compat.encoding import repeat
from kdrt.compat.image_processor import output_type_of
from kdrt.compat.ip_adapter import IpAdapterMixin, masks_given
from kdrt.compat.lora import LoraMixin
from kdrt.compat.noise import Generators
from kdrt.compat.outputs import StableDiffusionPipelineOutput
from kdrt.compat.qkv import FusedProjectionsMixin
from kdrt.compat.safety import as_checker
from kdrt.compat.textual_inversion import TextualInversionMixin
from kdrt.compat.vae import VaeMixin
from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images, to_images
from kdrt.images.safety import SafetyChecker
from kdrt.pipeline.calls import one_call

Text = str | list[str]


class StableDiffusionKDiffusionPipeline(
    TextualInversionMixin,
    LoraMixin,
    FusedProjectionsMixin,
    IpAdapterMixin,
    VaeMixin,
    KDiffusionPipeline,
):
    """Replaces diffusers' class of the same name, which diffusers 0.37 removed. To open a model,
    call :meth:`from_pretrained` or :meth:`from_single_file`."""

    family: ClassVar[Literal["sd", "sdxl"]] = "sd"

    @one_call
    @torch.no_grad()
    def __call__(
        self,
        prompt: Text | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Text | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, float, Tensor], object] | None = None,
        callback_steps: int | None = 1,
        use_karras_sigmas: bool = False,
        noise_sampler_seed: int | Sequence[int] | None = None,
        clip_skip: int | None = None,
        *,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        ip_adapter_masks: Any = None,
        exact: bool | None = None,
        compat_dtype: bool | None = None,
        **unknown: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Images, list[bool] | None]:
        """Make images. The arguments are in the order of the original.

        Args:
            prompt: what to show; a list makes one image for each prompt.
            height: in pixels, a multiple of 8; None is the model's default.
            width: likewise.
            num_inference_steps: the number of steps.
            guidance_scale: w of classifier-free guidance. At 1 and below there is no guidance, and
                a step costs half as much.
            negative_prompt: what to avoid; one for all prompts, or one for each. None is ``""``.
            num_images_per_prompt: images for each prompt; they follow each other.
            eta: has no effect, as in the original: it belonged to DDIM.
            generator: draws the initial noise; a list has one generator for each image.
            latents: unit-variance noise ``[B, C, h, w]`` instead of drawn noise.
            prompt_embeds: ``[B, L, D]`` instead of ``prompt``.
            negative_prompt_embeds: ``[B, L, D]`` instead of ``negative_prompt``.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.
            return_dict: False returns ``(images, nsfw_content_detected)``.
            callback: called as ``callback(step, timestep, latents)`` after a step.
            callback_steps: call it only after every so many steps.
            use_karras_sigmas: the σ of Karras et al. 2022 over the training range, instead of
                the checkpoint's own.
            noise_sampler_seed: for stochastic samplers: one seed for the batch, or one for each
                image. None draws the seeds from ``generator``.
            clip_skip: take the text encoder's hidden state that many layers earlier; for the
                prompt only.
            ip_adapter_image: PIL images as prompts, one for all prompts or one for each; for
                bundles with an IP-Adapter. With several adapters, a list with one for each.
            ip_adapter_image_embeds: ``[n, P]`` instead of images: what the image encoder makes of
                them; or a list of tensors as diffusers takes it.
            ip_adapter_masks: where images count, as diffusers takes it in
                ``cross_attention_kwargs``.
            exact: sample with k-diffusion's own functions; None uses the setting of the pipeline.
            compat_dtype: with ``exact``, keep the sampler's state in the dtype of the embeddings
                (the default then) instead of float32.

        Returns:
            The images, and for each whether the safety checker blacked it out (None without one).

        Raises:
            InvalidRequestError: an argument is wrong.
            ShapeError: the engine was not made for this size.
            NonFiniteError: the network overflowed.
        """
        ip_adapter_masks = masks_given(ip_adapter_masks, unknown)
        refuse_arguments(unknown)
        exact = self.exact if exact is None else exact
        height, width = self._size(height, width)
        self.check_inputs(
            prompt,
            height,
            width,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
        )
        check_callback(callback, callback_steps)
        output_type_of(output_type)
        self._clip_skip = clip_skip
        doubled = self._guide(guidance_scale)
        positive, negative = self._encode_pair(
            prompt,
            num_images_per_prompt,
            doubled,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            clip_skip,
            together=exact,
        )
        hidden = positive if negative is None else torch.cat([negative, positive])
        image_tokens, image_weights = self._image_prompt(
            ip_adapter_image,
            ip_adapter_image_embeds,
            ip_adapter_masks,
            len(positive),
            height,
            width,
            doubled=doubled,
        )
        result = self._sample(
            Conditions(
                hidden,
                None,
                None,
                doubled,
                guidance_scale,
                self._freeu,
                image_tokens,
                image_weights,
            ),
            height=height,
            width=width,
            steps=num_inference_steps,
            generator=generator,
            latents=latents,
            use_karras_sigmas=use_karras_sigmas,
            noise_sampler_seed=noise_sampler_seed,
            exact=exact,
            compat_dtype=compat_dtype,
            callback=callback,
            callback_steps=callback_steps,
            decoded=output_type != "latent",
        )
        images, flagged = self._finish(result, output_type)
        if not return_dict:
            return images, flagged
        return StableDiffusionPipelineOutput(images, flagged)

    @one_call
    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Text | None,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Text | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the prompt and of the negative prompt, ``[B, L, D]`` each, with every
        prompt ``num_images_per_prompt`` times. Without guidance, the second is None.

        Raises:
            InvalidRequestError: an argument is wrong.
        """
        with self._text_scaled(lora_scale):
            positive, negative = self._encode_pair(
                prompt,
                num_images_per_prompt,
                do_classifier_free_guidance,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                clip_skip,
                together=self.exact,
            )
        place = self.device if device is None else as_device(device)
        return positive.to(place), None if negative is None else negative.to(place)

    def check_inputs(
        self,
        prompt: object,
        height: int,
        width: int,
        callback_steps: int | None,
        negative_prompt: object = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end_tensor_inputs: object = None,
    ) -> None:
        """Raise InvalidRequestError, a ValueError, if these arguments are wrong or contradict each
        other."""
        check_size(height, width)
        check_callback(None, callback_steps)
        if callback_on_step_end_tensor_inputs:
            raise InvalidRequestError("these pipelines have no callback_on_step_end")
        check_exclusive({"prompt": prompt, "prompt_embeds": prompt_embeds})
        check_exclusive(
            {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
        )
        check_prompt("prompt", prompt, prompt_embeds)
        self._check_embeds("prompt_embeds", prompt_embeds, "", None)
        self._check_embeds("negative_prompt_embeds", negative_prompt_embeds, "", None)
        check_shapes(prompt_embeds, negative_prompt_embeds)

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """Blacks out the images it flags; set it to None to turn it off."""
        return self.pipeline.safety_checker

    @safety_checker.setter
    def safety_checker(self, checker: SafetyChecker | Callable[..., Any] | None) -> None:
        """Takes kdrt's checker, None, or a function: see :class:`kdrt.compat.safety.OwnChecker`."""
        self.pipeline.safety_checker = as_checker(checker)

    @one_call
    def run_safety_checker(
        self, image: Tensor, device: torch.device | str, dtype: torch.dtype
    ) -> tuple[Tensor, list[bool] | None]:
        """Set the flagged images of a decoder, ``[B, 3, H, W]`` in about [-1, 1], to 0.

        As in the original, 0 stands for the black of [0, 1]; :meth:`__call__` allows for that.

        Returns:
            The images, and for each whether it is flagged; None without a checker.
        """
        checker = self.pipeline.safety_checker
        if checker is None:
            return image, None
        self.vae.check_pixels(image)
        flagged = checker(list(to_images(image, "pil")))
        safe = image.clone()
        safe[torch.tensor(flagged)] = 0
        return safe, flagged

    @one_call
    def decode_latents(self, latents: Tensor) -> NDArray[np.float32]:
        """Decode final latents ``[B, C, h, w]`` to images, float32 ``[B, H, W, 3]`` in [0, 1]."""
        self.vae.check_latents(latents)
        return np.asarray(self.image_processor.postprocess(self._pixels(latents), "np"))

    def _encode_prompt(self, *arguments: Any, **options: Any) -> Tensor:
        """The old form of :meth:`encode_prompt`: negative and positive embeddings in one."""
        positive, negative = self.encode_prompt(*arguments, **options)
        return positive if negative is None else torch.cat([negative, positive])

    def _encode_pair(
        self,
        prompt: Text | None,
        times: int,
        doubled: bool,
        negative_prompt: Text | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        clip_skip: int | None,
        *,
        together: bool,
    ) -> tuple[Tensor, Tensor | None]:
        times = check_int("num_images_per_prompt", times, 1)
        dtype = self._text_dtype("text_encoder")
        if prompt_embeds is None:
            prompts = check_texts("prompt", prompt)
            prompt_embeds, _ = self._encode([prompts], clip_skip, together=together)
        positive = prompt_embeds.to(device=self.device, dtype=dtype)
        if not doubled:
            return repeat(positive, times), None
        if negative_prompt_embeds is None:
            negatives = check_texts("negative_prompt", negative_prompt or "", len(positive))
            negative_prompt_embeds, _ = self._encode(
                [negatives], None, together=together, length=positive.shape[1]
            )
        negative = negative_prompt_embeds.to(device=self.device, dtype=dtype)
        check_shapes(positive, negative)
        return repeat(positive, times), repeat(negative, times)

    def _finish(self, latents: Tensor, output_type: str) -> tuple[Images, list[bool] | None]:
        if output_type == "latent":
            return latents, None
        pixels, flagged = self.run_safety_checker(self._pixels(latents), self.device, self.dtype)
        # Flagged images are black as they are.
        plain = None if flagged is None else [not each for each in flagged]
        return self.image_processor.postprocess(pixels, output_type, plain), flagged
