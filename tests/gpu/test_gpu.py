"""What has to hold on a GPU, on the demo model.

The measure of an engine is ONNX Runtime on the CPU, which the export was verified with. Bounds are
those of float32 with the GPU's own order of sums, TF32 off; TensorRT may use TF32 and gets more.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import kdrt
from kdrt.backends.loading import load_engines
from kdrt.backends.offload import OffloadedEngine
from kdrt.bundle import Bundle
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.errors import EngineRejectedError
from kdrt.pipeline.memory import estimate_memory
from kdrt_engines import EngineUnavailableError
from tests.support.gpu import FAST, LEVELS, PROMPT, close, latents, sizes
from tests.support.image_arrays import as_tensor

SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_3m_sde", "heun", "lms", "euler_cfg_pp")


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> kdrt.Pipeline:
    return kdrt.load(bundle, engine="onnxruntime")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_torch_at_every_level(
    bundle: Bundle, on_cpu: kdrt.Pipeline, sampler: str, level: CudaGraphLevel
) -> None:
    pipe = kdrt.load(bundle, engine="torch", cuda_graph=level)
    for guidance in (5.0, 2.0):
        options: dict[str, Any] = {"sampler": sampler, "guidance_scale": guidance}
        close(latents(pipe, **options), latents(on_cpu, **options), 1e-2)


@pytest.mark.parametrize("level", LEVELS)
def test_tensorrt_at_every_level(
    bundle: Bundle, built: str, on_cpu: kdrt.Pipeline, level: CudaGraphLevel
) -> None:
    pipe = kdrt.load(bundle, engine=built, cuda_graph=level)
    for _ in range(2):
        close(latents(pipe), latents(on_cpu), 5e-2)
    pixels: dict[str, Any] = {**FAST, "output_type": "pt"}
    ours, theirs = (as_tensor(each(PROMPT, **pixels).images) for each in (pipe, on_cpu))
    close(ours, theirs, 5e-2)


def test_components_on_tensorrt(bundle: Bundle, built: str) -> None:
    """Each network by itself, on random inputs, where its profile is fastest."""
    cpu, gpu = load_engines(bundle, "onnxruntime"), load_engines(bundle, built)
    generator = torch.Generator().manual_seed(0)
    stream = torch.cuda.Stream()
    for name in ("unet", "vae_decoder", "text_encoder"):
        dims = sizes(gpu[name])
        ours, theirs = gpu[name].bind(**dims), cpu[name].bind(**dims)
        for key, tensor in theirs.inputs.items():
            if tensor.dtype.is_floating_point:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            ours.inputs[key].copy_(tensor)
        theirs.run()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            ours.run()
        torch.cuda.synchronize()
        for key, expected in theirs.outputs.items():
            close(ours.outputs[key], expected, 2e-2)


@pytest.mark.parametrize("level", ["off", "step"])
def test_nothing_waits_or_allocates_between_steps(bundle: Bundle, level: CudaGraphLevel) -> None:
    pipe = kdrt.load(bundle, engine="torch", cuda_graph=level)
    pipe(PROMPT, **FAST)
    run = pipe.stream(PROMPT, **FAST)
    next(run)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in run:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert pipe.cuda_stream.stream is not None
    pipe.cuda_stream.stream.synchronize()


def test_results_are_ready_for_the_callers_stream(bundle: Bundle) -> None:
    pipe = kdrt.load(bundle, engine="torch", cuda_graph="loop")
    first = latents(pipe).clone()
    for _ in range(5):
        assert torch.equal(latents(pipe).clone(), first)


def test_a_damaged_engine_is_refused(bundle: Bundle, built: str, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "demo")
    (file,) = (tmp_path / "demo" / "engines" / built).glob("unet-*/engine.plan")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(EngineRejectedError, match="damaged"):
        kdrt.load(tmp_path / "demo", engine=built)


@pytest.mark.parametrize("level", ["off", "step"])
def test_onnxruntime_on_cuda(bundle: Bundle, on_cpu: kdrt.Pipeline, level: CudaGraphLevel) -> None:
    try:
        pipe = kdrt.load(bundle, engine="onnxruntime-cuda", cuda_graph=level)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    for seed in (1, 2, 3):
        close(latents(pipe, seed=seed), latents(on_cpu, seed=seed), 5e-2)


def test_in_turn_needs_less_memory(bundle: Bundle) -> None:
    peaks = []
    for low_vram in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        pipe = kdrt.load(bundle, engine="torch", cuda_graph="off", low_vram=low_vram)
        pipe(PROMPT, **FAST)
        if low_vram:
            assert isinstance(pipe.engines["unet"], OffloadedEngine)
        peaks.append(torch.cuda.max_memory_allocated())
        del pipe
    assert peaks[1] < peaks[0]


def test_the_memory_plan_is_of_this_gpu(bundle: Bundle) -> None:
    estimate = estimate_memory(bundle, "torch")
    assert estimate.device == "cuda"
    assert estimate.free is not None
    assert estimate.fits
