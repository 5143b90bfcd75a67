"""Image to image, inpainting and the hand-over between two models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

import kdrt
from kdrt.bundle import Bundle
from kdrt.errors import BundleError, InvalidRequestError
from kdrt.images.init_image import InitImage
from kdrt.images.metadata import MetadataWarning
from kdrt.pipeline.image_to_image import begin_with_image
from kdrt.pipeline.pipeline import Pipeline
from kdrt.sampling import NoiseSchedule, sigmas_for
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportVaeDecoder, ExportVaeEncoder
from tests.support.diffusers_pair import (
    HEIGHT,
    NEGATIVE,
    POSITIVE,
    SCALE,
    WIDTH,
    UNet,
    diffusers_pipeline,
    kdrt_pipeline,
)
from tests.support.encoder import with_encoder
from tests.support.plans import fixed_plan
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, TinyModel
from tests.support.tiny_networks import randomized

NOISE_SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
STEPS = 5


REFINER_IDS = TensorSpec("time_ids", "float32", ("B", 5))


class Pair:
    """A pipeline of diffusers and ours, on the same networks."""

    def __init__(
        self, folder: Path, kind: Any, in_channels: int = 4, scheduler: Any = None
    ) -> None:
        self.in_channels = in_channels
        torch.manual_seed(0)
        base = diffusers_pipeline("sd", "epsilon", scheduler)
        parts = base.components
        if in_channels != 4:
            config = {k: v for k, v in parts["unet"].config.items() if k[0] != "_"}
            parts["unet"] = UNet2DConditionModel(**config | {"in_channels": in_channels})
        for name in ("unet", "vae"):
            randomized(parts[name])
        # A spread of nothing: diffusers draws a sample where we take the mean.
        parts["vae"].quant_conv.weight.data[4:] = 0
        parts["vae"].quant_conv.bias.data[4:] = -100
        self.theirs = kind(**parts, requires_safety_checker=False)
        self.theirs.set_progress_bar_config(disable=True)
        ours = kdrt_pipeline(folder, "sd", self.theirs)
        decoder, encoder = ExportVaeDecoder(parts["vae"]), ExportVaeEncoder(parts["vae"])
        spec = ours.engines["unet"].spec
        sample = TensorSpec("sample", "float32", ("B", in_channels, "h", "w"))
        engines = {
            **ours.engines,
            "unet": TorchEngine(
                UNet(parts["unet"]), EngineSpec((sample, *spec.inputs[1:]), spec.outputs)
            ),
            "vae_decoder": TorchEngine(decoder, decoder.spec),
            "vae_encoder": TorchEngine(encoder, encoder.spec),
        }
        self.ours = Pipeline(ours.bundle, engines)

    def compare(self, image: Tensor, mask: Tensor | None, strength: float, output: str) -> None:
        generator = torch.Generator().manual_seed(3)
        masks: dict[str, Any] = {} if mask is None else {"mask_image": mask}
        expected = self.theirs(
            POSITIVE,
            image=image,
            negative_prompt=[NEGATIVE] * 2,
            num_inference_steps=STEPS,
            strength=strength,
            guidance_scale=5.0,
            generator=generator,
            output_type=output,
            **masks,
            **({} if mask is None else {"height": HEIGHT, "width": WIDTH}),
        ).images
        # What diffusers drew: a sample of the (certain) latents, where it needs them first, then
        # the noise.
        again = torch.Generator().manual_seed(3)
        shape = (CHANNELS, HEIGHT // SCALE, WIDTH // SCALE)
        if not (self.in_channels == 9 and strength == 1):
            torch.randn(2, *shape, generator=again)
        noise = torch.randn(2, *shape, generator=again)
        self.theirs.scheduler.set_timesteps(STEPS)
        ours: Any = self.ours
        result = ours(
            POSITIVE,
            NEGATIVE,
            image=image,
            sigmas=self.theirs.scheduler.sigmas.tolist(),
            strength=strength,
            guidance_scale=5.0,
            latents=noise,
            sampler="euler",
            output_type=output,
            keep_unmasked=False,
            **masks,
        )
        theirs = torch.as_tensor(expected)
        torch.testing.assert_close(result.images, theirs, rtol=2e-4, atol=2e-4)
        assert theirs.std() > 0.05


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scores", [{}, {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.5}])
def test_the_refiner_is_diffusers(tmp_path: Path, scores: dict[str, float]) -> None:
    """One text encoder, and an aesthetic score in place of the target size."""
    torch.manual_seed(0)
    parts = diffusers_pipeline("sdxl", "epsilon").components
    config = {k: v for k, v in parts["unet"].config.items() if k[0] != "_"}
    config |= {
        "cross_attention_dim": WIDTHS[1],
        "projection_class_embeddings_input_dim": 5 * 4 + POOLED,
    }
    parts["unet"] = randomized(UNet2DConditionModel(**config))
    both = kdrt_pipeline(tmp_path, "sdxl", SimpleNamespace(**parts))
    theirs = StableDiffusionXLImg2ImgPipeline(
        **parts | {"text_encoder": None, "tokenizer": None}, requires_aesthetics_score=True
    )
    theirs.set_progress_bar_config(disable=True)
    manifest = both.bundle.manifest
    manifest = manifest.model_copy(update={"text_encoders": manifest.text_encoders[1:]})
    spec = both.engines["unet"].spec
    hidden = TensorSpec("encoder_hidden_states", "float32", ("B", "L", WIDTHS[1]))
    changed = {"time_ids": REFINER_IDS, "encoder_hidden_states": hidden}
    inputs = tuple(changed.get(tensor.name, tensor) for tensor in spec.inputs)
    unet = TorchEngine(UNet(parts["unet"]), EngineSpec(inputs, spec.outputs))
    ours = Pipeline(Bundle(tmp_path, manifest), {**both.engines, "unet": unet})

    latents = torch.randn(2, 4, HEIGHT // SCALE, WIDTH // SCALE)
    common: dict[str, Any] = {
        "original_size": (80, 70),
        "guidance_scale": 5.0,
        "output_type": "latent",
        **scores,
    }
    expected = theirs(
        POSITIVE,
        image=latents,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        strength=0.6,
        target_size=(HEIGHT, WIDTH),
        generator=torch.Generator().manual_seed(3),
        **common,
    ).images
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    theirs.scheduler.set_timesteps(STEPS)
    result = ours(
        POSITIVE,
        NEGATIVE,
        image=latents,
        sigmas=theirs.scheduler.sigmas.tolist(),
        strength=0.6,
        latents=noise,
        sampler="euler",
        **common,
    )
    torch.testing.assert_close(result.images, expected, rtol=2e-4, atol=2e-4)
    assert expected.std() > 0.05
    with pytest.raises(
        InvalidRequestError, match="has one text encoder, so prompt_2 would be of no"
    ):
        ours("a", prompt_2="b")


def test_only_the_refiner_takes_aesthetic_scores(sdxl: TinyModel) -> None:
    with pytest.raises(InvalidRequestError, match="only SDXL's refiner takes aesthetic scores"):
        sdxl.pipeline("a", aesthetic_score=6.0)


def make_image(count: int = 2) -> Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def mask(count: int = 2) -> Tensor:
    """Along latents, where diffusers' choice of one pixel for each and ours agree."""
    cells = torch.rand(count, 1, HEIGHT // SCALE, WIDTH // SCALE) > 0.5
    return cells.float().repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.4, 0.75, 1.0])
