"""Safety checker and image filter, against diffusers' checker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil

from kdrt.errors import InvalidRequestError, NonFiniteError
from kdrt.images.input import clip_pixels
from kdrt.images.safety import SafetyChecker, is_flagged
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components.vision import ExportSafetyChecker
from tests.support.image_arrays import as_array
from tests.support.tiny_model import TinyModel
from tests.support.tiny_networks import randomized

SIZE = 32


def checker() -> StableDiffusionSafetyChecker:
    config = CLIPConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": SIZE,
            "patch_size": 8,
        },
        projection_dim=20,
    )
    return randomized(StableDiffusionSafetyChecker(config))


def make_images(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    result = []
    for index in range(count):
        low = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        size = [(40, 56), (70, 33), (32, 32), (91, 64)][index % 4]
        result.append(Image.fromarray(low).resize(size, Image.Resampling.BICUBIC))
    return result


@pytest.mark.parametrize("size", [(40, 56), (70, 33), (32, 32), (224, 224), (31, 90), (500, 301)])
@pytest.mark.parametrize("target", [32, 224])
def test_images_are_read_as_clip_reads_them(size: tuple[int, int], target: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": target}, crop_size={"height": target, "width": target}
    )
    expected = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(clip_pixels([image], target), expected, rtol=0, atol=2e-6)


def test_flags_are_diffusers() -> None:
    theirs = checker()
    images = make_images(40)
    pixels = clip_pixels(images, SIZE)
    # Thresholds among the scores: some images are flagged, some only near a special concept.
    special, concept = ExportSafetyChecker(theirs).reference(pixels)
    theirs.special_care_embeds_weights.data += special.quantile(0.8, dim=0)
    theirs.concept_embeds_weights.data += concept.quantile(0.97, dim=0)
    _, expected = theirs(clip_input=pixels, images=[np.zeros(1) for _ in images])
    component = ExportSafetyChecker(theirs)
    reference = component.reference(pixels)
    component.rewrite()
    for ours, their in zip(component(pixels), reference, strict=True):
        torch.testing.assert_close(ours, their, rtol=1e-4, atol=2e-6)
    ours = SafetyChecker(TorchEngine(component, component.spec))
    assert ours(images) == expected
    assert 3 < sum(expected) < 37
    without = [is_flagged(torch.tensor([-1.0]), scores) for scores in reference[1]]
    assert 0 < sum(without) < sum(expected)


@pytest.mark.parametrize(
    ("special", "concept", "flagged"),
    [
        ([-0.1], [-0.1, 0.001], True),
        ([-0.1], [-0.1, 0.0004], False),
        ([-0.1], [-0.005], False),
        ([0.001], [-0.005], True),
        ([0.0004], [-0.005], False),
        ([0.2], [-0.0101], False),
    ],
)
def test_the_rule(special: list[float], concept: list[float], flagged: bool) -> None:
    assert is_flagged(torch.tensor(special), torch.tensor(concept)) == flagged


def test_flagged_images_are_black(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    options: dict[str, Any] = {"steps": 2, "seed": 0, "output_type": "np"}
    plain = pipe(["a", "b", "c"], **options)
    assert plain.nsfw is None
    seen: list[int] = []

    def flags(images: list[Image.Image]) -> list[bool]:
        seen.append(len(images))
        return [False, True, False]

    pipe.safety_checker = flags  # type: ignore[assignment]
    result = pipe(["a", "b", "c"], **options)
    assert result.nsfw == [False, True, False]
    assert seen == [3]
    shown, before = as_array(result.images), as_array(plain.images)
    assert not shown[1].any()
    assert np.array_equal(shown[[0, 2]], before[[0, 2]])
    latents = pipe("a", steps=2, output_type="latent")
    assert (latents.nsfw, seen) == (None, [3])


def test_a_filter_replaces_blacks_out_or_lets_pass(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    answers = iter([Image.new("RGB", (20, 20), (255, 0, 0)), False, None, True])

    def look(image: Image.Image) -> Image.Image | bool | None:
        assert image.size == (48, 64)
        return next(answers)

    options: dict[str, Any] = {"steps": 2, "seed": 0}
    plain = pipe(["a", "b", "c", "d"], **options).images
    result = pipe(["a", "b", "c", "d"], image_filter=look, **options)
    assert result.nsfw == [False, True, False, False]
    assert (np.asarray(result.images[0]) == (255, 0, 0)).all()
    assert not np.asarray(result.images[1]).any()
    for index in (2, 3):
        assert np.array_equal(np.asarray(result.images[index]), np.asarray(plain[index]))


def test_a_filter_may_answer_with_numpys_booleans(sdxl: TinyModel) -> None:
    answers: Any = iter([np.False_, np.True_])
    result = sdxl.pipeline(
        ["a", "b"], image_filter=lambda image: next(answers), steps=1, output_type="np"
    )
    assert result.nsfw == [True, False]
    assert not as_array(result.images)[0].any()
    assert as_array(result.images)[1].any()


@pytest.mark.parametrize("answer", [0, 1, "x", "", [], np.zeros((64, 48, 3)), torch.tensor(False)])
def test_any_other_answer_of_a_filter_shows_nothing(sdxl: TinyModel, answer: object) -> None:
    loose: Any = sdxl.pipeline
    with pytest.raises(InvalidRequestError, match=r"image_filter returned .*must return a PIL"):
        loose("a", image_filter=lambda image: answer, steps=1)


def test_a_filter_is_a_function(sdxl: TinyModel) -> None:
    loose: Any = sdxl.pipeline
    with pytest.raises(InvalidRequestError, match="image_filter must be a function"):
        loose("a", image_filter="blur")
    assert not sdxl.unet.calls


def test_a_checker_that_overflows_lets_nothing_pass() -> None:
    network = checker()
    network.visual_projection.weight.data[0] = torch.inf
    component = ExportSafetyChecker(network)
    component.rewrite()
    with pytest.raises(NonFiniteError, match="safety checker gave scores that are not finite"):
        SafetyChecker(TorchEngine(component, component.spec))(make_images(2))
