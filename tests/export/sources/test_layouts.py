"""Single files: what is in which place, by which names, and what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from kdrt_export import stage
from kdrt_export.errors import ExportError, SourceError
from kdrt_export.report import Silent
from kdrt_export.sources import open_source
from kdrt_export.sources.layouts import text_encoder_tensors, vae_tensors
from kdrt_export.sources.replacement_unet import replacement_unet
from kdrt_export.sources.replacement_vae import replacement_vae
from kdrt_export.sources.weights import Weights
from tests.support.single_file import checkpoint, open_clip
from tests.support.tiny_networks import randomized, text_encoder, unet, vae

State = dict[str, torch.Tensor]

CLIP = "cond_stage_model.transformer."
VAE = "first_stage_model."


@pytest.fixture(scope="module")
def whole() -> State:
    return checkpoint(unet("sd"), vae(), text_encoder(vocabulary=674))


def equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    state, expected = ours.state_dict(), theirs.state_dict()
    return set(state) == set(expected) and all(torch.equal(state[k], expected[k]) for k in state)


def test_text_encoders_with_the_names_of_old_files(
    whole: State,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """The first community files have no ``text_model.``; later ones have position ids."""
    old = {name.replace(f"{CLIP}text_model.", CLIP): t for name, t in whole.items()}
    old[f"{CLIP}embeddings.position_ids"] = torch.arange(20)[None]
    save_file(old, tmp_path / "old.SAFETENSORS")
    source = open_source(str(tmp_path / "old.SAFETENSORS"), config=sd_folder)
    source.check()
    assert equal(source.text_encoder(0), text_encoder(vocabulary=674))


@pytest.mark.parametrize("prefix", ["cond_stage_model.model", "conditioner.embedders.0.model"])
def test_stable_diffusion_2_has_a_layer_too_many(prefix: str, tmp_path: Path) -> None:
    """It uses the last layer but one; its turbo model is in SDXL's place."""

    def encoder(layers: int) -> Any:
        config = CLIPTextConfig(
            vocab_size=99,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=16,
        )
        return randomized(CLIPTextModel(config))

    file, used = encoder(3), encoder(2)
    for name, parameter in used.named_parameters():
        parameter.data = dict(file.named_parameters())[name].data
    file.text_projection = torch.nn.Linear(16, 16, bias=False)
    state = open_clip(file, prefix) | {f"{prefix}.logit_scale": torch.zeros(())}
    save_file(state, path := tmp_path / "sd2.safetensors")
    weights = Weights(CLIPTextModel, used.config, text_encoder_tensors(path, 0, used.config), "it")
    assert equal(weights.network(), used)
    del state[f"{prefix}.transformer.resblocks.1.attn.in_proj_bias"]
    save_file(state, path)
    weights = Weights(CLIPTextModel, used.config, text_encoder_tensors(path, 0, used.config), "it")
    with pytest.raises(SourceError, match=r"lacks encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        weights.check()


def test_what_is_none_of_open_clips_is_named(tmp_path: Path) -> None:
    encoder = text_encoder(projection=True)
    prefix = "conditioner.embedders.1.model"
    state = open_clip(encoder, prefix) | {
        f"{prefix}.{n}": torch.zeros(1) for n in ("mine", "attn_mask")
    }
    save_file(state, tmp_path / "xl.safetensors")
    tensors = text_encoder_tensors(tmp_path / "xl.safetensors", 1, encoder.config)
    with pytest.raises(SourceError, match=r"holds besides mine;"):
        Weights(CLIPTextModelWithProjection, encoder.config, tensors, "it").check()


def test_what_a_vae_keeps_of_its_training_is_left_out(whole: State, tmp_path: Path) -> None:
    alone = {n.removeprefix(VAE): t for n, t in whole.items() if n.startswith(VAE)}
    alone |= {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    torch.save({"state_dict": alone}, path := tmp_path / "vae.ckpt")
    assert equal(
        Weights(type(vae()), vae().config, vae_tensors(path, vae().config), "it").network(), vae()
    )


class AfterCheck(Silent):
    """Ends an export when the first network is loaded, before which all are checked."""

    def start(self, stage: str) -> None:
        if stage.endswith(": load"):
            raise KeyboardInterrupt


def test_a_file_without_a_vae_and_one_besides(
    whole: State,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """The VAE is a file too: what it is is known from the model all the same."""
    save_file({n: t for n, t in whole.items() if n[0] != "f"}, tmp_path / "model.safetensors")
    other = randomized(vae(), seed=5)
    save_file(other.state_dict(), tmp_path / "vae.safetensors")
    options: dict[str, Any] = {"config": sd_folder}
    with pytest.raises(SourceError, match=r"model\.safetensors holds no VAE; give one with --vae"):
        stage.export(str(tmp_path / "model.safetensors"), tmp_path / "out", **options)
    options["vae"] = str(tmp_path / "vae.safetensors")
    with pytest.raises(KeyboardInterrupt):
        stage.export(
            str(tmp_path / "model.safetensors"), tmp_path / "out", report=AfterCheck(), **options
        )


@pytest.mark.parametrize("suffix", [".safetensors", ".CKPT"])
def test_a_unet_alone_names_the_way_to_use_it(
    whole: State,
    suffix: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    alone = {n: t for n, t in whole.items() if n.startswith("model.")}
    path = tmp_path / f"unet{suffix}"
    if suffix == ".CKPT":
        torch.save(alone, path)
    else:
        save_file(alone, path)
    source = open_source(str(path), config=sd_folder, allow_pickle=True)
    with pytest.raises(SourceError, match=r"holds no text encoder; if it is a UNet alone.* --unet"):
        source.check()


def test_pickles_of_before_the_zip_format(
    whole: State,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": whole}, path, _use_new_zipfile_serialization=False)
    source = open_source(str(path), config=sd_folder, allow_pickle=True)
    assert equal(source.unet(), unet("sd"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer"),
        (b"", "is damaged"),
        (b"<html>404</html>", "is a web page"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_damaged_files_are_one_sentence(
    suffix: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words):
        open_source(str(path), allow_pickle=True)
    for replace in (replacement_unet, replacement_vae):
        with pytest.raises(SourceError, match=words):
            replace(str(path), {}, allow_pickle=True)


@pytest.mark.parametrize("name", ["input_blocks.0.0.weight", "input_blocks.1.1.norm.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (1, 2, 3, 4, 5)])
def test_tensors_of_any_shape_are_one_sentence(
    whole: State,
    name: str,
    shape: tuple[int, ...],
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    save_file(
        {**whole, f"model.diffusion_model.{name}": torch.zeros(shape)}, tmp_path / "m.safetensors"
    )
    for ask in (
        lambda: open_source(str(tmp_path / "m.safetensors")).check(),
        lambda: open_source(str(tmp_path / "m.safetensors"), config=sd_folder).check(),
        lambda: replacement_unet(str(tmp_path / "m.safetensors"), unet("sd").config).check(),
    ):
        with pytest.raises(ExportError):
            ask()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, torch.zeros(2)])
def test_pickles_of_something_else(content: object, tmp_path: Path) -> None:
    torch.save(content, path := tmp_path / "it.pt")
    with pytest.raises(SourceError, match=r"it\.pt (holds a \w+, not weights|is damaged)"):
        vae_tensors(path, {})
