"""Prompts to embeddings, in one batch as the removed pipelines did or one by one as kdrt does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from kdrt.common.streams import on_own_stream
from kdrt.common.validation import check_int
from kdrt.pipeline.pipeline import Pipeline
from kdrt.prompt import Conditioning, Truncation, TruncationWarning
from kdrt.prompt.given import checked_embeddings
from kdrt_engines.dtypes import DTYPES


class EncodingMixin:
    """For a class with a ``pipeline``."""

    pipeline: Pipeline

    def _check_embeds(self, name: str, embeds: object, pooled_name: str, pooled: object) -> None:
        """Raise InvalidRequestError if embeddings are given that the UNet cannot take."""
        spec = self.pipeline.engines["unet"].spec
        if embeds is not None:
            width = spec.input("encoder_hidden_states").shape[-1]
            checked_embeddings(name, embeds, ("B", "L", width))
        if pooled is not None:
            rows: int | str = len(embeds) if isinstance(embeds, Tensor) else "B"
            width = spec.input("text_embeds").shape[-1]
            checked_embeddings(pooled_name, pooled, (rows, width))

    def _text_dtype(self, component: str) -> torch.dtype:
        return DTYPES[self.pipeline.engines[component].spec.outputs[0].dtype].torch

    @torch.no_grad()
    @on_own_stream
    def _encode(
        self,
        columns: Sequence[Sequence[str]],
        clip_skip: int | None,
        *,
        together: bool,
        length: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode B prompts with every encoder, and warn of those that are too long.

        Args:
            columns: for every text encoder its B prompts.
            clip_skip: how many hidden states before the usual one to take.
            together: encode all prompts in one batch, as the removed pipelines did; the last bits
                depend on the batch.
            length: L of the embeddings that these are used together with; None is the usual one.

        Returns:
            ``[B, L, D]``, and SDXL's pooled ``[B, P]``.
        """
        skip = 0 if clip_skip is None else check_int("clip_skip", clip_skip, 0)
        truncations: Sequence[Truncation]
        encoders = self.pipeline.prompt_encoder.encoders
        most = min(encoder.facts.max_length for encoder in encoders)
        is_short = length is not None and length < most
        if together or is_short:
            parts = [
                encoder.encode_together(texts, skip, length if is_short else None)
                for encoder, texts in zip(encoders, columns, strict=True)
            ]
            hidden = torch.cat([part[0] for part in parts], dim=-1)
            pooled = parts[-1][1] if self.pipeline.bundle.manifest.family == "sdxl" else None
            truncations = [each for part in parts for each in part[2]]
        else:
            conditioning, truncations = self.pipeline.prompt_encoder.encode(columns, skip)
            hidden, pooled = conditioning.encoder_hidden_states, conditioning.text_embeds
        if length is not None and length > most:
            padded = self.pipeline.prompt_encoder.pad(Conditioning(hidden, pooled), length, skip)
            hidden = padded.encoder_hidden_states
        for truncation in dict.fromkeys(truncations):
            warnings.warn(str(truncation), TruncationWarning, stacklevel=3)
        device = self.pipeline.engines["unet"].device
        return hidden.to(device), None if pooled is None else pooled.to(device)


def repeat(embeds: Tensor, times: int) -> Tensor:
    """Every row ``times`` times in a row: p0, p0, p1, p1."""
    return embeds.repeat_interleave(times, dim=0)
