"""IP-Adapter: the images are those of diffusers' ``load_ip_adapter``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

import kdrt
from kdrt import cli
from kdrt.bundle import ImageEncoderFacts
from kdrt.compat.ip_adapter import IpAdapterMixin
from kdrt.errors import InvalidRequestError
from kdrt.images.input import clip_pixels
from kdrt.request.fields import Request
from kdrt_engines import Engine
from kdrt_export.errors import SourceError
from kdrt_export.ip_adapter import IpAdapter
from kdrt_export.stage import export
from kdrt_export.verify import relative_error
from tests.support.ip_adapter import EMBEDDING, SIDE, image, write_adapter
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.tiny_bundles import TinyModel, by_diffusers, by_kdrt

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Prompted:
    model: TinyModel
    adapter: Path

    def diffusers(self) -> Any:
        pipe = self.model.diffusers()
        pipe.load_ip_adapter(str(self.adapter.parent), subfolder="", weight_name="ip.safetensors")
        return pipe


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def prompted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    from tests.support.lora_files import pipeline

    home = tmp_path_factory.mktemp("ip")
    adapter = write_adapter(home / "adapter", pipeline(request.param).unet)
    return Prompted(TinyModel.make(request.param, home, ip_adapter=str(adapter)), adapter)


def test_the_bundle_says_what_it_can_take(prompted: Prompted) -> None:
    manifest = kdrt.Bundle.open(prompted.model.bundle).manifest
    assert manifest.variants == {"ip-adapter": {"unet": "unet-ip-adapter"}}
    facts = manifest.ip_adapters["ip"]

    assert (facts.file, facts.tokens, facts.embedding) == ("ip.safetensors", 4, EMBEDDING)
    assert facts.image_encoder == ImageEncoderFacts(size=SIDE, mean=MEAN, std=STD)
    for name in ("unet-ip-adapter", "image_encoder", "image_projection"):
        figures = manifest.components[name].verification
        assert all(figure.relative_error < 1e-5 for figure in figures)
    with_adapter, without = (manifest.components[n] for n in ("unet-ip-adapter", "unet"))
    extra = {t.name for t in with_adapter.inputs} - {t.name for t in without.inputs}
    assert extra == {"ip_hidden_states", "ip_scale", "ip_mask"}


def test_images_as_prompts_are_those_of_diffusers(prompted: Prompted) -> None:
    ours = kdrt.load(prompted.model.bundle, engine="onnxruntime")
    base = by_kdrt(ours)
    theirs = prompted.diffusers()
    for scale in (0.6, 1.5):
        theirs.set_ip_adapter_scale(scale)
        expected = by_diffusers(theirs, ip_adapter_image=image())
        result = by_kdrt(ours, ip_adapter_image=image(), ip_adapter_scale=scale)
        assert relative_error(result, expected) < 1e-5
        assert relative_error(result, base) > 1e-2
    off = by_kdrt(ours, ip_adapter_image=image(), ip_adapter_scale=0)
    assert relative_error(off, base) < 1e-5
    assert torch.equal(by_kdrt(ours), base)  # by the plain UNet again
    ours.adapters.use_variant("ip-adapter")
    assert torch.equal(by_kdrt(ours), off)  # the variant without an image
    ours.adapters.use_variant(None)
    assert torch.equal(by_kdrt(ours), base)


@pytest.mark.parametrize("in_company", [False, True])
def test_requests_with_and_without_an_image_take_turns(
    prompted: Prompted, in_company: bool, tmp_path: Path
) -> None:
    pipe = kdrt.load(prompted.model.bundle, engine="onnxruntime")
    loaded: list[str] = []
    load = pipe.adapters._variants._load
    assert load is not None

    def counted(component: str) -> Engine:
        loaded.append(component)
        return load(component)

    pipe.adapters._variants._load = counted
    asked: list[Request] = [
        {"prompt": "a", "seed": seed, "steps": 3, "height": 32, "width": 32} for seed in range(4)
    ]
    for request in asked[::2]:
        request["ip_adapter_image"] = image()
    alone = [pipe.generate(request, output_type="latent").images for request in asked]
    assert loaded == ["unet-ip-adapter"]  # what it replaces was kept, and so was itself
    with ExitStack() as stack:
        if in_company:
            batcher = stack.enter_context(kdrt.Batcher(pipe))
            handles = [batcher.submit(request, output_type="latent") for request in asked]
            again = [handle.result(120).images for handle in handles]
        else:
            layers = random_lora({"unet": prompted.diffusers().unet}, ["to_q", "to_out.0"])
            save_file(kohya(layers), tmp_path / "style.safetensors")
            pipe.adapters.load_lora(tmp_path / "style.safetensors")
            changed = pipe.generate(asked[0], output_type="latent").images
            assert relative_error(changed, alone[0]) > 1e-3
            pipe.adapters.unload_loras()
            again = [pipe.generate(request, output_type="latent").images for request in asked]
    for one, other in zip(alone, again, strict=True):
        assert relative_error(one, other) < 1e-5


def test_embeddings_in_place_of_images(prompted: Prompted) -> None:
    ours, theirs = kdrt.load(prompted.model.bundle, engine="onnxruntime"), prompted.diffusers()
    embeddings, _ = theirs.encode_image(image(), "cpu", 1)
    expected = by_kdrt(ours, ip_adapter_image=image())
    result = by_kdrt(ours, ip_adapter_image_embeds=embeddings)
    assert relative_error(result, expected) < 1e-5


def test_an_adaptive_sampler_encodes_images_once(prompted: Prompted) -> None:
    ours = kdrt.load(prompted.model.bundle, engine="onnxruntime")
    options: dict[str, Any] = {
        "steps": 2,
        "seed": 1,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }
    ours("a", ip_adapter_image=image(), **options)
    encoder, seen = ours.adapters.image_prompts._engines["image_encoder"], []
    bind = encoder.bind

    def recording(**dims: int) -> Any:
        seen.append(dims["B"])
        return bind(**dims)

    encoder.bind = recording  # type: ignore[method-assign]
    images = [image(seed=1), image(seed=2)]
    ours(["a", "b"], sampler="dpm_adaptive", ip_adapter_image=images, **options)
    assert seen == [2]


def test_an_image_for_each_prompt(prompted: Prompted) -> None:
    ours = kdrt.load(prompted.model.bundle, engine="onnxruntime")
    options: dict[str, Any] = {"steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    images = [image(seed=1), image(50, 33, seed=2)]
    together = ours(["a star", "a circle"], ip_adapter_image=images, seed=[1, 2], **options).images
    for index, prompt in enumerate(["a star", "a circle"]):
        alone = ours(prompt, ip_adapter_image=images[index], seed=index + 1, **options).images
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_lora_beside_it(prompted: Prompted, tmp_path: Path) -> None:
    layers = random_lora(
        networks(prompted.model.diffusers()), ("to_q", "attn2.to_k", "fc1", "out_proj")
    )
    save_file(kohya(layers), tmp_path / "style.safetensors")
    ours, theirs = kdrt.load(prompted.model.bundle, engine="onnxruntime"), prompted.diffusers()
    ours.adapters.load_lora(tmp_path / "style.safetensors")
    by_kdrt(ours)  # on the plain UNet first
    theirs.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    theirs.set_ip_adapter_scale(0.8)
    expected = by_diffusers(theirs, ip_adapter_image=image())
    result = by_kdrt(ours, ip_adapter_image=image(), ip_adapter_scale=0.8)
    assert relative_error(result, expected) < 1e-5


class Compatible(IpAdapterMixin):
    def __init__(self, bundle: Path) -> None:
        self.pipeline = kdrt.load(bundle, engine="onnxruntime")


def test_the_methods_of_diffusers(prompted: Prompted, model: TinyModel) -> None:
    ours, theirs = Compatible(prompted.model.bundle), prompted.diffusers()
    base = by_kdrt(ours.pipeline)
    ours.load_ip_adapter(str(prompted.adapter.parent), subfolder="", weight_name="ip.safetensors")
    for pipe in (ours, theirs):
        pipe.set_ip_adapter_scale(0.4)
    expected = by_diffusers(theirs, ip_adapter_image=image())
    options = {"ip_adapter_image": image(), "ip_adapter_scale": ours.ip_adapter_scale}
    assert relative_error(by_kdrt(ours.pipeline, **options), expected) < 1e-5
    ours.unload_ip_adapter()
    assert torch.equal(by_kdrt(ours.pipeline), base)
    with pytest.raises(InvalidRequestError, match="has 2 scales, and the bundle 1 IP-Adapters"):
        ours.set_ip_adapter_scale([0.1, 0.2])
    with pytest.raises(InvalidRequestError, match="must be a finite number"):
        ours.set_ip_adapter_scale("a lot")
    with pytest.raises(
        InvalidRequestError, match=r"--ip-adapter some/hub:models/other\.safetensors"
    ):
        ours.load_ip_adapter("some/hub", subfolder="models", weight_name="other.safetensors")
    with pytest.raises(InvalidRequestError, match="has no IP-Adapter: export the model with"):
        Compatible(model.bundle).load_ip_adapter(prompted.adapter)


@pytest.mark.parametrize("size", [(45, 37), (37, 45), (224, 224), (31, 200), (500, 301)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_images_are_prepared_as_clip_does(size: tuple[int, int], mode: str) -> None:
    source = image(*size).convert(mode)
    expected = CLIPImageProcessor(size=SIDE, crop_size=SIDE)(source, return_tensors="pt")
    found = clip_pixels([source], SIDE, MEAN, STD)
    torch.testing.assert_close(found, expected.pixel_values, rtol=1e-5, atol=1e-5)


def test_wrong_requests(prompted: Prompted, model: TinyModel) -> None:
    ours = kdrt.load(prompted.model.bundle, engine="onnxruntime")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ip_adapter_image": "cat.png"}, "must be a PIL image"),
        ({"ip_adapter_image": []}, "must be a PIL image"),
        ({"ip_adapter_image": [image()] * 2}, "2 image prompts for 1 images"),
        ({"ip_adapter_image_embeds": torch.zeros(1, 3)}, r"of shape \[n, 20\], not \[1, 3\]"),
        ({"ip_adapter_image_embeds": torch.zeros(0, 20)}, r"of shape \[n, 20\]"),
        ({"ip_adapter_image_embeds": torch.zeros(1, 20, device="meta")}, "dense tensor"),
        ({"ip_adapter_image_embeds": torch.zeros(1, 20).to_sparse()}, "dense tensor"),
        ({"ip_adapter_image": image(), "ip_adapter_scale": float("nan")}, "finite number"),
    ]
    for options, words in wrong:
        with pytest.raises(InvalidRequestError, match=words):
            by_kdrt(ours, **options)
    plain = kdrt.load(model.bundle, engine="onnxruntime")
    with pytest.raises(InvalidRequestError, match=r"`kdrt export .* --ip-adapter FILE`"):
        by_kdrt(plain, ip_adapter_image=image())


def test_adapters_that_cannot_be_exported(prompted: Prompted, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no IP-Adapter file"):
        IpAdapter(str(tmp_path / "none.safetensors"))
    state = load_file(prompted.adapter)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SourceError, match="is no IP-Adapter"):
        IpAdapter(str(tmp_path / "other.safetensors"))
    strange = {key.replace("image_proj.", "image_proj.x."): value for key, value in state.items()}
    save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(SourceError, match="whose projection is of no kind that kdrt knows"):
        IpAdapter(str(tmp_path / "strange.safetensors"))
    small = {key: value for key, value in state.items() if not key.startswith("ip_adapter.3")}
    save_file(small, tmp_path / "small.safetensors")
    with pytest.raises(SourceError, match="does not fit this model"):
        export(
            str(prompted.model.folder),
            tmp_path / "b",
            ip_adapter=str(tmp_path / "small.safetensors"),
        )


def test_an_image_on_the_command_line(prompted: Prompted, tmp_path: Path) -> None:
    image().save(tmp_path / "style.png")
    sizes = ["--width", "32", "--height", "32", "--steps", "1", "--seed", "1", "--no-progress"]
    made = []
    for options in ([], ["--ip-adapter-image", str(tmp_path / "style.png")]):
        out = tmp_path / f"{len(options)}.png"
        assert (
            cli.run(
                ["generate", str(prompted.model.bundle), "a star", "-o", str(out), *sizes, *options]
            )
            == 0
        )
        made.append(np.asarray(Image.open(out)))
    assert not np.array_equal(made[0], made[1])
