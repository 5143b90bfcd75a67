"""Text encoders and tokenizers of a pipeline, as diffusers shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from kdrt.bundle import TextEncoderFacts
from kdrt.common.validation import check_int, check_texts
from kdrt.compat.absent import AbsentAttributeError, SaysWhatThereIs
from kdrt.compat.config import Config, recorded
from kdrt.compat.network_view import NetworkView
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.prompt import PromptTokenizer


class TextEncoderView(NetworkView):
    """A text encoder's configuration, dtype and switches."""

    def __init__(self, pipeline: Pipeline, facts: TextEncoderFacts) -> None:
        super().__init__(pipeline, facts.component, facts.component)
        self._facts = facts

    def _config(self) -> Config:
        facts = self._facts
        return Config(
            recorded(self.pipeline.bundle, facts.component),
            hidden_size=facts.hidden_size,
            max_position_embeddings=facts.max_length,
            bos_token_id=facts.bos,
            eos_token_id=facts.eos,
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: it reads embeddings of tokens, as prompts give them."""
        raise InvalidRequestError(
            f"the {self.name} is an engine, and is not called with ids of tokens: use "
            "pipe.encode_prompt(…), and for emphasis in prompts pipe.pipeline(…, "
            "prompt_weighting=…)"
        )


class Encoding(dict[str, Any]):
    """``input_ids`` and ``attention_mask``, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AbsentAttributeError(f"an encoding has {' and '.join(self)}, and no {name!r}")
        return self[name]


class TokenizerView(SaysWhatThereIs):
    """A tokenizer that can be called, to count tokens and to see them.

    Attributes:
        tokenizer: what does the work.
        model_max_length: how many tokens the text encoder reads, begin and end tokens included.
        bos_token_id: the token before a prompt.
        eos_token_id: the token after a prompt.
        pad_token_id: what fills it up.
    """

    instead = (
        "it counts and shows tokens: tokenizer(text).input_ids, encode, decode, tokenize and "
        "model_max_length; words are learned with pipe.load_textual_inversion"
    )

    def __init__(self, tokenizer: PromptTokenizer, facts: TextEncoderFacts) -> None:
        self.tokenizer = tokenizer
        self.model_max_length = facts.max_length
        self.bos_token_id, self.eos_token_id = facts.bos, facts.eos
        self.pad_token_id = facts.pad

    @property
    def vocab_size(self) -> int:
        """The number of tokens, without learned ones."""
        return self.tokenizer.size

    def __len__(self) -> int:
        return self.tokenizer.size

    def __call__(
        self,
        text: str | list[str],
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> Encoding:
        """The ids of a text, or of several.

        Args:
            text: a string, or a list of them.
            padding: True or ``"longest"`` fills up to the longest, ``"max_length"`` to
                ``max_length``.
            truncation: whether to cut at ``max_length``.
            max_length: None is ``model_max_length``.
            return_tensors: ``"pt"`` or ``"np"``; None gives lists.
            add_special_tokens: whether the begin and end tokens are included.

        Raises:
            InvalidRequestError: an argument is wrong, or rows of a tensor differ in length.
        """
        most = self.model_max_length
        if max_length is not None:
            most = check_int("max_length", max_length, 3)
        rows = [self._row(each, add_special_tokens) for each in check_texts("text", text)]
        if truncation:
            rows = [
                row
                if len(row) <= most
                else [*row[: most - 1], row[-1]]
                if add_special_tokens
                else row[:most]
                for row in rows
            ]
        length = 0
        if padding:
            length = most if padding == "max_length" else max(map(len, rows), default=0)
        ids = [[*row, *[self.pad_token_id] * (length - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        found = {"input_ids": ids, "attention_mask": mask}
        if return_tensors is None:
            return Encoding({k: v[0] if isinstance(text, str) else v for k, v in found.items()})
        if return_tensors not in ("pt", "np") or len({len(row) for row in ids}) != 1:
            raise InvalidRequestError(
                "tokens are given as return_tensors='pt' or 'np', with padding=True where there "
                "are several texts"
            )
        tensors = {name: torch.tensor(value) for name, value in found.items()}
        if return_tensors == "pt":
            return Encoding(tensors)
        return Encoding({name: tensor.numpy() for name, tensor in tensors.items()})

    def encode(self, text: str, **options: Any) -> Any:
        """The ids of a text alone."""
        return self(text, **options).input_ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as the vocabulary writes them."""
        (one,) = check_texts("text", text, 1)
        return self.tokenizer.tokens(one)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of ids.

        Raises:
            InvalidRequestError: they are no ids.
        """
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        listed = listed if isinstance(listed, Sequence) else [listed]
        if isinstance(listed, str):
            raise InvalidRequestError("ids must be a list of whole numbers, not a string")
        return self.tokenizer.text(
            [check_int("ids", each, 0, 2**31) for each in listed], skip_special_tokens
        )

    def batch_decode(self, sequences: Sequence[Any], **options: Any) -> list[str]:
        """The texts of several lists of ids."""
        return [self.decode(ids, **options) for ids in sequences]

    def _row(self, text: str, marked: bool) -> list[int]:
        ids = self.tokenizer.ids(text)
        return [self.bos_token_id, *ids, self.eos_token_id] if marked else ids


def inner(part: object) -> object:
    """The object behind a view: equal for two views of the same part."""
    if isinstance(part, NetworkView):
        return part.engine
    return part.tokenizer if isinstance(part, TokenizerView) else part
