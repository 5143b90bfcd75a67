"""A double of TensorRT's runtime that enforces its documented contract and records the calls.

It computes what the ``compute`` of an engine file says, or nothing. What the documentation of
``IExecutionContext`` and ``IRefitter`` asks for is checked when the call is made: a profile before
shapes, shapes inside the profile, every address set and non-zero, activation memory of the right
size given, nothing but an enqueue while a stream is captured, no refit while enqueued work is
pending. A refittable engine keeps weights, which a refit really changes. A violation raises
`ViolationError`, which is no ``KdrtError``: it must never be caught.
"""

from __future__ import annotations

import ctypes
import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from kdrt_engines.dtypes import FROM_TENSORRT, from_torch
from kdrt_engines.tensorrt.gpu import Gpu

Values = dict[str, torch.Tensor]


TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64 BOOL")
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)


class ViolationError(AssertionError):
    """The documented contract of TensorRT was broken."""


@dataclass
class Tensor:
    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    """-1 where it is dynamic."""


@dataclass
class EngineFile:
    """What the recorder "deserialises": tensors, and per profile (min, opt, max) of every input."""

    tensors: Sequence[Tensor]
    profiles: Sequence[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]
    scratch_per_element: int = 4
    compute: Callable[[Values, Values], Values] | None = None
    """``weights, inputs -> outputs``."""
    weights: Values = field(default_factory=dict)
    """Every weight that ``compute`` uses, as it was built."""
    refittable: Sequence[str] = ()
    """The weights that can change."""
    together: Sequence[frozenset[str]] = ()
    """Weights that only change together."""
    refit: Callable[[Values, Values], Values] = lambda _old, new: new
    """``old weights, new ones -> what the engine makes of them``, for an engine that errs."""
    failing_refits: int = 0
    """How many refits fail after the first weight, from the first refit on."""


@dataclass
class Calls:
    """What was called, in order, as (call, details)."""

    log: list[tuple[str, Any]] = field(default_factory=list)
    capturing: bool = False
    pending: bool = False
    """Whether enqueued work may not be done yet; see `wait`."""

    def wait(self) -> None:
        """The device was waited for."""
        self.pending = False

    def add(self, name: str, detail: Any = None) -> None:
        if self.capturing and name != "execute_async_v3":
            raise ViolationError(f"{name} during a capture")
        self.log.append((name, detail))

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    @contextmanager
    def capture(self) -> Iterator[None]:
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False


class RecordedGpu(Gpu):
    """The device of the recorder: its memory is the CPU's.

    Args:
        calls: of the recorder's module.
        capability: 89 for 8.9.
        waits: whether waiting for it has an effect; without, work stays pending.
    """

    def __init__(
        self, calls: Calls | None = None, capability: int = 89, *, waits: bool = True
    ) -> None:
        self.device = torch.device("cpu")
        self.capability = capability
        self._calls, self._waits = calls or Calls(), waits

    def current_stream(self) -> int:
        return 7

    def wait_for_stream(self) -> None:
        self.wait()

    def wait(self) -> None:
        if self._calls.capturing:
            raise ViolationError("the device was waited for during a capture")
        if self._waits:
            self._calls.wait()

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        self.wait()
        yield
        self.wait()


