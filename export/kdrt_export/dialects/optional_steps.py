"""Steps of a network that an input can turn off.

A marker ``kdrt.Optional`` takes a value before and after such a step. With the step its result is
the one after; without, the one before, and what computes the step is no longer needed.
"""

from __future__ import annotations

import onnx_ir as ir

from kdrt_export.onnx.ops import MARKERS


def resolve_optional(graph: ir.Graph, *, keep: bool) -> int:
    """Keep all optional steps, or leave them out."""
    sites = [node for node in graph if (node.domain, node.op_type) == (MARKERS, "Optional")]
    for node in sites:
        chosen = node.inputs[1 if keep else 0]
        assert chosen is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], chosen, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    return len(sites)
