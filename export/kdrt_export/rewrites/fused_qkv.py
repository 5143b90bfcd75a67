"""Attention with fused projections, written for tracing.

Self-attention gets one ``to_qkv``, cross-attention one ``to_kv``: their rows are those of the
original projections, biases included, one after the other. The originals are dropped, so no
weight is stored twice. LoRA must be merged before, since a fused weight no longer sees it.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from kdrt_export.errors import UnsupportedModelError
from kdrt_export.onnx.ops import attention, to_image, to_tokens
from kdrt_export.rewrites.image_prompt import ImageTokens


class ExportAttention(nn.Module):
    """Stands in for diffusers' ``Attention`` with the default processor.

    ``forward`` takes hidden states [B, L, D] or [B, C, H, W] and, for cross-attention, encoder
    hidden states [B, M, E]; it returns the shape of its first argument. With IP-Adapters the
    latter come as a tuple with the tokens of images, and an attention to each of those is added.

    Attributes:
        can_be_perturbed: a self-attention that is the identity map in ``perturbed_rows`` [B], those
            where they are 1 (Ahn et al. 2024, arXiv:2403.17377).
    """

    def __init__(self, source: Attention, *, fuse: bool) -> None:
        super().__init__()
        _refuse_unsupported(source)
        self.heads: int = source.heads
        self.head_dim: int = source.to_q.out_features // source.heads
        self.residual: bool = source.residual_connection
        self.rescale: float = source.rescale_output_factor
        self.group_norm = source.group_norm
        self.is_cross: bool = source.is_cross_attention
        self.fused = fuse
        if not fuse:
            self.to_q, self.to_k, self.to_v = source.to_q, source.to_k, source.to_v
        elif self.is_cross:
            self.to_q = source.to_q
            self.to_kv = concatenate(source.to_k, source.to_v)
        else:
            self.to_qkv = concatenate(source.to_q, source.to_k, source.to_v)
        self.to_kv_ip, self.adapter_of_image = image_projections(source)
        self.to_out = source.to_out
        self.can_be_perturbed = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, ImageTokens] | None = None,
        attention_mask: torch.Tensor | None = None,
        perturbed_rows: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        assert attention_mask is None, "traced networks take no attention mask"
        image = None
        if isinstance(encoder_hidden_states, tuple):
            encoder_hidden_states, image = encoder_hidden_states
        residual = hidden_states
        spatial = hidden_states.ndim == 4
        if spatial:
            hidden_states = to_tokens(hidden_states)
        if self.group_norm is not None:
            hidden_states = self.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query, key, value = self._project(hidden_states, encoder_hidden_states)
        attended = attention(query, key, value, self.heads, self.head_dim)
        if perturbed_rows is not None and self.can_be_perturbed:
            attended = torch.where(perturbed_rows[:, None, None] > 0, value, attended)
        if image is not None and self.to_kv_ip is not None:
            for adapter, tokens, weight in zip(self.adapter_of_image, *image, strict=True):
                key, value = self.to_kv_ip[adapter](tokens).split(
                    self.heads * self.head_dim, dim=-1
                )
                of_image = attention(query, key, value, self.heads, self.head_dim)
                attended = attended + weight * of_image
        out = self.to_out[0](attended)
        if spatial:
            out = to_image(out, residual)
        if self.residual:
            out = out + residual
        return out if self.rescale == 1.0 else out / self.rescale

    def _project(
        self, x: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if context is None:
            context = x
        if not self.fused:
            return self.to_q(x), self.to_k(context), self.to_v(context)
        if self.is_cross:
            key, value = self.to_kv(context).split(self.heads * self.head_dim, dim=-1)
            return self.to_q(x), key, value
        query, key, value = self.to_qkv(x).split(self.heads * self.head_dim, dim=-1)
        return query, key, value


def image_projections(source: Attention) -> tuple[nn.ModuleList | None, list[int]]:
    """Key and value of diffusers' IP-Adapter processor side by side, for each adapter, and which of
    them each image takes: those of one adapter share them. None without a processor of that
    kind."""
    keys = getattr(source.processor, "to_k_ip", None)
    if keys is None:
        return None, []
    values = dict(zip(keys, source.processor.to_v_ip, strict=True))
    fused = nn.ModuleList(concatenate(key, value) for key, value in values.items())
    return fused, [list(values).index(key) for key in keys]


def concatenate(*linears: nn.Linear) -> nn.Linear:
    """One Linear whose output is the outputs of ``linears`` one after the other."""
    first = linears[0]
    biases = [linear.bias for linear in linears]
    fused = nn.utils.skip_init(
        nn.Linear,
        first.in_features,
        sum(linear.out_features for linear in linears),
        bias=any(bias is not None for bias in biases),
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    with torch.no_grad():
        fused.weight.copy_(torch.cat([linear.weight for linear in linears]))
        if fused.bias is not None:
            fused.bias.copy_(
                torch.cat(
                    [
                        linear.weight.new_zeros(linear.out_features) if bias is None else bias
                        for linear, bias in zip(linears, biases, strict=True)
                    ]
                )
            )
    return fused.requires_grad_(False)


def rewrite_attention(model: nn.Module, *, fuse: bool = True) -> int:
    """Replace every diffusers ``Attention`` in ``model``, in place, and return how many."""
    # Not the attentions themselves: each is freed when its successor has its weights.
    sites = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Attention)
    ]
    for parent, name in sites:
        setattr(parent, name, ExportAttention(getattr(parent, name), fuse=fuse))
    return len(sites)


def _refuse_unsupported(source: Attention) -> None:
    extras = {
        "added projections": getattr(source, "add_k_proj", None),
        "a spatial norm": source.spatial_norm,
        "query or key norms": source.norm_q or source.norm_k,
        "a norm on the encoder states": source.norm_cross,
    }
    for what, present in extras.items():
        if present is not None and present is not False:
            raise UnsupportedModelError(f"attention with {what} cannot be exported yet")
