"""PyTorch eager: what a speed-up is a speed-up of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrt_bench.networks import plain_network, source_of
from kdrt_bench.peers.base import Peer
from kdrt_engines import Engine
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import TorchEngine


class Eager(Peer):
    """Options: ``dtype``, what it computes in: float32 (default) or bfloat16."""

    def engine(self, component: str) -> Engine:
        spec = self.spec(component)
        network = self.network(component)
        if self.dtype != torch.float32:
            network = Lower(network.to(self.dtype), spec, self.dtype)
        return TorchEngine(network, spec, self.device)

    def network(self, component: str) -> nn.Module:
        """The untouched network."""
        names = [tensor.name for tensor in self.spec(component).inputs]
        return plain_network(source_of(self.model), component, names).to(self.device)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.options.get("dtype", "float32")].torch

    def settings(self) -> dict[str, str]:
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": str(torch.get_num_threads()),
            "attention": "scaled_dot_product_attention",
            "weights": "resident",
        }


class Lower(nn.Module):
    """A network in a lower precision, behind inputs and outputs that stay as they are."""

    def __init__(self, network: nn.Module, spec: EngineSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        # Sizes and times are embedded in float32 wherever the weights are lower.
        self.kept = [t.name in ("timestep", "time_ids") for t in spec.inputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        lowered = [
            value if kept or not value.is_floating_point() else value.to(self.dtype)
            for value, kept in zip(inputs, self.kept, strict=True)
        ]
        results = self.network(*lowered)
        several = results if isinstance(results, tuple) else (results,)
        return tuple(result.float() for result in several)
