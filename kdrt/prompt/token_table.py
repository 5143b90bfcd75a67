"""The table of a text encoder's token embeddings, and the tokenizer that must fit it."""

from __future__ import annotations

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from kdrt.bundle import Bundle, TextEncoderFacts
from kdrt.errors import BundleError


def token_embedding(bundle: Bundle, facts: TextEncoderFacts) -> Tensor:
    """The table of a text encoder, floating point ``[V, D]``.

    Raises:
        BundleError: it cannot be read, or is no such table.
    """
    path = bundle.file(facts.token_embedding)
    try:
        table = load_file(path)["weight"]
    except Exception as error:  # safetensors has an exception of its own for each kind of damage
        raise BundleError(f"{path} has no token embeddings ({error}); export it again") from error
    if not table.is_floating_point() or table.ndim != 2 or table.shape[1] != facts.hidden_size:
        raise BundleError(
            f"{path} is no table of token embeddings of width {facts.hidden_size}: it is "
            f"{[*table.shape]} in {str(table.dtype).removeprefix('torch.')}; export it again"
        )
    if not table.isfinite().all():
        raise BundleError(f"{path} holds numbers that are not finite; export it again")
    return table


def vocabulary_fault(tokenizer: Tokenizer, facts: TextEncoderFacts, table: Tensor) -> str | None:
    """Why a tokenizer does not fit a text encoder; None if it does.

    Args:
        tokenizer: without learned tokens.
        facts: the encoder's.
        table: its token embeddings ``[V, D]``; V may be more than the tokenizer has.
    """
    if table.ndim != 2 or table.shape[1] != facts.hidden_size:
        return (
            f"token embeddings of shape {list(table.shape)}, where hidden_size is "
            f"{facts.hidden_size}"
        )
    rows, vocabulary = len(table), tokenizer.get_vocab(with_added_tokens=True)
    highest = max(vocabulary.values(), default=-1)
    if highest >= rows:
        word = next(token for token, id_ in vocabulary.items() if id_ == highest)
        return f"its token {word!r} has the id {highest}, and there are {rows} token embeddings"
    if highest >= len(vocabulary):
        return f"it has ids up to {highest} for only {len(vocabulary)} tokens"
    for name in ("bos", "eos", "pad"):
        if not 0 <= getattr(facts, name) <= highest:
            return f"{name} is {getattr(facts, name)}, and its ids end at {highest}"
    if facts.max_length < 3:
        return f"it reads {facts.max_length} tokens, and start and end of a prompt are two"
    return None
