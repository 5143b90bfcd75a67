"""The grid a request asks for, from its arguments to the UNet and the picture's parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_model import TinyModel

from kdrt.errors import InvalidRequest
from kdrt.grid import grid_of
from kdrt.request import Request


def called_at(model: TinyModel) -> list[float]:
    return [float(call["timestep"][0]) for call in model.unet.calls]


def test_timesteps_reach_the_unet(sd: TinyModel) -> None:
    result = sd.pipeline("a", timesteps=[999, 500.25, 10], seed=0, sampler="euler")
    assert called_at(sd) == pytest.approx([999, 500.25, 10], abs=1e-3)
    text = str(result.parameters[0])
    assert "Steps: 3" in text
    assert "Schedule type: Custom" in text
    assert "Sigmas: 14.6" in text


@pytest.mark.parametrize("schedule", ["karras", "scheduler", "exponential"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_run_in_two_parts_is_the_whole_run(sdxl: TinyModel, schedule: str, sampler: str) -> None:
    """Single-step samplers keep no memory, so the hand-over must not show at all."""

    def make(**arguments: Any) -> Any:
        return sdxl.pipeline("a", seed=3, sampler=sampler, output_type="latent", **arguments)

    base = make(steps=9, schedule=schedule, denoising_end=0.7)
    refined = make(steps=9, schedule=schedule, denoising_start=0.7, latents=base.images)
    request = Request(prompt="a", steps=9, schedule=schedule)
    manifest = sdxl.pipeline.bundle.manifest
    grid = grid_of(request, manifest, sdxl.pipeline._noise_schedule)
    cut = float(sdxl.pipeline._noise_schedule.sigmas[300])
    whole = make(sigmas=sorted({*grid, cut}, reverse=True))
    torch.testing.assert_close(refined.images, whole.images, rtol=1e-5, atol=1e-5)
    assert "Denoising end: 0.7" in str(base.parameters[0])
    assert "Steps: 9" in str(base.parameters[0])
    assert "Denoising start: 0.7" in str(refined.parameters[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timesteps": [5, 5]}, "timesteps must descend strictly"),
        ({"timesteps": [1000, 5]}, "timesteps must be from 999 down to 0"),
        ({"timesteps": []}, "timesteps must be from 999 down to 0"),
        ({"timesteps": "many"}, "timesteps must be a sequence of numbers"),
        ({"timesteps": [5, float("nan")]}, "timesteps must descend strictly"),
        ({"sigmas": []}, "sigmas need at least two numbers, one step; got 0"),
        ({"sigmas": [1, 0], "timesteps": [5]}, "two forms of one grid; give one of them"),
        ({"denoising_start": 0.5}, "denoising_start goes on with the latents of another run"),
        ({"denoising_end": 1.5}, "denoising_end must be between 0 and 1, not 1.5"),
    ],
)
def test_refusals(sd: TinyModel, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sd.pipeline("a", **wrong)
    assert not sd.unet.calls


def test_text_to_image_has_no_strength(sd: TinyModel) -> None:
    from kdrt.resolve import resolve

    request = Request(prompt="a", strength=0.5)
    pipe = sd.pipeline
    with pytest.raises(InvalidRequest, match="strength says how much of an image to redo"):
        resolve(request, pipe.bundle.manifest, pipe._unet.spec, pipe._noise_schedule)
