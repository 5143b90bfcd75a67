"""T2I-Adapters (Mou et al. 2023, arXiv:2302.08453), which look at an image once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import T2IAdapter
from diffusers.models.adapter import AdapterBlock, LightAdapterBlock

from kdrt.bundle.components import ADAPTER_RESIDUAL
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec, TensorSpec, part_of
from kdrt_export.components.base import ExportComponent
from kdrt_export.errors import UnsupportedModelError


class ExportT2IAdapter(ExportComponent):
    """A T2I-Adapter.

    Input: image [B,c,s*h,s*w], of 3 channels or 1, from 0 to 1; s is how many pixels there are for
    one latent. Outputs: adapter_residual_0 …, which a UNet takes under these names.

    Stable Diffusion XL's adapters take squares of 16 pixels, two latents wide: an image with half a
    square at an end is filled up with zeros there.

    Args:
        adapter: the network.
        scale: pixels for a latent.
    """

    def __init__(self, adapter: T2IAdapter, *, scale: int = 8) -> None:
        super().__init__()
        self._source = [adapter]
        self.scale = scale
        self.adapter = adapter.adapter
        self.factor: int = self.adapter.unshuffle.downscale_factor
        if self.factor % scale:
            raise UnsupportedModelError(
                f"this T2I-Adapter takes squares of {self.factor} pixels, which are no whole "
                f"number of latents of {scale}; is it for another family?"
            )
        self.channels: int = adapter.config.in_channels
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        image = ("B", self.channels, f"{self.scale}*h", f"{self.scale}*w")
        divisor = self.factor // self.scale
        outputs = []
        for index, block in enumerate(self.adapter.body):
            divisor *= 1 if block.downsample is None else 2
            shape = ("B", _channels(block), part_of("h", divisor), part_of("w", divisor))
            outputs.append(TensorSpec(f"{ADAPTER_RESIDUAL}{index}", dtype, shape))
        return EngineSpec((TensorSpec("image", dtype, image),), tuple(outputs))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (image,) = inputs
        return tuple(self._source[0](_filled(image, self.factor)))

    def rewrite(self) -> None:
        self._source.clear()

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(DTYPES[tensor.dtype].torch)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.factor > self.scale:
            image = _filled(image, self.factor)
        return tuple(self.adapter(image))


def _filled(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Zeros below and to the right, up to multiples of ``factor``."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % factor, 0, -height % factor))


def _channels(block: AdapterBlock | LightAdapterBlock) -> int:
    """Of what a block gives."""
    if isinstance(block, LightAdapterBlock):
        return int(block.out_conv.out_channels)
    return int(block.resnets[0].block2.out_channels)
