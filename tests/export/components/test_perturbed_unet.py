"""Which self-attentions a name stands for."""

from __future__ import annotations

import pytest

from kdrt_export.components.perturbed_unet import self_attentions
from kdrt_export.errors import ExportError
from kdrt_export.options import perturbed_layers
from tests.support.tiny_networks import unet


def test_names_are_those_of_diffusers() -> None:
    network = unet("sdxl")
    every = self_attentions(network, ["attn1"])
    assert all(name.endswith("attn1") for name in every)
    (middle, *others) = self_attentions(network, ["mid"])
    assert middle.startswith("mid_block")
    assert {middle, *others} < set(every)
    assert self_attentions(network, ["down.block_1"]) == self_attentions(network, ["down_blocks.1"])
    some = self_attentions(network, ["up.block_1.attentions_0", "mid"])
    assert some == tuple(name for name in every if name in some)
    assert {name.partition(".")[0] for name in some} == {"mid_block", "up_blocks"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("down_blocks.9", "no self-attention in 'down_blocks.9'.*such as .*mid_block"),
        ("", "no self-attention in ''"),
        ("(", r"'\(' is no name of layers"),
        ("attn2", "no self-attention"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(layer: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        self_attentions(unet("sd"), [layer])


def test_layers_belong_to_the_variant() -> None:
    assert perturbed_layers(["pag"], []) == ("mid",)
    assert perturbed_layers(["deepcache"], []) == ()
    with pytest.raises(ExportError, match="add --variant pag"):
        perturbed_layers([], ["mid"])
