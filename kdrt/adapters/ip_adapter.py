"""Images as prompts: from an image to the tokens that an IP-Adapter's UNet attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from kdrt.adapters.variants import ComponentLoader
from kdrt.bundle import IpAdapterFacts, Manifest
from kdrt.common.validation import check_dense
from kdrt.errors import InvalidRequestError
from kdrt.images.input import clip_pixels
from kdrt_engines import Engine

TOKENS_INPUT = "ip_hidden_states"
"""The input by which a UNet takes images."""

VARIANT = "ip-adapter"
"""The variant of a bundle whose UNet takes images."""

ImagePrompt: TypeAlias = Image.Image | Sequence[Image.Image]


class ImagePrompts:
    """The IP-Adapter of a bundle.

    Args:
        manifest: says what the adapter needs.
        load: loads its networks when they are first used; None where nothing can be loaded.
    """

    def __init__(self, manifest: Manifest, load: ComponentLoader | None) -> None:
        self._manifest = manifest
        self._load = load
        self._engines: dict[str, Engine] = {}

    @torch.no_grad()
    def encode(
        self,
        prompts: ImagePrompt | None,
        embeddings: Tensor | None,
        images: int,
        *,
        doubled: bool,
    ) -> Tensor:
        """The image's tokens for the UNet.

        Args:
            prompts: images; one for all images, or one for each prompt in order.
            embeddings: ``[n, P]`` in place of images: what the image encoder makes of them.
            images: B, how many images are made.
            doubled: put those of an unconditional half in front, as the adapter was trained: of
                an embedding of zeros.

        Returns:
            ``[B, N, D]``, or ``[2B, N, D]`` if doubled.

        Raises:
            InvalidRequestError: the images are not what the adapter takes.
        """
        facts = self._facts()
        if embeddings is None:
            embeddings = self._embed(_listed(prompts), facts)
        _check_embeddings(embeddings, facts, images)
        each = embeddings.repeat_interleave(images // len(embeddings), dim=0)
        if doubled:
            each = torch.cat([torch.zeros_like(each), each])
        return self._run("image_projection", "image_embeds", each, "ip_hidden_states")

    def _embed(self, images: Sequence[Image.Image], facts: IpAdapterFacts) -> Tensor:
        if facts.image_encoder is None:
            raise InvalidRequestError(
                f"the bundle '{self._manifest.name}' has no image encoder: give "
                "ip_adapter_image_embeds, or export it with --image-encoder"
            )
        settings = facts.image_encoder
        pixels = clip_pixels(images, settings.size, settings.mean, settings.std)
        return self._run("image_encoder", "pixels", pixels, "image_embeds")

    def _run(self, component: str, source: str, value: Tensor, target: str) -> Tensor:
        if component not in self._engines:
            if self._load is None:
                raise InvalidRequestError(
                    "this pipeline cannot load an image encoder: use kdrt.load"
                )
            self._engines[component] = self._load(component)
        binding = self._engines[component].bind(B=len(value))
        binding.inputs[source].copy_(value)
        binding.run()
        return binding.outputs[target].clone()

    def _facts(self) -> IpAdapterFacts:
        if self._manifest.ip_adapter is None:
            raise InvalidRequestError(
                f"'{self._manifest.name}' has no IP-Adapter; export it with "
                f"`{self._manifest.export_command} --ip-adapter FILE`"
            )
        return self._manifest.ip_adapter


def write_image_prompt(inputs: Mapping[str, Tensor], tokens: Tensor | None, scale: float) -> None:
    """Write tokens and strength into the inputs of an IP-Adapter's UNet. Without tokens, and at
    strength 0, it is exactly off."""
    if tokens is None:
        inputs[TOKENS_INPUT].zero_()
        inputs["ip_scale"].zero_()
    else:
        inputs[TOKENS_INPUT].copy_(tokens)
        inputs["ip_scale"].fill_(scale)


def _listed(images: ImagePrompt | None) -> Sequence[Image.Image]:
    listed = [images] if isinstance(images, Image.Image) else images
    if not isinstance(listed, Sequence) or not listed:
        raise InvalidRequestError("ip_adapter_image must be a PIL image or a list of them")
    if not all(isinstance(image, Image.Image) for image in listed):
        raise InvalidRequestError("ip_adapter_image must be a PIL image or a list of them")
    return listed


def _check_embeddings(embeddings: object, facts: IpAdapterFacts, images: int) -> None:
    if not isinstance(embeddings, Tensor):
        raise InvalidRequestError(
            f"ip_adapter_image_embeds must be a tensor [n, {facts.embedding}]"
        )
    check_dense("ip_adapter_image_embeds", embeddings)
    fits = embeddings.ndim == 2 and embeddings.shape[1] == facts.embedding and len(embeddings) > 0
    if not fits or embeddings.is_complex() or not bool(embeddings.isfinite().all()):
        raise InvalidRequestError(
            f"ip_adapter_image_embeds must be finite and of shape [n, {facts.embedding}], not "
            f"{list(embeddings.shape)}"
        )
    if images % len(embeddings):
        raise InvalidRequestError(
            f"{len(embeddings)} image prompts for {images} images: give one, or one for each prompt"
        )
