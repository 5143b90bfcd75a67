"""Images as prompts: from images to the tokens that the UNet of IP-Adapters attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.image_prompt import AdapterImages, ImageRequest
from kdrt.adapters.variants import ComponentLoader
from kdrt.backends.profiles import IMAGE_PROMPTS
from kdrt.bundle import ImageEncoderFacts, IpAdapterFacts, Manifest
from kdrt.bundle.components import IMAGE_TOKENS_INPUT
from kdrt.common.upload import upload
from kdrt.errors import InvalidRequestError
from kdrt.images.input import clip_pixels
from kdrt_engines import Engine

VARIANT = "ip-adapter"
"""The variant of a bundle whose UNet takes images."""


@dataclass(frozen=True)
class ImageWeights:
    """How much the images of IP-Adapters count, for B images that are made.

    Attributes:
        scale: float32 ``[B, S, A]``; ``[1]`` in bundles that have one number for all.
        mask: float32 ``[B, S·K, h, w]``; None is everywhere.
    """

    scale: Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, request: ImageRequest, images: int) -> ImageWeights:
        """Those of a request for B images, which has the same for all."""
        scale, mask = request.scale, request.mask
        if scale.ndim > 1:
            scale = scale.expand(images, *scale.shape)
        return cls(scale, None if mask is None else mask.expand(images, *mask.shape))

    def one(self, image: int) -> ImageWeights:
        """That of one image, still as a batch: B = 1."""
        rows = slice(image, image + 1)
        scale = self.scale if self.scale.ndim == 1 else self.scale[rows]
        return ImageWeights(scale, None if self.mask is None else self.mask[rows])


class ImagePrompts:
    """The IP-Adapters of a bundle.

    Args:
        manifest: says what the adapters need.
        load: loads their networks when they are first used; None where nothing can be loaded.
    """

    def __init__(self, manifest: Manifest, load: ComponentLoader | None) -> None:
        self._manifest = manifest
        self._load = load
        self._engines: dict[str, Engine] = {}
        self._zeros: dict[str, Tensor] = {}
        """Tokens of the unconditional half, by adapter."""

    @torch.no_grad()
    def encode(self, request: ImageRequest, images: int, *, doubled: bool) -> Tensor:
        """The images' tokens for the UNet.

        Args:
            request: what the adapters are given.
            images: B, how many images are made.
            doubled: put those of an unconditional half in front, as the adapters were trained: of
                an embedding of zeros, and of the hidden states of an image of zeros.

        Returns:
            ``[B, N, D]``, or ``[2B, N, D]`` if doubled; zeros where an adapter is given nothing.

        Raises:
            InvalidRequestError: an image cannot be read, or there is nothing to make hidden states
                of zeros with.
        """
        halves = 2 if doubled else 1
        parts: list[Tensor] = []
        missing: list[tuple[int, int]] = []
        for name, facts in self._manifest.ip_adapters.items():
            given = request.adapters.get(name)
            count = 0 if given is None else given.count
            if given is not None:
                tokens = self._tokens(facts, given).repeat_interleave(images // given.prompts, 0)
                if doubled:
                    zeros = self._unconditional(name, facts, given)
                    zeros = zeros.repeat_interleave(images // len(zeros), 0)
                    tokens = torch.cat([zeros, tokens])
                parts.append(tokens.flatten(1, 2))
            if count < facts.images:
                missing.append((len(parts), (facts.images - count) * facts.tokens))
                parts.append(torch.empty(0))
        like = next(part for part in parts if part.numel())
        for place, rows in missing:
            parts[place] = like.new_zeros(halves * images, rows, like.shape[-1])
        return torch.cat(parts, dim=1)

    def _tokens(self, facts: IpAdapterFacts, given: AdapterImages) -> Tensor:
        """``[n, m, N, D]`` of what an adapter is given."""
        inputs: dict[str, Tensor] = {}
        if given.embeds is not None:
            inputs["image_embeds"] = given.embeds.flatten(0, 1)
        if given.states is not None:
            inputs["hidden_states"] = given.states.flatten(0, 1)
        if given.images is not None:
            wanted = "image_embeds" if facts.states is None else "hidden_states"
            shown = [image for images in given.images for image in images]
            encoder = facts.image_encoder
            assert encoder is not None  # or it would have been refused
            pixels = clip_pixels(shown, encoder.size, encoder.mean, encoder.std)
            inputs[wanted] = self._run(encoder.component, {"pixels": pixels}, wanted)
        tokens = self._run(facts.projection, inputs, "ip_hidden_states")
        return tokens.view(given.prompts, given.count, *tokens.shape[1:])

    def _unconditional(self, name: str, facts: IpAdapterFacts, given: AdapterImages) -> Tensor:
        """Tokens of the unconditional half, ``[1 or n, m, N, D]``."""
        if given.unconditional is not None:
            wanted = "image_embeds" if facts.states is None else "hidden_states"
            inputs = {wanted: given.unconditional.flatten(0, 1)}
            tokens = self._run(facts.projection, inputs, "ip_hidden_states")
            return tokens.view(given.prompts, given.count, *tokens.shape[1:])
        if name not in self._zeros:
            inputs = {}
            if facts.embedding is not None:
                inputs["image_embeds"] = torch.zeros(1, facts.embedding)
            if facts.states is not None:
                inputs["hidden_states"] = self._states_of_zeros(name, facts.image_encoder)
            self._zeros[name] = self._run(facts.projection, inputs, "ip_hidden_states")
        return self._zeros[name][None].expand(1, given.count, -1, -1)

    def _states_of_zeros(self, name: str, encoder: ImageEncoderFacts | None) -> Tensor:
        if encoder is None:
            raise InvalidRequestError(
                f"guidance needs what the image encoder of '{name}' makes of zeros, which the "
                "bundle is without: give ip_adapter_image_embeds as [2, n, m, …], those of zeros "
                "first"
            )
        pixels = torch.zeros(1, 3, encoder.size, encoder.size)
        return self._run(encoder.component, {"pixels": pixels}, "hidden_states")

    def _run(self, component: str, inputs: Mapping[str, Tensor], target: str) -> Tensor:
        if component not in self._engines:
            if self._load is None:
                raise InvalidRequestError(
                    "this pipeline cannot load an image encoder: use kdrt.load"
                )
            self._engines[component] = self._load(component)
        parts = [torch.split(value, IMAGE_PROMPTS.max) for value in inputs.values()]
        results = []
        for values in zip(*parts, strict=True):
            binding = self._engines[component].bind(B=len(values[0]))
            for name, value in zip(inputs, values, strict=True):
                binding.inputs[name].copy_(value)
            binding.run()
            results.append(binding.outputs[target].clone())
        return torch.cat(results)


def write_image_prompt(
    inputs: Mapping[str, Tensor], tokens: Tensor | None, weights: ImageWeights | None
) -> None:
    """Write tokens and their weights into the inputs of a UNet with IP-Adapters. Without tokens,
    and at scale 0, it is exactly off.

    Args:
        inputs: of n·B rows.
        tokens: ``[n·B, N, D]``.
        weights: of B images.
    """
    if "ip_mask" in inputs:
        mask = inputs["ip_mask"]
        if tokens is None or weights is None or weights.mask is None:
            mask.fill_(1)
        else:
            upload(mask, _of_halves(weights.mask, len(mask)))
    if tokens is None or weights is None:
        inputs[IMAGE_TOKENS_INPUT].zero_()
        inputs["ip_scale"].zero_()
        return
    inputs[IMAGE_TOKENS_INPUT].copy_(tokens)
    scale = inputs["ip_scale"]
    upload(scale, _of_halves(weights.scale, len(scale)))


def _of_halves(rows: Tensor, count: int) -> Tensor:
    """The rows of B images for each half of a batch of ``count``."""
    return rows.repeat(count // len(rows), *[1] * (rows.ndim - 1))
