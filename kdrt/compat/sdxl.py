"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
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
from kdrt.compat.outputs import StableDiffusionXLPipelineOutput
from kdrt.compat.qkv import FusedProjectionsMixin
from kdrt.compat.sd import Text
from kdrt.compat.textual_inversion import TextualInversionMixin
from kdrt.compat.vae import VaeMixin
from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images
from kdrt.pipeline.calls import one_call
from kdrt.request.fields import Request, Size
from kdrt.request.size_conditioning import time_ids

_TIME_IDS = 6

Embeddings = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""Positive, negative, pooled positive, pooled negative."""


class StableDiffusionXLKDiffusionPipeline(
    TextualInversionMixin,
    LoraMixin,
    FusedProjectionsMixin,
    IpAdapterMixin,
    VaeMixin,
    KDiffusionPipeline,
):
    """Replaces diffusers' class of the same name, which diffusers 0.37 removed. To open a model,
    call :meth:`from_pretrained` or :meth:`from_single_file`."""

    family: ClassVar[Literal["sd", "sdxl"]] = "sdxl"

    @one_call
    @torch.no_grad()
    def __call__(
        self,
        prompt: Text | None = None,
        prompt_2: Text | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        negative_prompt: Text | None = None,
        negative_prompt_2: Text | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        use_karras_sigmas: bool = False,
        noise_sampler_seed: int | Sequence[int] | None = None,
        clip_skip: int | None = None,
        *,
        callback: Callable[[int, float, Tensor], object] | None = None,
        callback_steps: int | None = 1,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        ip_adapter_masks: Any = None,
        exact: bool | None = None,
        compat_dtype: bool | None = None,
        **unknown: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Images]:
        """Make images. The arguments are in the order of the original. Those that
        :class:`~kdrt.compat.StableDiffusionKDiffusionPipeline` also has mean the same here.

        Args:
            prompt_2: another prompt for the second text encoder.
            negative_prompt: None means no negative prompt at all: for models trained that way its
                embeddings are zeros, which is not the same as ``""``.
            negative_prompt_2: another negative prompt for the second text encoder.
            pooled_prompt_embeds: ``[B, P]``, needed with ``prompt_embeds``.
            negative_pooled_prompt_embeds: ``[B, P]``, needed with ``negative_prompt_embeds``.
            return_dict: False returns ``(images,)``.
            original_size: the original size that the model is told, (height, width) in pixels;
                None is the image's size.
            crops_coords_top_left: the crop position that the model is told, (top, left) in pixels.
            target_size: the target size that the model is told, (height, width) in pixels; None is
                the image's size.
            negative_original_size: the same for the negative prompt; each may be given alone.
            negative_crops_coords_top_left: likewise.
            negative_target_size: likewise.

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
            prompt_2,
            height,
            width,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        check_callback(callback, callback_steps)
        output_type_of(output_type)
        self._clip_skip = clip_skip
        doubled = self._guide(guidance_scale)
        positive, negative, pooled, negative_pooled = self._encode_pair(
            prompt,
            prompt_2,
            num_images_per_prompt,
            doubled,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            clip_skip,
            together=exact,
        )
        sizes = Request(
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            negative_original_size=negative_original_size,
            negative_crops_coords_top_left=negative_crops_coords_top_left,
            negative_target_size=negative_target_size,
        )
        ids, negative_ids = (
            torch.tensor([row] * len(positive), dtype=positive.dtype)
            for row in time_ids(sizes, height, width)
        )
        image_tokens, image_weights = self._image_prompt(
            ip_adapter_image,
            ip_adapter_image_embeds,
            ip_adapter_masks,
            len(positive),
            height,
            width,
            doubled=doubled,
        )
        if negative is not None and negative_pooled is not None:
            positive = torch.cat([negative, positive])
            pooled = torch.cat([negative_pooled, pooled])
            ids = torch.cat([negative_ids, ids])
        result = self._sample(
            Conditions(
                positive,
                pooled,
                ids,
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
        images: Images = result
        if output_type != "latent":
            images = self.image_processor.postprocess(self._pixels(result), output_type)
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    @one_call
    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Text | None,
        prompt_2: Text | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Text | None = None,
        negative_prompt_2: Text | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> Embeddings:
        """Embeddings of the prompt and the negative prompt, ``[B, L, D]`` each, and their pooled
        embeddings, ``[B, P]`` each, with every prompt ``num_images_per_prompt`` times. Without
        guidance, those of the negative prompt are None.

        Raises:
            InvalidRequestError: an argument is wrong.
        """
        with self._text_scaled(lora_scale):
            embeddings = self._encode_pair(
                prompt,
                prompt_2,
                num_images_per_prompt,
                do_classifier_free_guidance,
                negative_prompt,
                negative_prompt_2,
                prompt_embeds,
                negative_prompt_embeds,
                pooled_prompt_embeds,
                negative_pooled_prompt_embeds,
                clip_skip,
                together=self.exact,
            )
        place = self.device if device is None else as_device(device)
        positive, negative, pooled, negative_pooled = embeddings
        return (
            positive.to(place),
            None if negative is None else negative.to(place),
            pooled.to(place),
            None if negative_pooled is None else negative_pooled.to(place),
        )

    def check_inputs(
        self,
        prompt: object,
        prompt_2: object,
        height: int,
        width: int,
        negative_prompt: object = None,
        negative_prompt_2: object = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
    ) -> None:
        """Raise InvalidRequestError, a ValueError, if these arguments are wrong or contradict each
        other."""
        check_size(height, width)
        for name, value in (("prompt", prompt), ("prompt_2", prompt_2)):
            check_exclusive({name: value, "prompt_embeds": prompt_embeds})
        for name, value in (
            ("negative_prompt", negative_prompt),
            ("negative_prompt_2", negative_prompt_2),
        ):
            check_exclusive({name: value, "negative_prompt_embeds": negative_prompt_embeds})
        check_prompt("prompt", prompt, prompt_embeds)
        if prompt_2 is not None and not isinstance(prompt_2, (str, list)):
            raise InvalidRequestError(
                f"`prompt_2` has to be of type `str` or `list` but is {type(prompt_2)}"
            )
        for name, embeds, its_pooled in (
            ("prompt_embeds", prompt_embeds, pooled_prompt_embeds),
            ("negative_prompt_embeds", negative_prompt_embeds, negative_pooled_prompt_embeds),
        ):
            if embeds is not None and its_pooled is None:
                raise InvalidRequestError(
                    f"with `{name}`, give `{name.replace('prompt', 'pooled_prompt')}`"
                )
            self._check_embeds(name, embeds, name.replace("prompt", "pooled_prompt"), its_pooled)
        check_shapes(prompt_embeds, negative_prompt_embeds)

    def _get_add_time_ids(
        self,
        original_size: Size,
        crops_coords_top_left: Size,
        target_size: Size,
        dtype: torch.dtype,
        text_encoder_projection_dim: int | None = None,
    ) -> Tensor:
        """The six numbers of size conditioning, ``[1, 6]``.

        Raises:
            InvalidRequestError: the UNet was trained with another number of them.
        """
        try:
            ids = [*original_size, *crops_coords_top_left, *target_size]
        except TypeError as error:
            raise InvalidRequestError("sizes and crops must be two whole numbers each") from error
        pooled = self.unet.pooled_width
        if len(ids) != _TIME_IDS or text_encoder_projection_dim not in (None, pooled):
            raise InvalidRequestError(
                f"Model expects {_TIME_IDS} numbers beside a pooled embedding of {pooled}, not "
                f"{len(ids)} beside {text_encoder_projection_dim}"
            )
        return torch.tensor([ids], dtype=dtype)

    def _encode_pair(
        self,
        prompt: Text | None,
        prompt_2: Text | None,
        times: int,
        doubled: bool,
        negative_prompt: Text | None,
        negative_prompt_2: Text | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor | None,
        negative_pooled_prompt_embeds: Tensor | None,
        clip_skip: int | None,
        *,
        together: bool,
    ) -> Embeddings:
        times = check_int("num_images_per_prompt", times, 1)
        device, dtype = self.device, self._text_dtype("text_encoder_2")
        pooled = pooled_prompt_embeds
        if prompt_embeds is None:
            prompts = check_texts("prompt", prompt)
            others = check_texts("prompt_2", prompt_2 or list(prompts), len(prompts))
            prompt_embeds, encoded = self._encode([prompts, others], clip_skip, together=together)
            pooled = encoded if pooled is None else pooled
        if pooled is None:
            raise InvalidRequestError("with `prompt_embeds`, give `pooled_prompt_embeds`")
        if len(pooled) != len(prompt_embeds):
            raise InvalidRequestError(
                f"{len(pooled)} rows in pooled_prompt_embeds for {len(prompt_embeds)} prompts"
            )
        positive, pooled = prompt_embeds.to(device, dtype), pooled.to(device, dtype)
        if not doubled:
            return repeat(positive, times), None, repeat(pooled, times), None
        negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
        if negative is None:
            negative, encoded = self._encode_negative(
                positive, pooled, negative_prompt, negative_prompt_2, together=together
            )
            negative_pooled = encoded if negative_pooled is None else negative_pooled
        if negative_pooled is None:
            raise InvalidRequestError("with `negative_prompt_embeds`, give their pooled ones")
        negative, negative_pooled = negative.to(device, dtype), negative_pooled.to(device, dtype)
        check_shapes(positive, negative)
        return (
            repeat(positive, times),
            repeat(negative, times),
            repeat(pooled, times),
            repeat(negative_pooled, times),
        )

    def _encode_negative(
        self,
        positive: Tensor,
        pooled: Tensor,
        negative_prompt: Text | None,
        negative_prompt_2: Text | None,
        *,
        together: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Zeros where no negative prompt is given and the model was trained so; else encoded."""
        zeros = self.pipeline.bundle.manifest.zeros_for_empty_negative
        if zeros and negative_prompt is None and negative_prompt_2 is None:
            return torch.zeros_like(positive), torch.zeros_like(pooled)
        count = len(positive)
        negatives = check_texts("negative_prompt", negative_prompt or "", count)
        others = check_texts("negative_prompt_2", negative_prompt_2 or list(negatives), count)
        return self._encode([negatives, others], None, together=together, length=positive.shape[1])
