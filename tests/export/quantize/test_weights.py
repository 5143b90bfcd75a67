"""Weights in few bits: beside ONNX Runtime's own operators, and how far off they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrt_export.quantize.formats import FORMATS, Format
from kdrt_export.quantize.weights import QuantizedWeight, quantize_weight, weight_scale

formats = st.sampled_from(list(FORMATS.values()))


def dequantized(weight: QuantizedWeight, into: Format, axis: int | None) -> np.ndarray:
    """What ONNX Runtime reads from the bytes."""
    numbers = onnx.TensorProto(
        name="q",
        data_type=into.dtype.value,
        dims=weight.shape,
        raw_data=weight.values.contiguous().numpy().tobytes(),
    )
    scale = onnx.numpy_helper.from_array(weight.scale.numpy(), "s")
    attributes = {} if axis is None else {"axis": axis}
    attributes |= {} if into.block is None else {"block_size": into.block}
    node = onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.scale.numpy().dtype)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [],
        [onnx.helper.make_tensor_value_info("w", kind, None)],
        [numbers, scale],
    )
    opsets = [onnx.helper.make_opsetid("", into.opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {})[0]
    return result


@given(
    formats,
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.float16]),
    st.floats(-3, 2),
    st.integers(0, 2**31),
)
def test_a_linear_weight_is_off_by_half_a_step_at_most(
    into: Format, rows: int, blocks: int, dtype: torch.dtype, exponent: float, seed: int
) -> None:
    columns = blocks * (into.block or 7)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 10**exponent).to(dtype)
    weight[0] = 0  # a dead channel has no scale to divide by
    made = quantize_weight(weight, into)
    assert made.shape == (columns, rows)
    assert made.scale.dtype == dtype
    axis = None if not into.per_channel else 1 if into.block is None else 0
    again = torch.from_numpy(dequantized(made, into, axis).astype(np.float64)).T
    scale = weight_scale(weight, into).double()
    scale = scale.reshape(rows, -1) if into.per_channel else scale.expand(rows, 1)
    step = scale.repeat_interleave(columns // scale.shape[1], dim=1)
    if into.name == "fp8":
        # Of three bits behind the point half the last is off, or of the least number half.
        step = torch.maximum(weight.double().abs() / 8, step * 2.0**-9)
    # The engine multiplies in the weight's precision.
    slack = weight.double().abs() * torch.finfo(dtype).eps + step * 1e-3
    assert bool(((again - weight.double()).abs() <= step / 2 + slack).all())
    assert not again[0].any()


@pytest.mark.parametrize("into", [FORMATS["fp8"], FORMATS["int8"]], ids=lambda each: each.name)
def test_a_convolution_keeps_its_order(into: Format) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    made = quantize_weight(weight, into)
    again = torch.from_numpy(dequantized(made, into, 0 if into.per_channel else None))
    assert made.scale.shape == ((5,) if into.per_channel else ())
    assert again.shape == weight.shape
    assert float((again - weight).norm() / weight.norm()) < 0.04


def test_four_bits_are_packed_the_low_half_first() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 1], weight[0, 3] = 7.0, -3.0, 1.0
    made = quantize_weight(weight, FORMATS["int4-weights"])
    assert made.scale.tolist() == [[1.0]]
    assert made.values.tolist()[:2] == [0xD7, 0x10]
