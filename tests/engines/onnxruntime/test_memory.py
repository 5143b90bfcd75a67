"""Sessions take turns with one piece of memory, or spare it, and give it back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdrt_bench.memory import peak, reset_peak, resident
from kdrt_engines import EngineSpec, TensorSpec
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph
from kdrt_engines.onnxruntime.sessions import make_session

NO_TENSORS = EngineSpec((), ())
SIDE = 4096
RESULT = SIDE * SIDE * 4
"""Bytes of what a network computes on its way."""


def network(path: Path, operator: str) -> OrtGraph:
    """One number in, one out, and between them two large results."""
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["large"]),
        helper.make_node(operator, ["large"], ["larger"]),
        helper.make_node("ReduceMax", ["larger"], ["y"], keepdims=0),
    ]
    size = helper.make_tensor("size", TensorProto.INT64, [2], [SIDE, SIDE])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "large", [x], [y], [size])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return OrtGraph(path)


@pytest.mark.skipif(resident() is None, reason="this system does not say what is in memory")
def test_what_one_network_used_the_next_uses_again(tmp_path: Path) -> None:
    # Both are made first: whatever loading takes is not what this is about.
    config = OrtConfig(threads=1, estimate_memory=False)
    sessions = [
        make_session(network(tmp_path / f"{name}.onnx", name), config, config.providers(NO_TENSORS))
        for name in ("Exp", "Neg")
    ]
    grown = []
    for session in sessions:
        before = resident() or 0
        session.run(None, {"x": np.ones(1, np.float32)})
        grown.append((resident() or 0) - before)
    # Whatever ran before in this process may have left enough for the first one, too.
    assert grown[1] < RESULT / 4


LAYERS, WIDTH = 24, 1024
LAYER = WIDTH * WIDTH * 4
"""Bytes of the weights of one layer."""


def linear_layers(path: Path) -> OrtGraph:
    """Layers that transpose their weights, which lie in a file beside the graph."""
    nodes, weights, last = [], [], "x"
    for index in range(LAYERS):
        weight, columns, following = f"w{index}", f"t{index}", f"x{index}"
        values = np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)
        weights.append(onnx.numpy_helper.from_array(values, weight))
        nodes.append(helper.make_node("Transpose", [weight], [columns], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", [last, columns], [following]))
        last = following
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, WIDTH]) for n in ("x", last))
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    return OrtGraph(path)


@pytest.mark.skipif(resident() is None, reason="this system does not say what is in memory")
def test_a_lean_session_transposes_a_weight_when_it_is_needed(tmp_path: Path) -> None:
    """And not all of them before the first layer, which would be all weights a second time."""
    config = OrtConfig(threads=1, lean=True)
    session = make_session(linear_layers(tmp_path / "l.onnx"), config, config.providers(NO_TENSORS))
    reset_peak()
    before = resident() or 0
    (y,) = session.run(None, {"x": np.ones((1, WIDTH), np.float32)})
    np.testing.assert_allclose(y, 1, rtol=1e-5)
    assert (peak() or 0) - before < 1.5 * LAYERS * LAYER, "the mapped file, and a layer or two"


def test_an_engine_gives_its_memory_back_at_once(tmp_path: Path) -> None:
    """Python's collector comes by when it likes, and a network may need the room of another."""
    number = TensorSpec("x", "float32", (1,))
    spec = EngineSpec((number,), (TensorSpec("y", "float32", ()),))
    engine = OrtEngine(network(tmp_path / "small.onnx", "Neg").path, spec, OrtConfig(threads=1))
    session = weakref.ref(engine.session(engine.network.whole))
    gc.disable()
    try:
        binding = engine.bind()
        del binding, engine
        assert session() is None
    finally:
        gc.enable()
