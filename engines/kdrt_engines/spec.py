"""What a network takes and gives: names, dtypes and symbolic sizes.

A size is a number, a symbol (``"B"``), a multiple of a symbol (``"8*h"``) or a part of one, rounded
up (``"ceil(h/4)"``, as strides leave it): enough for every network of a latent-diffusion model, and
simple enough to read in a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdrt_engines.errors import ShapeError

Dim = int | str

_MULTIPLE = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")
_PART = re.compile(r"ceil\(([A-Za-z]\w*)/([1-9]\d*)\)")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its dtype (a key of ``kdrt_engines.dtypes.DTYPES``) and its
    symbolic shape."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def resolve(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for these symbols.

        Raises:
            ShapeError: a symbol is missing.
        """
        return tuple(_resolve(self.name, dim, dims) for dim in self.shape)

    def symbols(self) -> tuple[str, ...]:
        """The symbols of the shape, in order of appearance."""
        return tuple(_parse(dim).symbol for dim in self.shape if isinstance(dim, str))


@dataclass(frozen=True)
class EngineSpec:
    """The inputs and outputs of a network, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input of that name, which must exist."""
        return next(tensor for tensor in self.inputs if tensor.name == name)

    def has_input(self, name: str) -> bool:
        """Whether there is an input of that name."""
        return any(tensor.name == name for tensor in self.inputs)

    def symbols(self) -> tuple[str, ...]:
        """Every symbol of the inputs, each once, in order of appearance."""
        return tuple(dict.fromkeys(s for tensor in self.inputs for s in tensor.symbols()))


def part_of(symbol: str, divisor: int) -> Dim:
    """The size that a stride of ``divisor`` leaves of the size ``symbol``; for 1, the size
    itself."""
    return symbol if divisor == 1 else f"ceil({symbol}/{divisor})"


@dataclass(frozen=True)
class _Size:
    """``factor`` times ``symbol``, by ``divisor`` and rounded up."""

    symbol: str
    factor: int = 1
    divisor: int = 1

    def of(self, value: int) -> int:
        return -(-self.factor * value // self.divisor)


def _parse(dim: str) -> _Size:
    if (match := _MULTIPLE.fullmatch(dim)) is not None:
        return _Size(match[2], factor=int(match[1] or 1))
    if (match := _PART.fullmatch(dim)) is not None:
        return _Size(match[1], divisor=int(match[2]))
    raise ShapeError(
        f"'{dim}' is not a size: write a symbol ('h'), a multiple ('8*h') or a part ('ceil(h/4)')"
    )


def _resolve(name: str, dim: Dim, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    size = _parse(dim)
    if size.symbol not in dims:
        raise ShapeError(f"no size was given for '{size.symbol}' of the tensor '{name}'")
    return size.of(dims[size.symbol])
