"""CLIP's tokenizer without a download: checkpoint files hold weights alone.

Every Stable Diffusion and SDXL model has the same vocabulary, which follows from a list of merges
(``data/``, see the notice there): the 256 bytes as characters, the same at the end of a word, what
each merge makes, and two special tokens.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from importlib import resources
from typing import Any

from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def clip_tokenizer(pad: str = _END) -> CLIPTokenizer:
    """CLIP's tokenizer, 77 tokens long.

    Args:
        pad: the token prompts are filled up with: the end of text in Stable Diffusion 1 and for
            CLIP-L, ``"!"`` (id 0) for the OpenCLIP encoders of Stable Diffusion 2 and SDXL.
    """
    packed = (resources.files("kdrt_export") / "data" / "clip_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    characters = _byte_characters()
    tokens = [
        *characters,
        *(character + _WORD_END for character in characters),
        *(first + second for first, second in merges),
        _START,
        _END,
    ]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=pad,
        model_max_length=77,
    )


def tokenizer_for(text_encoder: Mapping[str, Any]) -> CLIPTokenizer:
    """The tokenizer that goes with a text encoder's configuration: only CLIP-L's own was trained
    with prompts filled up by the end of text."""
    return clip_tokenizer(_END if text_encoder["hidden_size"] == 768 else "!")


def _byte_characters() -> list[str]:
    """A visible character for every byte, in the order of the ids: printable ones stand for
    themselves and come first, the others are moved up behind Latin-1."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]
