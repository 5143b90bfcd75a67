"""The whole runtime against diffusers' own pipelines, on tiny random networks.

With Euler on the scheduler's own grid both must end in the same latents. The networks are wrapped
here, not exported: what is compared is everything around them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)

from tests.support.diffusers_pair import (
    HEIGHT,
    NEGATIVE,
    POSITIVE,
    SCALE,
    STEPS,
    WIDTH,
    diffusers_pipeline,
    kdrt_pipeline,
)
from tests.support.tiny_model import Family

# The second prompt is too long on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_rescale", [0.0, 0.7])
def test_sdxl(tmp_path: Path, prediction_type: str, guidance_rescale: float) -> None:
    sizes: dict[str, Any] = {"original_size": (80, 70), "crops_coords_top_left": (3, 5)}
    compare(
        tmp_path,
        "sdxl",
        prediction_type,
        guidance_rescale=guidance_rescale,
        prompt_2=["a star", "a small circle"],
        clip_skip=1,
        **sizes,
    )


@pytest.mark.parametrize("negative", [None, ""])
def test_sdxl_without_negative_prompt(tmp_path: Path, negative: str | None) -> None:
    compare(tmp_path, "sdxl", "epsilon", negative=negative)


def test_sdxl_negative_sizes(tmp_path: Path) -> None:
    # A batch of one: diffusers pairs them wrongly in larger batches.
    sizes: dict[str, Any] = {"negative_original_size": (10, 20), "negative_target_size": (30, 40)}
    compare(tmp_path, "sdxl", "epsilon", prompts=POSITIVE[:1], **sizes)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sd(tmp_path: Path, prediction_type: str, guidance_scale: float) -> None:
    compare(tmp_path, "sd", prediction_type, guidance_scale=guidance_scale)


EDM: dict[str, SchedulerMixin] = {
    "Playground v2.5": EDMEulerScheduler(),
    "Playground v2.5, exponential": EDMEulerScheduler(sigma_schedule="exponential"),
    "CosXL": EDMEulerScheduler(
        sigma_max=120.0,
        sigma_data=1.0,
        prediction_type="v_prediction",
        sigma_schedule="exponential",
    ),
    "EDM velocity": EDMEulerScheduler(prediction_type="v_prediction", rho=5.0),
    "continuous velocity": EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=120.0,
        use_karras_sigmas=True,
        timestep_spacing="trailing",
        steps_offset=1,
    ),
    "second order": EDMDPMSolverMultistepScheduler(),
    "second order, velocity": EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", EDM)
def test_the_edm_formulation(tmp_path: Path, name: str) -> None:
    """The model's own grid, and every step on it."""
    sampler = "euler" if "order" not in name else "dpmpp_2m"
    compare(tmp_path, "sdxl", scheduler=EDM[name], sampler=sampler, own_grid=True, off=1e-5)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_sd_with_guidance_rescale(tmp_path: Path, prediction_type: str) -> None:
    """Of a model that predicts the denoised latents, it is those that diffusers rescales."""
    compare(tmp_path, "sd", prediction_type, guidance_rescale=0.7)


def compare(
    folder: Path,
    family: Family,
    prediction_type: str = "epsilon",
    *,
    scheduler: Any = None,
    sampler: str = "euler",
    own_grid: bool = False,
    off: float = 1e-4,
    prompts: list[str] = POSITIVE,
    negative: str | None = NEGATIVE,
    guidance_scale: float = 5.0,
    **arguments: Any,
) -> None:
    torch.manual_seed(0)
    theirs = diffusers_pipeline(family, prediction_type, scheduler)
    ours = kdrt_pipeline(folder, family, theirs)
    latents = torch.randn(len(prompts), 4, HEIGHT // SCALE, WIDTH // SCALE)
    common = {
        "height": HEIGHT,
        "width": WIDTH,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
        **arguments,
    }
    # diffusers wants as many negative prompts as prompts.
    their_negative = None if negative is None else [negative] * len(prompts)
    # diffusers begins EDM models at √(σ² + 1), k-diffusion and kdrt at σ.
    theirs.scheduler.set_timesteps(STEPS)
    begin = theirs.scheduler.sigmas[0] / theirs.scheduler.init_noise_sigma
    expected = theirs(
        prompts,
        negative_prompt=their_negative,
        num_inference_steps=STEPS,
        latents=latents * begin,
        **common,
    ).images
    sigmas = theirs.scheduler.sigmas.tolist()
    grid = {"schedule": "scheduler", "steps": STEPS} if own_grid else {"sigmas": sigmas}
    result = ours(prompts, negative, latents=latents, sampler=sampler, **grid, **common)
    torch.testing.assert_close(result.images, expected, rtol=off, atol=off)
    assert expected.std() > 0.1
