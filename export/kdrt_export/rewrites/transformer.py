"""The transformer between the convolutions, written for tracing.

Same weights and numbers as diffusers' ``Transformer2DModel`` on a continuous input; only the
reshapes between pictures and tokens differ, so that each is one ONNX node.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from kdrt_export.errors import UnsupportedModel
from kdrt_export.onnx_ops import to_image, to_tokens


class ExportTransformer(nn.Module):
    """hidden_states [B, C, H, W], encoder_hidden_states [B, L, D] → [B, C, H, W]."""

    def __init__(self, source: Transformer2DModel) -> None:
        super().__init__()
        if not source.is_input_continuous:
            raise UnsupportedModel(
                "a transformer over discrete or patched input cannot be exported yet"
            )
        self.norm, self.proj_in, self.proj_out = source.norm, source.proj_in, source.proj_out
        self.transformer_blocks = source.transformer_blocks
        self.linear: bool = source.use_linear_projection

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor]:
        residual = hidden_states
        hidden = self.norm(hidden_states)
        tokens = self.proj_in(to_tokens(hidden)) if self.linear else to_tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        if self.linear:
            hidden = to_image(self.proj_out(tokens), residual)
        else:
            hidden = self.proj_out(to_image(tokens, residual))
        return (hidden + residual,)


def rewrite_transformers(model: nn.Module) -> int:
    """Replace every ``Transformer2DModel`` in ``model``, in place, and return how many."""
    sites = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Transformer2DModel)
    ]
    for parent, name, child in sites:
        setattr(parent, name, ExportTransformer(child))
    return len(sites)
