"""The CUDA devices of this machine, found without importing torch, which takes seconds.

The driver is asked, as torch would do. A process in which torch is loaded asks torch itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_NAME_BYTES = 256


@dataclass(frozen=True)
class CudaDevice:
    """One device: its name, compute capability (major, minor) and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


def cuda_available() -> bool:
    """Whether torch can compute on a CUDA device here."""
    if "torch" in sys.modules:
        import torch

        return torch.cuda.is_available()
    return bool(cuda_devices())


def cuda_devices() -> tuple[CudaDevice, ...]:
    """The devices that torch can compute on, in torch's order."""
    if "torch" in sys.modules:
        return _devices_of_torch()
    version = torch_cuda_version()
    driver = None if version is None else _driver()
    if version is None or driver is None or driver.cuInit(0) != 0:
        return ()
    newest, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(newest))
    if newest.value // 1000 < int(version.partition(".")[0]):
        return ()  # torch refuses a driver older than the CUDA it was built with
    driver.cuDeviceGetCount(ctypes.byref(count))
    return tuple(_device(driver, index) for index in range(count.value))


def torch_cuda_version() -> str | None:
    """The CUDA version that torch was built with, as ``13.0``; None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    except OSError:
        return None
    version = facts.get("cuda")
    return None if version is None else str(version)


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:  # no NVIDIA driver
        return None


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return CudaDevice(name.value.decode(), (major.value, minor.value), memory.value)


def _devices_of_torch() -> tuple[CudaDevice, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(CudaDevice(g.name, (g.major, g.minor), g.total_memory) for g in found)
