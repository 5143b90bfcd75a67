"""Emphasis in prompts, as AUTOMATIC1111's web UI writes it.

    (x)        weight 1.1          (x:1.3)    weight 1.3
    [x]        weight 1/1.1        \\( \\) \\[ \\] \\\\    the character itself
    BREAK      what follows starts a new chunk

Brackets nest, and their weights multiply. Nothing is an error: a closing bracket that closes
nothing is text, an opening one that is never closed counts to the end, and what is not a number
after a colon is text too. Scheduling (``[a:b:0.5]``, ``[a|b]``) is not known here: it reads as
text in square brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from kdrt.common.literals import COMMA_BACKTRACK, WeightingMode
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError

STEP = 1.1
"""What one pair of round brackets multiplies by, and one of square brackets divides by."""

MAX_WEIGHT = 100.0
"""Beyond, what the text encoders give would leave the range of float16."""

_LEXEME = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                              # a lone backslash is dropped
    | (?P<open>[(\[])
    | :\s*+(?P<weight>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++))\s*+\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]++|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_SPECIAL = re.compile(r"([\\()\[\]])")


@dataclass(frozen=True)
class Weighting:
    """How prompts are read.

    Attributes:
        mode: ``"none"`` reads every character literally and cuts a prompt that is too long.
            ``"a1111"`` reads emphasis and splits long prompts into chunks; each chunk is scaled to
            the mean it had without emphasis. ``"a1111_no_norm"`` does the same without scaling.
        comma_backtrack: when a chunk is full, move the text after its last comma to the next chunk,
            if that text is at most this many tokens long. 0 never moves any.
    """

    mode: WeightingMode = "none"
    comma_backtrack: int = COMMA_BACKTRACK


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt, and its weight."""

    text: str
    weight: float = 1.0


Section = tuple[Fragment, ...]
"""What stands between two BREAKs: neighbours differ in weight, and none is empty."""


_Span = tuple[int, int, float]
"""The first fragment in a pair of brackets, the one behind the last, and the factor."""


def parse(prompt: str) -> tuple[Section, ...]:
    """Read a prompt with emphasis, in one pass. It has one section more than BREAKs, and never
    fails."""
    # A BREAK is a None in the list.
    found: list[str | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    spans: dict[str, list[_Span]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        spans[bracket].append((opened[bracket].pop(), len(found), factor))

    for match in _LEXEME.finditer(prompt):
        kind, value = match.lastgroup, match[match.lastgroup or 0]
        if kind == "open":
            opened[value].append(len(found))
        elif kind == "weight" and opened["("]:
            close("(", float(value))
        elif kind == "close" and opened["(" if value == ")" else "["]:
            close("(", STEP) if value == ")" else close("[", 1 / STEP)
        elif kind == "escaped":
            found.append(value)
        else:
            found += _broken(match[0])
    for bracket, factor in (("(", STEP), ("[", 1 / STEP)):
        while opened[bracket]:
            close(bracket, factor)
    round_, square = (_weights(spans[bracket], len(found)) for bracket in "([")
    return _sections(
        [text and Fragment(text, r * s) for text, r, s in zip(found, round_, square, strict=True)]
    )


def _broken(text: str) -> Iterator[str | None]:
    """``text`` between its BREAKs, without the spaces around them."""
    first, *others = _BREAK.split(text)
    for other in others:
        yield first.rstrip()
        yield None
        first = other.lstrip()
    yield first


def _weights(spans: list[_Span], count: int) -> Iterator[float]:
    """For each of ``count`` fragments the product of the factors of the brackets around it. Those
    of one kind nest, so that the innermost is the first to end."""
    spans = sorted(spans, key=lambda span: (-span[0], span[1]))
    around = [(count, 1.0)]
    for index in range(count):
        while around[-1][0] <= index:
            around.pop()
        while spans and spans[-1][0] <= index:
            _, end, factor = spans.pop()
            if end > index:
                around.append((end, around[-1][1] * factor))
        yield around[-1][1]


def _sections(found: list[Fragment | str | None]) -> tuple[Section, ...]:
    sections: list[list[Fragment]] = [[]]
    for fragment in found:
        if fragment is None:
            sections.append([])
        elif isinstance(fragment, Fragment):  # the others are empty
            sections[-1].append(fragment)
    return tuple(
        tuple(
            Fragment("".join(fragment.text for fragment in run), weight)
            for weight, run in groupby(section, key=lambda fragment: fragment.weight)
        )
        for section in sections
    )


def check_weights(name: str, prompt: str) -> None:
    """Refuse weights that no text encoder's results could be multiplied by.

    Raises:
        InvalidRequestError: a weight is beyond `MAX_WEIGHT`; the message names it and what it
            weighs.
    """
    for fragment in chain.from_iterable(parse(prompt)):
        if not abs(fragment.weight) <= MAX_WEIGHT:
            raise InvalidRequestError(
                f"{name} gives {excerpt(fragment.text)} the weight {fragment.weight:g}, and "
                f"weights must be from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}; brackets within brackets "
                "multiply theirs"
            )


def escape(text: str) -> str:
    """``text`` such that :func:`parse` gives it back as it is, unless it holds a BREAK."""
    return _SPECIAL.sub(r"\\\1", text)


def has_emphasis(prompt: str) -> bool:
    """Whether a web UI would read this prompt as anything but plain text."""
    sections = parse(prompt)
    return len(sections) > 1 or sections != parse(escape(prompt))


def emphasize(hidden: Tensor, weights: tuple[float, ...], mode: WeightingMode) -> Tensor:
    """Multiply the hidden states of one chunk by the weights of its tokens.

    ``"a1111"`` then scales them all, so that their mean is what it was. The web UI takes that
    mean over all prompts of a batch; here it is one prompt's own, as an image must not depend
    on its company. For a batch of one it is the same.

    Args:
        hidden: ``[L, D]``; computed in float32, returned in its own dtype.
        weights: L of them.
        mode: see :class:`Weighting`.
    """
    if mode == "none" or all(weight == 1 for weight in weights):
        return hidden
    before = hidden.float()
    after = before * torch.tensor(weights, device=hidden.device)[:, None]
    if mode == "a1111":
        mean = after.mean()
        # A mean of zero cannot be restored.
        after = after * torch.where(mean == 0, torch.ones_like(mean), before.mean() / mean)
    return after.to(hidden.dtype)
