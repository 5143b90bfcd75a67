"""What ``to(…)`` is asked for, in all the forms that diffusers and torch take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdrt.errors import InvalidRequestError

_INERT = {"silence_dtype_warnings", "non_blocking", "copy", "memory_format"}


def asked_for(
    arguments: Sequence[Any], options: Mapping[str, Any]
) -> tuple[str | None, torch.dtype | None]:
    """The kind of device (``"cpu"`` or ``"cuda"``) and the dtype of ``to(*arguments, **options)``;
    None is what is not asked for.

    Raises:
        InvalidRequestError: it is neither a device nor a dtype, or twice one of them.
    """
    unknown = options.keys() - _INERT - {"device", "dtype", "torch_device", "torch_dtype"}
    if unknown:
        raise InvalidRequestError(
            f"to() takes a device and a dtype, not {', '.join(sorted(unknown))}"
        )
    named = [value for name, value in options.items() if name not in _INERT]
    devices: list[str] = []
    dtypes: list[torch.dtype] = []
    for value in (*arguments, *named):
        if isinstance(value, torch.dtype):
            dtypes.append(value)
        elif isinstance(value, torch.Tensor):
            devices.append(value.device.type)
            dtypes.append(value.dtype)
        elif isinstance(value, (str, int, torch.device)) and not isinstance(value, bool):
            devices.append(device_type(value))
        elif value is not None and not isinstance(value, (bool, torch.memory_format)):
            raise InvalidRequestError(f"to() takes a device and a dtype, not {value!r}")
    if len(devices) > 1 or len(dtypes) > 1:
        raise InvalidRequestError("to() takes one device and one dtype")
    return next(iter(devices), None), next(iter(dtypes), None)


def device_type(value: str | int | torch.device) -> str:
    """``"cpu"`` or ``"cuda"``; an engine's place among several GPUs is CUDA's current device.

    Raises:
        InvalidRequestError: there are no engines for it.
    """
    return as_device(value).type


def as_device(value: object) -> torch.device:
    """``value`` as a device that kdrt has tensors on.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        # A number alone is a GPU's; torch says so only where there is one.
        is_number = isinstance(value, int) and not isinstance(value, bool)
        device = torch.device("cuda", value) if is_number else torch.device(value)  # type: ignore
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidRequestError(f"kdrt runs on 'cpu' and 'cuda', not on {str(value)!r}")
    return torch.device(device)
