"""Bundles of earlier versions open, and make the images that they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

import kdrt
from kdrt.bundle import Bundle, IpAdapterFacts
from kdrt.bundle.manifest import of_today
from kdrt.denoise.freeu import FreeU
from kdrt_engines.comparison import relative_error
from tests.support.earlier_unet import UNetWithFreeUOfBatch
from tests.support.image_arrays import as_tensor
from tests.support.tiny_bundles import TinyModel

FREEU: FreeU = (1.3, 1.4, 0.9, 0.2)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With one set of FreeU strengths for a whole batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdrt_export.walk.ExportUNet", UNetWithFreeUOfBatch)
        model = TinyModel.make("sd", tmp_path_factory.mktemp("earlier"))
    return Bundle.open(model.bundle)


def latents(bundle: Path, freeu: FreeU | None, side: int) -> torch.Tensor:
    """Of two images, guided: a batch of four."""
    pipe = kdrt.load(bundle, engine="onnxruntime", threads=1)
    result = pipe(
        ["a red circle", "a green square"],
        steps=2,
        seed=3,
        freeu=freeu,
        height=side,
        width=side,
        output_type="latent",
    )
    return as_tensor(result.images)


def test_it_has_one_freeu_for_a_batch(earlier: Bundle) -> None:
    unet = earlier.manifest.components["unet"]
    assert unet.spec().input("freeu").shape == (4,)
    graph = onnx.load(earlier.file(unet.onnx), load_external_data=False).graph
    (freeu,) = (value for value in graph.input if value.name == "freeu")
    assert [size.dim_value for size in freeu.type.tensor_type.shape.dim] == [4]


@pytest.mark.parametrize("side", [32, 34])
def test_its_images_are_those_of_a_new_export(
    earlier: Bundle, tiny_models: Callable[[str], TinyModel], side: int
) -> None:
    """At a size of the graph without FreeU, and at one that the UNet does not halve evenly."""
    new = tiny_models("sd").bundle
    assert Bundle.open(new).manifest.components["unet"].spec().input("freeu").shape == ("B", 4)
    with_freeu, without = (latents(earlier.path, each, side) for each in (FREEU, None))
    assert relative_error(with_freeu, latents(new, FREEU, side)) < 1e-5
    assert relative_error(without, latents(new, None, side)) < 1e-5
    assert relative_error(with_freeu, without) > 1e-3


def test_the_ip_adapter_of_a_manifest_without_names() -> None:
    facts = {
        "file": "ip-adapter_sd15.safetensors",
        "sha256": "0" * 64,
        "tokens": 4,
        "embedding": 1024,
        "image_encoder": {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    content = of_today({"name": "sd15", "ip_adapter": facts})
    assert content == {"name": "sd15", "ip_adapters": {"ip-adapter": facts}}
    read = IpAdapterFacts.model_validate_json(json.dumps(facts))
    assert (read.kind, read.projection, read.images) == ("linear", "image_projection", 1)
    assert of_today({"name": "sd15", "ip_adapter": None}) == {"name": "sd15"}
