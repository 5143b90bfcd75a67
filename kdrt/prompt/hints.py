"""Hints for prompts that were written for another program: what is read as plain text, and how to
have it read.

Only what is hardly ever meant as text counts: ``(a portrait)``, ``(16:9)`` and ``PRISON BREAK`` do
not. Every pattern takes linear time, as prompts come from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kdrt.common.literals import WeightingMode
from kdrt.common.validation import excerpt


class PromptSyntaxWarning(UserWarning):
    """Part of a prompt uses the syntax of another program and is read as plain text.

    Attributes:
        advice: what to do about it; the same for all examples of one kind.
    """

    def __init__(self, example: str, advice: str) -> None:
        super().__init__(f"{excerpt(example)} is read as plain text: {advice}")
        self.advice = advice


@dataclass(frozen=True)
class _Syntax:
    """What other programs read.

    Attributes:
        patterns: regular expressions that find it.
        advice: what to do about it.
        is_weighting: every ``prompt_weighting`` but ``"none"`` reads it.
    """

    patterns: tuple[str, ...]
    advice: str
    is_weighting: bool = False

    def example(self, texts: Collection[str], learned: Collection[str]) -> str | None:
        """The first place where it is written; None if there is none."""
        found = (
            match[0]
            for pattern in self.patterns
            for text in texts
            for match in re.finditer(pattern, text)
        )
        return next((each for each in found if each not in learned), None)


_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SYNTAXES = (
    _Syntax(
        (
            r"\([^()]*[^()\s\d\\]:\s*[+-]?(?:\d(?:\.\d+)?|\.\d+)\s*\)",  # (red:1.3)
            r"(?<!\\)\(\([^()]+\)\)",  # ((red))
            r"(?<!\\)\[[^\[\]:|]*[^\[\]:|\\]\]",  # [red]
            # Among other words in capitals it is one of them.
            r"(?<![A-Z]{2} )\bBREAK\b(?! [A-Z]{2})",
        ),
        'prompt_weighting="a1111" (--weighting a1111) reads it',
        is_weighting=True,
    ),
    _Syntax(
        (
            r"(?<!\\)\[[^\[\]:|]*\|[^\[\]]*\]",  # [red|blue]
            rf"(?<!\\)\[[^\[\]:|]*:[^\[\]:|]*:\s*{_NUMBER}\s*\]",  # [red:blue:0.5]
            rf"(?<!\\)\[[^\[\]:|]*[^\[\]:|\d\s]:\s*{_NUMBER}\s*\]",  # [red:0.5]
        ),
        "a prompt cannot change from step to step; write what it should show all the time",
    ),
    _Syntax(
        (r"(?i)<(?:lora|lyco|locon):[^<>]+>",),
        "load the file itself with load_lora (--lora FILE:SCALE)",
    ),
    _Syntax((r"(?i)<hypernet:[^<>]+>",), "there are no hypernetworks; leave it out"),
    _Syntax(
        (r"(?i)\bembedding:[\w.\-/]+",),
        "load the file with load_textual_inversion, and write the word that it returns",
    ),
    _Syntax(
        (r"(?<!\w)__[A-Za-z0-9][\w/*-]{0,60}__(?!\w)", r"\{[^{}|]+\|[^{}]+\}"),
        "there are no wildcards; write out every prompt, in a list or with --prompts-file",
    ),
)

SYNTAX_MARK = re.compile(r"[(\[{<:_]|BREAK")
"""Found in every prompt that holds such syntax, and in few of the others."""


def syntax_hints(
    prompts: Iterable[str], mode: WeightingMode = "none", learned: Collection[str] = ()
) -> list[PromptSyntaxWarning]:
    """What in prompts is read as plain text, though other programs give it a meaning.

    Args:
        prompts: the texts, negative ones too.
        mode: how they are read.
        learned: tokens of textual inversions: they are read, however they are written.

    Returns:
        A warning for each kind of syntax, with the first example of it.
    """
    texts = tuple(dict.fromkeys(prompts))
    hints = []
    for syntax in _SYNTAXES:
        if syntax.is_weighting and mode != "none":
            continue
        example = syntax.example(texts, learned)
        if example is not None:
            hints.append(PromptSyntaxWarning(example, syntax.advice))
    return hints
