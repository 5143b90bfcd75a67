"""What turns images into an IP-Adapter's tokens: CLIP's vision model, and the projections of the
adapters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from torch import nn
from transformers import CLIPVisionModelWithProjection

from kdrt.bundle import IpAdapterKind
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.components.vision import VisionTransformer
from kdrt_export.rewrites.fused_qkv import rewrite_attention

_KINDS: dict[type[nn.Module], IpAdapterKind] = {
    ImageProjection: "linear",
    IPAdapterPlusImageProjection: "plus",
    IPAdapterFullImageProjection: "full",
    IPAdapterFaceIDImageProjection: "faceid",
    IPAdapterFaceIDPlusImageProjection: "faceid-plus",
}


class ExportProjection(ExportComponent):
    """An adapter's projection: what is known of an image → ip_hidden_states [B,N,D].

    Inputs, as its kind has them: image_embeds [B,P], CLIP's or a face's; hidden_states [B,T,W].

    Args:
        source: one of diffusers' projections.
        rows: T, how many hidden states the image encoder gives.

    Attributes:
        kind: of the adapter.
        tokens: N.
        embedding: P; None where it takes none.
        states: T and W; None where it takes none.
    """

    def __init__(self, source: nn.Module, rows: int) -> None:
        super().__init__()
        self.network: Any = source
        self.kind = _KINDS[type(source)]
        self.embedding: int | None = None
        self.states: tuple[int, int] | None = None
        if isinstance(source, ImageProjection):
            self.tokens = source.num_image_text_embeds
            self.embedding = source.image_embeds.in_features
            self._width: int = source.norm.normalized_shape[0]
        elif isinstance(source, IPAdapterPlusImageProjection):
            self.tokens = source.latents.shape[1]
            self.states = rows, source.proj_in.in_features
            self._width = source.proj_out.out_features
        elif isinstance(source, IPAdapterFullImageProjection):
            self.tokens = rows
            self.states = rows, source.ff.net[0].proj.in_features
            self._width = source.norm.normalized_shape[0]
        elif isinstance(source, IPAdapterFaceIDImageProjection):
            self.tokens = source.num_tokens
            self.embedding = source.ff.net[0].proj.in_features
            self._width = source.cross_attention_dim
        elif isinstance(source, IPAdapterFaceIDPlusImageProjection):
            self.tokens = source.num_tokens
            self.embedding = source.proj.net[0].proj.in_features
            self.states = rows, source.proj_in.in_features
            self._width = source.proj_out.out_features
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        inputs = []
        if self.embedding is not None:
            inputs.append(TensorSpec("image_embeds", dtype, ("B", self.embedding)))
        if self.states is not None:
            inputs.append(TensorSpec("hidden_states", dtype, ("B", *self.states)))
        tokens = ("B", self.tokens, self._width)
        return EngineSpec(tuple(inputs), (TensorSpec("ip_hidden_states", dtype, tokens),))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)

    def rewrite(self) -> None:
        # Not fused: a resampler's queries and keys are of different sequences.
        rewrite_attention(self.network, fuse=False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.kind == "faceid-plus":
            # diffusers' takes the hidden states of n images each as an attribute.
            embedding, states = inputs
            self.network.clip_embeds = states[:, None]
            inputs = (embedding,)
        tokens: torch.Tensor = self.network(*inputs)
        return tokens


class ExportImageEncoder(ExportComponent):
    """A CLIP vision model: pixels [B,3,S,S], normalised → what adapters read: image_embeds [B,P],
    projected, and hidden_states [B,T,W], those that the last layer takes.

    Args:
        model: the network.
        embeds: give image_embeds.
        states: give hidden_states.
    """

    def __init__(
        self, model: CLIPVisionModelWithProjection, *, embeds: bool = True, states: bool = False
    ) -> None:
        super().__init__()
        self._source = [model]
        self._embeds, self._states = embeds, states
        self.projection = model.visual_projection
        self.size: int = model.config.image_size
        self._shape = encoder_states(model.config)
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        outputs = []
        if self._embeds:
            width = self.projection.out_features
            outputs.append(TensorSpec("image_embeds", dtype, ("B", width)))
        if self._states:
            outputs.append(TensorSpec("hidden_states", dtype, ("B", *self._shape)))
        pixels = TensorSpec("pixels", dtype, ("B", 3, self.size, self.size))
        return EngineSpec((pixels,), tuple(outputs))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self._source[0](*inputs, output_hidden_states=True)
        states = (result.hidden_states[-2],) if self._states else ()
        return (result.image_embeds, *states) if self._embeds else states

    def rewrite(self) -> None:
        self.vision = VisionTransformer(self._source.pop().vision_model)
        if not self._embeds:  # nor are the last layer's results read
            del self.projection, self.vision.layers[-1], self.vision.post_layer_norm

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if not self._embeds:
            return self.vision(pixels)
        states = self.vision.before_last(pixels)
        embeds = self.projection(self.vision.pooled(self.vision.layers[-1](states)))
        return (embeds, states) if self._states else embeds


def encoder_states(config: Any) -> tuple[int, int]:
    """How many hidden states a CLIP vision model gives, and how wide they are."""
    patches = config.image_size // config.patch_size
    return patches**2 + 1, config.hidden_size
