"""The transformer between the convolutions, written for tracing.

Same weights and numbers as diffusers' ``Transformer2DModel`` on a continuous input; only the
reshapes between images and tokens differ, so that each is one ONNX node.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from kdrt_export.errors import UnsupportedModelError
from kdrt_export.onnx.ops import to_image, to_tokens
from kdrt_export.rewrites.image_prompt import ImagePrompt


class Perturbed(NamedTuple):
    """Encoder hidden states as the blocks hand them on, and the rows [B] whose self-attentions are
    perturbed: 1 for those, else 0."""

    context: torch.Tensor
    rows: torch.Tensor


class ExportTransformer(nn.Module):
    """hidden_states [B, C, H, W], encoder_hidden_states [B, L, D] → [B, C, H, W]. With IP-Adapters
    the latter come as a tuple with an `ImagePrompt`, of whose scale and mask this transformer has
    one ``column`` and ``channel``."""

    column, channel = 0, 0

    def __init__(self, source: Transformer2DModel) -> None:
        super().__init__()
        if not source.is_input_continuous:
            raise UnsupportedModelError(
                "a transformer over discrete or patched input cannot be exported yet"
            )
        self.norm, self.proj_in, self.proj_out = source.norm, source.proj_in, source.proj_out
        self.transformer_blocks = source.transformer_blocks
        self.linear: bool = source.use_linear_projection

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, ImagePrompt] | Perturbed,
        **_: object,
    ) -> tuple[torch.Tensor]:
        context: object = encoder_hidden_states
        to_attentions = None
        if isinstance(context, Perturbed):
            context, rows = context
            to_attentions = {"perturbed_rows": rows}
        residual = hidden_states
        if isinstance(context, tuple):
            prompt, image = context
            context = prompt, image.at(self.column, self.channel, residual)
        hidden = self.norm(hidden_states)
        tokens = self.proj_in(to_tokens(hidden)) if self.linear else to_tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            tokens = block(
                tokens, encoder_hidden_states=context, cross_attention_kwargs=to_attentions
            )
        # Contiguous, as in the original: other memory layouts mean other kernels, which round
        # differently. Without a fused projection the two are equal bit by bit.
        if self.linear:
            hidden = to_image(self.proj_out(tokens), residual).contiguous()
        else:
            hidden = self.proj_out(to_image(tokens, residual).contiguous())
        return (hidden + residual,)


class ExportGeglu(nn.Module):
    """The gated GELU of the feed-forward: halves of known width split in one node, where an even
    chunk of an unknown one takes six."""

    def __init__(self, source: GEGLU) -> None:
        super().__init__()
        self.proj = source.proj
        self.width: int = source.proj.out_features // 2

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden, gate = self.proj(hidden_states).split(self.width, dim=-1)
        return hidden * F.gelu(gate)


def rewrite_transformers(model: nn.Module) -> int:
    """Replace every ``Transformer2DModel`` in ``model`` and the gated GELUs inside, in place, and
    return how many transformers there were."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GEGLU):
                setattr(parent, name, ExportGeglu(child))
            elif isinstance(child, Transformer2DModel):
                setattr(parent, name, ExportTransformer(child))
                replaced += 1
    return replaced
