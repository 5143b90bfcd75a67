"""ONNX Runtime behind the engine contract.

Inputs and outputs are torch tensors bound by address, so nothing is copied around a call. A
provider that ONNX Runtime cannot give is an error here; by itself it would fall back in silence.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import EngineError, EngineUnavailable, ShapeError
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import allocate

_ELEMENT_TYPES = {
    torch.float32: 1,
    torch.int32: 6,
    torch.int64: 7,
    torch.float16: 10,
    torch.bfloat16: 16,
}
"""onnx.TensorProto.DataType: unlike numpy's dtypes it has bfloat16."""

_ERRORS_ONLY = 3


def session_options(threads: int | None = None, *, lean: bool = False) -> ort.SessionOptions:
    """Options for low latency: one thread a core, spinning, sequential operators. ``lean`` spares
    memory instead: weights stay as they are, where they would be rearranged and, in float16 on a
    CPU, kept a second time in float32."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or _cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    # Weights that are stored as integers: dequantised once, not at every run. A network with
    # quantised activations would lose its integer kernels to this.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.disable_prepacking", "1" if lean else "0")
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OrtEngine(Engine):
    """An ONNX file, external weights beside it, run by one execution provider.

    Args:
        path: the file.
        spec: what the component takes and gives.
        provider: ONNX Runtime's name of it.
        device: where it runs.
        threads: CPU threads; None is one a core.
        prepack: see :func:`session_options`.
        weights: in place of the file's, by the name of the initialiser.
        stream: CUDA only: where every run is enqueued. A session is tied to one for life.
        graphs: CUDA only: have ONNX Runtime capture the runs of each binding.
        cache: where the TensorRT provider keeps what it builds.

    Raises:
        EngineUnavailable: ONNX Runtime has not got this provider, or does not use it.
        EngineError: the file cannot be loaded.
    """

    capturable = False

    def __init__(
        self,
        path: Path,
        spec: EngineSpec,
        *,
        provider: str = "CPUExecutionProvider",
        device: torch.device | str = "cpu",
        threads: int | None = None,
        lean: bool = False,
        weights: Mapping[str, torch.Tensor] | None = None,
        stream: torch.cuda.Stream | None = None,
        graphs: bool = False,
        cache: Path | None = None,
    ) -> None:
        available = ort.get_available_providers()
        if provider not in available:
            raise EngineUnavailable(
                f"ONNX Runtime has no {provider} on this machine (it has "
                f"{', '.join(available)}); choose another engine or install onnxruntime-gpu"
            )
        options = session_options(threads, lean=lean)
        providers = _providers(provider, spec, torch.device(device), stream, graphs, cache)
        # The session reads from these as long as it lives.
        self._weights = {name: _value(tensor) for name, tensor in (weights or {}).items()}
        try:
            if self._weights:
                # Before any optimisation, unlike add_initializer, which folded constants escape.
                options.add_external_initializers([*self._weights], [*self._weights.values()])
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime raises bare RuntimeErrors of many kinds
            raise EngineError(f"ONNX Runtime cannot load {path}: {error}") from error
        if self.session.get_providers()[0] != provider:
            raise EngineUnavailable(
                f"ONNX Runtime dropped {provider} and would run on "
                f"{self.session.get_providers()[0]}; choose another engine"
            )
        self.spec = spec
        self.device = torch.device(device)
        self._path, self._provider = path, provider
        self._threads, self._lean = threads, lean
        self.stream, self._graphs, self._cache = stream, graphs, cache
        self._graph_ids = itertools.count(1)

    def run_options(self) -> ort.RunOptions | None:
        """Those of one binding: on a stream of ours nothing waits, and every binding has a graph
        of its own, since a graph repeats addresses. None on the CPU."""
        if self.stream is None:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return options

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> OrtEngine:
        """A new session; this one stays usable, and both are in memory until one is dropped."""
        return OrtEngine(
            self._path,
            self.spec,
            provider=self._provider,
            device=self.device,
            threads=self._threads,
            lean=self._lean,
            weights=weights,
            stream=self.stream,
            graphs=self._graphs,
            cache=self._cache,
        )

    def bind(self, **dims: int) -> OrtBinding:
        return OrtBinding(self, dims)


class OrtBinding(Binding):
    def __init__(self, engine: OrtEngine, dims: dict[str, int]) -> None:
        self._session = engine.session
        self._options = engine.run_options()
        self._io = engine.session.io_binding()
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        # A graph may not read every input of its component: a UNet without time conditioning.
        used = {node.name for node in engine.session.get_inputs()}
        for name, tensor in self.inputs.items():
            if name in used:
                self._io.bind_input(*_address(name, tensor))
        for name, tensor in self.outputs.items():
            self._io.bind_output(*_address(name, tensor))

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._io, self._options)
        except Exception as error:
            raise ShapeError(f"ONNX Runtime rejected these sizes: {error}") from error


def _providers(
    provider: str,
    spec: EngineSpec,
    device: torch.device,
    stream: torch.cuda.Stream | None,
    graphs: bool,
    cache: Path | None,
) -> list[tuple[str, dict[str, str]]]:
    """The provider with its options, and behind TensorRT the CUDA provider for what TensorRT
    cannot do."""
    if provider == "CPUExecutionProvider":
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


def _address(name: str, tensor: torch.Tensor) -> tuple[str, str, int, int, list[int], int]:
    device = tensor.device
    return (
        name,
        device.type,
        device.index or 0,
        _ELEMENT_TYPES[tensor.dtype],
        list(tensor.shape),
        tensor.data_ptr(),
    )


def _value(tensor: torch.Tensor) -> ort.OrtValue:
    """An OrtValue in the memory of ``tensor``, which must not change any more."""
    # NumPy has no bfloat16: the bits travel as integers of the same size.
    plain = tensor.cpu().contiguous()
    array = plain.view(torch.int16).numpy() if tensor.itemsize == 2 else plain.numpy()
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ELEMENT_TYPES[tensor.dtype])
