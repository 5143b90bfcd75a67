"""``kdrt quantize`` as a whole, on the demo model."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

import kdrt
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle, open_bundle, sha256, write_manifest
from kdrt.errors import InvalidRequestError
from kdrt_engines.comparison import relative_error
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_export.add import add
from kdrt_export.errors import ExportError
from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.stage import quantize
from kdrt_export.report import Silent
from kdrt_export.stage import export
from tests.support.controls import Controls

pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

SMALL: dict[str, Any] = {"height": 32, "width": 32}
FEW: dict[str, Any] = {"calibration": ["a red circle", "a blue star"], "images": 1, **SMALL}
PROMPT: dict[str, Any] = {"seed": 3, "steps": 4, "output_type": "latent", **SMALL}


@pytest.fixture(scope="module")
def int8(controls: Controls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model with an IP-Adapter and controls in int8. Do not write into it."""
    folder = tmp_path_factory.mktemp("quantised") / "small"
    return open_bundle(quantize(controls.bundle, folder, format="int8", **FEW))


def test_the_manifest_says_what_was_lost(int8: Bundle, controls: Controls) -> None:
    facts, original = int8.manifest.quantization, open_bundle(controls.bundle).manifest
    assert facts is not None
    assert (facts.format, facts.made_from) == ("int8", original.name)
    assert set(facts.components) == {
        name for name in original.components if name.split("-")[0] == "unet"
    }
    assert facts.network == network_hash(original, "unet")
    assert (facts.prompts, facts.evaluations) == (2, 14)
    sigmas = [step.sigma for step in facts.loss.steps]
    assert len(sigmas) == 20
    assert sigmas == sorted(sigmas, reverse=True)
    assert 0 < facts.loss.error <= 2 * facts.max_error
    assert facts.loss.fidelity is None
    assert facts.loss.psnr is not None
    assert facts.loss.psnr > 20


