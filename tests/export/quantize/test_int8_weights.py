"""Weights as bytes: what the graph becomes, and what its numbers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.loading import load
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.sessions import session_options
from kdrt_export.components import ExportComponent, ExportTextEncoder, ExportUNet
from kdrt_export.errors import ExportError
from kdrt_export.onnx.trace import onnx_from_component
from kdrt_export.options import check_weights
from kdrt_export.quantize.int8_weights import MIN_SIZE, quantise
from kdrt_export.stage import export
from kdrt_export.verify import make_cases, relative_error
from tests.support.image_arrays import as_tensor
from tests.support.tiny_networks import text_encoder, unet

DIMS = {"B": 2, "h": 9, "w": 7, "L": 12}
DTYPES = (torch.float32, torch.float16)


@given(
    st.integers(1, 5), st.integers(1, 9), st.sampled_from(DTYPES), st.floats(-7, 4), st.integers(0)
)
def test_a_weight_is_off_by_half_a_step_at_most(
    rows: int, columns: int, dtype: torch.dtype, exponent: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    weight = (torch.randn(rows, columns, 1, 2, generator=generator) * 10**exponent).to(dtype)
    weight[0] = 0  # a dead channel has no scale to divide by
    values, scale = quantise(weight)
    assert (values.dtype, scale.dtype) == (torch.int8, dtype)
    assert (values.shape, scale.shape) == (weight.shape, weight.shape[:1])
    step = scale.double().reshape(-1, 1, 1, 1)
    again = values.double() * step
    # A weight and its number of steps are divided in float32.
    slack = 127 * torch.finfo(torch.float32).eps
    assert bool(((again - weight.double()).abs() <= step * (0.5 + slack)).all())
    assert not again[0].any()


def rounded(network: nn.Module) -> int:
    """Round the weights that the pass takes, in place; how many."""
    count = 0
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.numel() >= MIN_SIZE:
            values, scale = quantise(module.weight)
            dims = [-1] + [1] * (values.ndim - 1)
            module.weight.data = values.to(scale.dtype) * scale.reshape(dims)
            count += 1
    return count


COMPONENTS = {
    "unet": lambda: ExportUNet(unet("sdxl")),
    "unet with linear layers unfused": lambda: ExportUNet(unet("sd"), fuse_qkv=False),
    "text encoder": lambda: ExportTextEncoder(text_encoder(projection=True), normalize=True),
}


@pytest.fixture(params=COMPONENTS)
def component(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExportComponent:
    if request.param == "text encoder":  # tiny weights are smaller than what is worth it
        monkeypatch.setattr("kdrt_export.quantize.int8_weights.MIN_SIZE", 500)
        monkeypatch.setitem(globals(), "MIN_SIZE", 500)
    return COMPONENTS[request.param]()


def test_the_graph_computes_with_rounded_weights(
    component: ExportComponent, tmp_path: Path
) -> None:
    dims = {symbol: DIMS[symbol] for symbol in component.spec.symbols()}
    (case,) = make_cases(component, [dims])
    component.rewrite()
    path = onnx_from_component(component, dims, tmp_path / "int8", int8_weights=True).standard
    plain = onnx_from_component(component, dims, tmp_path / "float").standard
    model, before = (onnx.load(file, load_external_data=False).graph for file in (path, plain))

    dequantised = [node for node in model.node if node.op_type == "DequantizeLinear"]
    rest = [node.op_type for node in model.node if node.op_type != "DequantizeLinear"]
    assert rest == [node.op_type for node in before.node]
    kept = stored_weights(path)
    names = {node.output[0] for node in dequantised}
    assert names == stored_weights(plain).keys() - kept.keys()
    for node in dequantised:
        assert [(a.name, a.i) for a in node.attribute] == [("axis", 0)]
        values, scale = (kept[name] for name in node.input)
        assert (values.dtype, scale.dtype) == (torch.int8, torch.float32)
        assert scale.shape == values.shape[:1]
    assert not any("embedding.weight" in name for name in names), "a table is no layer"
    assert all(name in kept for name in stored_weights(plain) if name.endswith(".bias"))

    assert rounded(component) == len(names)
    with torch.no_grad():
        result = component(*case.inputs)
    expected = (result,) if isinstance(result, Tensor) else result
    for lean in (False, True):
        binding = OrtEngine(path, component.spec, OrtConfig(lean=lean)).bind(**dims)
        for tensor, value in zip(binding.inputs.values(), case.inputs, strict=True):
            tensor.copy_(value)
        binding.run()
        for out, wanted, exact in zip(
            binding.outputs.values(), expected, case.expected, strict=True
        ):
            assert relative_error(out, wanted) < 2e-5
            assert 1e-4 < relative_error(out, exact) < 5e-2


def test_a_session_dequantises_when_it_loads(tmp_path: Path) -> None:
    """Left to itself ONNX Runtime keeps the pairs it knows from quantised activations, and would
    dequantise at every run."""
    network = ExportUNet(unet("sd"))
    network.rewrite()
    path = onnx_from_component(network, DIMS, tmp_path, int8_weights=True).standard

    def left(options: ort.SessionOptions) -> int:
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3  # that file is for this machine only, and it says so
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return sum("DequantizeLinear" in node.op_type for node in graph.node)

    assert left(session_options()) == 0
    assert left(ort.SessionOptions()) > 20


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = export("demo", tmp_path_factory.mktemp("int8") / "demo", weights="int8")
    return Bundle.open(path)


def test_a_bundle_is_smaller_and_says_so(int8: Bundle, demo_bundle: Path) -> None:
    plain = Bundle.open(demo_bundle)
    assert (int8.manifest.baked.weights, plain.manifest.baked.weights) == ("int8", "float")

    def size(bundle: Bundle, name: str) -> int:
        return bundle.file(f"onnx/{name}/weights.bin").stat().st_size

    # A quarter, the small tensors, and a page of the file for every scale.
    assert size(int8, "unet") < 0.35 * size(plain, "unet")
    for name, component in int8.manifest.components.items():
        errors = [figure.relative_error for figure in component.verification]
        if name.startswith("vae"):
            assert max(errors) < 2e-5
            assert size(int8, name) == size(plain, name)
        else:
            assert 1e-4 < max(errors) < 3e-2
        assert component.parameters == plain.manifest.components[name].parameters


def test_its_images_are_nearly_the_same(int8: Bundle, demo_bundle: Path) -> None:
    arguments: dict[str, Any] = {"steps": 6, "seed": 3, "output_type": "latent"}
    first, second = (
        as_tensor(load(bundle)("a red circle on a blue background", **arguments).images)
        for bundle in (int8, demo_bundle)
    )
    assert 1e-4 < relative_error(first, second) < 0.1


def test_loras_are_refused_before_anything_is_read(int8: Bundle, tmp_path: Path) -> None:
    pipe = load(int8)
    with pytest.raises(
        InvalidRequestError, match=r"as int8 only: bake them in with `kdrt export demo "
    ):
        pipe.adapters.load_lora(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("weights", "precision", "targets", "said"),
    [
        ("int4", "auto", (), "choose float or int8"),
        ("int8", "auto", ("torch",), "leave out --target torch or --weights int8"),
        ("int8", "bf16", (), "choose --precision fp32 or fp16"),
    ],
)
def test_what_cannot_be_stored_as_bytes(
    weights: Any, precision: Any, targets: Any, said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        check_weights(weights, precision, targets)
