"""Sessions of ONNX Runtime: their options, their providers, and from which file they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime as ort
import torch

from kdrt_engines.dtypes import from_torch
from kdrt_engines.errors import (
    EngineError,
    EngineUnavailableError,
    OutOfMemoryError,
    is_out_of_memory,
)
from kdrt_engines.processors import cores
from kdrt_engines.spec import EngineSpec

CPU = "CPUExecutionProvider"
_FATAL_ONLY = 4
"""What goes wrong in a session is raised besides, and would be said twice."""
_SPIN_MICROSECONDS = "1000"
"""How long threads look for work before they sleep. Between operators it takes less; ONNX Runtime's
default is so long that the threads of a network that has ended slow down the one after it."""
_ARENA_BYTES = 2**30
"""The first region of the arena: what an image of 512 pixels needs. One that needs more gets
further ones. ONNX Runtime's own notes of a region take a thirtieth of it."""
_STORED_BYTES = "1024"
"""Initialisers from this size on go into the weights file of an optimised graph."""


@dataclass(frozen=True)
class OrtGraph:
    """A network in an ONNX file, and what ONNX Runtime made of it on this machine, if that was
    kept (see :func:`save_optimized`)."""

    path: Path
    optimized: Path | None = None


def session_options(
    threads: int | None = None, *, lean: bool = False, estimate_memory: bool = True
) -> ort.SessionOptions:
    """Options for low latency: one thread a core, spinning for a moment, sequential operators.
    ``lean`` spares memory instead: weights stay as they are, where they would be rearranged and, in
    float16 on a CPU, kept a second time in float32. ``estimate_memory`` lays out in advance where
    results will be: faster for small networks, but held besides what the first run took."""
    options = ort.SessionOptions()
    options.enable_mem_pattern = estimate_memory
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    # Weights that are stored as integers: dequantised once, not at every run. A network with
    # quantised activations would lose its integer kernels to this.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.disable_prepacking", "1" if lean else "0")
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def check_provider(provider: str) -> None:
    """Raises EngineUnavailableError: this ONNX Runtime has not got it."""
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineUnavailableError(
            f"ONNX Runtime has no {provider} on this machine (it has "
            f"{', '.join(available)}); choose another engine or install onnxruntime-gpu"
        )


def make_session(
    graph: OrtGraph,
    providers: list[tuple[str, dict[str, str]]],
    threads: int | None,
    *,
    lean: bool = False,
    estimate_memory: bool = True,
    weights: Mapping[str, ort.OrtValue] | None = None,
) -> ort.InferenceSession:
    """A session of a graph. ``weights`` stand in for those of the file, by initialiser; the
    caller keeps them for as long as the session.

    Raises:
        EngineError: the file cannot be loaded.
        OutOfMemoryError: it does not fit.
        EngineUnavailableError: ONNX Runtime does not use the provider.
    """
    options = session_options(threads, lean=lean, estimate_memory=estimate_memory)
    path = graph.path
    if providers[0][0] == CPU and _shares_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    if weights:
        # Before any optimisation, unlike add_initializer, which folded constants escape.
        options.add_external_initializers([*weights], [*weights.values()])
    elif graph.optimized is not None and not lean:
        path = graph.optimized
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises bare RuntimeErrors of many kinds
        kind = OutOfMemoryError if is_out_of_memory(error) else EngineError
        raise kind(f"ONNX Runtime cannot load {path}: {error}") from error
    provider = providers[0][0]
    if session.get_providers()[0] != provider:
        raise EngineUnavailableError(
            f"ONNX Runtime dropped {provider} and would run on "
            f"{session.get_providers()[0]}; choose another engine"
        )
    return session


@cache
def _shares_arena() -> bool:
    """Make one arena for the results of all sessions of this process, if ONNX Runtime lets us.

    An arena of its own grows with a session by regions, and what does not fit into one is put into
    a new one: a network whose images double from block to block leaves as much behind as it
    uses. One region, of which only the pages that were ever used are in memory, has no such gaps,
    and what the UNet used the VAE uses again.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(
            memory, ort.OrtArenaCfg({"initial_chunk_size_bytes": _ARENA_BYTES})
        )
    except Exception:  # somebody else's is there already, or this build has none
        return False
    return True


def save_optimized(graph: Path, target: Path, weights: str) -> None:
    """Optimise a network for the CPU of this machine and write it to ``target``, its weights to a
    file ``weights`` beside that, rearranged as the kernels want them.

    A session of that file does none of this again, and maps the weights from it: what several
    sessions or processes have in memory of them is the same.

    Raises:
        EngineError: the file cannot be loaded.
    """
    options = session_options()
    options.optimized_model_filepath = str(target)
    for name, value in {
        "optimized_model_external_initializers_file_name": weights,
        "optimized_model_external_initializers_min_size_in_bytes": _STORED_BYTES,
        "save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(f"session.{name}", value)
    try:
        ort.InferenceSession(str(graph), options, providers=[CPU])
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot optimise {graph}: {error}") from error


def providers_of(
    provider: str,
    spec: EngineSpec,
    device: torch.device,
    stream: torch.cuda.Stream | None,
    graphs: bool,
    cache: Path | None,
) -> list[tuple[str, dict[str, str]]]:
    """The provider with its options, and behind TensorRT the CUDA provider for what TensorRT
    cannot do."""
    if provider == CPU:
        return [(provider, {})]
    common = {"device_id": str(device.index or 0)}
    if stream is not None:
        common["user_compute_stream"] = str(stream.cuda_stream)
    cuda = {**common, "enable_cuda_graph": str(int(graphs))}
    if provider == "CUDAExecutionProvider":
        return [(provider, cuda)]
    dtypes = {tensor.dtype for tensor in spec.inputs}
    tensorrt = {**common, "trt_cuda_graph_enable": str(graphs)}
    # The network says its precision, but this provider may not use it unless told so.
    for dtype, option in (("float16", "trt_fp16_enable"), ("bfloat16", "trt_bf16_enable")):
        if dtype in dtypes:
            tensorrt[option] = "True"
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        tensorrt |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache)}
    # Both cannot capture: the inner provider's work would be captured twice.
    return [(provider, tensorrt), ("CUDAExecutionProvider", {**cuda, "enable_cuda_graph": "0"})]


def value_of(tensor: torch.Tensor) -> ort.OrtValue:
    """An OrtValue in the memory of ``tensor``, which must not change any more."""
    # NumPy has no bfloat16: the bits travel as integers of the same size.
    plain = tensor.cpu().contiguous()
    array = plain.view(torch.int16).numpy() if tensor.itemsize == 2 else plain.numpy()
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, from_torch(tensor.dtype).onnx)
