"""What follows from inputs that rarely change is computed when they have, and only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from kdrt_engines import EngineSpec, OutOfMemoryError, TensorSpec
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph

SPEC = EngineSpec(
    (
        TensorSpec("x", "float32", ("B", 2)),
        TensorSpec("prompt", "float32", ("B", "L", 2)),
        TensorSpec("scale", "float32", (1,)),
    ),
    (TensorSpec("y", "float32", ("B", 2)),),
)
"""``y = x · scale² + Σ prompt · w``."""


Described = Sequence[tuple[str, Sequence[str | int]]]


def onnx_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Described,
    outputs: Described,
    **weights: torch.Tensor,
) -> Path:
    def values(described: Described) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, 1, list(dims)) for name, dims in described]

    stored = []
    for name, tensor in weights.items():
        proto = numpy_helper.from_array(tensor.numpy(), name)
        onnx.external_data_helper.set_external_data(proto, f"{path.stem}.bin")
        stored.append(proto)
    graph = helper.make_graph(nodes, "small", values(inputs), values(outputs), stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture
def invariants(tmp_path: Path) -> OrtGraph:
    nodes = [
        helper.make_node("MatMul", ["prompt", "w"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "one"], ["keys"], keepdims=0),
        helper.make_node("Mul", ["scale", "scale"], ["square"]),
        helper.make_node("Cast", ["axis"], ["one"], to=7),
    ]
    nodes.insert(0, nodes.pop())
    path = onnx_file(
        tmp_path / "invariants.onnx",
        nodes,
        [("prompt", ("B", "L", 2)), ("scale", (1,))],
        [("keys", ("B", 2)), ("square", (1,))],
        w=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        axis=torch.ones(1),
    )
    return OrtGraph(path)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Mul", ["x", "square"], ["scaled"]),
        helper.make_node("Add", ["scaled", "keys"], ["sum"]),
        helper.make_node("Add", ["sum", "b"], ["y"]),
    ]
    inputs = [("x", ("B", 2)), ("keys", ("B", 2)), ("square", (1,))]
    return onnx_file(tmp_path / "network.onnx", nodes, inputs, [("y", ("B", 2))], b=torch.zeros(2))


def with_invariants(network: Path, invariants: OrtGraph) -> OrtNetwork:
    return OrtNetwork(OrtGraph(network), invariants=invariants)


class Counted:
    """A session that says how often it ran, and fails if told to."""

    def __init__(self, engine: OrtEngine) -> None:
        assert engine.invariants is not None
        self._session, self.runs, self.fails = engine.invariants, 0, False
        engine.invariants = self

    def run_with_iobinding(self, io: Any) -> None:
        if self.fails:
            raise RuntimeError("out of memory")
        self.runs += 1
        self._session.run_with_iobinding(io)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def expected(inputs: Mapping[str, torch.Tensor], w: torch.Tensor | None = None) -> torch.Tensor:
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) if w is None else w
    return inputs["x"] * inputs["scale"] ** 2 + (inputs["prompt"] @ w).sum(1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_they_are_computed_when_their_inputs_have_changed(
    network: Path, invariants: OrtGraph, threads: int, batch: int
) -> None:
    engine = OrtEngine(with_invariants(network, invariants), SPEC, OrtConfig(threads=threads))
    assert engine.parts(batch) == (threads if batch % threads == 0 else 1)
    counted, binding = Counted(engine), engine.bind(B=batch, L=3)
    for tensor in binding.inputs.values():
        tensor.normal_()
    for change, times in (("x", 1), ("x", 1), ("prompt", 2), ("x", 2), ("scale", 3), ("x", 3)):
        binding.inputs[change].normal_()
        binding.run()
        assert counted.runs == times
        torch.testing.assert_close(binding.outputs["y"], expected(binding.inputs))


def test_the_smallest_change_is_seen(network: Path, invariants: OrtGraph) -> None:
    engine = OrtEngine(with_invariants(network, invariants), SPEC)
    counted, binding = Counted(engine), engine.bind(B=1, L=1)
    for times, value in enumerate((0.0, -0.0, float("nan"), 1.0, 1.0 + 2**-23), start=1):
        binding.inputs["scale"].fill_(value)
        for _ in range(2):
            binding.run()
            assert counted.runs == times, "not again while it stays, whatever it is"


def test_an_invalidated_binding_computes_them_anew(network: Path, invariants: OrtGraph) -> None:
    engine = OrtEngine(with_invariants(network, invariants), SPEC)
    counted, bindings = Counted(engine), [engine.bind(B=1, L=1) for _ in range(2)]
    for _ in range(2):
        for binding in bindings:
            binding.invalidate()
        for _ in range(2):
            for binding in bindings:
                binding.run()
    assert counted.runs == 4


def test_bindings_have_results_of_their_own(network: Path, invariants: OrtGraph) -> None:
    engine = OrtEngine(with_invariants(network, invariants), SPEC)
    first, second = engine.bind(B=1, L=2), engine.bind(B=1, L=2)
    for binding, value in ((first, 1.0), (second, 5.0)):
        for tensor in binding.inputs.values():
            tensor.fill_(value)
        binding.run()
    first.run()
    torch.testing.assert_close(first.outputs["y"], expected(first.inputs))


def test_after_an_error_they_belong_to_no_inputs(network: Path, invariants: OrtGraph) -> None:
    engine = OrtEngine(with_invariants(network, invariants), SPEC)
    counted, binding = Counted(engine), engine.bind(B=1, L=2)
    for tensor in binding.inputs.values():
        tensor.fill_(1.0)
    binding.run()
    binding.inputs["prompt"].fill_(2.0)
    counted.fails = True
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        binding.run()
    counted.fails = False
    binding.inputs["prompt"].fill_(1.0)  # what it was when they were made
    binding.run()
    assert counted.runs == 2
    torch.testing.assert_close(binding.outputs["y"], expected(binding.inputs))


@pytest.mark.parametrize("names", [("w",), ("b",), ("w", "b"), ()])
def test_each_graph_takes_its_own_weights(
    network: Path, invariants: OrtGraph, names: tuple[str, ...]
) -> None:
    weights = {"w": torch.tensor([[0.0, -1.0], [2.0, 0.5]]), "b": torch.tensor([7.0, -7.0])}
    engine = OrtEngine(with_invariants(network, invariants), SPEC)
    changed = engine.with_weights({name: weights[name] for name in names})
    for each, chosen in ((changed, names), (engine, ()), (changed.with_weights({}), ())):
        binding = each.bind(B=2, L=3)
        for tensor in binding.inputs.values():
            tensor.normal_()
        binding.run()
        y = expected(binding.inputs, weights["w"] if "w" in chosen else None)
        y += weights["b"] if "b" in chosen else 0
        torch.testing.assert_close(binding.outputs["y"], y)


def test_the_reduced_graph_takes_them_too(network: Path, invariants: OrtGraph) -> None:
    reduced = ReducedGraph(OrtGraph(network), {"scale": (2.0,)})
    binding = OrtEngine(OrtNetwork(OrtGraph(network), reduced, invariants), SPEC).bind(B=1, L=3)
    for scale in (2.0, 3.0, 2.0):
        for name in ("x", "prompt"):
            binding.inputs[name].normal_()
        binding.inputs["scale"].fill_(scale)
        binding.run()
        torch.testing.assert_close(binding.outputs["y"], expected(binding.inputs))
