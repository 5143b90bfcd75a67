"""Making sessions of ONNX Runtime: from which file, with which options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from kdrt_engines.onnxruntime.config import CPU, OrtConfig, Providers
from kdrt_engines.onnxruntime.graphs import OrtGraph

_FATAL_ONLY = 4
"""Errors of a session are raised besides, and would be reported twice."""
_SPIN_MICROSECONDS = "1000"
"""How long threads look for work before they sleep. Between operators less suffices; ONNX Runtime's
default is so long that the idle threads of one network slow down the next."""
_ARENA_BYTES = 2**30
"""The first region of the arena: what an image of 512 pixels needs. One that needs more gets
further ones. ONNX Runtime's own notes of a region take a thirtieth of it."""
_STORED_BYTES = "1024"
"""Initialisers from this size on go into the weights file of an optimised graph."""


def session_options(config: OrtConfig | None = None) -> ort.SessionOptions:
    """Options for low latency: spinning for a moment, sequential operators."""
    config = config or OrtConfig()
    options = ort.SessionOptions()
    options.enable_mem_pattern = config.estimate_memory
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    # Weights that are stored as integers: dequantised once, not at every run. Networks with
    # quantised activations lose their integer kernels to this, and are a little faster for it:
    # those give floats, which the next layer quantises again.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.disable_prepacking", "1" if config.lean else "0")
    if config.lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Operators as the file has them, where ONNX Runtime by itself begins with whatever depends
        # on weights alone, and then holds all of those in float32 or transposed at once.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
    return options


def check_provider(provider: str) -> None:
    """Raises EngineUnavailableError: this ONNX Runtime does not have the provider."""
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineUnavailableError(
            f"ONNX Runtime has no {provider} on this machine (it has "
            f"{', '.join(available)}); choose another engine or install onnxruntime-gpu"
        )


def make_session(
    graph: OrtGraph,
    config: OrtConfig,
    providers: Providers,
    weights: Mapping[str, ort.OrtValue] | None = None,
) -> ort.InferenceSession:
    """A session of a graph.

    Args:
        graph: the file; with what was optimised before, that is loaded in its place.
        config: the options.
        providers: see :meth:`OrtConfig.providers`.
        weights: replace those of the file, by initialiser. The caller must keep them alive for as
            long as the session.

    Raises:
        EngineError: the file cannot be loaded.
        OutOfMemoryError: it does not fit.
        EngineUnavailableError: ONNX Runtime does not use the provider.
    """
    options, path = session_options(config), graph.path
    provider = providers[0][0]
    if provider == CPU and not config.lean and _shares_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    if weights:
        # Before any optimisation, unlike add_initializer, which folded constants escape.
        options.add_external_initializers([*weights], [*weights.values()])
    elif graph.optimized is not None and not config.lean:
        path = graph.optimized
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises bare RuntimeErrors of many kinds
        kind = OutOfMemoryError if is_out_of_memory(error) else EngineError
        raise kind(f"ONNX Runtime cannot load {path}: {error}") from error
    if session.get_providers()[0] != provider:
        raise EngineUnavailableError(
            f"ONNX Runtime dropped {provider} and would run on "
            f"{session.get_providers()[0]}; choose another engine"
        )
    return session


MakeSession = Callable[[OrtGraph, int], ort.InferenceSession]
"""Makes the session of a graph with so many threads."""


class SessionCache:
    """The sessions of an engine, by graph and threads: made when first needed, and kept.

    One can be made ahead, so that a broken file is found when the engine is loaded. If the first
    session needed is another one, that one is dropped: each may hold the weights in memory, and
    most engines need a single session.

    How one is made is told each time and not kept: an engine that its own sessions referred to
    would stay in memory, with all its weights, until Python's collector comes by.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[OrtGraph, int], ort.InferenceSession] = {}
        self._made_ahead: tuple[OrtGraph, int] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def make_ahead(self, graph: OrtGraph, threads: int, make: MakeSession) -> None:
        """Make the session that will probably be needed first."""
        self._made_ahead = graph, threads
        self._sessions[self._made_ahead] = make(graph, threads)

    def get(self, graph: OrtGraph, threads: int, make: MakeSession) -> ort.InferenceSession:
        """The session of a graph with so many threads, made with ``make`` if it is not there."""
        key = graph, threads
        if self._made_ahead not in (None, key):
            self._sessions.clear()
        self._made_ahead = None
        if key not in self._sessions:
            self._sessions[key] = make(graph, threads)
        return self._sessions[key]


@cache
def _shares_arena() -> bool:
    """Make one arena for the results of all sessions of this process, if ONNX Runtime lets us.

    An arena of its own grows with a session by regions, and what does not fit into one is put into
    a new one: a network whose images double from block to block leaves as much unused as it uses.
    One region, of which only the pages that were ever used are in memory, has no such gaps, and
    what the UNet used the VAE uses again.
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

    A session of that file does none of this again, and maps the weights from it: several sessions
    or processes share that memory.

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


def value_of(tensor: torch.Tensor) -> ort.OrtValue:
    """An OrtValue in the memory of ``tensor``, which must not change any more."""
    # NumPy has no bfloat16: the bits travel as integers of the same size.
    plain = tensor.cpu().contiguous()
    array = plain.view(torch.int16).numpy() if tensor.itemsize == 2 else plain.numpy()
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, from_torch(tensor.dtype).onnx)
