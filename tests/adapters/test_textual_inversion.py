"""Learned tokens: files, names, errors, and that nothing remains of them."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import kdrt
from kdrt.prompt import PromptTokenizer
from tests.support.image_arrays import as_tensor
from tests.support.textual_inversion import FIRST, SECOND, Compat, embeddings, first_tokens
from tests.support.tiny_model import MAX_LENGTH, TinyModel


def saved(folder: Path, kind: str) -> Path:
    """``FIRST`` in a file of every format there is."""
    folder.mkdir(exist_ok=True)
    path = folder / {"diffusers": "cat.safetensors", "emb_params": "<cat>.safetensors"}.get(
        kind, "cat.pt"
    )
    a1111 = {"string_to_token": {"*": 265}, "name": "<cat>", "step": 5, "sd_checkpoint": None}
    if kind == "diffusers":
        save_file({"<cat>": FIRST}, path)
    elif kind == "diffusers .bin":
        path = folder / "learned_embeds.bin"
        torch.save({"<cat>": FIRST}, path)
    elif kind == "emb_params":
        save_file({"emb_params": FIRST}, path)
    elif kind == "a1111":
        torch.save(a1111 | {"string_to_param": {"*": FIRST.requires_grad_(False)}}, path)
    elif kind == "original":
        params = nn.ParameterDict({"*": nn.Parameter(FIRST.clone())})
        torch.save(a1111 | {"string_to_param": params}, path)
    return path


KINDS = ["diffusers", "diffusers .bin", "emb_params", "a1111", "original"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read(sd: TinyModel, tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "files", kind)
    pickled = path.suffix != ".safetensors"
    if pickled:
        with pytest.raises(kdrt.InvalidRequestError, match=r"is a pickle.*allow_pickle=True"):
            sd.pipeline.adapters.load_textual_inversion(path)
    tokens = sd.pipeline.adapters.load_textual_inversion(path, allow_pickle=pickled)
    name = "cat" if kind in ("a1111", "original") else "<cat>"  # the file's, as in the web UI
    assert tokens == (name,)
    assert sd.pipeline.adapters.textual_inversions() == {name: 3}
    assert torch.equal(first_tokens(sd, "<cat> red", 3), FIRST)


def test_a_token_of_ones_own(sd: TinyModel, tmp_path: Path) -> None:
    path = saved(tmp_path / "files", "diffusers")
    assert sd.pipeline.adapters.load_textual_inversion(str(path), "my-thing") == ("my-thing",)
    assert torch.equal(first_tokens(sd, "My-Thing red", 3), FIRST)
    assert not torch.equal(first_tokens(sd, "<cat>", 3), FIRST)


def test_a_folder_is_as_good_as_its_file(sd: TinyModel, tmp_path: Path) -> None:
    folder = saved(tmp_path / "files", "diffusers .bin").parent
    with pytest.raises(kdrt.InvalidRequestError, match=r"has no learned_embeds.safetensors; name"):
        sd.pipeline.adapters.load_textual_inversion(folder)
    sd.pipeline.adapters.load_textual_inversion(folder, allow_pickle=True)
    saved(folder, "diffusers")
    sd.pipeline.adapters.load_textual_inversion(folder, "other", weight_name="cat.safetensors")
    assert sd.pipeline.adapters.textual_inversions() == {"<cat>": 3, "other": 3}


def test_sdxl_files_serve_both_encoders(sdxl: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_file({"clip_l": FIRST, "clip_g": SECOND}, path)
    assert sdxl.pipeline.adapters.load_textual_inversion(path) == ("toy",)
    assert torch.equal(first_tokens(sdxl, "toy", 3, 0), FIRST)
    assert torch.equal(first_tokens(sdxl, "toy", 3, 1), SECOND)
    sdxl.pipeline.adapters.unload_textual_inversion("toy")
    assert sdxl.pipeline.adapters.textual_inversions() == {}


def test_the_width_tells_the_encoder(sdxl: TinyModel) -> None:
    sdxl.pipeline.adapters.load_textual_inversion({"first": FIRST[0]})
    sdxl.pipeline.adapters.load_textual_inversion(SECOND[:1], "second")
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder") == {"first": 1}
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder_2") == {"second": 1}
    assert torch.equal(first_tokens(sdxl, "second", 1, 1), SECOND[:1])


def test_several_at_once(sd: TinyModel, tmp_path: Path) -> None:
    path = saved(tmp_path / "files", "diffusers")
    pipe = sd.pipeline
    assert pipe.adapters.load_textual_inversion([path, {"x9": FIRST[0]}]) == ("<cat>", "x9")
    assert pipe.adapters.load_textual_inversion([path, FIRST[1]], ["b7", "c7"]) == ("b7", "c7")
    assert pipe.adapters.load_textual_inversion(FIRST[:2], ["<s0>", "<s1>"]) == ("<s0>", "<s1>")
    assert pipe.adapters.load_textual_inversion({"p9": FIRST, "q9": FIRST[2]}) == ("p9", "q9")
    assert torch.equal(
        first_tokens(sd, "q9 <s1> <cat> x9", 6), torch.stack([*FIRST[[2, 1]], *FIRST, FIRST[0]])
    )


def test_tokens_of_a_name_that_begins_alike(sd: TinyModel) -> None:
    sd.pipeline.adapters.load_textual_inversion([{"zeb": FIRST[:2]}, {"zebra": FIRST[1:]}])
    assert torch.equal(first_tokens(sd, "zebra zeb", 4), torch.cat([FIRST[1:], FIRST[:2]]))


def test_half_precision_vectors_take_the_type_of_the_table(sd: TinyModel) -> None:
    sd.pipeline.adapters.load_textual_inversion({"x9": FIRST.half()})
    assert torch.equal(first_tokens(sd, "x9", 3), FIRST)


def test_what_does_not_fit_is_cut_and_reported(sd: TinyModel) -> None:
    sd.pipeline.adapters.load_textual_inversion({"x9": FIRST})
    with pytest.warns(kdrt.TruncationWarning, match="first 10 tokens.*'x9 blue'"):
        told = embeddings(sd, "red " * 8 + "x9 blue")
    assert torch.equal(told[9:11], FIRST[:2])


def test_chunks_do_not_tear_a_token_apart(sd: TinyModel) -> None:
    sd.pipeline.adapters.load_textual_inversion({"x9": FIRST, "long": FIRST.repeat(4, 1)})
    options: dict[str, Any] = {"prompt_weighting": "a1111"}
    told = embeddings(sd, "red " * 8 + "x9 blue", **options)
    assert torch.equal(told[MAX_LENGTH + 1 : MAX_LENGTH + 4], FIRST)
    told = embeddings(sd, "long", **options)
    inside = torch.cat([told[1 : MAX_LENGTH - 1], told[MAX_LENGTH + 1 : MAX_LENGTH + 3]])
    assert torch.equal(inside, FIRST.repeat(4, 1))


def test_emphasis_reaches_every_vector(sd: TinyModel) -> None:
    sd.pipeline.adapters.load_textual_inversion({"x9": FIRST})
    tokenizer: PromptTokenizer = sd.pipeline.prompt_encoder.encoders[0].tokenizer
    (chunk,) = tokenizer.chunks("red (x9:1.5) red", 20)
    assert chunk.weights[1:6] == (1, 1.5, 1.5, 1.5, 1)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_unloading_restores_every_bit(request: pytest.FixtureRequest, family: str) -> None:
    model: TinyModel = request.getfixturevalue(family)
    pipe = model.pipeline
    prompts = ["a red circle", "x9 zeb, x9_1", "<cat>"]

    def image() -> Tensor:
        # Latents: the tiny decoder saturates.
        return as_tensor(pipe(prompts, "x9", steps=2, seed=0, output_type="latent").images)

    before = image()
    pipe.adapters.load_textual_inversion([{"x9": FIRST}, {"zeb": FIRST[0]}])
    with_both = image()
    assert not torch.equal(with_both, before)
    pipe.adapters.unload_textual_inversion("zeb")
    assert not torch.equal(image(), with_both)
    pipe.adapters.load_textual_inversion({"zeb": FIRST[0]})
    assert torch.equal(image(), with_both)
    pipe.adapters.unload_textual_inversion()
    assert pipe.adapters.textual_inversions() == {}
    assert torch.equal(image(), before)


def test_prompts_without_the_token_are_what_they_were(sd: TinyModel) -> None:
    before = sd.pipeline.encode_prompt("a red circle")[0].encoder_hidden_states
    sd.pipeline.adapters.load_textual_inversion({"x9": FIRST})
    after = sd.pipeline.encode_prompt("a red circle")[0].encoder_hidden_states
    assert torch.equal(before, after)


def test_only_encoders_that_changed_forget_their_prompts(sdxl: TinyModel) -> None:
    sdxl.pipeline.encode_prompt("a", "a")
    sdxl.pipeline.adapters.load_textual_inversion({"x9": FIRST})
    sdxl.pipeline.encode_prompt("a", "a")
    assert [len(recorder.calls) for recorder in sdxl.text_encoders] == [2, 1]
    sdxl.pipeline.prompt_encoder.invalidate("text_encoder_2")
    sdxl.pipeline.encode_prompt("a", "a")
    assert [len(recorder.calls) for recorder in sdxl.text_encoders] == [2, 2]


@pytest.mark.parametrize("pools", [False, True])
def test_where_an_old_encoder_pools(sd: TinyModel, pools: bool) -> None:
    """At the highest id: the end of the prompt, or as in diffusers the last learned vector."""
    facts = sd.manifest.text_encoders[0].model_copy(update={"pooled_token": None})
    tokenizer = PromptTokenizer(sd.pipeline.bundle, facts)
    top = max(tokenizer("a red circle").ids)
    first = tokenizer.size
    tokenizer.use(SimpleNamespace(names={"x9": (first, first + 1)}, pools=pools))
    tokens = tokenizer("a x9 red")
    ids = list(tokens.ids)
    assert ids[2:4] == [first, first + 1]
    highest = max(id_ for id_ in ids if id_ < first)
    assert tokens.eos_index == (3 if pools else ids.index(highest))
    assert top < first


@pytest.mark.parametrize(
    ("source", "token", "message"),
    [
        (torch.zeros(1, 768), "x", "768 numbers (those of Stable Diffusion 1, or SDXL's first"),
        (torch.zeros(1, 1024), "x", "1024 numbers (those of Stable Diffusion 2), and this model"),
        (torch.zeros(1, 1280), "x", "second text encoder), and this model takes 6 in text_encoder"),
        (torch.zeros(1, 7), "x", "vectors of 7 numbers, and this model takes 6 in text_encoder"),
        ({"clip_l": FIRST, "clip_g": SECOND}, "x", "none in text_encoder_2, which it lacks"),
        (FIRST, None, "does not name its token; give token="),
        (FIRST, " ", "a token is blank"),
        ({"red</w>": FIRST}, None, "'red</w>' is already in the vocabulary of text_encoder"),
        ({"A": FIRST}, None, "'A' is already in the vocabulary of text_encoder"),
        ([{"y9": FIRST}, {"Y9": FIRST}], None, "'Y9' is already in the vocabulary"),
        ({"known": FIRST}, None, "'known' is already loaded; unload it first"),
        ({"Known": FIRST}, None, "'Known' is already in the vocabulary"),
        ({"p9": FIRST, "q9": FIRST}, "x", "there are 2 words in one source (p9, q9, …)"),
        ({"\ud800": FIRST}, None, "cannot be written in a prompt"),
        (FIRST, 5, "token must be a string or a list of strings, not 5"),
        (FIRST, [None, "x", "y"], "token must be a string or a list of strings"),
        ({"y" * 201: FIRST}, None, "is a token of 201 characters; at most 200"),
        ({f"y{n}z": FIRST[0] for n in range(1001)}, None, "has 1001 words"),
        (5, None, "not a int"),
        ([5], None, "is not a textual inversion"),
        ([FIRST, FIRST], ["x"], "there are 2 sources; give as many tokens"),
        ([FIRST, FIRST], "x", "there are 2 sources; give as many tokens"),
        (FIRST, ["x", "y"], "there are 2 tokens for one source"),
        ({"x": FIRST}, ["x"], "there are 1 tokens for one source"),
        ({"unet.weight": torch.zeros(1, 2, 3, 4)}, None, "it holds unet.weight"),
        ({}, None, "is not a textual inversion"),
        ({"unet.x.lora_A.weight": FIRST}, None, "is a LoRA, not a textual inversion"),
        ({"string_to_param": {}}, None, "exactly one entry in string_to_param"),
        ({"x": torch.zeros(0, 6)}, None, "'x' in the textual inversion has no vectors"),
        ({"x": torch.zeros(2, 6).long()}, None, "holds int64 numbers"),
        ({"x": torch.zeros(2, 6, dtype=torch.complex64)}, None, "holds complex64 numbers"),
        ({"x": FIRST / 0}, None, "not finite"),
        ({"x": FIRST.double() * 1e300}, None, "not finite"),
        ({"x": torch.tensor(1.0)}, None, "must be finite vectors [n, D]"),
        ({"x": torch.zeros(2, 6).to_sparse()}, None, "not stored number by number"),
        ({"x": torch.zeros(2000, 6)}, None, "has 2000 vectors; at most 1024"),
        ({"clip_l": FIRST, "t5xxl": torch.zeros(2, 4096)}, None, "Stable Diffusion 3 or Flux"),
        (torch.zeros(1, 2, 6), "x", "must be finite vectors [n, D], not a tensor of shape"),
        ("nowhere.safetensors", None, "there is no file or folder nowhere.safetensors"),
        ("a/b.pt", None, "there is no file or folder a/b.pt"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(
    sd: TinyModel, source: Any, token: Any, message: str
) -> None:
    sd.pipeline.adapters.load_textual_inversion({"known": FIRST})
    with pytest.raises(kdrt.InvalidRequestError, match=re.escape(message)):
        sd.pipeline.adapters.load_textual_inversion(source, token)
    assert sd.pipeline.adapters.textual_inversions() == {"known": 3}


def test_damaged_and_harmful_files_are_refused(sd: TinyModel, tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.pt"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(kdrt.InvalidRequestError, match=name):
            sd.pipeline.adapters.load_textual_inversion(tmp_path / name, allow_pickle=True)
    torch.save({"x": Harmful()}, tmp_path / "harm.pt")
    with pytest.raises(kdrt.InvalidRequestError, match="cannot be read safely"):
        sd.pipeline.adapters.load_textual_inversion(tmp_path / "harm.pt", allow_pickle=True)
    assert not Harmful.ran


class Harmful:
    """A pickle that runs something when it is opened."""

    ran = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return run, ()


def run() -> None:
    Harmful.ran = True


def test_unknown_tokens_cannot_be_unloaded(sd: TinyModel) -> None:
    with pytest.raises(
        kdrt.InvalidRequestError, match="no text encoder 'nothing'; this model has text_"
    ):
        sd.pipeline.adapters.unload_textual_inversion(component="nothing")
    with pytest.raises(kdrt.InvalidRequestError, match="x9 is not loaded; loaded: nothing"):
        sd.pipeline.adapters.unload_textual_inversion("x9")
    sd.pipeline.adapters.unload_textual_inversion()


# the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub with one repository, ``some/cat``, that has a ``.bin`` file only; and its requests."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked: list[dict[str, Any]] = []
    path = saved(tmp_path / "hub", "diffusers .bin")

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, "filename": filename, **options})
        if repo_id == "some/away":
            raise LocalEntryNotFoundError("cannot reach the hub")
        if repo_id != "some/cat":
            raise ValueError("no such repository")
        if filename != path.name:
            raise EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_hub_id_is_downloaded(sd: TinyModel, hub: list[dict[str, Any]]) -> None:
    sd.pipeline.adapters.load_textual_inversion("some/cat@main", allow_pickle=True)
    assert [each["filename"] for each in hub] == [
        "learned_embeds.safetensors",
        "learned_embeds.bin",
    ]
    assert hub[0] == {
        "repo_id": "some/cat",
        "filename": "learned_embeds.safetensors",
        "revision": "main",
    }
    assert torch.equal(first_tokens(sd, "<cat>", 3), FIRST)


def test_what_the_hub_lacks(sd: TinyModel, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(
        kdrt.InvalidRequestError, match=r"some/cat has no learned_embeds\.safetensors;"
    ):
        sd.pipeline.adapters.load_textual_inversion("some/cat")
    assert len(hub) == 1
    with pytest.raises(kdrt.InvalidRequestError, match="hub cannot be reached"):
        sd.pipeline.adapters.load_textual_inversion("some/away")
    with pytest.raises(
        kdrt.InvalidRequestError, match="hub gives no 'other/cat': no such repository"
    ):
        sd.pipeline.adapters.load_textual_inversion("other/cat")


def test_what_the_hub_cannot_do_is_said(sd: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not in the cache is no file that the repository lacks."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for error, words in (
        (LocalEntryNotFoundError("not cached"), "the hub cannot be reached; connect"),
        (OSError(errno.ENOSPC, "No space left on device"), "is too full for 'some/cat'"),
    ):

        def download(error: Exception = error, **_: Any) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(kdrt.InvalidRequestError, match=words):
            sd.pipeline.adapters.load_textual_inversion("some/cat")


def test_without_the_hub_library(sd: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(kdrt.InvalidRequestError, match="pip install huggingface-hub"):
        sd.pipeline.adapters.load_textual_inversion("some/cat")


# diffusers' methods


def test_compat_has_one_text_encoder_for_sd(sd: TinyModel) -> None:
    pipe = Compat(sd)
    assert pipe.text_encoder.engine is sd.pipeline.engines["text_encoder"]
    assert not hasattr(pipe, "text_encoder_2")
    assert not hasattr(pipe, "tokenizer_2")


def test_compat_loads_for_the_encoder_it_is_told(sdxl: TinyModel) -> None:
    pipe = Compat(sdxl)
    pipe.load_textual_inversion(
        FIRST, token="x9", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
    )
    pipe.load_textual_inversion(SECOND, "x9", tokenizer=pipe.tokenizer_2)
    pipe.load_textual_inversion({"zeb": SECOND}, text_encoder="text_encoder_2")
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder") == {"x9": 3}
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder_2") == {"x9": 3, "zeb": 3}
    with pytest.raises(kdrt.InvalidRequestError, match="takes 6 in text_encoder"):
        pipe.load_textual_inversion(SECOND, "y9", text_encoder=pipe.text_encoder)
    with pytest.raises(kdrt.InvalidRequestError, match="those of this pipeline"):
        pipe.load_textual_inversion(SECOND, "y9", text_encoder=object())
    pipe.unload_textual_inversion(["x9", "x9_1", "x9_2"], text_encoder=pipe.text_encoder_2)
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder_2") == {"zeb": 3}
    assert sdxl.pipeline.adapters.textual_inversions("text_encoder") == {"x9": 3}
    with pytest.raises(ValueError, match="not loaded"):
        pipe.unload_textual_inversion("y9")
    pipe.unload_textual_inversion()
    assert sdxl.pipeline.adapters.textual_inversions() == {}


def test_compat_reads_pickles_unless_told_not_to(
    sd: TinyModel, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    pipe = Compat(sd)
    path = saved(tmp_path / "files", "a1111")
    with pytest.raises(kdrt.InvalidRequestError, match="is a pickle"):
        pipe.load_textual_inversion(path, use_safetensors=True)
    pipe.load_textual_inversion(path)
    pipe.load_textual_inversion("some/cat", "dog", hf_token="t", cache_dir=None, proxies=None)
    assert hub[-1] == {"repo_id": "some/cat", "filename": "learned_embeds.bin", "token": "t"}
    with pytest.raises(TypeError, match="no argument tokens"):
        pipe.load_textual_inversion(FIRST, tokens=["x"])


def test_compat_writes_out_tokens_and_that_changes_nothing(sd: TinyModel) -> None:
    pipe = Compat(sd)
    pipe.load_textual_inversion([{"x9": FIRST}, {"x90": FIRST[:1]}, {"zeb": FIRST[1:]}])
    prompts = ["red x9, zeb", "x90 x9", "red", "x9_1"]
    written = pipe.maybe_convert_prompt(prompts, pipe.tokenizer)
    assert written == ["red x9 x9_1 x9_2, zeb zeb_1", "x90 x9 x9_1 x9_2", "red", "x9_1"]
    assert pipe.maybe_convert_prompt(written) == written
    assert pipe.maybe_convert_prompt("zeb") == "zeb zeb_1"
    for prompt, out in zip(prompts, written, strict=True):
        assert torch.equal(embeddings(sd, prompt), embeddings(sd, out))
