"""Layers have the names of the modules, and are fed by the layers before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from kdrt_export.compare.cutting import cut
from kdrt_export.compare.layers import element_types, layers_of, place_of
from kdrt_export.compare.runners import sizes_of
from tests.support.planted import exported_planted


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ("/mid_block/resnets.0/conv1/Conv", ("mid_block.resnets.0.conv1", "Conv")),
        ("/Add_1", ("", "Add_1")),
        ("/layers.0/Attention/MatMul_5", ("layers.0", "Attention")),
        ("", ("", "")),
    ],
)
def test_the_place_of_a_node(node: str, place: tuple[str, str]) -> None:
    assert place_of(node) == place


def test_layers_know_what_they_read(tmp_path: Path) -> None:
    graph = onnx.load(exported_planted(torch.float32, tmp_path).standard).graph
    layers = {layer.name: layer for layer in layers_of(graph)}
    results = {layer.tensor: name for name, layer in layers.items()}
    assert list(layers)[:3] == ["conv_in/Conv", "blocks.0.norm/Add", "blocks.0.grow/Conv"]
    assert layers["conv_in/Conv"].reads == ("latents",)
    assert {results[name] for name in layers["blocks.1/Add"].reads} == {
        "blocks.0/Add",
        "blocks.1.shrink/Conv",
    }
    assert layers["conv_out/Conv"].tensor == "image"


def test_every_module_of_a_unet_is_named_like_its_weights(demo_bundle: Path) -> None:
    path = demo_bundle / "onnx" / "unet" / "model.onnx"
    graph = onnx.load(path, load_external_data=False).graph
    modules = {layer.module for layer in layers_of(graph)}
    convolutions = {
        tensor.name.removeprefix("unet.").removesuffix(".weight")
        for tensor in graph.initializer
        if len(tensor.dims) == 4 and ".upsamplers" not in tensor.name
    }
    assert len(convolutions) > 20
    assert convolutions <= modules


def test_a_cut_computes_what_is_asked_for(tmp_path: Path) -> None:
    path = exported_planted(torch.float32, tmp_path).standard
    model = onnx.load(path)
    result = cut(model, ["/blocks.0/grow/Conv_output_0"], element_types(model))
    (output,) = InferenceSession(result.SerializeToString()).run(
        None, {"latents": np.ones((1, 4, 8, 8), np.float32)}
    )
    assert output.shape == (1, 8, 8, 8)
    assert [value.name for value in result.graph.output] == ["/blocks.0/grow/Conv_output_0"]
    assert 0 < len(result.graph.node) < len(model.graph.node) / 2
    assert "conv_out.weight" not in {tensor.name for tensor in result.graph.initializer}
    assert [value.name for value in result.graph.input] == ["latents"]


def test_sizes_follow_from_those_of_the_inputs(tmp_path: Path) -> None:
    path = exported_planted(torch.float32, tmp_path).standard
    model = onnx.load(path, load_external_data=False)
    values = ["/blocks.0/grow/Conv_output_0", "image"]
    inputs = {"latents": np.ones((2, 4, 10, 6), np.float32)}
    sizes = sizes_of(model, path, values, element_types(model), inputs)
    assert sizes == {values[0]: 2 * 8 * 10 * 6, "image": 2 * 3 * 40 * 24}
