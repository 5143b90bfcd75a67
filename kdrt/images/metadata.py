"""What image files say of how they were made, whichever program wrote them.

PNG has texts by key, before or after the pixels; JPEG and WebP have EXIF, whose user comment names
its encoding. :mod:`kdrt.images.infotext` reads the format of the AUTOMATIC1111 web UI, which kdrt
writes too; sd-parsers reads those of ComfyUI, InvokeAI, NovelAI and Fooocus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image

from kdrt.errors import InvalidRequestError
from kdrt.images.files import open_image, readable
from kdrt.images.infotext import as_text, json_object, parse_infotext

PARAMETERS = "parameters"
"""The key of the web UI's text."""

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
UNICODE = b"UNICODE\0"

_BYTE_ORDER_MARKS = {b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}

_MAX_TEXT = 2**23
"""Characters of one text: workflows of ComfyUI hold up to a million."""

_MAX_PLAIN = 4096
"""Characters of what is no JSON, for regular expressions of sd-parsers that are quadratic."""

_MAX_NODES, _MAX_SAMPLERS = 3000, 100
"""Of a workflow: sd-parsers follows its links anew for every sampler."""

_KEYS = (PARAMETERS, "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Dream", "Comment")
_LABELS = {
    "cfg_scale": "CFG scale",
    "scheduler": "Schedule type",
    "steps": "Steps",
    "seed": "Seed",
}


class MetadataWarning(UserWarning):
    """A file cannot hold all settings, or not all settings in it can be used again."""


@dataclass(frozen=True)
class Metadata:
    """How an image was made.

    Attributes:
        program: the program that wrote it, in words.
        settings: the settings by key; prompts are under ``Prompt`` and ``Negative prompt``.
    """

    program: str
    settings: Mapping[str, str]


