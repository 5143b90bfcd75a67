"""Sessions take turns with one piece of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdrt_bench.memory import resident
from kdrt_engines import EngineSpec
from kdrt_engines.onnxruntime.config import OrtConfig
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
