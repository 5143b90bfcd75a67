"""Running TensorRT plans: one implementation for TensorRT and TensorRT-RTX.

Everything that may allocate, compile or synchronise happens in :meth:`TensorRTEngine.bind`:
choosing the profile, setting shapes and addresses, sizing the activation memory, and one warm-up
run, which makes lazily compiled kernels. A binding's ``run`` is a single enqueue and can be
captured.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import EngineError, ShapeError
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_engines.torch_eager import allocate

_DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
}


class Scratch:
    """The activation memory of all networks on a device: one block, as large as the largest needs.

    Networks run one after the other on one stream, so what one leaves behind the next may
    overwrite. The block grows when a binding needs more, and every living binding is then told its
    new address. Captured graphs hold the old block (see :meth:`Binding.held`), so they stay valid.

    Args:
        device: where the block lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.block = torch.empty(0, dtype=torch.uint8, device=device)
        self._users: weakref.WeakSet[TensorRTBinding] = weakref.WeakSet()

    def join(self, binding: TensorRTBinding, size: int) -> None:
        """Give ``binding`` the block, made at least ``size`` bytes large first."""
        self._users.add(binding)
        if size > self.block.numel():
            self.block = torch.empty(size, dtype=torch.uint8, device=self._device)
            for user in self._users:
                user.use(self.block)
        else:
            binding.use(self.block)


