"""CLIP text models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.onnx.ops import attention
from kdrt_export.rewrites.fused_qkv import concatenate


class ExportTextEncoder(ExportComponent):
    """A CLIP text model from token embeddings to every hidden state.

    Inputs: inputs_embeds [B,L,D] (rows of the token embedding table, so that new tokens need no
    new engine), eos_index [B] int64 (the first end-of-text token). Outputs: hidden_states
    [B,N,L,D], embeddings first, with the final layer norm applied to each if ``normalize``;
    pooled [B,P], projected where the model has a projection.
    """

    def __init__(
        self,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        normalize: bool,
        fuse_qkv: bool = True,
    ) -> None:
        super().__init__()
        # A list hides the model from the module tree: its token embedding is not traced.
        self._source = [model]
        self.normalize = normalize
        self.fuse_qkv = fuse_qkv
        self.text_projection = getattr(model, "text_projection", None)
        self.width: int = model.config.hidden_size
        self.states: int = model.config.num_hidden_layers + 1
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        pooled = self.width if self.text_projection is None else self.text_projection.out_features
        return EngineSpec(
            (
                TensorSpec("inputs_embeds", dtype, ("B", "L", self.width)),
                TensorSpec("eos_index", "int64", ("B",)),
            ),
            (
                TensorSpec("hidden_states", dtype, ("B", self.states, "L", self.width)),
                TensorSpec("pooled", dtype, ("B", pooled)),
            ),
        )

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        if tensor.name == "eos_index":
            return torch.randint(1, 5, shape, generator=generator)
        return super().example_input(tensor, shape, generator)

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs_embeds, eos_index = inputs
        model = self._source[0]
        text = getattr(model, "text_model", model)
        # Ids reach the network only through the embedding table and the end-of-text position:
        # the rows asked for become the table, and the id there the end-of-text id.
        batch, length, width = inputs_embeds.shape
        ids = torch.arange(batch * length).reshape(batch, length) + 3
        table = torch.cat([inputs_embeds.new_zeros(3, width), inputs_embeds.flatten(0, 1)])
        kept_table, kept_eos = text.embeddings.token_embedding.weight.data, text.eos_token_id
        hidden, pooled = [], []
        try:
            text.embeddings.token_embedding.weight.data = table
            for row, position in zip(ids, eos_index, strict=True):
                text.eos_token_id = int(row[position])
                out = model(row[None], output_hidden_states=True)
                hidden.append(torch.stack(out.hidden_states, dim=1))
                pooled.append(
                    out.pooler_output if self.text_projection is None else out.text_embeds
                )
        finally:
            text.embeddings.token_embedding.weight.data, text.eos_token_id = kept_table, kept_eos
        states = torch.cat(hidden)
        return text.final_layer_norm(states) if self.normalize else states, torch.cat(pooled)

    def rewrite(self) -> None:
        model = self._source.pop()
        text = getattr(model, "text_model", model)
        self.position_embedding = text.embeddings.position_embedding
        self.layers = nn.ModuleList(
            ExportTextLayer(layer, fuse_qkv=self.fuse_qkv) for layer in text.encoder.layers
        )
        self.final_layer_norm = text.final_layer_norm

    def forward(
        self, inputs_embeds: torch.Tensor, eos_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = inputs_embeds.shape[1]
        hidden = inputs_embeds + self.position_embedding.weight[:length]
        order = torch.arange(length, device=hidden.device)
        future = order[None, :] > order[:, None]
        mask = future.to(hidden.dtype) * torch.finfo(hidden.dtype).min
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        last = self.final_layer_norm(hidden)
        pooled = last.gather(1, eos_index[:, None, None].expand(-1, 1, last.shape[-1]))[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        stacked = torch.stack(states, dim=1)
        return (self.final_layer_norm(stacked) if self.normalize else stacked), pooled


class ExportTextLayer(nn.Module):
    """One CLIP encoder layer, of a text or a vision model, its QKV projection fused or not, and for
    text with an additive mask [L, L]."""

    def __init__(self, layer: Any, *, fuse_qkv: bool) -> None:
        super().__init__()
        source = layer.self_attn
        self.heads: int = source.num_heads
        self.head_dim: int = source.head_dim
        projections = (source.q_proj, source.k_proj, source.v_proj)
        self.to_qkv = concatenate(*projections) if fuse_qkv else nn.ModuleList(projections)
        self.out_proj = source.out_proj
        self.layer_norm1, self.layer_norm2 = layer.layer_norm1, layer.layer_norm2
        self.mlp = layer.mlp

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = self._project(self.layer_norm1(hidden))
        hidden = hidden + self.out_proj(
            attention(query, key, value, self.heads, self.head_dim, mask)
        )
        return hidden + self.mlp(self.layer_norm2(hidden))

    def _project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if isinstance(self.to_qkv, nn.ModuleList):
            return tuple(projection(hidden) for projection in self.to_qkv)
        return self.to_qkv(hidden).split(self.heads * self.head_dim, dim=-1)
