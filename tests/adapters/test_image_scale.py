"""Scales of parts of a UNet are those of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import IPAdapterMixin
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from kdrt.adapters.image_scale import scale_table
from kdrt.adapters.ip_adapter import ImageWeights, write_image_prompt
from kdrt.bundle import IpAdapterFacts
from kdrt.errors import InvalidRequestError
from kdrt.request.text_forms import IMAGE_SCALE
from kdrt_export.rewrites.image_prompt import image_attentions
from tests.support.tiny_networks import unet


def manifest(*names: str, **changes: Any) -> Any:
    facts = IpAdapterFacts(file="f", sha256="0" * 64, tokens=4, embedding=8)
    attentions = {each.name: each.level for each in image_attentions(unet("sdxl"))}
    return SimpleNamespace(
        name="tiny",
        ip_adapters=dict.fromkeys(names or ("one",), facts),
        ip_attentions=attentions,
        **changes,
    )


@pytest.mark.parametrize(
    "scale",
    [
        0.7,
        {"up": {"block_0": [0.0, 1.0]}},
        {"down": 0.3, "mid": 0.5, "up": {"block_0": 0.2, "block_1": [0.1, 0.9]}},
        {"down": {"block_2": [0.4]}},
    ],
)
def test_it_is_that_of_diffusers(scale: Any) -> None:
    network = unet("sdxl")
    processors = {
        name: IPAdapterAttnProcessor2_0(8, 8, num_tokens=[4]) if "attn2" in name else processor
        for name, processor in network.attn_processors.items()
    }
    network.set_attn_processor(processors)
    IPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(unet=network, unet_name="unet"), scale)
    (row,) = scale_table(scale, manifest(), {"one": 1}).tolist()
    told = dict(zip(manifest().ip_attentions, row, strict=True))
    for _, path, _ in (attentions := image_attentions(network)):
        place = next(each for each in attentions if each.path == path)
        for name, processor in network.attn_processors.items():
            if name.startswith(f"{path}.") and "attn2" in name:
                assert processor.scale[0] == pytest.approx(told[place.name])


def test_each_adapter_has_its_own() -> None:
    two = manifest("face", "style")
    table = scale_table({"face": {"mid": 2}, "style": 0.5}, two, {"face": 1, "style": 1})
    middle = list(two.ip_attentions).index("mid")
    assert table[0].nonzero().flatten().tolist() == [middle]
    assert table[1].unique().tolist() == [0.5]
    # What is not named counts fully, and what is given nothing does not count.
    table = scale_table({"face": 0.5}, two, {"style": 1})
    assert table.unique(dim=1).flatten().tolist() == [0.0, 1.0]


def test_bundles_of_one_scale() -> None:
    earlier = manifest()
    earlier.ip_attentions = {}
    scale = scale_table(0.6, earlier, {"one": 1})
    inputs = {"ip_hidden_states": torch.zeros(2, 4, 8), "ip_scale": torch.zeros(1)}
    write_image_prompt(inputs, torch.ones(2, 4, 8), ImageWeights(scale))
    assert inputs["ip_scale"].tolist() == pytest.approx([0.6])
    assert inputs["ip_hidden_states"].unique().tolist() == [1.0]
    with pytest.raises(InvalidRequestError, match="exported before ip_adapter_scale could be"):
        scale_table({"mid": 1}, earlier, {"one": 1})


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("0.6", 0.6),
        ("up.block_0=0/1/0,mid=0.5", {"up.block_0": [0, 1, 0], "mid": 0.5}),
        ("face=0.6 style.up.block_0=0/1", {"face": 0.6, "style": {"up.block_0": [0, 1]}}),
        ("face=0.7/0.3", {"face": [0.7, 0.3]}),
    ],
)
def test_scales_as_text(text: str, scale: Any) -> None:
    assert IMAGE_SCALE.read(text) == scale
    assert IMAGE_SCALE.read(IMAGE_SCALE.write(scale)) == scale


@pytest.mark.parametrize("text", ["", "a lot", "mid=", "=1", "mid=1 mid=2", "face=1 face.mid=2"])
def test_what_is_no_scale(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a form says no more
        IMAGE_SCALE.read(text)
