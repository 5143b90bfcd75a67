"""``lbw=``: which part of the UNet each number is about."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdrt.adapters.lora_block_weights import block_weights
from kdrt.adapters.lora_merge import scale_at
from kdrt.errors import InvalidRequestError
from kdrt_export.families import SD15, SDXL

BY_NAME = {
    17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 "
    "OUT11",
    12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
}
"""The extension's own lists."""
ATTENTIONS = {
    17: {
        "IN01": "down_blocks.0.attentions.0",
        "IN05": "down_blocks.1.attentions.1",
        "IN08": "down_blocks.2.attentions.1",
        "M00": "mid_block.attentions.0",
        "OUT03": "up_blocks.1.attentions.0",
        "OUT08": "up_blocks.2.attentions.2",
        "OUT11": "up_blocks.3.attentions.2",
    },
    12: {
        "IN04": "down_blocks.1.attentions.0",
        "IN08": "down_blocks.2.attentions.1",
        "M00": "mid_block.attentions.0",
        "OUT00": "up_blocks.0.attentions.0",
        "OUT05": "up_blocks.1.attentions.2",
    },
}
"""By hand, from the order of the blocks in the original checkpoints."""


@cache
def modules(count: int) -> tuple[str, ...]:
    """The layers with weights of a real UNet."""
    family: Any = SD15 if count in (17, 26) else SDXL
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(family.unet)
    return tuple(name for name, each in unet.named_modules() if hasattr(each, "weight"))


def scale_of(weights: list[float], module: str, **scales: float) -> float:
    scale = block_weights(weights, **scales)
    assert isinstance(scale, dict)
    return scale_at(scale["unet"], module)


@pytest.mark.parametrize("count", [17, 12])
def test_a_number_is_about_the_block_of_its_name(count: int) -> None:
    names = BY_NAME[count].split()
    for name, attention in ATTENTIONS[count].items():
        weights = [0.0] * count
        weights[names.index(name)] = 0.5
        module = f"{attention}.transformer_blocks.0.attn1.to_q"
        assert module in modules(count)
        assert scale_of(weights, module, unet=3.0) == 1.5
        others = set(ATTENTIONS[count].values()) - {attention}
        assert all(scale_of(weights, path) == 0 for path in others)


@pytest.mark.parametrize("count", [12, 17, 20, 26])
def test_a_layer_is_in_one_block(count: int) -> None:
    hot = [[float(index == place) for index in range(count)] for place in range(count)]
    inside = [name for name in modules(count) if "blocks." in name or "mid_block" in name]
    for module in inside:
        share = sum(scale_of(weights, module) for weights in hot)
        assert share == 1 or (share == 0 and count in (12, 17) and "attn" not in module)


def test_the_first_number_is_about_the_text_encoders() -> None:
    scale = block_weights([0.5, *[0.0] * 11], unet=1.0, text_encoder=3.0)
    assert isinstance(scale, dict)
    assert (scale["text_encoder"], scale["text_encoder_2"]) == (1.5, 1.5)


def test_another_count_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="lbw= has 16 numbers; it takes 17 or 26 for SD"):
        block_weights([1.0] * 16)
