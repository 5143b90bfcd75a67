"""What has to hold of refittable TensorRT engines on a GPU, on the demo model. A GPU is needed to
build one at all: none of this has run yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt.adapters.lora_names import NETWORKS
from kdrt.backends.engine_files import open_engine
from kdrt.backends.loading import load_engines
from kdrt.backends.refit_setting import VARIABLE
from kdrt.build.engines import build_engines
from kdrt.build.refit import changeable_weights
from kdrt.bundle import Bundle, open_bundle
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.errors import EngineError
from kdrt_engines.comparison import bound_of
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.tensorrt.flavour import Flavour, flavour_for
from tests.support.gpu import LEVELS, Quiet, close, latents, sizes


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    major, minor = torch.cuda.get_device_capability()
    found = flavour_for(10 * major + minor)
    pytest.importorskip(found.module)
    return found


@pytest.fixture(scope="module")
def open_to_loras(
    bundle: Bundle, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A copy of the bundle with refittable engines, so that others keep their fixed ones."""
    path = tmp_path_factory.mktemp("refit") / "demo"
    shutil.copytree(bundle.path, path, ignore=shutil.ignore_patterns("tensorrt*"))
    copy = open_bundle(path)
    major, minor = torch.cuda.get_device_capability()
    build_engines(copy, flavour, (10 * major + minor,), refittable=True, report=Quiet())
    return copy


@pytest.fixture(scope="module")
def lora(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It changes images for all to see: several projections, by a random matrix of rank 4."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name.removeprefix("unet.").removesuffix(".weight"): weight.shape
        for name, weight in stored_weights(
            bundle.file(bundle.manifest.components["unet"].onnx)
        ).items()
        if name.endswith(("attn2.to_q.weight", "attn2.to_out.0.weight"))
    }
    tensors = {}
    for layer, (rows, columns) in shapes.items():
        down = torch.randn(4, columns, generator=generator)
        up = torch.randn(rows, 4, generator=generator)
        tensors[f"unet.{layer}.lora_A.weight"] = down * columns**-0.5
        tensors[f"unet.{layer}.lora_B.weight"] = up * 0.1
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu() - other.cpu()).norm() / other.cpu().norm())


def test_every_network_was_proved(open_to_loras: Bundle, flavour: Flavour, capability: int) -> None:
    for name in NETWORKS:
        record = open_engine(open_to_loras, flavour, name, capability).record
        assert record.key.refittable
        proof = record.refit
        assert proof is not None
        assert proof.weights + proof.fixed == len(changeable_weights(open_to_loras, name))
        bound = bound_of(open_to_loras.manifest.components[name].spec())
        assert max(proof.built, proof.refitted) < bound
        assert proof.restored == 0


@pytest.mark.parametrize("level", LEVELS)
def test_loras_at_every_level(
    bundle: Bundle, open_to_loras: Bundle, flavour: Flavour, lora: Path, level: CudaGraphLevel
) -> None:
    """The images are those of ONNX Runtime with the same LoRA, and without it again those from
    before, to the bit."""
    gpu = kdrt.load(open_to_loras, engine=flavour.name, cuda_graph=level)
    cpu = kdrt.load(bundle, engine="onnxruntime")
    plain = latents(gpu).clone()
    close(plain, latents(cpu), 5e-2)
    for pipe in (gpu, cpu):
        pipe.adapters.load_lora(lora)
    for scale in (1.0, -0.5):
        for pipe in (gpu, cpu):
            pipe.adapters.set_loras({"style": scale})
        styled = latents(gpu)
        assert distance(styled, plain) > 0.1, "this LoRA must be seen"
        close(styled, latents(cpu), 5e-2)
    gpu.adapters.unload_loras()
    assert torch.equal(latents(gpu), plain)


def test_every_refit_can_be_compared(
    open_to_loras: Bundle, flavour: Flavour, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "every")
    pipe = kdrt.load(open_to_loras, engine=flavour.name)
    pipe.adapters.load_lora(lora)
    pipe.adapters.set_loras({"style": 2.0})
    pipe.adapters.unload_loras()


def test_a_weight_that_cannot_change_is_refused(open_to_loras: Bundle, flavour: Flavour) -> None:
    unet = load_engines(open_to_loras, flavour.name)["unet"]
    weights = stored_weights(open_to_loras.file(open_to_loras.manifest.components["unet"].onnx))
    bias = next(name for name in weights if name.endswith("bias"))
    with pytest.raises(EngineError, match="is not one of the"):
        unet.with_weights({bias: weights[bias].read()})


def test_what_is_bound_goes_on_with_the_new_weights(
    open_to_loras: Bundle, flavour: Flavour
) -> None:
    """A refit leaves execution contexts valid."""
    engine = load_engines(open_to_loras, flavour.name)["unet"]
    path = open_to_loras.file(open_to_loras.manifest.components["unet"].onnx)
    name = next(n for n in changeable_weights(open_to_loras, "unet") if "conv_out" in n)
    weight = stored_weights(path)[name].read()
    stream = torch.cuda.Stream()

    def result() -> torch.Tensor:
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            binding.run()
        torch.cuda.synchronize()
        return binding.outputs["noise_pred"].clone()

    with torch.cuda.stream(stream):
        binding = engine.bind(**sizes(engine))
        for tensor in binding.inputs.values():
            if tensor.dtype.is_floating_point:
                tensor.normal_(generator=torch.Generator("cuda").manual_seed(0))
    base = result()
    engine.with_weights({name: 2 * weight})
    assert distance(result(), base) > 1e-2
    engine.with_weights({})
    assert torch.equal(result(), base)
