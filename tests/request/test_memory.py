"""What does not fit is refused before it is tried; what fails all the same is one sentence."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kdrt
from kdrt.compat import StableDiffusionXLKDiffusionPipeline
from kdrt.request import memory
from kdrt.request.memory import request_memory
from tests.support.tiny_model import CHANNELS, SCALE, TinyModel, tiny_model

ARGUMENTS: dict[str, Any] = {"steps": 2, "seed": 3, "output_type": "np"}


def test_the_least_is_latents_noise_and_pixels(sdxl: TinyModel) -> None:
    facts = sdxl.manifest.latents
    latents = 5 * CHANNELS * (800 // SCALE) * (640 // SCALE) * 4
    assert request_memory(facts, 5, 800, 640, decoded=False) == 2 * latents
    assert request_memory(facts, 5, 800, 640, draws=7, decoded=False) == 9 * latents
    pixels = 5 * 3 * 800 * 640 * 4
    assert request_memory(facts, 5, 800, 640, decoded=True) == 2 * latents + 2 * pixels
    controlled = request_memory(facts, 5, 800, 640, controls=2, decoded=False)
    assert controlled == 2 * latents + 2 * pixels // 5


FREE = 10**9
LARGE: dict[str, Any] = {"height": 8192, "width": 8192}
NOISY = {"images_per_prompt": 64, "height": 512, "width": 512, "sampler": "euler_ancestral"}
TOO_MUCH: list[dict[str, Any]] = [
    LARGE,
    {"images_per_prompt": 200, "height": 1024, "width": 1024},
    {**NOISY, "steps": 900},
    {**NOISY, "steps": 900, "output_type": "latent"},
    {**LARGE, "image": Image.new("RGB", (64, 64))},
]


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: FREE)


@pytest.mark.parametrize("changes", TOO_MUCH)
def test_what_cannot_fit_is_refused_before_it_is_tried(
    sdxl: TinyModel, little_memory: None, changes: dict[str, Any]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(
            kdrt.InvalidRequestError, match=r"at least .* GB of memory on cpu, and 1\.0 GB"
        ):
            sdxl.pipeline("a red circle", **(ARGUMENTS | changes))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert sdxl.unet.calls == sdxl.text_encoders[0].calls == []


def test_noise_is_counted_with_the_steps(sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the request would fit."""
    request: dict[str, Any] = {
        "images_per_prompt": 1000,
        "sampler": "euler_ancestral",
        "output_type": "latent",
    }
    needed = request_memory(sdxl.manifest.latents, 1000, 64, 48, draws=99, decoded=False)
    monkeypatch.setattr(memory, "_WORTH_ASKING", 0)
    monkeypatch.setattr(memory, "free_memory", lambda _: needed - 1)
    with pytest.raises(kdrt.InvalidRequestError, match=r"with 99 draws of noise.*or fewer steps"):
        sdxl.pipeline("a", steps=100, seed=1, **request)
    monkeypatch.setattr(memory, "free_memory", lambda _: needed)
    generation = sdxl.pipeline.stream("a", steps=100, seed=1, **request)
    generation.close()
    monkeypatch.setattr(memory, "free_memory", lambda _: None)  # nobody can tell
    sdxl.pipeline.stream("a", steps=100, seed=1, **request)


def test_the_compat_classes_refuse_it_too(sdxl: TinyModel, little_memory: None) -> None:
    compat = StableDiffusionXLKDiffusionPipeline(sdxl.pipeline)
    with pytest.raises(kdrt.InvalidRequestError, match="of memory on cpu"):
        compat("a", **LARGE, num_inference_steps=2)
    assert sdxl.unet.calls == []


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """A tiny model that says it is as wide as SDXL, and memory that only its networks lack."""
    model = tiny_model(tmp_path, "sdxl")
    folder = tmp_path / "configs"
    folder.mkdir(exist_ok=True)
    unet = {"block_out_channels": [320, 640, 1280], "layers_per_block": 2}
    (folder / "unet.json").write_text(json.dumps(unet))
    vae = {"block_out_channels": [128, 256, 512, 512]}
    (folder / "vae.json").write_text(json.dumps(vae))
    monkeypatch.setattr(memory, "free_memory", lambda _: 10**12)
    old = model.pipeline
    engines = {name: old.engines[name] for name in old.engines}
    return replace(model, pipeline=kdrt.Pipeline(old.bundle, engines))


