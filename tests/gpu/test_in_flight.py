"""What has to hold of in-flight batching on a GPU, on the demo model: nothing of it has run yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kdrt
from kdrt.bundle import Bundle
from kdrt.denoise.conditioning_store import ImageShape
from kdrt.request.fields import Request
from kdrt.sampling import Plan
from tests.support.gpu import PROMPT, close
from tests.support.image_arrays import as_tensor
from tests.support.requests import request_of


def image(**fields: Any) -> Request:
    return request_of({"prompt": PROMPT, "steps": 8, **fields})


REQUESTS = (
    image(seed=1, sampler="euler"),
    image(seed=2, sampler="dpmpp_2m_sde", steps=21, guidance_scale=3.0),
    image(seed=3, sampler="heun", guidance_scale=1.0),
    image(seed=4, sampler="unipc", steps=40, guidance_rescale=0.7),
    image(seed=5, sampler="euler_cfg_pp", guidance_scale=2.0),
    image(seed=[6, 7], prompt=[PROMPT] * 2, guidance_interval=(0.3, 5.0)),
    image(seed=8, sampler="dpm_adaptive"),
)


def assert_company_changes_nothing(pipe: kdrt.Pipeline, bound: float) -> None:
    alone = [as_tensor(pipe.generate(each, output_type="latent").images) for each in REQUESTS]
    with kdrt.Batcher(pipe) as batcher:
        for _ in range(2):  # the second time everything is captured
            handles = [batcher.submit(each, output_type="latent") for each in REQUESTS]
            for handle, expected in zip(handles, alone, strict=True):
                close(as_tensor(handle.result(timeout=120).images), expected, bound)


@pytest.mark.parametrize("level", ["off", "step"])
def test_an_image_in_company_is_the_image_alone(bundle: Bundle, level: Any) -> None:
    """But for sums in another order, as kernels for other batches may take it."""
    assert_company_changes_nothing(kdrt.load(bundle, engine="torch", cuda_graph=level), 1e-3)


def test_an_image_in_company_is_the_image_alone_on_tensorrt(bundle: Bundle, built: str) -> None:
    assert_company_changes_nothing(kdrt.load(bundle, engine=built), 5e-2)


def test_images_are_decoded_while_ticks_are_captured(bundle: Bundle) -> None:
    """Shapes that nobody has seen, one after the other: each has ticks to capture, while images of
    those before are decoded in another thread."""
    pipe = kdrt.load(bundle, engine="torch")
    with kdrt.Batcher(pipe) as batcher:
        handles = [
            batcher.submit(image(seed=seed, steps=3, width=64 + 32 * (seed // 4)))
            for seed in range(16)
        ]
        for handle in handles:
            assert handle.result(timeout=120).in_flight


@pytest.mark.parametrize("level", ["off", "step"])
def test_nothing_waits_or_allocates_in_a_tick(bundle: Bundle, level: Any) -> None:
    """Nor where an image comes, or fewer run than before, once their ticks are captured."""
    pipe = kdrt.load(bundle, engine="torch", cuda_graph=level)
    job = pipe.resolve(image(seed=7, sampler="dpmpp_2m", steps=30), "latent")
    run = pipe.prepare(job, pipe.encode(job))
    assert isinstance(run.plan, Plan)
    _, tokens, _ = run.inputs.positive.prompt.encoder_hidden_states.shape
    height, width = run.latents.shape[-2:]
    room = pipe.denoising.in_flight(ImageShape(height, width, tokens), 4)
    with pipe.cuda_stream.active():
        slots = [room.admit(run.plan, run.latents, None, run.inputs) for _ in range(3)]
        memberships = (slots, slots[:1], slots[1:], slots)
        for membership in memberships:
            room.tick(membership)
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["num_device_alloc"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for membership in memberships:
                for _ in range(3):
                    room.tick(membership)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats()["num_device_alloc"] == before
        torch.cuda.current_stream().synchronize()
