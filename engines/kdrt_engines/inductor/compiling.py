"""From a module to a package of compiled code, for one set of sizes.

A package holds code only. It reads the weights where the module has them, so all sizes share them,
and what changes them changes what a package computes.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from kdrt_engines.errors import (
    EngineError,
    EngineUnavailableError,
    OutOfMemoryError,
    is_out_of_memory,
)

_OPTIONS = {
    "aot_inductor.package_constants_in_so": False,
    # As many threads as the process that runs it has, and not the one that compiled it.
    "cpp.dynamic_threads": True,
}


def check_compiler() -> None:
    """Whether there is a C++ compiler, which code for any device needs.

    Raises:
        EngineUnavailableError: there is none that PyTorch can use.
    """
    builder = importlib.import_module("torch._inductor.cpp_builder")
    try:
        builder.get_cpp_compiler()
    except Exception as error:  # of a class that is private to Inductor
        raise EngineUnavailableError(
            "Inductor compiles with a C++ compiler, and PyTorch finds none here; install g++ or "
            "clang++, or name one in the environment variable CXX"
        ) from error


def compile_module(module: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write ``module``, compiled for inputs of these shapes on their device.

    Args:
        module: takes and returns tensors; with :func:`without_loose_tensors`.
        inputs: examples, in order.
        path: of the package.

    Raises:
        EngineError: it cannot be compiled.
        OutOfMemoryError: while compiling.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, inputs, strict=False)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=_OPTIONS
            )
    except Exception as error:  # Inductor raises many kinds, the compiler's among them
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"memory ran out while compiling {path.name}") from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineError(f"Inductor cannot compile this network: {reason}") from error


@contextmanager
def own_cache() -> Iterator[None]:
    """Inductor keeps what it generates in a folder that vanishes afterwards. Its usual one has a
    name in the shared folder for temporary files that anybody could have taken first."""
    with (
        tempfile.TemporaryDirectory(prefix="kdrt-inductor-") as folder,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


def without_loose_tensors(module: torch.nn.Module) -> torch.nn.Module:
    """The module, tensors that tracing left in it as plain attributes made buffers: a package finds
    what it reads by name, and only parameters and buffers have one."""
    for part in module.modules():
        loose = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
        for name, value in loose.items():
            delattr(part, name)
            part.register_buffer(name, value, persistent=False)
    return module
