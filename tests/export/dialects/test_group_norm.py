"""Group norms for CPUs: with sums that lose no digits, and with scale and bias in one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt_export.dialects.graphs import Rows
from kdrt_export.dialects.group_norm import group_norm
from tests.support.graphs_of import Tape, Values, graph_of, kinds, off, run

LARGE, SMALL = Rows(512, 1), Rows(64, 1)


def traced(groups: int, channels: int, epsilon: float = 1e-5) -> ir.Model:
    """A group norm as PyTorch's exporter writes it."""
    draw = np.random.default_rng(channels)
    weights = {
        "scale": draw.standard_normal(channels).astype(np.float32),
        "bias": draw.standard_normal(channels).astype(np.float32),
        "ones": np.ones(groups, np.float32),
        "zeros": np.zeros(groups, np.float32),
        "grouped": np.array([0, groups, -1]),
        "axes": np.array([1, 2]),
    }

    def build(recorder: Tape, values: Values) -> ir.Value:
        x = values["x"]
        y = recorder.op("Reshape", [x, values["grouped"]])
        y = recorder.op(
            "InstanceNormalization", [y, values["ones"], values["zeros"]], {"epsilon": epsilon}
        )
        y = recorder.op("Reshape", [y, recorder.op("Shape", [x])])
        y = recorder.op("Mul", [y, recorder.op("Unsqueeze", [values["scale"], values["axes"]])])
        return recorder.op("Add", [y, recorder.op("Unsqueeze", [values["bias"], values["axes"]])])

    return graph_of(build, ["x"], weights)


def exact(model: ir.Model, groups: int, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    scale, bias = (model.graph.initializers[name].const_value.numpy() for name in ("scale", "bias"))
    of = [torch.from_numpy(array).double() for array in (x, scale, bias)]
    return torch.nn.functional.group_norm(of[0], groups, of[1], of[2], epsilon).numpy()


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    each=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    rows=st.sampled_from([LARGE, SMALL]),
)
def test_equals_pytorch(
    batch: int, groups: int, each: int, height: int, width: int, rows: Rows
) -> None:
    model = traced(groups, groups * each)
    x = np.random.default_rng(width).standard_normal(
        (batch, groups * each, height, width), np.float32
    )
    assert group_norm(model.graph, rows) == 1
    assert ("InstanceNormalization" in kinds(model)) == (rows is SMALL)
    assert off(run(model, x)[0], exact(model, groups, x)) < 3e-6


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_long_sums_are_exact(mean: float) -> None:
    model = traced(2, 16)
    x = np.random.default_rng(1).standard_normal((1, 16, 512, 512), np.float32) + np.float32(mean)
    expected = exact(model, 2, x)
    before = off(run(model.clone(), x)[0], expected)
    group_norm(model.graph, LARGE)
    after = off(run(model, x)[0], expected)
    assert after < 1e-6
    assert after < before / 5


def test_small_images_keep_the_operator() -> None:
    model = traced(2, 4)
    before = model.clone()
    assert group_norm(model.graph, SMALL) == 1
    assert {"InstanceNormalization", "BatchNormalization"} <= set(kinds(model))
    assert not {"Mul", "Add"} & set(kinds(model))
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3), np.float32)
    np.testing.assert_array_equal(run(model, x)[0], run(before, x)[0])


def test_large_images_do_without_it() -> None:
    model = traced(2, 4)
    group_norm(model.graph, LARGE)
    assert not {"InstanceNormalization", "BatchNormalization"} & set(kinds(model))


def test_a_norm_that_somebody_else_reads_is_kept() -> None:
    model = traced(2, 4)
    norm = next(node for node in model.graph if node.op_type == "InstanceNormalization")
    norm.outputs[0].name, norm.outputs[0].dtype = "y1", norm.inputs[1].dtype
    model.graph.outputs.append(norm.outputs[0])
    assert group_norm(model.graph, LARGE) == 0
