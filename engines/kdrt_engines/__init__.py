"""Engines: run a network at fixed addresses, whatever executes it.

An :class:`Engine` is a loaded network; :meth:`Engine.bind` gives a :class:`Binding` for one set
of sizes, with tensors that never move; :meth:`Binding.run` does nothing but compute.

This package knows nothing of diffusion and imports neither ``kdrt`` nor ``kdrt_export``. Names are
imported when they are first used: the process that builds a TensorRT engine needs no torch.

Its files:

    base            the contract
    spec            what a network takes and gives
    dtypes          the types of elements
    errors          what engines raise, and the base class of kdrt's exceptions
    registry        the names of all engines, and which of them this machine can run
    onnxruntime     ONNX Runtime
    openvino        OpenVINO
    tensorrt        TensorRT and TensorRT-RTX
    torch_eager     modules and exported programs
    inductor        what PyTorch compiles of those
    torch_programs  what is in a program's file
    cuda_graphs     captured work
    cuda_devices    the GPUs of this machine, found without torch
    profiles        the sizes that a built engine takes
    keys            what a built engine depends on
    comparison      how far two engines are apart
    onnx_model      what an ONNX file says of itself
    onnx_weights    the weights beside it
    protobuf        the format it is in
    processors      which processors threads run on
    regular_files   reading files from strangers
    installed       versions of packages
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
