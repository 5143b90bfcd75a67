"""Embeddings for the tiny models, and what their text encoders are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdrt.compat.textual_inversion import TextualInversionMixin
from tests.support.tiny_model import WIDTHS, TinyModel

FIRST, SECOND = (torch.arange(3.0 * width).reshape(3, width) + 100 for width in WIDTHS)
"""Three vectors for each of SDXL's text encoders."""


def embeddings(model: TinyModel, prompt: str, index: int = 0, **options: Any) -> Tensor:
    """The token embeddings that a text encoder is given for a prompt, all chunks of it."""
    calls = model.text_encoders[index].calls
    before = len(calls)
    model.pipeline.prompt_encoder.invalidate()
    model.pipeline.encode_prompt(prompt, prompt, **options)
    # The negative prompt is the same text at the same layer: remembered.
    return torch.cat([call["inputs_embeds"][0] for call in calls[before:]])


def first_tokens(model: TinyModel, prompt: str, count: int, index: int = 0) -> Tensor:
    return embeddings(model, prompt, index)[1 : 1 + count]


class Compat(TextualInversionMixin):
    def __init__(self, model: TinyModel) -> None:
        self.pipeline = model.pipeline
