"""Prompts as the web UI reads them: LoRAs in angle brackets, and comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from kdrt.adapters.lora_block_weights import block_weights
from kdrt.adapters.lora_merge import Scale
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError
from kdrt.serve.errors import RequestError, UnsupportedError
from kdrt.serve.limits import MAX_SCALE

_COMMENT = re.compile(r"(?:^|\n)[^\S\n]*#[^\n]*|#[^\n]*")
_NETWORK = re.compile(r"<(\w{1,40}):([^<>]+)>")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_CHANGING = (
    re.compile(rf"(?<!\\)\[[^\[\]]*:\s*{_NUMBER}\s*\]"),  # [red:blue:0.5]
    re.compile(r"(?<!\\)\[[^\[\]|]*\|[^\[\]]*\]"),  # [red|blue]
)
_AND = re.compile(r"\bAND\b")

_LORA = ("lora", "lyco")
_PLACES = ("te", "unet", "dyn")
"""What the numbers of a LoRA are about, in order."""

_STEPS = ("start", "stop", "end", "step", "when")
"""What extensions call the steps at which a LoRA counts."""


class ReadPrompt(NamedTuple):
    """A prompt, and what was in it.

    Attributes:
        text: without LoRAs and comments.
        loras: by name, with their scales.
    """

    text: str
    loras: Mapping[str, Scale]


def read_prompt(text: str) -> ReadPrompt:
    """Take LoRAs and comments out of a prompt.

    Raises:
        RequestError: a LoRA is written in a way that cannot be read, or twice.
        UnsupportedError: it changes from step to step, joins two with AND, or names a network of
            another kind.
    """
    text = _without_comments(text)
    loras: dict[str, Scale] = {}
    for match in _NETWORK.finditer(text):
        if match[1] not in _LORA:
            raise UnsupportedError(
                f"{excerpt(match[0])} is not supported: of such networks there are LoRAs alone, as "
                "in <lora:name:0.8>",
                "prompt",
            )
        name, scale = _lora(match[0], match[2])
        if name in loras:
            raise RequestError(f"the prompt names the LoRA {excerpt(name)} twice", "prompt")
        loras[name] = scale
    text = _NETWORK.sub("", text)
    _check_constant(text, "prompt")
    joined = _AND.search(text)
    if joined:
        raise UnsupportedError(
            "prompts that are joined with AND are not supported: write 'and'", "prompt"
        )
    return ReadPrompt(text, loras)


def read_negative(text: str) -> str:
    """A negative prompt, without its comments. The web UI reads no LoRAs there.

    Raises:
        UnsupportedError: it changes from step to step.
    """
    text = _without_comments(text)
    _check_constant(text, "negative_prompt")
    return text


def _without_comments(text: str) -> str:
    return _COMMENT.sub("", text) if "#" in text else text


def _check_constant(text: str, name: str) -> None:
    for pattern in _CHANGING:
        found = pattern.search(text)
        if found:
            raise UnsupportedError(
                f"{name} cannot change from step to step, as {excerpt(found[0])} would: write what "
                "it should show all the time",
                name,
            )


def _lora(tag: str, content: str) -> tuple[str, Scale]:
    """The name and scale of ``name:1``, ``name:1:0.5`` or ``name:te=1:unet=0.5``, each with
    ``:lbw=1,0.5,…`` or without."""
    name, *parts = content.split(":")
    for part in parts:
        if "@" in part or part.partition("=")[0].strip() in _STEPS:
            raise UnsupportedError(
                f"{excerpt(tag)} is not supported: a LoRA is as strong at every step; give one "
                "number, as in <lora:name:0.8>",
                "prompt",
            )
    numbers: dict[str, float] = {}
    weights: list[float] = []
    for place, part in zip(_PLACES, (part for part in parts if "=" not in part), strict=False):
        numbers[place] = _number(tag, part)
    for key, equals, value in (part.partition("=") for part in parts):
        if equals and key in _PLACES:
            numbers[key] = _number(tag, value)
        elif equals and key == "lbw":
            weights = [_number(tag, weight) for weight in value.split(",")]
        elif equals:
            raise RequestError(
                f"{excerpt(tag)} cannot be read: a LoRA has te=, unet= and lbw=", "prompt"
            )
    if len([part for part in parts if "=" not in part]) > len(_PLACES):
        raise RequestError(f"{excerpt(tag)} cannot be read: it has too many numbers", "prompt")
    if "dyn" in numbers:
        raise UnsupportedError(
            f"{excerpt(tag)} is not supported: a LoRA keeps the rank that it has", "prompt"
        )
    text = numbers.get("te", 1.0)
    unet = numbers.get("unet", text)
    if weights:
        try:
            return name, block_weights(weights, unet, text)
        except InvalidRequestError as error:
            raise RequestError(f"{excerpt(tag)} cannot be read: {error}", "prompt") from None
    if text == unet:
        return name, unet
    return name, {"unet": unet, "text_encoder": text, "text_encoder_2": text}


def _number(tag: str, text: str) -> float:
    if not re.fullmatch(rf"\s*{_NUMBER}\s*", text) or abs(float(text)) > MAX_SCALE:
        raise RequestError(
            f"{excerpt(tag)} cannot be read: {excerpt(text)} is no number from -{MAX_SCALE:g} to "
            f"{MAX_SCALE:g}",
            "prompt",
        )
    return float(text)
