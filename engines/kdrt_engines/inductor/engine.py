"""Compiled code behind the engine contract.

The weights are those of the module the code was compiled from, which is loaded as well: at sizes
that were not compiled, the module itself runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdrt_engines.errors import EngineError, OutOfMemoryError, is_out_of_memory
from kdrt_engines.inductor.compiling import without_loose_tensors
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import TorchBinding, TorchEngine

Sizes = Mapping[str, int]


class InductorEngine(TorchEngine):
    """A module, and packages that :func:`~kdrt_engines.inductor.compiling.compile_module` made of
    it.

    Args:
        module: as of :class:`~kdrt_engines.torch_eager.TorchEngine`.
        spec: what it takes and gives.
        device: that the packages were compiled for.
        kept: the package for some sizes; None where there is none. It must be of this module, and
            a file to trust.
        missing: told the sizes that are bound without a package; may raise.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        spec: EngineSpec,
        device: torch.device | str,
        kept: Callable[[Sizes], Path | None],
        missing: Callable[[Sizes], object] = lambda dims: None,
    ) -> None:
        super().__init__(without_loose_tensors(module), spec, device)
        self._kept, self._missing = kept, missing

    def bind(self, **dims: int) -> TorchBinding:
        """See :meth:`Engine.bind`.

        Raises:
            EngineError: the package cannot be loaded, or is of another module.
        """
        path = self._kept(dims)
        if path is None:
            self._missing(dims)
            return super().bind(**dims)
        return InductorBinding(self, path, dims)


class InductorBinding(TorchBinding):
    """One set of sizes, at fixed addresses; compiled code of its own, so that bindings can run at
    the same time."""

    def __init__(self, engine: InductorEngine, path: Path, dims: dict[str, int]) -> None:
        super().__init__(engine, dims)
        self._run, given = _loaded(path, engine.module)
        # PyTorch keeps these tensors for good, and would keep the weights with them.
        # At the end of the process others may still run, and nothing has to be freed.
        weakref.finalize(self, _let_go, given).atexit = False

    @torch.inference_mode()
    def run(self) -> None:
        try:
            results = self._run(list(self.inputs.values()))
        except RuntimeError as error:  # all that compiled code raises
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"PyTorch ran out of memory ({error}): make fewer or smaller images at a time"
                ) from error
            raise EngineError(f"code that Inductor compiled failed: {error}") from error
        for target, result in zip(self.outputs.values(), results, strict=True):
            target.copy_(result)


def _loaded(
    path: Path, module: torch.nn.Module
) -> tuple[Callable[[list[Tensor]], list[Tensor]], list[Tensor]]:
    """The code of a package, and the tensors it was given: the weights of a module."""
    try:
        # Otherwise it would wait for earlier runs, which a CUDA graph cannot capture.
        model = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        given = {name: _same_memory(weights[name]) for name in model.get_constant_fqns()}
        model.load_constants(given, check_full_update=True, user_managed=True)
    except KeyError as error:
        raise EngineError(
            f"{path} was compiled from another network: it has no {error}; build it again"
        ) from error
    except RuntimeError as error:
        kind = OutOfMemoryError if is_out_of_memory(error) else EngineError
        raise kind(f"PyTorch cannot load {path}: {error}") from error
    # Called by itself, the model would read its description from JSON at every run.
    run: Callable[[list[Tensor]], list[Tensor]] = model.loader.boxed_run
    return run, list(given.values())


def _same_memory(weight: Tensor) -> Tensor:
    """Another tensor of the same memory, which unlike a detached one can let go of it."""
    empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
    storage, offset = weight.untyped_storage(), weight.storage_offset()
    return empty.set_(storage, offset, weight.size(), weight.stride())


@torch.inference_mode()  # so that it does not matter in which mode they were made
def _let_go(tensors: Iterable[Tensor]) -> None:
    """Make tensors empty; their memory is free where nothing else has it."""
    for tensor in tensors:
        tensor.set_()  # type: ignore[call-overload]  # its stub lacks this form
