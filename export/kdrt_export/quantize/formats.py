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
        per_channel: whether each output channel of a weight has a scale of its own, rather than the
            weight one.
        opset: the first version of ONNX's operators that has it.
    """

    name: QuantizationFormat
    dtype: ir.DataType
    greatest: float
    kinds: frozenset[Kind]
    activations: bool
    block: int | None
    per_channel: bool
    opset: int


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        # E4M3 without infinities: the one that GPUs multiply. Its steps grow with the numbers, so
        # channels need no scales of their own, for which TensorRT's convolutions would write
        # float32.
        Format(
            "fp8",
            ir.DataType.FLOAT8E4M3FN,
            448.0,
            frozenset(get_args(Kind)),
            activations=True,
            block=None,
            per_channel=False,
            opset=20,
        ),
        # Not attention: a probability near 1/1000 is 0 of 127 steps.
        Format(
            "int8",
            ir.DataType.INT8,
            127.0,
            frozenset(["convolution", "linear"]),
            activations=True,
            block=None,
            per_channel=True,
            opset=20,
        ),
        Format(
            "int4-weights",
            ir.DataType.INT4,
            7.0,
            frozenset(["linear"]),
            activations=False,
            block=64,
            per_channel=True,
            opset=21,
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
