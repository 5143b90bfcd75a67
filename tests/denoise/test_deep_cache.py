"""DeepCache on exported networks, against eager diffusers with the same feature put back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import kdrt
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt_export.errors import ExportError
from kdrt_export.options import check_variants
from kdrt_export.verify import relative_error
from tests.support.lora_files import (
    ATTENTION,
    CONVOLUTIONS,
    kohya,
    kohya_with_ldm_names,
    networks,
    random_lora,
)
from tests.support.tiny_bundles import NEGATIVE, PROMPT, TinyModel

STEPS, GUIDANCE = 5, 4.0
BOUND = 2e-5
SIZES = [(32, 48), (18, 26)]
"""Of images; latents of 16 by 24, and of 9 by 13."""


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    home = tmp_path_factory.mktemp("deep")
    return TinyModel.make(request.param, home, variants=["deepcache"])


def noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 4, height // 2, width // 2, generator=generator)


def by_kdrt(pipe: Pipeline, size: tuple[int, int], **options: Any) -> Tensor:
    arguments = {"steps": STEPS, "sampler": "euler", "guidance_scale": GUIDANCE, **options}
    height, width = size
    images = pipe(
        PROMPT,
        NEGATIVE,
        latents=noise(height, width),
        height=height,
        width=width,
        output_type="latent",
        **arguments,
    ).images
    assert isinstance(images, Tensor)
    return images


class Cached:
    """diffusers' UNet, whose last layer is given what came to it at an earlier evaluation."""

    def __init__(self, unet: Any, every: int) -> None:
        self.unet, self._every, self._count = unet, every, 0
        self._kept: Any = None
        last = unet.up_blocks[-1]
        before = (getattr(last, "attentions", None) or last.resnets)[-2]
        before.register_forward_hook(self._swap)

    def _swap(self, module: Any, inputs: Any, out: Any) -> Any:
        if self._count % self._every == 0:
            self._kept = out
        self._count += 1
        return self._kept


def by_hand(model: TinyModel, pipe: Pipeline, size: tuple[int, int], every: int) -> Tensor:
    """Euler's method on the eager network, both halves in one batch."""
    height, width = size
    cached = Cached(model.diffusers().unet, every)
    positive, negative = pipe.encode_prompt(PROMPT, NEGATIVE)
    context = torch.cat([negative.encoder_hidden_states, positive.encoder_hidden_states])
    added = None
    if positive.text_embeds is not None and negative.text_embeds is not None:
        ids = torch.tensor([[height, width, 0, 0, height, width]] * 2)
        added = {
            "text_embeds": torch.cat([negative.text_embeds, positive.text_embeds]),
            "time_ids": ids,
        }
    sigmas = [step.sigma for step in pipe.stream(PROMPT, steps=STEPS, height=height, width=width)]
    x = noise(height, width) * sigmas[0]
    with torch.no_grad():
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            sample = torch.cat([x, x]) / math.sqrt(sigma**2 + 1)
            timestep = torch.full((2,), pipe.noise_schedule.timestep(sigma))
            predicted = cached.unet(
                sample, timestep, context, added_cond_kwargs=added, return_dict=False
            )[0]
            unconditional, conditional = predicted.chunk(2)
            x = x + (following - sigma) * torch.lerp(unconditional, conditional, GUIDANCE)
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("every", [2, 3])
def test_equals_a_loop_written_by_hand(deep: TinyModel, size: tuple[int, int], every: int) -> None:
    pipe = kdrt.load(deep.bundle)
    expected = by_hand(deep, pipe, size, every)
    assert relative_error(by_kdrt(pipe, size, deep_cache=every), expected) < BOUND
    plain = by_kdrt(pipe, size)
    assert relative_error(plain, by_hand(deep, pipe, size, 1)) < BOUND
    assert relative_error(plain, expected) > 1e-3, "the shortcut is another image"


def test_the_bundle_tells_and_holds_little_more(deep: TinyModel) -> None:
    manifest = Bundle.open(deep.bundle).manifest
    whole, shallow = manifest.components["unet"], manifest.components["unet_shallow"]
    assert manifest.variants == {}
    assert [tensor.name for tensor in whole.outputs] == ["noise_pred", "deep_feature"]
    assert shallow.inputs[-1].shape == whole.outputs[-1].shape
    assert shallow.parameters < 0.1 * whole.parameters
    assert all(v.relative_error < 1e-5 for v in shallow.verification + whole.verification)


def test_every_kind_of_run(deep: TinyModel) -> None:
    """With all shortcuts at once, on an image, in turn: what is made is finite, and the same
    whichever way the networks are kept."""
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 20:] = 255
    options: dict[str, Any] = {
        "image": image,
        "mask_image": mask,
        "steps": 5,
        "seed": 1,
        "sampler": "dpmpp_sde",
        "guidance_interval": (0.3, 6.0),
        "deep_cache": 2,
        "output_type": "np",
    }
    expected = kdrt.load(deep.bundle)(PROMPT, **options).images
    in_turn = kdrt.load(deep.bundle, low_vram=True)
    assert np.array_equal(in_turn(PROMPT, **options).images, expected)
    assert np.array_equal(in_turn(PROMPT, **options).images, expected)


@pytest.mark.parametrize("names", [kohya, kohya_with_ldm_names])
def test_loras_are_in_both_networks(deep: TinyModel, names: Any, tmp_path: Path) -> None:
    """Each evaluation of a run is with the LoRA: as in a bundle that has it baked in. LDM's names
    number the blocks of the whole network, which the shallow one does not have."""
    layers = random_lora(networks(deep.diffusers()), (*ATTENTION, *CONVOLUTIONS))
    file = tmp_path / "style.safetensors"
    save_file(names(layers), file)
    baked = TinyModel.make(deep.family, tmp_path, variants=["deepcache"], loras=[(file, 0.7)])
    expected = by_kdrt(kdrt.load(baked.bundle), SIZES[0], deep_cache=3)
    pipe = kdrt.load(deep.bundle)
    base = by_kdrt(pipe, SIZES[0], deep_cache=3)
    swap = pipe.adapters.load_lora(file, scale=0.7)
    assert "unet_shallow" in swap.networks
    assert relative_error(by_kdrt(pipe, SIZES[0], deep_cache=3), expected) < BOUND
    assert relative_error(base, expected) > 1e-2
    pipe.adapters.unload_loras()
    assert torch.equal(by_kdrt(pipe, SIZES[0], deep_cache=3), base)


def test_variants_go_together(tmp_path: Path) -> None:
    both = TinyModel.make("sd", tmp_path, variants=["deepcache", "unfused-qkv"])
    pipe = kdrt.load(both.bundle)
    assert pipe.bundle.manifest.variants.keys() == {"unfused-qkv"}
    expected = by_kdrt(pipe, SIZES[0], deep_cache=2)
    pipe.adapters.use_variant("unfused-qkv")
    assert relative_error(by_kdrt(pipe, SIZES[0], deep_cache=2), expected) < BOUND


def test_what_is_refused(tiny_models: Any) -> None:
    pipe = kdrt.load(tiny_models("sd").bundle)
    with pytest.raises(
        InvalidRequestError, match=r"has none; export it with .*--variant deepcache`"
    ):
        pipe("a", deep_cache=2)
    with pytest.raises(ExportError, match="choose unfused-qkv, deepcache or pag"):
        check_variants(["deep"], fuse_qkv=True)
