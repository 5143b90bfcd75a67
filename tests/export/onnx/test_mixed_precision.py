"""Float32 inside of float16: who computes in what, and that the whole still is right."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_export.compare.layers import element_types, place_of
from kdrt_export.onnx.mixed_precision import Float32Part, float32_of, half_modules, keep_float32
from kdrt_export.onnx.ops import optional
from kdrt_export.onnx.trace import onnx_from_component, trace
from kdrt_export.quantize import int8_weights
from kdrt_export.verify import make_cases, verify
from tests.support.components import COMPONENTS
from tests.support.planted import TRACED, PlantedOverflow

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
DIMS = {"B": 2, "h": 6, "w": 5, "L": 9}


@pytest.mark.parametrize("kind", ["vae decoder", "text encoder"])
@pytest.mark.parametrize("everything", [True, False])
def test_a_network_in_two_precisions(kind: str, everything: bool, tmp_path: Path) -> None:
    component = COMPONENTS[kind]()
    cases = make_cases(component, [{"B": 1, "h": 8, "w": 6, "L": 12}])
    component.rewrite()
    originals = float32_of(component)
    component.cast(torch.float16)

    def selects(module: str, operator: str) -> bool:
        return everything or "attentions" in module or module.startswith("layers.1")

    part = Float32Part(selects, originals)
    files = onnx_from_component(component, DIMS, tmp_path, float32=part)
    for graph, path in (("standard", files.standard), ("fused", files.fused)):
        engine = OrtEngine(path, component.spec, OrtConfig(lean=True))
        (figure,) = verify(kind, engine, cases, "fp16", graph)  # type: ignore[arg-type]
        # Only inputs, outputs and what else is in half precision are rounded.
        assert figure.relative_error < (6e-4 if everything else 5e-3)

    model = onnx.load(files.standard, load_external_data=False)
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm", "LayerNormalization", "Softmax"):
            wanted = FLOAT if selects(*place_of(node.name)) else HALF
            assert {types[name] for name in (*node.input, *node.output)} == {wanted}, node.name
    assert [t.type.tensor_type.elem_type for t in model.graph.output] == [HALF] * len(
        component.spec.outputs
    )
    weights = {t.name: t.data_type for t in model.graph.initializer}
    inside = {name for name in weights if selects(name.rpartition(".")[0], "")}
    names = dict(component.named_parameters())
    assert {weights[name] for name in inside & names.keys()} == {FLOAT}


class _Switched(PlantedOverflow):
    """The first block can be turned off."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(latents)
        hidden = self.blocks[1](optional(hidden, self.blocks[0](hidden)))
        image: torch.Tensor = self.conv_out(self.upsampler(hidden))
        return image


def test_what_reads_a_switch_between_kept_operators(tmp_path: Path) -> None:
    component = _Switched(factor=1.0)
    cases = make_cases(component, [{"B": 1, "h": 4, "w": 4}])
    component.cast(torch.float16)
    part = Float32Part(lambda module, _: module.startswith("blocks"), {})
    files = onnx_from_component(component, TRACED, tmp_path, float32=part)
    engine = OrtEngine(files.standard, component.spec, OrtConfig(lean=True))
    (figure,) = verify("the network", engine, cases, "fp16", "standard")
    assert figure.relative_error < 5e-3


def test_casts_are_around_and_not_between() -> None:
    component = PlantedOverflow()
    component.cast(torch.float16)
    traced = trace(component, TRACED)
    before = [node.op_type for node in traced.graph]
    assert half_modules(traced)[:3] == ["conv_in", "blocks.0.norm", "blocks.0.grow"]
    part = Float32Part(lambda module, _: module.startswith("blocks.1"), {})
    weights, kept = keep_float32(traced, part, dict(component.named_parameters()))
    after = [node.op_type for node in traced.graph]
    assert kept == ["blocks.1.norm", "blocks.1.grow", "blocks.1.shrink", "blocks.1"]
    # In: the residual. Out: the block's result, rounded for whoever is behind.
    assert after.count("Cast") - before.count("Cast") == 2
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {*weights} == {
        name for name, _ in component.named_parameters() if name.startswith("blocks.1.")
    }


def test_a_rounded_overflow_is_one_on_a_cpu_too(tmp_path: Path) -> None:
    """ONNX Runtime would take the cast and its own behind it for superfluous."""
    component = PlantedOverflow()
    (inputs,) = component.example_inputs({"B": 1, "h": 4, "w": 4})
    component.cast(torch.float16)
    part = Float32Part(lambda module, _: module == "blocks.1.grow", {})
    files = onnx_from_component(component, TRACED, tmp_path, float32=part)
    binding = OrtEngine(files.standard, component.spec, OrtConfig(lean=True)).bind(B=1, h=4, w=4)
    binding.inputs["latents"].copy_(inputs)
    binding.run()
    assert not binding.outputs["image"].isfinite().any()


def test_a_clone_of_the_graph_stays_as_it_was() -> None:
    component = PlantedOverflow()
    component.cast(torch.float16)
    traced = trace(component, TRACED)
    every = half_modules(traced)
    part = Float32Part(lambda *_: True, {})
    keep_float32(traced.clone(), part, dict(component.named_parameters()))
    assert half_modules(traced) == every


def test_kept_weights_are_not_stored_as_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_weights, "MIN_SIZE", 0)
    component = PlantedOverflow()
    component.cast(torch.float16)
    part = Float32Part(lambda module, _: module.startswith("blocks.1"), {})
    files = onnx_from_component(component, TRACED, tmp_path, int8_weights=True, float32=part)
    graph = onnx.load(files.standard, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["blocks.1.grow.weight"] == FLOAT
    assert types["blocks.0.grow.weight_int8"] == onnx.TensorProto.INT8
    assert types["blocks.0.grow.weight_scale"] == HALF
