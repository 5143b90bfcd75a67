"""Engines: run a network at fixed addresses, whatever executes it.

An :class:`Engine` is a loaded network; :meth:`Engine.bind` gives a :class:`Binding` for one set
of sizes, with tensors that never move; :meth:`Binding.run` does nothing but compute. Backends:
``torch_eager`` (modules and exported programs), ``ort`` (ONNX Runtime) and ``tensorrt`` (both
flavours of TensorRT). ``registry`` says what this machine has and chooses; ``profiles`` and
``keys`` say what an engine was built for.

This package knows nothing of diffusion and imports neither ``kdrt`` nor ``kdrt_export``. Names are
imported when they are first used: the process that builds a TensorRT engine needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdrt_engines.base import Binding, Engine
    from kdrt_engines.errors import (
        EngineError,
        EngineRejectedError,
        EngineUnavailableError,
        FixedWeightsError,
        KdrtError,
        OutOfMemoryError,
        ShapeError,
    )
    from kdrt_engines.spec import EngineSpec, TensorSpec

__all__ = [
    "Binding",
    "Engine",
    "EngineError",
    "EngineRejectedError",
    "EngineSpec",
    "EngineUnavailableError",
    "FixedWeightsError",
    "KdrtError",
    "OutOfMemoryError",
    "ShapeError",
    "TensorSpec",
]

_HOME = {
    "Binding": "kdrt_engines.base",
    "Engine": "kdrt_engines.base",
    "EngineSpec": "kdrt_engines.spec",
    "TensorSpec": "kdrt_engines.spec",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kdrt_engines' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME.get(name, "kdrt_engines.errors")), name)
    globals()[name] = value
    return value
