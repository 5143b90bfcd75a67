"""CLIP's tokenizers as they lie in a folder, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

from kdrt_export.errors import SourceError
from kdrt_export.sources.reading import check_fetched, refused

_BASE = 1000
"""More than the tokens of CLIP's vocabulary that no merge makes: bytes, the same at the end of a
word, special and learned ones."""


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read a tokenizer.

    Raises:
        SourceError: the folder holds none, or a damaged one. transformers would make one of two
            words of an empty folder, and none but single letters without merges.
    """
    has_both = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not has_both and not (folder / "tokenizer.json").is_file():
        raise SourceError(
            f"{folder} holds no CLIP tokenizer: neither vocab.json and merges.txt nor "
            "tokenizer.json"
        )
    with refused(f"cannot load a CLIP tokenizer from {folder}", "download it again"):
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            if (folder / name).is_file():
                check_fetched(folder / name)
        for file in folder.iterdir():
            if not (file.is_file() or file.is_dir()):
                raise SourceError(f"{file} is no regular file, and cannot be read")
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        if len(model["vocab"]) - len(model["merges"]) > _BASE:
            raise SourceError(
                f"{folder} has a tokenizer of {len(model['vocab']):,} tokens and only "
                f"{len(model['merges']):,} merges, so that most tokens are never used: "
                "merges.txt was cut short; download it again"
            )
    for name in ("bos", "eos", "pad"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise SourceError(f"{folder} has a tokenizer without {name}_token, which CLIP's have")
    return tokenizer
