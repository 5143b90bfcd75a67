"""The Hugging Face hub: what is downloaded of a model, and what is said where it is not.

The client is the real one; the hub is on this machine.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch
from safetensors.torch import save_file

from kdrt.common.hub import hub_failure
from kdrt_export import stage
from kdrt_export.components.preview_decoder import load_preview_decoder
from kdrt_export.errors import SourceError
from kdrt_export.ip_adapter import IpAdapter
from kdrt_export.sources import open_source
from kdrt_export.sources.hub import HubPlace
from kdrt_export.sources.replacement_unet import replacement_unet
from kdrt_export.sources.replacement_vae import replacement_vae
from tests.support.hub_server import COMMIT, Hub
from tests.support.single_file import checkpoint
from tests.support.tiny_networks import randomized, text_encoder, unet, vae

TEXTS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
}


@pytest.fixture
def crowded(sd_folder: Path, tmp_path: Path) -> Path:
    """A repository as they are: the same weights in every form, and files of other programs."""
    folder = tmp_path / "crowded"
    shutil.copytree(sd_folder, folder)
    for part in ("unet", "vae", "text_encoder", "safety_checker"):
        (folder / part).mkdir(exist_ok=True)
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        for name in (
            f"{stem}.fp16.safetensors",
            f"{stem}.non_ema.safetensors",
            "diffusion_pytorch_model.bin",
            "flax_model.msgpack",
            "model.onnx",
            "openvino_model.bin",
        ):
            (folder / part / name).write_bytes(b"not wanted")
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"not wanted")
    (folder / "README.md").write_bytes(b"not wanted")
    return folder


def test_only_what_is_used_is_downloaded(hub: Hub, crowded: Path) -> None:
    hub.repositories["someone/model"] = crowded
    source = open_source("someone/model", without=["safety_checker"])
    weights = {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    got = {name.removeprefix("someone/model:") for name in hub.downloaded}
    tokenizer = {name for name in got if name.startswith("tokenizer/")}
    checker = {"safety_checker/config.json"}
    assert got == TEXTS | weights | tokenizer | checker
    assert tokenizer
    assert (source.name, source.origin, source.revision) == (
        "someone/model",
        "someone/model",
        COMMIT,
    )
    assert torch.equal(source.vae().encoder.conv_in.weight, vae().encoder.conv_in.weight)


def test_what_is_replaced_is_not_downloaded(hub: Hub, crowded: Path) -> None:
    hub.repositories["someone/model"] = crowded
    source = open_source("someone/model", without=["unet", "vae", "safety_checker"])
    weights = [name for name in hub.downloaded if name.endswith((".safetensors", ".bin"))]
    assert weights == ["someone/model:text_encoder/model.safetensors"]
    assert source.config("vae")["scaling_factor"] == 0.37


def test_pickles_are_downloaded_if_they_are_allowed(
    hub: Hub,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    unet("sd").save_pretrained(
        folder / "unet", safe_serialization=False, max_shard_size="100KB", variant="fp16"
    )
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    hub.repositories["someone/model"] = folder
    with pytest.raises(
        SourceError, match=r"'someone/model' on the hub: unet has no .*--allow-pick"
    ):
        open_source("someone/model")
    assert hub.downloaded == []
    source = open_source("someone/model", allow_pickle=True)
    assert torch.equal(source.unet().conv_in.weight, unet("sd").conv_in.weight)
    assert sum(name.endswith(".bin") for name in hub.downloaded) > 1


def test_a_revision_stands_behind_the_name(hub: Hub, sd_folder: Path) -> None:
    hub.repositories["someone/model"] = sd_folder
    hub.revisions = ("v2", COMMIT)
    assert open_source("someone/model@v2").revision == COMMIT
    assert open_source("someone/model", revision="v2").revision == COMMIT
    with pytest.raises(SourceError, match="'someone/model' has no revision 'main'"):
        open_source("someone/model")
    with pytest.raises(SourceError, match="name two revisions; give one"):
        open_source("someone/model@v2", revision="v3")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("sdxl-turbo", "stabilityai/sdxl-turbo"),
    ],
)
def test_a_short_name_is_downloaded_from_where_its_model_lies(
    hub: Hub, sd_folder: Path, name: str, repository: str
) -> None:
    hub.repositories[repository] = sd_folder
    source = open_source(name)
    assert (source.name, source.origin, source.revision) == (name, repository, COMMIT)
    assert hub.downloaded


def test_a_single_file_on_the_hub(
    hub: Hub,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "repo" / "files" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    save_file(checkpoint(unet("sd"), vae(), text_encoder(vocabulary=674)), path)
    hub.repositories["someone/files"] = tmp_path / "repo"
    source = open_source("someone/files:files/mine.safetensors", config=sd_folder)
    assert torch.equal(source.unet().conv_in.weight, unet("sd").conv_in.weight)
    assert (source.name, source.revision) == ("mine", COMMIT)
    with pytest.raises(SourceError, match=r"no file x\.safetensors; it has files/mine"):
        open_source("someone/files:x.safetensors")
    with pytest.raises(SourceError, match=r"model_index\.json is missing"):
        open_source("someone/files")


def test_parts_of_their_own(hub: Hub, tmp_path: Path) -> None:
    """A VAE, a UNet, an IP-Adapter: a folder's, or a file of many."""
    folder = tmp_path / "repo"
    randomized(vae(), seed=5).save_pretrained(folder)
    randomized(unet("sd"), seed=6).save_pretrained(folder / "unet")
    (folder / "other").mkdir()
    save_file(unet("sd").state_dict(), folder / "other" / "lightning.safetensors")
    hub.repositories["someone/parts"] = folder
    loaded = replacement_vae("someone/parts", {}).network()
    expected = randomized(vae(), seed=5)
    assert torch.equal(loaded.encoder.conv_in.weight, expected.encoder.conv_in.weight)
    assert len(hub.downloaded) == 2
    own = unet("sd").config
    file = replacement_unet("someone/parts@main:other/lightning.safetensors", own).network()
    assert torch.equal(file.conv_in.weight, unet("sd").conv_in.weight)
    (folder / "config.json").unlink()
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    hub.repositories["someone/pipeline"] = folder
    hub.downloaded.clear()
    replacement_unet("someone/pipeline", own)
    assert {name.rpartition("/")[2] for name in hub.downloaded} == {
        *("config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json")
    }
    hub.repositories["someone/files"] = folder / "other"
    hint = r"holds no preview decoder.*say owner/name:lightning\.safetensors"
    with pytest.raises(SourceError, match=hint):
        load_preview_decoder("someone/files")


