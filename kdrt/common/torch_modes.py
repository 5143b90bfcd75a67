"""PyTorch's modes as they are in a fresh process, whatever the caller has set.

A service shares its process with libraries that set a default dtype or device, turn on autocast, or
run everything in inference mode. What kdrt computes must not follow: buffers outlive the call that
made them, and an image depends on its request alone. Only what is set otherwise is changed, so in
an ordinary process this costs a look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")

_DTYPE, _DEVICE = torch.float32, torch.device("cpu")
_AUTOCAST = ("cpu", "cuda")


def neutral_modes() -> ExitStack:
    """Enter them: float32 on the CPU where nothing else is said, no autocast, no inference mode.
    Gradients stay as the caller has them: whoever computes turns them off by itself.

    Returns:
        What puts back the modes that there were when it is closed, or left as a context.
    """
    modes = ExitStack()
    probe = torch.empty(0)
    if probe.is_inference():
        modes.enter_context(torch.inference_mode(False))
    if probe.dtype is not _DTYPE or probe.device != _DEVICE:
        modes.enter_context(_Defaults())
    for device in _AUTOCAST:
        if torch.is_autocast_enabled(device):
            modes.enter_context(torch.autocast(device, enabled=False))
    return modes


def in_neutral_modes(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """``function``, run in them."""

    @wraps(function)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Value:
        with neutral_modes():
            return function(*arguments, **options)

    return run


_Function = Callable[..., Any]
_FLOATING: frozenset[_Function] = frozenset(
    getattr(torch, name)
    for name in ("empty", "eye", "linspace", "logspace", "ones", "rand", "randn", "zeros")
)
"""What makes tensors of the default dtype."""
_CONVERTING = frozenset[_Function]([torch.as_tensor, torch.asarray, torch.tensor])
_INFERRING = _CONVERTING | {torch.arange, torch.full, torch.scalar_tensor}
"""What makes tensors of a dtype told by its arguments, which for Python's floats is the default."""
_MAKING = _FLOATING | _INFERRING


class _Defaults(TorchFunctionMode):
    """The defaults of dtype and device, for this thread alone: ``torch.set_default_dtype`` would
    change them under every other thread of the process."""

    def __torch_function__(
        self,
        func: _Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _MAKING:
            return func(*args, **given)
        source = args[0] if func in _CONVERTING and args else None
        if given.get("device") is None:
            given["device"] = source.device if isinstance(source, Tensor) else _DEVICE
        has_own = isinstance(source, Tensor | np.ndarray)
        if given.get("dtype") is not None or has_own:
            return func(*args, **given)
        if func in _FLOATING or func(*args, **given).is_floating_point():
            given["dtype"] = _DTYPE
        return func(*args, **given)
