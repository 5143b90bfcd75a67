"""Sources: what is found, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.families import KNOWN_MODELS
from kdrt_export.sources import RandomSource, open_source
from tests.support.single_file import checkpoint


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder(sd_folder: Path) -> None:
    source = open_source(str(sd_folder))
    assert (source.family, source.text_encoders, source.name) == ("sd", 1, sd_folder.name)
    assert not source.zeros_for_empty_negative
    assert source.unet().config.cross_attention_dim == source.text_encoder(0).config.hidden_size
    assert source.vae().dtype == torch.float32
    assert not any(p.requires_grad for p in source.unet().parameters())


def test_the_demo() -> None:
    source = open_source("demo")
    assert (source.family, source.text_encoders, source.name) == ("sdxl", 2, "demo")
    assert source.zeros_for_empty_negative
    assert source.scheduler["timestep_spacing"] == "leading"


@pytest.mark.parametrize("what", ["nonsense", "demoo", "missing.safetensors", "a/b/c", ""])
def test_what_means_nothing(what: str) -> None:
    with pytest.raises(
        SourceError, match="is no file, no folder and no known model; give demo, sdxl"
    ):
        open_source(what)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("what", ["someone/something", "sdxl"])
def test_a_hub_id_without_a_network(what: str) -> None:
    with pytest.raises(
        SourceError, match="not in the local hub cache and the hub cannot be reached"
    ):
        open_source(what)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no diffusers folder: model_index\.json is missing"):
        open_source(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        open_source(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UnsupportedModelError, match="holds a FluxPipeline; kdrt exports"):
        open_source(str(tmp_path))


def test_a_folder_with_a_part_missing(sd_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    shutil.rmtree(folder / "vae")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    (folder / "text_encoder" / "model.safetensors").unlink()
    source = open_source(str(folder))
    with pytest.raises(SourceError, match="it has no folder 'vae'"):
        source.vae()
    with pytest.raises(SourceError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        source.unet()
    with pytest.raises(SourceError, match=r"text_encoder has no \.safetensors weights"):
        source.text_encoder(0)


def test_pickles_need_permission(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, path)
    with pytest.raises(SourceError, match=r"is a pickle.*--allow-pickle"):
        open_source(str(path))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a checkpoint was run",)


def test_an_allowed_pickle_still_cannot_run_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(SourceError, match="damaged or holds more than weights"):
        open_source(str(path), allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    with pytest.raises(SourceError, match="is no checkpoint"):
        open_source(str(text))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x08" * 20)
    with pytest.raises(SourceError, match="damaged"):
        open_source(str(damaged))
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, lora)
    with pytest.raises(UnsupportedModelError, match="no Stable Diffusion UNet"):
        open_source(str(lora))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_holds_the_same_model(sd_folder: Path, tmp_path: Path, suffix: str) -> None:
    folder = open_source(str(sd_folder))
    parts = (folder.unet(), folder.vae(), folder.text_encoder(0))
    path = tmp_path / f"mine{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": checkpoint(*parts)}, path)
    else:
        save_file(checkpoint(*parts), path)
    source = open_source(str(path), config=sd_folder, allow_pickle=suffix == ".ckpt")
    assert (source.name, source.origin, source.family) == ("mine", path.name, "sd")
    for ours, theirs in zip(
        (source.unet(), source.vae(), source.text_encoder(0)), parts, strict=True
    ):
        expected = theirs.state_dict()
        state = ours.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)
    assert source.tokenizer(0).model_max_length == 20
    assert source.scheduler["beta_schedule"] == "scaled_linear"


def test_random_weights_come_from_the_seed() -> None:
    first, again, other = (
        open_source("demo", random_weights=True, seed=seed).unet().conv_in.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_weights_of_a_folder_are_float32_and_read_by_its_own_tokenizers() -> None:
    source = open_source("demo", random_weights=True)
    for index in source.encoder_indices:
        encoder, tokenizer = source.text_encoder(index), source.tokenizer(index)
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        ids = tokenizer("a red circle", return_tensors="pt").input_ids
        assert torch.isfinite(encoder(ids)[0]).all()
        assert len(tokenizer) == encoder.config.vocab_size


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_architectures_of_well_known_models(name: str) -> None:
    source = open_source(name, random_weights=True)
    assert isinstance(source, RandomSource)
    with torch.device("meta"):
        unet, vae = source.unet(), source.vae()
        encoders = [source.text_encoder(i) for i in source.encoder_indices]
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    known = {"sd15": 859.5, "sd21": 865.9, "sdxl-refiner": 2259.5}
    assert millions == pytest.approx(known.get(name, 2567.5), abs=0.1)
    assert sum(e.config.hidden_size for e in encoders) == unet.config.cross_attention_dim
    assert vae.config.latent_channels == unet.config.in_channels
    for index, encoder in zip(source.encoder_indices, encoders, strict=True):
        tokenizer = source.tokenizer(index)
        assert len(tokenizer) == encoder.config.vocab_size
        assert tokenizer.model_max_length == encoder.config.max_position_embeddings


def test_random_weights_of_nothing() -> None:
    words = "no architecture 'someone/something' to give random weights; there are sdxl"
    with pytest.raises(SourceError, match=words):
        open_source("someone/something", random_weights=True)


def test_keys_a_scheduler_file_lacks_are_not_invented(sd_folder: Path) -> None:
    file = json.loads((sd_folder / "scheduler" / "scheduler_config.json").read_text())
    assert open_source(str(sd_folder)).scheduler == file


EDM, EULER = "EDMEulerScheduler", "EulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("index", "file", "expected"),
    [
        (EULER, EULER, EULER),
        (None, EULER, EULER),
        (EULER, None, EULER),
        (EDM, None, EDM),
        (EDM, EULER, EDM),
        (EULER, EDM, EDM),
        ("FlowMatchEulerDiscreteScheduler", EULER, "FlowMatchEulerDiscreteScheduler"),
        (["mine"], EULER, ["mine"]),
    ],
)
def test_the_class_of_a_scheduler_is_in_either_file(
    index: object,
    file: str | None,
    expected: object,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """diffusers loads the class of model_index.json, whatever scheduler_config.json names."""
    shutil.copytree(sd_folder, tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "scheduler": ["diffusers", index]}))
    config = {"_class_name": file} if file else {}
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert open_source(str(tmp_path / "model")).scheduler["_class_name"] == expected


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_would_never_end_is_not_opened(
    kind: str, file: str, sd_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SourceError, match=r"regular file"):
        open_source(str(tmp_path / "model")).check()
