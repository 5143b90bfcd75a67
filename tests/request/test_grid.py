"""The grid a request asks for, from its arguments to the UNet and the image's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import EDMEulerScheduler

from kdrt.bundle import EdmFacts
from kdrt.errors import InvalidRequestError
from kdrt.request.complete import complete
from kdrt.request.fields import Request
from kdrt.request.grid import grid_of
from tests.support.requests import request_of
from tests.support.tiny_model import TinyModel, tiny_model


def called_at(model: TinyModel) -> list[float]:
    return [float(call["timestep"][0]) for call in model.unet.calls]


def test_timesteps_reach_the_unet(sd: TinyModel) -> None:
    result = sd.pipeline("a", timesteps=[999, 500.25, 10], seed=0, sampler="euler")
    assert called_at(sd) == pytest.approx([999, 500.25, 10], abs=1e-3)
    text = str(result.infotexts[0])
    assert "Steps: 3" in text
    assert "Schedule type: Custom" in text
    assert "Timesteps: 999 500.25 10" in text


@pytest.mark.parametrize("schedule", ["karras", "scheduler", "exponential"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_run_in_two_parts_is_the_whole_run(sdxl: TinyModel, schedule: str, sampler: str) -> None:
    """Single-step samplers keep no memory, so the hand-over must not show at all."""

    def make(**arguments: Any) -> Any:
        return sdxl.pipeline("a", seed=3, sampler=sampler, output_type="latent", **arguments)

    base = make(steps=9, schedule=schedule, denoising_end=0.7)
    refined = make(steps=9, schedule=schedule, denoising_start=0.7, latents=base.images)
    request = complete(Request(prompt="a", steps=9, schedule=schedule))
    manifest = sdxl.pipeline.bundle.manifest
    grid = grid_of(request, manifest, sdxl.pipeline.noise_schedule)
    cut = float(sdxl.pipeline.noise_schedule.sigmas[300])
    whole = make(sigmas=sorted({*grid, cut}, reverse=True))
    torch.testing.assert_close(refined.images, whole.images, rtol=1e-5, atol=1e-5)
    assert "Denoising end: 0.7" in str(base.infotexts[0])
    assert "Steps: 9" in str(base.infotexts[0])
    assert "Denoising start: 0.7" in str(refined.infotexts[0])


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
    with pytest.raises(InvalidRequestError, match=message):
        sd.pipeline("a", **wrong)
    assert not sd.unet.calls


def test_text_to_image_has_no_strength(sd: TinyModel) -> None:
    from kdrt.request.resolve import resolve

    request = Request(prompt="a", strength=0.5)
    pipe = sd.pipeline
    with pytest.raises(InvalidRequestError, match="strength says how much of an image to redo"):
        resolve(request, pipe.bundle.manifest, pipe.engines["unet"].spec, pipe.noise_schedule)


def continuous(folder: Path, sigma_schedule: Literal["karras", "exponential"]) -> TinyModel:
    edm = EdmFacts(
        sigma_min=0.004, sigma_max=90.0, sigma_data=0.5, sigma_schedule=sigma_schedule, rho=5.0
    )
    return tiny_model(folder, "sd", edm=edm)


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_a_continuous_model_walks_its_own_grid(
    tmp_path: Path, sigma_schedule: Literal["karras", "exponential"]
) -> None:
    model = continuous(tmp_path, sigma_schedule)
    theirs = EDMEulerScheduler(0.004, 90.0, 0.5, sigma_schedule, rho=5.0)
    theirs.set_timesteps(7)
    pipe = model.pipeline

    def grid(**arguments: Any) -> list[float]:
        request = complete(request_of({"prompt": "a", "steps": 7, **arguments}))
        return grid_of(request, pipe.bundle.manifest, pipe.noise_schedule)

    own = grid(schedule="scheduler")
    assert own == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)
    # Its timesteps are what the network is told of these levels, and mean them.
    assert grid(timesteps=theirs.timesteps.tolist()) == pytest.approx(own, rel=1e-5)
    pipe("a", steps=7, schedule="scheduler", sampler="euler", seed=0)
    assert called_at(model) == pytest.approx(theirs.timesteps.tolist(), abs=1e-6)
    # Any other schedule runs over the same range, on a table where it needs one.
    for schedule in ("karras", "exponential", "normal", "simple", "trailing", "linspace"):
        levels = grid(schedule=schedule)
        assert levels[0] == pytest.approx(90.0)
        assert levels[-2] >= 0.004 * (1 - 1e-9)
    assert grid(schedule="normal")[:-1] == pytest.approx(grid(schedule="exponential")[:-1])
    assert grid(schedule="ddim_uniform")[-1] == 0


def test_two_continuous_models_hand_over_in_the_middle(tmp_path: Path) -> None:
    model = continuous(tmp_path, "karras")

    def make(**arguments: Any) -> Any:
        return model.pipeline("a", seed=3, sampler="euler", output_type="latent", **arguments)

    base = make(steps=5, schedule="scheduler", denoising_end=0.5)
    refined = make(steps=5, schedule="scheduler", denoising_start=0.5, latents=base.images)
    # Half of the way is half of the way in the logarithm.
    cut = float(model.pipeline.noise_schedule.sigmas[500])
    assert cut == pytest.approx((0.004 * 90.0) ** 0.5, rel=0.01)
    request = complete(Request(prompt="a", steps=5, schedule="scheduler"))
    grid = grid_of(request, model.manifest, model.pipeline.noise_schedule)
    whole = make(sigmas=sorted({*grid, cut}, reverse=True))
    torch.testing.assert_close(refined.images, whole.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [[999, 1], [1.2, 0], [0, -2.0], []])
def test_timesteps_of_a_continuous_model_have_its_range(tmp_path: Path, wrong: list[float]) -> None:
    pipe = continuous(tmp_path, "karras").pipeline
    with pytest.raises(
        InvalidRequestError, match=r"timesteps must be from 1\.12495 down to -1\.38037"
    ):
        pipe("a", timesteps=wrong)
