"""Fused projections compute what diffusers' attention computes, biases included."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from kdrt_export.errors import UnsupportedModelError
from kdrt_export.rewrites.fused_qkv import ExportAttention, concatenate, rewrite_attention
from tests.support.tiny_networks import randomized, unet

KINDS: dict[str, Any] = {
    "self": {"query_dim": 24, "heads": 3, "dim_head": 8, "bias": True},
    "self without bias": {"query_dim": 24, "heads": 2, "dim_head": 5},
    "cross": {"query_dim": 24, "cross_attention_dim": 15, "heads": 3, "dim_head": 8, "bias": True},
    "cross of equal width": {"query_dim": 24, "cross_attention_dim": 24, "heads": 4, "dim_head": 6},
    "vae": {
        "query_dim": 24,
        "heads": 1,
        "dim_head": 24,
        "bias": True,
        "residual_connection": True,
        "norm_num_groups": 4,
        "rescale_output_factor": 1.5,
    },
}


def example(kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    if kind == "vae":
        return torch.randn(2, 24, 7, 5, generator=generator), None
    context = KINDS[kind].get("cross_attention_dim")
    x = torch.randn(2, 11, 24, generator=generator)
    return x, torch.randn(2, 9, context, generator=generator) if context else None


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_original(kind: str, fuse: bool) -> None:
    original = randomized(Attention(**KINDS[kind]))
    x, context = example(kind)
    expected = original(x, encoder_hidden_states=context)
    replaced = ExportAttention(original, fuse=fuse)(x, encoder_hidden_states=context)
    torch.testing.assert_close(replaced, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_traced_formula_equals_the_fused_kernel(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = ExportAttention(randomized(Attention(**KINDS[kind])), fuse=True)
    x, context = example(kind)
    expected = attention(x, context)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(attention(x, context), expected, rtol=1e-5, atol=1e-6)


def test_the_original_projections_are_gone() -> None:
    network = unet("sdxl")
    before = sum(p.numel() for p in network.parameters())
    sites = rewrite_attention(network)
    names = [name for name, _ in network.named_parameters()]
    assert sites == sum(name.endswith("to_out.0.weight") for name in names) > 0
    assert not [name for name in names if name.endswith(("to_k.weight", "to_v.weight"))]
    assert sum(p.numel() for p in network.parameters()) == before


def test_a_missing_bias_becomes_zeros_next_to_a_present_one() -> None:
    with_bias, without = nn.Linear(4, 3), nn.Linear(4, 2, bias=False)
    x = torch.randn(5, 4)
    expected = torch.cat([with_bias(x), without(x)], dim=-1)
    torch.testing.assert_close(concatenate(with_bias, without)(x), expected)


@pytest.mark.parametrize(
    "extra", [{"added_kv_proj_dim": 8}, {"spatial_norm_dim": 8}, {"qk_norm": "layer_norm"}]
)
def test_attention_it_does_not_know_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be exported"):
        ExportAttention(Attention(query_dim=32, heads=2, dim_head=8, **extra), fuse=True)


def test_an_attention_is_freed_before_the_next_but_one_is_rewritten() -> None:
    """Else a network would be in memory with its projections both apart and fused."""

    class Counting(nn.Module):
        """Notes how many attentions there still are whenever one is replaced."""

        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, ExportAttention):
                left.append(sum(attention() is not None for attention in attentions))
            super().__setattr__(name, value)

    attentions: list[weakref.ref[Attention]] = []
    left: list[int] = []
    network = Counting()
    for index in range(4):
        attention = Attention(**KINDS["self"])
        attentions.append(weakref.ref(attention))
        setattr(network, f"attention_{index}", attention)
    del attention
    assert rewrite_attention(network) == 4
    assert left == [4, 3, 2, 1]
