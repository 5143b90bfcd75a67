"""What is common to all components."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import nn

from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.dialects.graphs import Rows


class ExportComponent(nn.Module):
    """A network on its way to ONNX.

    At first it is the unchanged diffusers or transformers network, whose outputs :meth:`reference`
    returns. :meth:`rewrite` changes it in place for tracing; from then on, calling the component
    computes what will be exported.

    Attributes:
        spec: the inputs and outputs of the network.
    """

    spec: EngineSpec

    neutral: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    """Values of inputs at which a part of the network has no effect, by input. If an input has a
    row for each image, these are the values of every row."""

    multiples: Mapping[str, int] = MappingProxyType({})
    """Numbers that usually divide the sizes, by symbol, if the network is then simpler."""

    varying: Collection[str] = ()
    """The inputs that change at every run, if the others rarely change."""

    usual_height: int | None = None
    """Rows of the first input at the size that the network was made for; None if that input is
    neither an image nor latents."""

    def image(self, *, usual: bool = False) -> Rows | None:
        """What is known about the size of the first input, at any sizes or at the ``usual`` ones;
        None if it is neither an image nor latents."""
        if self.usual_height is None:
            return None
        multiples = self.multiples if usual else {}
        least = {symbol: multiples.get(symbol, 1) for symbol in self.spec.symbols()}
        return Rows(self.usual_height, math.gcd(*self.spec.inputs[0].resolve(least)[2:]))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the unchanged network, in order. Call it only before :meth:`rewrite`."""
        raise NotImplementedError

    def rewrite(self) -> None:
        """Apply the rewrites in place."""
        raise NotImplementedError

    def make_spec(self, dtype: str) -> EngineSpec:
        """The spec of the network with weights of ``dtype``, a key of ``DTYPES``."""
        raise NotImplementedError

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights, and with them the inputs and outputs, to ``dtype``."""
        self.to(dtype)
        self.spec = self.make_spec(str(dtype).removeprefix("torch."))

    def example_inputs(self, dims: dict[str, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of plausible scale for these sizes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            self.example_input(tensor, tensor.resolve(dims), generator)
            for tensor in self.spec.inputs
        )

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DTYPES[tensor.dtype].torch)
