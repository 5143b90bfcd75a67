"""Every kind of LoRA does to a layer what the library does that its trainers are made with."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdrt.adapters.lora_file import parse_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from tests.support.lycoris_layers import (
    AT_FULL_STRENGTH,
    MODULES,
    AdaptedLayer,
    adapted_layer,
    adapted_norm,
)

Layer = TypeVar("Layer", bound=nn.Module)


def our_layer(
    layer: Layer, state: Mapping[str, Tensor], scale: float = 1.0, **options: Any
) -> Layer:
    """A copy of the layer that a file calls ``layer``, with the LoRA in its weights."""
    ours = copy.deepcopy(layer)
    parameters = {f"layer.{name}": p.detach() for name, p in ours.named_parameters()}
    places = slots({name: tuple(p.shape) for name, p in parameters.items()})
    placed = place(parse_lora(state, **options)["unet"], places)
    assert not placed.unmatched
    for name, weight in merged([(placed, scale)], parameters.__getitem__).items():
        ours.get_parameter(name.removeprefix("layer.")).data.copy_(weight)
    return ours


def error_of(ours: nn.Module, theirs: nn.Module, inputs: Tensor) -> float:
    """How far what two layers make of an input differs, relative to its size."""
    with torch.no_grad():
        wanted = theirs(inputs)
        return float((ours(inputs) - wanted).norm() / wanted.norm())


@st.composite
def layers(draw: st.DrawFn, rows: list[int]) -> tuple[nn.Module, Tensor]:
    """A linear layer or a convolution with one of these numbers of rows, and an input for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    out, into = draw(st.sampled_from(rows)), draw(st.sampled_from([4, 10, 15]))
    kernel = draw(st.sampled_from([0, 1, 3]))
    if kernel:
        convolution = nn.Conv2d(into, out, kernel, padding=kernel // 2)
        return convolution, torch.randn(2, into, 5, 4)
    return nn.Linear(into, out), torch.randn(3, into)


@pytest.mark.parametrize("kind", [*MODULES, *AT_FULL_STRENGTH])
@settings(max_examples=10, deadline=None)
@given(
    data=st.data(),
    rank=st.integers(1, 4),
    alpha=st.sampled_from([0.5, 1.0, 6.0]),
    scale=st.sampled_from([1.0, 0.7, -0.5, 2.0]),
)
def test_the_layer_does_what_it_does_in_lycoris(
    kind: str, data: st.DataObject, rank: int, alpha: float, scale: float
) -> None:
    rows = [12, 24] if "BOFT" in kind else [12, 24, 9, 15]  # a butterfly has pairs
    base, inputs = data.draw(layers(rows))
    scale = 1.0 if kind in AT_FULL_STRENGTH else scale
    reference = adapted_layer(kind, base, rank=rank, alpha=alpha, scale=scale)
    ours = our_layer(base, reference.file, scale)
    if "OFT" not in kind:  # a block of one row cannot be rotated
        assert error_of(base, reference.adapted, inputs) > 1e-3
    assert error_of(ours, reference.adapted, inputs) < 1e-6


@pytest.mark.parametrize("layer", [nn.LayerNorm(7), nn.GroupNorm(3, 9)])
def test_a_norm_does_what_it_does_in_lycoris(layer: nn.Module) -> None:
    reference = adapted_norm(layer, scale=0.7)
    inputs = torch.randn(2, 9, 4, 7)
    assert error_of(our_layer(layer, reference.file, 0.7), reference.adapted, inputs) < 1e-6


@pytest.mark.parametrize("kind", [*MODULES, *AT_FULL_STRENGTH])
def test_a_scale_of_nearly_nothing_changes_nearly_nothing(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(10, 12)
    reference = adapted_layer(kind, layer, rank=2, alpha=1, scale=1)
    change = error_of(our_layer(layer, reference.file, 1e-4), layer, torch.randn(3, 10))
    assert 0 < change < 1e-2


def test_layers_see_the_base_weight_whatever_their_order() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(10, 12)
    parts: list[AdaptedLayer] = [
        adapted_layer(kind, layer, rank=2, alpha=1, scale=1, seed=seed)
        for seed, kind in enumerate(("OFT", "DoRA of rows, LoCon", "GLoRA"))
    ]
    base = layer.weight.detach()
    places = slots({"layer.weight": (12, 10)})
    placed = [(place(parse_lora(part.file)["unet"], places), 0.5) for part in parts]
    together = merged(placed, lambda _: base)["layer.weight"]
    backwards = merged(placed[::-1], lambda _: base)["layer.weight"]
    alone = sum(merged([one], lambda _: base)["layer.weight"] - base for one in placed)
    torch.testing.assert_close(together, base + alone)
    torch.testing.assert_close(backwards, together)


def test_a_fused_projection_has_rows_of_its_own() -> None:
    torch.manual_seed(0)
    separate = nn.Linear(8, 6, bias=False)
    reference = adapted_layer("DoRA of columns, LoCon", separate, rank=2, alpha=1, scale=1)
    state = {key.replace("_layer", "_attn_to_k"): t for key, t in reference.file.items()}
    fused = torch.cat([torch.randn(6, 8), separate.weight.detach(), torch.randn(6, 8)])
    placed = place(parse_lora(state)["unet"], slots({"attn.to_qkv.weight": (18, 8)}))
    changed = merged([(placed, 1.0)], lambda _: fused)["attn.to_qkv.weight"]
    ours = our_layer(separate, reference.file).weight
    torch.testing.assert_close(changed, torch.cat([fused[:6], ours, fused[12:]]))


@pytest.mark.parametrize("kind", ["OFT", "BOFT", "LoHa", "DoRA of rows, LoCon", "GLoRA"])
def test_torchs_defaults_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(10, 12)
    state = adapted_layer(kind, layer, rank=2, alpha=1, scale=1).file
    usual = our_layer(layer, state).weight
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(our_layer(layer, state).weight, usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_glora_of_lycoris_before_2() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(10, 12, bias=False)
    reference = adapted_layer("GLoRA", layer, rank=3, alpha=2, scale=1)
    swap = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {
        ".".join(swap.get(part, part) for part in key.split(".")): tensor
        for key, tensor in reference.file.items()
    }
    assert error_of(our_layer(layer, old), reference.adapted, torch.randn(3, 10)) < 1e-6


def test_loha_of_onetrainer_keeps_kernels_as_they_are() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3)
    reference = adapted_layer("LoHa", layer, rank=2, alpha=1, scale=1)
    state = {
        key: tensor.reshape(8, 2, 1, 1)
        if key.endswith("_a")
        else tensor.reshape(2, 6, 3, 3)
        if key.endswith("_b")
        else tensor
        for key, tensor in reference.file.items()
    }
    assert error_of(our_layer(layer, state), reference.adapted, torch.randn(2, 6, 5, 5)) < 1e-6


def test_oft_of_onetrainer() -> None:
    """It rotates the inputs of linear layers and the kernels of convolutions, which are opposite
    ways; no package of it can be installed, so this is its formula by hand."""
    torch.manual_seed(0)
    generators = torch.randn(6, 3) * 0.1
    q = torch.zeros(6, 3, 3)
    q[:, [0, 0, 1], [1, 2, 2]] = generators
    q = q - q.mT
    rotation = torch.eye(3) + 2 * (q + q @ q + q @ q @ q) + q @ q @ q @ q
    state = {"lora_unet_layer.oft_R.weight": generators}
    linear, kernel = nn.Linear(18, 4), nn.Conv2d(2, 4, 3)
    inputs = torch.randn(5, 18)
    with torch.no_grad():
        wanted = linear(torch.einsum("brk,rkc->brc", inputs.reshape(5, 6, 3), rotation).flatten(1))
        torch.testing.assert_close(our_layer(linear, state)(inputs), wanted)
        turned = torch.einsum("ork,rkc->orc", kernel.weight.reshape(4, 6, 3), rotation)
        ours = our_layer(kernel, state).weight
        torch.testing.assert_close(ours, turned.reshape(4, 2, 3, 3))


def test_half_precision_is_computed_in_float32() -> None:
    """Products of float16 numbers leave its range; their sum here does not."""
    big = math.sqrt(60000) * 4
    state = {
        "lora_unet_layer.hada_w1_a": torch.full((4, 1), big).half(),
        "lora_unet_layer.hada_w1_b": torch.full((1, 4), big).half(),
        "lora_unet_layer.hada_w2_a": torch.full((4, 1), 1 / big).half(),
        "lora_unet_layer.hada_w2_b": torch.full((1, 4), 1 / big).half(),
    }
    layer = nn.Linear(4, 4, bias=False)
    changed = our_layer(layer, state).weight - layer.weight
    torch.testing.assert_close(changed, torch.ones(4, 4), rtol=1e-3, atol=1e-3)
