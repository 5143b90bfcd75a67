"""A network that enlarges images and nothing else, for the tiny model too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrt.bundle import Component, TensorInfo, UpscalerFacts
from kdrt.bundle.components import UPSCALER_COMPONENT
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine


class Enlarging(nn.Module):
    """Repeats pixels, and makes images lighter; ``shapes`` are of what it was given."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.shapes: list[torch.Size] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(image.shape)
        lighter = image.sqrt()
        return lighter.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


def upscaler_facts(*, scale: int, tile: int = 256, margin: int = 16) -> UpscalerFacts:
    return UpscalerFacts(
        scale=scale,
        architecture="ESRGAN",
        source="sharp.safetensors",
        sha256="0" * 64,
        tile=tile,
        margin=margin,
    )


def upscaler_spec(scale: int) -> EngineSpec:
    return EngineSpec(
        (TensorSpec("image", "float32", ("B", 3, "H", "W")),),
        (TensorSpec("enlarged", "float32", ("B", 3, f"{scale}*H", f"{scale}*W")),),
    )


def enlarging_engine(network: nn.Module, scale: int) -> TorchEngine:
    return TorchEngine(network, upscaler_spec(scale))


def with_upscaler(pipe: Pipeline, name: str, network: Enlarging, facts: UpscalerFacts) -> Pipeline:
    """A pipeline whose bundle has the upscaler too."""
    bundle, spec = pipe.bundle, upscaler_spec(facts.scale)
    component = Component(
        onnx="onnx/none/model.onnx",
        inputs=tuple(TensorInfo(name=t.name, dtype="float32", shape=t.shape) for t in spec.inputs),
        outputs=tuple(
            TensorInfo(name=t.name, dtype="float32", shape=t.shape) for t in spec.outputs
        ),
        parameters=0,
    )
    manifest = bundle.manifest
    update = {
        "components": {**manifest.components, UPSCALER_COMPONENT + name: component},
        "upscalers": {name: facts},
    }
    engine = enlarging_engine(network, facts.scale)
    return Pipeline(
        type(bundle)(bundle.path, manifest.model_copy(update=update)),
        {**pipe.engines, UPSCALER_COMPONENT + name: engine},
    )
