"""The engines kdrt knows, which of them this machine can run, and which one to use.

Nothing is imported that is not installed, and nothing heavy just to look.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kdrt_engines.cuda_devices import cuda_available
from kdrt_engines.installed import installed_version
from kdrt_engines.openvino.config import DEVICES
from kdrt_engines.openvino.devices import has_device
from kdrt_engines.tensorrt.flavour import FLAVOURS

ENGINES = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-cuda",
    "onnxruntime",
    "onnxruntime-tensorrt",
    "openvino",
    "openvino-gpu",
    "openvino-npu",
    "inductor",
    "torch",
)
"""Every name that ``engine=`` takes: best first among those that are chosen automatically, then
the others. A precision may follow OpenVINO's names, as in ``openvino:bf16``."""

ON_REQUEST = frozenset({"onnxruntime-tensorrt", "inductor", "torch", *DEVICES})
"""Engines that are never chosen automatically. The TensorRT provider of ONNX Runtime builds while
the first image waits. torch is the reference and not the fastest. Whether OpenVINO or Inductor is
faster than ONNX Runtime depends on the processor and the network: `kdrt tune` finds out."""


@dataclass(frozen=True)
class EngineStatus:
    """One engine on this machine: whether it can run here, its version (None if it is not
    installed), and the reason."""

    name: str
    usable: bool
    version: str | None
    reason: str


def find_engines() -> tuple[EngineStatus, ...]:
    """The status of every engine, in the order of ``ENGINES``."""
    return tuple(engines_in_turn())


def engines_in_turn() -> Iterator[EngineStatus]:
    """The same statuses one by one; an engine is examined only when its status is requested."""
    return map(_status, ENGINES)


def choose(statuses: Iterable[EngineStatus] | None = None) -> EngineStatus | None:
    """The best usable engine that may be chosen automatically, or None. Stops at the first."""
    found = engines_in_turn() if statuses is None else statuses
    return next((each for each in found if each.usable and each.name not in ON_REQUEST), None)


def _status(name: str) -> EngineStatus:
    if name in FLAVOURS:
        return _tensorrt(name)
    if name in _PYTORCH:
        return _torch(name)
    if name == "onnxruntime":
        return _onnxruntime_cpu()
    if name in DEVICES:
        return _openvino(name)
    return _onnxruntime_gpu(name)


def _tensorrt(name: str) -> EngineStatus:
    module = FLAVOURS[name].module
    if importlib.util.find_spec(module) is None:
        return EngineStatus(name, False, None, f"not installed (pip install 'kdrt[{name}]')")
    version = installed_version(module, name)
    if cuda_available():
        return EngineStatus(name, True, version, "CUDA device found; runs what `kdrt build` built")
    if FLAVOURS[name].builds_anywhere:
        reason = "no CUDA device; `kdrt build` works without one"
    else:
        reason = "no CUDA device, which `kdrt build` needs too"
    return EngineStatus(name, False, version, reason)


def _onnxruntime_gpu(name: str) -> EngineStatus:
    version = installed_version("onnxruntime-gpu")
    if not cuda_available():
        return EngineStatus(name, False, version, "no CUDA device")
    if version is None:
        return EngineStatus(name, False, None, "not installed (pip install 'kdrt[gpu]')")
    building = "; builds while the first image waits" if name == "onnxruntime-tensorrt" else ""
    return EngineStatus(name, True, version, f"CUDA device found{building}")


def _onnxruntime_cpu() -> EngineStatus:
    version = installed_version("onnxruntime")
    if version is None:
        return EngineStatus("onnxruntime", False, None, "not installed (pip install onnxruntime)")
    return EngineStatus("onnxruntime", True, version, "runs on any CPU")


def _openvino(name: str) -> EngineStatus:
    version, device = installed_version("openvino"), DEVICES[name]
    if version is None:
        return EngineStatus(name, False, None, "not installed (pip install 'kdrt[openvino]')")
    if device == "CPU":
        return EngineStatus(name, True, version, "runs on any CPU, in float32 unless named :bf16")
    if not has_device(device):
        return EngineStatus(name, False, version, f"no Intel {device}")
    return EngineStatus(name, True, version, f"Intel {device} found; it needs a driver too")


_PYTORCH = {
    "inductor": "what `kdrt build --engine inductor` compiled of what `--target torch` exported",
    "torch": "what `kdrt export --target torch` exported",
}
"""What each engine of PyTorch's runs."""


def _torch(name: str) -> EngineStatus:
    where = "CUDA device found" if cuda_available() else "runs on any CPU"
    return EngineStatus(name, True, installed_version("torch"), f"{where}; runs {_PYTORCH[name]}")
