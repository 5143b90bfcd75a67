"""The untouched networks of a source, behind the inputs and outputs of a bundle's components.

This is what everyone who does not use kdrt runs: diffusers' and transformers' own modules, in
float32, with their attention through PyTorch's scaled_dot_product_attention. FreeU is left out: it
is off in every workload, and PyTorch would pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import Model
from kdrt_export.components import ExportVaeDecoder, call_unet
from kdrt_export.sources import Source, open_source


def source_of(model: Model) -> Source:
    """Where a bundle's networks came from.

    Raises:
        SourceError: it cannot be read.
    """
    return open_source(model.source, random_weights=model.random_weights)


class PlainUNet(nn.Module):
    """A UNet; ``names`` are those of its inputs, in order."""

    def __init__(self, unet: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.unet = unet
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return call_unet(self.unet, named)[0]


class PlainTextEncoder(nn.Module):
    """A CLIP text model that takes rows of its token embedding, and the place of the end of text,
    and gives every hidden state."""

    def __init__(self, model: Any, *, normalize: bool) -> None:
        super().__init__()
        text = getattr(model, "text_model", model)
        self.embeddings, self.layers = text.embeddings, text.encoder.layers
        self.final_layer_norm = text.final_layer_norm
        self.text_projection = getattr(model, "text_projection", None)
        self.normalize = normalize

    def forward(self, inputs_embeds: Tensor, eos_index: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embeddings(inputs_embeds=inputs_embeds)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, None, is_causal=True)
            states.append(hidden)
        last = self.final_layer_norm(hidden)
        pooled = last[torch.arange(last.shape[0], device=last.device), eos_index]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        stacked = torch.stack(states, dim=1)
        return self.final_layer_norm(stacked) if self.normalize else stacked, pooled


def plain_network(source: Source, component: str, names: Sequence[str]) -> nn.Module:
    """The untouched network of a component, with its weights resident.

    Args:
        source: where it comes from.
        component: its name in a bundle.
        names: its inputs, in the order in which they will be given.

    Raises:
        PeerUnavailableError: peers do not run this component.
    """
    network: nn.Module
    if component == "unet":
        network = PlainUNet(source.unet(), names)
    elif component == "vae_decoder":
        network = ExportVaeDecoder(source.vae(), fuse_qkv=False)
    elif component in ("text_encoder", "text_encoder_2"):
        model = source.text_encoder(int(component == "text_encoder_2"))
        network = PlainTextEncoder(model, normalize=source.family == "sd")
    else:
        raise PeerUnavailableError(
            f"peers run unet, vae_decoder and text encoders, not '{component}'; choose one of those"
        )
    return resident(network.float().eval().requires_grad_(False))


@torch.no_grad()
def resident(network: nn.Module) -> nn.Module:
    """Move weights out of files mapped into memory: their pages may be dropped and read again
    while others are measured, which slows whoever comes after."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    return network
