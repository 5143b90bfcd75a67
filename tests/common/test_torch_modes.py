"""What other libraries of the process have set changes no image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import kdrt
from kdrt.common.torch_modes import neutral_modes
from kdrt.compat import StableDiffusionXLKDiffusionPipeline
from kdrt.pipeline.pipeline import Pipeline
from kdrt.sampling import NOISES
from tests.support.image_arrays import as_array
from tests.support.tiny_model import TinyModel

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
Mode = Callable[[], AbstractContextManager[object]]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Mode] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "grad": lambda: torch.set_grad_enabled(True),
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def ancestral(model: Any, x: Tensor, sigmas: Tensor, callback: Any, noise_sampler: Any) -> Tensor:
    """A sampler of a user's, which runs in a thread of its own."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
        x = x + (noise_sampler(sigmas[i], sigmas[i + 1]) + torch.randn_like(x)) * sigmas[i + 1]
    return x


def images(pipe: Pipeline) -> Iterator[np.ndarray]:
    """One of each kind."""
    base: dict[str, Any] = {"seed": 3, "steps": 3, "output_type": "np"}
    for noise in NOISES:
        yield as_array(
            pipe("a (red:1.3) circle", noise=noise, sampler="euler_ancestral", **base).images
        )
    yield as_array(pipe("a", sampler=ancestral, **base).images)
    yield as_array(pipe("a", sampler="dpm_adaptive", **base).images)
    yield as_array(pipe("a", guidance_rescale=0.5, prompt_weighting="a1111", **base).images)
    seen: list[Image.Image] = []
    yield as_array(pipe("a", callback=lambda step: seen.extend(step.decode()), **base).images)
    yield np.stack([np.asarray(image) for image in seen])
    yield pipe.encode_prompt("a red circle")[0].encoder_hidden_states.numpy()
    generation = pipe.stream("a", **base)
    next(generation)
    yield as_array(generation.result().images)
    compat = StableDiffusionXLKDiffusionPipeline(pipe)
    for sampler in ("dpmpp_2m", "euler_ancestral"):
        compat.set_scheduler(sampler)
        made: Any = compat(
            "a",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(3),
            use_karras_sigmas=sampler == "dpmpp_2m",
            height=64,
            width=64,
            output_type="np",
        )
        yield made.images


@pytest.mark.parametrize("name", MODES)
def test_a_mode_changes_no_image(sdxl: TinyModel, name: str) -> None:
    """Not where the pipeline is made in it, nor where it is used in it, nor afterwards."""
    expected = list(images(sdxl.pipeline))
    with MODES[name]():
        pipe = Pipeline(sdxl.pipeline.bundle, sdxl.pipeline.engines)
        assert all(map(np.array_equal, images(pipe), expected))
        assert all(map(np.array_equal, images(sdxl.pipeline), expected))
    assert all(map(np.array_equal, images(pipe), expected))


def _real_image(bundle: Path, lora: Path, mode: Mode = nullcontext) -> np.ndarray:
    arguments: dict[str, Any] = {"steps": 1, "seed": 1, "height": 64, "width": 64}
    arguments |= {"image": IMAGE, "strength": 1, "output_type": "np"}
    learned = torch.full((1, 64), 0.1)
    with mode():
        pipe = kdrt.load(bundle, engine="onnxruntime", threads=1)
        pipe.adapters.load_textual_inversion(learned, "<word>")
        pipe.adapters.load_lora(lora, scale=0.7)
        images = pipe("a red <word> circle", **arguments).images
    assert isinstance(images, np.ndarray)
    return images


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    layer = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    down, up = torch.full((2, 128), 0.02), torch.full((128, 2), 0.02)
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "alpha": torch.tensor(1.7)}
    save_file({f"{layer}.{name}": tensor for name, tensor in tensors.items()}, file)
    return file


@pytest.fixture(scope="module")
def real_image(demo_bundle: Path, lora: Path) -> np.ndarray:
    return _real_image(demo_bundle, lora)


@pytest.mark.parametrize("name", ["bfloat16", "device", "inference", "autocast"])
def test_a_real_bundle_is_loaded_and_used_in_a_mode(
    demo_bundle: Path, lora: Path, real_image: np.ndarray, name: str
) -> None:
    assert np.array_equal(_real_image(demo_bundle, lora, MODES[name]), real_image)


def test_only_what_has_no_dtype_or_device_of_its_own_is_told() -> None:
    with default_dtype(torch.float64), torch.device("meta"), neutral_modes():
        for made in (
            torch.zeros(2),
            torch.linspace(0, 1, 3),
            torch.tensor([0.1]),
            torch.tensor(0.1),
            torch.as_tensor([1, 0.1]),
            torch.full((2,), 0.1),
            torch.arange(0.0, 1.0, 0.1),
            torch.randn(2, generator=torch.Generator().manual_seed(1)),
        ):
            assert (made.dtype, made.device.type) == (torch.float32, "cpu")
        assert torch.tensor([1, 2]).dtype is torch.int64
        assert torch.tensor([True]).dtype is torch.bool
        assert torch.arange(3).dtype is torch.int64
        assert torch.as_tensor(np.zeros(2)).dtype is torch.float64
        assert torch.asarray(torch.zeros(2, dtype=torch.float16)).dtype is torch.float16
        assert torch.zeros(2, dtype=torch.float64).dtype is torch.float64
        there = torch.zeros(2, device="meta")
        assert torch.as_tensor(there).device == there.device
        assert torch.tensor([0.1]).item() == torch.tensor([0.1], dtype=torch.float32).item()
        assert torch.get_default_dtype() is torch.float64, "other threads have what they had"
