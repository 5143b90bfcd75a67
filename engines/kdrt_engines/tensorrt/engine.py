"""Running TensorRT engines: one implementation for TensorRT and TensorRT-RTX.

Everything that may allocate, compile or synchronise happens in :meth:`TensorRTEngine.bind`:
choosing the profile, setting shapes and addresses, sizing the scratch memory, and one warm-up run,
which makes lazily compiled kernels. A binding's ``run`` is a single enqueue and can be captured.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import EngineError, FixedWeightsError, ShapeError
from kdrt_engines.profiles import Profile, choose_profile, limits, sizes
from kdrt_engines.spec import EngineSpec
from kdrt_engines.tensorrt.gpu import Gpu
from kdrt_engines.tensorrt.log import ErrorLog
from kdrt_engines.tensorrt.refit import EngineWeights
from kdrt_engines.tensorrt.runtime_cache import RuntimeCache
from kdrt_engines.tensorrt.scratch import ScratchMemory
from kdrt_engines.tensorrt.validation import check_profiles, check_tensors
from kdrt_engines.torch_eager import allocate

_logger = logging.getLogger("kdrt.engines")

AfterRefit = Callable[["TensorRTEngine", Mapping[str, Tensor]], None]


class TensorRTEngine(Engine):
    """A deserialised engine file.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        content: the bytes of the engine file, verified by the caller.
        spec: what the component takes and gives; the engine must agree.
        profiles: the optimization profiles, in the engine's order; it must agree with them too.
        scratch: activation memory, shared by the engines of a pipeline.
        gpu: where it runs.
        runtime_cache: where TensorRT-RTX keeps the kernels it compiled on this GPU, so that the
            next process need not; None keeps none. Unused by TensorRT.
        choose: the profile for some sizes; raises ShapeError where there is none.
        network: the ONNX file the engine was built from, if it was built to be refitted.
        after_refit: called after every refit with this engine and the weights that are not the
            file's; raises EngineError where the engine does not compute what it should.

    Raises:
        EngineError: the engine does not load here, or is not this component's.
    """

    in_place = True

    def __init__(
        self,
        trt: ModuleType,
        content: bytes | memoryview,
        spec: EngineSpec,
        *,
        profiles: Sequence[Profile],
        scratch: ScratchMemory,
        gpu: Gpu,
        runtime_cache: Path | None = None,
        choose: Callable[[dict[str, int]], Profile] | None = None,
        network: Path | None = None,
        after_refit: AfterRefit | None = None,
    ) -> None:
        self.spec = spec
        self.gpu, self.device = gpu, gpu.device
        self.scratch = scratch
        self.profiles = tuple(profiles)
        self.after_refit = after_refit
        self._trt = trt
        self._log = ErrorLog(trt)
        self._runtime = trt.Runtime(self._log.logger)
        self.cuda_engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self.cuda_engine is None:
            raise EngineError(f"{trt.__name__} cannot load the engine: {self._log.last}")
        self.names = check_tensors(trt, self.cuda_engine, spec)
        check_profiles(self.cuda_engine, spec, self.names, self.profiles)
        self._choose = choose or partial(choose_profile, self.profiles)
        self._cache = RuntimeCache(runtime_cache)
        self._config = self._runtime_config()
        self.weights: EngineWeights | None = None
        """The weights that can change; None if the engine was not built to be refitted."""
        if network is not None and self.cuda_engine.refittable:
            self.weights = EngineWeights(trt, self.cuda_engine, self._log, network, gpu)
        self._broken: EngineError | None = None
        self._bindings: weakref.WeakSet[TensorRTBinding] = weakref.WeakSet()

    def bind(self, **dims: int) -> TensorRTBinding:
        """See :meth:`Engine.bind`; takes the tightest profile that allows these sizes.

        Raises:
            ShapeError: no profile allows them.
            EngineError: TensorRT refuses them, or the warm-up run fails.
        """
        missing = [symbol for symbol in self.spec.symbols() if symbol not in dims]
        if missing:
            raise ShapeError(f"no size was given for '{missing[0]}'")
        profile = self._choose(dims)
        _logger.info("optimization profile '%s' for %s", profile.name, sizes(dims))
        return self.bind_in(profile, dims)

    def bind_in(self, profile: Profile, dims: dict[str, int]) -> TensorRTBinding:
        """As :meth:`bind`, in one of ``profiles``, be it the tightest or not."""
        if self._broken is not None:
            raise self._broken
        context = self._context()
        binding = TensorRTBinding(self, context, profile, dims)
        self._bindings.add(binding)
        binding.warm_up()
        self._cache.save()
        return binding

    def allows(self, **dims: int) -> bool:
        return any(profile.allows(dims) for profile in self.profiles)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Those of the profile that goes furthest: one profile alone allows all within them."""
        return limits(self.profiles)

    def apart(self) -> TensorRTEngine:
        """The same engine with scratch memory of its own, for a stream of its own."""
        other = copy.copy(self)
        other.scratch = ScratchMemory(self.device)
        return other

    def with_weights(self, weights: Mapping[str, Tensor]) -> TensorRTEngine:
        """This engine, refitted. What is bound stays valid; captured CUDA graphs do not.

        Raises:
            FixedWeightsError: the engine was not built to be refitted.
            EngineError: a weight is not one that can change; nothing has. Or TensorRT could not,
                or ``after_refit`` found the engine wrong: it has the file's weights again, or if
                not even that worked, refuses to run from now on.
        """
        if self.weights is None:
            raise FixedWeightsError("whose weights TensorRT fixed when it built the engine")
        if self._broken is not None:
            raise self._broken
        refit = self.weights.prepare(weights)
        try:
            refit()
            if self.after_refit is not None:
                self.after_refit(self, weights)
        except BaseException as error:
            self._restore(self.weights, error, had_base_weights=not weights)
            raise
        return self

    def _restore(
        self, weights: EngineWeights, error: BaseException, *, had_base_weights: bool
    ) -> None:
        """Put the file's weights back after ``error``. Raises EngineError, which says whether that
        worked; any other error is the caller's to raise."""
        try:
            if had_base_weights and isinstance(error, EngineError):
                raise EngineError("and with the weights it was built with")
            weights.prepare({})()
        except EngineError as worse:
            self._broken = EngineError(
                f"{error}, {worse}: this engine must not be used any more, load it again"
            )
            for binding in self._bindings:
                binding.refuse(self._broken)
            raise self._broken from error
        if isinstance(error, EngineError):
            raise EngineError(f"{error}; the refit was undone") from error

    def error(self, what: str) -> EngineError:
        """``what`` failed, with the reason TensorRT logged."""
        return self._log.error(what)

    def _context(self) -> Any:
        if self._config is not None:
            context = self.cuda_engine.create_execution_context(self._config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.cuda_engine.create_execution_context(strategy)
        if context is None:
            raise self.error("create an execution context")
        return context

    def _runtime_config(self) -> Any:
        """TensorRT-RTX's switches; None for TensorRT, which has no kernels to compile at run time.

        Kernels for the exact sizes are compiled at once, in the warm-up run: compiled in the
        background they would come too late, and during a capture they cannot be. Its own CUDA
        graphs cannot be captured in ours.
        """
        if not hasattr(self._trt, "CudaGraphStrategy"):
            return None
        config = self.cuda_engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._cache.attach(config)
        return config


class TensorRTBinding(Binding):
    """An execution context with its shapes and addresses set."""

    def __init__(
        self, engine: TensorRTEngine, context: Any, profile: Profile, dims: dict[str, int]
    ) -> None:
        self._engine = engine
        self._context = context
        self._execute = context.execute_async_v3
        self._current_stream = engine.gpu.current_stream
        self.profile = profile.name
        """The name of the optimization profile in use."""
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._set_shapes(profile)
        for name, tensor in (*self.inputs.items(), *self.outputs.items()):
            if name in engine.names and not context.set_tensor_address(name, tensor.data_ptr()):
                raise engine.error(f"take the address of '{name}'")
        self._scratch = engine.scratch.block
        engine.scratch.share(self, context.update_device_memory_size_for_shapes())

    def run(self) -> None:
        if not self._execute(self._current_stream()):
            raise self._engine.error("enqueue the network")

    def refuse(self, error: EngineError) -> None:
        """Raise ``error`` instead of running, from now on."""

        def execute(_stream: int) -> bool:
            raise error

        self._execute = execute

    def workspace(self) -> tuple[Tensor, ...]:
        return (self._scratch,)

    def use_scratch(self, block: Tensor) -> None:
        """Compute in ``block`` from now on."""
        self._scratch = block
        self._context.set_device_memory(block.data_ptr(), block.numel())

    def warm_up(self) -> None:
        """Run once and wait. TensorRT does at the first enqueue after a change of shapes what it
        put off until then, and none of that could happen inside a capture."""
        self.run()
        self._engine.gpu.wait_for_stream()

    def _set_shapes(self, profile: Profile) -> None:
        engine, context = self._engine, self._context
        index = engine.profiles.index(profile)
        if not context.set_optimization_profile_async(index, self._current_stream()):
            raise engine.error(f"select the optimization profile '{profile.name}'")
        for name, tensor in self.inputs.items():
            if name in engine.names and not context.set_input_shape(name, tuple(tensor.shape)):
                raise ShapeError(f"the engine rejects the shape {list(tensor.shape)} of '{name}'")
        unknown = context.infer_shapes()
        if unknown:
            raise engine.error(f"infer the shapes of {', '.join(unknown)}")
