"""All backends keep the contract: fixed addresses, nothing but compute in ``run``."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from kdrt_engines import (
    Engine,
    EngineError,
    EngineSpec,
    EngineUnavailableError,
    TensorSpec,
    registry,
)
from kdrt_engines.onnxruntime.config import CUDA, TENSORRT, OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.torch_eager import TorchEngine
from tests.support.openvino import needs_openvino, openvino_engine

SPEC = EngineSpec(
    (TensorSpec("x", "float32", ("B", "h")), TensorSpec("unused", "float32", ("B",))),
    (TensorSpec("doubled", "float32", ("B", "h")), TensorSpec("sum", "float32", ("B", 1))),
)


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + x, x.sum(1, keepdim=True)


def onnx_file(folder: Path) -> Path:
    def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["doubled"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"]),
        ],
        "tiny",
        [value("x", ["B", "h"])],
        [value("doubled", ["B", "h"]), value("sum", ["B", 1])],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(params=["torch", "onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "torch":
        return TorchEngine(Network(), SPEC)
    if request.param == "openvino":
        return openvino_engine(onnx_file(tmp_path), SPEC)
    return OrtEngine(onnx_file(tmp_path), SPEC)


def test_a_binding_runs_at_fixed_addresses(engine: Engine) -> None:
    binding = engine.bind(B=2, h=3)
    tensors = [*binding.inputs.values(), *binding.outputs.values()]
    addresses = [tensor.data_ptr() for tensor in tensors]
    for scale in (1.0, -2.5):
        x = scale * torch.arange(6.0).reshape(2, 3)
        binding.inputs["x"].copy_(x)
        binding.run()
        assert torch.equal(binding.outputs["doubled"], 2 * x)
        assert torch.equal(binding.outputs["sum"], x.sum(1, keepdim=True))
    assert [tensor.data_ptr() for tensor in tensors] == addresses


def test_bindings_do_not_disturb_each_other(engine: Engine) -> None:
    first, second = engine.bind(B=1, h=2), engine.bind(B=1, h=2)
    first.inputs["x"].fill_(1)
    second.inputs["x"].fill_(5)
    first.run()
    second.run()
    assert first.outputs["sum"].item() == 2
    assert second.outputs["sum"].item() == 10


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        EngineUnavailableError, match="has no TensorrtExecutionProvider on this machine"
    ):
        OrtEngine(onnx_file(tmp_path), SPEC, OrtConfig(TENSORRT))


def test_a_provider_that_is_silently_dropped_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(
        EngineUnavailableError, match="dropped CUDAExecutionProvider and would run on CPU"
    ):
        OrtEngine(onnx_file(tmp_path), SPEC, OrtConfig(CUDA))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*bad\.onnx"):
        OrtEngine(path, SPEC)


def test_every_engine_says_whether_it_can_be_used_and_why() -> None:
    statuses = {status.name: status for status in registry.find_engines()}
    assert list(statuses) == list(registry.ENGINES)
    assert all(status.reason for status in statuses.values())
    assert statuses["onnxruntime"].usable
    assert statuses["torch"].usable


@pytest.mark.parametrize("cuda", [False, True])
def test_tensorrt_runs_where_cuda_is(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for status in registry.find_engines()[:2]:
        installed = status.version is not None
        assert status.usable == (installed and cuda)
        if installed:
            assert "`kdrt build`" in status.reason


def test_the_best_usable_engine_is_chosen() -> None:
    def status(name: str, usable: bool) -> registry.EngineStatus:
        return registry.EngineStatus(name, usable, None, "because")

    good, better = status("onnxruntime", True), status("onnxruntime-cuda", True)
    assert registry.choose((status("tensorrt", False), better, good)) == better
    assert registry.choose((good,)) == good
    assert registry.choose((status("tensorrt", False),)) is None
    assert registry.choose(()) is None


@pytest.mark.parametrize("name", ["torch", "onnxruntime-tensorrt"])
def test_what_is_slow_to_start_or_to_run_is_only_chosen_by_name(name: str) -> None:
    only = registry.EngineStatus(name, True, None, "because")
    assert name in registry.ENGINES
    assert registry.choose((only,)) is None
