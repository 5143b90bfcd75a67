"""From prompts to the UNet's conditioning.

Each text encoder has a tokenizer, a table of token embeddings and an engine. The table is read
here rather than in the graph, so that new tokens need no new engine. Prompts are encoded one by
one and remembered: a repeated prompt costs nothing, and what a prompt becomes never depends on
the batch it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from kdrt.bundle import Bundle, TextEncoderFacts
from kdrt.errors import BundleError, InvalidRequest
from kdrt.recent import Recent
from kdrt_engines import Binding, Engine

REMEMBERED_PROMPTS = 64
"""Per text encoder. An SDXL prompt holds half a megabyte."""


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoder can read."""


@dataclass(frozen=True)
class Truncation:
    """A prompt that did not fit.

    Attributes:
        prompt: the whole prompt.
        kept_tokens: how many of its tokens were used, start and end marks not counted.
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
class Conditioning:
    """What the UNet is told of B prompts.

    Attributes:
        encoder_hidden_states: ``[B, L, D]``, the text encoders side by side along D.
        text_embeds: ``[B, P]``, the pooled embedding of the last encoder; None where the family
            has none.
    """

    encoder_hidden_states: Tensor
    text_embeds: Tensor | None

    def one(self, index: int) -> Conditioning:
        """That of one prompt, still as a batch: B = 1."""
        pooled = self.text_embeds
        return Conditioning(
            self.encoder_hidden_states[index : index + 1],
            None if pooled is None else pooled[index : index + 1],
        )


@dataclass(frozen=True)
class Tokens:
    """One prompt as token ids: ``[bos, …, eos, pad, …]``, always ``max_length`` of them."""

    ids: tuple[int, ...]
    eos_index: int
    truncation: Truncation | None


class PromptTokenizer:
    """CLIP's tokenizer, padding and truncating as the text encoder was trained.

    Raises:
        BundleError: ``tokenizer.json`` cannot be read.
    """

    def __init__(self, bundle: Bundle, facts: TextEncoderFacts) -> None:
        path = bundle.file(facts.tokenizer) / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise BundleError(f"{path} is not a tokenizer ({error}); export it again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._facts = facts

    def __call__(self, prompt: str) -> Tokens:
        facts = self._facts
        encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        kept = encoding.ids[: facts.max_length - 2]
        truncation = None
        if len(kept) < len(encoding.ids):
            start, _ = encoding.offsets[len(kept)]
            truncation = Truncation(prompt, len(kept), prompt[start:].strip())
        ids = [facts.bos, *kept, facts.eos]
        ids += [facts.pad] * (facts.max_length - len(ids))
        return Tokens(tuple(ids), _pooled_index(ids, facts.pooled_token), truncation)


def _pooled_index(ids: list[int], token: int | None) -> int:
    """Where the encoder pools; see :class:`kdrt.bundle.TextEncoderFacts`."""
    wanted = max(ids) if token is None else token
    return ids.index(wanted) if wanted in ids else 0


@dataclass(frozen=True)
class Encoded:
    """One prompt, as one text encoder sees it: ``hidden [L, D]`` and ``pooled [P]``."""

    hidden: Tensor
    pooled: Tensor
    truncation: Truncation | None


class TextEncoder:
    """One text encoder: its tokenizer, its token embeddings, its engine, and its memory.

    Raises:
        BundleError: a file of the encoder cannot be read.
    """

    def __init__(self, bundle: Bundle, facts: TextEncoderFacts, engine: Engine) -> None:
        self._facts = facts
        self._tokenize = PromptTokenizer(bundle, facts)
        self._engine = engine
        self._embedding = _token_embedding(bundle, facts)
        self._binding: Binding | None = None
        self._remembered: Recent[tuple[str, int], Encoded] = Recent(REMEMBERED_PROMPTS)

    def encode(self, prompt: str, clip_skip: int = 0) -> Encoded:
        """Encode one prompt, or remember it. Raises InvalidRequest: see :func:`hidden_layer`."""
        layer = hidden_layer(self._facts, clip_skip)
        return self._remembered.get((prompt, layer), lambda: self._encode(prompt, layer))

    def _encode(self, prompt: str, layer: int) -> Encoded:
        tokens = self._tokenize(prompt)
        if self._binding is None:
            self._binding = self._engine.bind(B=1, L=len(tokens.ids))
        inputs, outputs = self._binding.inputs, self._binding.outputs
        inputs["inputs_embeds"][0].copy_(self._embedding[list(tokens.ids)])
        inputs["eos_index"].fill_(tokens.eos_index)
        self._binding.run()
        return Encoded(
            outputs["hidden_states"][0, layer].clone(),
            outputs["pooled"][0].clone(),
            tokens.truncation,
        )


def hidden_layer(facts: TextEncoderFacts, clip_skip: int) -> int:
    """The hidden state to use, counted from the end: ``facts.layer``, and ``clip_skip`` before it.

    Raises:
        InvalidRequest: the encoder has fewer hidden states than that.
    """
    most = facts.layers + 1 + facts.layer
    if not 0 <= clip_skip <= most:
        raise InvalidRequest(
            f"clip_skip must be from 0 to {most} for {facts.component}, not {clip_skip}"
        )
    return facts.layer - clip_skip


class PromptEncoder:
    """All text encoders of a bundle.

    Args:
        bundle: holds tokenizers and token embeddings.
        engines: one a text encoder, by the name of its component.

    Raises:
        BundleError: a file of an encoder cannot be read.
    """

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        facts = bundle.manifest.text_encoders
        self._encoders = tuple(TextEncoder(bundle, f, engines[f.component]) for f in facts)
        self._pools = bundle.manifest.family == "sdxl"

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[Sequence[str]], clip_skip: int = 0
    ) -> tuple[Conditioning, tuple[Truncation, ...]]:
        """Encode B prompts.

        Args:
            prompts: for every text encoder, in order, its B prompts.
            clip_skip: how many hidden states before the usual one to take. Leave it 0 for
                negative prompts: that is how the removed pipelines, and pictures made with
                them, did it.

        Returns:
            The conditioning, and every distinct prompt that was too long.

        Raises:
            InvalidRequest: ``clip_skip`` is out of range.
        """
        columns = [
            [encoder.encode(text, clip_skip) for text in texts]
            for encoder, texts in zip(self._encoders, prompts, strict=True)
        ]
        hidden = [torch.stack([encoded.hidden for encoded in column]) for column in columns]
        pooled = torch.stack([encoded.pooled for encoded in columns[-1]]) if self._pools else None
        truncations = [e.truncation for column in columns for e in column if e.truncation]
        return Conditioning(torch.cat(hidden, dim=-1), pooled), tuple(dict.fromkeys(truncations))


def zeros_like(conditioning: Conditioning) -> Conditioning:
    """The conditioning SDXL was trained to take for "no negative prompt at all"."""
    pooled = conditioning.text_embeds
    return Conditioning(
        torch.zeros_like(conditioning.encoder_hidden_states),
        None if pooled is None else torch.zeros_like(pooled),
    )


def _token_embedding(bundle: Bundle, facts: TextEncoderFacts) -> Tensor:
    path = bundle.file(facts.token_embedding)
    try:
        return load_file(path)["weight"]
    except Exception as error:  # safetensors has an exception of its own for each kind of damage
        raise BundleError(f"{path} has no token embeddings ({error}); export it again") from error