class TensorRTEngine(Engine):
    """A deserialised plan.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        plan: the bytes of the engine file, verified by the caller.
        spec: what the component takes and gives; the plan must agree.
        profiles: a name for each optimization profile of the plan, in order.
        scratch: activation memory, shared by the engines of a pipeline.
        device: a CUDA device.
        runtime_cache: where TensorRT-RTX keeps the kernels it compiled on this GPU, so that the
            next process need not; None keeps none. Unused by TensorRT.
        current_stream: gives the handle of the stream to enqueue on.

    Raises:
        EngineError: the plan does not load here, or is not this component's.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes,
        spec: EngineSpec,
        *,
        profiles: Sequence[str],
        scratch: Scratch,
        device: torch.device | str = "cuda",
        runtime_cache: Path | None = None,
        current_stream: Callable[[], int] | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.scratch = scratch
        self.current_stream = current_stream or _torch_stream(self.device)
        self._trt = trt
        self._log = _Log(trt)
        self._runtime = trt.Runtime(self._log.logger)
        self.plan: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.plan is None:
            raise EngineError(f"{trt.__name__} cannot load the engine: {self._log.last}")
        self._check_tensors()
        if self.plan.num_optimization_profiles != len(profiles):
            raise EngineError(
                f"the engine has {self.plan.num_optimization_profiles} optimization profiles, its "
                f"record names {len(profiles)}; build it again with `kdrt build`"
            )
        self.profiles = [
            _Ranges(name, self.plan, index, spec) for index, name in enumerate(profiles)
        ]
        self._cache = _RuntimeCache(runtime_cache)
        self._config = self._runtime_config()

    def bind(self, **dims: int) -> TensorRTBinding:
        """See :meth:`Engine.bind`; takes the tightest profile that allows these sizes.

        Raises:
            ShapeError: no profile allows them.
            EngineError: TensorRT refuses them, or the warm-up run fails.
        """
        ranges = self._tightest(dims)
        context = self._context()
        binding = TensorRTBinding(self, context, ranges, dims)
        binding.warm_up()
        self._cache.save()
        return binding

    def error(self, what: str) -> EngineError:
        """``what`` failed, with the reason TensorRT logged."""
        return EngineError(f"{self._trt.__name__} could not {what}: {self._log.last}")

    def _tightest(self, dims: Mapping[str, int]) -> _Ranges:
        missing = [symbol for symbol in self.spec.symbols() if symbol not in dims]
        if missing:
            raise ShapeError(f"no size was given for '{missing[0]}'")
        fitting = [ranges for ranges in self.profiles if ranges.allow(dims)]
        if not fitting:
            sizes = ", ".join(f"{symbol}={size}" for symbol, size in dims.items())
            has = "; ".join(str(ranges) for ranges in self.profiles)
            raise ShapeError(f"no optimization profile allows {sizes}; the engine has {has}")
        return min(fitting, key=lambda ranges: ranges.largest)

    def _context(self) -> Any:
        if self._config is not None:
            context = self.plan.create_execution_context(self._config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.plan.create_execution_context(strategy)
        if context is None:
            raise self.error("create an execution context")
        return context

    def _runtime_config(self) -> Any:
        """TensorRT-RTX's switches; None for TensorRT, which has no kernels to compile at run time.

        Kernels for the exact sizes are compiled at once, in the warm-up run: compiled in the
        background they would come too late, and during a capture they cannot be. Its own CUDA
        graphs would hide inside ours.
        """
        if not hasattr(self._trt, "CudaGraphStrategy"):
            return None
        config = self.plan.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._cache.attach(config)
        return config

    def _check_tensors(self) -> None:
        """The plan's tensors must be the component's, or data would be read as something else."""
        plan = self.plan
        names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
        inputs = {n for n in names if plan.get_tensor_mode(n) == self._trt.TensorIOMode.INPUT}
        for tensors, given, side in (
            (self.spec.inputs, inputs, "inputs"),
            (self.spec.outputs, set(names) - inputs, "outputs"),
        ):
            # A graph may not read every input of its component: a UNet without time conditioning.
            wanted = {tensor.name for tensor in tensors}
            if not given <= wanted or (side == "outputs" and given != wanted):
                raise EngineError(
                    f"the engine's {side} are {', '.join(sorted(given))}, the component's "
                    f"{', '.join(sorted(wanted))}; build it again with `kdrt build`"
                )
        by_name = {tensor.name: tensor for tensor in (*self.spec.inputs, *self.spec.outputs)}
        for name in names:
            dtype = _DTYPE_NAMES.get(plan.get_tensor_dtype(name).name)
            if dtype != by_name[name].dtype:
                raise EngineError(
                    f"'{name}' is {dtype} in the engine and {by_name[name].dtype} in the bundle; "
                    "build it again with `kdrt build`"
                )
        self.names = frozenset(names)


class TensorRTBinding(Binding):
    """An execution context with its shapes and addresses set."""

    def __init__(
        self, engine: TensorRTEngine, context: Any, ranges: _Ranges, dims: dict[str, int]
    ) -> None:
        self._engine = engine
        self._context = context
        self._execute = context.execute_async_v3
        self._current_stream = engine.current_stream
        self.profile = ranges.name
        """The name of the optimization profile in use."""
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._set_shapes(ranges)
        for name, tensor in (*self.inputs.items(), *self.outputs.items()):
            if name in engine.names and not context.set_tensor_address(name, tensor.data_ptr()):
                raise engine.error(f"take the address of '{name}'")
        self._block = engine.scratch.block
        engine.scratch.join(self, context.update_device_memory_size_for_shapes())

    def run(self) -> None:
        if not self._execute(self._current_stream()):
            raise self._engine.error("enqueue the network")

    def held(self) -> tuple[Tensor, ...]:
        return (self._block,)

    def use(self, block: Tensor) -> None:
        """Compute in ``block`` from now on."""
        self._block = block
        self._context.set_device_memory(block.data_ptr(), block.numel())

    def warm_up(self) -> None:
        """Run once and wait. TensorRT does what it put off at the first enqueue after a change of
        shapes, and none of that could happen inside a capture."""
        self.run()
        if self._engine.device.type == "cuda":
            torch.cuda.current_stream(self._engine.device).synchronize()

    def _set_shapes(self, ranges: _Ranges) -> None:
        engine, context = self._engine, self._context
        if not context.set_optimization_profile_async(ranges.index, self._current_stream()):
            raise engine.error(f"select the optimization profile '{ranges.name}'")
        for name, tensor in self.inputs.items():
            if name in engine.names and not context.set_input_shape(name, tuple(tensor.shape)):
                raise ShapeError(f"the engine rejects the shape {list(tensor.shape)} of '{name}'")
        unknown = context.infer_shapes()
        if unknown:
            raise engine.error(f"infer the shapes of {', '.join(unknown)}")


class _Ranges:
    """What one optimization profile allows, by symbol of the spec."""

    def __init__(self, name: str, plan: Any, index: int, spec: EngineSpec) -> None:
        self.name = name
        self.index = index
        self._ranges: dict[str, tuple[int, int]] = {}
        names = {plan.get_tensor_name(i) for i in range(plan.num_io_tensors)}
        for tensor in spec.inputs:
            if tensor.name in names:
                low, _, high = plan.get_tensor_profile_shape(tensor.name, index)
                self._narrow(tensor, tuple(low), tuple(high))

    def _narrow(self, tensor: TensorSpec, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        for axis, dim in enumerate(tensor.shape):
            if not isinstance(dim, str):
                continue
            (symbol,) = TensorSpec("", tensor.dtype, (dim,)).symbols()
            factor = TensorSpec("", tensor.dtype, (dim,)).resolve({symbol: 1})[0]
            bounds = -(-low[axis] // factor), high[axis] // factor
            known = self._ranges.get(symbol, bounds)
            self._ranges[symbol] = max(known[0], bounds[0]), min(known[1], bounds[1])

    @property
    def largest(self) -> int:
        """The volume of the largest sizes allowed: the smaller, the tighter."""
        return math.prod(high for _, high in self._ranges.values())

    def allow(self, dims: Mapping[str, int]) -> bool:
        return all(low <= dims[symbol] <= high for symbol, (low, high) in self._ranges.items())

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{symbol}={low}" if low == high else f"{symbol}={low}..{high}"
            for symbol, (low, high) in self._ranges.items()
        )
        return f"{self.name} ({sizes})"


class _RuntimeCache:
    """Compiled kernels on disk. What cannot be read or written is compiled again, no error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cache: Any = None
        self._saved = 0

    def attach(self, config: Any) -> None:
        if self._path is None:
            return
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            data = self._path.read_bytes()
            # False for a cache of another GPU, driver or version: then it is written anew.
            if self._cache.deserialize(data):
                self._saved = len(data)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache if kernels were added since."""
        if self._cache is None or self._path is None:
            return
        data = bytes(self._cache.serialize())
        if len(data) == self._saved:
            return
        with contextlib.suppress(OSError):  # a read-only bundle
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=self._path.parent, prefix=".cache.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(partial).replace(self._path)
            self._saved = len(data)


class _Log:
    """Keeps the last error: TensorRT says in its log what its calls do not return."""

    def __init__(self, trt: ModuleType) -> None:
        self.last = "it gave no reason"
        log = self

        class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log.last = message

        self.logger = Logger()


def _torch_stream(device: torch.device) -> Callable[[], int]:
    def handle() -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    return handle
