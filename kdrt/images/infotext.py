"""Reading the text in which web UIs store how an image was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

_NEGATIVE = "Negative prompt: "


_TEMPLATES = ("Template", "Negative Template")
"""What the web UI's extension for dynamic prompts writes below the settings."""


_JSON = re.compile(r'[\ufeff\s\[]*+\{\s*+"[^"]*+"\s*+:')
"""How JSON with keys begins, and no prompt."""


_SPACE = re.compile(r"\s*")


_WRONG_JSON = 10
"""How many values may look like JSON and be none. Each is read to its end, so that without a limit
the time grows with the square of the text."""


def parse_infotext(text: str) -> dict[str, str]:
    """Read such a text, ours or a web UI's: its settings by key, with the prompts under
    ``"Prompt"`` and ``"Negative prompt"``. Keys that are not there are not in the result.

    Values may be quoted, or JSON as the web UI's extensions write it. A text that is JSON as a
    whole is another program's: its keys are given as they are, but for a prompt that is no text.
    Of other JSON, or what is left of some, nothing is given.
    """
    values = json_object(text)
    if values is not None:
        return {
            key: as_text(value)
            for key, value in values.items()
            if isinstance(value, str) or key.lower() != "prompt"
        }
    lines = text.strip().replace("\r\n", "\n").split("\n")
    end, settings = _settings_line(lines)
    if not settings and _JSON.match(text):
        return {}
    starts = (i for i in range(end) if lines[i].startswith(_NEGATIVE.strip()))
    split = next(starts, end)
    result = {"Prompt": "\n".join(lines[:split])}
    if split < end:
        negative = "\n".join(lines[split:end])
        result["Negative prompt"] = negative.removeprefix(_NEGATIVE.strip()).strip()
    return result | settings | _templates(lines[end + 1 :])


def json_object(text: str) -> dict[str, Any] | None:
    """The object that ``text`` is in JSON; None if it is anything else."""
    text = text.lstrip("\ufeff \t\r\n")
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_text(value: object) -> str:
    """A value of JSON as text: a string itself, the others as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="replace").decode()  # JSON can hold halves of characters


def _settings_line(lines: Sequence[str]) -> tuple[int, dict[str, str]]:
    """The line of the settings, and what it says; the end, and nothing, where there is none."""
    for index in range(len(lines)):
        is_last = index == len(lines) - 1
        if not is_last and not lines[index + 1].startswith(tuple(f"{t}:" for t in _TEMPLATES)):
            continue
        settings = dict(_settings(lines[index])) if "Steps:" in lines[index] else {}
        if settings.get("Steps", "").isdecimal():
            return index, settings
    return len(lines), {}


def _templates(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        key, colon, rest = line.partition(":")
        if colon and key in _TEMPLATES:
            current = found.setdefault(key, [])
            current.append(rest.strip())
        else:
            current.append(line)
    return {key: "\n".join(part) for key, part in found.items()}


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """Keys and values between commas, in one pass."""
    place, colon = 0, line.find(":")
    decoder, failures = json.JSONDecoder(), 0
    while colon >= 0:
        key = line[max(place, line.rfind(",", place, colon) + 1) : colon].strip()
        start = _SPACE.match(line, colon + 1).end()  # type: ignore[union-attr]
        end = value = None
        if line[start : start + 1] in ('"', "{", "[") and failures < _WRONG_JSON:
            with suppress(ValueError, RecursionError):
                decoded, stop = decoder.raw_decode(line, start)
                after = _SPACE.match(line, stop).end()  # type: ignore[union-attr]
                if line[after : after + 1] in ("", ","):
                    value, end = decoded if isinstance(decoded, str) else line[start:stop], after
            failures += end is None
        if value is None or end is None:
            comma = line.find(",", start)
            end = len(line) if comma < 0 else comma
            value = line[start:end].strip()
        if key and '"' not in key:
            yield key, as_text(value)
        place = end + 1
        colon = line.find(":", place)
