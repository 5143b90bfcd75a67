"""Batches divided among threads, and the smaller graph for usual inputs and sizes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from kdrt_engines import EngineError, EngineSpec, ShapeError, TensorSpec
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph
from kdrt_engines.onnxruntime.sessions import make_session, save_optimized

TWO = OrtConfig(threads=2)
SPEC = EngineSpec(
    (
        TensorSpec("x", "float32", ("B", 4)),
        TensorSpec("shift", "float32", (2,)),
    ),
    (TensorSpec("y", "float32", ("B", 4)), TensorSpec("z", "float32", ("B", 1))),
)


ROWS = EngineSpec((SPEC.inputs[0], TensorSpec("shift", "float32", ("B", 2))), SPEC.outputs)
"""With a shift of its own for each row."""


def onnx_file(folder: Path, *, shifted: bool = True, rows: bool = False) -> Path:
    """``y = 2x + shift[0]``, in ``rows`` ``2x + shift[:, 0]``, and its sums, or without the
    shift."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "x"], ["twice" if shifted else "y"])]
    if shifted:
        nodes += [
            helper.make_node("Gather", ["shift", "first"], ["by"], axis=int(rows)),
            helper.make_node("Add", ["twice", "by"], ["y"]),
        ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("ReduceSum", ["y", "axes"], ["z"])],
        "small",
        [
            value("x", 1, ["B", 4]),
            *([value("shift", 1, ["B", 2] if rows else [2])] if shifted else []),
        ],
        [value("y", 1, ["B", 4]), value("z", 1, ["B", 1])],
        [
            helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1]),
            helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0]),
        ],
    )
    path = folder / f"{'whole' if shifted else 'plain'}.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    return path


def with_reduced(folder: Path, reduced: ReducedGraph) -> OrtNetwork:
    return OrtNetwork(OrtGraph(onnx_file(folder)), reduced)


@pytest.fixture
def reduced(tmp_path: Path) -> ReducedGraph:
    return ReducedGraph(OrtGraph(onnx_file(tmp_path, shifted=False)), {"shift": (0.0, 0.0)})


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6])
def test_a_divided_batch_is_the_same(tmp_path: Path, threads: int, batch: int) -> None:
    engine = OrtEngine(onnx_file(tmp_path), SPEC, OrtConfig(threads=threads))
    assert engine.parts(batch) == (threads if batch % threads == 0 else 1)
    binding = engine.bind(B=batch)
    for scale in (1.0, -3.0):
        x = scale * torch.arange(4.0 * batch).reshape(batch, 4)
        binding.inputs["x"].copy_(x)
        binding.inputs["shift"].copy_(torch.tensor([scale, 5.0]))
        binding.run()
        assert torch.equal(binding.outputs["y"], 2 * x + scale)
        assert torch.equal(binding.outputs["z"], (2 * x + scale).sum(1, keepdim=True))


