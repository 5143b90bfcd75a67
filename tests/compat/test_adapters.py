"""The drop-in classes with every adapter and switch: the same calls as on diffusers' own pipelines
lead to the same images, with kdrt's samplers and with k-diffusion's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.errors import InvalidRequestError
from kdrt_export.verify import relative_error
from tests.support.ip_adapter import image, write_adapter
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.tiny_bundles import HEIGHT, NEGATIVE, PROMPT, STEPS, WIDTH, TinyModel, latents

MODULES = ("to_q", "to_v", "ff.net.2", "q_proj", "out_proj", "fc1")
CLASSES: dict[str, Any] = {
    "sd": StableDiffusionKDiffusionPipeline,
    "sdxl": StableDiffusionXLKDiffusionPipeline,
}


@dataclass(frozen=True)
class Everything:
    """A model whose bundle has an IP-Adapter and both ways of projecting."""

    model: TinyModel
    adapter: Path

    def pipes(self) -> tuple[Any, Any]:
        """Ours and diffusers'."""
        ours = CLASSES[self.model.family].from_pretrained(self.model.bundle, engine="onnxruntime")
        ours.set_progress_bar_config(disable=True)
        ours.set_scheduler("sample_euler")
        return ours, self.model.diffusers()


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def everything(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Everything:
    from tests.support.lora_files import pipeline

    home = tmp_path_factory.mktemp("everything")
    adapter = write_adapter(home / "adapter", pipeline(request.param).unet)
    model = TinyModel.make(request.param, home, ip_adapter=str(adapter), variants=["unfused-qkv"])
    return Everything(model, adapter)


def call(pipe: Any, prompt: str = PROMPT, **options: Any) -> Tensor:
    """Euler on the checkpoint's own grid, in the words that both kinds of pipeline take."""
    arguments = {"output_type": "latent"} | options
    images: Tensor = pipe(
        prompt,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        latents=latents(),
        height=HEIGHT,
        width=WIDTH,
        **arguments,
    ).images
    return images


def same(ours: Any, theirs: Any, prompt: str = PROMPT, **options: Any) -> bool:
    expected = call(theirs, prompt, **options)
    found = [call(ours, prompt, exact=exact, **options) for exact in (False, True)]
    return all(relative_error(each, expected) < 1e-5 for each in found)


def test_without_adapters(everything: Everything) -> None:
    ours, theirs = everything.pipes()
    assert same(ours, theirs)
    assert same(ours, theirs, "a star", guidance_scale=9.0)


def test_loras(everything: Everything, tmp_path: Path) -> None:
    ours, theirs = pipes = everything.pipes()
    before = {exact: call(ours, exact=exact) for exact in (False, True)}
    layers = random_lora(networks(theirs), MODULES)
    save_file(kohya(layers), tmp_path / "style.safetensors")
    for pipe in pipes:
        pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="s")
    assert same(ours, theirs)
    for pipe in pipes:
        pipe.set_adapters("s", -0.5)
    assert same(ours, theirs)
    for pipe in pipes:
        pipe.set_adapters("s", 1.0)
    told = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    for scale in (0.4, None):
        parts = [pipe.encode_prompt(PROMPT, lora_scale=scale, **told) for pipe in pipes]
        for mine, expected in zip(*parts, strict=True):
            if expected is not None and mine is not None:
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    for pipe in pipes:
        pipe.set_adapters("s", 1.0)
        pipe.fuse_lora(lora_scale=0.7)
        pipe.unload_lora_weights()
    assert same(ours, theirs)
    ours.unfuse_lora()
    for exact, expected in before.items():
        assert torch.equal(call(ours, exact=exact), expected)


def test_textual_inversion(everything: Everything, tmp_path: Path) -> None:
    ours, theirs = pipes = everything.pipes()
    if everything.model.family == "sdxl":
        theirs.tokenizer_2 = copy.deepcopy(theirs.tokenizer)
    before = call(ours)
    generator = torch.Generator().manual_seed(3)
    prompt = "a <cat> on a blue background"
    names = ["", "_2"] if everything.model.family == "sdxl" else [""]
    for name in names:
        file = tmp_path / f"cat{name}.safetensors"
        save_file({"<cat>": torch.randn(2, 24, generator=generator)}, file)
        for pipe in pipes:
            pipe.load_textual_inversion(
                str(file),
                tokenizer=getattr(pipe, f"tokenizer{name}"),
                text_encoder=getattr(pipe, f"text_encoder{name}"),
            )
    assert same(ours, theirs, prompt)
    assert not torch.equal(call(ours, prompt), call(ours, "a on a blue background"))
    assert ours.maybe_convert_prompt(prompt, ours.tokenizer) == theirs.maybe_convert_prompt(
        prompt, theirs.tokenizer
    )
    ours.unload_textual_inversion()
    assert torch.equal(call(ours), before)


def test_ip_adapter(everything: Everything) -> None:
    ours, theirs = pipes = everything.pipes()
    before = call(ours)
    for pipe in pipes:
        pipe.load_ip_adapter(
            str(everything.adapter.parent), subfolder="", weight_name="ip.safetensors"
        )
    for scale in (0.6, 1.5):
        for pipe in pipes:
            pipe.set_ip_adapter_scale(scale)
        assert same(ours, theirs, ip_adapter_image=image())
    embeddings, _ = theirs.encode_image(image(), "cpu", 1)
    for exact in (False, True):
        shown = call(ours, ip_adapter_image=image(), exact=exact)
        told = call(ours, ip_adapter_image_embeds=embeddings, exact=exact)
        assert relative_error(told, shown) < 1e-5
        assert relative_error(call(ours, exact=exact), before) < 1e-5  # without an image: off
    ours.unload_ip_adapter()
    assert torch.equal(call(ours), before)


def test_an_image_switches_the_adapter_on(everything: Everything) -> None:
    ours, _ = everything.pipes()
    before = call(ours)
    assert relative_error(call(ours, ip_adapter_image=image()), before) > 1e-2
    with pytest.raises(InvalidRequestError, match="before loading them"):
        ours._move(torch.device("meta"))


def test_fused_projections(everything: Everything) -> None:
    ours, theirs = pipes = everything.pipes()
    before, engines = call(ours), dict(ours.pipeline.engines)
    for pipe in pipes:
        pipe.fuse_qkv_projections()
    assert torch.equal(call(ours), before)
    assert same(ours, theirs)
    for pipe in pipes:
        pipe.unfuse_qkv_projections()
    assert ours.pipeline.engines["unet"] is not engines["unet"]
    assert same(ours, theirs)
    assert same(ours, theirs, output_type="pt")


def test_freeu(everything: Everything) -> None:
    ours, theirs = pipes = everything.pipes()
    for pipe in pipes:
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert same(ours, theirs)
    for pipe in pipes:
        pipe.disable_freeu()
    assert same(ours, theirs)


def test_vae_switches(everything: Everything) -> None:
    ours, theirs = everything.pipes()
    whole = call(ours, output_type="pt")
    assert same(ours, theirs, output_type="pt")
    ours.disable_vae_slicing()
    assert relative_error(call(ours, output_type="pt"), whole) < 1e-5
    ours.enable_vae_slicing()
    for pipe in (ours, theirs.vae):
        (pipe.enable_vae_tiling if pipe is ours else pipe.enable_tiling)()
    assert relative_error(call(ours, output_type="pt"), whole) > 1e-3  # as it does in diffusers
    assert same(ours, theirs, output_type="pt")
    ours.disable_vae_tiling()
    assert torch.equal(call(ours, output_type="pt"), whole)
    ours.upcast_vae()
