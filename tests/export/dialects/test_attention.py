"""Attention in both dialects is PyTorch's."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdrt_export.dialects.attention import fused_attention, standard_attention
from kdrt_export.onnx.ops import MARKERS, attention
from tests.support.graphs_of import graph_of, kinds, run

FUSED = {"standard": standard_attention, "onnxruntime": fused_attention}


def tensors(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(q), torch.from_numpy(k), torch.from_numpy(v)


def marked(heads: int, head_dim: int, *, masked: bool = False) -> ir.Model:
    names = ["q", "k", "v", *(["mask"] if masked else [])]
    return graph_of(
        lambda recorder, values: recorder.op(
            "Attention",
            [values[name] for name in names],
            {"heads": heads, "head_dim": head_dim, "dtype": 1},
            domain=MARKERS,
        ),
        names,
    )


@pytest.mark.parametrize("dialect", FUSED)
@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    others=st.integers(1, 9),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 9),
)
def test_equals_pytorch(
    dialect: str, batch: int, length: int, others: int, heads: int, head_dim: int
) -> None:
    draw = np.random.default_rng(batch + 10 * length)
    width = heads * head_dim
    query = draw.standard_normal((batch, length, width), np.float32)
    key, value = draw.standard_normal((2, batch, others, width), np.float32)
    model = marked(heads, head_dim)
    assert FUSED[dialect](model.graph) == 1
    expected = attention(*tensors(query, key, value), heads, head_dim)
    (found,) = run(model, query, key, value)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dialect", FUSED)
def test_a_mask_is_added_to_the_scores(dialect: str) -> None:
    draw = np.random.default_rng(1)
    query, key, value = draw.standard_normal((3, 2, 5, 6), np.float32)
    mask = np.triu(np.full((5, 5), np.finfo(np.float32).min, np.float32), 1)
    model = marked(2, 3, masked=True)
    FUSED[dialect](model.graph)
    expected = attention(*tensors(query, key, value), 2, 3, torch.from_numpy(mask))
    (found,) = run(model, query, key, value, mask)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_what_becomes_of_a_marker() -> None:
    standard, fused = marked(2, 3), marked(2, 3)
    standard_attention(standard.graph)
    fused_attention(fused.graph)
    assert kinds(fused) == ["MultiHeadAttention"]
    assert sorted(kinds(standard)) == sorted(
        ["Reshape", "Transpose"] * 4 + ["Mul", "MatMul", "Softmax", "MatMul"]
    )
    assert {node.domain for node in standard.graph} == {""}
