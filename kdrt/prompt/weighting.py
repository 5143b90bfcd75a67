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
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

WeightingMode = Literal["none", "a1111", "a1111_no_norm"]

STEP = 1.1
"""What one pair of round brackets multiplies by, and one of square brackets divides by."""

COMMA_BACKTRACK = 20
"""The web UI's default; see :class:`Weighting`."""

_LEXEME = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                              # a lone backslash is dropped
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SPECIAL = re.compile(r"([\\()\[\]])")


@dataclass(frozen=True)
class Weighting:
    """How prompts are read.

    Attributes:
        mode: ``"none"`` takes every character for what it is and cuts what is too long.
            ``"a1111"`` knows emphasis and makes chunks of long prompts; each chunk keeps the
            mean it had without emphasis. ``"a1111_no_norm"`` is the same without that last step.
        comma_backtrack: where a chunk is full, move what follows its last comma to the next one,
            if that is at most so many tokens. 0 never does.
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


def parse(prompt: str) -> tuple[Section, ...]:
    """Read a prompt with emphasis. It has one section more than BREAKs, and never fails."""
    # A BREAK is a None in the list.
    found: list[Fragment | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        found[start:] = [f and Fragment(f.text, f.weight * factor) for f in found[start:]]

    for match in _LEXEME.finditer(prompt):
        kind, value = match.lastgroup, match[match.lastgroup or 0]
        if kind == "open":
            opened[value].append(len(found))
        elif kind == "weight" and opened["("]:
            multiply(opened["("].pop(), float(value))
        elif kind == "close" and opened["(" if value == ")" else "["]:
            if value == ")":
                multiply(opened["("].pop(), STEP)
            else:
                multiply(opened["["].pop(), 1 / STEP)
        elif kind == "escaped":
            found.append(Fragment(value))
        else:
            for index, text in enumerate(_BREAK.split(match[0])):
                found += [None, Fragment(text)] if index else [Fragment(text)]
    for start in opened["("]:
        multiply(start, STEP)
    for start in opened["["]:
        multiply(start, 1 / STEP)
    return _sections(found)


def _sections(found: list[Fragment | None]) -> tuple[Section, ...]:
    sections: list[list[Fragment]] = [[]]
    for fragment in found:
        if fragment is None:
            sections.append([])
        elif fragment.text:
            sections[-1].append(fragment)
    return tuple(
        tuple(
            Fragment("".join(fragment.text for fragment in run), weight)
            for weight, run in groupby(section, key=lambda fragment: fragment.weight)
        )
        for section in sections
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
    mean over all prompts of a batch; here it is one prompt's own, as a picture must not depend
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
