"""OpenVINO: shared memory, sizes, precision, weights, and what it says where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from kdrt_engines import EngineError, EngineSpec, EngineUnavailableError, ShapeError, TensorSpec
from kdrt_engines.comparison import greatest_error, random_inputs, relative_error, results
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.openvino.config import OpenVinoConfig, config_of
from kdrt_engines.openvino.devices import has_device
from kdrt_export.components.base import ExportComponent
from kdrt_export.onnx.trace import onnx_from_component
from kdrt_export.verify import BOUNDS, Case, make_cases
from tests.support.components import COMPONENTS
from tests.support.openvino import REASON, openvino_engine

pytest.importorskip("openvino", reason=REASON)

from kdrt_engines.openvino import engine as module
from kdrt_engines.openvino.engine import OpenVinoEngine

TRACED = {"B": 2, "h": 16, "w": 16, "L": 20}
COMPARED = [{"B": 1, "h": 9, "w": 13, "L": 11}, {"B": 2, "h": 8, "w": 16, "L": 20}]
"""Odd and even sizes, not those of the trace."""

Exported = tuple[Path, ExportComponent, list[Case]]
Export = Callable[[str], Exported]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A component as a file, its spec, and what the untouched network makes of some inputs."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            component = COMPONENTS[name]()
            cases = make_cases(component, COMPARED)
            component.rewrite()
            files = onnx_from_component(component, TRACED, tmp_path_factory.mktemp("openvino"))
            made[name] = files.standard, component, cases
        return made[name]

    return get


QUICK = ("vae decoder", "text encoder")
"""The others take up to half a minute each."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMPONENTS],
)
def test_it_equals_the_untouched_network(name: str, exported: Export) -> None:
    path, component, cases = exported(name)
    engine = openvino_engine(path, component.spec)
    for case in cases:
        named = zip(component.spec.inputs, case.inputs, strict=True)
        outputs = results(engine.bind(**case.dims), {spec.name: value for spec, value in named})
        for output, expected in zip(outputs.values(), case.expected, strict=True):
            assert relative_error(output, expected) < 5e-6


def bf16(path: Path, spec: EngineSpec) -> OpenVinoEngine:
    try:
        return OpenVinoEngine(path, spec, OpenVinoConfig(precision="bf16", threads=1))
    except EngineUnavailableError as error:
        pytest.skip(str(error))


def test_bfloat16_is_what_its_name_says(exported: Export) -> None:
    path, component, (case, _) = exported("vae decoder")
    (latents,) = case.inputs
    outputs = results(bf16(path, component.spec).bind(**case.dims), {"latents": latents})
    # It rounds to 8 bits, 2e-3 at most, in every layer; float32 is a thousand times nearer.
    assert 1e-4 < relative_error(outputs["image"], case.expected[0]) < BOUNDS["bf16"]


def test_runs_read_and_write_the_tensors_themselves(exported: Export) -> None:
    path, component, (case, _) = exported("vae decoder")
    binding = openvino_engine(path, component.spec).bind(**case.dims)
    expected = {n: t.data_ptr() for n, t in (*binding.inputs.items(), *binding.outputs.items())}
    for latents in (case.inputs[0], -case.inputs[0]):
        binding.inputs["latents"].copy_(latents)
        binding.run()
        addresses = {n: binding.request.get_tensor(n).data.ctypes.data for n in expected}
        assert addresses == expected


def test_bindings_of_the_same_sizes_share_a_network(exported: Export) -> None:
    path, component, _ = exported("text encoder")
    engine = openvino_engine(path, component.spec)
    first, again, other = (engine.bind(B=b, L=9) for b in (1, 1, 2))
    assert first.network is again.network
    assert first.network is not other.network


def test_a_network_that_was_kept_is_not_compiled_again(
    exported: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, component, (case, _) = exported("text encoder")
    asked: list[Mapping[str, int]] = []

    def kept(dims: Mapping[str, int]) -> Path | None:
        asked.append(dims)
        return file if dims == case.dims else None

    file = tmp_path / "kept.blob"
    fresh = openvino_engine(path, component.spec)
    fresh.export(file, **case.dims)
    engine = OpenVinoEngine(path, component.spec, fresh.config, kept=kept)
    given = random_inputs(component.spec, case.dims)
    expected = results(fresh.bind(**case.dims), given)
    assert greatest_error(results(engine.bind(**case.dims), given), expected) < 1e-6
    assert asked == [case.dims]
    file.write_bytes(b"no network")
    damaged = OpenVinoEngine(path, component.spec, fresh.config, kept=kept)
    assert greatest_error(results(damaged.bind(**case.dims), given), expected) < 1e-6
    assert "is not used: OpenVINO cannot load" in caplog.text
    name, weight = next(iter(stored_weights(path).items()))
    other = engine.with_weights({name: 2 * weight.read()}).bind(**case.dims)
    assert greatest_error(results(other, given), expected) > 1e-3, "that has the file's weights"


def test_weights_of_another_kind_are_refused(exported: Export) -> None:
    path, component, _ = exported("text encoder")
    engine = openvino_engine(path, component.spec)
    name, weight = next(iter(stored_weights(path).items()))
    for wrong in (weight.read()[:-1], weight.read().half()):
        with pytest.raises(EngineError, match=f"the weight {name} of .* cannot take its place"):
            engine.with_weights({name: wrong})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "int32"])
