"""CLIP's vision models, and the safety checker that is made of one."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components import ExportComponent, ExportTextLayer


class VisionTransformer(nn.Module):
    """A CLIP vision transformer with fused QKV projections, made of the layers of another.

    ``pixels [B, 3, S, S]``, normalised as CLIP wants them, to hidden states ``[B, N, D]`` of the
    last layer, class token first.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        source = getattr(model, "vision_model", model)
        embeddings = source.embeddings
        self.patch_embedding = embeddings.patch_embedding
        self.class_embedding = embeddings.class_embedding
        self.position_embedding = embeddings.position_embedding
        self.pre_layer_norm = source.pre_layrnorm
        self.layers = nn.ModuleList(
            ExportTextLayer(layer, fuse_qkv=True) for layer in source.encoder.layers
        )
        self.post_layer_norm = source.post_layernorm

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._through(pixels, len(self.layers))

    def before_last(self, pixels: torch.Tensor) -> torch.Tensor:
        """The hidden states ``[B, N, D]`` that come to the last layer."""
        return self._through(pixels, len(self.layers) - 1)

    def _through(self, pixels: torch.Tensor, layers: int) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        hidden = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        hidden = self.pre_layer_norm(hidden)
        for layer in islice(self.layers, layers):
            hidden = layer(hidden)
        return hidden

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        """The normalised class token ``[B, D]``."""
        return self.post_layer_norm(hidden[:, 0])


class ExportSafetyChecker(ExportComponent):
    """Stable Diffusion's safety checker: how far an image lies beyond each threshold.

    Input: clip_input [B,3,S,S]. Outputs, float32: special_scores [B,M] and concept_scores [B,N],
    the cosine of the image's embedding with a concept's, less the concept's threshold. What
    follows from them is a rule for the host: :func:`kdrt.images.safety.is_flagged`.
    """

    special_directions: torch.Tensor
    special_thresholds: torch.Tensor
    concept_directions: torch.Tensor
    concept_thresholds: torch.Tensor

    def __init__(self, checker: Any) -> None:
        super().__init__()
        self._source = [checker]
        vision = getattr(checker.vision_model, "vision_model", checker.vision_model)
        self.size: int = vision.config.image_size
        # Thresholds count in thousandths, too fine for half precision: not parameters, which
        # would be cast.
        self._concepts = {
            "special": (checker.special_care_embeds, checker.special_care_embeds_weights),
            "concept": (checker.concept_embeds, checker.concept_embeds_weights),
        }
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("clip_input", dtype, ("B", 3, self.size, self.size)),),
            tuple(
                TensorSpec(f"{name}_scores", "float32", ("B", len(thresholds)))
                for name, (_, thresholds) in self._concepts.items()
            ),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        checker = self._source[0]
        embedding = checker.visual_projection(checker.vision_model(inputs[0])[1])
        return self._scores(embedding)

    def rewrite(self) -> None:
        checker = self._source.pop()
        self.vision = VisionTransformer(checker.vision_model)
        self.projection = checker.visual_projection
        for name, (embeddings, thresholds) in self._concepts.items():
            self.register_buffer(f"{name}_directions", F.normalize(embeddings.data.float()))
            self.register_buffer(f"{name}_thresholds", thresholds.data.float())

    def cast(self, dtype: torch.dtype) -> None:
        super().cast(dtype)
        for buffer in self.buffers():
            buffer.data = buffer.data.float()

    def forward(self, clip_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = F.normalize(
            self.projection(self.vision.pooled(self.vision(clip_input))).float()
        )
        special = embedding @ self.special_directions.t() - self.special_thresholds
        concept = embedding @ self.concept_directions.t() - self.concept_thresholds
        return special, concept

    def _scores(self, embedding: torch.Tensor) -> tuple[torch.Tensor, ...]:
        unit = F.normalize(embedding.float())
        return tuple(
            unit @ F.normalize(embeddings.float()).t() - thresholds
            for embeddings, thresholds in self._concepts.values()
        )
