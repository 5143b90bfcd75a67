"""Emphasis: its grammar, its chunks, and what it does to hidden states."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdrt
from kdrt.common.literals import WeightingMode
from kdrt.errors import InvalidRequestError
from kdrt.prompt import PromptEncoder, PromptTokenizer, Weighting
from kdrt.prompt.weighting import (
    Fragment,
    check_weights,
    emphasize,
    escape,
    has_emphasis,
    parse,
)
from tests.support.tiny_model import MAX_LENGTH, TinyModel, tiny_model

ROOM = MAX_LENGTH - 2
UP, DOWN = 1.1, 1 / 1.1

GRAMMAR = [
    # plain
    ("", [[]]),
    ("a cat", [[("a cat", 1)]]),
    ("a: cat", [[("a: cat", 1)]]),
    ("  a\ncat ", [[("  a\ncat ", 1)]]),
    # brackets
    ("(a)", [[("a", UP)]]),
    ("[a]", [[("a", DOWN)]]),
    ("a (b) c", [[("a ", 1), ("b", UP), (" c", 1)]]),
    ("((a))", [[("a", UP**2)]]),
    ("[[a]]", [[("a", DOWN**2)]]),
    ("([a])", [[("a", UP * DOWN)]]),
    ("(a [b] c)", [[("a ", UP), ("b", UP * DOWN), (" c", UP)]]),
    ("()", [[]]),
    ("([])a", [[("a", 1)]]),
    # numbers
    ("(a:1.5)", [[("a", 1.5)]]),
    ("(a : 1.5 )", [[("a ", 1.5)]]),
    ("(a:.5)(b:2.)(c:+3)", [[("a", 0.5), ("b", 2), ("c", 3)]]),
    ("(a:-1)", [[("a", -1)]]),
    ("(a:0)", [[("a", 0)]]),
    ("((a:1.5) b:2)", [[("a", 3), (" b", 2)]]),
    ("((a:1.5))", [[("a", 1.5 * UP)]]),
    ("[(a:2)]", [[("a", 2 * DOWN)]]),
    ("(a:1.5)(b:1.5)", [[("ab", 1.5)]]),
    ("(a (b:1.3) c:1.2)", [[("a ", 1.2), ("b", 1.3 * 1.2), (" c", 1.2)]]),
    # what is no number is text
    ("(a:b)", [[("a:b", UP)]]),
    ("(a:1.2.3)", [[("a:1.2.3", UP)]]),
    ("(a:1,5)", [[("a:1,5", UP)]]),
    ("(a:)", [[("a:", UP)]]),
    ("(a:1e3)", [[("a:1e3", UP)]]),
    ("[a:1.5]", [[("a:1.5", DOWN)]]),
    # unbalanced
    ("(a", [[("a", UP)]]),
    ("a (b (c", [[("a ", 1), ("b ", UP), ("c", UP**2)]]),
    ("[a (b", [[("a ", DOWN), ("b", UP * DOWN)]]),
    ("a) b", [[("a) b", 1)]]),
    ("a] b", [[("a] b", 1)]]),
    ("a:1.5) b", [[("a:1.5) b", 1)]]),
    ("(a] b)", [[("a] b", UP)]]),
    ("(a:1.5", [[("a:1.5", UP)]]),
    ("([a)]", [[("a", UP * DOWN)]]),
    # escapes
    (r"\(a\)", [[("(a)", 1)]]),
    (r"\[a\]", [[("[a]", 1)]]),
    (r"(\(a\):1.5)", [[("(a)", 1.5)]]),
    (r"a\\b", [[(r"a\b", 1)]]),
    (r"a\b", [[("ab", 1)]]),
    ("a\\", [[("a", 1)]]),
    (r"(a\:1.5)", [[("a", 1.5)]]),
    # BREAK
    ("a BREAK b", [[("a", 1)], [("b", 1)]]),
    ("a\nBREAK\nb", [[("a", 1)], [("b", 1)]]),
    ("BREAK", [[], []]),
    ("a BREAK", [[("a", 1)], []]),
    ("a BREAK BREAK b", [[("a", 1)], [], [("b", 1)]]),
    ("a BREAKFAST", [[("a BREAKFAST", 1)]]),
    ("a break b", [[("a break b", 1)]]),
    ("(a BREAK b:1.5)", [[("a", 1.5)], [("b", 1.5)]]),
    ("(a BREAK b", [[("a", UP)], [("b", UP)]]),
    # scheduling is text in brackets
    ("[a:b:0.5]", [[("a:b:0.5", DOWN)]]),
    ("[a|b]", [[("a|b", DOWN)]]),
    ("[a::0.5]", [[("a::0.5", DOWN)]]),
    ("<lora:x:0.8>", [[("<lora:x:0.8>", 1)]]),
    ("ünï (日本:1.2) ☂", [[("ünï ", 1), ("日本", 1.2), (" ☂", 1)]]),
]


@pytest.mark.parametrize(("prompt", "expected"), GRAMMAR, ids=[row[0] for row in GRAMMAR])
def test_grammar(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    sections = parse(prompt)
    assert [[f.text for f in s] for s in sections] == [[text for text, _ in s] for s in expected]
    assert [f.weight for s in sections for f in s] == pytest.approx(
        [weight for s in expected for _, weight in s]
    )


prompts = st.text(st.sampled_from("()[]:\\,.+-019 abBREAK\n日"), max_size=40) | st.text(max_size=40)


@given(prompts)
def test_parsing_never_fails_and_keeps_to_its_form(prompt: str) -> None:
    for section in parse(prompt):
        assert all(fragment.text for fragment in section)
        weights = [fragment.weight for fragment in section]
        assert all(a != b for a, b in itertools.pairwise(weights))


@given(st.text(max_size=40).filter(lambda text: not set(text) & set("()[]\\") and text))
def test_text_without_special_characters_is_itself(text: str) -> None:
    if "BREAK" not in text:
        assert parse(text) == ((Fragment(text),),)
        assert not has_emphasis(text)


@given(prompts.filter(lambda text: text and "BREAK" not in text))
def test_escaped_text_is_itself(text: str) -> None:
    assert parse(escape(text)) == ((Fragment(text),),)


@given(st.lists(st.sampled_from([0.5, 0.9, 1.3, 2.0, "(", "["]), max_size=8))
def test_weights_multiply(weights: list[float | str]) -> None:
    prompt, expected = "a", 1.0
    for weight in weights:
        if isinstance(weight, str):
            prompt = f"({prompt})" if weight == "(" else f"[{prompt}]"
            expected *= UP if weight == "(" else DOWN
        else:
            prompt, expected = f"({prompt}:{weight})", expected * weight
    ((fragment,),) = parse(prompt)
    assert fragment.text == "a"
    assert fragment.weight == pytest.approx(expected)


@pytest.mark.parametrize("prompt", ["(a)", "[a", r"\(a\)", "a BREAK b", "(a:1)"])
def test_what_a_web_ui_would_read_differently(prompt: str) -> None:
    assert has_emphasis(prompt)
    assert not has_emphasis("a: b, c) d]")


def product_of_brackets(prompt: str) -> list[tuple[str, float]]:
    """The same by its definition: every bracket multiplies all that stands in it, when it ends."""
    found: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for character in [*prompt, *")" * len(prompt), *"]" * len(prompt)]:
        bracket = {")": "(", "]": "["}.get(character)
        if character in opened:
            opened[character].append(len(found))
        elif bracket is None:
            found.append((character, 1.0))
        elif opened[bracket]:
            start = opened[bracket].pop()
            factor = UP if bracket == "(" else DOWN
            found[start:] = [(text, weight * factor) for text, weight in found[start:]]
    return found


@given(st.text(st.sampled_from("()[]ab"), max_size=30))
def test_brackets_multiply_what_stands_in_them(prompt: str) -> None:
    """Also where round and square ones cross."""
    bare = escape_closing(prompt)
    expected = product_of_brackets(bare)
    found = [
        (text, fragment.weight)
        for (section,) in [parse(bare)]
        for fragment in section
        for text in fragment.text
    ]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def escape_closing(prompt: str) -> str:
    """Without the brackets that close nothing, which are text."""
    kept, opened = "", {"(": 0, "[": 0}
    for character in prompt:
        bracket = {")": "(", "]": "["}.get(character)
        if bracket and not opened[bracket]:
            continue
        opened[bracket or character] = opened.get(bracket or character, 0) + (-1 if bracket else 1)
        kept += character
    return kept


PARTS = [
    *("(", ")", "[", "]", "\\", ":", " ", "\n", "1", ".", "a", "(a", "(a)", "([a)", ": 1", ":1."),
    *(": ", " BREAK", "BREAK", "(a:1.1", "(a:1.1)", ":1:", "a "),
]


@pytest.mark.parametrize("part", PARTS)
def test_long_prompts_are_read_at_once(part: str) -> None:
    """A step more than linear would take minutes here."""
    for start in ("", "(a:"):
        prompt = start + part * (50_000 // len(part))
        assert (
            sum(len(fragment.text) for section in parse(prompt) for fragment in section) <= 50_003
        )


def test_weights_have_a_range() -> None:
    check_weights("a prompt", "(a:100) (b:-100) (((c)))")
    with pytest.raises(InvalidRequestError, match=r"a prompt gives 'deep' the weight 117.39"):
        check_weights("a prompt", "(" * 50 + "deep" + ")" * 50 + " a")
    with pytest.raises(
        InvalidRequestError, match=r"gives 'a' the weight -100.001, and weights must be"
    ):
        check_weights("a prompt", "(a:-100.001)")


# chunks


def test_chunks_have_a_limit(tokenizer: PromptTokenizer) -> None:
    assert len(tokenizer.chunks("a BREAK " * 128, 20)) == 128
    with pytest.raises(
        InvalidRequestError, match=r"is read in 129 chunks.*at most 128 are allowed"
    ):
        tokenizer.chunks("a BREAK " * 129, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_model(tmp_path_factory.mktemp("sd"), "sd")


@pytest.fixture(scope="module")
def tokenizer(model: TinyModel) -> PromptTokenizer:
    return PromptTokenizer(model.pipeline.bundle, model.manifest.text_encoders[0])


def words(tokenizer: PromptTokenizer, prompt: str, comma_backtrack: int = 20) -> list[list[int]]:
    """The ids of every chunk between its marks."""
    chunks = tokenizer.chunks(prompt, comma_backtrack)
    assert all(len(chunk.ids) == len(chunk.weights) == MAX_LENGTH for chunk in chunks)
    return [list(chunk.ids[1 : chunk.eos_index]) for chunk in chunks]


def test_plain_text_that_fits_is_one_chunk_of_the_same_tokens(tokenizer: PromptTokenizer) -> None:
    for prompt in ("", "a red circle", "a " * ROOM):
        (chunk,) = tokenizer.chunks(prompt, 20)
        assert chunk == tokenizer(prompt)
        assert set(chunk.weights) == {1.0}


def test_chunks_hold_all_that_does_not_fit(tokenizer: PromptTokenizer) -> None:
    assert [len(ids) for ids in words(tokenizer, "red " * 23)] == [10, 10, 3]
    assert [len(ids) for ids in words(tokenizer, "red " * 20)] == [10, 10]


@pytest.mark.parametrize(
    ("prompt", "backtrack", "lengths"),
    [
        ("red " * 7 + "," + " blue" * 4, 20, [8, 4]),  # two words move on behind the comma
        ("red " * 7 + "," + " blue" * 4, 3, [8, 4]),
        ("red " * 7 + "," + " blue" * 4, 2, [10, 2]),  # too far back
        ("red " * 7 + "," + " blue" * 4, 0, [10, 2]),
        ("red " * 7 + "," + " blue" * 2, 20, [10]),  # full, and nothing follows
        ("red " * 9 + ", blue", 20, [10, 1]),
        ("red " * 10 + ", blue", 20, [10, 2]),  # the comma itself does not fit
        ("red , " * 2 + " blue" * 8, 20, [4, 8]),
        ("red , " * 2 + " blue" * 17, 20, [4, 10, 7]),  # each comma works once
    ],
)
def test_a_comma_ends_a_chunk(
    tokenizer: PromptTokenizer, prompt: str, backtrack: int, lengths: list[int]
) -> None:
    chunks = words(tokenizer, prompt, backtrack)
    assert [len(ids) for ids in chunks] == lengths


def test_weights_stay_with_their_tokens(tokenizer: PromptTokenizer) -> None:
    first, second = tokenizer.chunks("red " * 7 + ", blue (blue blue:2) blue", 20)
    assert first.weights == (1.0,) * MAX_LENGTH
    assert second.weights[:6] == (1, 1, 2, 2, 1, 1)


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("red BREAK blue blue", [1, 2]),
        ("BREAK red", [0, 1]),
        ("red BREAK", [1]),
        ("BREAK", [0]),
        ("red BREAK BREAK blue", [1, 0, 1]),
        ("red " * 11 + "BREAK blue", [10, 1, 1]),
        ("red " * 10 + "BREAK blue", [10, 1]),
    ],
)
def test_break_starts_a_chunk(tokenizer: PromptTokenizer, prompt: str, lengths: list[int]) -> None:
    assert [len(ids) for ids in words(tokenizer, prompt)] == lengths


@given(st.lists(st.sampled_from(["red", ",", "(blue)", "circle", "[a", "!"]), max_size=45))
def test_nothing_is_lost_in_chunks(tokenizer: PromptTokenizer, parts: list[str]) -> None:
    prompt = " ".join(parts)
    chunks = words(tokenizer, prompt)
    alone = [words(tokenizer, escape(f.text)) for section in parse(prompt) for f in section]
    assert [i for ids in chunks for i in ids] == [i for text in alone for ids in text for i in ids]
    assert all(ids or len(chunks) == 1 for ids in chunks)


# hidden states


def test_the_mean_is_restored() -> None:
    hidden = torch.randn(7, 5) + 0.3
    weights = (1.0, 1.5, 1.5, 0.2, 1.0, -1.0, 1.0)
    multiplied = hidden * torch.tensor(weights)[:, None]
    plain = emphasize(hidden, weights, "a1111_no_norm")
    torch.testing.assert_close(plain, multiplied)
    restored = emphasize(hidden, weights, "a1111")
    torch.testing.assert_close(restored.mean(), hidden.mean())
    torch.testing.assert_close(restored, multiplied * hidden.mean() / multiplied.mean())


def test_without_emphasis_nothing_changes_by_a_bit() -> None:
    hidden = torch.randn(7, 5)
    assert emphasize(hidden, (1.0,) * 7, "a1111") is hidden
    assert emphasize(hidden, (2.0,) * 7, "none") is hidden


def test_half_precision_and_a_mean_of_zero() -> None:
    hidden = torch.tensor([[1.0, -1.0], [3.0, -3.0]], dtype=torch.float16)
    for mode in ("a1111", "a1111_no_norm"):
        result = emphasize(hidden, (1.0, 2.0), mode)
        assert result.dtype == torch.float16
        assert result.tolist() == [[1, -1], [6, -6]]


# the whole encoder


def encoder(model: TinyModel) -> PromptEncoder:
    return PromptEncoder(model.pipeline.bundle, model.pipeline.engines)


def test_chunks_are_encoded_alone_and_joined(sdxl: TinyModel) -> None:
    prompts = encoder(sdxl)
    weighting = Weighting("a1111_no_norm")
    both, _ = prompts.encode([["red BREAK (blue:1.5)"]] * 2, weighting=weighting)
    first, _ = prompts.encode([["red"]] * 2)
    second, _ = prompts.encode([["(blue:1.5)"]] * 2, weighting=weighting)
    expected = torch.cat([first.encoder_hidden_states, second.encoder_hidden_states], dim=1)
    assert torch.equal(both.encoder_hidden_states, expected)
    assert both.text_embeds is not None
    assert first.text_embeds is not None
    assert torch.equal(both.text_embeds, first.text_embeds)


def test_both_encoders_get_the_weights(sdxl: TinyModel) -> None:
    weighting = Weighting("a1111_no_norm")
    told, _ = encoder(sdxl).encode([["red (blue:1.5) red"]] * 2, weighting=weighting)
    plain, _ = encoder(sdxl).encode([["red blue red"]] * 2)
    factors = told.encoder_hidden_states[0] / plain.encoder_hidden_states[0]
    expected = torch.ones(MAX_LENGTH, 1)
    expected[2] = 1.5
    torch.testing.assert_close(factors, expected.expand_as(factors))


def test_shorter_prompts_are_followed_by_empty_ones(sdxl: TinyModel) -> None:
    prompts, weighting = encoder(sdxl), Weighting("a1111")
    texts = ["red", "red " * (2 * ROOM + 1)]
    told, truncations = prompts.encode([texts, ["red", "blue"]], 1, weighting)
    assert told.encoder_hidden_states.shape[:2] == (2, 3 * MAX_LENGTH)
    assert truncations == ()
    empty, _ = prompts.encode([[""], [""]], 1)
    short = told.encoder_hidden_states[0].unflatten(0, (3, MAX_LENGTH))
    for chunk in short[1:]:
        assert torch.equal(chunk, empty.encoder_hidden_states[0])


def test_modes_are_remembered_apart(sd: TinyModel) -> None:
    prompts = encoder(sd)
    modes: list[WeightingMode] = ["none", "a1111", "a1111_no_norm"]
    told = [prompts.encode([["(red:1.5)"]], weighting=Weighting(m))[0] for m in modes]
    again = [prompts.encode([["(red:1.5)"]], weighting=Weighting(m))[0] for m in modes]
    assert len(sd.text_encoders[0].calls) == 3
    for n, one in enumerate(told):
        assert torch.equal(one.encoder_hidden_states, again[n].encoder_hidden_states)
        for other in told[:n]:
            assert not torch.equal(one.encoder_hidden_states, other.encoder_hidden_states)


# the pipeline


def test_a_long_prompt_is_reported_not_cut(sdxl: TinyModel) -> None:
    long = "red " * (2 * ROOM + 1)
    with pytest.warns(kdrt.TruncationWarning):
        assert sdxl.pipeline(long, steps=1, seed=0).chunks == 1
    for negative in (None, "blurry"):
        result = sdxl.pipeline(long, negative, steps=1, seed=0, prompt_weighting="a1111")
        assert result.chunks == 3
        assert result.truncations == ()
        assert sdxl.unet.calls[-1]["encoder_hidden_states"].shape[:2] == (2, 3 * MAX_LENGTH)


def test_a_long_negative_prompt_lengthens_the_positive_one(sdxl: TinyModel) -> None:
    sdxl.pipeline("red", "a BREAK b", steps=1, seed=0, clip_skip=1, prompt_weighting="a1111")
    sdxl.pipeline("red BREAK", "", steps=1, seed=0, clip_skip=1, prompt_weighting="a1111")
    padded, plain = (call["encoder_hidden_states"][1] for call in sdxl.unet.calls)
    assert torch.equal(padded[:MAX_LENGTH], plain)
    empty = sdxl.pipeline.prompt_encoder.encode([[""], [""]], 1)[0].encoder_hidden_states[0]
    assert torch.equal(padded[MAX_LENGTH:], empty)


def test_parentheses_are_text_unless_asked(sd: TinyModel) -> None:
    assert sd.pipeline("(red)", steps=1, seed=0).infotexts[0].extras == (("Emphasis", "None"),)
    assert sd.pipeline("red", steps=1, seed=0).infotexts[0].extras == ()

    def extras(mode: WeightingMode, **options: Any) -> tuple[tuple[str, object], ...]:
        result = sd.pipeline("(red)", steps=1, seed=0, prompt_weighting=mode, **options)
        return result.infotexts[0].extras

    assert extras("a1111") == (("Emphasis", "Original"),)
    assert extras("a1111_no_norm") == (("Emphasis", "No norm"),)
    assert extras("a1111", comma_backtrack=5)[1:] == (("Comma backtrack", 5),)


@pytest.mark.parametrize(
    "wrong", [{"prompt_weighting": "magic"}, {"comma_backtrack": -1}, {"comma_backtrack": 0.5}]
)
def test_unknown_weightings_are_refused(sd: TinyModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=next(iter(wrong))):
        sd.pipeline("red", steps=1, **wrong)


def test_huge_weights_do_not_fail_to_parse() -> None:
    ((fragment,),) = parse(f"(a:{'9' * 400})")
    assert fragment.weight == math.inf