def read_metadata(path: str | os.PathLike[str]) -> Metadata | None:
    """How an image was made; None if the file does not say.

    Raises:
        InvalidRequestError: there is no such file, it is no image, or it is damaged.
    """
    texts = read_texts(path)
    text = texts.get(PARAMETERS, "").strip()
    settings = parse_infotext(text) if text else {}
    if settings and json_object(text) is None:
        return Metadata(_program(settings), settings)
    inner = {key: as_text(value) for key, value in (json_object(text) or {}).items()}
    foreign = _foreign(texts) or _foreign(inner)
    return Metadata("unknown", settings) if settings and not foreign else foreign


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts in an image file, by key. EXIF's user comment is under ``parameters``.

    Raises:
        InvalidRequestError: there is no such file, it is no image, or it is damaged.
    """
    with open_image(path) as image:
        return texts_of(image, str(path))


def texts_of(image: Image.Image, name: str) -> dict[str, str]:
    """The texts in an opened image that has not been changed since; see :func:`read_texts`.

    Args:
        image: from Pillow's ``open``.
        name: the name of the image, for errors.

    Raises:
        InvalidRequestError: the image is damaged.
    """
    with readable(name):
        texts = dict(_texts(image.info))
        # A comment in plain words is an editor's.
        if image.format == "PNG" and not any(
            key in texts and (key != "Comment" or json_object(texts[key])) for key in _KEYS
        ):
            # Behind the pixels, which Pillow must read first.
            texts |= _texts(image.text)  # type: ignore[attr-defined]
        texts = dict(_exif_texts(image)) | texts
    comment = texts.get("comment", "")  # GIF's; web UIs have no other place there
    return {PARAMETERS: comment} | texts if "Steps: " in comment else texts


def decoded_comment(comment: bytes, *, big_endian: bool = True) -> str:
    """Decode EXIF's user comment. Its first eight bytes name the encoding, which programs do not
    always use.

    Args:
        comment: the comment with those bytes.
        big_endian: the byte order of UTF-16, if the text itself does not show it.
    """
    code, content = comment[:8], comment[8:]
    if code == b"JIS\0\0\0\0\0":
        encodings = ["iso2022_jp", "euc_jp", "cp932"]
    elif code == UNICODE:
        encodings = [_utf_16(content, big_endian)] if b"\0" in content else ["utf-8"]
        encodings.append("utf-16-be" if big_endian else "utf-16-le")
    elif code in (b"ASCII\0\0\0", bytes(8)):
        encodings = [_utf_16(content, big_endian)] if b"\0" in content.rstrip(b"\0") else ["utf-8"]
    else:  # no code at all
        content, encodings = comment, ["utf-8"]
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            return content.decode(encoding).strip("\0\ufeff")
    last = encodings[-1] if encodings[-1].startswith("utf-16") else "latin-1"
    return content.decode(last, errors="replace").strip("\0\ufeff")


def _utf_16(content: bytes, big_endian: bool) -> str:
    """Which UTF-16 it is: the one with more of ASCII, as settings are mostly that."""
    if content[:2] in _BYTE_ORDER_MARKS:
        return _BYTE_ORDER_MARKS[content[:2]]
    encodings = ("utf-16-be", "utf-16-le") if big_endian else ("utf-16-le", "utf-16-be")
    return max(encodings, key=lambda e: len(content.decode(e, "ignore").encode("ascii", "ignore")))


def _texts(info: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, value in info.items():
        if isinstance(value, bytes) and key == "comment":
            value = value.decode("utf-8", errors="replace")
        if isinstance(key, str) and isinstance(value, str) and len(value) <= _MAX_TEXT:
            yield key, str(value)


def _exif_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    exif = image.getexif()
    # Fooocus puts it beside EXIF's own folder instead of inside.
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT) or exif.get(USER_COMMENT)
    if isinstance(comment, str):
        comment = comment.encode("latin-1", errors="replace")
    if isinstance(comment, bytes) and comment:
        yield PARAMETERS, decoded_comment(comment, big_endian=exif.endian != "<")
    for value in exif.values():
        # ComfyUI's nodes for WebP: "prompt:{…}" and "workflow:{…}" under camera and maker.
        key, colon, content = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon and key.lower() in ("prompt", "workflow"):
            yield key.lower(), content


def _program(settings: Mapping[str, str]) -> str:
    version = settings.get("Version", "")
    if re.match(r"v\d", version):
        return f"AUTOMATIC1111 web UI {version}"
    if re.match(r"f\d", version):
        return f"Forge {version}"
    return settings.get("App") or version or "unknown, in the AUTOMATIC1111 web UI's format"


def _foreign(texts: Mapping[str, str]) -> Metadata | None:
    """What sd-parsers makes of them."""
    from sd_parsers import parsers

    given: dict[str, Any] = {
        key: text if json_object(text) else text[:_MAX_PLAIN] for key, text in texts.items()
    }
    if "prompt" in given:
        with suppress(Exception):
            given |= _workflow(given)
    for parser in (
        parsers.FooocusParser,
        parsers.ComfyUIParser,
        parsers.InvokeAIParser,
        parsers.NovelAIParser,
    ):
        # They trust what they read, so that anything may be raised.
        with suppress(Exception):
            info = parser().parse(dict(given))
            settings = dict(_settings(info))
            if settings:
                return Metadata(str(info.generator.value), settings)
    return None


def _workflow(given: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's graph with its links, also where the image holds no workflow: its API saves the
    graph alone."""
    prompt = json_object(given["prompt"])
    assert prompt is not None
    inputs = {key: node["inputs"] for key, node in prompt.items()}
    samplers = sum("steps" in values for values in inputs.values())
    if len(prompt) > _MAX_NODES or samplers > _MAX_SAMPLERS:
        return {"prompt": None}
    links = [
        [0, value[0], 0, key, 0, name.upper()]
        for key, values in inputs.items()
        for name, value in values.items()
        if isinstance(value, list) and len(value) == 2
    ]
    return {"prompt": prompt, "workflow": {"links": links}}


def _settings(info: Any) -> Iterator[tuple[str, str]]:
    if info.prompts:
        yield "Prompt", str(info.full_prompt)
    if info.negative_prompts:
        yield "Negative prompt", str(info.full_negative_prompt)
    for index, sampler in enumerate(info.samplers):
        number = f" {index + 1}" if index else ""
        yield f"Sampler{number}", as_text(sampler.name)
        if sampler.model is not None:
            yield f"Model{number}", str(sampler.model)
        for key, value in sampler.parameters.items():
            yield _label(key) + number, as_text(value)
    for key, value in info.metadata.items():
        if isinstance(value, (str, int, float)):
            yield _label(str(key)), as_text(value)


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " ").capitalize())


def check_metadata(path: str | os.PathLike[str]) -> Metadata:
    """As :func:`read_metadata`, for a file that should have some.

    Raises:
        InvalidRequestError: as there; or it has none, or such that nobody can read.
    """
    found = read_metadata(path)
    if found is None:
        keys = sorted(read_texts(path).keys() & set(_KEYS))
        if keys:
            raise InvalidRequestError(
                f"{path} carries metadata under {', '.join(keys)}, of a program that is not known "
                "or damaged"
            )
        raise InvalidRequestError(f"{path} carries no generation parameters")
    return found
