"""Hints for prompts that were written for another program."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdrt
from kdrt.prompt.hints import SYNTAX_MARK, syntax_hints
from tests.support.tiny_model import TinyModel


@pytest.mark.parametrize(
    ("prompt", "example", "advice"),
    [
        ("a (red:1.3) circle", "(red:1.3)", "--weighting a1111"),
        ("a (red circle:0.8), blue", "(red circle:0.8)", "--weighting a1111"),
        ("a ((red)) circle", "((red))", "--weighting a1111"),
        ("a [red] circle", "[red]", "--weighting a1111"),
        ("a circle BREAK a star", "BREAK", "--weighting a1111"),
        ("a circle,\nBREAK\na star", "BREAK", "--weighting a1111"),
        ("a [red:blue:0.5] circle", "[red:blue:0.5]", "cannot change from step to step"),
        ("a [red|blue] circle", "[red|blue]", "cannot change from step to step"),
        ("a circle <lora:style:0.8>", "<lora:style:0.8>", "--lora FILE:SCALE"),
        ("a circle <hypernet:style:1>", "<hypernet:style:1>", "no hypernetworks"),
        ("bad, embedding:EasyNegative", "embedding:EasyNegative", "load_textual_inversion"),
        ("a __color__ circle", "__color__", "--prompts-file"),
        ("a {red|blue} circle", "{red|blue}", "--prompts-file"),
    ],
)
def test_syntax_of_other_programs_is_noticed(prompt: str, example: str, advice: str) -> None:
    assert SYNTAX_MARK.search(prompt)
    (hint,) = syntax_hints([prompt])
    assert str(hint).startswith(f"'{example}' is read as plain text: ")
    assert advice in hint.advice


@pytest.mark.parametrize(
    "prompt",
    [
        "a portrait (oil on canvas)",
        "a film still (16:9)",
        "a church (John 3:16)",
        "a clock (12:30)",
        "a lens (f:1.8, 50mm)",
        "a film (2001: a space odyssey)",
        "a cat (:3)",
        r"a cat \(animal\), \[sic\]",
        "PRISON BREAK poster",
        "a BREAK DANCE battle",
        "snake__case__name",
        "{red}",
        "1 < 2 > 0",
        "",
    ],
)
def test_ordinary_text_is_left_alone(prompt: str) -> None:
    assert syntax_hints([prompt]) == []


@given(words=st.lists(st.sampled_from(["a", "RED", "BREA", "lora", "1.3", " ", *")]}>|,\\"])))
def test_text_without_a_mark_is_left_alone(words: list[str]) -> None:
    prompt = "".join(words)
    assert not SYNTAX_MARK.search(prompt)
    assert syntax_hints([prompt]) == []


def test_what_the_weighting_reads_needs_no_hint() -> None:
    prompt = "a (red:1.3) [blue] ((green)) circle BREAK <lora:style:0.8>"
    (hint,) = syntax_hints([prompt], "a1111")
    assert "<lora:style:0.8>" in str(hint)
    assert len(syntax_hints([prompt])) == 2


def test_a_learned_token_is_read_however_it_is_written() -> None:
    (hint,) = syntax_hints(["a [V] dog, [red] ball"], learned={"[V]"})
    assert str(hint).startswith("'[red]'")
    assert syntax_hints(["a [V] dog"], learned={"[V]"}) == []


@pytest.mark.parametrize(
    "part", ["(a:", "((", "[a:", "[a|", "{a|", "/__a", "BREAK ", "<lora:", "1"]
)
def test_the_longest_prompts_are_looked_through(part: str) -> None:
    """They come from strangers: a pattern that takes quadratic time would take minutes."""
    for start in ("", "(a:", "[a:", "{a|"):
        assert isinstance(syntax_hints([start + part * (50_000 // len(part))]), list)


def test_a_call_warns_once_of_each_kind(sd: TinyModel) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sd.pipeline(
            ["a (red:1.3) circle", "a (blue:1.2) star"], "(bad:1.5) <lora:style:1>", steps=1, seed=0
        )
    hints = [w for w in caught if w.category is kdrt.PromptSyntaxWarning]
    assert [str(w.message).split(" is ")[0] for w in hints] == ["'(red:1.3)'", "'<lora:style:1>'"]
    assert all(w.filename == __file__ for w in hints)


def test_no_warning_where_it_is_read(sd: TinyModel) -> None:
    pipe = sd.pipeline
    width = pipe.bundle.manifest.text_encoders[0].hidden_size
    pipe.adapters.load_textual_inversion({"[V]": torch.zeros(1, width)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", kdrt.PromptSyntaxWarning)
            pipe("a (red:1.3) circle", steps=1, seed=0, prompt_weighting="a1111")
            pipe("a [V] dog", steps=1, seed=0)
            pipe.encode_prompt("a [V] dog")
    finally:
        pipe.adapters.unload_textual_inversion()
    with pytest.warns(kdrt.PromptSyntaxWarning, match=r"\[V\]"):
        pipe.encode_prompt("a [V] dog")
