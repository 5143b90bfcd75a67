"""ControlNets and T2I-Adapters of a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from kdrt.backends.records import network_hash
from kdrt.bundle import Bundle, open_bundle
from kdrt_export.control import ControlSource
from kdrt_export.errors import SourceError
from kdrt_export.sources import demo_folder
from kdrt_export.stage import export
from tests.support.tiny_networks import controlnet, t2i_adapter


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a ControlNet, and a file of a T2I-Adapter in its authors' layout."""
    folder = tmp_path_factory.mktemp("controls")
    controlnet("sd").save_pretrained(folder / "Canny_Edges")
    state = t2i_adapter("sd", num_res_blocks=2).state_dict()
    save_file(state, folder / "sketch.safetensors")
    return folder


@pytest.fixture(scope="module")
def bundle(sd_folder: Path, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = export(
        str(sd_folder),
        tmp_path_factory.mktemp("bundles") / "controlled",
        controlnets=[str(sources / "Canny_Edges")],
        t2i_adapters=[f"{sources / 'sketch.safetensors'}:lines"],
    )
    return open_bundle(path)


def test_what_a_bundle_says_of_its_controls(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.variants == {"control": {"unet": "unet-control"}}
    assert {name: facts.kind for name, facts in manifest.controls.items()} == {
        "canny_edges": "controlnet",
        "lines": "t2i-adapter",
    }
    assert manifest.controls["canny_edges"].sha256 is None
    assert manifest.controls["lines"].sha256 is not None
    assert manifest.components.keys() >= {
        "controlnet-canny_edges",
        "controlnet-canny_edges-hint",
        "t2i-adapter-lines",
    }
    added = [n for n in manifest.components if "control" in n or "adapter" in n]
    for name in added:
        figures = manifest.components[name].verification
        assert figures
        assert all(figure.relative_error < 1e-5 for figure in figures)


def test_the_variant_reads_the_weights_of_the_unet(bundle: Bundle) -> None:
    manifest = bundle.manifest
    weights = [name for name in manifest.files if name.startswith("onnx/unet")]
    assert sum(name.endswith(".bin") for name in weights) == 1
    assert manifest.components["unet-control"].onnx == "onnx/unet/control-model.onnx"
    without = manifest.model_copy(
        update={
            "components": {n: c for n, c in manifest.components.items() if n != "unet-control"},
            "files": {n: d for n, d in manifest.files.items() if "/control-" not in n},
        }
    )
    # Engines of the plain UNet stay good; those of the two are told apart.
    assert network_hash(manifest, "unet") == network_hash(without, "unet")
    assert network_hash(manifest, "unet-control") != network_hash(manifest, "unet")


def test_demo_names_the_controlnet_of_the_demo_model() -> None:
    named = ControlSource.find("controlnet", "demo")
    assert (named.name, named.source, named.path) == ("demo", "demo", demo_folder("control"))
    assert ControlSource.find("controlnet", "demo:outlines").name == "outlines"
    with pytest.raises(SourceError, match="'demo' is no T2I-Adapter"):
        ControlSource.find("t2i-adapter", "demo")