def test_an_adapter_brings_its_image_encoder_alone(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "repo" / "models"
    (folder / "image_encoder").mkdir(parents=True)
    adapter = {
        "image_proj.proj.weight": torch.ones(2, 2),
        "ip_adapter.1.to_k_ip.weight": torch.ones(1),
    }
    save_file(adapter, folder / "ip.safetensors")
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "model.onnx"):
        (folder / "image_encoder" / name).write_text(name)  # files of one content are one
    hub.repositories["someone/adapter"] = tmp_path / "repo"
    IpAdapter("someone/adapter:models/ip.safetensors")
    assert sorted(hub.downloaded) == [
        f"someone/adapter:models/{name}"
        for name in (
            "image_encoder/config.json",
            "image_encoder/model.safetensors",
            "ip.safetensors",
        )
    ]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (429, "", "for now .429, too many requests.; wait some minutes"),
        (503, "", "a fault of its own .503.*; try again later"),
        (401, "GatedRepo", "is gated: accept its licence on https://huggingface.co/someone/model"),
        (404, "RepoNotFound", "there is no folder 'someone/model', and the hub has no model"),
        (404, "RevisionNotFound", "'someone/model' has no revision 'main'"),
        (403, "", "refuses access to 'someone/model' .403.; log in"),
    ],
)
def test_what_the_hub_answers_is_said(
    hub: Hub,
    status: int,
    code: str,
    words: str,
) -> None:
    hub.refusal = (status, code)
    for ask in (
        lambda: open_source("someone/model"),
        lambda: replacement_vae("someone/model", {}),
        lambda: IpAdapter("someone/model:ip.safetensors"),
    ):
        with pytest.raises(SourceError, match=words):
            ask()


def test_a_copy_in_the_cache_serves_without_the_hub(
    hub: Hub,
    sd_folder: Path,
) -> None:
    hub.repositories["someone/model"] = sd_folder
    open_source("someone/model", without=["unet"])
    hub.refusal = (503, "")
    assert open_source("someone/model", without=["unet"]).revision == COMMIT
    with pytest.raises(SourceError, match=r"no \.safetensors weights .as far as the local.*503"):
        open_source("someone/model")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is too full for 'a/b'; free some space"),
        (errno.EACCES, "cannot be written, where 'a/b' would be kept; set HF_HOME"),
        (errno.EROFS, "cannot be written"),
    ],
)
def test_what_the_disk_refuses_is_said(number: int, words: str) -> None:
    assert words in hub_failure(OSError(number, "…"), "a/b")


def test_a_cache_that_is_no_folder(
    hub: Hub,
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repositories["someone/model"] = sd_folder
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"the hub cache .*file cannot be written"):
        open_source("someone/model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubPlace("a/b")),
        ("a/b@refs/pr/3", HubPlace("a/b", "refs/pr/3")),
        ("a/b:c/d.bin", HubPlace("a/b", None, "c/d.bin")),
        ("a/b@v1:d.bin", HubPlace("a/b", "v1", "d.bin")),
        ("./b", None),
        ("../b", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("a/b.safetensors", None),
        ("a/B.CKPT", None),
        ("", None),
    ],
)
def test_names_on_the_hub(text: str, expected: HubPlace | None) -> None:
    assert HubPlace.parse(text) == expected


def test_an_export_names_the_commit(hub: Hub, crowded: Path, tmp_path: Path) -> None:
    """With a damaged safety checker, which is asked for or not."""
    hub.repositories["someone/model"] = crowded
    with pytest.raises(SourceError, match="safety_checker"):
        stage.export("someone/model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
