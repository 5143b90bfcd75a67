"""Prompts as the web UI reads them."""

from __future__ import annotations

from typing import Any

import pytest

from kdrt.adapters.lora_block_weights import block_weights
from kdrt.serve.a1111.prompts import read_negative, read_prompt
from kdrt.serve.errors import RequestError, UnsupportedError


@pytest.mark.parametrize(
    ("text", "rest", "loras"),
    [
        ("a red circle", "a red circle", {}),
        ("a <lora:style:0.8> circle", "a  circle", {"style": 0.8}),
        ("<lora:style>a", "a", {"style": 1.0}),
        ("a<lora:one:1><lyco:two words:-.5>", "a", {"one": 1.0, "two words": -0.5}),
        ("<lora:s:0.5:0.5>", "", {"s": 0.5}),
        ("<lora:s:unet=0.3>", "", {"s": {"unet": 0.3, "text_encoder": 1.0, "text_encoder_2": 1.0}}),
        ("<lora:s:0:1>", "", {"s": {"unet": 1.0, "text_encoder": 0.0, "text_encoder_2": 0.0}}),
        ("<lora:s:te=0.4>", "", {"s": 0.4}),
        (
            f"<lora:s:0.5:lbw=2{',1' * 11}>",
            "",
            {"s": block_weights([2.0, *[1.0] * 11], 0.5, 0.5)},
        ),
        ("a < b > c", "a < b > c", {}),
        ("(a:1.2) [b] BREAK c", "(a:1.2) [b] BREAK c", {}),
        (r"\[a:b:0.5\]", r"\[a:b:0.5\]", {}),
        ("[time: 12:30 o'clock]", "[time: 12:30 o'clock]", {}),
        ("SANDY and ANDY", "SANDY and ANDY", {}),
    ],
)
def test_loras_are_taken_out(text: str, rest: str, loras: dict[str, Any]) -> None:
    assert read_prompt(text) == (rest, loras)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a circle # of red", "a circle "),
        ("# first\na circle", "\na circle"),
        ("a circle\n  # <lora:x:1>\nand a star", "a circle\nand a star"),
    ],
)
def test_comments_are_left_out(text: str, rest: str) -> None:
    assert read_prompt(text) == (rest, {})
    assert read_negative(text) == rest


@pytest.mark.parametrize("text", ["[red:blue:0.5]", "[red:3]", "a [(b:1.2)::.5]", "[red|blue]"])
def test_prompts_that_change_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="prompt cannot change from step to step"):
        read_prompt(text)
    with pytest.raises(UnsupportedError, match="negative_prompt cannot change from step to step"):
        read_negative(text)


def test_joined_prompts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="joined with AND"):
        read_prompt("a circle AND a star :1.2")
    assert read_negative("a circle AND a star") == "a circle AND a star"


def test_other_networks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'<hypernet:x:1>' is not supported"):
        read_prompt("a <hypernet:x:1>")


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:s:much>", "'much' is no number"),
        ("<lora:s:nan>", "'nan' is no number"),
        ("<lora:s:1e5>", "'1e5' is no number"),
        ("<lora:s:1000>", "no number from -100 to 100"),
        ("<lora:s:weight=1>", "a LoRA has te=, unet= and lbw="),
        ("<lora:s:1:lbw=1,1>", "lbw= has 2 numbers"),
        ("<lora:s:1:lbw=ALL>", "'ALL' is no number"),
        ("<lora:s:1:1:64>", "keeps the rank"),
        ("<lora:s:1@0.3>", "as strong at every step"),
        ("<lora:s:1:stop=10>", "as strong at every step"),
        ("<lora:s:1:1:1:1>", "too many numbers"),
        ("<lora:s:1><lora:s:0.5>", "names the LoRA 's' twice"),
    ],
)
def test_loras_that_cannot_be_read_are_refused(tag: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_prompt(tag)
