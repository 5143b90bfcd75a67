"""Textual inversion (Gal et al. 2022): learned tokens, from files to a loaded model.

Token embeddings are inputs of the text encoders, not weights in them: learning a token needs no
new engine, and forgetting it restores every output bit by bit.

What a file holds is read by :mod:`kdrt.adapters.embedding_file`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from kdrt.adapters.embedding_file import Word, read_words, words_of
from kdrt.adapters.tensor_file import is_there
from kdrt.common.hub import hub_failure
from kdrt.common.paths import user_path
from kdrt.common.validation import check_texts
from kdrt.errors import InvalidRequestError
from kdrt.prompt.encoder import PromptEncoder, TextEncoder

Source = str | os.PathLike[str] | Mapping[str, object] | Tensor

SAFE_NAME, PICKLE_NAME = "learned_embeds.safetensors", "learned_embeds.bin"
"""What diffusers calls the file of a folder or a hub repository."""

MAX_TOKEN = 200
"""Characters of a token."""

_MADE_FOR = {
    768: "Stable Diffusion 1, or SDXL's first text encoder",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text encoder",
}
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?")
_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".png", ".webp")


@dataclass(frozen=True)
class _Placed:
    """A word with the encoders that learn it."""

    names: tuple[str, ...]
    vectors: tuple[tuple[TextEncoder, Tensor], ...]


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
        token: what to write in prompts, one a source. None takes the word the file was written
            for; a file of one word answers to that and to the file's own name, unless these are
            words already. A list for a single source names each of its rows.
        component: the text encoder they are for; None tells it by the file or the width.
        weight_name: the file in a folder or hub repository.
        allow_pickle: also open PyTorch's files, with its restricted unpickler.
        pool_at_learned: see :attr:`kdrt.prompt.learned.LearnedTokens.pools`.
        hub_options: further arguments of ``huggingface_hub.hf_hub_download``.

    Returns:
        The tokens that were learned, each by its first name.

    Raises:
        InvalidRequestError: a source cannot be found or read, is not a textual inversion, has
            vectors of the wrong width, or its token is already taken.
    """
    words = [
        word
        for one, names in _paired(source, token)
        for word in _named(_words(one, weight_name, allow_pickle, hub_options or {}), names)
    ]
    placed = [_placed(prompts, word, component) for word in words]
    taken: set[tuple[str, str]] = set()
    chosen = [_chosen(each, taken) for each in placed]
    for (name, *aliases), each in zip(chosen, placed, strict=True):
        for encoder, vectors in each.vectors:
            encoder.learned.add(name, vectors, aliases)
            encoder.learned.pools = pool_at_learned
    for encoder in {id(e): e for each in placed for e, _ in each.vectors}.values():
        encoder.relearn()
    return tuple(dict.fromkeys(names[0] for names in chosen))


def unload(
    prompts: PromptEncoder,
    token: str | Sequence[str] | None = None,
    *,
    component: str | None = None,
) -> None:
    """Forget learned tokens; None forgets all. What a prompt becomes is then, bit by bit, what it
    was before they were loaded.

    Raises:
        InvalidRequestError: a token is not loaded.
    """
    encoders = [e for e in prompts.encoders if component in (None, e.facts.component)]
    if not encoders:
        there = ", ".join(e.facts.component for e in prompts.encoders)
        raise InvalidRequestError(f"there is no text encoder {component!r}; this model has {there}")
    loaded = {known for encoder in encoders for known in encoder.learned.tokens}
    aliases = {name: t for encoder in encoders for name, t in encoder.learned.aliases.items()}
    asked = loaded if token is None else set(check_texts("token", token))
    tokens = {aliases.get(name, name) for name in asked}
    if not tokens <= loaded:
        missing = ", ".join(sorted(tokens - loaded))
        raise InvalidRequestError(
            f"{missing} is not loaded; loaded: {', '.join(sorted(loaded)) or 'nothing'}"
        )
    for encoder in encoders:
        if tokens & encoder.learned.tokens.keys():
            encoder.learned.remove(tuple(tokens))
            encoder.relearn()


_Tokens = str | Sequence[str] | None


def _paired(source: Source | Sequence[Source], token: _Tokens) -> Iterator[tuple[Source, _Tokens]]:
    if token is not None:
        check_texts("token", token)
    if isinstance(source, (str, os.PathLike, Mapping, Tensor)):
        yield source, token
        return
    if not isinstance(source, Sequence):
        raise InvalidRequestError(
            "a textual inversion is a file, a folder, a hub id, a state dict or a tensor, not a "
            f"{type(source).__name__}"
        )
    if token is None:
        yield from ((one, None) for one in source)
        return
    if isinstance(token, str) or len(token) != len(source):
        raise InvalidRequestError(f"there are {len(source)} sources; give as many tokens")
    yield from zip(source, token, strict=True)


def _words(
    source: Source, weight_name: str | None, allow_pickle: bool, hub_options: Mapping[str, object]
) -> list[Word]:
    if not isinstance(source, (str, os.PathLike)):
        return words_of(source, "the textual inversion", None)
    path = _locate(source, weight_name, allow_pickle, hub_options)
    # The names of a folder's or repository's only file say nothing.
    stem = None if path.name in (SAFE_NAME, PICKLE_NAME) else path.stem
    return read_words(path, stem, allow_pickle=allow_pickle)