def test_the_bundle_holds_the_scan(int8: Bundle) -> None:
    facts = int8.manifest.quantization
    assert facts is not None
    with int8.file("quantization/layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    left = [f"{row['layer']} ({row['kind']})" for row in rows if row["quantized"] == "0"]
    assert tuple(left) == facts.left
    assert len(rows) == facts.layers + len(left)
    quantized = [float(row["error"]) for row in rows if row["quantized"] == "1"]
    assert sum(error**2 for error in quantized) <= facts.max_error**2
    with Image.open(int8.file("quantization/layers.png")) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize("controlled", [False, True])
def test_it_makes_nearly_the_same_images(
    int8: Bundle, controls: Controls, controlled: bool
) -> None:
    lines = Image.new("RGB", (32, 32), "white")
    control: dict[str, Any] = (
        {"control": kdrt.ControlImage(lines, "canny_edges")} if controlled else {}
    )
    one, other = (
        kdrt.load(bundle)("a red circle", **PROMPT, **control).images
        for bundle in (controls.bundle, int8)
    )
    assert 0 < relative_error(other, one) < 0.3
    assert len(quantized_layers(int8, "unet")) > 20


def test_every_unet_has_the_same_layers_in_int8(int8: Bundle) -> None:
    facts = int8.manifest.quantization
    assert facts is not None
    layers = {name: quantized_layers(int8, name) for name in facts.components}
    assert len(layers["unet"]) == facts.layers
    for name, found in layers.items():
        # What a variant fuses otherwise stays as it is.
        assert found <= layers["unet"], name
        assert len(found) > 0.8 * len(layers["unet"]), name


def quantized_layers(bundle: Bundle, component: str) -> set[str]:
    """The weights of a UNet that are read as int8."""
    path = bundle.file(bundle.manifest.components[component].onnx)
    return {
        # Of what is split there are several parts.
        re.sub(r"(\.\d)?_quantized$", "", tensor.name)
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name.endswith("_quantized")
    }


def test_the_original_stays_and_is_shared(int8: Bundle, controls: Controls) -> None:
    original = open_bundle(controls.bundle)
    for name, digest in original.manifest.files.items():
        assert sha256(original.file(name)) == digest
    vae = "onnx/vae_decoder/weights.bin"
    assert int8.file(vae).samefile(original.file(vae))
    assert not (int8.path / "onnx/unet/weights.bin").exists()
    assert not (int8.path / "engines").exists()


def test_what_needs_the_weights_is_refused(
    int8: Bundle, controls: Controls, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match=r"'small' is quantised: bake them in first"):
        kdrt.load(int8).adapters.load_lora(tmp_path / "any.safetensors")
    with pytest.raises(ExportError, match="which it was made from, and quantise the result"):
        add(int8.path, controlnets=[f"{controls.controlnet}:other"])
    with pytest.raises(ExportError, match="is int8 already; quantise 'sd"):
        quantize(int8.path, tmp_path / "again", format="fp8")


def test_the_demo_model_draws_what_it_drew(demo_bundle: Path, tmp_path: Path) -> None:
    made = quantize(demo_bundle, tmp_path / "int8", format="int8", calibration=2, images=2, **SMALL)
    facts = open_bundle(made).manifest.quantization
    assert facts is not None
    assert facts.layers > 80
    loss = facts.loss
    assert loss.fidelity is not None
    assert loss.fidelity_before is not None
    assert loss.fidelity_before > 0.8
    assert loss.fidelity >= loss.fidelity_before - 0.02
    unet = made / "onnx/unet/quantized.bin"
    assert unet.stat().st_size < 0.5 * (demo_bundle / "onnx/unet/weights.bin").stat().st_size


class Interrupted(Silent):
    """The user's Ctrl-C in the last stage."""

    def start(self, stage: str) -> None:
        if stage == "measure the loss":
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing(controls: Controls, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(
            controls.bundle,
            tmp_path / "new",
            format="fp8",
            report=Interrupted(),
            **FEW,
        )
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "int3"}, "int3"),
        ({"format": "fp8", "calibration": []}, "the calibration has no prompt"),
        ({"format": "fp8", "calibration": "prompts.txt"}, "of a file read the lines"),
        ({"format": "fp8", "calibration": 0}, "takes 1 to 10000 of kdrt's own prompts, not 0"),
        ({"format": "fp8", "max_error": 0.0}, "must be between 0.0001 and 0.5, not 0"),
        ({"format": "fp8", "images": 0}, "images must be between 1 and 100, not 0"),
        ({"format": "fp8", "height": 63}, "63"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    demo_bundle: Path, tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        quantize(demo_bundle, tmp_path / "new", **options)  # type: ignore[arg-type]
    assert [*tmp_path.iterdir()] == []


@pytest.fixture(scope="module")
def half(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in float16 with variants, an attention and another UNet's block in float32."""
    return export(
        str(sd_folder),
        tmp_path_factory.mktemp("half") / "half",
        precision="fp16",
        variants=["unfused-qkv", "deepcache", "pag"],
        keep_fp32=["unet:*.attn2/Attention", "unet-unfused-qkv:mid_block*"],
    )


@pytest.mark.parametrize("name", ["fp8", "int4-weights"])
def test_every_unet_of_a_half_precision_bundle_runs(half: Path, tmp_path: Path, name: str) -> None:
    made = open_bundle(quantize(half, tmp_path / "made", format=name, max_error=0.5, **FEW))
    facts = made.manifest.quantization
    assert facts is not None
    assert len(facts.components) == 3
    into = FORMATS[name]
    for component in facts.components:
        described = made.manifest.components[component]
        engine = OrtEngine(made.file(described.onnx), described.spec(), OrtConfig())
        binding = engine.bind(B=1, h=8, w=8, L=12)
        binding.run()
        assert all(bool(tensor.isfinite().all()) for tensor in binding.outputs.values())
        model = onnx.load(made.file(described.onnx), load_external_data=False)
        assert into.dtype.value in {tensor.data_type for tensor in model.graph.initializer}
    with made.file("quantization/layers.csv").open(newline="") as file:
        scanned = {(row["layer"], row["kind"]) for row in csv.DictReader(file)}
    assert not any(layer.endswith(".attn2") for layer, kind in scanned if kind == "attention")


def test_what_was_made_of_another_bundle_is_not_replaced(
    controls: Controls, home: Path, int8: Bundle
) -> None:
    place = home / "bundles" / "taken"
    shutil.copytree(int8.path, place)
    manifest = open_bundle(place).manifest
    assert manifest.quantization is not None
    facts = manifest.quantization.model_copy(update={"network": "0" * 64})
    write_manifest(place, manifest.model_copy(update={"quantization": facts}))
    with pytest.raises(InvalidRequestError, match="taken already, which was made from another"):
        quantize(controls.bundle, name="taken", format="int8", **FEW)
    assert (place / "manifest.json").is_file()


def test_a_bundle_is_not_quantised_in_place(demo_bundle: Path) -> None:
    with pytest.raises(InvalidRequestError, match="not quantised in place"):
        quantize(demo_bundle, demo_bundle, format="int8")
