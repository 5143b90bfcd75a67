"""Two graphs, layer by layer: the planted overflow is named, whatever the groups are."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kdrt.errors import InvalidRequestError
from kdrt_export.compare import runners
from kdrt_export.compare.comparison import Graph, compare
from kdrt_export.errors import ExportError
from tests.support.planted import OVERFLOWING, TRACED, PlantedOverflow, exported_planted

pytest.importorskip("polygraphy")

INPUTS = {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Graph]:
    """The network in float32 and in float16."""
    folder = tmp_path_factory.mktemp("planted")
    whole, half = (
        exported_planted(dtype, folder / str(dtype)) for dtype in (torch.float32, torch.float16)
    )
    return Graph(whole.standard), Graph(half.standard)


@pytest.mark.parametrize("group_bytes", [2**20, 1])
def test_the_overflowing_layer_is_the_first(graphs: tuple[Graph, Graph], group_bytes: int) -> None:
    comparison = compare(*graphs, INPUTS, group_bytes=group_bytes)
    first = comparison.first()
    assert first is not None
    assert first.layer.name == f"{OVERFLOWING}/Conv"
    assert first.difference.finite == (True, False)
    assert first.difference.greatest[0] > 65504
    assert first.jumps
    assert 0 < first.before < 1e-3
    before = comparison.rows[: comparison.rows.index(first)]
    assert [row.layer.module for row in before[:2]] == ["conv_in", "blocks.0.norm"]
    assert all(row.difference.error < 2e-3 for row in before)
    behind = comparison.rows[comparison.rows.index(first) + 1 :]
    assert not any(row.jumps for row in behind)
    assert comparison.unmatched == 0


def test_groups_hold_no_more_than_they_may(
    graphs: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    run_both = runners.run_both

    def watched(*arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = run_both(*arguments)
        held.append(len(found))
        return found

    monkeypatch.setattr("kdrt_export.compare.comparison.run_both", watched)
    size = 8 * 8 * 8 * 4  # bytes of the results between the blocks
    comparison = compare(graphs[0], graphs[0], INPUTS, group_bytes=4 * size)
    assert sum(held) == len(comparison.rows)
    assert held[:2] == [4, 4]


def test_without_layers_the_outputs_are_compared(graphs: tuple[Graph, Graph]) -> None:
    comparison = compare(*graphs, INPUTS, layers=False)
    (row,) = comparison.rows
    assert (row.layer.tensor, row.difference.error) == ("image", math.inf)


def test_a_graph_agrees_with_itself_in_other_operators(graphs: tuple[Graph, Graph]) -> None:
    whole = graphs[0]
    fused = Graph(whole.path.with_name("onnxruntime.onnx"))
    comparison = compare(whole, fused, INPUTS)
    assert comparison.first() is None
    assert max(row.difference.error for row in comparison.rows) < 1e-6


def test_an_error_that_jumps_is_told_from_one_that_was_there(tmp_path: Path) -> None:
    component = PlantedOverflow(factor=1.0)
    exact = exported_planted(torch.float32, tmp_path / "a", factor=1.0).standard
    with torch.no_grad():
        component.blocks[1].shrink.weight *= 3  # type: ignore[union-attr, operator]
    from kdrt_export.onnx.trace import onnx_from_component

    wrong = onnx_from_component(component, TRACED, tmp_path / "b").standard
    comparison = compare(Graph(exact), Graph(wrong), INPUTS)
    first = comparison.first()
    assert first is not None
    assert first.layer.name == "blocks.1.shrink/Conv"
    assert [row.layer.name for row in comparison.rows if row.jumps] == ["blocks.1.shrink/Conv"]
    assert first.difference.finite == (True, True)


def test_graphs_of_different_networks(graphs: tuple[Graph, Graph], tmp_path: Path) -> None:
    renamed = onnx.load(graphs[0].path, load_external_data=False)
    renamed.graph.input[0].name = "sample"
    for node in renamed.graph.node:
        node.input[:] = ["sample" if name == "latents" else name for name in node.input]
    path = graphs[0].path.with_name("renamed.onnx")
    path.write_bytes(renamed.SerializeToString())
    with pytest.raises(InvalidRequestError, match="only one of the two networks takes 'sample'"):
        compare(graphs[0], Graph(path), INPUTS)

    for node in renamed.graph.node:
        node.output[:] = [f"other/{name}" for name in node.output]
        node.input[:] = [f"other/{name}" if name[:1] == "/" else name for name in node.input]
    renamed.graph.output[0].name = "other/image"
    path.write_bytes(renamed.SerializeToString())
    with pytest.raises(InvalidRequestError, match="no layer of the same name"):
        compare(graphs[0], Graph(path), INPUTS)


def test_without_polygraphy(graphs: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.logger", None)
    with pytest.raises(ExportError, match=r"needs the package 'polygraphy'.*kdrt\[export\]"):
        compare(*graphs, INPUTS)


@pytest.mark.parametrize("side", [0, 1])
def test_a_graph_that_does_not_run(
    graphs: tuple[Graph, Graph], side: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The engine's reason is in the one sentence, and nothing else is printed."""
    model = onnx.load(graphs[0].path, load_external_data=False)
    for node in model.graph.node:
        if node.name == "/blocks.1/grow/Conv":
            node.input[0] = "latents"  # of four channels, where eight are needed
    path = graphs[0].path.with_name("broken.onnx")
    path.write_bytes(model.SerializeToString())
    pair = [graphs[0], graphs[0]]
    pair[side] = Graph(path)
    with pytest.raises(ExportError, match=r"cannot run this graph: .*channels C is not"):
        compare(pair[0], pair[1], INPUTS)
    assert capfd.readouterr() == ("", "")
