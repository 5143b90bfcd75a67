"""How large the activations of a network become, by running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from kdrt.errors import InvalidRequestError
from kdrt_export.onnx.session import session_of

Sample = Mapping[str, np.ndarray]
"""The inputs of one run of a network, by name."""


@dataclass
class Measured:
    """What a network's activations were in some runs.

    Attributes:
        greatest: the largest absolute value of each, by name.
        shapes: of each in the last run.
    """

    greatest: dict[str, float]
    shapes: dict[str, tuple[int, ...]]


def measure_ranges(
    model: onnx.ModelProto, folder: Path, names: Sequence[str], samples: Iterable[Sample]
) -> Measured:
    """Run a network, and note the largest absolute value of each of these activations.

    Args:
        model: a graph; its own values stay in it.
        folder: where its weights are.
        names: activations; inputs of the graph are taken as they are.
        samples: what it is run on.

    Raises:
        InvalidRequestError: there is no sample, or the network gives numbers that are not finite.
    """
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in inputs]
    session = session_of(_with_greatest(model, inner), folder)
    taken = [value.name for value in session.get_inputs()]
    greatest = dict.fromkeys(names, 0.0)
    shapes: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        found = session.run(None, {name: sample[name] for name in taken})
        tops, dims = found[: len(inner)], found[len(inner) :]
        of_inputs = {name: sample[name] for name in names if name in inputs}
        seen = dict(zip(inner, map(float, tops), strict=True)) | {
            name: float(np.abs(array).max()) for name, array in of_inputs.items()
        }
        shapes = {name: tuple(map(int, shape)) for name, shape in zip(inner, dims, strict=True)} | {
            name: array.shape for name, array in of_inputs.items()
        }
        greatest = {name: max(greatest[name], value) for name, value in seen.items()}
    if not shapes:
        raise InvalidRequestError("the calibration has no prompt; give at least one")
    broken = [name for name, value in greatest.items() if not np.isfinite(value)]
    if broken:
        raise InvalidRequestError(
            f"the network gives numbers that are not finite ({broken[0]}); `kdrt compare` says "
            "where that begins"
        )
    return Measured(greatest, shapes)


def _with_greatest(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are the largest absolute value of each, then the shape of each."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    nodes, outputs = result.graph.node, result.graph.output
    for name in names:
        nodes.add(op_type="Abs", input=[name], output=[f"{name}/abs"])
        node = onnx.helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/half"], keepdims=0)
        nodes.append(node)
        as_float = onnx.helper.make_node(
            "Cast", [f"{name}/half"], [f"{name}/greatest"], to=onnx.TensorProto.FLOAT
        )
        nodes.append(as_float)
        outputs.append(
            onnx.helper.make_tensor_value_info(f"{name}/greatest", onnx.TensorProto.FLOAT, [])
        )
    for name in names:
        nodes.add(op_type="Shape", input=[name], output=[f"{name}/shape"])
        outputs.append(
            onnx.helper.make_tensor_value_info(f"{name}/shape", onnx.TensorProto.INT64, [None])
        )
    return result
