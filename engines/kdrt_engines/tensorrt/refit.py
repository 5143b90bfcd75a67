"""The weights of a loaded engine that was built to take others: TensorRT's refit.

What its documentation asks for, and where it is done:

- No enqueued run of the engine may be pending: the device is waited for, before and after.
- TensorRT reads new weights until the refit returns: they are kept in memory until then.
- Some weights only change together with others: it is asked for those, and gives them too.
- A refit that fails may have changed some weights: those that may differ from the file are
  tracked, so that they can be put back.

Execution contexts stay valid. Captured CUDA graphs are not mentioned, so capture them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kdrt_engines.dtypes import FROM_TENSORRT, from_torch
from kdrt_engines.errors import EngineError
from kdrt_engines.onnx_weights import StoredWeight, stored_weights
from kdrt_engines.tensorrt.gpu import Gpu
from kdrt_engines.tensorrt.log import ErrorLog


class EngineWeights:
    """The weights of a refittable engine.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        cuda_engine: the deserialised engine.
        log: the one it was deserialised with.
        network: the ONNX file it was built from, which has the base weights under the same names.
        gpu: where it runs.
    """

    def __init__(
        self,
        trt: ModuleType,
        cuda_engine: Any,
        log: ErrorLog,
        network: Path,
        gpu: Gpu,
    ) -> None:
        self._trt, self._cuda_engine, self._log = trt, cuda_engine, log
        self._network, self._gpu = network, gpu
        self._differing: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> frozenset[str]:
        """The weights that can change. The builder may have fixed some that it was asked to keep
        refittable."""
        return frozenset(self._refitter().get_all_weights())

    def base(self, name: str) -> Tensor:
        """A weight as it is in the network's file."""
        return self._stored(name).read()

    def prepare(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        """Check new weights, and hand them to TensorRT.

        Args:
            weights: replace the file's; all others become the file's.

        Returns:
            A function that refits the engine. If it raises EngineError, some weights may have
            changed.

        Raises:
            EngineError: a weight cannot change, or has another dtype or shape. Nothing has
                changed.
        """
        for name, tensor in weights.items():
            self._check(name, tensor)
        if not weights and not self._differing:
            return lambda: None
        refitter = self._refitter()
        given = {name: _on_host(tensor) for name, tensor in weights.items()}
        given |= {name: self.base(name) for name in self._differing - weights.keys()}
        self._set_weights(refitter, given)
        while missing := refitter.get_missing_weights():
            more = {name: self.base(name) for name in missing if name not in given}
            if not more:
                raise self._log.error(f"take '{missing[0]}', which it has been given")
            self._set_weights(refitter, more)
            given |= more

        def refit() -> None:
            self._differing = self._differing.union(given)
            self._gpu.wait()
            if not refitter.refit_cuda_engine():
                raise self._log.error("refit the engine")
            self._gpu.wait()
            # It caches memory for the next refit that images need.
            if hasattr(refitter, "release_refit_resources"):
                refitter.release_refit_resources()
            self._differing = frozenset(weights)

        return refit

    def _refitter(self) -> Any:
        """A new one every time: an old one would read from where earlier weights were."""
        return self._trt.Refitter(self._cuda_engine, self._log.logger)

    @cached_property
    def _file(self) -> Mapping[str, StoredWeight]:
        return stored_weights(self._network)

    def _stored(self, name: str) -> StoredWeight:
        if name not in self._file:
            raise EngineError(
                f"the engine wants the weight '{name}', which {self._network} does not have; "
                "build it again with `kdrt build`"
            )
        return self._file[name]

    def _check(self, name: str, tensor: Tensor) -> None:
        if name not in self.names:
            raise EngineError(
                f"'{name}' is not one of the {len(self.names)} weights that this engine lets "
                "change; bake the change in with `kdrt export`, or choose another engine"
            )
        stored = self._stored(name)
        if (tensor.dtype, tuple(tensor.shape)) != (stored.dtype, stored.shape):
            raise EngineError(
                f"the weight '{name}' is {_kind(stored.dtype, stored.shape)}, and was given as "
                f"{_kind(tensor.dtype, tensor.shape)}"
            )

    def _set_weights(self, refitter: Any, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            prototype = refitter.get_weights_prototype(name)
            dtype = FROM_TENSORRT.get(prototype.dtype.name)
            given = from_torch(tensor.dtype)
            if (dtype, prototype.size) != (given, tensor.numel()):
                raise EngineError(
                    f"the weight '{name}' of the engine is not the one in {self._network}; build "
                    "it again with `kdrt build`"
                )
            weights = self._trt.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
            if not refitter.set_named_weights(name, weights):
                raise self._log.error(f"take the weight '{name}'")


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _kind(dtype: torch.dtype, shape: Iterable[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape))}"
