"""Runs both sides in groups of layers, and finds the first layer that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from kdrt.errors import InvalidRequestError
from kdrt_engines.comparison import relative_error
from kdrt_export.compare.cutting import cut
from kdrt_export.compare.layers import Layer, element_types, is_float, layers_of
from kdrt_export.compare.runners import (
    Array,
    Arrays,
    polygraphy_for,
    run_both,
    runner_of,
    sizes_of,
)

GROUP_BYTES = 512 * 2**20
"""Results that one side holds at a time, in float32."""

JUMP = 10.0
"""How many times the error of what it reads a layer's may be, until it is said to jump."""

BOUND = 1e-2
"""Relative error from which on a jump matters. What float16 does to the weights of a UNet alone is
9e-4."""


@dataclass(frozen=True)
class Graph:
    """A graph and what runs it.

    Attributes:
        path: an ONNX file, with its weights beside it.
        engine: one of ``kdrt_engines.registry.ENGINES``.
    """

    path: Path
    engine: str = "onnxruntime"


@dataclass(frozen=True)
class Difference:
    """How far apart two results are.

    Attributes:
        error: ``‖b − a‖ / ‖a‖``; infinite where either is not finite.
        greatest: the largest absolute value of each.
        finite: whether each is.
    """

    error: float
    greatest: tuple[float, float]
    finite: tuple[bool, bool]

    def __bool__(self) -> bool:
        """Whether they agree, as Polygraphy asks it."""
        return self.error <= BOUND


@dataclass(frozen=True)
class LayerDifference:
    """A layer and its :class:`Difference`; ``before`` is the largest error of what it reads."""

    layer: Layer
    difference: Difference
    before: float

    @property
    def jumps(self) -> bool:
        """Whether the error begins here."""
        error = self.difference.error
        return error > BOUND and math.isfinite(self.before) and error > JUMP * self.before


@dataclass(frozen=True)
class Comparison:
    """What was found, layer by layer in the order of the network.

    Attributes:
        rows: a layer each.
        unmatched: layers of the first graph that the second has no equal of.
    """

    rows: tuple[LayerDifference, ...]
    unmatched: int

    def first(self) -> LayerDifference | None:
        """The first layer whose error jumps; if none does, the first beyond the bound."""
        beyond = [row for row in self.rows if row.difference.error > BOUND]
        return next((row for row in beyond if row.jumps), beyond[0] if beyond else None)


def difference(first: Array, second: Array) -> Difference:
    """How far the result of the second side is from that of the first."""
    pair = (first, second)
    finite = tuple(bool(np.isfinite(array).all()) for array in pair)
    greatest = tuple(
        float(np.abs(array.astype(np.float64)).max(initial=0.0)) if whole else math.inf
        for array, whole in zip(pair, finite, strict=True)
    )
    error = math.inf
    if first.shape == second.shape and all(finite):
        error = relative_error(torch.from_numpy(second), torch.from_numpy(first))
    return Difference(error, (greatest[0], greatest[1]), (finite[0], finite[1]))


def compare(
    first: Graph,
    second: Graph,
    inputs: Mapping[str, torch.Tensor],
    *,
    layers: bool = True,
    group_bytes: int = GROUP_BYTES,
) -> Comparison:
    """Run two graphs of one network on the same inputs.

    Layers are matched by the names of their results. They are run in groups, each with what comes
    before it, so that the results of a large network are never held together.

    Args:
        first: what is taken for right.
        second: the other.
        inputs: by name; each side gets them in its own types.
        layers: compare all layers; if not, the outputs alone.
        group_bytes: the most that the results of a group take.

    Raises:
        ExportError: Polygraphy is not installed, or a side does not run.
        InvalidRequestError: the graphs have nothing in common.
    """
    polygraphy_for([first.engine, second.engine])
    models = [onnx.load(graph.path, load_external_data=False) for graph in (first, second)]
    types = [element_types(model) for model in models]
    both = {name for name in types[0].keys() & types[1].keys() if is_float(types[0][name])}
    outputs = {value.name for value in models[0].graph.output}
    every = layers_of(models[0].graph)
    matched = layers_of(models[0].graph, both)
    wanted = matched if layers else [each for each in matched if each.tensor in outputs]
    if not wanted:
        raise InvalidRequestError(
            "the two graphs have no layer of the same name: they are of different networks"
        )
    arrays = [_arrays(model, inputs) for model in models]
    names = [each.tensor for each in wanted]
    sizes = sizes_of(models[0], first.path, names, types[0], arrays[0])
    found: dict[str, Difference] = {}
    for group in _groups(wanted, sizes, group_bytes // 4):
        cuts = [cut(model, group, of) for model, of in zip(models, types, strict=True)]
        needed = [{value.name for value in each.graph.input} for each in cuts]
        feeds = [
            {name: array for name, array in own.items() if name in names}
            for own, names in zip(arrays, needed, strict=True)
        ]
        runners = [
            runner_of(each, graph.path, graph.engine, feed)
            for each, graph, feed in zip(cuts, (first, second), feeds, strict=True)
        ]
        found |= run_both(runners, feeds, difference)
    return Comparison(tuple(_rows(wanted, found)), max(len(every) - len(matched), 0))


def _arrays(model: onnx.ModelProto, inputs: Mapping[str, torch.Tensor]) -> Arrays:
    """The inputs that a model takes, in its own types.

    Raises:
        InvalidRequestError: there is none for one of them, or of another shape.
    """
    arrays = {}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape.dim
        if value.name not in inputs or inputs[value.name].ndim != len(shape):
            raise InvalidRequestError(
                f"only one of the two networks takes '{value.name}', or both in other shapes; "
                "compare exports of one model by one version of kdrt, with the same options"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = inputs[value.name].cpu().numpy().astype(dtype)
    return arrays


def _groups(layers: Sequence[Layer], sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """The results of the layers, together so many elements at most, or one by itself."""
    group: list[str] = []
    held = 0
    for layer in layers:
        if group and held + sizes[layer.tensor] > most:
            yield group
            group, held = [], 0
        group.append(layer.tensor)
        held += sizes[layer.tensor]
    yield group


def _rows(layers: Sequence[Layer], found: Mapping[str, Difference]) -> Iterator[LayerDifference]:
    for layer in layers:
        before = max((found[name].error for name in layer.reads if name in found), default=0.0)
        yield LayerDifference(layer, found[layer.tensor], before)
