"""A small network with a planted overflow: a layer whose results float16 cannot hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import torch
from torch import nn

from kdrt.bundle import Bundle, Dtype, TensorInfo, write_manifest
from kdrt.bundle.store import read_manifest
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.onnx.trace import OnnxFiles, onnx_from_component

TRACED = {"B": 1, "h": 6, "w": 5}
OVERFLOWING = "blocks.1.grow"
"""The module whose results are beyond 65504."""


class _Block(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.grow, self.shrink = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.grow.weight.data *= factor
        self.shrink.weight.data /= factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.shrink(self.grow(self.norm(hidden)))
        return hidden + added


class PlantedOverflow(ExportComponent):
    """latents [B, 4, h, w] → image [B, 3, 4·h, 4·w] through three blocks, of which the middle
    one overflows in float16 inside."""

    def __init__(self, factor: float = 1e6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
            self.blocks = nn.ModuleList([_Block(1.0), _Block(factor), _Block(1.0)])
            self.upsampler = nn.Upsample(scale_factor=4)
            self.conv_out = nn.Conv2d(8, 3, 1)
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("latents", dtype, ("B", 4, "h", "w")),),
            (TensorSpec("image", dtype, ("B", 3, "4*h", "4*w")),),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(latents)
        for block in self.blocks:
            hidden = block(hidden)
        image: torch.Tensor = self.conv_out(self.upsampler(hidden))
        return image

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)

    def rewrite(self) -> None: ...


def exported_planted(dtype: torch.dtype, folder: Path, factor: float = 1e6) -> OnnxFiles:
    """Its files in a precision, not verified."""
    component = PlantedOverflow(factor)
    component.cast(dtype)
    return onnx_from_component(component, TRACED, folder)


def planted_bundle(demo: Path, folder: Path, dtype: torch.dtype) -> Bundle:
    """The bundle of the demo model with this network in the place of the VAE's decoder."""
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("engines"))
    place = folder / "onnx" / "vae_decoder"
    shutil.rmtree(place)
    exported_planted(dtype, place)
    manifest = read_manifest(folder)
    name = str(dtype).removeprefix("torch.")
    decoder = manifest.components["vae_decoder"].model_copy(
        update={
            side: tuple(
                TensorInfo(name=tensor.name, dtype=cast(Dtype, name), shape=tensor.shape)
                for tensor in getattr(PlantedOverflow().make_spec(name), side)
            )
            for side in ("inputs", "outputs")
        }
        | {"onnx": "onnx/vae_decoder/model.onnx", "onnxruntime": None}
    )
    changed = {"components": {**manifest.components, "vae_decoder": decoder}}
    return Bundle(folder, write_manifest(folder, manifest.model_copy(update=changed)))
