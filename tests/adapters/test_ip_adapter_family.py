"""IP-Adapters of every kind, several at once: the images are those of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from torch import Tensor

import kdrt
from kdrt.adapters.image_prompt import read_image_request
from kdrt.compat.ip_adapter import IpAdapterMixin
from kdrt.errors import InvalidRequestError
from kdrt.images.input import clip_pixels
from kdrt_export.verify import relative_error
from tests.support.ip_adapter import FACE, image, vision_model, write_adapter
from tests.support.lora_files import pipeline
from tests.support.tiny_bundles import (
    HEIGHT,
    PROMPT,
    STEPS,
    WIDTH,
    TinyModel,
    by_diffusers,
    by_kdrt,
)

KINDS = {"style": "plus", "plain": "linear", "who": "faceid", "face": "faceid-plus"}


@dataclass(frozen=True)
class Family:
    model: TinyModel
    files: dict[str, Path]

    def ours(self) -> kdrt.Pipeline:
        return kdrt.load(self.model.bundle, engine="onnxruntime")

    def diffusers(self) -> Any:
        pipe = self.model.diffusers()
        folder = str(self.files["style"].parent.parent)
        pipe.load_ip_adapter(
            folder,
            subfolder=list(self.files),
            weight_name=["ip.safetensors"] * len(self.files),
            image_encoder_folder=None,
        )
        return pipe


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    home = tmp_path_factory.mktemp("family")
    unet = pipeline("sd").unet
    files = {
        name: write_adapter(home / name, unet, kind, seed=seed, lora=2 * (kind == "faceid"))
        for seed, (name, kind) in enumerate(KINDS.items())
    }
    options = [f"{file}:name={name}" for name, file in files.items()]
    options[0] += ",images=2"
    encoder = home / "style" / "image_encoder"
    model = TinyModel.make("sd", home, ip_adapter=options, image_encoder=encoder)
    return Family(model, files)


FACES = {
    name: torch.randn(1, FACE, generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate(("who", "face"))
}
SHOWN = {"style": [image(seed=1), image(seed=2)], "plain": image(seed=3), "face": image(seed=4)}
SCALES: dict[str, Any] = {
    "style": [{"up": {"block_1": 0.7}, "mid": 0.3}, 0.8],
    "plain": {"down": 0.9, "up": {"block_2": [0.2, 1.3]}},
    "who": 0.4,
    "face": {"mid": 1.1},
}
"""diffusers takes parts of the UNet for a whole adapter, and a list for its images."""


def given() -> dict[str, Any]:
    """What kdrt is given."""
    return {
        "ip_adapter_image": {**SHOWN, "style": [SHOWN["style"]]},
        "ip_adapter_image_embeds": FACES,
    }


def embeds(guided: bool = True) -> list[Tensor]:
    """The same as diffusers takes it; the face's hidden states last."""
    model = vision_model()

    def both(pictures: list[Image.Image], states: bool) -> Tensor:
        pixels = clip_pixels(pictures, model.config.image_size)
        if states:
            result = [
                model(p, output_hidden_states=True).hidden_states[-2]
                for p in (torch.zeros_like(pixels), pixels)
            ]
        else:
            embedding = model(pixels).image_embeds
            result = [torch.zeros_like(embedding), embedding]
        return torch.stack(result if guided else result[1:])

    def face(name: str) -> Tensor:
        return torch.stack([torch.zeros_like(FACES[name]), FACES[name]][not guided :])

    style, plain, shown = SHOWN["style"], SHOWN["plain"], SHOWN["face"]
    assert isinstance(style, list)
    assert isinstance(plain, Image.Image)
    assert isinstance(shown, Image.Image)
    with torch.no_grad():
        return [
            both(style, True),
            both([plain], False),
            face("who"),
            face("face"),
            both([shown], True),
        ]


