"""Polygraphy's runners of a graph.

This is the one module that imports Polygraphy. It decides which TensorRT it means when it is
imported, hence :func:`polygraphy_for`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort

from kdrt.backends.onnxruntime import PROVIDERS
from kdrt_engines.errors import KdrtError, OutOfMemoryError, is_out_of_memory
from kdrt_engines.onnxruntime.config import CPU
from kdrt_engines.tensorrt.flavour import FLAVOURS
from kdrt_export.compare.cutting import with_sizes_as_outputs
from kdrt_export.errors import ExportError
from kdrt_export.onnx.session import session_of

_RTX = "POLYGRAPHY_USE_TENSORRT_RTX"

Array = np.ndarray
Arrays = Mapping[str, Array]
Result = TypeVar("Result")


def polygraphy_for(engines: Iterable[str]) -> None:
    """Import Polygraphy for these engines.

    Raises:
        ExportError: it is not installed.
    """
    if "tensorrt-rtx" in engines:
        os.environ[_RTX] = "1"
    try:
        from polygraphy.logger import G_LOGGER
    except ModuleNotFoundError as error:
        raise ExportError(
            "comparing layers needs the package 'polygraphy', which is not installed: "
            "pip install 'kdrt[export]'"
        ) from error
    G_LOGGER.module_severity = G_LOGGER.CRITICAL


def runner_of(model: onnx.ModelProto, path: Path, engine: str, inputs: Arrays) -> Any:
    """A runner of a graph; :func:`polygraphy_for` comes before.

    Args:
        model: the graph; its weights are in the folder of ``path``.
        path: a graph of the same component.
        engine: runs it; one of ``PROVIDERS`` or ``FLAVOURS``.
        inputs: what it will be run on, which is the one size that TensorRT builds for.
    """
    if engine in FLAVOURS:
        return _tensorrt_runner(model, path, inputs)
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(lambda: _session(model, path, engine), name=engine)


def _session(model: onnx.ModelProto, path: Path, engine: str) -> ort.InferenceSession:
    providers = [PROVIDERS[engine]]
    if engine == "onnxruntime-tensorrt":
        providers.append(PROVIDERS["onnxruntime-cuda"])
    elif engine == "onnxruntime":
        providers = [CPU]
    return session_of(model, path.parent, providers=providers)


def sizes_of(
    model: onnx.ModelProto, path: Path, values: Sequence[str], types: Mapping[str, int], on: Arrays
) -> dict[str, int]:
    """How many elements each of these values has, found by a run on this machine's CPU.

    Args:
        model: the graph; its weights are in the folder of ``path``.
        path: a graph of the same component.
        values: of the graph.
        types: their element types.
        on: the inputs.

    Raises:
        ExportError: it does not run.
    """
    with _refusals("onnxruntime"):
        session = _session(with_sizes_as_outputs(model, values, types), path, "onnxruntime")
        shapes = session.run(None, {each.name: on[each.name] for each in session.get_inputs()})
    return {name: math.prod(shape.tolist()) for name, shape in zip(values, shapes, strict=True)}


def _tensorrt_runner(model: onnx.ModelProto, path: Path, inputs: Arrays) -> Any:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(tensorrt_plan(model, path, inputs)), name="tensorrt")


def tensorrt_plan(model: onnx.ModelProto, path: Path, inputs: Arrays) -> Any:
    """What builds the plan of a graph when it is called; see :func:`runner_of`."""
    from polygraphy import config
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, Profile

    sizes = Profile()
    names = {value.name for value in model.graph.input}
    for name, array in inputs.items():
        if name in names:
            sizes.add(name, array.shape, array.shape, array.shape)
    if config.USE_TENSORRT_RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return EngineBytesFromNetwork(
            lambda: _tensorrt_network(model, path), CreateConfigRTX(profiles=[sizes])
        )
    return EngineBytesFromNetwork(
        lambda: _tensorrt_network(model, path), CreateConfig(profiles=[sizes])
    )


def _tensorrt_network(model: onnx.ModelProto, path: Path) -> tuple[Any, Any, Any]:
    """Strongly typed, so that the graph states the precision. Polygraphy's own loader does not
    take the place of the weights."""
    from polygraphy.backend.trt import get_trt_logger
    from polygraphy.mod.trt_importer import lazy_import_trt

    trt = lazy_import_trt()
    builder = trt.Builder(get_trt_logger())
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, get_trt_logger())
    if not parser.parse(model.SerializeToString(), str(path)):
        reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"TensorRT cannot read {path}: {'; '.join(reasons)}")
    return builder, network, parser


def run_both(
    runners: Sequence[Any], inputs: Sequence[Arrays], measure: Callable[[Array, Array], Result]
) -> dict[str, Result]:
    """Run both sides, one after the other, and compare what has the same name.

    Args:
        runners: of :func:`runner_of`, two.
        inputs: of each.
        measure: compares two arrays, the first side's and the second's.

    Returns:
        By output, what ``measure`` returned.

    Raises:
        ExportError: a side cannot be built or run.
    """
    from polygraphy.comparator import Comparator

    def compare(first: Any, second: Any) -> dict[str, Result]:
        both = [name for name in first if name in second]
        return {name: measure(first[name], second[name]) for name in both}

    results = []
    for runner, feed in zip(runners, inputs, strict=True):
        with _refusals(runner.name):
            results.append(Comparator.run([runner], data_loader=[feed]))
    with np.errstate(all="ignore"):  # it takes averages of what is not finite
        (compared,) = Comparator.compare_accuracy(results, compare_func=compare)
    ((found,),) = compared.values()
    return dict(found)


@contextmanager
def _refusals(engine: str) -> Iterator[None]:
    """For code that builds or runs a graph.

    Raises:
        ExportError: the engine refuses it.
    """
    try:
        yield
    except (KdrtError, MemoryError):
        raise
    except Exception as error:  # Polygraphy's, TensorRT's, and ONNX Runtime's have no common base
        kind = OutOfMemoryError if is_out_of_memory(error) else ExportError
        raise kind(f"{engine} cannot run this graph: {error}") from error
