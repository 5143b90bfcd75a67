"""The conditioning of the UNet by prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The embeddings of B prompts that the UNet gets.

    Attributes:
        encoder_hidden_states: ``[B, L, D]``, with the text encoders side by side along D.
        text_embeds: ``[B, P]``, the pooled embedding of the last encoder; None if the family has
            none.
    """

    encoder_hidden_states: Tensor
    text_embeds: Tensor | None

    @property
    def length(self) -> int:
        """L, in tokens."""
        return self.encoder_hidden_states.shape[1]

    def one(self, index: int) -> Conditioning:
        """The conditioning of one prompt, as a batch with B = 1."""
        pooled = self.text_embeds
        return Conditioning(
            self.encoder_hidden_states[index : index + 1],
            None if pooled is None else pooled[index : index + 1],
        )

    def to(self, device: torch.device) -> Conditioning:
        """The same on ``device``."""
        pooled = self.text_embeds
        return Conditioning(
            self.encoder_hidden_states.to(device), None if pooled is None else pooled.to(device)
        )

    def repeated(self, times: int) -> Conditioning:
        """Every prompt ``times`` times in a row: p0, p0, p1, p1."""
        pooled = self.text_embeds
        return Conditioning(
            self.encoder_hidden_states.repeat_interleave(times, 0),
            None if pooled is None else pooled.repeat_interleave(times, 0),
        )


def zeros_like(conditioning: Conditioning) -> Conditioning:
    """Zeros of the same shapes: the conditioning that SDXL was trained to take for "no negative
    prompt at all"."""
    pooled = conditioning.text_embeds
    return Conditioning(
        torch.zeros_like(conditioning.encoder_hidden_states),
        None if pooled is None else torch.zeros_like(pooled),
    )
