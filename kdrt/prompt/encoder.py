"""The text encoders of a bundle.

Each has a tokenizer, a table of token embeddings and an engine. The table is read here rather
than in the graph, so that new tokens need no new engine. Prompts are encoded one by one and
remembered: a repeated prompt costs nothing, and what a prompt becomes never depends on the batch
it is in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.bundle import Bundle, TextEncoderFacts
from kdrt.common.log import timed
from kdrt.common.lru import LruCache
from kdrt.common.upload import upload
from kdrt.errors import InvalidRequestError
from kdrt.prompt.conditioning import Conditioning
from kdrt.prompt.hints import SYNTAX_MARK, PromptSyntaxWarning, syntax_hints
from kdrt.prompt.learned import LearnedTokens
from kdrt.prompt.token_table import token_embedding
from kdrt.prompt.tokens import PromptTokenizer, Tokens, Truncation
from kdrt.prompt.weighting import Weighting, emphasize
from kdrt_engines import Binding, Engine

_logger = logging.getLogger(__name__)

REMEMBERED_PROMPTS = 64
"""Per text encoder. An SDXL prompt holds half a megabyte, a long one that for each chunk."""

PLAIN = Weighting()


@dataclass(frozen=True)
class Encoded:
    """One prompt, as one text encoder sees it.

    Attributes:
        hidden: ``[L, D]``, the chunks one after another.
        pooled: ``[P]``, of the first chunk.
        truncation: what did not fit; only without weighting.
    """

    hidden: Tensor
    pooled: Tensor
    truncation: Truncation | None = None


class TextEncoder:
    """One text encoder: its tokenizer, its token embeddings, its engine, and a cache of encoded
    prompts.

    Attributes:
        learned: tokens beyond its table; see :meth:`relearn`.
        has_learned: whether there are any.
        times_invalidated: how often the cache was cleared.

    Raises:
        BundleError: a file of the encoder cannot be read.
    """

    def __init__(self, bundle: Bundle, facts: TextEncoderFacts, engine: Engine) -> None:
        self.facts = facts
        self.tokenizer = PromptTokenizer(bundle, facts)
        self.learned = LearnedTokens(first_id=self.tokenizer.size, width=facts.hidden_size)
        self.has_learned = False
        self._engine = engine
        self._embedding = token_embedding(bundle, facts)
        self.tokenizer.check(self._embedding)
        self._binding: Binding | None = None
        self.times_invalidated = 0
        self._remembered: LruCache[tuple[str, int, Weighting], Encoded] = LruCache(
            REMEMBERED_PROMPTS
        )

    def encode(self, prompt: str, clip_skip: int = 0, weighting: Weighting = PLAIN) -> Encoded:
        """Encode one prompt, or take it from the cache.

        Raises:
            InvalidRequestError: see :func:`hidden_layer`.
        """
        layer = hidden_layer(self.facts, clip_skip)
        key = (prompt, layer, weighting)
        return self._remembered.get(key, lambda: self._encode(prompt, layer, weighting))

    def length(self, prompt: str, weighting: Weighting = PLAIN) -> int:
        """The number of tokens that a prompt is encoded as."""
        chunks = 1
        if weighting.mode != "none":
            chunks = len(self.tokenizer.chunks(prompt, weighting.comma_backtrack))
        return chunks * self.facts.max_length

    def encode_together(
        self, prompts: Sequence[str], clip_skip: int = 0, length: int | None = None
    ) -> tuple[Tensor, Tensor, list[Truncation]]:
        """Encode B prompts as plain text in one run of the engine, without the cache.

        The last bits of a prompt's embeddings then depend on the other prompts, as they did in the
        removed pipelines.

        Args:
            prompts: B texts.
            clip_skip: how many hidden states before the usual one to take.
            length: L, if the encoder is to read fewer tokens than it can.

        Returns:
            ``hidden [B, L, D]``, ``pooled [B, P]``, and what did not fit.

        Raises:
            InvalidRequestError: see :func:`hidden_layer`.
        """
        layer = hidden_layer(self.facts, clip_skip)
        length = length or self.facts.max_length
        tokens = [self.tokenizer(prompt).cut(length, self.facts.eos) for prompt in prompts]
        binding = self._engine.bind(B=len(tokens), L=length)
        rows = [self._rows(each) for each in tokens]
        upload(binding.inputs["inputs_embeds"], torch.stack(rows))
        upload(binding.inputs["eos_index"], torch.tensor([each.eos_index for each in tokens]))
        binding.run()
        truncations = [each.truncation for each in tokens if each.truncation]
        hidden = binding.outputs["hidden_states"][:, layer].clone()
        return hidden, binding.outputs["pooled"].clone(), truncations

    @property
    def device(self) -> torch.device:
        """The device that the engine runs on."""
        return self._engine.device

    def use(self, engine: Engine) -> None:
        """Use another engine from now on, or the same one after its weights have changed."""
        self._engine, self._binding = engine, None
        self.invalidate()

    def release(self) -> None:
        """Free the binding of the engine; the cache of prompts stays."""
        self._binding = None

    def invalidate(self) -> None:
        """Clear the cache, because the encoder now encodes prompts differently."""
        self.times_invalidated += 1
        self._remembered.clear()

    def relearn(self) -> None:
        """Apply changes to :attr:`learned`."""
        self.has_learned = bool(self.learned.tokens)
        self.tokenizer.use(self.learned)
        self.invalidate()

    def _encode(self, prompt: str, layer: int, weighting: Weighting) -> Encoded:
        if weighting.mode == "none":
            tokens = self.tokenizer(prompt)
            return Encoded(*self._run(tokens, layer), tokens.truncation)
        chunks = self.tokenizer.chunks(prompt, weighting.comma_backtrack)
        encoded = [self._run(tokens, layer) for tokens in chunks]
        hidden = [
            emphasize(states, tokens.weights, weighting.mode)
            for (states, _), tokens in zip(encoded, chunks, strict=True)
        ]
        return Encoded(torch.cat(hidden), encoded[0][1])

    def _run(self, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
        if self._binding is None:
            self._binding = self._engine.bind(B=1, L=len(tokens.ids))
        inputs, outputs = self._binding.inputs, self._binding.outputs
        upload(inputs["inputs_embeds"][0], self._rows(tokens))
        inputs["eos_index"].fill_(tokens.eos_index)
        self._binding.run()
        return outputs["hidden_states"][0, layer].clone(), outputs["pooled"][0].clone()

    def _rows(self, tokens: Tokens) -> Tensor:
        """The embeddings of tokens, ``[L, D]``."""
        if self.has_learned:
            return self.learned.rows(tokens.ids, self._embedding)
        return self._embedding[list(tokens.ids)]


def hidden_layer(facts: TextEncoderFacts, clip_skip: int) -> int:
    """The hidden state to use, counted from the end: ``facts.layer``, and ``clip_skip`` before it.

    Raises:
        InvalidRequestError: the encoder has fewer hidden states than that.
    """
    most = facts.layers + 1 + facts.layer
    if not 0 <= clip_skip <= most:
        raise InvalidRequestError(
            f"clip_skip must be from 0 to {most} for {facts.component}, not {clip_skip}"
        )
    return facts.layer - clip_skip


class PromptEncoder:
    """All text encoders of a bundle.

    Args:
        bundle: holds tokenizers and token embeddings.
        engines: one for each text encoder, by the name of its component.

    Raises:
        BundleError: a file of an encoder cannot be read.
    """

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        facts = bundle.manifest.text_encoders
        self.encoders = tuple(TextEncoder(bundle, f, engines[f.component]) for f in facts)
        self._pools = bundle.manifest.family == "sdxl"

    @property
    def version(self) -> int:
        """A number that changes whenever prompts may be encoded differently."""
        return sum(encoder.times_invalidated for encoder in self.encoders)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[Sequence[str]],
        clip_skip: int = 0,
        weighting: Weighting = PLAIN,
    ) -> tuple[Conditioning, tuple[Truncation, ...]]:
        """Encode B prompts.

        Args:
            prompts: for every text encoder, in order, the B prompts for it.
            clip_skip: how many hidden states before the usual one to take. Leave it at 0 for
                negative prompts: so did the removed pipelines, and the images made with them.
            weighting: how to read emphasis and long prompts. All prompts get as many chunks as
                the longest one, as if an empty prompt followed them.

        Returns:
            The conditioning, and every distinct prompt that was too long.

        Raises:
            InvalidRequestError: ``clip_skip`` is out of range.
        """
        stage = f"encoded {len(prompts[0])} prompt(s)"
        with timed(_logger, stage, self.encoders[0].device):
            columns = [
                [encoder.encode(text, clip_skip, weighting) for text in texts]
                for encoder, texts in zip(self.encoders, prompts, strict=True)
            ]
        length = max(len(encoded.hidden) for column in columns for encoded in column)
        hidden = [
            torch.stack([self._padded(encoder, e.hidden, length, clip_skip) for e in column])
            for encoder, column in zip(self.encoders, columns, strict=True)
        ]
        pooled = torch.stack([encoded.pooled for encoded in columns[-1]]) if self._pools else None
        truncations = [e.truncation for column in columns for e in column if e.truncation]
        return Conditioning(torch.cat(hidden, dim=-1), pooled), tuple(dict.fromkeys(truncations))

    def length(self, prompts: Sequence[Sequence[str]], weighting: Weighting = PLAIN) -> int:
        """The number of tokens that the conditioning of these prompts will have; see
        :meth:`encode`."""
        return max(
            encoder.length(text, weighting)
            for encoder, texts in zip(self.encoders, prompts, strict=True)
            for text in texts
        )

    def hints(
        self, prompts: Iterable[str], weighting: Weighting = PLAIN
    ) -> list[PromptSyntaxWarning]:
        """What in prompts is read as plain text, though other programs give it a meaning; see
        :func:`kdrt.prompt.hints.syntax_hints`."""
        marked = [prompt for prompt in prompts if SYNTAX_MARK.search(prompt)]
        if not marked:
            return []
        learned = {
            name
            for encoder in self.encoders
            if encoder.has_learned
            for name in encoder.learned.names
        }
        return syntax_hints(marked, weighting.mode, learned)

    @torch.no_grad()
    def pad(self, conditioning: Conditioning, length: int, clip_skip: int = 0) -> Conditioning:
        """Lengthen a conditioning to ``length`` tokens, as if empty prompts followed it.

        Raises:
            InvalidRequestError: what is missing is not a whole number of chunks.
        """
        chunk = self.encoders[0].facts.max_length
        missing = length - conditioning.length
        if missing < 0 or missing % chunk:
            raise InvalidRequestError(
                f"embeddings of {conditioning.length} tokens cannot be used together with {length}:"
                f" both must be a whole number of chunks of {chunk}"
            )
        if not missing:
            return conditioning
        empty = torch.cat([e.encode("", clip_skip).hidden for e in self.encoders], dim=-1)
        hidden = conditioning.encoder_hidden_states
        padding = empty.to(hidden).repeat(missing // chunk, 1).expand(len(hidden), -1, -1)
        return Conditioning(torch.cat([hidden, padding], dim=1), conditioning.text_embeds)

    def use(self, engines: Mapping[str, Engine]) -> None:
        """Use other engines from now on, by component; encoders that are not named keep theirs."""
        for encoder in self.encoders:
            if encoder.facts.component in engines:
                encoder.use(engines[encoder.facts.component])

    def release(self) -> None:
        """See :meth:`TextEncoder.release`."""
        for encoder in self.encoders:
            encoder.release()

    def invalidate(self, component: str | None = None) -> None:
        """Clear the cache of one text encoder, or of all; see :meth:`TextEncoder.invalidate`."""
        for encoder in self.encoders:
            if component in (None, encoder.facts.component):
                encoder.invalidate()

    def _padded(self, encoder: TextEncoder, hidden: Tensor, length: int, clip_skip: int) -> Tensor:
        chunks = (length - len(hidden)) // encoder.facts.max_length
        if not chunks:
            return hidden
        return torch.cat([hidden, *[encoder.encode("", clip_skip).hidden] * chunks])
