"""Which engines this machine has, and which one to use.

The order of preference is fixed: TensorRT, TensorRT-RTX, ONNX Runtime on CUDA, ONNX Runtime on
the CPU. (ONNX Runtime's TensorRT provider builds while the first image waits, so it is never
chosen, only asked for.) Nothing is imported that is not installed, and nothing heavy just to look.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from kdrt_engines.installed import installed_version
from kdrt_engines.tensorrt.flavour import FLAVOURS

PREFERENCE = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime")


@dataclass(frozen=True)
class EngineStatus:
    """One engine on this machine: whether it can run here, its version, and why not."""

    name: str
    usable: bool
    version: str | None
    reason: str


def find_engines() -> tuple[EngineStatus, ...]:
    """Every engine kdrt knows, best first."""
    return (
        _tensorrt("tensorrt", "tensorrt"),
        _tensorrt("tensorrt-rtx", "tensorrt_rtx"),
        _onnxruntime_cuda(),
        _onnxruntime_cpu(),
    )


def choose(statuses: tuple[EngineStatus, ...] | None = None) -> EngineStatus | None:
    """The best usable engine, or None."""
    return next((status for status in statuses or find_engines() if status.usable), None)


def _tensorrt(name: str, module: str) -> EngineStatus:
    if importlib.util.find_spec(module) is None:
        return EngineStatus(name, False, None, f"not installed (pip install 'kdrt[{name}]')")
    version = installed_version(module, module.replace("_", "-"))
    if torch.cuda.is_available():
        return EngineStatus(name, True, version, "CUDA device found; runs what `kdrt build` built")
    if FLAVOURS[name].builds_anywhere:
        reason = "no CUDA device; `kdrt build` works without one"
    else:
        reason = "no CUDA device, which `kdrt build` needs too"
    return EngineStatus(name, False, version, reason)


def _onnxruntime_cuda() -> EngineStatus:
    name = "onnxruntime-cuda"
    if not torch.cuda.is_available():
        return EngineStatus(name, False, installed_version("onnxruntime-gpu"), "no CUDA device")
    version = installed_version("onnxruntime-gpu")
    if version is None:
        return EngineStatus(name, False, None, "not installed (pip install 'kdrt[gpu]')")
    return EngineStatus(name, True, version, "CUDA device found")


def _onnxruntime_cpu() -> EngineStatus:
    version = installed_version("onnxruntime")
    if version is None:
        return EngineStatus("onnxruntime", False, None, "not installed (pip install onnxruntime)")
    return EngineStatus("onnxruntime", True, version, "runs on any CPU")
