"""The devices that the driver tells of, against those that torch tells of."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdrt_engines import cuda_devices
from kdrt_engines.cuda_devices import CudaDevice

WITHOUT_TORCH = (
    "import sys; from kdrt_engines.cuda_devices import cuda_available, cuda_devices, "
    "torch_cuda_version as version; print(cuda_devices(), cuda_available(), version()); "
    "assert 'torch' not in sys.modules"
)


class Driver:
    """As much of libcuda.so as is asked, with its calling conventions: results go through pointers,
    and nothing can be asked before ``cuInit``."""

    def __init__(self, *devices: CudaDevice, version: int = 13000, begins: int = 0) -> None:
        self._devices, self._version, self._begins = devices, version, begins
        self._ready = False

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        self._ready = self._begins == 0
        return self._begins

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self._version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        assert self._ready
        count._obj.value = len(self._devices)
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = 100 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        assert size == ctypes.sizeof(name)
        name.value = self._device(handle).name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        value._obj.value = self._device(handle).capability[(75, 76).index(attribute)]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, handle: ctypes.c_int) -> int:
        assert isinstance(size._obj, ctypes.c_size_t)
        size._obj.value = self._device(handle).memory
        return 0

    def _device(self, handle: ctypes.c_int) -> CudaDevice:
        return self._devices[handle.value - 100]


CARDS = (
    CudaDevice("NVIDIA GeForce RTX 4090", (8, 9), 25_757_220_864),
    CudaDevice("NVIDIA H200", (9, 0), 150_754_820_096),
)

Install = Callable[..., None]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Install:
    """``driver(Driver(…))``: that driver, in a process that has not loaded torch, beside a torch
    built with CUDA 13.0."""

    def install(found: Driver | None, cuda: str | None = "13.0") -> None:
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setattr(cuda_devices, "_driver", lambda: found)
        monkeypatch.setattr(cuda_devices, "torch_cuda_version", lambda: cuda)

    return install


def test_the_driver_tells_of_every_device(driver: Install) -> None:
    driver(Driver(*CARDS))
    assert cuda_devices.cuda_devices() == CARDS
    assert cuda_devices.cuda_available()


@pytest.mark.parametrize(
    ("found", "cuda"),
    [
        pytest.param(None, "13.0", id="no driver"),
        pytest.param(Driver(), "13.0", id="no device"),
        pytest.param(Driver(*CARDS, begins=100), "13.0", id="the driver says no"),
        pytest.param(Driver(*CARDS, version=12090), "13.0", id="driver older than torch's CUDA"),
        pytest.param(Driver(*CARDS), None, id="torch is a CPU build"),
    ],
)
def test_what_torch_could_not_use_is_no_device(
    driver: Install, found: Driver | None, cuda: str | None
) -> None:
    driver(found, cuda)
    assert cuda_devices.cuda_devices() == ()
    assert not cuda_devices.cuda_available()


def test_a_newer_minor_version_of_cuda_is_no_reason(driver: Install) -> None:
    driver(Driver(*CARDS, version=13000), "13.2")
    assert cuda_devices.cuda_devices() == CARDS


def test_without_torch_the_answer_is_that_of_torch() -> None:
    """On a machine with a GPU too."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {WITHOUT_TORCH}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = (cuda_devices.cuda_devices(), torch.cuda.is_available(), torch.version.cuda)
    assert done.stdout == f"{found[0]} {found[1]} {found[2]}\n"
