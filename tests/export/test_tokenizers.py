"""Tokenizers that are damaged or do not fit their text encoder: at export, and in a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from kdrt.bundle import Bundle, TextEncoderFacts
from kdrt.errors import BundleError
from kdrt.prompt.token_table import vocabulary_fault
from kdrt.prompt.tokens import PromptTokenizer
from kdrt_export import stage
from kdrt_export.errors import SourceError
from kdrt_export.sources import open_source
from kdrt_export.sources.clip_vocabulary import clip_tokenizer
from kdrt_export.sources.tokenizer_files import read_tokenizer


def old_format(folder: Path) -> Path:
    """CLIP's tokenizer in the two files of its first versions."""
    folder.mkdir()
    model = json.loads(clip_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_tokenizer_of_two_files(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(old_format(tmp_path / "it"))
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


DAMAGE: dict[str, tuple[str, bytes]] = {
    "pointer": ("vocab.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
    "pointer merges": ("merges.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n"),
    "empty": ("vocab.json", b""),
    "empty merges": ("merges.txt", b""),
    "cut short": ("vocab.json", b'{"a": 1, "b"'),
    "other types": ("vocab.json", b'{"a": "b"}'),
    "a list": ("vocab.json", b"[1]"),
    "another encoding": ("vocab.json", '{"a": 1}'.encode("utf-16")),
    "merges of others": ("merges.txt", b"#version: 0.2\nno-such such-no\n"),
    "tokenizer.json": ("tokenizer.json", b"{}"),
    "wrong settings": ("tokenizer_config.json", b"[]"),
    "settings": ("tokenizer_config.json", b'{"model_max_length": "many", "pad_token": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tokenizers_are_one_sentence(damage: str, tmp_path: Path) -> None:
    folder = old_format(tmp_path / "it")
    name, content = DAMAGE[damage]
    (folder / name).write_bytes(content)
    refused = r"and only 0 merges|cannot load a CLIP|is a Git LFS pointer"
    with pytest.raises(SourceError, match=refused):
        read_tokenizer(folder)


def test_merges_that_were_cut_short_are_noticed(tmp_path: Path) -> None:
    folder = old_format(tmp_path / "it")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[: len(merges) // 2]), encoding="utf-8")
    with pytest.raises(SourceError, match=r"49,408 tokens and only 24,446 merges.*cut short"):
        read_tokenizer(folder)


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"], ["vocab.json"], ["merges.txt"]])
def test_a_folder_without_a_tokenizer(kept: list[str], tmp_path: Path) -> None:
    """transformers would make one of two words."""
    folder = old_format(tmp_path / "it")
    (folder / "tokenizer_config.json").write_text("{}")
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    with pytest.raises(SourceError, match="holds no CLIP tokenizer: neither vocab"):
        read_tokenizer(folder)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_not_exported(
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(SourceError, match="'<cat-toy>' has the id 674, and there are 674 token"):
        stage.export(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_fits_and_what_does_not(sd_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(sd_folder / "tokenizer" / "tokenizer.json"))
    facts = TextEncoderFacts(
        component="text_encoder",
        tokenizer="tokenizer",
        token_embedding="…",
        max_length=20,
        hidden_size=6,
        layers=1,
        bos=672,
        eos=673,
        pad=673,
        pooled_token=None,
        layer=-1,
        normalized=True,
    )
    table = torch.zeros(674, 6)

    def fault(table: torch.Tensor = table, **changes: int) -> str | None:
        return vocabulary_fault(tokenizer, facts.model_copy(update=changes), table)

    assert fault() is None
    assert fault(torch.zeros(700, 6)) is None, "tables may be longer"
    assert "there are 673 token embeddings" in str(fault(torch.zeros(673, 6)))
    assert "shape [674, 5], where hidden_size is 6" in str(fault(torch.zeros(674, 5)))
    assert "shape [674]" in str(fault(torch.zeros(674)))
    assert "eos is 674, and its ids end at 673" in str(fault(eos=674))
    assert "bos is -1" in str(fault(bos=-1))
    assert "it reads 2 tokens" in str(fault(max_length=2))


def with_holes(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far</w>"] = 700
    (folder / "tokenizer.json").write_text(json.dumps(content))


def without_rows(folder: Path) -> None:
    file = folder / "token_embedding.safetensors"
    save_file({"weight": load_file(file)["weight"][:100].contiguous()}, file)


@pytest.mark.parametrize("change", [with_holes, without_rows])
def test_a_bundle_with_a_tokenizer_that_does_not_fit(
    change: Callable[[Path], None], demo_bundle: Path, tmp_path: Path
) -> None:
    """At load, not at the first prompt with such a token."""
    shutil.copytree(demo_bundle, folder := tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    facts = manifest.text_encoders[0]
    change(folder / facts.tokenizer)
    bundle = Bundle(folder, manifest)
    table = load_file(folder / facts.token_embedding)["weight"]
    with pytest.raises(BundleError, match=r"does not fit text_encoder: .*; export it again"):
        PromptTokenizer(bundle, facts).check(table)


def test_the_demos_tokenizers_fit(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    for facts in bundle.manifest.text_encoders:
        table = load_file(demo_bundle / facts.token_embedding)["weight"]
        PromptTokenizer(bundle, facts).check(table)
    assert len(open_source("demo").tokenizer(0)) == len(table)
