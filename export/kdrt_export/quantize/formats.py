"""The formats that a network can be quantised to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from kdrt.bundle import QuantizationFormat
from kdrt.common.validation import unknown_word
from kdrt.errors import InvalidRequestError

Kind = Literal["convolution", "linear", "attention"]
"""Layers that can be quantised. Of attention it is the products of query and key, and of the
probabilities and value."""


@dataclass(frozen=True)
class Format:
    """How numbers are stored and computed with.

    Attributes:
        name: as users say it.
        dtype: of a quantised number.
        greatest: the largest of them; the least is its negative, there is no zero point.
        kinds: the layers that it is for.
        activations: whether what layers read is quantised too, or their weights alone.
        block: weights of a linear layer's row that share a scale; None is the whole row.
        opset: the first version of ONNX's operators that has it.
        compute_capability: of the first GPUs that TensorRT-RTX builds it for: 89 is 8.9.
    """

    name: QuantizationFormat
    dtype: ir.DataType
    greatest: float
    kinds: frozenset[Kind]
    activations: bool
    block: int | None
    opset: int
    compute_capability: int


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        # E4M3 without infinities: the one that GPUs multiply.
        Format(
            "fp8",
            ir.DataType.FLOAT8E4M3FN,
            448.0,
            frozenset(get_args(Kind)),
            activations=True,
            block=None,
            opset=20,
            compute_capability=89,
        ),
        # Not attention: a probability near 1/1000 is 0 of 127 steps.
        Format(
            "int8",
            ir.DataType.INT8,
            127.0,
            frozenset(["convolution", "linear"]),
            activations=True,
            block=None,
            opset=20,
            compute_capability=75,
        ),
        Format(
            "int4-weights",
            ir.DataType.INT4,
            7.0,
            frozenset(["linear"]),
            activations=False,
            block=64,
            opset=21,
            compute_capability=80,
        ),
    )
}
"""By name."""


def find_format(name: str) -> Format:
    """A format by its name.

    Raises:
        InvalidRequestError: there is none; says which there are.
    """
    if name not in FORMATS:
        raise InvalidRequestError(unknown_word("format", name, tuple(FORMATS)))
    return FORMATS[name]
