"""ControlNets and T2I-Adapters beside diffusers' own pipelines, on tiny networks with every
parameter random, the zero convolutions too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image
from torch import Tensor

from kdrt import ControlImage
from tests.support.control_pair import ControlPair
from tests.support.diffusers_pair import HEIGHT, NEGATIVE, POSITIVE, SCALE, WIDTH
from tests.support.tiny_model import CHANNELS, Family

# The second prompt is too long on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 5
OFF = 1e-5


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ControlPair]:
    families: list[Family] = ["sd", "sdxl"]
    return {each: ControlPair(tmp_path_factory.mktemp(each), each) for each in families}


TEXT_TO_IMAGE = {
    "sd": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.7},
    "window": {"scale": 1.5, "start": 0.2, "end": 0.6},
    "guess mode": {"scale": 0.9, "guess": True},
    "guess mode in a window": {"start": 0.4, "guess": True},
    "unguided": {"scale": 0.8, "guidance_scale": 1.0},
    "unguided guess mode": {"guess": True, "guidance_scale": 1.0},
    "an image for each prompt": {"images": [picture(1), picture(2)]},
}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("name", OPTIONS)
def test_one_controlnet(pairs: dict[str, ControlPair], family: Family, name: str) -> None:
    pair, asked = pairs[family], {**OPTIONS[name]}
    images = asked.pop("images", picture(1))
    guess, guidance = asked.pop("guess", False), asked.pop("guidance_scale", 5.0)
    theirs = pair.theirs(TEXT_TO_IMAGE[family], controlnet=pair.networks["edges"])
    compare(
        pair,
        theirs,
        {
            "image": images,
            "guess_mode": guess,
            "controlnet_conditioning_scale": asked.get("scale", 1.0),
            "control_guidance_start": asked.get("start", 0.0),
            "control_guidance_end": asked.get("end", 1.0),
        },
        {"control": ControlImage(images, "edges", **asked), "guess_mode": guess},
        guidance_scale=guidance,
    )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("guess", [False, True])
def test_several_controlnets(pairs: dict[str, ControlPair], family: Family, guess: bool) -> None:
    pair = pairs[family]
    several = MultiControlNetModel([pair.networks["edges"], pair.networks["lines"]])
    first: Any = picture(1)
    second: Any = picture(3)
    images: Any = [first, second]
    if family == "sd":  # only there diffusers takes an image for each prompt
        first, second = [picture(1), picture(2)], [picture(3), picture(4)]
        images = [[picture(1), picture(3)], [picture(2), picture(4)]]
    compare(
        pair,
        pair.theirs(TEXT_TO_IMAGE[family], controlnet=several),
        {
            "image": images,
            "guess_mode": guess,
            "controlnet_conditioning_scale": [0.6, 1.3],
            "control_guidance_start": [0.0, 0.4],
            "control_guidance_end": [0.6, 1.0],
        },
        {
            "control": [
                ControlImage(second, "lines", scale=1.3, start=0.4),
                ControlImage(first, "edges", scale=0.6, end=0.6),
            ],
            "guess_mode": guess,
        },
    )


def test_means_over_the_image(tmp_path: Path) -> None:
    pair = ControlPair(tmp_path, "sd", pools=True)
    compare(
        pair,
        pair.theirs(StableDiffusionControlNetPipeline, controlnet=pair.networks["edges"]),
        {"image": picture(1), "controlnet_conditioning_scale": 0.8},
        {"control": ControlImage(picture(1), "edges", scale=0.8)},
    )


ADAPTED = {
    "sd": StableDiffusionAdapterPipeline,
    "sdxl": StableDiffusionXLAdapterPipeline,
}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_one_t2i_adapter(pairs: dict[str, ControlPair], family: Family) -> None:
    """Of SDXL with a factor: it works in the first of the steps."""
    pair, images = pairs[family], [picture(1), picture(2)]
    theirs: dict[str, Any] = {"image": images, "adapter_conditioning_scale": 0.8}
    end = 1.0
    if family == "sdxl":
        end = theirs["adapter_conditioning_factor"] = 0.7
    pipeline = pair.theirs(ADAPTED[family], adapter=pair.adapters["sketch"])
    control = ControlImage(images, "sketch", scale=0.8, end=end)
    compare(pair, pipeline, theirs, {"control": control})


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_several_t2i_adapters(pairs: dict[str, ControlPair], family: Family) -> None:
    pair = pairs[family]
    coloured, grey = [picture(1), picture(2)], [picture(3, "L"), picture(4, "L")]
    several = MultiAdapter([pair.adapters["sketch"], pair.adapters["colour"]])
    compare(
        pair,
        pair.theirs(ADAPTED[family], adapter=several),
        {"image": [coloured, grey], "adapter_conditioning_scale": [0.8, 0.5]},
        {
            "control": [
                ControlImage(coloured, "sketch", scale=0.8),
                ControlImage(grey, "colour", scale=0.5),
            ]
        },
    )


BEGUN = {
    ("sd", "image"): StableDiffusionControlNetImg2ImgPipeline,
    ("sdxl", "image"): StableDiffusionXLControlNetImg2ImgPipeline,
    ("sd", "mask"): StableDiffusionControlNetInpaintPipeline,
    ("sdxl", "mask"): StableDiffusionXLControlNetInpaintPipeline,
}


@pytest.mark.parametrize(("family", "kind"), BEGUN)
def test_beginning_with_an_image(pairs: dict[str, ControlPair], family: Family, kind: str) -> None:
    compare_with_image(pairs[family], BEGUN[family, kind], with_mask=kind == "mask")


def test_an_inpainting_unet(tmp_path: Path) -> None:
    """The ControlNet sees the latents alone."""
    pair = ControlPair(tmp_path, "sd", in_channels=9)
    compare_with_image(pair, StableDiffusionControlNetInpaintPipeline, with_mask=True)


def compare_with_image(pair: ControlPair, kind: Any, *, with_mask: bool) -> None:
    theirs = pair.theirs(kind, controlnet=pair.networks["edges"])
    random = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, HEIGHT, WIDTH, generator=random)
    cells = (torch.rand(2, 1, HEIGHT // SCALE, WIDTH // SCALE, generator=random) > 0.5).float()
    mask = cells.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    masks: dict[str, Any] = {"mask_image": mask} if with_mask else {}
    control, common = picture(5), {"strength": 0.8, "guidance_scale": 5.0, "output_type": "latent"}
    expected = theirs(
        POSITIVE,
        image=image,
        control_image=control,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        controlnet_conditioning_scale=0.8,
        control_guidance_start=0.3,
        height=HEIGHT,
        width=WIDTH,
        generator=torch.Generator().manual_seed(3),
        **masks,
        **common,
    ).images
    # What diffusers drew: a sample of the (certain) latents, then the noise.
    again = torch.Generator().manual_seed(3)
    shape = (2, CHANNELS, HEIGHT // SCALE, WIDTH // SCALE)
    _, noise = (torch.randn(shape, generator=again) for _ in range(2))
    theirs.scheduler.set_timesteps(STEPS)
    ours: Any = pair.ours
    arguments = {
        "image": image,
        "latents": noise,
        "sampler": "euler",
        "sigmas": theirs.scheduler.sigmas.tolist(),
        **masks,
        **common,
    }
    made = ours(
        POSITIVE,
        NEGATIVE,
        control=ControlImage(control, "edges", scale=0.8, start=0.3),
        **arguments,
    ).images
    assert_near(made, expected)
    assert relative(ours(POSITIVE, NEGATIVE, **arguments).images, expected) > 0.01


def compare(
    pair: ControlPair,
    theirs: Any,
    their_control: dict[str, Any],
    our_control: dict[str, Any],
    guidance_scale: float = 5.0,
) -> None:
    latents = torch.randn(2, CHANNELS, HEIGHT // SCALE, WIDTH // SCALE)
    common = {
        "height": HEIGHT,
        "width": WIDTH,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
    }
    theirs.scheduler.set_timesteps(STEPS)
    begin = theirs.scheduler.sigmas[0] / theirs.scheduler.init_noise_sigma
    # Their adapters take images of one prompt at a time.
    expected = theirs(
        POSITIVE,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        latents=latents * begin,
        **their_control,
        **common,
    ).images
    arguments: dict[str, Any] = {
        "latents": latents,
        "sampler": "euler",
        "sigmas": theirs.scheduler.sigmas.tolist(),
        **common,
    }
    ours: Any = pair.ours
    made = ours(POSITIVE, NEGATIVE, **arguments, **our_control).images
    assert_near(made, expected)
    plain = ours(POSITIVE, NEGATIVE, **arguments).images
    assert relative(plain, expected) > 0.01, "control is of no effect"


def relative(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).norm() / expected.norm())


def assert_near(made: Tensor, expected: Tensor) -> None:
    assert relative(made, expected) < OFF
