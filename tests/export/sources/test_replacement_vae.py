"""Another VAE, another precision: what is exported, and in which words it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt_export import stage
from kdrt_export.errors import ExportError, SourceError
from kdrt_export.report import Silent
from kdrt_export.sources.replacement_vae import replacement_vae, vae_dtype
from kdrt_export.verify import relative_error
from tests.support.single_file import checkpoint
from tests.support.tiny_networks import randomized, text_encoder, unet, vae


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    state, expected = ours.state_dict(), theirs.state_dict()
    return set(state) == set(expected) and all(torch.equal(state[k], expected[k]) for k in state)


@pytest.mark.parametrize("layout", ["folder", "pipeline", "diffusers", "ldm", "ldm alone", "ckpt"])
def test_every_form_of_a_vae(layout: str, tmp_path: Path) -> None:
    other = randomized(vae(), seed=5)
    ldm = checkpoint(unet("sd"), other, text_encoder())
    prefix = "first_stage_model."
    alone = {key.removeprefix(prefix): v for key, v in ldm.items() if key.startswith(prefix)}
    path = tmp_path / "vae.safetensors"
    if layout == "folder":
        other.save_pretrained(path := tmp_path / "folder")
    elif layout == "pipeline":
        other.save_pretrained(tmp_path / "pipeline" / "vae")
        path = tmp_path / "pipeline"
    elif layout == "diffusers":
        save_file(other.state_dict(), path)
    elif layout == "ldm":
        save_file({key: v for key, v in ldm.items() if key.startswith(prefix)}, path)
    elif layout == "ldm alone":
        save_file(alone, path)
    else:
        torch.save({"state_dict": alone}, path := tmp_path / "vae.ckpt")
    loaded = replacement_vae(str(path), vae().config, allow_pickle=layout == "ckpt").network()
    assert same_weights(loaded, other)
    assert not loaded.training
    assert loaded.config.scaling_factor == 0.37


def test_what_is_no_vae(tmp_path: Path) -> None:
    for what in ("nonsense", "a/b/c", "missing.safetensors"):
        with pytest.raises(SourceError, match="is no VAE: give a diffusers folder"):
            replacement_vae(what, {})
    with pytest.raises(SourceError, match=r"neither config\.json nor a folder 'vae'"):
        replacement_vae(str(tmp_path), {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"no \.safetensors weights"):
        replacement_vae(str(tmp_path), {})
    pickle = tmp_path / "vae.pt"
    torch.save({}, pickle)
    with pytest.raises(SourceError, match=r"is a pickle.*--allow-pickle"):
        replacement_vae(str(pickle), {})
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, lora)
    with pytest.raises(SourceError, match="holds no VAE"):
        replacement_vae(str(lora), {})


class Notes(Silent):
    """A report that keeps what is noted."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


F16, F32, BF16 = torch.float16, torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("upcast", "precision", "asked", "expected", "noted"),
    [
        (True, F16, None, F32, True),
        (False, F16, None, F16, False),
        (True, BF16, None, BF16, False),
        (True, F32, None, F32, False),
        (True, F16, BF16, BF16, False),
        (True, F16, F16, F16, True),
        (False, F32, F16, F16, False),
        (False, F16, F32, F32, False),
    ],
)
def test_the_precision_of_a_vae(
    upcast: bool,
    precision: torch.dtype,
    asked: torch.dtype | None,
    expected: torch.dtype,
    noted: bool,
) -> None:
    report = Notes()
    assert vae_dtype(vae(force_upcast=upcast), precision, asked, report) == expected
    assert bool(report.said) == noted


def test_the_bundle_has_the_vae_asked_for(sd_folder: Path, tmp_path: Path) -> None:
    """With its own weights and precision, each verified in it."""
    other = randomized(vae(), seed=9)
    other.save_pretrained(tmp_path / "vae")
    options: dict[str, Any] = {
        "precision": "fp32",
        "vae": str(tmp_path / "vae"),
        "vae_precision": "fp16",
    }
    pipe = kdrt.load(stage.export(str(sd_folder), tmp_path / "out", **options))
    manifest = pipe.bundle.manifest
    components = manifest.components
    assert components["vae_decoder"].inputs[0].dtype == "float16"
    assert components["vae_encoder"].outputs[0].dtype == "float16"
    assert components["unet"].inputs[0].dtype == "float32"
    assert components["vae_decoder"].verification[0].relative_error > 1e-6
    assert manifest.latents.vae_tile == 16
    assert manifest.baked.vae == "vae"
    latents = torch.randn(1, 4, 6, 8)
    expected = other.decode(latents / 0.37).sample
    assert relative_error(pipe.vae.decoder(latents), expected) < 1e-2
    assert relative_error(vae().decode(latents / 0.37).sample, expected) > 0.1
    pixels = torch.rand(1, 3, 12, 20) * 2 - 1
    mean = pipe.vae.encoder(pixels)
    assert relative_error(mean, other.encode(pixels).latent_dist.mean * 0.37) < 1e-2


def test_vae_precisions_are_checked(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'int8' is no precision; choose auto, fp32"):
        stage.export(str(sd_folder), tmp_path / "out", vae_precision="int8")


def test_latents_keep_the_statistics_that_the_unet_was_trained_on(tmp_path: Path) -> None:
    """As of Playground v2.5, whose VAE can be replaced by any of SDXL's."""
    own = {"latents_mean": [0.0] * 4, "latents_std": [2.0] * 4, "scaling_factor": 0.5}
    vae().save_pretrained(tmp_path / "plain")
    plain = replacement_vae(str(tmp_path / "plain"), own)
    assert {key: plain.config[key] for key in own} == own
    vae(latents_mean=[1.0] * 4, latents_std=[3.0] * 4).save_pretrained(tmp_path / "told")
    told = replacement_vae(str(tmp_path / "told"), own)
    assert told.config["latents_mean"] == [1.0] * 4
    assert replacement_vae(str(tmp_path / "plain"), {}).config["scaling_factor"] == 0.37
