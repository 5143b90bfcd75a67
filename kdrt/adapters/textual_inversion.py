"""Textual inversion (Gal et al. 2022): learned tokens, from files to a loaded model.

Token embeddings are inputs of the text encoders, not weights in them: learning a token needs no
new engine, and forgetting it restores every output bit by bit.

Read are diffusers' files (``{token: vectors}``), the web UI's (``string_to_param`` in ``.pt``,
``emb_params`` in ``.safetensors``), SDXL's with ``clip_l`` and ``clip_g``, and the same as state
dicts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdrt.errors import InvalidRequest
from kdrt.prompt.encoder import PromptEncoder, TextEncoder

Source = str | os.PathLike[str] | Mapping[str, object] | Tensor

SAFE_NAME, PICKLE_NAME = "learned_embeds.safetensors", "learned_embeds.bin"
"""What diffusers calls the file of a folder or a hub repository."""

_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_MADE_FOR = {
    768: "Stable Diffusion 1, or SDXL's first text encoder",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text encoder",
}
_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")


@dataclass(frozen=True)
class _Found:
    """One token of a file: ``vectors [n, D]`` for ``component``; None is told by D."""

    token: str
    component: str | None
    vectors: Tensor


def load(
    prompts: PromptEncoder,
    source: Source | Sequence[Source],
    token: str | Sequence[str] | None = None,
    *,
    component: str | None = None,
    weight_name: str | None = None,
    allow_pickle: bool = False,
    pool_at_learned: bool = False,
    hub_options: Mapping[str, object] | None = None,
) -> tuple[str, ...]:
    """Teach text encoders the tokens of one source or of several; all of them or none.

    Args:
        prompts: the text encoders.
        source: a file, a folder, a hub id ``owner/name``, a state dict or a tensor ``[n, D]``.
        token: what to write in prompts, one a source, in place of the file's own word for it. A
            list for a single tensor names each of its rows.
        component: the text encoder they are for; None tells it by the file or the width.
        weight_name: the file in a folder or hub repository.
        allow_pickle: also open ``.pt`` and ``.bin`` files, with torch's restricted unpickler.
        pool_at_learned: see :attr:`kdrt.prompt.learned.LearnedTokens.pools`.
        hub_options: further arguments of ``huggingface_hub.hf_hub_download``.

    Returns:
        The tokens that were learned.

    Raises:
        InvalidRequest: a source cannot be found or read, is not a textual inversion, has vectors
            of the wrong width, or its token is already taken.
    """
    found = [
        each
        for one, name in _paired(source, token)
        for each in _read(one, name, component, weight_name, allow_pickle, hub_options or {})
    ]
    placed = [(_encoder_for(prompts, each), each) for each in found]
    taken: set[tuple[str, str]] = set()
    for encoder, each in placed:
        _check_token(encoder, each, taken)
    for encoder, each in placed:
        encoder.learned.add(each.token, each.vectors)
        encoder.learned.pools = pool_at_learned
    for encoder in {id(encoder): encoder for encoder, _ in placed}.values():
        encoder.relearn()
    return tuple(dict.fromkeys(each.token for each in found))


def unload(
    prompts: PromptEncoder,
    token: str | Sequence[str] | None = None,
    *,
    component: str | None = None,
) -> None:
    """Forget learned tokens; None forgets all. What a prompt becomes is then, bit by bit, what it
    was before they were loaded.

    Raises:
        InvalidRequest: a token is not loaded.
    """
    encoders = [e for e in prompts.encoders if component in (None, e.facts.component)]
    loaded = {known for encoder in encoders for known in encoder.learned.tokens}
    tokens = loaded if token is None else {token} if isinstance(token, str) else set(token)
    if not tokens <= loaded:
        missing = ", ".join(sorted(tokens - loaded))
        raise InvalidRequest(
            f"{missing} is not loaded; loaded: {', '.join(sorted(loaded)) or 'nothing'}"
        )
    for encoder in encoders:
        if tokens & encoder.learned.tokens.keys():
            encoder.learned.remove(tuple(tokens))
            encoder.relearn()


def _paired(
    source: Source | Sequence[Source], token: str | Sequence[str] | None
) -> Iterator[tuple[Source, str | None]]:
    if isinstance(source, (str, os.PathLike, Mapping, Tensor)):
        if token is None or isinstance(token, str):
            yield source, token
            return
        if not isinstance(source, Tensor) or len(source) != len(token):
            raise InvalidRequest(
                f"there are {len(token)} tokens for one source; give one, or a tensor with as "
                "many rows"
            )
        yield from zip(source.unbind(), token, strict=True)
        return
    if token is None:
        yield from ((one, None) for one in source)
        return
    if isinstance(token, str) or len(token) != len(source):
        raise InvalidRequest(f"there are {len(source)} sources; give as many tokens")
    yield from zip(source, token, strict=True)


def _read(
    source: Source,
    token: str | None,
    component: str | None,
    weight_name: str | None,
    allow_pickle: bool,
    hub_options: Mapping[str, object],
) -> Iterator[_Found]:
    label, stem = "the textual inversion", None
    state: object = source
    if isinstance(source, (str, os.PathLike)):
        path = _locate(source, weight_name, allow_pickle, hub_options)
        label = str(path)
        # The names of a folder's or repository's only file say nothing.
        stem = None if path.name in (SAFE_NAME, PICKLE_NAME) else path.stem
        state = _state_of(path, allow_pickle)
    for word, part, vectors in _tokens_of(state, label):
        name = token or word or stem
        if not name:
            raise InvalidRequest(f"{label} does not name its token; give token=")
        yield _Found(name, component or part, _vectors(vectors, f"'{name}' in {label}"))


def _tokens_of(state: object, label: str) -> list[tuple[str | None, str | None, object]]:
    """Token, component and vectors of everything in a file; None is what the file leaves open."""
    if isinstance(state, Tensor):
        return [(None, None, state)]
    if not isinstance(state, Mapping) or not state:
        raise InvalidRequest(f"{label} is not a textual inversion")
    if "string_to_param" in state:
        params = state["string_to_param"]
        if not isinstance(params, Mapping | torch.nn.ParameterDict) or len(params) != 1:
            raise InvalidRequest(f"{label} must have exactly one entry in string_to_param")
        name = state.get("name")
        return [(name if isinstance(name, str) else None, None, next(iter(params.values())))]
    if state.keys() <= _SDXL.keys():
        return [(None, _SDXL[key], vectors) for key, vectors in state.items()]
    if state.keys() == {"emb_params"}:
        return [(None, None, state["emb_params"])]
    if not all(isinstance(vectors, Tensor) and vectors.ndim <= 2 for vectors in state.values()):
        keys = ", ".join(map(str, list(state)[:4]))
        raise InvalidRequest(f"{label} is not a textual inversion: it holds {keys}")
    return [(str(word), None, vectors) for word, vectors in state.items()]


def _vectors(value: object, label: str) -> Tensor:
    """``value`` as ``[n, D]``."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        raise InvalidRequest(f"{label} has no vectors")
    vectors = value.detach()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not bool(vectors.isfinite().all()):
        raise InvalidRequest(
            f"{label} must be finite vectors [n, D], not a tensor of shape {list(vectors.shape)}"
        )
    return vectors


