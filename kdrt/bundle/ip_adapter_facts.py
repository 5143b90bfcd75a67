"""What a manifest says of IP-Adapters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrt.bundle.bounded import Bounded, ComponentName, Positive, Sha256, Size, Strict, Text


class ImageEncoderFacts(Strict):
    """How an image becomes the input of the image encoder: the component, the side of the square in
    pixels, and the statistics its colours are normalised with."""

    component: ComponentName = "image_encoder"
    size: Annotated[int, Field(ge=1, le=8192)]
    mean: tuple[Bounded, Bounded, Bounded]
    std: tuple[Positive, Positive, Positive]


AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


IpAdapterKind = Literal["linear", "plus", "full", "faceid", "faceid-plus"]
"""What an IP-Adapter reads of an image. ``linear``: CLIP's embedding of it. ``plus`` and ``full``:
the hidden states of the last layer but one. ``faceid``: the embedding from a face detector.
``faceid-plus``: that embedding and the hidden states of the face."""


class IpAdapterFacts(Strict):
    """An IP-Adapter of the variant ``ip-adapter``.

    The component ``projection`` makes ``tokens`` tokens from an image: from an embedding of
    ``embedding`` numbers, or from ``states[0]`` hidden states of ``states[1]`` numbers, or from
    both. The adapter takes up to ``images`` images at once. If the bundle has no image encoder for
    it, requests must give what the image encoder makes of an image.
    """

    file: Text
    sha256: Sha256
    kind: IpAdapterKind = "linear"
    tokens: Annotated[int, Field(ge=1, le=65_536)]
    embedding: Annotated[int, Field(ge=1, le=65_536)] | None = None
    states: tuple[Size, Size] | None = None
    images: Annotated[int, Field(ge=1, le=16)] = 1
    projection: ComponentName = "image_projection"
    image_encoder: ImageEncoderFacts | None = None

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if (self.embedding is not None) != (self.kind in ("linear", "faceid", "faceid-plus")):
            raise ValueError(f"a {self.kind} IP-Adapter and its embedding do not go together")
        if (self.states is not None) != (self.kind in ("plus", "full", "faceid-plus")):
            raise ValueError(f"a {self.kind} IP-Adapter and its hidden states do not go together")
        return self


AttentionName = Annotated[str, Field(pattern=r"^(mid|(down|up)\.block_\d{1,2}\.\d{1,2})$")]

Level = Annotated[int, Field(ge=0, le=15)]