def test_what_the_networks_cannot_compute_is_refused(
    configured: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only requests are resolved here: none of these runs."""
    pipe = configured.pipeline
    side: dict[str, Any] = {"height": 4096, "width": 4096}
    decoder = 512 * 4096**2 * 4
    monkeypatch.setattr(memory, "obtainable_memory", lambda: decoder)
    pipe.stream("a", **side)
    monkeypatch.setattr(memory, "obtainable_memory", lambda: decoder - 1)
    with pytest.raises(
        kdrt.InvalidRequestError, match=r"VAE decoder, and at most 34\.4 GB .*enable_tiling"
    ):
        pipe.stream("a", **side)
    with pytest.raises(kdrt.InvalidRequestError, match="VAE decoder"):
        StableDiffusionXLKDiffusionPipeline(pipe)("a", num_inference_steps=2, **side)
    pipe.stream("a", output_type="latent", **side)
    pipe.vae.enable_tiling()
    pipe.stream("a", **side)
    monkeypatch.setattr(memory, "obtainable_memory", lambda: 10**9)
    with pytest.raises(kdrt.InvalidRequestError, match="in the UNet, and at most"):
        pipe.stream("a", output_type="latent", **side)
    assert configured.unet.calls == []


class Fails:
    """A network that asks for too much, as PyTorch or the system says it."""

    def __init__(self, network: Any, error: Exception | None) -> None:
        self.network, self.error = network, error
        self.held: weakref.ref[Tensor] | None = None

    def __call__(self, **inputs: Tensor) -> Any:
        large = torch.ones(1000)
        self.held = weakref.ref(large)
        if self.error is not None:
            raise self.error
        return torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested"),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["unet", "vae_decoder", "text_encoder"])
def test_a_failed_allocation_is_a_sentence_and_the_next_call_works(
    sdxl: TinyModel, network: str, error: Exception | None
) -> None:
    recorder = {
        "unet": sdxl.unet,
        "vae_decoder": sdxl.vae_decoder,
        "text_encoder": sdxl.text_encoders[1],
    }[network]
    expected = sdxl.pipeline("a red circle", **ARGUMENTS).images
    recorder.network = failing = Fails(recorder.network, error)
    with pytest.raises(
        kdrt.OutOfMemoryError, match=r"^memory ran out \(.*\): make fewer"
    ) as raised:
        sdxl.pipeline("a green square", **ARGUMENTS)
    assert "\n" not in str(raised.value)
    gc.collect()
    assert failing.held is not None
    assert failing.held() is None, "let go although the error is still looked at"
    assert len(sdxl.pipeline.denoising) == 0
    recorder.network = failing.network
    assert np.array_equal(sdxl.pipeline("a red circle", **ARGUMENTS).images, expected)


def test_a_generation_in_steps_fails_in_the_same_way(sdxl: TinyModel) -> None:
    generation = sdxl.pipeline.stream("a", **ARGUMENTS)
    next(generation)
    network, sdxl.unet.network = sdxl.unet.network, Fails(sdxl.unet.network, None)
    with pytest.raises(kdrt.OutOfMemoryError):
        next(generation)
    with pytest.raises(kdrt.InvalidRequestError, match="were not finished"):
        generation.result()
    sdxl.unet.network = network
    sdxl.pipeline("a", **ARGUMENTS)


def test_other_errors_stay_what_they_are(sdxl: TinyModel) -> None:
    sdxl.pipeline("a", **ARGUMENTS)
    sdxl.unet.network = Fails(sdxl.unet.network, RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        sdxl.pipeline("a", **ARGUMENTS)
    assert len(sdxl.pipeline.denoising) == 1
