"""A second pass at a larger size: an image to image of what the first one makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kdrt
from kdrt.batching.handle import ImageStep
from kdrt.errors import BundleError, CancelledError, InvalidRequestError, ShapeError
from kdrt.images.upscaling import UPSCALINGS, LatentUpscaling, find_upscaler
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Binding
from tests.support.encoder import with_encoder
from tests.support.enlarging import Enlarging, upscaler_facts, with_upscaler
from tests.support.gates import ends_with, made
from tests.support.image_arrays import as_tensor
from tests.support.requests import request_of
from tests.support.tiny_model import TinyModel

SIZE: dict[str, Any] = {"width": 48, "height": 32}
FIELDS: dict[str, Any] = {**SIZE, "steps": 4, "seed": 3, "sampler": "dpmpp_2m"}
HIRES: dict[str, Any] = {"hires_scale": 2, "hires_strength": 0.5, "hires_steps": 3}
LATENT = [name for name, each in UPSCALINGS.items() if isinstance(each, LatentUpscaling)]


def in_two_calls(pipe: Pipeline, upscaler: str, **fields: Any) -> Tensor:
    """The same by hand: 3 of 6 steps, half of them, at twice the size."""
    first = as_tensor(pipe("a", **{**FIELDS, **fields}, output_type="latent").images)
    upscaling = UPSCALINGS[upscaler]
    image: Any
    if isinstance(upscaling, LatentUpscaling):
        image = torch.nn.functional.interpolate(
            first, scale_factor=2, mode=upscaling.mode, antialias=upscaling.antialias
        )
    else:
        pixels = pipe.vae.decoder(first).add(1).div(2).clamp(0, 1)[0]
        planes = [
            np.asarray(Image.fromarray(plane.numpy()).resize((96, 64), upscaling.resampling))
            for plane in pixels
        ]
        image = torch.from_numpy(np.stack(planes))[None].clamp(0, 1)
    second = {**FIELDS, **fields, "steps": 6, "width": 96, "height": 64}
    return as_tensor(pipe("a", image=image, strength=0.5, output_type="latent", **second).images)


@pytest.mark.parametrize("upscaler", [*LATENT, "lanczos"])
def test_it_is_an_image_to_image_of_the_first(sdxl: TinyModel, upscaler: str) -> None:
    pipe = with_encoder(sdxl)
    found = pipe("a", hires_upscaler=upscaler, output_type="latent", **FIELDS, **HIRES).images
    assert found.shape == (1, 4, 8, 12)
    expected = in_two_calls(pipe, upscaler)
    torch.testing.assert_close(as_tensor(found), expected, rtol=1e-4, atol=1e-4)


def test_its_size_is_told_to_the_model(sdxl: TinyModel) -> None:
    calls = len(sdxl.unet.calls)
    image = sdxl.pipeline("a", **FIELDS, **HIRES).images[0]
    assert image.size == (96, 64)
    sizes = [call["time_ids"][-1].tolist() for call in sdxl.unet.calls[calls:]]
    assert sizes == [[32, 48, 0, 0, 32, 48]] * 4 + [[64, 96, 0, 0, 64, 96]] * 3


@pytest.mark.parametrize(
    ("fields", "runs"),
    [
        ({}, 4),  # as many as the first pass
        ({"hires_steps": 7, "hires_strength": 0.3}, 7),
        ({"hires_steps": 2, "hires_strength": 1.0}, 2),
        ({"sigmas": [9.0, 5.0, 3.0, 1.0, 0.0], "hires_strength": 0.5}, 2),  # half of that grid
    ],
)
def test_the_steps_of_the_second_pass(sdxl: TinyModel, fields: Any, runs: int) -> None:
    generation = sdxl.pipeline.stream("a", hires_scale=1.5, **{**FIELDS, **fields})
    steps = list(generation)
    assert len(steps) == len(generation) == 4 + runs
    assert [step.index for step in steps] == list(range(4 + runs))
    assert generation.result().images[0].size == (72, 48)


def test_both_passes_are_watched_and_can_be_ended(sdxl: TinyModel) -> None:
    seen = []

    def watch(step: Any) -> None:
        seen.append((step.index, tuple(step.denoised.shape[2:])))

    sdxl.pipeline("a", callback=watch, **FIELDS, **HIRES)
    assert seen == [*((index, (4, 6)) for index in range(4)), *((i, (8, 12)) for i in (4, 5, 6))]
    stopped = len(sdxl.unet.calls)
    with pytest.raises(CancelledError):
        sdxl.pipeline("a", callback=lambda step: step.index < 5, **FIELDS, **HIRES)
    assert len(sdxl.unet.calls) - stopped == 6


def test_an_image_tells_it_and_makes_it_again(sdxl: TinyModel, tmp_path: Path) -> None:
    pipe = with_encoder(sdxl)
    result = pipe("a", hires_upscaler="Latent (bicubic)", **FIELDS, **HIRES)
    text = str(result.infotexts[0])
    assert "Size: 48x32" in text
    hires = "Hires upscale: 2, Hires steps: 3, Denoising strength: 0.5, Hires upscaler: Latent"
    assert f"{hires} (bicubic)" in text
    again = kdrt.request_from(result.save(tmp_path / "a.png"))
    assert again["hires_strength"] == 0.5
    assert "strength" not in again
    options: dict[str, Any] = {"hires_upscaler": "latent_bicubic", **FIELDS, **HIRES}
    expected = pipe("a", output_type="latent", **options).images
    assert torch.equal(as_tensor(pipe(**again, output_type="latent").images), expected)
    other = kdrt.request_from(tmp_path / "a.png", hires_scale=1.5)
    assert (other["hires_scale"], other["hires_steps"]) == (1.5, 3)


def test_masks_of_regions_grow_with_the_image(sdxl: TinyModel) -> None:
    left = np.zeros((32, 48), np.uint8)
    left[:, :24] = 255
    options: dict[str, Any] = {"output_type": "latent", **FIELDS, **HIRES}
    array, tensor, image = (
        sdxl.pipeline("a", regions=[kdrt.Region("blue", mask)], **options).images
        for mask in (left, torch.tensor(left)[None], Image.fromarray(left))
    )
    assert torch.equal(array, tensor)
    assert torch.equal(array, image)
    assert not torch.allclose(array, sdxl.pipeline("a", **options).images, atol=1e-3)


@pytest.fixture
def network() -> Enlarging:
    return Enlarging(4)


@pytest.fixture
def sharp(sdxl: TinyModel, network: Enlarging) -> Pipeline:
    """The tiny model whose bundle has a network that enlarges images four times, in tiles."""
    facts = upscaler_facts(scale=4, tile=36, margin=4)
    return with_upscaler(with_encoder(sdxl), "4x-sharp", network, facts)


def test_a_network_enlarges_and_lanczos_brings_it_to_the_size(
    sharp: Pipeline, network: Enlarging, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {**FIELDS, "images_per_prompt": 2}
    first = as_tensor(sharp("a", **fields, output_type="latent").images)
    result = sharp("a", hires_upscaler="4x_Sharp", **fields, **HIRES)
    assert result.images[0].size == (96, 64)
    assert {tuple(shape) for shape in network.shapes} == {(1, 3, 32, 36)}

    pixels = sharp.vae.decoder(first).add(1).div(2).clamp(0, 1).sqrt()
    pixels = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = [
        torch.stack(
            [
                torch.from_numpy(
                    np.array(
                        Image.fromarray(plane.numpy()).resize((96, 64), Image.Resampling.LANCZOS)
                    )
                )
                for plane in planes
            ]
        ).clamp(0, 1)
        for planes in pixels
    ]
    second: dict[str, Any] = {**FIELDS, "steps": 6, "strength": 0.5, "width": 96, "height": 64}
    for index, image in enumerate(images):
        seeded = {**second, "seed": FIELDS["seed"] + index}
        expected = sharp("a", image=image[None], **seeded).images[0]
        off = np.abs(np.asarray(result.images[index], int) - np.asarray(expected, int))
        assert off.max() <= 1

    text = str(result.infotexts[0])
    assert text.endswith("Hires upscaler: 4x-sharp") or "Hires upscaler: 4x-sharp, " in text
    again = kdrt.request_from(result.save(tmp_path / "a.png"))
    assert again["hires_upscaler"] == "4x-sharp"


def test_a_network_enlarges_in_flight(sharp: Pipeline) -> None:
    fields = {"prompt": "a", "hires_upscaler": "4x-sharp", **FIELDS, **HIRES}
    expected = as_tensor(sharp(**fields, output_type="latent").images)
    with kdrt.Batcher(sharp) as batcher:
        result = made(batcher.submit(request_of(fields), output_type="latent"))
    assert result.in_flight
    torch.testing.assert_close(as_tensor(result.images), expected, rtol=1e-4, atol=1e-4)


def test_an_image_that_no_memory_holds_is_refused_before_the_first_pass(
    sharp: Pipeline, sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdrt.request.memory.obtainable_memory", lambda: 10**9)
    monkeypatch.setattr(sharp.memory_check, "check_size", lambda *_, **__: None)
    calls = len(sdxl.unet.calls)
    large: dict[str, Any] = {**FIELDS, "width": 2048, "height": 2048, "hires_scale": 1}
    with pytest.raises(InvalidRequestError, match=r"8192 by 8192 pixels .* in the upscaler"):
        sharp("a", hires_upscaler="4x-sharp", **large)
    assert len(sdxl.unet.calls) == calls


def test_names_of_upscalers() -> None:
    for name, upscaling in UPSCALINGS.items():
        assert find_upscaler(name) == find_upscaler(upscaling.label.upper()) == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hires_steps": 3}, "hires_steps is of the second pass, which hires_scale asks for"),
        ({"hires_upscaler": "lanczos"}, "hires_upscaler is of the second pass"),
        ({"hires_scale": 0.5}, "hires_scale must be a finite number of at least 1, not 0.5"),
        ({"hires_scale": "2x"}, "hires_scale must be a finite number"),
        ({"hires_scale": 2, "hires_strength": 0}, "hires_strength must be above 0 and at most 1"),
        ({"hires_scale": 2, "hires_upscaler": "esrgan"}, "hires_upscaler.*latent_bicubic"),
        ({"hires_scale": 2, "image": Image.new("RGB", (48, 32))}, "image and hires_scale do not"),
        ({"hires_scale": 2, "denoising_end": 0.5}, "denoising_end and hires_scale do not go"),
        ({"hires_scale": 2, "hires_steps": 2, "sigmas": [2.0, 1.0, 0.0]}, "leave hires_steps out"),
        ({"hires_scale": 2, "hires_steps": 10_000}, "of a schedule of 14285 steps"),
        ({"hires_scale": 16, "width": 4096}, "width must be at most 16383"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_pass(
    sdxl: TinyModel, fields: Any, message: str
) -> None:
    calls = len(sdxl.unet.calls)
    with pytest.raises(InvalidRequestError, match=message):
        sdxl.pipeline("a", **{**FIELDS, **fields})
    assert len(sdxl.unet.calls) == calls


def test_what_the_second_pass_needs_is_looked_for_before_the_first(
    sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, calls = sdxl.pipeline, len(sdxl.unet.calls)
    with pytest.raises(BundleError, match="no vae_encoder"):
        pipe("a", hires_scale=2, hires_upscaler="lanczos", **FIELDS)
    checked = []
    fits = pipe.memory_check.check_size

    def check(*size: int, **how: bool) -> None:
        checked.append(size)
        fits(*size, **how)

    monkeypatch.setattr(pipe.memory_check, "check_size", check)
    unet = pipe.engines["unet"]

    def bind(**dims: int) -> Binding:
        raise ShapeError(f"no profile for {dims['h']} by {dims['w']}")

    monkeypatch.setattr(unet, "limits", lambda: {"B": (1, 2), "h": (4, 4), "w": (6, 6)})
    monkeypatch.setattr(unet, "bind", bind)
    with pytest.raises(ShapeError, match="no profile for 8 by 12"):
        pipe("a", hires_scale=2, **FIELDS)
    assert checked == [(32, 48), (64, 96)]
    assert len(sdxl.unet.calls) == calls


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_images_in_flight_are_those_made_alone(sdxl: TinyModel, upscaler: str) -> None:
    pipe = with_encoder(sdxl)
    fields = {"prompt": "a", "images_per_prompt": 2, "hires_upscaler": upscaler, **FIELDS, **HIRES}
    beside = {"prompt": "b", **FIELDS, "width": 96, "height": 64, "steps": 9, "sampler": "heun"}
    expected = [as_tensor(pipe(**each, output_type="latent").images) for each in (fields, beside)]
    told: list[tuple[int, int]] = []

    def watch(step: ImageStep) -> None:
        told.append((step.image, step.index))

    with kdrt.Batcher(pipe) as batcher:
        handle = batcher.submit(request_of(fields), output_type="latent", callback=watch)
        other = batcher.submit(request_of(beside), output_type="latent")
        assert handle.steps == 7
        results = made(handle), made(other)
    for result, wanted in zip(results, expected, strict=True):
        assert result.in_flight
        torch.testing.assert_close(as_tensor(result.images), wanted, rtol=1e-4, atol=1e-4)
    assert sorted(told) == [(image, index) for image in (0, 1) for index in range(7)]


def test_what_cannot_share_runs_by_itself_in_both_passes(sdxl: TinyModel) -> None:
    fields = {"prompt": "a", **FIELDS, **HIRES, "sampler": "dpm_adaptive"}
    expected = as_tensor(sdxl.pipeline(**fields, output_type="latent").images)
    with kdrt.Batcher(sdxl.pipeline) as batcher:
        result = made(batcher.submit(request_of(fields), output_type="latent"))
    assert not result.in_flight
    torch.testing.assert_close(as_tensor(result.images), expected, rtol=1e-4, atol=1e-4)


def test_a_request_is_cancelled_in_its_second_pass(sdxl: TinyModel) -> None:
    fields = {"prompt": "a", **FIELDS, **HIRES}
    with kdrt.Batcher(sdxl.pipeline) as batcher:
        handle = batcher.submit(request_of(fields), callback=lambda step: step.index < 5)
        ends_with(handle, CancelledError)
        assert made(batcher.submit(request_of(fields))).images[0].size == (96, 64)
        assert (batcher.waiting, batcher.in_flight) == (0, 0)