def _encoder_for(prompts: PromptEncoder, found: _Found) -> TextEncoder:
    width = found.vectors.shape[1]
    candidates = [e for e in prompts.encoders if found.component in (None, e.facts.component)]
    for encoder in candidates:
        if encoder.facts.hidden_size == width:
            return encoder
    made_for = f" (those of {_MADE_FOR[width]})" if width in _MADE_FOR else ""
    takes = " and ".join(f"{e.facts.hidden_size} in {e.facts.component}" for e in candidates)
    raise InvalidRequest(
        f"'{found.token}' has vectors of {width} numbers{made_for}, and this model takes "
        f"{takes or f'none in {found.component}, which it lacks'}; load one that was made for it"
    )


def _check_token(encoder: TextEncoder, found: _Found, taken: set[tuple[str, str]]) -> None:
    """Refuse a token that is a word already; ``taken`` are those of the same call."""
    token, component = found.token, encoder.facts.component
    if not token.strip():
        raise InvalidRequest("a token is blank; give token= something to write in prompts")
    for name in (token, *(f"{token}_{i}" for i in range(1, len(found.vectors)))):
        normalized = encoder.tokenizer.normalized(name)
        if name in encoder.learned.tokens:
            raise InvalidRequest(f"'{name}' is already loaded; unload it first, or give token=")
        if (component, normalized) in taken or encoder.tokenizer.knows(name):
            raise InvalidRequest(
                f"'{name}' is already in the vocabulary of {component}; give another token="
            )
        taken.add((component, normalized))


def _locate(
    source: str | os.PathLike[str],
    weight_name: str | None,
    allow_pickle: bool,
    hub_options: Mapping[str, object],
) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    names = [weight_name] if weight_name else [SAFE_NAME, *([PICKLE_NAME] if allow_pickle else [])]
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise InvalidRequest(f"{path} has no {' or '.join(names)}; name its file")
    repository = str(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or path.suffix in _SUFFIXES:
        raise InvalidRequest(f"there is no file or folder {path}")
    return _download(repository, names, hub_options)


def _download(repository: str, names: Sequence[str], options: Mapping[str, object]) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InvalidRequest(
            f"there is no file or folder {repository}; to look for it on the Hugging Face hub, "
            "`pip install huggingface-hub`"
        ) from error
    for name in names:
        try:
            return Path(hf_hub_download(repo_id=repository, filename=name, **options))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the network, the hub and the disk, each in its own way
            raise InvalidRequest(f"cannot get {name} of {repository}: {error}") from error
    raise InvalidRequest(
        f"{repository} has no {' or '.join(names)}; give weight_name=, and allow_pickle=True if it "
        "is not a .safetensors file"
    )


def _state_of(path: Path, allow_pickle: bool) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # safetensors has an exception of its own for each damage
            raise InvalidRequest(f"{path} is not a .safetensors file ({error})") from error
    if not allow_pickle:
        raise InvalidRequest(
            f"{path} is a pickle, which can run code when it is opened; if you trust it, give "
            "allow_pickle=True (even then torch's restricted unpickler reads it)"
        )
    try:
        # The first implementation of textual inversion saved this class.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            state: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise anything on a damaged file
        reason = str(error).partition("\n")[0]
        raise InvalidRequest(f"{path} cannot be read safely ({reason})") from error
    return state
