"""Seeds and noise from the arguments of a pipeline to its images and their parameters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdrt
from kdrt.bundle import Bundle, SchedulerFacts
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.grid import training_table
from tests.support.tiny_model import TinyModel, tiny_model

PROMPTS = ["a", "b"]


def make(model: TinyModel, **arguments: Any) -> Any:
    given: dict[str, Any] = {
        "steps": 3,
        "sampler": "euler_ancestral",
        "seed": 4,
        "output_type": "latent",
    }
    return model.pipeline(PROMPTS, **given | arguments)


def test_every_mode_makes_its_own_image(sd: TinyModel) -> None:
    pytest.importorskip("torchsde")
    modes: list[dict[str, Any]] = [
        {},
        {"noise": "brownian"},
        {"noise": "comfyui"},
        {"noise": "a1111", "noise_options": {"eta_noise_seed_delta": 31337}},
        {"noise": "a1111", "noise_options": {"source": "nv"}},
        {"noise_seed": 77},
    ]
    images = [make(sd, **mode).images for mode in modes]
    for index, image in enumerate(images):
        assert image.isfinite().all()
        for other in images[:index]:
            assert not torch.allclose(image, other, atol=1e-2)
    # Same order of draws: the two differ in name only where neither delta nor source is given.
    assert torch.equal(make(sd, noise="a1111").images, images[0])


def test_what_a_mode_draws_is_in_the_parameters(sd: TinyModel) -> None:
    options = {"eta_noise_seed_delta": 31337, "source": "nv"}
    text = str(make(sd, noise="a1111", noise_options=options).infotexts[1])
    assert "RNG: NV" in text
    assert "ENSD: 31337" in text
    result = make(sd, noise="brownian", noise_seed=8)
    assert "Noise: brownian" in str(result.infotexts[0])
    assert "Noise seed: 9" in str(result.infotexts[1])
    assert "RNG" not in str(make(sd).infotexts[0])


def test_a_generator_gives_seeds_that_give_the_images_again(sd: TinyModel) -> None:
    generator = torch.Generator().manual_seed(11)
    first, second = (make(sd, seed=None, generator=generator) for _ in range(2))
    assert len({*first.seeds, *second.seeds}) == 4
    assert torch.equal(make(sd, seed=first.seeds).images, first.images)
    again = make(sd, seed=None, generator=torch.Generator().manual_seed(11))
    assert torch.equal(again.images, first.images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise": "gpu"}, "unknown noise 'gpu'; known: per_image, brownian"),
        ({"noise_options": {"eta": 1}}, "the noise per_image has no option 'eta'"),
        ({"noise_options": ["eta"]}, "noise_options must be a mapping"),
        ({"noise_seed": -1}, "noise_seed must be a whole number of at least 0"),
        ({"noise_seed": [1]}, "1 noise_seeds for 2 images"),
        ({"generator": torch.Generator()}, "seed and generator both say"),
        ({"seed": None, "generator": 3}, "generator must be a torch.Generator, not 3"),
        ({"noise": "comfyui", "seed": [4, 9]}, "one seed for the whole batch"),
    ],
)
def test_refusals(sd: TinyModel, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make(sd, **wrong)
    assert not sd.unet.calls


def test_schedule_options_reach_the_unet_and_the_parameters(sdxl: TinyModel) -> None:
    options = {"rho": 5, "sigma_max": 10.0, "discard_penultimate": True}
    result = sdxl.pipeline("a", seed=1, steps=4, schedule_options=options)
    text = str(result.infotexts[0])
    for words in ("Schedule type: Karras", "Schedule rho: 5", "Schedule max sigma: 10"):
        assert words in text
    assert "Discard penultimate sigma: True" in text
    assert len(sdxl.unet.calls) == 4
    with pytest.raises(InvalidRequestError, match="karras schedule has no option 'alpha'"):
        sdxl.pipeline("a", schedule_options={"alpha": 1.0})
    with pytest.raises(InvalidRequestError, match="no option 'timestep_spacing': it accepts rho"):
        sdxl.pipeline("a", schedule_options={"timestep_spacing": "leading"})
    loose: Any = sdxl.pipeline
    with pytest.raises(InvalidRequestError, match="schedule_options must be a mapping"):
        loose("a", schedule_options=3)
    with pytest.raises(InvalidRequestError, match="which sigmas and timesteps replace"):
        sdxl.pipeline("a", sigmas=[1, 0], schedule_options={"rho": 1})


def _note_sigma(seen: list[float], step: kdrt.PreviewStep) -> None:
    seen.append(step.sigma)


def test_published_tables_follow_the_family(sd: TinyModel, sdxl: TinyModel) -> None:
    for model, second in ((sd, 6.475), (sdxl, 6.315)):
        seen: list[float] = []
        model.pipeline(
            "a",
            steps=10,
            schedule="Align Your Steps",
            seed=0,
            callback=partial(_note_sigma, seen),
        )
        assert seen[1] == second


def test_the_scheduler_schedule_can_be_told_another_spacing(sd: TinyModel) -> None:
    """The checkpoint says leading, offset 1."""
    sd.pipeline("a", steps=2, schedule="scheduler", seed=0)
    options = {"timestep_spacing": "trailing"}
    sd.pipeline("a", steps=2, schedule="scheduler", seed=0, schedule_options=options)
    sd.pipeline("a", steps=2, schedule="leading", seed=0)
    sd.pipeline("a", steps=2, schedule="leading", seed=0, schedule_options={"steps_offset": 3})
    called = [round(float(call["timestep"][0]), 3) for call in sd.unet.calls]
    assert called == [501, 1, 999, 499, 501, 1, 503, 3]


def test_a_model_of_zero_terminal_snr(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "sd", prediction_type="v_prediction")
    bundle = model.pipeline.bundle
    facts = bundle.manifest.scheduler.model_copy(update={"rescale_betas_zero_snr": True})
    manifest = bundle.manifest.model_copy(update={"scheduler": facts})
    pipeline = Pipeline(Bundle(tmp_path, manifest), model.pipeline.engines)
    seen: list[float] = []
    images = pipeline(
        "a",
        steps=4,
        schedule="sgm_uniform",
        seed=0,
        output_type="np",
        callback=lambda step: seen.append(step.sigma),
    )
    assert seen[0] == pytest.approx(4096, abs=1e-3)
    assert np.isfinite(images.images).all()


def test_zero_terminal_snr_needs_velocity() -> None:
    with pytest.raises(InvalidRequestError, match=r"predicts noise \(epsilon\) cannot begin there"):
        training_table(
            SchedulerFacts(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                num_train_timesteps=1000,
                prediction_type="epsilon",
                timestep_spacing="trailing",
                steps_offset=0,
                rescale_betas_zero_snr=True,
            )
        )


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"])
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"noise": "brownian"},
        {"noise": "comfyui"},
        {"noise": "a1111", "noise_options": {"eta_noise_seed_delta": 2**64 - 1}},
        {"noise": "a1111", "noise_options": {"source": "nv", "eta_noise_seed_delta": 31337}},
    ],
    ids=["per_image", "brownian", "comfyui", "a1111", "nv"],
)
def test_seeds_up_to_the_last(sd: TinyModel, mode: dict[str, Any], sampler: str) -> None:
    """ComfyUI draws seeds from 0 to 2⁶⁴ - 1; after the last one counting goes on at 0."""
    pytest.importorskip("torchsde")
    if mode.get("noise_options", {}).get("source") == "nv" and "sde" in sampler:
        pytest.skip("trees are not emulated with the source nv")
    last = make(sd, seed=2**64 - 1, sampler=sampler, **mode)
    assert last.seeds == [2**64 - 1, 0]
    assert "Seed: 18446744073709551615," in str(last.infotexts[0])
    other = make(sd, seed=2**63, sampler=sampler, **mode)
    assert other.seeds == [2**63, 2**63 + 1]
    assert not torch.allclose(last.images, other.images, atol=1e-2)
    if mode.get("noise") != "comfyui":
        again = make(sd, seed=[0, 2**64 - 1], sampler=sampler, **mode)
        assert torch.equal(again.images[0], make(sd, seed=0, sampler=sampler, **mode).images[0])


def test_numpys_numbers_are_options(sd: TinyModel) -> None:
    delta = {"eta_noise_seed_delta": np.uint64(2**64 - 1)}
    exact = make(sd, noise="a1111", noise_options={"eta_noise_seed_delta": 2**64 - 1})
    assert torch.equal(make(sd, noise="a1111", noise_options=delta).images, exact.images)


def test_noise_seeds_up_to_the_last(sd: TinyModel) -> None:
    for noise in ("per_image", "comfyui"):
        result = make(sd, noise=noise, noise_seed=2**64 - 1)
        assert "Noise seed: 18446744073709551615" in str(result.infotexts[0])
        assert "Noise seed: 0" in str(result.infotexts[1])
