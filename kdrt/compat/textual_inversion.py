"""diffusers' methods for textual inversion, on engines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from kdrt.common.validation import check_texts
from kdrt.compat.absent import AbsentAttributeError, UnknownArgumentError
from kdrt.compat.text_views import TextEncoderView, TokenizerView, inner
from kdrt.errors import InvalidRequestError
from kdrt.prompt.learned import stands_alone

if TYPE_CHECKING:
    from kdrt.adapters.textual_inversion import Source
    from kdrt.pipeline.pipeline import Pipeline

_HUB_OPTIONS = {
    "cache_dir": "cache_dir",
    "force_download": "force_download",
    "hf_token": "token",
    "local_files_only": "local_files_only",
    "revision": "revision",
    "subfolder": "subfolder",
}
"""diffusers' names of the hub's own options."""

_IGNORED = {"mirror", "proxies"}
"""What diffusers takes and the hub no longer has."""


class TextualInversionMixin:
    """For a class that holds a :class:`kdrt.Pipeline` in ``pipeline``.

    ``tokenizer`` and ``text_encoder`` arguments take the attribute of that name of this class, or
    its name, such as ``"text_encoder_2"``.
    """

    pipeline: Pipeline

    @property
    def text_encoder(self) -> TextEncoderView:
        """The first text encoder."""
        return self._text_encoder(0)[0]

    @property
    def tokenizer(self) -> TokenizerView:
        """The tokenizer of the first text encoder."""
        return self._text_encoder(0)[1]

    @property
    def text_encoder_2(self) -> TextEncoderView:
        """SDXL's second text encoder."""
        return self._text_encoder(1)[0]

    @property
    def tokenizer_2(self) -> TokenizerView:
        """The tokenizer of SDXL's second text encoder."""
        return self._text_encoder(1)[1]

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | Sequence[Source],
        token: str | Sequence[str] | None = None,
        tokenizer: object = None,
        text_encoder: object = None,
        *,
        weight_name: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs: object,
    ) -> None:
        """Load textual inversions as diffusers does. Pickles (``.bin``, ``.pt``) are allowed unless
        ``use_safetensors`` is True; they are always read with torch's restricted unpickler.

        One thing differs from diffusers: without ``text_encoder``, the width of the vectors decides
        which encoder they are for, and a file with ``clip_l`` and ``clip_g`` is loaded into both.

        Raises:
            InvalidRequestError: see :func:`kdrt.adapters.textual_inversion.load`.
            UnknownArgumentError: there is no such argument.
        """
        unknown = kwargs.keys() - _HUB_OPTIONS.keys() - _IGNORED
        if unknown:
            raise UnknownArgumentError(
                f"load_textual_inversion() has no argument {', '.join(sorted(unknown))}"
            )
        self.pipeline.adapters.load_textual_inversion(
            pretrained_model_name_or_path,
            token,
            component=self._component(tokenizer, text_encoder),
            weight_name=weight_name,
            allow_pickle=not use_safetensors,
            pool_at_learned=True,
            hub_options={
                theirs: kwargs[ours]
                for ours, theirs in _HUB_OPTIONS.items()
                if kwargs.get(ours) is not None
            },
        )

    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: object = None,
        text_encoder: object = None,
    ) -> None:
        """Remove ``tokens`` (None: all of them) from one text encoder, or from every one. All
        vectors of a token are removed with it, even if ``token_1`` and so on are not listed.

        Raises:
            InvalidRequestError: none of ``tokens`` is loaded.
        """
        component = self._component(tokenizer, text_encoder)
        if tokens is not None:
            asked = list(check_texts("tokens", tokens))
            known = [t for t in asked if t in self._tokens(component)]
            tokens = known or asked
        self.pipeline.adapters.unload_textual_inversion(tokens, component=component)

    @overload
    def maybe_convert_prompt(self, prompt: str, tokenizer: object = None) -> str: ...
    @overload
    def maybe_convert_prompt(self, prompt: list[str], tokenizer: object = None) -> list[str]: ...
    def maybe_convert_prompt(
        self, prompt: str | list[str], tokenizer: object = None
    ) -> str | list[str]:
        """Write out tokens that have several vectors: ``token`` becomes ``token token_1 …``. kdrt
        does not need this: both forms of a prompt give the same image."""
        tokens = self._tokens(self._component(tokenizer, None))
        if not isinstance(prompt, str):
            return [_written_out(text, tokens) for text in check_texts("prompt", prompt)]
        return _written_out(prompt, tokens)

    def _tokens(self, component: str | None) -> dict[str, int]:
        """The number of vectors of each loaded token, by all of its names."""
        return {
            name: len(ids)
            for encoder in self.pipeline.prompt_encoder.encoders
            if component in (None, encoder.facts.component)
            for name, ids in encoder.learned.names.items()
        }

    def _text_encoder(self, index: int) -> tuple[TextEncoderView, TokenizerView]:
        facts = self.pipeline.bundle.manifest.text_encoders
        if index >= len(facts):
            raise AbsentAttributeError(f"{type(self).__name__} has {len(facts)} text encoder")
        encoder = self.pipeline.prompt_encoder.encoders[index]
        return (
            TextEncoderView(self.pipeline, facts[index]),
            TokenizerView(encoder.tokenizer, facts[index]),
        )

    def _component(self, tokenizer: object, text_encoder: object) -> str | None:
        if tokenizer is None and text_encoder is None:
            return None
        facts = self.pipeline.bundle.manifest.text_encoders
        for index, each in enumerate(facts):
            encoder, own = self._text_encoder(index)
            # The text encoder decides, as its table is what grows in diffusers.
            if _is_same(text_encoder, encoder, each.component) or (
                text_encoder is None and _is_same(tokenizer, own, each.tokenizer)
            ):
                return each.component
        names = ", ".join(each.component for each in facts)
        raise InvalidRequestError(
            f"tokenizer and text_encoder must be those of this pipeline; text encoders: {names}"
        )


def _is_same(given: object, own: TextEncoderView | TokenizerView, name: str) -> bool:
    return (isinstance(given, str) and given == name) or inner(given) is inner(own)


def _written_out(prompt: str, tokens: dict[str, int]) -> str:
    parts = {token: [f"{token}_{i}" for i in range(1, count)] for token, count in tokens.items()}
    # What is a token itself is no part of another.
    parts = {t: rest for t, rest in parts.items() if not tokens.keys() & set(rest)}
    # The longest first, as the tokenizer finds them; token_1 itself stays what it is.
    names = {*tokens, *(part for rest in parts.values() for part in rest)}
    if not names:
        return prompt

    def replacement(match: re.Match[str]) -> str:
        rest = parts.get(match[0], [])
        done = rest and prompt[match.end() :].lstrip().startswith(rest[0])
        return match[0] if done else " ".join([match[0], *rest])

    pattern = "|".join(map(_found_as, sorted(names, key=len, reverse=True)))
    return re.sub(pattern, replacement, prompt)


def _found_as(token: str) -> str:
    """A pattern that matches a token where the tokenizer finds it."""
    name = re.escape(token)
    return rf"(?<!\w){name}(?!\w)" if stands_alone(token) else name
