"""Files of textual inversion, in every layout that trainers and programs write.

    {WORD: vectors}                                  diffusers
    {"string_to_param": {"*": vectors}, "name": …}   the web UI, the first implementation; pickled
    {"emb_params": vectors}                          kohya, the web UI
    {"clip_l": vectors, "clip_g": vectors}           SDXL; kohya, ComfyUI, pivotal tuning
    {"text_encoders_0": …, "text_encoders_1": …}     SDXL, pivotal tuning as it began
    {"bundle_emb.WORD.clip_l": vectors, …}           OneTrainer; also inside of LoRAs
    [vectors, …], [{WORD: vectors}, …]               lists, one row after another

And images with an embedding in their text, which the web UI calls cards.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdrt.adapters.lora_file import bundled_embeddings
from kdrt.adapters.lora_keys import BUNDLED
from kdrt.adapters.tensor_file import (
    check_sizes,
    checked,
    existing,
    kind_of,
    read_pickle,
    read_safetensors,
)
from kdrt.errors import InvalidRequestError

_ENCODERS = {
    "clip_l": "text_encoder",
    "clip_h": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_T5 = {"t5", "t5xxl", "text_encoders_2"}
_CARD = "sd-ti-embedding"
"""The web UI's name of the text in an image."""

MAX_VECTORS = 1024
"""Of one word. A text encoder reads 75 at once."""
MAX_WORDS = 1000
"""Of one file."""
MAX_PIXELS = 1 << 24
"""Of a card: all are decoded where its text is after them."""


@dataclass(frozen=True)
class Word:
    """One word of a file.

    Attributes:
        names: what it may be called, the best first; empty if nothing says it.
        vectors: ``[n, D]`` with the component they are for; None is told by D.
    """

    names: tuple[str, ...]
    vectors: tuple[tuple[str | None, Tensor], ...]


def read_words(path: Path, stem: str | None, *, allow_pickle: bool) -> list[Word]:
    """The words of a file.

    Args:
        path: the file. Its bytes tell what it is, not its suffix.
        stem: what its name says of the word.
        allow_pickle: also open PyTorch's files, with its restricted unpickler.

    Raises:
        InvalidRequestError: it cannot be read, or is no textual inversion.
    """
    path = existing(path)
    kind = kind_of(path)
    if kind == "safetensors":
        state: object = read_safetensors(path)[0]
    elif kind == "image":
        state = _card(path)
    elif kind == "unknown":
        raise InvalidRequestError(
            f"{path} is damaged or no textual inversion: neither safetensors nor PyTorch's format"
        )
    elif allow_pickle:
        # The first implementation of textual inversion saved this class.
        state = read_pickle(path, (torch.nn.ParameterDict,))
    else:
        raise InvalidRequestError(
            f"{path} is a pickle, which can run code when it is opened; if you trust it, give "
            "allow_pickle=True (even then torch's restricted unpickler reads it)"
        )
    return words_of(state, str(path), stem, is_card=kind == "image")


def words_of(state: object, label: str, stem: str | None, *, is_card: bool = False) -> list[Word]:
    """The words in what a file holds, or in the like of it from memory.

    Args:
        state: in one of the layouts above.
        label: names it in messages.
        stem: what the file's name says of the word.
        is_card: whether the name inside comes before the file's, as in the web UI.

    Raises:
        InvalidRequestError: it is no textual inversion.
    """
    if isinstance(state, Tensor):
        return [_word(label, (stem,), [(None, state)])]
    if isinstance(state, Sequence) and not isinstance(state, str) and state:
        return [_word(label, (stem,), [(None, rows) for rows in _joined(state, label)])]
    if not isinstance(state, Mapping) or not state:
        raise InvalidRequestError(f"{label} is not a textual inversion")
    if not all(isinstance(key, str) for key in state):
        raise InvalidRequestError(f"{label} is not a textual inversion: its keys are not all words")
    inner = state.get("name")
    inside = inner if isinstance(inner, str) else None
    names = (inside, stem) if is_card else (stem, inside)
    if "string_to_param" in state:
        return [_word(label, names, [(None, _only(state["string_to_param"], label))])]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or (len(tensors) < len(state) and "name" not in state):
        raise _no_inversion(state, label)
    check_sizes({key: tensor.shape for key, tensor in tensors.items()}, label)
    if tensors.keys() & _T5:
        raise InvalidRequestError(
            f"{label} has vectors for a T5 encoder: it was made for Stable Diffusion 3 or Flux"
        )
    if tensors.keys() <= _ENCODERS.keys():
        parts = [(_ENCODERS[key], tensor) for key, tensor in tensors.items()]
        return [_word(label, names, parts)]
    if tensors.keys() == {"emb_params"}:
        return [_word(label, names, [(None, tensors["emb_params"])])]
    if all(key.startswith(BUNDLED) for key in tensors):
        bundled = bundled_embeddings(tensors, label)
        return [w for name, each in bundled.items() for w in words_of(each, label, name)]
    if any(tensor.ndim > 2 or ".lora_" in key for key, tensor in tensors.items()):
        raise _no_inversion(state, label)
    if len(tensors) > MAX_WORDS:
        raise InvalidRequestError(f"{label} has {len(tensors)} words; at most {MAX_WORDS} are read")
    if len(tensors) == 1:
        ((word, tensor),) = tensors.items()
        return [_word(label, (word, stem), [(None, tensor)])]
    return [_word(label, (word,), [(None, tensor)]) for word, tensor in tensors.items()]


