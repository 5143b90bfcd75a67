"""Names of components, and of the inputs and outputs that more than one room speaks of."""

from __future__ import annotations

SHALLOW_UNET = "unet_shallow"
"""The component that computes the outermost layers. It replaces no other component, so it is not
among the variants of a manifest."""


DEEP_CACHE = "deepcache"
"""What ``kdrt export --variant`` calls it."""


DEEP_FEATURE = "deep_feature"
"""What the full network hands out and the shallow one takes."""


PAG = "pag"
"""The variant whose UNet has rows for perturbed-attention guidance."""


PAG_INPUT = "pag_rows"
"""The input that tells it which rows are perturbed: 1 for those, else 0."""


IMAGE_TOKENS_INPUT = "ip_hidden_states"
"""The input by which a UNet takes the images of IP-Adapters."""


DOWN_RESIDUAL, MID_RESIDUAL = "down_residual_", "mid_residual"
"""What a ControlNet hands out and a UNet takes: for its skip connections, numbered, and for its
middle."""


CONTROL_COMPONENT, CONTROL_HINT = "controlnet-", "-hint"
"""A ControlNet is the component of its name after the first, and what it makes of its image once
that with the second behind it."""


ADAPTER_COMPONENT = "t2i-adapter-"
"""Likewise of a T2I-Adapter."""


UPSCALER_COMPONENT = "upscaler-"
"""Likewise of a network that enlarges images."""


ADAPTER_RESIDUAL = "adapter_residual_"
"""What a T2I-Adapter hands out and a UNet takes, numbered."""


def is_residual(name: str) -> bool:
    """Whether an input of a UNet takes what is added to one of its layers."""
    return name == MID_RESIDUAL or name.startswith((DOWN_RESIDUAL, ADAPTER_RESIDUAL))
