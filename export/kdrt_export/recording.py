"""An engine that keeps what goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdrt_engines import Binding, Engine


@dataclass(frozen=True)
class Call:
    """One run: its sizes, and copies of its inputs and outputs on the CPU, by name."""

    dims: dict[str, int]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Recorder(Engine):
    """Runs another engine, and keeps the inputs and outputs of every run in :attr:`calls`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec, self.device, self.stream = engine.spec, engine.device, engine.stream
        self.capturable = False
        self.neutral_inputs = engine.neutral_inputs
        self.calls: list[Call] = []

    def bind(self, **dims: int) -> Binding:
        return _RecordedBinding(self._engine.bind(**dims), dims, self.calls)

    def allows(self, **dims: int) -> bool:
        return self._engine.allows(**dims)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._engine.limits()


class _RecordedBinding(Binding):
    def __init__(self, binding: Binding, dims: dict[str, int], calls: list[Call]) -> None:
        self._binding, self._dims, self._calls = binding, dims, calls
        self.inputs, self.outputs = binding.inputs, binding.outputs

    def run(self) -> None:
        inputs = _copies(self.inputs)  # an engine may write over them
        self._binding.run()
        self._calls.append(Call(self._dims, inputs, _copies(self.outputs)))

    def workspace(self) -> tuple[Any, ...]:
        return self._binding.workspace()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
