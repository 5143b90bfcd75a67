"""What PyTorch is asked to do while some code runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperatorRecorder(TorchDispatchMode):
    """Names every operator that runs, and those whose result lies in no memory they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.allocating: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        if not _memory(result) <= _memory((args, kwargs)):
            self.allocating.append(str(func))
        return result


def _memory(values: Any) -> set[int]:
    leaves = tree_leaves(values)
    return {t.untyped_storage().data_ptr() for t in leaves if isinstance(t, Tensor)}
