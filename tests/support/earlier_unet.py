"""UNets as earlier versions exported them."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components import ExportUNet


class UNetWithFreeUOfBatch(ExportUNet):
    """One that takes the FreeU strengths of a whole batch, float32 [4]."""

    def make_spec(self, dtype: str) -> EngineSpec:
        *others, freeu = super().make_spec(dtype).inputs
        outputs = super().make_spec(dtype).outputs
        return EngineSpec((*others, replace(freeu, shape=(4,))), outputs)

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        if tensor.name == "freeu":
            return super().example_input(tensor, (1, *shape), generator)[0]
        return super().example_input(tensor, shape, generator)

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *others, freeu = inputs
        with_rows = ExportUNet(self.unet, time_ids=self.time_ids, deep_feature=self.deep_feature)
        return with_rows.reference(*others, freeu.expand(len(others[0]), 4))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        *others, freeu = inputs
        return super().forward(*others, freeu[None])
