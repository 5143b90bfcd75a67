"""Engines: run a network at fixed addresses, whatever executes it.

An :class:`Engine` is a loaded network; :meth:`Engine.bind` gives a :class:`Binding` for one set
of sizes, with tensors that never move; :meth:`Binding.run` does nothing but compute. Backends:
``torch_eager`` (modules and exported programs) and ``ort`` (ONNX Runtime). ``registry`` says
what this machine has and chooses.

This package knows nothing of diffusion and imports neither ``kdrt`` nor ``kdrt_export``.
"""

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import (
    EngineError,
    EngineUnavailable,
    FixedWeights,
    KdrtError,
    ShapeError,
)
from kdrt_engines.spec import EngineSpec, TensorSpec

__all__ = [
    "Binding",
    "Engine",
    "EngineError",
    "EngineSpec",
    "EngineUnavailable",
    "FixedWeights",
    "KdrtError",
    "ShapeError",
    "TensorSpec",
]
