"""Real builds with TensorRT-RTX, which needs no GPU for them: every network of the demo model.

About half a minute of CPU time, half of it the export. Nothing here runs an engine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdrt.backends.engine_files import open_engine
from kdrt.backends.records import EngineRecord
from kdrt.build.engines import build_engines
from kdrt.build.refit import changeable_weights
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import UNFINISHED
from kdrt.errors import EngineError
from kdrt_engines.tensorrt.build import build_engine
from kdrt_engines.tensorrt.engine_file import read_header
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from kdrt_engines.tensorrt.job import BuildJob
from kdrt_engines.tensorrt.worker import BuildError, mark_refittable
from kdrt_export.onnx.mixed_precision import Float32Part
from kdrt_export.onnx.trace import onnx_from_component
from kdrt_export.sources import demo_folder
from tests.support.planted import OVERFLOWING, TRACED, PlantedOverflow
from tests.support.tiny_networks import control_for

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'kdrt[tensorrt-rtx]'"
)

TARGETS = (86, 89, 120)


class Quiet:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def start(self, stage: str) -> None: ...
    def running(self, detail: str, memory: int) -> None: ...
    def done(self, detail: str = "") -> None: ...
    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model in float16, for only half precision fuses, with a random ControlNet."""
    from kdrt_export.stage import export

    folder = tmp_path_factory.mktemp("fp16")
    control_for(demo_folder() / "unet").save_pretrained(folder / "edges")
    path = export("demo", folder / "demo", precision="fp16", controlnets=[str(folder / "edges")])
    return Bundle.open(path)


@pytest.fixture(scope="module")
def records(bundle: Bundle) -> dict[str, EngineRecord]:
    report = Quiet()
    built = build_engines(bundle, TENSORRT_RTX, TARGETS, report=report)
    assert report.warnings == []
    return {record.key.component: record for record in built}


def test_every_network_builds_for_several_gpus(
    bundle: Bundle, records: dict[str, EngineRecord]
) -> None:
    assert set(records) == set(bundle.manifest.components)
    for component in records:
        for gpu in TARGETS:
            engine = open_engine(bundle, TENSORRT_RTX, component, gpu)
            header = read_header(engine.content)
            assert header is not None
            assert header.length == engine.content.nbytes
            assert header.version == TENSORRT_RTX.version()
            assert header.compute_capabilities == TARGETS


def test_all_attention_of_unet_and_text_encoders_is_fused(
    bundle: Bundle, records: dict[str, EngineRecord]
) -> None:
    assert bundle.manifest.baked.fused_qkv
    assert bundle.manifest.components["unet"].spec().input("freeu").shape == ("B", 4)
    sites = {name: record.built.attention_sites for name, record in records.items()}
    assert sites["unet"] == 14
    assert sites["text_encoder"] == sites["text_encoder_2"] == 3
    assert sites["vae_decoder"] == sites["vae_encoder"] == 1
    assert sites["unet-control"] == sites["unet"]
    assert sites["controlnet-edges"] == 6
    for name in ("unet", "unet-control", "controlnet-edges", "text_encoder", "text_encoder_2"):
        assert records[name].built.fused_attention == sites[name]