def test_image_to_image_is_diffusers(tmp_path: Path, strength: float) -> None:
    pair = Pair(tmp_path, StableDiffusionImg2ImgPipeline)
    pair.compare(make_image(), None, strength, "pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.4, 0.8])
@pytest.mark.parametrize("output", ["pt", "latent"])
def test_inpainting_with_an_ordinary_unet_is_diffusers(
    tmp_path: Path, strength: float, output: str
) -> None:
    Pair(tmp_path, StableDiffusionInpaintPipeline).compare(make_image(), mask(), strength, output)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_with_an_inpainting_unet_is_diffusers(tmp_path: Path, strength: float) -> None:
    pair = Pair(tmp_path, StableDiffusionInpaintPipeline, in_channels=9)
    pair.compare(make_image(), mask(), strength, "pt")


@pytest.mark.filterwarnings("ignore")
def test_an_inpainting_unets_channels_are_diffusers(tmp_path: Path) -> None:
    """Mask, then latents of the image with grey where the mask is one half or more."""
    pair = Pair(tmp_path, StableDiffusionInpaintPipeline, in_channels=9)
    theirs, image = pair.theirs, make_image() * 2 - 1
    cells = torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0]).repeat(2 * 16 * 24 // 5 + 1)
    soft = cells[: 2 * 16 * 24].reshape(2, 1, HEIGHT // SCALE, WIDTH // SCALE)
    soft = soft.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    condition = theirs.mask_processor.preprocess(soft, height=HEIGHT, width=WIDTH)
    expected = theirs.prepare_mask_latents(
        condition, image * (condition < 0.5), 2, HEIGHT, WIDTH, image.dtype, "cpu", None, False
    )
    states, told = {}, []
    plan = fixed_plan("euler", [1.0, 0.0])
    noise = torch.randn(2, CHANNELS, HEIGHT // SCALE, WIDTH // SCALE)
    for anew in (False, True):
        init = InitImage(
            pixels=image,
            latents=None,
            mask=soft,
            soft=False,
            fill="original",
            anew=anew,
            keep_unmasked=False,
            part=None,
            height=HEIGHT,
            width=WIDTH,
        )
        states[anew], *last = begin_with_image(
            init, noise, pair.ours.vae.encode, plan=plan, scale=SCALE, inpaints=True
        )
        told.append(last)
    for region, channels in told:
        assert region is None
        torch.testing.assert_close(channels, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)
    # The image is in the noise that is begun with, unless all of it is made anew.
    assert torch.equal(states[True], noise)
    torch.testing.assert_close(states[False], pair.ours.vae.encode(image) + noise)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_edm_models_begin_with_an_image_as_in_diffusers(tmp_path: Path, kind: Any) -> None:
    pair = Pair(tmp_path, kind, scheduler=EDMEulerScheduler())
    masked = mask() if kind is StableDiffusionInpaintPipeline else None
    pair.compare(make_image(), masked, 0.8, "pt")


def test_unmasked_pixels_are_the_images_own(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    mask = np.zeros((64, 48), np.uint8)
    mask[10:30, 5:20] = 255
    options: dict[str, Any] = {
        "image": Image.fromarray(image),
        "mask_image": mask,
        "steps": 4,
        "seed": 1,
    }
    result = np.asarray(pipe("a", **options).images[0])
    assert np.array_equal(result[mask == 0], image[mask == 0])
    assert not np.array_equal(result[mask > 0], image[mask > 0])
    decoded = np.asarray(pipe("a", keep_unmasked=False, **options).images[0])
    assert not np.array_equal(decoded[mask == 0], image[mask == 0])
    assert np.array_equal(decoded[mask > 0], result[mask > 0])
    # A soft mask blends: half way between the two where it is one half.
    soft = np.where(mask > 0, 1.0, np.where(image[..., 0] > 128, 0.4, 0.0)).astype(np.float32)
    blended = pipe("a", **(options | {"mask_image": soft, "output_type": "np"})).images[0]
    halfway = 0.6 * image / 255 + 0.4 * decoded / 255
    chosen = soft == np.float32(0.4)
    assert np.abs(blended[chosen] - halfway[chosen]).max() < 0.01


def test_an_adaptive_run_keeps_the_region_of_each_image(sdxl: TinyModel) -> None:
    """It runs them one by one; each must be told its own image and mask."""
    pipe = with_encoder(sdxl)
    images = [Image.new("RGB", (48, 64), colour) for colour in ((10, 200, 30), (200, 20, 90))]
    masks = []
    for box in ((0, 0, 48, 32), (24, 0, 48, 64)):
        masks.append(Image.new("L", (48, 64), 0))
        masks[-1].paste(255, box)
    options: dict[str, Any] = {"sampler": "dpm_adaptive", "strength": 0.9, "output_type": "latent"}
    both = pipe(["a", "b"], image=images, mask_image=masks, seed=[3, 4], **options).images
    for index, (prompt, seed) in enumerate((("a", 3), ("b", 4))):
        alone = pipe(
            prompt, image=images[index], mask_image=masks[index], seed=seed, **options
        ).images
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_strength_is_the_fraction_of_steps(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    image = Image.new("RGB", (48, 64), (10, 200, 30))
    for strength, steps in ((0.3, 3), (1.0, 10), (None, 8)):
        before = len(sdxl.unet.calls)
        result = pipe("a", image=image, strength=strength, steps=10, seed=0)
        assert len(sdxl.unet.calls) - before == steps
    assert ("Denoising strength", 0.8) in result.infotexts[0].extras
    before = len(sdxl.unet.calls)
    pipe("a", image=image, mask_image=Image.new("L", (48, 64), 255), steps=10, seed=0)
    assert len(sdxl.unet.calls) - before == 10


def test_little_strength_changes_little(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    image = np.random.default_rng(0).random((64, 48, 3), dtype=np.float32)
    blocky = image[::8, ::8].repeat(8, 0).repeat(8, 1) * 0.8 + 0.1
    options: dict[str, Any] = {
        "image": blocky,
        "seed": 0,
        "steps": 20,
        "guidance_scale": 1,
        "output_type": "np",
    }
    little, much = (
        np.abs(pipe("a", strength=s, **options).images[0] - blocky).mean() for s in (0.05, 0.9)
    )
    assert little < 0.02 < much


def test_an_image_decides_the_size(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    image = Image.new("RGB", (53, 70))
    options: dict[str, Any] = {"image": image, "steps": 2, "seed": 0}
    assert pipe("a", **options).images[0].size == (48, 64)
    assert pipe("a", height=32, width=40, **options).images[0].size == (40, 32)
    assert pipe("a", height=32, **options).images[0].size == (48, 32)
    # The size is told to SDXL.
    assert sdxl.unet.calls[-1]["time_ids"][-1].tolist() == [32, 48, 0, 0, 32, 48]


def test_images_of_a_batch(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    images = [Image.new("RGB", (48, 64), color) for color in ("red", "blue")]
    options: dict[str, Any] = {"steps": 4, "strength": 0.5, "output_type": "pt"}
    batch = pipe(["a", "b"], image=images, images_per_prompt=2, seed=5, **options).images
    for index, (prompt, image) in enumerate(
        (prompt, image) for prompt, image in zip("ab", images, strict=True) for _ in range(2)
    ):
        alone = pipe(prompt, image=image, seed=5 + index, **options).images
        assert torch.equal(batch[index], alone[0])
    with pytest.raises(InvalidRequestError, match="2 images in image for 3 images"):
        pipe(["a", "b", "c"], image=images)


def test_four_channels_of_whole_numbers_are_colours_and_alpha(sd: TinyModel) -> None:
    hidden = torch.zeros(1, 4, 64, 48, dtype=torch.uint8)
    pipe = with_encoder(sd)
    found, expected = (
        pipe("a", image=image, steps=2, seed=1, output_type="np").images
        for image in (hidden, Image.new("RGB", (48, 64), "white"))
    )
    assert np.array_equal(found, expected)


def test_latents_are_an_image_too(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline  # it has no encoder, and needs none
    first = pipe("a", steps=4, seed=0, output_type="latent").images
    again = pipe("b", image=first, strength=0.5, steps=4, seed=1, output_type="pt").images
    assert again.shape == (1, 3, 64, 48)
    with pytest.raises(InvalidRequestError, match="these latents are of a 48x64 image"):
        pipe("b", image=first, height=128)
    with pytest.raises(BundleError, match="no vae_encoder"):
        pipe("b", image=Image.new("RGB", (48, 64)), steps=2)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_sde", "heun", "dpm_2"])
@pytest.mark.parametrize("split", [0.3, 0.7])
def test_two_halves_of_a_run_are_the_whole(sdxl: TinyModel, sampler: str, split: float) -> None:
    """A method that remembers nothing between steps can be stopped and go on: exactly."""
    pipe = sdxl.pipeline
    grid = sigmas_for("karras", 6, NOISE_SCHEDULE).tolist()
    cut = NOISE_SCHEDULE.sigma(round(1000 - split * 1000))
    whole = sorted({*grid, cut}, reverse=True)
    options: dict[str, Any] = {"sampler": sampler, "output_type": "latent"}
    if sampler == "dpmpp_sde":
        options["sampler_options"] = {"eta": 0.0, "s_noise": 0.0}
    expected = pipe("a", seed=3, sigmas=whole, **options).images
    base = pipe("a", seed=3, sigmas=grid, denoising_end=split, **options).images
    by_image = pipe("a", image=base, sigmas=grid, denoising_start=split, **options).images
    by_latents = pipe("a", latents=base, sigmas=grid, denoising_start=split, **options).images
    torch.testing.assert_close(by_image, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(by_image, by_latents)
    assert not torch.allclose(base, expected, atol=1e-2)


def test_an_inpainting_model_sees_mask_and_masked_image(tmp_path: Path) -> None:
    pair = Pair(tmp_path, StableDiffusionInpaintPipeline, in_channels=9)
    with pytest.raises(
        InvalidRequestError, match="is an inpainting model: give image and mask_image"
    ):
        pair.ours("a")
    with pytest.raises(InvalidRequestError, match="is an inpainting model: give mask_image too"):
        pair.ours("a", image=make_image(1))
    with pytest.raises(InvalidRequestError, match="needs the image itself, not its latents"):
        pair.ours("a", image=torch.zeros(1, 4, 16, 24), mask_image=mask(1))


GOOD = Image.new("RGB", (48, 64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask_image": GOOD}, "mask_image says which part of image"),
        ({"strength": 0.5}, "strength says how much of an image to redo, and there is none"),
        ({"image": GOOD, "strength": 0.0}, "strength must be above 0"),
        ({"image": GOOD, "strength": 1.5}, "strength must be above 0 and at most 1"),
        ({"image": GOOD, "strength": 0.01}, "leaves none"),
        ({"image": GOOD, "height": 33}, "height must be a multiple of 8"),
        ({"image": GOOD, "denoising_start": 0.5}, "begin with an image by strength"),
        ({"image": torch.full((1, 4, 8, 6), float("nan"))}, "image must be finite"),
        ({"image": "cat.png"}, "image must be a PIL image, an array or a tensor, .* not str"),
        ({"image": []}, "image is an empty list"),
        ({"image": Image.new("RGB", (5, 64))}, "image is too small: 5x64, at least 8x8"),
        ({"image": np.zeros((64, 48), np.uint8)}, r"image must be of shape \[64, 48, 3\]"),
        ({"image": np.zeros((63, 48, 3), np.uint8)}, r"\[56, 48, 3\] as an array"),
        ({"image": np.zeros((64, 48, 3), np.int64)}, "floats from 0 to 1, or uint8"),
        ({"image": torch.full((3, 64, 48), 1.5)}, "floats from 0 to 1, or uint8"),
        ({"image": torch.full((3, 64, 48), float("nan"))}, "floats from 0 to 1"),
        ({"image": GOOD, "mask_image": np.zeros((64, 40))}, r"mask_image must be of shape \[64, 4"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    sdxl: TinyModel, arguments: dict[str, Any], words: str
) -> None:
    pipe = with_encoder(sdxl)
    with pytest.raises(InvalidRequestError, match=words):
        pipe("a", **arguments)
    assert not sdxl.unet.calls
    assert not sdxl.text_encoders[0].calls


def test_every_form_of_an_image_is_the_same(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    array = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    floats = (array / 255).astype(np.float32)
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    forms = [Image.fromarray(array), array, floats, tensor, tensor[None], [tensor], array[None]]
    before = array.copy(), floats.copy()
    results = [
        pipe("a", image=form, strength=0.5, steps=4, seed=0, output_type="pt").images
        for form in forms
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6)
    # None was changed in place; the tensor shares its memory with the floats.
    assert np.array_equal(array, before[0])
    assert np.array_equal(floats, before[1])


def test_an_image_that_its_text_does_not_hold(sd: TinyModel, tmp_path: Path) -> None:
    pipe = with_encoder(sd)
    start, mask = Image.new("RGB", (48, 64), "red"), Image.new("L", (48, 64), 255)
    made = pipe("a", image=start, strength=0.6, mask_image=mask, keep_unmasked=False, seed=3)
    path = made.save(tmp_path / "a.png")
    with pytest.warns(MetadataWarning, match=r"Init image.*Masked.*Denoising strength"):
        assert "strength" not in kdrt.request_from(path)
    request = kdrt.request_from(path, image=start, mask_image=mask)
    assert (request["strength"], request["keep_unmasked"]) == (0.6, False)
    again = pipe(**request)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0]))