def _named(words: list[Word], tokens: _Tokens) -> Iterator[Word]:
    """The words under the names they are to have."""
    if tokens is None:
        yield from words
    elif len(words) != 1:
        names = ", ".join(word.names[0] for word in words[:3])
        raise InvalidRequestError(
            f"there are {len(words)} words in one source ({names}, …), each with its own name: "
            "leave out token="
        )
    elif isinstance(tokens, str):
        yield replace(words[0], names=(tokens,))
    elif any(len(vectors) != len(tokens) for _, vectors in words[0].vectors):
        raise InvalidRequestError(
            f"there are {len(tokens)} tokens for one source; give one, or as many as it has vectors"
        )
    else:
        for row, token in enumerate(tokens):
            rows = tuple((part, each[row : row + 1]) for part, each in words[0].vectors)
            yield Word((token,), rows)


def _placed(prompts: PromptEncoder, word: Word, component: str | None) -> _Placed:
    wanted = [
        (component or part, vectors)
        for part, vectors in word.vectors
        if component is None or part in (None, component)
    ]
    if not wanted:
        raise InvalidRequestError(f"{_called(word)} has no vectors for {component}")
    return _Placed(
        word.names, tuple((_encoder_for(prompts, part, v, _called(word)), v) for part, v in wanted)
    )


def _called(word: Word) -> str:
    return f"'{word.names[0]}'" if word.names else "the textual inversion"


def _encoder_for(
    prompts: PromptEncoder, component: str | None, vectors: Tensor, name: str
) -> TextEncoder:
    width = vectors.shape[1]
    candidates = [e for e in prompts.encoders if component in (None, e.facts.component)]
    for encoder in candidates:
        if encoder.facts.hidden_size == width:
            return encoder
    made_for = f" (those of {_MADE_FOR[width]})" if width in _MADE_FOR else ""
    takes = " and ".join(f"{e.facts.hidden_size} in {e.facts.component}" for e in candidates)
    raise InvalidRequestError(
        f"{name} has vectors of {width} numbers{made_for}, and this model takes "
        f"{takes or f'none in {component}, which it lacks'}; load one that was made for it"
    )


def _chosen(word: _Placed, taken: set[tuple[str, str]]) -> tuple[str, ...]:
    """The names a word gets: its first that is free, and others that are no words already.

    Args:
        word: with all its names.
        taken: components and normalized names of the words of the same call; is added to.
    """
    if not word.names:
        raise InvalidRequestError("the textual inversion does not name its token; give token=")
    for name in word.names:
        _check_text(name)
    encoders = [encoder for encoder, _ in word.vectors]
    new = [n for n in word.names if not any(e.tokenizer.is_word(n) for e in encoders)]
    first = (new or word.names)[0]
    for encoder in encoders:
        tokenizer, component = encoder.tokenizer, encoder.facts.component
        normalized = tokenizer.normalized(first)
        if first in encoder.learned.tokens:
            raise InvalidRequestError(
                f"'{first}' is already loaded; unload it first, or give token="
            )
        known = {tokenizer.normalized(token) for token in encoder.learned.tokens}
        if normalized in known or (component, normalized) in taken or tokenizer.knows(first):
            raise InvalidRequestError(
                f"'{first}' is already in the vocabulary of {component}; give another token="
            )
        taken.add((component, normalized))
    return (first, *(name for name in new if name != first))


def _check_text(token: str) -> None:
    if not token.strip():
        raise InvalidRequestError("a token is blank; give token= something to write in prompts")
    if len(token) > MAX_TOKEN:
        raise InvalidRequestError(
            f"'{token[:40]}…' is a token of {len(token)} characters; at most {MAX_TOKEN} are taken"
        )
    try:
        token.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{token!r} cannot be written in a prompt; give token="
        ) from error


def _locate(
    source: str | os.PathLike[str],
    weight_name: str | None,
    allow_pickle: bool,
    hub_options: Mapping[str, object],
) -> Path:
    path = user_path(source)
    if weight_name is not None and not isinstance(weight_name, str):
        raise InvalidRequestError(f"weight_name must be the name of a file, not {weight_name!r}")
    names = [weight_name] if weight_name else [SAFE_NAME, *([PICKLE_NAME] if allow_pickle else [])]
    if is_there(path) and not path.is_dir():
        return path
    if is_there(path):
        for name in names:
            if is_there(path / name):
                return path / name
        raise InvalidRequestError(f"{path} has no {' or '.join(names)}; name its file")
    place = _HUB.fullmatch(str(source))
    if place is None or path.suffix.lower() in _SUFFIXES:
        raise InvalidRequestError(f"there is no file or folder {path}")
    revision = {"revision": place["revision"]} if place["revision"] else {}
    return _download(place["repo"], names, {**revision, **hub_options})


def _download(repository: str, names: Sequence[str], options: Mapping[str, object]) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise InvalidRequestError(
            f"there is no file or folder {repository}; to look for it on the Hugging Face hub, "
            "`pip install huggingface-hub`"
        ) from error
    for name in names:
        try:
            return Path(hf_hub_download(repo_id=repository, filename=name, **options))
        except Exception as error:  # the network, the hub and the disk, each in its own way
            # LocalEntryNotFoundError is one too, of a hub that cannot be reached.
            is_offline = isinstance(error, LocalEntryNotFoundError)
            if isinstance(error, EntryNotFoundError) and not is_offline:
                continue
            revision = options.get("revision")
            raise InvalidRequestError(
                hub_failure(error, repository, str(revision) if revision else None)
            ) from error
    raise InvalidRequestError(
        f"{repository} has no {' or '.join(names)}; give weight_name=, and allow_pickle=True if it "
        "is not a .safetensors file"
    )
