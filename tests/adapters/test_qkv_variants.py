"""Variants of one bundle: other components, the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt.compat.qkv import FusedProjectionsMixin
from kdrt.errors import InvalidRequestError
from kdrt_export.errors import ExportError
from kdrt_export.stage import export
from kdrt_export.verify import relative_error
from tests.support.image_arrays import as_tensor
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.tiny_bundles import TinyModel, by_diffusers, by_kdrt


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel.make("sd", tmp_path_factory.mktemp("both"), variants=["unfused-qkv"])


class Compatible(FusedProjectionsMixin):
    def __init__(self, bundle: Path) -> None:
        self.pipeline = kdrt.load(bundle, engine="onnxruntime")


def projections(bundle: Path, component: str) -> set[str]:
    model = onnx.load(bundle / "onnx" / component / "model.onnx", load_external_data=False)
    names = {tensor.name.split(".")[-2] for tensor in model.graph.initializer if "." in tensor.name}
    return {name for name in names if name.startswith("to_")}


def test_both_ways_are_in_the_bundle(both: TinyModel) -> None:
    parts = ("unet", "vae_decoder", "vae_encoder")
    manifest = kdrt.Bundle.open(both.bundle).manifest
    assert manifest.variants == {"unfused-qkv": {part: f"{part}-unfused-qkv" for part in parts}}
    for part in parts:
        fused, unfused = manifest.components[part], manifest.components[f"{part}-unfused-qkv"]
        assert fused.parameters == unfused.parameters
        assert all(v.relative_error < 1e-5 for v in fused.verification + unfused.verification)
        assert projections(both.bundle, part) & {"to_qkv", "to_kv"}
        assert {"to_q", "to_k", "to_v"} <= projections(both.bundle, f"{part}-unfused-qkv")


def test_the_images_are_the_same(both: TinyModel) -> None:
    """Every bias of these networks is random, those of the VAE's attention too."""
    ours, theirs = Compatible(both.bundle), both.diffusers()
    expected = by_diffusers(theirs)
    before = by_kdrt(ours.pipeline)
    options: dict[str, Any] = {"seed": 1, "steps": 1, "height": 32, "width": 32}
    image = as_tensor(ours.pipeline("a star", output_type="pt", **options).images)
    parts = ("unet", "text_encoder", "vae_decoder", "vae_encoder")
    engines = {name: ours.pipeline.engines[name] for name in parts}
    ours.unfuse_qkv_projections()
    changed = {name for name in parts if ours.pipeline.engines[name] is not engines[name]}
    assert changed == {"unet", "vae_decoder", "vae_encoder"}
    assert relative_error(by_kdrt(ours.pipeline), expected) < 1e-5
    again = as_tensor(ours.pipeline("a star", output_type="pt", **options).images)
    assert relative_error(again, image) < 1e-5
    ours.fuse_qkv_projections()
    assert torch.equal(by_kdrt(ours.pipeline), before)


def test_parts_by_themselves(both: TinyModel) -> None:
    ours = Compatible(both.bundle)
    unet = ours.pipeline.engines["unet"]
    fused = ours.pipeline.engines["vae_decoder"]
    ours.unfuse_qkv_projections(unet=False)
    assert ours.pipeline.engines["unet"] is unet
    assert ours.pipeline.engines["vae_decoder"] is not fused
    unfused = ours.pipeline.engines["vae_decoder"]
    ours.unfuse_qkv_projections()
    assert ours.pipeline.engines["vae_decoder"] is unfused


def test_loras_follow(both: TinyModel, tmp_path: Path) -> None:
    layers = random_lora(networks(both.diffusers()), ("to_q", "to_v", "fc1"))
    save_file(kohya(layers), tmp_path / "style.safetensors")
    ours = Compatible(both.bundle)
    base = by_kdrt(ours.pipeline)
    ours.pipeline.adapters.load_lora(tmp_path / "style.safetensors", scale=-1.5)
    expected = by_kdrt(ours.pipeline)
    ours.unfuse_qkv_projections()
    assert relative_error(by_kdrt(ours.pipeline), expected) < 1e-5
    ours.pipeline.adapters.unload_loras()
    ours.fuse_qkv_projections()
    assert torch.equal(by_kdrt(ours.pipeline), base)


def test_a_variant_that_is_missing_says_what_to_export(model: TinyModel) -> None:
    ours = Compatible(model.bundle)
    ours.fuse_qkv_projections()  # is what it is
    with pytest.raises(InvalidRequestError, match=r"`kdrt export .* --variant unfused-qkv`"):
        ours.unfuse_qkv_projections()


def test_variants_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="with fused projections; choose unfused-qkv"):
        export("demo", tmp_path / "demo", variants=["fused-qkv"])
    with pytest.raises(ExportError, match="without fused projections; choose fused-qkv"):
        export("demo", tmp_path / "demo", fuse_qkv=False, variants=["unfused-qkv"])