def test_every_type_of_tensor_is_shared(dtype: str, tmp_path: Path) -> None:
    kind = DTYPES[dtype]
    values = [helper.make_tensor_value_info(name, kind.onnx, ["B"]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "tiny",
        [values[0]],
        [values[1]],
        [helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [-1])],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "tiny.onnx")
    spec = EngineSpec((TensorSpec("x", dtype, ("B",)),), (TensorSpec("y", dtype, ("B",)),))
    binding = openvino_engine(tmp_path / "tiny.onnx", spec).bind(B=3)
    given = torch.tensor([1, -3, 64]).to(kind.torch)
    assert torch.equal(results(binding, {"x": given})["y"], given)


def test_tensors_that_are_the_same_under_two_names(tmp_path: Path) -> None:
    """OpenVINO drops what changes nothing, and gives what is left both names."""
    x, y, again = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B"])
        for name in ("x", "y", "again")
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["a", "a"], ["y"]),
        helper.make_node("Identity", ["y"], ["again"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [x], [y, again])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "tiny.onnx")
    given, *spec = (TensorSpec(name, "float32", ("B",)) for name in ("x", "y", "again"))
    binding = openvino_engine(tmp_path / "tiny.onnx", EngineSpec((given,), tuple(spec))).bind(B=2)
    for outputs in (results(binding, {"x": torch.tensor([value, 1.0])}) for value in (3.0, 5.0)):
        assert torch.equal(outputs["y"], 2 * binding.inputs["x"])
        assert torch.equal(outputs["again"], 2 * binding.inputs["x"])


def test_sizes_that_do_not_fit(exported: Export) -> None:
    path, component, _ = exported("text encoder")
    with pytest.raises(ShapeError, match=r"OpenVINO rejected the sizes B=1 L=21 of .*model\.onnx"):
        openvino_engine(path, component.spec).bind(B=1, L=21)  # it has 20 positions
    with pytest.raises(ShapeError, match="no size was given for 'L'"):
        openvino_engine(path, component.spec).bind(B=1)


def test_a_device_that_is_missing(exported: Export) -> None:
    path, component, _ = exported("text encoder")
    if has_device("NPU"):
        pytest.skip("this machine has one")
    with pytest.raises(EngineUnavailableError, match=r"no NPU on this machine \(it finds CPU"):
        OpenVinoEngine(path, component.spec, config_of("openvino-npu:f16"))


def test_a_precision_that_the_device_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Npu:
        available_devices = ("CPU", "NPU")

        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("NPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP16", "INT8", "EXPORT_IMPORT"]

    monkeypatch.setattr(module, "core", Npu)
    module.check_device(config_of("openvino-npu:f16"))
    message = (
        "the NPU of this machine does not compute in f32 with OpenVINO, but in f16; name another"
    )
    with pytest.raises(EngineUnavailableError, match=message):
        module.check_device(config_of("openvino-npu"))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"OpenVINO cannot load .*bad\.onnx"):
        openvino_engine(path, EngineSpec((), ()))


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """``import openvino`` by itself writes an identifier there and sends an event."""
    code = "import sys, kdrt_engines.openvino.engine; print(*sys.modules)"
    place = {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | place, capture_output=True, text=True
    )
    assert "openvino.tools.ovc" in done.stdout.split(), done.stderr
    assert "openvino_telemetry" not in done.stdout
    assert not [*tmp_path.iterdir()]


def test_names_say_device_and_precision() -> None:
    assert config_of("openvino", 3) == OpenVinoConfig("CPU", "f32", 3)
    assert config_of("openvino-gpu:bf16", 1) == OpenVinoConfig("GPU", "bf16", 1)
    with pytest.raises(ValueError, match="'int4' is no precision of openvino; choose f32, bf16"):
        config_of("openvino:int4")
    with pytest.raises(ValueError, match="'onnxruntime' is no engine of OpenVINO"):
        config_of("onnxruntime")


def test_devices_are_found_by_vendor(tmp_path: Path) -> None:
    assert not has_device("GPU", tmp_path)
    for name, vendor in (("renderD128", "0x10de"), ("renderD129", "0x8086"), ("card0", "0x8086")):
        device = tmp_path / "drm" / name / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        assert has_device("GPU", tmp_path) == (name != "renderD128")
    (tmp_path / "accel" / "accel0").mkdir(parents=True)
    assert not has_device("NPU", tmp_path)
