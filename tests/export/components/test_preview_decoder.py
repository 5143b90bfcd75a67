"""A tiny autoencoder's decoder: diffusers' images, exported, and used for previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

import kdrt
from kdrt_export import stage
from kdrt_export.components.preview_decoder import ExportPreviewDecoder, load_preview_decoder
from kdrt_export.errors import SourceError, UnsupportedModelError
from tests.support.tiny_networks import randomized


def tiny(**changes: Any) -> AutoencoderTiny:
    """As small as they get; two pixels for a latent, as the tiny model's VAE has."""
    config: dict[str, Any] = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (2, 1),
    }
    return randomized(AutoencoderTiny(**(config | changes)))


@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_it_decodes_as_a_pipeline_with_that_vae_does(factor: float) -> None:
    autoencoder = tiny(scaling_factor=factor)
    component = ExportPreviewDecoder(autoencoder, channels=4, scale=2)
    latents = torch.randn(2, 4, 7, 5) * 2
    expected = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    torch.testing.assert_close(component(latents), expected, rtol=1e-5, atol=1e-6)


def test_another_models_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="takes latents of 16 channels, 2 pixels each"):
        ExportPreviewDecoder(tiny(latent_channels=16), channels=4, scale=2)
    with pytest.raises(UnsupportedModelError, match="this model's have 4 channels, 8 pixels"):
        ExportPreviewDecoder(tiny(), channels=4, scale=8)


def original_names(autoencoder: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """The decoder as its authors' file has it, whose first layer is a clamp without weights."""
    return {
        ".".join([str(int(number) + 1), *rest]): weight
        for name, weight in autoencoder.decoder.state_dict().items()
        for _, number, *rest in [name.split(".")]
    }


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("layout", ["folder", "diffusers", "original"])
def test_every_form_of_a_source(layout: str, channels: int, tmp_path: Path) -> None:
    saved = randomized(AutoencoderTiny(latent_channels=channels))
    path = tmp_path / "taesd.safetensors"
    if layout == "folder":
        saved.save_pretrained(path := tmp_path / "taesd")
    elif layout == "diffusers":
        save_file(saved.state_dict(), path)
    else:
        save_file(original_names(saved), path)
    loaded = load_preview_decoder(str(path))
    latents = torch.randn(1, channels, 3, 4)
    assert torch.equal(loaded.decode(latents).sample, saved.decode(latents).sample)


def test_what_is_none(tmp_path: Path) -> None:
    for source in ("nonsense", "a/b/c", "missing.safetensors"):
        with pytest.raises(SourceError, match="is no preview decoder: give a diffusers folder"):
            load_preview_decoder(source)
    with pytest.raises(SourceError, match="holds no preview decoder: it has neither"):
        load_preview_decoder(str(tmp_path))
    other = tmp_path / "other.safetensors"
    save_file({"lora.weight": torch.zeros(2)}, other)
    with pytest.raises(SourceError, match="holds no decoder of TAESD's architecture"):
        load_preview_decoder(str(other))
    other.write_bytes(b"nothing")
    with pytest.raises(SourceError, match="is damaged"):
        load_preview_decoder(str(other))
    (tmp_path / "taesd.pth").write_bytes(b"")
    with pytest.raises(SourceError, match=r"is a pickle.*--allow-pickle"):
        load_preview_decoder(str(tmp_path / "taesd.pth"))


def test_a_bundle_with_one_previews_with_it(sd_folder: Path, tmp_path: Path) -> None:
    autoencoder = tiny()
    autoencoder.save_pretrained(tmp_path / "tiny")
    path = stage.export(
        str(sd_folder), tmp_path / "bundle", name="it", preview_decoder=str(tmp_path / "tiny")
    )
    pipe = kdrt.load(path)
    component = pipe.bundle.manifest.components["preview_decoder"]
    assert len(component.verification) == 2 * 2, "two sizes, two graphs"
    assert all(figure.relative_error < 1e-5 for figure in component.verification)
    assert pipe.bundle.manifest.baked.preview_decoder == str(tmp_path / "tiny")
    for step in pipe.stream(["a", "b"], steps=2, seed=1, height=32, width=48):
        images = [np.asarray(image) for image in step.preview()]
        expected = autoencoder.decode(step.denoised).sample.clamp(-1, 1)
        shown = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
        assert shown.shape == (2, 3, 32, 48)
        torch.testing.assert_close(shown, expected, rtol=0, atol=1.5 / 127.5)