def module(files: Mapping[bytes, EngineFile], *, rtx: bool) -> ModuleType:
    """A module shaped like ``tensorrt_rtx`` (or ``tensorrt``) that loads ``files``."""
    calls = Calls()
    trt: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.calls = calls
    trt.TensorIOMode, trt.DataType = TensorIOMode, DataType
    trt.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    strategies = ExecutionContextAllocationStrategy

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        def __init__(self) -> None:
            pass

        def log(self, severity: str, message: str) -> None:
            raise NotImplementedError

    trt.ILogger = ILogger

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            calls.add("deserialize_cuda_engine", len(data))
            if data not in files:
                self.logger.log(ILogger.ERROR, "the magic tag does not match")
                return None
            return Engine(files[data], self.logger)

    trt.Runtime = Runtime

    class RuntimeCache:
        def __init__(self) -> None:
            self.kernels: set[str] = set()

        def deserialize(self, data: bytes) -> bool:
            calls.add("cache.deserialize", len(data))
            if not data.startswith(b"cache:"):
                return False
            self.kernels = set(data.decode()[6:].split(",")) - {""}
            return True

        def serialize(self) -> bytes:
            calls.add("cache.serialize")
            return ("cache:" + ",".join(sorted(self.kernels))).encode()

    class RuntimeConfig:
        def __init__(self) -> None:
            self.strategy = strategies.STATIC
            self.cache: RuntimeCache | None = None
            self.cuda_graph_strategy = None
            self.dynamic_shapes_kernel_specialization_strategy = None

        def set_execution_context_allocation_strategy(
            self, strategy: ExecutionContextAllocationStrategy
        ) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

    if rtx:
        trt.CudaGraphStrategy = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(
            LAZY="lazy", EAGER="eager", NONE="none"
        )

    class Engine:
        def __init__(self, file: EngineFile, logger: ILogger) -> None:
            self._file, self._logger = file, logger
            self.by_name = {tensor.name: tensor for tensor in file.tensors}
            self.num_io_tensors = len(file.tensors)
            self.num_optimization_profiles = len(file.profiles)
            self.refittable = bool(file.refittable)
            self.weights = {name: value.clone() for name, value in file.weights.items()}

        def get_tensor_name(self, index: int) -> str:
            return self._file.tensors[index].name

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if self.by_name[name].is_input else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[self.by_name[name].dtype]

        def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
            return [list(shape) for shape in self._file.profiles[index][name]]

        def create_execution_context(self, how: Any) -> Context:
            calls.add("create_execution_context")
            config = how if isinstance(how, RuntimeConfig) else None
            strategy = config.strategy if config else how
            return Context(self, self._file, self.by_name, strategy, config, self._logger)

        if rtx:

            def create_runtime_config(self) -> RuntimeConfig:
                return RuntimeConfig()

    class Context:
        def __init__(
            self,
            engine: Engine,
            file: EngineFile,
            tensors: Mapping[str, Tensor],
            strategy: ExecutionContextAllocationStrategy,
            config: RuntimeConfig | None,
            logger: ILogger,
        ) -> None:
            self._engine = engine
            self._file, self._tensors, self._logger = file, tensors, logger
            self._strategy = strategy
            self._config = config
            self._profile: int | None = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._memory = (0, 0)
            self.fails = False

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            calls.add("set_optimization_profile_async", index)
            _want_stream(stream)
            if not 0 <= index < len(self._file.profiles):
                return False
            self._profile, self._shapes = index, {}
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            calls.add("set_input_shape", (name, shape))
            if self._profile is None:
                raise ViolationError("an input shape was set before the profile")
            if not self._tensors[name].is_input:
                raise ViolationError(f"'{name}' is no input")
            low, _, high = self._file.profiles[self._profile][name]
            if len(shape) != len(low) or any(
                not a <= x <= b for a, x, b in zip(low, shape, high, strict=True)
            ):
                raise ViolationError(f"shape {shape} of '{name}' is outside of {low}..{high}")
            self._shapes[name] = tuple(shape)
            return True

        def infer_shapes(self) -> list[str]:
            return [t.name for t in self._file.tensors if t.is_input and t.name not in self._shapes]

        def set_tensor_address(self, name: str, address: int) -> bool:
            calls.add("set_tensor_address", name)
            if address == 0:
                raise ViolationError(f"the address of '{name}' is null")
            if name not in self._tensors:
                return False
            self._addresses[name] = address
            return True

        def update_device_memory_size_for_shapes(self) -> int:
            calls.add("update_device_memory_size_for_shapes")
            return self._needed()

        def set_device_memory(self, address: int, size: int) -> None:
            calls.add("set_device_memory", size)
            if self._strategy is not strategies.USER_MANAGED:
                raise ViolationError("device memory was given to a context that allocates its own")
            self._memory = (address, size)

        def execute_async_v3(self, stream: int) -> bool:
            calls.add("execute_async_v3", dict(self._shapes))
            _want_stream(stream)
            if self.fails:
                self._logger.log(ILogger.ERROR, "out of luck")
                return False
            if self.infer_shapes():
                raise ViolationError(f"no shape for {self.infer_shapes()}")
            missing = [name for name in self._tensors if name not in self._addresses]
            if missing:
                raise ViolationError(f"no address for {missing}")
            if self._strategy is strategies.USER_MANAGED:
                address, size = self._memory
                if size < self._needed() or address == 0:
                    raise ViolationError(
                        f"{size} bytes of device memory for {self._needed()} needed"
                    )
            if self._config is not None:
                if self._config.cuda_graph_strategy != "disabled":
                    raise ViolationError("TensorRT-RTX's own CUDA graphs inside ours")
                kernel = str(sorted(self._shapes.items())).replace(",", ";")
                cache = self._config.cache
                if cache is not None and kernel not in cache.kernels:
                    if calls.capturing:
                        raise ViolationError("a kernel was compiled during a capture")
                    cache.kernels.add(kernel)
            calls.pending = True
            if self._file.compute is not None:
                self._compute(self._file.compute)
            return True

        def _compute(self, compute: Callable[[Values, Values], Values]) -> None:
            inputs = {
                name: _memory(
                    self._addresses[name], FROM_TENSORRT[self._tensors[name].dtype].torch, shape
                )
                for name, shape in self._shapes.items()
            }
            for name, value in compute(self._engine.weights, inputs).items():
                dtype = FROM_TENSORRT[self._tensors[name].dtype].torch
                _memory(self._addresses[name], dtype, value.shape).copy_(value)

        def _needed(self) -> int:
            if self.infer_shapes():
                raise ViolationError("the memory was asked for before all shapes were set")
            elements = sum(math.prod(shape) for shape in self._shapes.values())
            return elements * self._file.scratch_per_element

    class Weights:
        def __init__(self, dtype: Any, address: int = 0, size: int = 0) -> None:
            self.dtype, self.address, self.size = dtype, address, size

    trt.Weights = Weights

    class Refitter:
        def __init__(self, engine: Engine, logger: ILogger) -> None:
            if not engine.refittable:
                raise TypeError("factory function returned nullptr")
            self._engine, self._file, self._logger = engine, engine._file, logger
            self._given: dict[str, Weights] = {}

        def get_all_weights(self) -> list[str]:
            return list(self._file.refittable)

        def get_weights_prototype(self, name: str) -> Weights:
            if name not in self._file.refittable:
                return Weights(trt.DataType.FLOAT, 0, -1)
            value = self._engine.weights[name]
            dtype = from_torch(value.dtype).tensorrt
            return Weights(trt.DataType[dtype], 0, value.numel())

        def set_named_weights(self, name: str, weights: Weights) -> bool:
            calls.add("set_named_weights", name)
            prototype = self.get_weights_prototype(name)
            if weights.address == 0:
                raise ViolationError(f"the address of the weight '{name}' is null")
            if (prototype.dtype, prototype.size) != (weights.dtype, weights.size):
                self._logger.log(ILogger.ERROR, f"'{name}' has another prototype")
                return False
            self._given[name] = weights
            return True

        def get_missing_weights(self) -> list[str]:
            groups = [group for group in self._file.together if group & self._given.keys()]
            return sorted(frozenset().union(*groups) - self._given.keys())

        def refit_cuda_engine(self) -> bool:
            calls.add("refit_cuda_engine", sorted(self._given))
            if calls.pending:
                raise ViolationError("a refit while enqueued work is pending")
            if self.get_missing_weights():
                self._logger.log(ILogger.ERROR, "weights are missing")
                return False
            old = self._engine.weights
            new = {
                name: _memory(w.address, FROM_TENSORRT[w.dtype.name].torch, old[name].shape).clone()
                for name, w in self._given.items()
            }
            if self._file.failing_refits:
                self._file.failing_refits -= 1
                first = min(new)
                self._engine.weights = {**old, first: new[first]}
                self._logger.log(ILogger.ERROR, "out of memory")
                return False
            self._engine.weights = {**old, **self._file.refit(old, new)}
            return True

        def release_refit_resources(self) -> bool:
            calls.add("release_refit_resources")
            return True

    trt.Refitter = Refitter
    return trt


def _memory(address: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """What lies at an address, as a tensor."""
    size = math.prod(shape) * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(*shape)


def _want_stream(stream: int) -> None:
    if stream == 0:
        raise ViolationError(
            "an enqueue on the default stream makes TensorRT synchronise the device"
        )
