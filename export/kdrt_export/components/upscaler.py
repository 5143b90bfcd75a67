"""Networks that enlarge images, such as ESRGAN (Wang et al. 2018, arXiv:1809.00219)."""

from __future__ import annotations

import torch
from torch import nn

from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent


class ExportUpscaler(ExportComponent):
    """A network that enlarges images.

    Input: image [B,3,H,W] from 0 to 1, in pixels. Output: enlarged [B,3,s*H,s*W], in about the same
    range.

    Args:
        network: takes and gives such tensors.
        scale: s, how many times as high and wide they become.
    """

    def __init__(self, network: nn.Module, *, scale: int) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        enlarged = ("B", 3, f"{self.scale}*H", f"{self.scale}*W")
        return EngineSpec(
            (TensorSpec("image", dtype, ("B", 3, "H", "W")),),
            (TensorSpec("enlarged", dtype, enlarged),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (image,) = inputs
        return (self.network(image),)

    def rewrite(self) -> None:
        """Nothing: convolutions are exported as they are."""

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(DTYPES[tensor.dtype].torch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        enlarged: torch.Tensor = self.network(image)
        return enlarged
