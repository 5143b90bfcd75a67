"""ONNX Runtime behind the engine contract.

Inputs and outputs are torch tensors bound by address, so nothing is copied around a call. A
provider that ONNX Runtime cannot give is an error here; by itself it would fall back in silence.
"""

from __future__ import annotations

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
    """An ONNX file, external weights beside it, run by one execution provider."""

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
    ) -> None:
        available = ort.get_available_providers()
        if provider not in available:
            raise EngineUnavailable(
                f"ONNX Runtime has no {provider} on this machine (it has "
                f"{', '.join(available)}); choose another engine or install onnxruntime-gpu"
            )
        options = session_options(threads, lean=lean)
        # The session reads from these as long as it lives.
        self._weights = {name: _value(tensor) for name, tensor in (weights or {}).items()}
        try:
            if self._weights:
                # Before any optimisation, unlike add_initializer, which folded constants escape.
                options.add_external_initializers([*self._weights], [*self._weights.values()])
            self.session = ort.InferenceSession(str(path), options, providers=[provider])
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
        )

    def bind(self, **dims: int) -> OrtBinding:
        return OrtBinding(self, dims)


class OrtBinding(Binding):
    def __init__(self, engine: OrtEngine, dims: dict[str, int]) -> None:
        self._session = engine.session
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
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise ShapeError(f"ONNX Runtime rejected these sizes: {error}") from error


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
