"""An encoder for the tiny model, which has none."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.tiny_model import TinyModel


def with_encoder(model: TinyModel) -> Pipeline:
    """The tiny model with an encoder that undoes its decoder."""

    def encoder(image: Tensor) -> Tensor:
        latents = image[:, :, ::8, ::8].clamp(-0.999, 0.999).atanh()
        latents = torch.cat([latents, latents[:, :1]], dim=1)
        return torch.cat([latents, torch.zeros_like(latents)], dim=1)

    spec = EngineSpec(
        (TensorSpec("image", "float32", ("B", 3, "8*h", "8*w")),),
        (TensorSpec("moments", "float32", ("B", 8, "h", "w")),),
    )

    class Module(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return encoder(image)

    engines = {**model.pipeline.engines, "vae_encoder": TorchEngine(Module(), spec)}
    return Pipeline(model.pipeline.bundle, engines)
