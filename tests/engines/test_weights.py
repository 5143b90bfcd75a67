"""Weights of a running engine: replaced, and put back to the bit."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import external_data_helper, helper, numpy_helper
from torch import Tensor, nn

from kdrt_engines import Binding, Engine, EngineError, EngineSpec, FixedWeightsError, TensorSpec
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.torch_eager import TorchEngine
from tests.support.openvino import needs_openvino, openvino_engine

SPEC = EngineSpec((TensorSpec("x", "float32", ("B", 5)),), (TensorSpec("y", "float32", ("B", 3)),))


class Layer(nn.Module):
    """``x @ weightᵀ``: ONNX Runtime folds the transposition when it loads the model."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def onnx_file(folder: Path, weight: Tensor, name: str = "weight") -> Path:
    def value(of: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(of, onnx.TensorProto.FLOAT, ["B", width])

    graph = helper.make_graph(
        [
            helper.make_node("Transpose", [name], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["product"]),
            helper.make_node("Add", ["product", "zero"], ["y"]),
        ],
        "tiny",
        [value("x", 5)],
        [value("y", 3)],
        [
            numpy_helper.from_array(weight.numpy(), name),
            helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=20)
    onnx.save(model, folder / "tiny.onnx")
    return folder / "tiny.onnx"


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["torch", "onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def engine(request: pytest.FixtureRequest, weight: Tensor, tmp_path: Path) -> Engine:
    if request.param == "torch":
        return TorchEngine(Layer(weight.clone()), SPEC)
    if request.param == "openvino":
        return openvino_engine(onnx_file(tmp_path, weight), SPEC)
    return OrtEngine(onnx_file(tmp_path, weight), SPEC)


def run(engine: Engine, x: Tensor) -> Tensor:
    binding = engine.bind(B=len(x))
    binding.inputs["x"].copy_(x)
    binding.run()
    return binding.outputs["y"].clone()


def test_weights_are_replaced_and_put_back(engine: Engine, weight: Tensor) -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    base = run(engine, x)
    torch.testing.assert_close(base, x @ weight.T)
    for factor in (2.0, -0.5):  # always from the file's weights, never from the last ones
        other = engine.with_weights({"weight": factor * weight})
        torch.testing.assert_close(run(other, x), x @ (factor * weight).T)
        engine = other
    assert torch.equal(run(engine.with_weights({}), x), base)


def test_a_weight_that_does_not_exist(engine: Engine) -> None:
    with pytest.raises(EngineError):
        engine.with_weights({"other": torch.zeros(3, 5)})


def test_engines_with_fixed_weights_say_so() -> None:
    class Plain(Engine):
        def bind(self, **dims: int) -> Binding:
            raise NotImplementedError

    with pytest.raises(FixedWeightsError, match="Plain whose weights are fixed"):
        Plain().with_weights({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stored_weights_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    # 300 rows: their number takes two bytes in the file.
    tensor = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = stored_weights(onnx_file(tmp_path, tensor, "a.b.weight"))
    assert list(stored) == ["a.b.weight"]  # not the number inside of the model
    assert stored["a.b.weight"].shape == (300, 5)
    assert torch.equal(stored["a.b.weight"].read(), tensor)


@pytest.mark.parametrize("content", [None, b"\x3a\xff\xff", b"hello world"])
def test_a_file_that_is_no_model(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match="is no readable ONNX model"):
        stored_weights(path)
