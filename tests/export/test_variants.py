"""Models that are more than text to image: inpainting UNets, safety checkers, SDXL's refiner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig

import kdrt
from kdrt_export import stage
from kdrt_export.errors import ExportError, UnsupportedModelError
from kdrt_export.sources import open_source
from kdrt_export.walk import Part
from tests.support.tiny_networks import randomized, unet


@pytest.fixture
def folder(sd_folder: Path, tmp_path: Path) -> Path:
    """A tiny model to change."""
    return shutil.copytree(sd_folder, tmp_path / "model")


def set_unet(folder: Path, **changes: int) -> None:
    shutil.rmtree(folder / "unet")
    unet("sd", **changes).save_pretrained(folder / "unet")


def set_checker(folder: Path) -> None:
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    network = randomized(
        StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=20))
    )
    network.concept_embeds_weights.data.fill_(-2.0)  # every image is beyond it
    network.save_pretrained(folder / "safety_checker")


def test_an_inpainting_model_with_a_safety_checker(folder: Path, tmp_path: Path) -> None:
    set_unet(folder, in_channels=9)
    set_checker(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInpaintPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = kdrt.load(stage.export(str(folder), tmp_path / "bundle"))
    manifest = pipe.bundle.manifest
    assert manifest.latents.channels == 4
    assert manifest.components["unet"].inputs[0].shape == ("B", 9, "h", "w")
    assert all(v.relative_error < 2e-5 for v in manifest.components["safety_checker"].verification)

    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 20:] = 255
    options: dict[str, Any] = {"image": image, "mask_image": mask, "steps": 2, "seed": 0}
    flagged = pipe("a red circle", **options)
    assert flagged.nsfw == [True]
    assert not np.asarray(flagged.images[0]).any()
    pipe.safety_checker = None
    result = np.asarray(pipe("a red circle", **options).images[0])
    assert np.array_equal(result[:, :20], image[:, :20])
    assert not np.array_equal(result[:, 20:], image[:, 20:])


def test_the_safety_checker_can_be_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def stop(part: Part, *_: object) -> None:
        parts.append(part.name)
        if part.name == "vae_decoder":
            raise Enough

    monkeypatch.setattr(stage, "export_component", stop)
    parts: list[str] = []
    for wanted, has, expected in (
        (None, False, ["text_encoder", "vae_decoder"]),
        (None, True, ["text_encoder", "safety_checker", "vae_decoder"]),
        (False, True, ["text_encoder", "vae_decoder"]),
    ):
        if has:
            set_checker(folder)
        parts.clear()
        with pytest.raises(Enough):
            stage.export(str(folder), folder.parent / "out", safety_checker=wanted)
        assert parts == expected
    shutil.rmtree(folder / "safety_checker")
    with pytest.raises(ExportError, match=r"has no safety checker; leave out --safety-checker"):
        stage.export(str(folder), folder.parent / "out", safety_checker=True)


def test_another_reading_of_images_is_refused(folder: Path) -> None:
    set_checker(folder)
    (folder / "feature_extractor").mkdir()
    file = folder / "feature_extractor" / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.48145466, 0.4578275, 0.40821073]}))
    assert open_source(str(folder)).safety_checker() is not None
    file.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(UnsupportedModelError, match=r"has image_mean \[0.5.*--no-safety-checker"):
        open_source(str(folder)).safety_checker()


def test_other_channels_are_refused(folder: Path) -> None:
    set_unet(folder, in_channels=8)
    with pytest.raises(
        UnsupportedModelError, match=r"takes 8 channels for latents of 4.*inpainting"
    ):
        stage.export(str(folder), folder.parent / "out")
