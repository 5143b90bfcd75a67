"""From text to token ids: CLIP's tokenizer, learned tokens, chunks, and what did not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tokenizers import AddedToken, Encoding, Tokenizer
from torch import Tensor

from kdrt.bundle import Bundle, TextEncoderFacts
from kdrt.errors import BundleError
from kdrt.prompt.chunks import Piece, in_chunks
from kdrt.prompt.learned import stands_alone
from kdrt.prompt.token_table import vocabulary_fault
from kdrt.prompt.weighting import parse


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoder can read."""


@dataclass(frozen=True)
class Truncation:
    """A prompt that did not fit.

    Attributes:
        prompt: the whole prompt.
        kept_tokens: how many of its tokens were used, not counting start and end marks.
        dropped_text: the end of the prompt, which had no effect.
    """

    prompt: str
    kept_tokens: int
    dropped_text: str

    def __str__(self) -> str:
        return (
            f"the prompt is too long: only its first {self.kept_tokens} tokens are used, and "
            f"this part has no effect: {self.dropped_text!r}"
        )


@dataclass(frozen=True)
class Tokens:
    """The ids that a text encoder reads at once: ``[bos, …, eos, pad, …]``, always ``max_length``
    of them.

    ``weights`` are those of the tokens; marks and padding have a weight of 1. ``eos_index`` is the
    position at which the encoder pools.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    eos_index: int
    truncation: Truncation | None = None

    def cut(self, length: int, eos: int) -> Tokens:
        """The first ``length`` ids. If that would lose ``eos``, it is the last of them."""
        ids, last = self.ids[:length], length - 1
        if eos not in ids:
            ids = (*ids[:last], eos)
        return Tokens(ids, self.weights[:length], min(self.eos_index, last), self.truncation)


class Vocabulary(Protocol):
    """Learned tokens: ids beyond those of the tokenizer, one for each vector."""

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """The ids of each token; of names that differ in case only the first counts."""

    @property
    def pools(self) -> bool:
        """Whether these ids count where an encoder pools at the highest one."""


@dataclass(frozen=True)
class _Piece:
    """Ids that belong together: one of the tokenizer's, or all those of a learned token."""

    ids: tuple[int, ...]
    start: int
    """Where its text starts in the prompt."""