def _word(
    label: str, names: Sequence[str | None], vectors: Sequence[tuple[str | None, object]]
) -> Word:
    known = tuple(dict.fromkeys(name for name in names if name and name != "*"))
    what = f"'{known[0]}' in {label}" if known else label
    return Word(known, tuple((part, _vectors(each, what)) for part, each in vectors))


def _vectors(value: object, name: str) -> Tensor:
    """``value`` as ``[n, D]`` in float32."""
    if not isinstance(value, Tensor) or value.numel() == 0:
        raise InvalidRequestError(f"{name} has no vectors")
    vectors = value[None] if value.ndim == 1 else value
    if vectors.ndim != 2:
        raise InvalidRequestError(
            f"{name} must be finite vectors [n, D], not a tensor of shape {list(value.shape)}"
        )
    if len(vectors) > MAX_VECTORS:
        raise InvalidRequestError(
            f"{name} has {len(vectors)} vectors; at most {MAX_VECTORS} are read"
        )
    return checked(vectors, name).float()


def _only(params: object, label: str) -> object:
    # A ParameterDict of before PyTorch 1.12 is one of now by this alone.
    inside = getattr(params, "_parameters", params)
    if not isinstance(inside, Mapping) or len(inside) != 1:
        raise InvalidRequestError(f"{label} must have exactly one entry in string_to_param")
    return next(iter(inside.values()))


def _joined(parts: Sequence[object], label: str) -> list[Tensor]:
    """A list's tensors one after another; by their width, which tells what encoder they are for."""
    rows: dict[int, list[Tensor]] = defaultdict(list)
    for part in parts:
        for tensor in part.values() if isinstance(part, Mapping) else (part,):
            vectors = _vectors(tensor, label)
            rows[vectors.shape[1]].append(vectors)
    return [_vectors(torch.cat(each), label) for each in rows.values()]


def _no_inversion(state: Mapping[object, object], label: str) -> InvalidRequestError:
    if any(".lora_" in str(key) for key in state):
        return InvalidRequestError(
            f"{label} is a LoRA, not a textual inversion: use load_lora (--lora)"
        )
    keys = ", ".join(str(key)[:60] for key in list(state)[:4])
    return InvalidRequestError(f"{label} is not a textual inversion: it holds {keys}")


def _card(path: Path) -> dict[str, object]:
    """What an image of the web UI carries in its text, base64 of JSON with vectors as lists."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            text = getattr(image, "text", {}).get(_CARD)
    except Exception as error:  # Pillow has many of its own for damaged files
        raise InvalidRequestError(f"{path} is an image that cannot be read: {error}") from error
    if text is None:
        raise InvalidRequestError(
            f"{path} is an image without an embedding in its text ({_CARD}); cards that hide "
            "one in their pixels are not read: get its .safetensors or .pt file"
        )
    try:
        card = json.loads(base64.b64decode(text))
        params = {
            key: torch.tensor(each["TORCHTENSOR"], dtype=torch.float32)
            for key, each in card["string_to_param"].items()
        }
    except Exception as error:  # of text that anyone may have written
        raise InvalidRequestError(f"{path}: the embedding in its text is damaged") from error
    return {"string_to_param": params, "name": card.get("name")}