def test_a_batch_that_is_not_first_is_not_divided(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", "float32", (4, "B")), SPEC.inputs[1])
    engine = OrtEngine(onnx_file(tmp_path), EngineSpec(inputs, SPEC.outputs), TWO)
    assert engine.parts(2) == 1
    no_batch = EngineSpec(SPEC.inputs, (TensorSpec("y", "float32", (2, 4)),))
    assert OrtEngine(onnx_file(tmp_path), no_batch, TWO).parts(2) == 1


def test_an_error_in_one_part_is_an_error(tmp_path: Path) -> None:
    engine = OrtEngine(onnx_file(tmp_path), SPEC, TWO)
    wide = (TensorSpec("x", "float32", ("B", 5)), SPEC.inputs[1])
    engine.spec = EngineSpec(wide, SPEC.outputs)
    with pytest.raises(ShapeError, match="rejected these sizes"):
        engine.bind(B=2).run()


def test_sessions_are_made_when_needed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduced: ReducedGraph
) -> None:
    made: list[tuple[str, int]] = []

    def recording(graph: OrtGraph, config: OrtConfig, *rest: Any) -> Any:
        made.append((graph.path.stem, config.threads))
        return make_session(graph, config, *rest)

    monkeypatch.setattr("kdrt_engines.onnxruntime.engine.make_session", recording)
    engine = OrtEngine(with_reduced(tmp_path, reduced), SPEC, OrtConfig(threads=2, usual_batch=2))
    assert made == [("plain", 1)]
    for batch in (2, 4, 2):
        engine.bind(B=batch).run()
    assert made == [("plain", 1)]
    binding = engine.bind(B=1)
    assert made == [("plain", 1), ("plain", 2)]
    binding.inputs["shift"].fill_(1)
    binding.run()
    binding.run()
    assert made == [("plain", 1), ("plain", 2), ("whole", 2)]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_reduced_graph_runs_while_inputs_are_neutral(
    tmp_path: Path, reduced: ReducedGraph, batch: int
) -> None:
    wrong = ReducedGraph(reduced.graph, {"shift": (7.0, 0.0)})
    binding = OrtEngine(with_reduced(tmp_path, wrong), SPEC, TWO).bind(B=batch)
    binding.inputs["x"].fill_(1)
    for shift, expected in ((0.0, 2.0), (7.0, 2.0), (1.0, 3.0), (7.0, 2.0)):
        binding.inputs["shift"].copy_(torch.tensor([shift, 0.0]))
        binding.run()
        assert torch.equal(binding.outputs["y"], torch.full((batch, 4), expected))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_the_reduced_graph_runs_while_every_row_is_neutral(tmp_path: Path, batch: int) -> None:
    plain = OrtGraph(onnx_file(tmp_path, shifted=False))
    whole = OrtGraph(onnx_file(tmp_path, rows=True))
    network = OrtNetwork(whole, ReducedGraph(plain, {"shift": (7.0, 0.0)}))
    binding = OrtEngine(network, ROWS, TWO).bind(B=batch)
    binding.inputs["x"].fill_(1)
    shift = binding.inputs["shift"]
    neutral = torch.tensor([7.0, 0.0]).expand(batch, 2)
    for row in range(batch):
        shift.copy_(neutral)
        binding.run()
        assert torch.equal(binding.outputs["y"], torch.full((batch, 4), 2.0)), "without a shift"
        shift[row] = torch.tensor([7.0, 1.0])
        binding.run()
        assert torch.equal(binding.outputs["y"], torch.full((batch, 4), 9.0))
        shift[row] = torch.tensor([5.0, 0.0])
        binding.run()
        expected = torch.full((batch, 4), 9.0)
        expected[row] = 7.0
        assert torch.equal(binding.outputs["y"], expected)


@pytest.mark.parametrize(("batch", "expected"), [(2, 2.0), (3, 3.0), (4, 2.0), (1, 3.0)])
def test_the_reduced_graph_runs_at_the_sizes_it_is_for(
    tmp_path: Path, reduced: ReducedGraph, batch: int, expected: float
) -> None:
    other = ReducedGraph(reduced.graph, {"shift": (1.0, 0.0)}, {"B": 2})
    engine = OrtEngine(with_reduced(tmp_path, other), SPEC)
    binding = engine.bind(B=batch)
    assert len(engine._sessions) == 1, "the session made with the engine is dropped"
    binding.inputs["x"].fill_(1)
    binding.inputs["shift"].copy_(torch.tensor([1.0, 0.0]))
    binding.run()
    assert torch.equal(binding.outputs["y"], torch.full((batch, 4), expected))


def test_an_optimised_graph_is_loaded_in_its_place(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_optimized(onnx_file(other, shifted=False), tmp_path / "optimized.onnx", "weights.bin")
    graph = OrtGraph(onnx_file(tmp_path), tmp_path / "optimized.onnx")
    binding = OrtEngine(OrtNetwork(graph), SPEC).bind(B=1)
    binding.inputs["x"].fill_(1)
    binding.inputs["shift"].fill_(5)
    binding.run()
    assert binding.outputs["y"][0, 0] == 2, "it is the other graph that was optimised"


def test_what_cannot_be_optimised(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"cannot optimise .*bad\.onnx"):
        save_optimized(path, tmp_path / "o.onnx", "weights.bin")


def test_what_a_binding_needs_later_does_not_drop_what_it_has(
    tmp_path: Path, reduced: ReducedGraph
) -> None:
    """Only the first session needed decides: the whole graph comes when FreeU is switched on."""
    engine = OrtEngine(with_reduced(tmp_path, reduced), SPEC)
    binding = engine.bind(B=1)
    assert len(engine._sessions) == 1
    binding.inputs["shift"].fill_(1)
    binding.run()
    assert len(engine._sessions) == 2


def test_the_session_made_with_the_engine_is_dropped_if_the_first_binding_needs_another(
    tmp_path: Path,
) -> None:
    engine = OrtEngine(onnx_file(tmp_path), SPEC, OrtConfig(threads=2, usual_batch=2))
    usual = weakref.ref(engine._sessions._sessions[engine.network.whole, 1])
    engine.bind(B=1).run()
    assert len(engine._sessions) == 1
    assert usual() is None, "it has given its memory back"
    engine.bind(B=2).run()
    engine.bind(B=1).run()
    assert len(engine._sessions) == 2, "once bound, both stay"
