"""What tells one request from another: a digest of all that shapes its images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kdrt.adapters.lora_file import LoraFile
from kdrt.adapters.lora_merge import Scale
from kdrt.bundle import Manifest, sha256
from kdrt.cli.requests_file import RequestLine
from kdrt.images.control import ControlImage
from kdrt.images.region import Region
from kdrt.request.complete import complete

_LENGTH = 32
"""Hexadecimal digits: far more than millions of requests need to differ in."""


def model_digest(manifest: Manifest, loras: Sequence[tuple[LoraFile, Scale]]) -> str:
    """Of a model and the LoRAs, with their scales, that are added to it."""
    return _digest([manifest.model_dump(mode="json"), [[f.sha256, scale] for f, scale in loras]])


def request_digests(model: str, lines: Sequence[RequestLine]) -> Iterator[str]:
    """One for each line: the same wherever in the file it stands, and with defaults written out or
    not. Of equal lines each has another one, in their order, since each asks for an image of its
    own.

    Args:
        model: its digest.
        lines: all of a file.
    """
    contents = _Contents()
    seen: Counter[str] = Counter()
    for line in lines:
        digest = _digest([model, complete(line.request), line.output], contents)
        seen[digest] += 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


class _Contents:
    """What stands for values that JSON cannot hold. Many lines may share one: each is read once."""

    def __init__(self) -> None:
        self._known: dict[Path | int, str] = {}

    def __call__(self, value: object) -> str:
        key = value if isinstance(value, Path) else id(value)
        if key not in self._known:
            self._known[key] = _content(value)
        return self._known[key]


def _digest(value: object, contents: Callable[[object], object] | None = None) -> str:
    text = json.dumps(value, sort_keys=True, default=contents)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def _content(value: object) -> str:
    if isinstance(value, Path):
        return sha256(value)
    if isinstance(value, ControlImage | Region):
        return _digest(vars(value), _content)
    if isinstance(value, Image.Image):
        start, content = f"{value.mode} {value.size}", value.tobytes()
    elif isinstance(value, Tensor):
        flat = value.cpu().contiguous().reshape(-1)
        start, content = f"{value.dtype} {value.shape}", flat.view(torch.uint8).numpy().tobytes()
    else:
        raise TypeError(type(value).__name__)
    return hashlib.sha256(start.encode() + content).hexdigest()
