"""The removed pipelines themselves, beside ours: the same latents, bit by bit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import original
from tests.support.compat_calls import BLUE, RED, SAMPLERS, relative

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return original.download(tmp_path_factory.mktemp("wheel"))
    except (subprocess.SubprocessError, StopIteration) as error:
        pytest.skip(f"{original.RELEASE} cannot be downloaded: {error}")


@pytest.fixture
def exported(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A drop-in pipeline on real exported programs, straight from the checkpoint."""
    monkeypatch.setenv("KDRT_HOME", str(tmp_path))
    pipe = type(tiny.pipe()).from_pretrained(tiny.checkpoint, exact=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_latents_and_images(tiny: Any, exported: Any, wheel: Path) -> None:
    theirs = original.load(wheel, tiny.family, tiny.checkpoint)
    cases: list[dict[str, Any]] = [
        {"prompt": RED, "height": 48, "width": 32},
        {"prompt": [RED, BLUE], "negative_prompt": ["a", "2"], "clip_skip": 1},
        {"prompt": RED, "num_images_per_prompt": 2, "use_karras_sigmas": True},
    ]
    for sampler in SAMPLERS:
        for case in cases:
            arguments = {"height": 32, "width": 32, "output_type": "latent"} | case
            results = []
            for pipe, options in ((theirs, {}), (exported, {}), (exported, {"exact": False})):
                pipe.set_scheduler(f"sample_{sampler}")
                generator = torch.Generator().manual_seed(3)
                results.append(
                    pipe(
                        num_inference_steps=3,
                        generator=generator,
                        noise_sampler_seed=5,
                        **arguments,
                        **options,
                    ).images
                )
            assert torch.equal(results[0], results[1]), (sampler, case)
            assert relative(results[2], results[0]) <= 1e-4, (sampler, case)
    images = [
        pipe(
            RED,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            noise_sampler_seed=5,
            output_type="pt",
        ).images
        for pipe in (theirs, exported)
    ]
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-5)


def test_parts_and_short_embeddings(tiny: Any, exported: Any, wheel: Path) -> None:
    theirs = original.load(wheel, tiny.family, tiny.checkpoint)
    assert set(exported.components) == set(theirs.components)
    assert set(theirs.config) - set(exported.config) <= {"_diffusers_version"}
    assert set(theirs.unet.config) - set(exported.unet.config) <= {"_diffusers_version"}
    assert exported.vae.config.scaling_factor == theirs.vae.config.scaling_factor
    arguments = (RED, "cpu", 1, True) if tiny.family == "sd" else (RED,)
    embeds = theirs.encode_prompt(*arguments)
    for length in (2, 9, 16):
        options: dict[str, Any] = {"prompt_embeds": embeds[0][:, :length]}
        if tiny.family == "sdxl":
            options["pooled_prompt_embeds"] = embeds[2]
        results = []
        for pipe in (theirs, exported):
            pipe.set_scheduler("sample_dpmpp_2m")
            latents = pipe(
                negative_prompt="a large green square and 2 yellow stars",
                height=24,
                width=16,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(3),
                output_type="latent",
                **options,
            ).images
            results.append(latents)
        assert torch.equal(*results), length
    for name in ("sigmas", "timesteps", "init_noise_sigma"):
        assert torch.equal(getattr(exported.scheduler, name), getattr(theirs.scheduler, name))
