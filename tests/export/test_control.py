"""ControlNets and T2I-Adapters of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle, open_bundle
from kdrt.cli import run
from kdrt.images.control import ControlImage
from kdrt_engines.comparison import relative_error
from kdrt_export.control import ControlSource
from kdrt_export.errors import SourceError
from kdrt_export.sources import demo_folder
from tests.support.controls import ADDED, Controls


@pytest.fixture
def bundle(controls: Controls) -> Bundle:
    return open_bundle(controls.bundle)


def test_what_a_bundle_says_of_its_controls(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.variants == {
        "ip-adapter": {"unet": "unet-ip-adapter"},
        "control": {"unet": "unet-control"},
        "ip-adapter-control": {"unet": "unet-ip-adapter-control"},
    }
    assert {name: facts.kind for name, facts in manifest.controls.items()} == {
        "canny_edges": "controlnet",
        "lines": "t2i-adapter",
    }
    assert manifest.controls["canny_edges"].sha256 is None
    assert manifest.controls["lines"].sha256 is not None
    added = [name for name in manifest.components if name.endswith(ADDED)]
    assert added == [
        "unet-control",
        "unet-ip-adapter-control",
        "controlnet-canny_edges-hint",
        "controlnet-canny_edges",
        "t2i-adapter-lines",
    ]
    for name in added:
        figures = manifest.components[name].verification
        assert figures
        assert all(figure.relative_error < 1e-5 for figure in figures)


def test_inspect_tells_the_names_to_ask_for(
    controls: Controls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(controls.bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "ControlNet canny_edges " in shown
    assert "T2I-Adapter lines " in shown


def test_the_variant_reads_the_weights_of_the_unet(bundle: Bundle) -> None:
    manifest = bundle.manifest
    weights = {n for n in manifest.files if n.startswith("onnx/unet") and n.endswith(".bin")}
    assert weights == {"onnx/unet/weights.bin", "onnx/unet-ip-adapter/weights.bin"}
    assert manifest.components["unet-control"].onnx == "onnx/unet/control-model.onnx"
    inputs = manifest.components["unet-ip-adapter-control"].spec()
    assert inputs.has_input("ip_scale")
    assert inputs.has_input("mid_residual")
    without = manifest.model_copy(
        update={
            "components": {n: c for n, c in manifest.components.items() if n != "unet-control"},
            "files": {n: d for n, d in manifest.files.items() if "/control-" not in n},
        }
    )
    # Engines of the plain UNet stay good; those of the two are told apart.
    assert network_hash(manifest, "unet") == network_hash(without, "unet")
    assert network_hash(manifest, "unet-control") != network_hash(manifest, "unet")


def test_a_lora_changes_the_variant_as_it_changes_the_unet(
    controls: Controls, tmp_path: Path
) -> None:
    pipe = kdrt.load(controls.bundle)
    image = np.full((32, 32, 3), 128, np.uint8)

    def made(**control: Any) -> torch.Tensor:
        images = pipe("a cat", steps=1, seed=0, output_type="latent", **control).images
        assert isinstance(images, torch.Tensor)
        return images

    off = {"control": [ControlImage(image, "canny_edges", scale=0.0)]}
    plain = made()
    assert torch.equal(made(**off), plain)
    generator = torch.Generator().manual_seed(0)
    module = "lora_unet_mid_block_resnets_0_conv1"
    state = {
        f"{module}.lora_down.weight": torch.randn(4, 32, 3, 3, generator=generator),
        f"{module}.lora_up.weight": torch.randn(32, 4, 1, 1, generator=generator),
        f"{module}.alpha": torch.tensor(4.0),
    }
    save_file(state, tmp_path / "it.safetensors")
    pipe.adapters.load_lora(tmp_path / "it.safetensors")
    changed = made()
    assert relative_error(changed, plain) > 1e-3
    assert torch.equal(made(**off), changed)


def test_demo_names_the_controlnet_of_the_demo_model() -> None:
    named = ControlSource.find("controlnet", "demo")
    assert (named.name, named.source, named.path) == ("demo", "demo", demo_folder("control"))
    assert ControlSource.find("controlnet", "demo:outlines").name == "outlines"
    with pytest.raises(SourceError, match="'demo' is no T2I-Adapter"):
        ControlSource.find("t2i-adapter", "demo")
