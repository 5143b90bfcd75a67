"""What a CUDA graph keeps of captured work, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdrt_engines.cuda_graphs import CaptureError


class FrozenGraph:
    """Repeats the operators that ``work`` ran, on the same tensors: whatever Python would decide
    otherwise the next time, or allocate anew, stays as it was.

    Raises:
        CaptureError: ``work`` reads a tensor back.
    """

    size = 1

    def __init__(self, work: Callable[[], None], held: Sequence[Tensor]) -> None:
        work()  # the warm-up
        with _Recorder() as recorder:
            work()
        self._operators = recorder.operators

    @torch.inference_mode()
    def replay(self) -> None:
        for function, args, kwargs, made in self._operators:
            results = tree_leaves(function(*args, **kwargs))
            for place, old in made.items():
                old.copy_(results[place])


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, dict[str, Any], dict[int, Tensor]]] = []
        """Operator, arguments, and those of its results that lie in memory of their own."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise CaptureError("a tensor was read back")
        results = func(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = {
            place: leaf
            for place, leaf in enumerate(tree_leaves(results))
            if isinstance(leaf, Tensor) and _address(leaf) not in given
        }
        self.operators.append((func, args, kwargs or {}, made))
        return results


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
