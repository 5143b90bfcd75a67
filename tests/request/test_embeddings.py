"""Embeddings in place of prompts: out of one call and into the next."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

import kdrt
from kdrt.images.infotext import parse_infotext
from tests.support.tiny_model import MAX_LENGTH, POOLED, WIDTHS, TinyModel

PROMPTS = ["a red circle", "a green square"]
TENSORS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def seen(model: TinyModel) -> dict[str, torch.Tensor]:
    """What the UNet was last told."""
    names = ("encoder_hidden_states", "text_embeds")
    return {name: model.unet.calls[-1][name] for name in names if name in model.unet.calls[-1]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def tensors(positive: kdrt.Conditioning, negative: kdrt.Conditioning) -> dict[str, torch.Tensor]:
    """As diffusers names them; SD has only the first two."""
    values = (
        positive.encoder_hidden_states,
        negative.encoder_hidden_states,
        positive.text_embeds,
        negative.text_embeds,
    )
    return {k: v for k, v in zip(TENSORS, values, strict=True) if v is not None}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("negative", [None, "", "blurry", ["blurry", "dark"]])
def test_embeddings_do_what_their_prompts_do(
    request: pytest.FixtureRequest, family: str, negative: str | list[str] | None
) -> None:
    model: TinyModel = request.getfixturevalue(family)
    options: dict[str, Any] = {"steps": 1, "seed": 0, "output_type": "np"}
    expected = model.pipeline(PROMPTS, negative, clip_skip=1, images_per_prompt=2, **options)
    told = seen(model)
    both = model.pipeline.encode_prompt(PROMPTS, negative, clip_skip=1)
    assert both[0].encoder_hidden_states.shape[:2] == (2, MAX_LENGTH)
    for arguments in (
        tensors(*both),
        {"prompt_embeds": both[0], "negative_prompt_embeds": both[1]},
        {"prompt_embeds": both[0], "negative_prompt": negative},
        {"prompt": PROMPTS, "clip_skip": 1, "negative_prompt_embeds": both[1]},
    ):
        result = model.pipeline(images_per_prompt=2, **arguments, **options)
        assert same(seen(model), told)
        assert (result.images == expected.images).all()


def test_images_per_prompt_repeats_each(sdxl: TinyModel) -> None:
    one, _ = sdxl.pipeline.encode_prompt(PROMPTS)
    two, negative = sdxl.pipeline.encode_prompt(PROMPTS, "blurry", images_per_prompt=2)
    assert one.text_embeds is not None
    assert torch.equal(two.encoder_hidden_states, one.encoder_hidden_states[[0, 0, 1, 1]])
    assert two.text_embeds is not None
    assert torch.equal(two.text_embeds, one.text_embeds[[0, 0, 1, 1]])
    assert len(negative.encoder_hidden_states) == 4


def test_second_prompts_are_encoded_by_the_second_encoder(sdxl: TinyModel) -> None:
    both = sdxl.pipeline.encode_prompt("a", "c", prompt_2="b", negative_prompt_2="d")
    sdxl.pipeline("a", "c", prompt_2="b", negative_prompt_2="d", steps=1, seed=0)
    hidden = torch.cat([both[1].encoder_hidden_states, both[0].encoder_hidden_states])
    assert torch.equal(seen(sdxl)["encoder_hidden_states"], hidden)


def test_positive_and_negative_are_equally_long(sdxl: TinyModel) -> None:
    for prompts in (("a", "b BREAK c"), ("b BREAK c", "a"), ("b BREAK c", None)):
        positive, negative = sdxl.pipeline.encode_prompt(*prompts, prompt_weighting="a1111")
        assert positive.length == negative.length == 2 * MAX_LENGTH
        result = sdxl.pipeline(
            prompt_embeds=positive, negative_prompt_embeds=negative, steps=1, seed=0
        )
        assert result.chunks == 2


@pytest.mark.parametrize("which", ["positive", "negative"])
def test_the_shorter_half_is_lengthened(sdxl: TinyModel, which: str) -> None:
    long, _ = sdxl.pipeline.encode_prompt("b BREAK c", prompt_weighting="a1111")
    if which == "positive":
        sdxl.pipeline(prompt_embeds=long, negative_prompt="a", steps=1, seed=0)
    else:
        sdxl.pipeline("a", negative_prompt_embeds=long, steps=1, seed=0)
    halves = seen(sdxl)["encoder_hidden_states"].chunk(2)
    short = halves[0 if which == "positive" else 1][0]
    empty = sdxl.pipeline.encode_prompt("a", "")[1].encoder_hidden_states[0]
    assert torch.equal(short[MAX_LENGTH:], empty)


def test_a_changed_embedding_changes_the_image(sdxl: TinyModel) -> None:
    positive, _ = sdxl.pipeline.encode_prompt("a")
    changed = kdrt.Conditioning(positive.encoder_hidden_states * 2, positive.text_embeds)
    sdxl.pipeline(prompt_embeds=changed, steps=1, seed=0)
    told = seen(sdxl)["encoder_hidden_states"][1:]
    assert torch.equal(told, positive.encoder_hidden_states * 2)
    # What is remembered is not what was handed out.
    positive.encoder_hidden_states.zero_()
    assert sdxl.pipeline.encode_prompt("a")[0].encoder_hidden_states.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_any_floating_point_type_will_do(sdxl: TinyModel, dtype: torch.dtype) -> None:
    positive, _ = sdxl.pipeline.encode_prompt("a")
    assert positive.text_embeds is not None
    cast = kdrt.Conditioning(
        positive.encoder_hidden_states.to(dtype), positive.text_embeds.to(dtype)
    )
    sdxl.pipeline(prompt_embeds=cast, negative_prompt="b", steps=1, seed=0)
    told = seen(sdxl)["encoder_hidden_states"][1:]
    assert torch.equal(told, positive.encoder_hidden_states.to(dtype).float())


def test_an_image_says_that_its_embeddings_were_given(sdxl: TinyModel) -> None:
    both = sdxl.pipeline.encode_prompt(PROMPTS, "blurry")
    result = sdxl.pipeline(prompt_embeds=both[0], negative_prompt_embeds=both[1], steps=1, seed=0)
    settings = parse_infotext(str(result.infotexts[1]))
    assert settings["Prompt"] == ""
    assert "Negative prompt" not in settings
    assert settings["Prompt embeddings"] == settings["Negative embeddings"] == "given"


def test_too_long_prompts_are_warned_of_where_they_are_encoded(sdxl: TinyModel) -> None:
    with pytest.warns(kdrt.TruncationWarning) as caught:
        both = sdxl.pipeline.encode_prompt("a red circle " * 10)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdxl.pipeline(prompt_embeds=both[0], steps=1, seed=0)


D = sum(WIDTHS)
HIDDEN, POOL = torch.zeros(2, MAX_LENGTH, D), torch.zeros(2, POOLED)
GIVEN = {"prompt_embeds": HIDDEN, "pooled_prompt_embeds": POOL}
NEGATIVE = {"negative_prompt_embeds": HIDDEN, "negative_pooled_prompt_embeds": POOL}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no prompt; give a prompt or prompt_embeds"),
        ({"prompt": "a", **GIVEN}, "either prompt or prompt_embeds, not both"),
        ({"prompt_2": "a", **GIVEN}, "either prompt_2 or prompt_embeds"),
        (
            {"prompt": PROMPTS, "negative_prompt": "a", **NEGATIVE},
            "either negative_prompt or negative_prompt_embeds",
        ),
        ({"prompt_embeds": HIDDEN}, "need pooled_prompt_embeds together with prompt_embeds"),
        ({"prompt": "a", "pooled_prompt_embeds": POOL}, "without prompt_embeds"),
        (
            {"prompt": PROMPTS, "negative_prompt_embeds": HIDDEN},
            "need negative_pooled_prompt_embeds",
        ),
        ({**GIVEN, "prompt_embeds": HIDDEN[..., 1:]}, f"shape [B, L, {D}], not"),
        ({**GIVEN, "prompt_embeds": HIDDEN[0]}, f"shape [B, L, {D}], not"),
        ({**GIVEN, "prompt_embeds": HIDDEN[:, :0]}, f"shape [B, L, {D}], not"),
        ({**GIVEN, "prompt_embeds": HIDDEN.long()}, "floating-point"),
        ({**GIVEN, "prompt_embeds": [[1.0]]}, "not list"),
        ({**GIVEN, "prompt_embeds": HIDDEN / 0}, "prompt_embeds must be finite"),
        ({**GIVEN, "pooled_prompt_embeds": POOL[:1]}, f"shape [2, {POOLED}], not"),
        (
            {**GIVEN, **NEGATIVE, "negative_prompt_embeds": torch.zeros(2, 5, D)},
            f"prompt_embeds are {MAX_LENGTH} tokens long and negative_prompt_embeds 5",
        ),
        (
            {"prompt": "a", **NEGATIVE},
            "negative_prompt_embeds holds 2 prompts, and there are 1",
        ),
        (
            {**GIVEN, "prompt_embeds": torch.zeros(2, 5, D), "negative_prompt": "a"},
            f"whole number of chunks of {MAX_LENGTH}",
        ),
        (
            {"prompt_embeds": kdrt.Conditioning(HIDDEN, POOL), "pooled_prompt_embeds": POOL},
            "already holds pooled_prompt_embeds",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    sdxl: TinyModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=re.escape(message)):
        sdxl.pipeline(steps=1, seed=0, **arguments)
    assert not sdxl.unet.calls


def test_sd_has_no_pooled_embeddings(sd: TinyModel) -> None:
    hidden = torch.zeros(1, MAX_LENGTH, WIDTHS[0])
    with pytest.raises(
        kdrt.InvalidRequestError, match="only SDXL models take pooled_prompt_embeds"
    ):
        sd.pipeline(prompt_embeds=hidden, pooled_prompt_embeds=POOL[:1], steps=1)