class PromptTokenizer:
    """CLIP's tokenizer, which pads and truncates as in the training of the text encoder.

    Raises:
        BundleError: ``tokenizer.json`` cannot be read.
    """

    def __init__(self, bundle: Bundle, facts: TextEncoderFacts) -> None:
        self._path = bundle.file(facts.tokenizer) / "tokenizer.json"
        self._facts = facts
        self._tokenizer = self._read()
        self._added: set[str] = set()
        self._learned: dict[int, tuple[int, ...]] = {}
        self._pools_at_learned = False
        self.size: int = self._tokenizer.get_vocab_size()
        self._comma = self._tokenizer.token_to_id(",</w>")

    def check(self, table: Tensor) -> None:
        """Raises BundleError: the tokenizer does not fit the token embeddings ``table [V, D]``."""
        fault = vocabulary_fault(self._tokenizer, self._facts, table)
        if fault is not None:
            raise BundleError(
                f"{self._path} does not fit {self._facts.component}: {fault}; export it again"
            )

    def __call__(self, prompt: str) -> Tokens:
        """The whole prompt as plain text, cut if it is too long."""
        room = self._facts.max_length - 2
        places = [(id_, piece.start) for piece in self._pieces(prompt) for id_ in piece.ids]
        truncation = None
        if len(places) > room:
            truncation = Truncation(prompt, room, prompt[places[room][1] :].strip())
        ids = [id_ for id_, _ in places[:room]]
        return self._framed(ids, [1.0] * len(ids), truncation)

    def ids(self, text: str) -> list[int]:
        """All ids of a text as it is, without marks, including those of learned tokens."""
        return [id_ for piece in self._pieces(text) for id_ in piece.ids]

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, as the vocabulary writes them."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def text(self, ids: list[int], skip_marks: bool) -> str:
        """The text that the ids stand for; ``skip_marks`` leaves out special tokens."""
        text = str(self._tokenizer.decode(ids, skip_special_tokens=skip_marks))
        return text.replace("</w>", " ").strip()

    def chunks(self, prompt: str, comma_backtrack: int) -> tuple[Tokens, ...]:
        """The prompt with emphasis, in as many chunks as it needs; see :mod:`.weighting`.

        Raises:
            InvalidRequestError: there are more chunks than any UNet could attend to.
        """
        sections = [
            [
                Piece(piece.ids, fragment.weight)
                for fragment in section
                for piece in self._pieces(fragment.text)
            ]
            for section in parse(prompt)
        ]
        room = self._facts.max_length - 2
        return tuple(
            self._framed([id_ for id_, _ in chunk], [weight for _, weight in chunk])
            for chunk in in_chunks(sections, room, self._comma, comma_backtrack)
        )

    def use(self, vocabulary: Vocabulary) -> None:
        """Use these learned tokens and no others.

        As in diffusers, ``token`` stands for all of its vectors, and ``token_1``, ``token_2``, …
        for a single one, where no token has that name.
        """
        names = list(vocabulary.names.items())
        singles = [part for name, ids in names for part in _single(name, ids)]
        wanted: dict[str, tuple[int, ...]] = {}
        taken: set[str] = set()
        for name, ids in names + singles:
            normalized = self.normalized(name)
            if normalized not in taken:
                taken.add(normalized)
                wanted[name] = ids
        if not self._added <= wanted.keys():
            self._tokenizer = self._read()  # tokenizers cannot remove a token
            self._added = set()
        # Normalized: in any case. transformers adds them so that they match inside of words too.
        new = [
            AddedToken(name, normalized=True, single_word=stands_alone(name))
            for name in wanted
            if name not in self._added
        ]
        self._tokenizer.add_tokens(new)
        self._added = set(wanted)
        self._learned = {
            id_: part
            for name, part in wanted.items()
            if (id_ := self._tokenizer.token_to_id(name)) is not None
        }
        self._pools_at_learned = vocabulary.pools

    def knows(self, token: str) -> bool:
        """Whether ``token``, in this or in lower case, is in the vocabulary without what was
        learned."""
        ids = map(self._tokenizer.token_to_id, (token, self.normalized(token)))
        return any(id_ is not None and id_ < self.size for id_ in ids)

    def is_word(self, text: str) -> bool:
        """Whether the tokenizer reads ``text`` as one word that it knows, not a learned one."""
        ids = self._encode(text).ids
        return len(ids) == 1 and ids[0] < self.size

    def normalized(self, text: str) -> str:
        """``text`` as the tokenizer compares it."""
        normalizer = self._tokenizer.normalizer
        with self._refused(f"a tokenizer that cannot read {text[:40]!r}"):
            return text if normalizer is None else str(normalizer.normalize_str(text))

    def _read(self) -> Tokenizer:
        with self._refused("not a tokenizer"):
            tokenizer = Tokenizer.from_file(str(self._path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _encode(self, text: str) -> Encoding:
        with self._refused(f"a tokenizer that cannot read {text[:40]!r}"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    @contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """Say that the file is ``what`` if tokenizers fails."""
        try:
            yield
        except BaseException as error:  # tokenizers panics with one that is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(f"{self._path} is {what} ({error}); export it again") from error

    def _pieces(self, text: str) -> list[_Piece]:
        encoding = self._encode(text)
        pieces = []
        for index, (id_, (start, _)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
            ids = self._learned.get(id_, (id_,))
            if len(ids) > 1:
                # A prompt in which "token" was already written out as "token token_1 …".
                following = encoding.ids[index + 1 : index + 2]
                if following and self._learned.get(following[0]) == ids[1:2]:
                    ids = ids[:1]
            pieces.append(_Piece(ids, start))
        return pieces

    def _framed(
        self, ids: list[int], weights: list[float], truncation: Truncation | None = None
    ) -> Tokens:
        facts = self._facts
        padding = facts.max_length - 2 - len(ids)
        framed = [facts.bos, *ids, facts.eos, *[facts.pad] * padding]
        counted = framed
        if not self._pools_at_learned:
            counted = [id_ if id_ < self.size else facts.bos for id_ in framed]
        return Tokens(
            tuple(framed),
            (1.0, *weights, 1.0, *[1.0] * padding),
            pooled_index(counted, facts.pooled_token),
            truncation,
        )


def _single(token: str, ids: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{token}_{i}", ids[i : i + 1]) for i in range(1, len(ids))]


def pooled_index(ids: list[int], token: int | None) -> int:
    """Where the encoder pools; see :class:`kdrt.bundle.TextEncoderFacts`."""
    wanted = max(ids) if token is None else token
    return ids.index(wanted) if wanted in ids else 0