def test_residuals_have_the_sizes_of_their_layers(bundle: Bundle) -> None:
    """The engine that is opened has the profiles of its record, sides rounded up."""
    opened = open_engine(bundle, TENSORRT_RTX, "unet-control", 89)
    most = opened.profiles[0].sizes("max")
    assert opened.spec.input("mid_residual").resolve(most)[2:] == tuple(
        -(-most[side] // 4) for side in "hw"
    )


def test_the_record_holds_what_a_build_cost(records: dict[str, EngineRecord]) -> None:
    for name, record in records.items():
        built = record.built
        assert built.kernels is not None
        assert sum(built.kernels.values()) > (5 if name.endswith("-hint") else 20)
        assert built.scratch_memory is not None
        assert built.scratch_memory > 100_000
        assert built.peak_memory > (10 if name.endswith("-hint") else 50) * 1_000_000
        assert built.seconds > 0
        assert built.cpu_seconds > 0


def test_a_profile_more_makes_kernels_more(
    bundle: Bundle, records: dict[str, EngineRecord]
) -> None:
    (both,) = build_engines(
        bundle,
        TENSORRT_RTX,
        (89,),
        profiles=["any", "static:64x64x1"],
        components=["vae_encoder"],
        report=Quiet(),
    )
    kernels, one = both.built.kernels, records["vae_encoder"].built.kernels
    assert kernels is not None
    assert one is not None
    assert sum(kernels.values()) > 1.5 * sum(one.values())
    assert [profile.name for profile in both.key.profiles] == ["any", "static:64x64x1"]


def test_turing_takes_what_is_half_precision(bundle: Bundle) -> None:
    """The UNet too: there is no float32 matrix product in it, FreeU's are written as sums."""
    (record,) = build_engines(bundle, TENSORRT_RTX, (75,), components=["unet"], report=Quiet())
    assert open_engine(bundle, TENSORRT_RTX, "unet", 75).record == record
    assert record.built.fused_attention == record.built.attention_sites > 0


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
def test_every_weight_that_a_lora_changes_is_known_by_its_name(
    bundle: Bundle, component: str
) -> None:
    """As far as a refittable build comes without a GPU: the rest of it aborts there."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    onnx = bundle.file(bundle.manifest.components[component].onnx)
    assert trt.OnnxParser(network, logger).parse_from_file(str(onnx))
    names = changeable_weights(bundle, component)
    mark_refittable(trt, network, config, names)
    assert len(names) > 10
    assert all(network.are_weights_marked_refittable(name) for name in names)
    assert config.get_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    with pytest.raises(BuildError, match="does not find the weight 'unheard'"):
        mark_refittable(trt, network, config, ("unheard",))


def test_tensorrts_own_refusal_is_passed_on(bundle: Bundle, tmp_path: Path) -> None:
    """The sizes of a profile contradict the network."""
    onnx = str(bundle.file(bundle.manifest.components["vae_decoder"].onnx))
    shapes = {"latents": ((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 0, 8))}
    job = BuildJob("tensorrt_rtx", onnx, str(tmp_path / "x.engine"), (89,), (shapes,), {})
    with pytest.raises(EngineError, match=f"TensorRT cannot build {re.escape(onnx)}: "):
        build_engine(job)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_control_c_in_the_middle_of_a_build(bundle: Bundle) -> None:
    command = ["build", str(bundle.path), "--gpu", "sm80", "--component", "unet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdrt", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    engines = bundle.file("engines/tensorrt-rtx")
    while not list(engines.glob(f"{UNFINISHED}*")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert not list(engines.glob(f"{UNFINISHED}*"))
    assert not list(engines.glob("unet-sm80-*"))


def test_a_network_in_two_precisions(tmp_path: Path) -> None:
    """What ``--keep-fp32`` writes: a convolution in float32 inside of a float16 network."""
    import tensorrt_rtx as trt

    component = PlantedOverflow()
    component.cast(torch.float16)
    part = Float32Part(lambda module, _: module in (OVERFLOWING, "blocks.1.shrink"), {})
    path = str(onnx_from_component(component, TRACED, tmp_path, float32=part).standard)
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(path)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = [
        layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION
    ]
    whole, half = trt.DataType.FLOAT, trt.DataType.HALF
    assert convolutions == [half, half, half, whole, whole, half, half, half]

    shapes = {"latents": ((1, 4, 4, 4), (1, 4, 8, 8), (2, 4, 16, 16))}
    output = tmp_path / "mixed.engine"
    build_engine(BuildJob("tensorrt_rtx", path, str(output), (86, 89, 120), (shapes,), {}))
    header = read_header(memoryview(output.read_bytes()))
    assert header is not None
    assert header.compute_capabilities == (86, 89, 120)
