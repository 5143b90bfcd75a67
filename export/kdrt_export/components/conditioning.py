"""How time and prompt enter a UNet, and a ControlNet likewise: the networks have the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdrt_engines.spec import TensorSpec


def embed_time(
    network: Any,
    dtype: torch.dtype,
    timestep: torch.Tensor,
    extra: Mapping[str, torch.Tensor],
    time_ids: int | None,
) -> torch.Tensor:
    """The embedding [B, E] that every residual block takes.

    Args:
        network: a ``UNet2DConditionModel`` or a ``ControlNetModel``.
        dtype: of the result.
        timestep: [B] float32.
        extra: the inputs beside it, by name.
        time_ids: how many numbers of size conditioning the network takes; None if it takes none.
    """
    embedding: torch.Tensor = network.time_embedding(
        network.time_proj(timestep).to(dtype), extra.get("timestep_cond")
    )
    if time_ids is not None:
        ids = network.add_time_proj(extra["time_ids"].flatten())
        width = time_ids * network.config.addition_time_embed_dim
        ids = ids.reshape(-1, width).to(dtype)
        embedding = embedding + network.add_embedding(
            torch.cat([extra["text_embeds"], ids], dim=-1)
        )
    activation = getattr(network, "time_embed_act", None)
    return embedding if activation is None else activation(embedding)


def context_of(block: nn.Module, context: Any) -> dict[str, Any]:
    """The argument of a block that attends to the prompt."""
    if getattr(block, "has_cross_attention", False):
        return {"encoder_hidden_states": context}
    return {}


def example_time(
    tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor | None:
    """Random timesteps and size conditioning as a network is trained on; None for other inputs."""
    if tensor.name == "timestep":
        return torch.rand(shape, generator=generator) * 999
    if tensor.name == "time_ids":
        return torch.randint(0, 1024, shape, generator=generator).float()
    return None
