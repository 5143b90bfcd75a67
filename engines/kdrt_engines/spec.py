"""What a network takes and gives: names, dtypes and symbolic sizes.

A size is a number, a symbol (``"B"``), or a multiple of a symbol (``"8*h"``): enough for every
network of a latent-diffusion model, and simple enough to read in a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdrt_engines.errors import ShapeError

Dim = int | str

_MULTIPLE = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, dtype (a key of ``kdrt_engines.dtypes.DTYPES``) and symbolic
    shape."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def resolve(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for these symbols. Raises ShapeError where one is missing."""
        return tuple(_resolve(self.name, dim, dims) for dim in self.shape)

    def symbols(self) -> tuple[str, ...]:
        """The symbols of the shape, in order of appearance."""
        return tuple(_parse(dim)[1] for dim in self.shape if isinstance(dim, str))


@dataclass(frozen=True)
class EngineSpec:
    """The inputs and outputs of a network, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        return next(tensor for tensor in self.inputs if tensor.name == name)

    def has_input(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.inputs)

    def symbols(self) -> tuple[str, ...]:
        """Every symbol of the inputs, each once, in order of appearance."""
        return tuple(dict.fromkeys(s for tensor in self.inputs for s in tensor.symbols()))


def _parse(dim: str) -> tuple[int, str]:
    match = _MULTIPLE.fullmatch(dim)
    if match is None:
        raise ShapeError(f"'{dim}' is not a size: write a symbol ('h') or a multiple ('8*h')")
    return int(match[1] or 1), match[2]


def _resolve(name: str, dim: Dim, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    factor, symbol = _parse(dim)
    if symbol not in dims:
        raise ShapeError(f"no size was given for '{symbol}' of the tensor '{name}'")
    return factor * dims[symbol]
