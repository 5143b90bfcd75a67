"""A step that an input turns off is kept, or gone with all that only it needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kdrt_export.dialects.optional_steps import resolve_optional
from kdrt_export.onnx.ops import MARKERS
from tests.support.graphs_of import Tape, Values, graph_of, kinds, run


@pytest.mark.parametrize("keep", [True, False])
def test_kept_or_left_out(keep: bool) -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        root = recorder.op("Sqrt", [values["strength"]])
        scaled = recorder.op("Mul", [values["x"], root])
        chosen = recorder.op("Optional", [values["x"], scaled], domain=MARKERS)
        return recorder.op("Neg", [chosen])

    model = graph_of(build, ["x", "strength"])
    assert resolve_optional(model.graph, keep=keep) == 1
    RemoveUnusedNodesPass()(model)
    assert kinds(model) == (["Sqrt", "Mul", "Neg"] if keep else ["Neg"])
    x = np.array([1.0, -2.0], np.float32)
    inputs = [x, np.array([4.0], np.float32)]
    (found,) = run(model, *inputs)
    np.testing.assert_array_equal(found, -2 * x if keep else -x)
