"""The ONNX files: valid, dynamic, named like the module, free of clutter, and right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_tensor

from kdrt_engines import ShapeError
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_export.components import ExportComponent
from kdrt_export.errors import VerificationError
from kdrt_export.onnx.trace import OPSET, onnx_from_component
from kdrt_export.verify import Case, make_cases, verify
from tests.support.components import COMPONENTS

TRACED = {"B": 2, "h": 12, "w": 10, "L": 9}
OTHERS = [{"B": 1, "h": 8, "w": 16, "L": 20}, {"B": 3, "h": 9, "w": 7, "L": 4}]

Exported = tuple[ExportComponent, Path, list[Case]]


LEFT_OUT = {
    "unet without fused qkv",
    # What the traces of others show already.
    "unet sd for PAG",
    *("unet with control sd", "unet with control lcm", "unet with control of KOALA"),
    *("controlnet sd", "controlnet sd2", "controlnet of reversed colours", "t2i-adapter"),
}


@pytest.fixture(params=[name for name in COMPONENTS if name not in LEFT_OUT])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    component = COMPONENTS[request.param]()
    cases = make_cases(component, OTHERS)
    component.rewrite()
    return component, onnx_from_component(component, TRACED, tmp_path / "onnx").standard, cases


def test_a_traced_component(exported: Exported) -> None:
    component, path, cases = exported
    figures = verify("it", OrtEngine(path, component.spec), cases, "fp32")
    assert [figure.dims for figure in figures] == OTHERS
    assert all(0 <= figure.relative_error < 5e-6 for figure in figures)

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    specs = {tensor.name: tensor for tensor in component.spec.inputs + component.spec.outputs}
    assert {value.name for value in graph.input} <= set(specs)
    for value in [*graph.input, *graph.output]:
        shape = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        assert shape == specs[value.name].shape

    parameters = dict(component.named_parameters(remove_duplicate=False))
    weights = {t.name: t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert set(weights) == set(parameters)
    base = str(path.parent)
    for name, tensor in weights.items():
        load_external_data_for_tensor(tensor, base)
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), parameters[name].numpy()), name

    inside = [t for t in graph.initializer if t.name not in weights]
    assert all(tensor.ByteSize() < 2000 for tensor in inside)
    raw = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in raw
    assert b".py" not in raw
    assert all(not node.doc_string and not node.metadata_props for node in graph.node)


def test_a_wrong_weight_fails_the_verification(tmp_path: Path) -> None:
    component = COMPONENTS["vae decoder"]()
    cases = make_cases(component, OTHERS[:1])
    component.rewrite()
    path = onnx_from_component(component, TRACED, tmp_path).standard
    weights = tmp_path / "weights.bin"
    data = np.fromfile(weights, dtype=np.float32)
    data[:40] += 1
    data.tofile(weights)
    with pytest.raises(VerificationError, match=r"vae_decoder is off by .* at B=1 h=8 w=16"):
        verify("vae_decoder", OrtEngine(path, component.spec), cases, "fp32")


def test_not_a_number_fails_the_verification(tmp_path: Path) -> None:
    component = COMPONENTS["vae decoder"]()
    (case,) = make_cases(component, OTHERS[:1])
    component.rewrite()
    engine = OrtEngine(onnx_from_component(component, TRACED, tmp_path).fused, component.spec)
    bad = Case(case.dims, (torch.full_like(case.inputs[0], float("nan")),), case.expected)
    with pytest.raises(VerificationError, match="off by inf"):
        verify("vae_decoder", engine, [bad], "fp32")


def test_sizes_an_engine_cannot_run_are_a_shape_error(tmp_path: Path) -> None:
    component = COMPONENTS["text encoder"]()
    component.rewrite()
    engine = OrtEngine(onnx_from_component(component, TRACED, tmp_path).fused, component.spec)
    with pytest.raises(ShapeError, match="no size was given for 'L'"):
        engine.bind(B=1)
    with pytest.raises(ShapeError, match="rejected these sizes"):
        engine.bind(B=1, L=21).run()