def masks(height: int = HEIGHT, width: int = WIDTH) -> list[Image.Image]:
    """Of the two images of the first adapter: left and right."""
    left = np.zeros((height, width), np.uint8)
    left[:, : width // 3] = 255
    left[3:9, :] = 255
    return [Image.fromarray(left), Image.fromarray(255 - left)]


def set_scale(pipe: Any, scale: dict[str, Any]) -> None:
    """diffusers' method takes no parts of the UNet for one image of several, which its attentions
    do."""
    first, second = scale["style"]
    pipe.set_ip_adapter_scale([0.0, *[scale[name] for name in KINDS if name != "style"]])
    for name, processor in pipe.unet.attn_processors.items():
        if hasattr(processor, "to_k_ip"):
            up, mid = name.startswith("up_blocks.1."), name.startswith("mid_block.")
            part = first["up"]["block_1"] if up else first["mid"] if mid else 0.0
            processor.scale[0] = [part, second]


def expected(family: Family, scale: dict[str, Any], **options: Any) -> Tensor:
    """diffusers' image of everything that is given."""
    theirs = family.diffusers()
    set_scale(theirs, scale)
    guided = options.get("guidance_scale", 7.5) > 1
    *told, states = embeds(guided)
    theirs.unet.encoder_hid_proj.image_projection_layers[3].clip_embeds = states
    planes = IPAdapterMaskProcessor(vae_scale_factor=2).preprocess(
        masks(options.get("height", HEIGHT), options.get("width", WIDTH))
    )
    return by_diffusers(
        theirs,
        ip_adapter_image_embeds=told,
        cross_attention_kwargs={"ip_adapter_masks": [planes[:, 0][None], None, None, None]},
        **options,
    )


def test_all_of_them_at_once(family: Family) -> None:
    ours = family.ours()
    options = {**given(), "ip_adapter_masks": {"style": masks()}}
    result = by_kdrt(ours, ip_adapter_scale=SCALES, **options)
    assert relative_error(result, expected(family, SCALES)) < 1e-5
    for name in KINDS:
        without = by_kdrt(ours, ip_adapter_scale={**SCALES, name: 0}, **options)
        assert relative_error(result, without) > 1e-3, name


def test_a_mask_at_odd_sizes(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 30, 46  # latents of 15 x 23, 8 x 12 and 4 x 6

    def downsample(mask: Tensor, batch: int, queries: int, channels: int) -> Tensor:
        # diffusers guesses the size from the number of places, and errs at odd ones.
        size = {15 * 23: (15, 23), 8 * 12: (8, 12), 4 * 6: (4, 6)}[queries]
        plane = F.interpolate(mask[None], size=size, mode="bicubic")
        return plane.view(1, queries, 1).expand(batch, queries, channels)

    monkeypatch.setattr(IPAdapterMaskProcessor, "downsample", staticmethod(downsample))
    latents = torch.randn(1, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(5))
    size: dict[str, Any] = {"height": height, "width": width, "latents": latents}
    size["guidance_scale"] = 1.0
    # diffusers' pipeline takes no sides but multiples of 8; its network does.
    monkeypatch.setattr(StableDiffusionPipeline, "check_inputs", lambda *_, **__: None)
    wanted = expected(family, SCALES, **size)
    result = family.ours()(
        PROMPT,
        steps=STEPS,
        sampler="euler",
        schedule="scheduler",
        output_type="latent",
        ip_adapter_scale=SCALES,
        ip_adapter_masks={"style": masks(height, width)},
        **size,
        **given(),
    ).images
    assert relative_error(result, wanted) < 1e-5


def test_images_in_flight_have_scales_and_masks_of_their_own(family: Family) -> None:
    ours = family.ours()
    size: dict[str, Any] = {"prompt": "a", "steps": 2, "height": 32, "width": 32}
    style = {"ip_adapter_image": {"style": [[image(seed=1), image(seed=2)]]}}
    asked: list[Any] = [
        {**size, "seed": 1, **style, "ip_adapter_masks": {"style": masks(32, 32)}},
        {**size, "seed": 2, "ip_adapter_image": {"plain": image()}, "ip_adapter_scale": 0.4},
        {**size, "seed": 3, "ip_adapter_image": {"plain": image()}, "ip_adapter_scale": {"up": 1}},
        {**size, "seed": 4, "ip_adapter_image_embeds": {"who": FACES["who"]}},
    ]
    alone = [ours.generate(request, output_type="latent").images for request in asked]
    with kdrt.Batcher(ours, max_images=4) as batcher:
        handles = [batcher.submit(request, output_type="latent") for request in asked]
        results = [handle.result() for handle in handles]
    assert all(result.in_flight for result in results)
    for result, latents in zip(results, alone, strict=True):
        assert torch.equal(result.images, latents)


class Compatible(IpAdapterMixin):
    def __init__(self, family: Family) -> None:
        self.pipeline = family.ours()


def test_lists_are_taken_as_diffusers_takes_them(family: Family) -> None:
    compat = Compatible(family)
    compat.load_ip_adapter("a/b", subfolder=list(KINDS), weight_name=["ip.safetensors"] * 4)
    compat.set_ip_adapter_scale([[0.5, {"mid": 1}], 0.8, {"up": {"block_1": 0.3}}, 1.0])
    planes = IPAdapterMaskProcessor(vae_scale_factor=2).preprocess(masks())
    tokens, weights = compat._image_prompt(
        None,
        [*embeds()[:3], None],
        [planes[:, 0][None], None, None, None],
        1,
        HEIGHT,
        WIDTH,
        doubled=True,
    )
    shown = given()["ip_adapter_image"]
    request = read_image_request(
        {name: shown[name] for name in ("style", "plain")},
        {"who": FACES["who"]},
        {"style": [0.5, {"mid": 1}], "plain": 0.8, "who": {"up.block_1": 0.3}},
        {"style": masks()},
        manifest=compat.pipeline.bundle.manifest,
        prompts=1,
        height=HEIGHT,
        width=WIDTH,
    )
    assert request is not None
    expected = compat.pipeline.adapters.image_prompts.encode(request, 1, doubled=True)
    assert tokens is not None
    assert relative_error(tokens, expected) < 1e-5
    assert weights is not None
    assert weights.mask is not None
    assert request.mask is not None
    assert torch.equal(weights.scale[0], request.scale)
    torch.testing.assert_close(weights.mask[0], request.mask)


def test_what_is_wrong_is_said(family: Family) -> None:
    ours, picture = family.ours(), image()
    two = {"style": [[picture, picture]]}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ip_adapter_image": picture}, "has the IP-Adapters style, plain, who, face: give"),
        ({"ip_adapter_image": {"x": picture}}, "names 'x', and 'sd' has the IP-Adapters"),
        ({"ip_adapter_image": two}, "need a mask each"),
        ({"ip_adapter_image": two, "ip_adapter_masks": {"style": masks()[0]}}, "has 1 masks for"),
        ({"ip_adapter_image": {"plain": [[picture] * 2]}}, "takes 1 image at once, not 2"),
        ({"ip_adapter_image": {"who": picture}}, "reads faces: give their embeddings"),
        ({"ip_adapter_image": {"face": picture}}, "reads a face and its embedding: give both"),
        ({"ip_adapter_image_embeds": {"who": torch.zeros(1, 3)}}, r"of shape \[n, 12\]"),
        ({"ip_adapter_scale": {"x": 1}}, "names 'x', and 'sd' has the IP-Adapters"),
        ({"ip_adapter_scale": {"up.block_7": 1}}, "names 'up.block_7', and the model attends"),
        ({"ip_adapter_scale": {"up": [1, 2]}}, r"has 2 numbers for up, which has 4 attentions"),
        ({"ip_adapter_scale": {"plain": [1, 2]}}, "has 2 scales for the 1 images of 'plain'"),
        ({"ip_adapter_scale": {"mid": "x"}}, "must be a finite number"),
        ({"ip_adapter_masks": masks()}, "give ip_adapter_masks by name"),
        ({"ip_adapter_masks": {"x": masks()}}, "names 'x'"),
    ]
    for options, words in wrong:
        with pytest.raises(InvalidRequestError, match=words):
            by_kdrt(ours, **{"ip_adapter_image": {"plain": picture}, **options})
