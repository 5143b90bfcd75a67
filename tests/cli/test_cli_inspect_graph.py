"""``kdrt inspect --graph``, and what a float16 network keeps in float32."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch

from kdrt.bundle import open_bundle, write_manifest
from kdrt_export.graph_inspection import count_operators
from tests.support.command_line import Cli
from tests.support.planted import OVERFLOWING, planted_bundle


@pytest.fixture(scope="module")
def planted(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose VAE's decoder is said to keep a module in float32."""
    folder = tmp_path_factory.mktemp("planted") / "bundle"
    manifest = planted_bundle(demo_bundle, folder, torch.float16).manifest
    decoder = manifest.components["vae_decoder"].model_copy(update={"float32": (OVERFLOWING,)})
    components = {**manifest.components, "vae_decoder": decoder}
    write_manifest(folder, manifest.model_copy(update={"components": components}))
    return folder


def test_what_is_kept_in_float32_is_shown(cli: Cli, planted: Path, demo: str) -> None:
    outcome = cli("inspect", planted)
    assert outcome.code == 0, outcome.err
    title, line = outcome.out.partition("kept in float32")[1:]
    assert title
    assert line.split()[:2] == ["vae_decoder", OVERFLOWING]
    assert "kept in float32" not in cli("inspect", demo).out


def test_a_node_that_cannot_run_is_named(cli: Cli, demo_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    folder = tmp_path / "bundle"
    manifest = planted_bundle(demo_bundle, folder, torch.float16).manifest
    path = folder / manifest.components["vae_decoder"].onnx
    model = onnx.load(path, load_external_data=False)
    (node,) = [node for node in model.graph.node if node.name == "/blocks.1/grow/Conv"]
    node.input[0] = "latents"  # of four channels, where eight are needed
    path.write_bytes(model.SerializeToString())
    write_manifest(folder, manifest)
    outcome = cli("inspect", folder, "--graph", "vae_decoder")
    assert outcome.code == 0, outcome.err
    assert "1 Graph Input(s)" in outcome.out
    (found,) = [line for line in outcome.out.splitlines() if line.startswith("exception: ")]
    assert found.startswith("exception: /blocks.1/grow/Conv: Input channels C is not equal")


def test_nothing_is_imported_from_the_working_folder(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    (tmp_path / "polygraphy.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = cli("inspect", demo, "--graph", "text_encoder")
    assert outcome.code == 0, outcome.err
    assert "nothing wrong" in outcome.out


def test_weights_with_two_names_are_linted(cli: Cli, demo: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    weights = open_bundle(demo).path / "onnx" / "text_encoder" / "weights.bin"
    another = tmp_path / "weights.bin"
    os.link(weights, another)
    try:
        assert "nothing wrong" in cli("inspect", demo, "--graph", "text_encoder").out
    finally:
        another.unlink()  # other tests read the bundle too


def test_operators_are_counted_by_precision(planted: Path) -> None:
    counts = {
        each.operator: each for each in count_operators(planted / "onnx/vae_decoder/model.onnx")
    }
    convolutions = counts["Conv"]
    assert (convolutions.count, convolutions.float32, convolutions.half) == (8, 0, 8)
    assert (counts["Shape"].float32, counts["Shape"].half) == (0, 0)


def test_graphs_that_cannot_be_shown(cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = cli("inspect", demo, "--graph", "nonsense").refusal()
    assert "has no network 'nonsense'; it has text_encoder," in refusal
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refusal = cli("inspect", demo, "--graph", "vae_decoder").refusal()
    assert "needs the package 'polygraphy', which is not installed" in refusal
