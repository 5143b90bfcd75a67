"""What PyTorch is asked to do while some code runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperatorRecorder(TorchDispatchMode):
    """Names every operator that runs, and those whose result is not in memory they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.allocating: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        given = {t.data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {t.data_ptr() for t in tree_leaves(result) if isinstance(t, Tensor)}
        if not made <= given:
            self.allocating.append(str(func))
        return result
