"""The sensitivity scan: how much the output changes when one layer alone is quantised.

The errors of layers are nearly independent, so their squares add up: of all layers together the
error is close to the root of the sum. So the fewest layers that bring it below a bound are those
with the largest errors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from kdrt.errors import InvalidRequestError
from kdrt_engines.comparison import relative_error
from kdrt_engines.onnx_weights import stored_weights
from kdrt_export.onnx.session import session_of
from kdrt_export.quantize.formats import Format
from kdrt_export.quantize.layers import QuantizableLayer
from kdrt_export.quantize.qdq import SWITCH, Ranges, with_switches
from kdrt_export.quantize.ranges import Sample
from kdrt_export.quantize.weights import weight_scale

_BLOCK = re.compile(r".*\.(resnets|transformer_blocks)\.\d+(?=\.)")
"""The path of the block that a module is in."""

_FOLDED_BYTES = 2**31
"""Weights up to which what depends on no input is computed beforehand, and held."""

SAMPLES = 6
"""Evaluations that a layer is tried on."""

MAX_ERROR = 0.03
"""Relative error of one evaluation up to which layers are quantised, unless the user says another.
Float16 alone is at 1e-3."""


@dataclass(frozen=True)
class Sensitivity:
    """What quantising one layer does.

    Attributes:
        layer: which one.
        error: ``‖out − ref‖ / ‖ref‖`` of the network's output, the root of the mean square over
            the samples.
        is_quantized: whether the layer is quantised in the end.
    """

    layer: QuantizableLayer
    error: float
    is_quantized: bool

    @property
    def name(self) -> str:
        """``mid_block.attentions.0.transformer_blocks.0.attn1 (attention)``."""
        return f"{self.layer.name} ({self.layer.kind})"


def scan(
    model: ir.Model,
    path: Path,
    layers: Sequence[QuantizableLayer],
    ranges: Ranges,
    into: Format,
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    by_blocks: bool = False,
) -> list[float]:
    """The error of the network when one layer alone is quantised.

    With ``by_blocks`` it is that of a whole block, a resnet or a transformer block, which takes a
    tenth of the runs. Of the n layers of a block each counts as 1/√n of its error, so that all of
    them together make the error that was measured. Then blocks are chosen rather than layers: one
    sensitive layer keeps its whole block from being quantised.

    Args:
        model: the graph.
        path: its file; the weights are beside it.
        layers: of the graph.
        ranges: of all that they read.
        into: the format.
        samples: inputs.
        progress: told how many layers, or blocks, are done, and of how many.
        by_blocks: quantise whole blocks.

    Returns:
        An error for each layer; infinite where the output is not finite.
    """
    stored = stored_weights(path)
    scales = {
        layer.weight: weight_scale(stored[layer.weight].mapped(), into).numpy()
        for layer in layers
        if layer.weight is not None
    }
    groups = _blocks(layers) if by_blocks else [*range(len(layers))]
    switched = with_switches(model, layers, ranges, into, scales, precision_of(model), groups)
    session = session_of(ir.to_proto(switched), path.parent, fold=_fits(path))
    taken = [value.name for value in session.get_inputs() if value.name != SWITCH]
    feeds = [{name: sample[name] for name in taken} for sample in samples]

    def outputs(number: int) -> list[list[np.ndarray]]:
        chosen = {SWITCH: np.array(number)}
        return [session.run(None, feed | chosen) for feed in feeds]

    references = outputs(-1)
    errors: dict[int, float] = {}
    sizes = Counter(groups)
    for number, size in sizes.items():
        error = root_mean_square(map(_error, outputs(number), references))
        errors[number] = error / math.sqrt(size)
        progress(len(errors), len(sizes))
    return [errors[number] for number in groups]


def choose(
    layers: Sequence[QuantizableLayer], errors: Sequence[float], bound: float
) -> list[Sensitivity]:
    """Which layers to quantise, so that all together stay below a bound: all but the fewest.

    Args:
        layers: in the order of the network.
        errors: of each alone.
        bound: of the relative error of one evaluation.

    Raises:
        InvalidRequestError: not one layer is below the bound.
    """
    kept, total = set[int](), 0.0
    for place in sorted(range(len(layers)), key=lambda place: errors[place]):
        total += errors[place] ** 2
        if not total <= bound**2:
            break
        kept.add(place)
    if not kept:
        raise InvalidRequestError(
            f"no layer can be quantised with an error of at most {bound:g}: the least is "
            f"{min(errors):.1e}; allow more with --max-error, or choose another format"
        )
    return [
        Sensitivity(layer, error, place in kept)
        for place, (layer, error) in enumerate(zip(layers, errors, strict=True))
    ]


def root_mean_square(errors: Iterable[float]) -> float:
    """Of errors that are nearly independent."""
    return math.sqrt(float(np.mean(np.square([*errors]))))


def _blocks(layers: Sequence[QuantizableLayer]) -> list[int]:
    """The number of each layer's block."""
    names = [
        found[0] if (found := _BLOCK.match(layer.name)) else layer.name.rpartition(".")[0]
        for layer in layers
    ]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def precision_of(model: ir.Model) -> np.dtype[np.floating]:
    """What a network computes in: the type of its first output."""
    dtype = model.graph.outputs[0].dtype
    assert dtype is not None
    return np.dtype(dtype.numpy())


def _fits(path: Path) -> bool:
    return sum(weight.size for weight in stored_weights(path).values()) <= _FOLDED_BYTES


def _error(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Of the output that is furthest off."""
    return max(
        relative_error(torch.from_numpy(output), torch.from_numpy(reference))
        for output, reference in zip(outputs, references, strict=True)
    )
