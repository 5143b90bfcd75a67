"""Tokens, truncation, hidden states, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdrt.bundle import Bundle
from kdrt.errors import BundleError, InvalidRequestError
from kdrt.prompt import PromptEncoder, PromptTokenizer, Truncation
from kdrt.prompt.tokens import pooled_index
from tests.support.tiny_model import (
    BOS,
    EOS,
    LAYERS,
    MAX_LENGTH,
    WIDTHS,
    TinyModel,
    clip_like_tokenizer,
    tiny_model,
)

PROMPTS = [
    "a red circle",
    "",
    "  A  RED\tcircle,\nand  2 Yellow stars!! ",
    "it's a café — naïve 日本 ☂",
    "a red circle on a blue background, a large green square and 20 yellow stars",
    f"a red {EOS} circle",
    "!" * 40,
]


def encoder(model: TinyModel) -> PromptEncoder:
    return PromptEncoder(model.pipeline.bundle, model.pipeline.engines)


def tokenizer(model: TinyModel, index: int = 0) -> PromptTokenizer:
    return PromptTokenizer(model.pipeline.bundle, model.manifest.text_encoders[index])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(sd: TinyModel, tmp_path: Path, prompt: str) -> None:
    import json

    from transformers import CLIPTokenizer

    model = json.loads(clip_like_tokenizer().to_str())["model"]
    theirs = CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
    )
    facts = sd.manifest.text_encoders[0]
    theirs.save_pretrained(tmp_path / "theirs")
    bundle = Bundle(tmp_path, sd.manifest)
    ours = PromptTokenizer(bundle, facts.model_copy(update={"tokenizer": "theirs"}))(prompt)

    expected = theirs(prompt, padding="max_length", truncation=True, max_length=MAX_LENGTH)
    assert list(ours.ids) == expected.input_ids
    assert ours.eos_index == expected.input_ids.index(facts.eos)


def test_padding_is_the_facts(sdxl: TinyModel) -> None:
    facts = sdxl.manifest.text_encoders[1]
    tokens = tokenizer(sdxl, 1)("red")
    assert tokens.ids == (facts.bos, tokens.ids[1], facts.eos, *[facts.pad] * (MAX_LENGTH - 3))
    assert facts.pad != facts.eos
    assert tokens.eos_index == 2


def test_truncation_says_what_was_dropped(sd: TinyModel) -> None:
    fits = "a red circle on a blue background , a large"
    tokens = tokenizer(sd)(fits)
    assert tokens.truncation is None
    assert tokens.eos_index == MAX_LENGTH - 1

    tokens = tokenizer(sd)(fits + " Green  SQUARE")
    assert tokens.truncation == Truncation(fits + " Green  SQUARE", 10, "Green  SQUARE")
    assert tokens.ids[-1] == sd.manifest.text_encoders[0].eos
    assert "Green  SQUARE" in str(tokens.truncation)


def test_a_prompt_in_both_encoders_is_reported_once(sdxl: TinyModel) -> None:
    long = "a red circle " * 10
    _, truncations = encoder(sdxl).encode([[long, "a"], [long, "a"]])
    assert [t.prompt for t in truncations] == [long]
    _, again = encoder(sdxl).encode([[long], [long]])
    assert again == truncations


def test_encoders_are_joined_and_the_last_one_pools(sdxl: TinyModel) -> None:
    told, _ = encoder(sdxl).encode([["a red circle"], ["a star"]])
    first, second = sdxl.text_encoders
    # The tiny encoder's n-th hidden state is (n + 1)·x + n/10, and layer -2 is the third of four.
    expected = torch.cat(
        [m.calls[0]["inputs_embeds"] * LAYERS + 0.1 * (LAYERS - 1) for m in (first, second)], -1
    )
    assert told.encoder_hidden_states.shape == (1, MAX_LENGTH, sum(WIDTHS))
    torch.testing.assert_close(told.encoder_hidden_states, expected)
    eos = int(second.calls[0]["eos_index"])
    assert told.text_embeds is not None
    last = second.calls[0]["inputs_embeds"][0, eos] * (LAYERS + 1) + 0.1 * LAYERS
    torch.testing.assert_close(told.text_embeds[0], last[: told.text_embeds.shape[1]])


@pytest.mark.parametrize(("family", "layer"), [("sd", -1), ("sdxl", -2)])
@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_counts_from_the_usual_layer(
    request: pytest.FixtureRequest, family: str, layer: int, clip_skip: int
) -> None:
    model: TinyModel = request.getfixturevalue(family)
    prompts = [["a red circle"]] * len(model.text_encoders)
    told, _ = encoder(model).encode(prompts, clip_skip)
    n = LAYERS + 1 + layer - clip_skip
    given = model.text_encoders[0].calls[0]["inputs_embeds"]
    expected = given * (n + 1) + 0.1 * n
    torch.testing.assert_close(told.encoder_hidden_states[..., : WIDTHS[0]], expected)


def test_clip_skip_beyond_the_encoder_is_refused(sd: TinyModel) -> None:
    with pytest.raises(InvalidRequestError, match="clip_skip must be from 0 to 3"):
        encoder(sd).encode([["a"]], 4)


def test_embeddings_come_from_the_table(sd: TinyModel) -> None:

    encoder(sd).encode([["a red circle"]])
    table = load_file(sd.pipeline.bundle.file(sd.manifest.text_encoders[0].token_embedding))
    ids = torch.tensor(tokenizer(sd)("a red circle").ids)
    assert torch.equal(sd.text_encoders[0].calls[0]["inputs_embeds"][0], table["weight"][ids])


def test_repeated_prompts_cost_nothing(sd: TinyModel) -> None:
    prompts = encoder(sd)
    first, _ = prompts.encode([["a", "b", "a"]])
    assert len(sd.text_encoders[0].calls) == 2
    again, _ = prompts.encode([["a"]])
    assert len(sd.text_encoders[0].calls) == 2
    assert torch.equal(first.encoder_hidden_states[:1], again.encoder_hidden_states)
    prompts.encode([["a"]], clip_skip=1)
    assert len(sd.text_encoders[0].calls) == 3


def test_together_is_the_same_as_one_by_one(sdxl: TinyModel) -> None:
    prompts = encoder(sdxl)
    texts = ["a red circle", "x9 star", "a red circle " * 10]
    for each in prompts.encoders:
        each.learned.add("x9", torch.randn(2, each.facts.hidden_size))
        each.relearn()
    for each, recorder in zip(prompts.encoders, sdxl.text_encoders, strict=True):
        before = len(recorder.calls)
        hidden, pooled, truncations = each.encode_together(texts, 1)
        assert len(recorder.calls) == before + 1
        alone = [each.encode(text, 1) for text in texts]
        assert torch.equal(hidden, torch.stack([one.hidden for one in alone]))
        assert torch.equal(pooled, torch.stack([one.pooled for one in alone]))
        assert truncations == [alone[2].truncation]


def test_another_engine_encodes_anew(sdxl: TinyModel) -> None:
    prompts, other = encoder(sdxl), tiny_model(sdxl.pipeline.bundle.path, "sdxl")
    before, _ = prompts.encode([["a", "b"]] * 2)
    name = sdxl.manifest.text_encoders[1].component
    network: Any = other.text_encoders[1].network
    other.text_encoders[1].network = lambda **inputs: tuple(2 * o for o in network(**inputs))
    prompts.use({name: other.pipeline.engines[name]})
    after, _ = prompts.encode([["a", "b"]] * 2)
    assert [len(m.calls) for m in sdxl.text_encoders] == [2, 2]
    assert [len(m.calls) for m in other.text_encoders] == [0, 2]
    first, second = after.encoder_hidden_states.split(WIDTHS, dim=-1)
    assert torch.equal(first, before.encoder_hidden_states[..., : WIDTHS[0]])
    assert torch.equal(second, 2 * before.encoder_hidden_states[..., WIDTHS[0] :])
    assert torch.equal(after.one(1).encoder_hidden_states, after.encoder_hidden_states[1:])
    assert after.text_embeds is not None
    one = after.one(0).text_embeds
    assert one is not None
    assert torch.equal(one, after.text_embeds[:1])


def test_damaged_files_are_bundle_errors(sd: TinyModel) -> None:
    facts = sd.manifest.text_encoders[0]
    sd.pipeline.bundle.file(facts.token_embedding).write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="token embeddings"):
        encoder(sd)
    (sd.pipeline.bundle.file(facts.tokenizer) / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        encoder(sd)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table[:5], "there are 5 token embeddings"),
        (lambda table: table[:, :-1].contiguous(), "no table of token embeddings of width"),
        (lambda table: table[0], "no table of token embeddings"),
        (lambda table: table.to(torch.int32), "in int32"),
        (lambda table: table * torch.inf, "not finite"),
    ],
)
def test_tables_that_do_not_fit_are_bundle_errors(
    sd: TinyModel, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    path = sd.pipeline.bundle.file(sd.manifest.text_encoders[0].token_embedding)
    save_file({"weight": change(load_file(path)["weight"])}, path)
    with pytest.raises(BundleError, match=words):
        encoder(sd)


@pytest.mark.parametrize(
    ("token", "index"),
    [(7, 2), (5, 1), (99, 0), (None, 2)],
    ids=["one", "other", "absent", "old"],
)
def test_where_the_encoder_pools(token: int | None, index: int) -> None:
    assert pooled_index([3, 5, 7, 7, 5], token) == index
