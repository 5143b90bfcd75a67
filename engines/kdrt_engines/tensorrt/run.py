"""Running TensorRT plans: one implementation for TensorRT and TensorRT-RTX.

Everything that may allocate, compile or synchronise happens in :meth:`TensorRTEngine.bind`:
choosing the profile, setting shapes and addresses, sizing the activation memory, and one warm-up
run, which makes lazily compiled kernels. A binding's ``run`` is a single enqueue and can be
captured.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdrt_engines.base import Binding, Engine
from kdrt_engines.dtypes import FROM_TENSORRT
from kdrt_engines.errors import EngineError, FixedWeightsError, ShapeError
from kdrt_engines.profiles import Profile, choose_profile, limits
from kdrt_engines.spec import EngineSpec
from kdrt_engines.tensorrt.log import ErrorLog
from kdrt_engines.tensorrt.refit import PlanWeights
from kdrt_engines.tensorrt.runtime_cache import RuntimeCache
from kdrt_engines.torch_eager import allocate

_logger = logging.getLogger("kdrt.engines")

RefitCheck = Callable[["TensorRTEngine", Mapping[str, Tensor]], None]


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
        profiles: the optimization profiles of the plan, in its order; it must agree with them too.
        scratch: activation memory, shared by the engines of a pipeline.
        device: a CUDA device.
        runtime_cache: where TensorRT-RTX keeps the kernels it compiled on this GPU, so that the
            next process need not; None keeps none. Unused by TensorRT.
        current_stream: gives the handle of the stream to enqueue on.
        choose: the profile for some sizes; raises ShapeError where there is none.
        network: the ONNX file that the plan was built from, where it was built to be refitted.
        check: called after every refit with this engine and the weights that are not the file's;
            raises EngineError where the engine does not compute what it should.

    Raises:
        EngineError: the plan does not load here, or is not this component's.
    """

    in_place = True

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes | memoryview,
        spec: EngineSpec,
        *,
        profiles: Sequence[Profile],
        scratch: Scratch,
        device: torch.device | str = "cuda",
        runtime_cache: Path | None = None,
        current_stream: Callable[[], int] | None = None,
        choose: Callable[[dict[str, int]], Profile] | None = None,
        network: Path | None = None,
        check: RefitCheck | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.scratch = scratch
        self.current_stream = current_stream or _torch_stream(self.device)
        self._trt = trt
        self._log = ErrorLog(trt)
        self._runtime = trt.Runtime(self._log.logger)
        self.plan: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.plan is None:
            raise EngineError(f"{trt.__name__} cannot load the engine: {self._log.last}")
        self._check_tensors()
        self.profiles = tuple(profiles)
        self._check_profiles()
        self._choose = choose or partial(choose_profile, self.profiles)
        self._cache = RuntimeCache(runtime_cache)
        self._config = self._runtime_config()
        self.weights: PlanWeights | None = None
        """What can change; None where the plan was not built for it."""
        if network is not None and self.plan.refittable:
            self.weights = PlanWeights(trt, self.plan, self._log, network, self.device)
        self._check = check
        self._spoiled: EngineError | None = None
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
        sizes = " ".join(f"{symbol}={size}" for symbol, size in dims.items())
        _logger.info("optimization profile '%s' for %s", profile.name, sizes)
        return self.bind_in(profile, dims)

    def bind_in(self, profile: Profile, dims: dict[str, int]) -> TensorRTBinding:
        """As :meth:`bind`, in one of ``profiles``, be it the tightest or not."""
        if self._spoiled is not None:
            raise self._spoiled
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

    def with_weights(self, weights: Mapping[str, Tensor]) -> TensorRTEngine:
        """This engine, refitted. What is bound stays valid; captured graphs do not.

        Raises:
            FixedWeightsError: the plan was not built to be refitted.
            EngineError: a weight is not one that can change; nothing has. Or TensorRT could not,
                or the engine then failed its check: it has the file's weights again, or where
                not even that went well, refuses to run from now on.
        """
        if self.weights is None:
            raise FixedWeightsError("whose weights TensorRT fixed when it built the engine")
        if self._spoiled is not None:
            raise self._spoiled
        refit = self.weights.prepare(weights)
        try:
            refit()
            if self._check is not None:
                self._check(self, weights)
        except BaseException as error:
            self._put_back(self.weights, error, were_base=not weights)
            raise
        return self

    def _put_back(self, weights: PlanWeights, error: BaseException, *, were_base: bool) -> None:
        """Restore the file's weights after ``error``, and say so."""
        try:
            if were_base and isinstance(error, EngineError):
                raise EngineError("and with the weights it was built with")
            weights.prepare({})()
        except EngineError as worse:
            self._spoiled = EngineError(
                f"{error}, {worse}: this engine must not be used any more, load it again"
            )
            for binding in self._bindings:
                binding.refuse(self._spoiled)
            raise self._spoiled from error
        if isinstance(error, EngineError):
            raise EngineError(f"{error}; the refit was undone") from error

    def error(self, what: str) -> EngineError:
        """``what`` failed, with the reason TensorRT logged."""
        return self._log.error(what)

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
            found = FROM_TENSORRT.get(plan.get_tensor_dtype(name).name)
            dtype = found.name if found else plan.get_tensor_dtype(name).name
            if dtype != by_name[name].dtype:
                raise EngineError(
                    f"'{name}' is {dtype} in the engine and {by_name[name].dtype} in the bundle; "
                    "build it again with `kdrt build`"
                )
        self.names = frozenset(names)

    def _check_profiles(self) -> None:
        """The plan's ranges must be the record's, or sizes would be refused late, or taken for
        another profile's."""
        count = self.plan.num_optimization_profiles
        if count != len(self.profiles):
            raise EngineError(
                f"the engine has {count} optimization profiles, its record names "
                f"{len(self.profiles)}; build it again with `kdrt build`"
            )
        dynamic = [t for t in self.spec.inputs if t.name in self.names and t.symbols()]
        for index, profile in enumerate(self.profiles):
            for tensor in dynamic:
                shapes = self.plan.get_tensor_profile_shape(tensor.name, index)
                if [tuple(shape) for shape in shapes] != [
                    tensor.resolve(profile.sizes(which)) for which in ("min", "opt", "max")
                ]:
                    raise EngineError(
                        f"the sizes of '{tensor.name}' in the engine are not those of its profile "
                        f"{profile}; build it again with `kdrt build`"
                    )


class TensorRTBinding(Binding):
    """An execution context with its shapes and addresses set."""

    def __init__(
        self, engine: TensorRTEngine, context: Any, profile: Profile, dims: dict[str, int]
    ) -> None:
        self._engine = engine
        self._context = context
        self._execute = context.execute_async_v3
        self._current_stream = engine.current_stream
        self.profile = profile.name
        """The name of the optimization profile in use."""
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._set_shapes(profile)
        for name, tensor in (*self.inputs.items(), *self.outputs.items()):
            if name in engine.names and not context.set_tensor_address(name, tensor.data_ptr()):
                raise engine.error(f"take the address of '{name}'")
        self._block = engine.scratch.block
        engine.scratch.join(self, context.update_device_memory_size_for_shapes())

    def run(self) -> None:
        if not self._execute(self._current_stream()):
            raise self._engine.error("enqueue the network")

    def refuse(self, error: EngineError) -> None:
        """Raise ``error`` instead of running, from now on."""

        def execute(_stream: int) -> bool:
            raise error

        self._execute = execute

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


def _torch_stream(device: torch.device) -> Callable[[], int]:
    def handle() -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    return handle
