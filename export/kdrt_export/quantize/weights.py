"""Weights in few bits: how they are rounded, and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt_export.quantize.formats import Format


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in few bits.

    Attributes:
        values: uint8, the bytes of the numbers; of four bits two in each, the first in the low one.
        shape: of the numbers.
        scale: in the dtype of the weight: ``[]`` or ``[O]``, of blocks ``[I/block, O]``.
    """

    values: Tensor
    shape: tuple[int, ...]
    scale: Tensor


def weight_scale(weight: Tensor, into: Format) -> Tensor:
    """The scales of a weight, in its dtype: ``[]``, or where each output channel has one ``[O]``,
    or where the format has blocks ``[O, I/block]``.

    Args:
        weight: ``[O, I]`` or ``[O, I, kh, kw]``, float.
        into: the format.
    """
    rows = weight.detach().float().flatten(1)
    if into.block is not None:
        rows = rows.unflatten(1, (-1, into.block))
    greatest = rows.abs().amax(dim=-1) if into.per_channel else rows.abs().max()
    scale = (greatest / into.greatest).to(weight.dtype)
    # Up, since a scale that was rounded down does not reach the greatest weight.
    above = torch.nextafter(scale, torch.full_like(scale, torch.inf))
    scale = torch.where(scale.float() * into.greatest < greatest, above, scale)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def quantize_weight(weight: Tensor, into: Format) -> QuantizedWeight:
    """Quantise a weight, as its layer reads it.

    Args:
        weight: of a convolution ``[O, I, kh, kw]``, or of a linear layer ``[O, I]``, which is
            stored as ``[I, O]``, and its blocks as ``[I/block, O]``.
        into: the format.
    """
    scale = weight_scale(weight, into)
    rows = weight.detach().float().flatten(1)
    steps = scale.float().reshape(-1, 1 if scale.ndim < 2 else scale.shape[1])
    if into.block is not None:
        steps = steps.repeat_interleave(into.block, dim=1)
    numbers = (rows / steps).reshape(weight.shape)
    if weight.ndim == 2:
        numbers = numbers.T
        scale = scale.T.contiguous() if scale.ndim == 2 else scale
    return QuantizedWeight(_stored(numbers.contiguous(), into), tuple(numbers.shape), scale)


def rounded(numbers: Tensor, into: Format) -> Tensor:
    """Numbers of a format that has whole ones, as int8 of their shape."""
    return numbers.round().clamp(-into.greatest, into.greatest).to(torch.int8)


def _stored(numbers: Tensor, into: Format) -> Tensor:
    """The bytes of numbers that are rounded to the format."""
    if into.name == "fp8":
        return numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    whole = rounded(numbers, into)
    if into.name == "int8":
        return whole.view(torch.uint8)
    halves = whole.flatten()
    if len(halves) % 2:
        halves = torch.cat([halves, halves.new_zeros(1)])
    low, high = (halves & 0xF).unflatten(0, (-1, 2)).unbind(1)
    return (low | (high << 4)).view(torch.uint8)
