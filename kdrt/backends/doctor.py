"""What this machine has to run kdrt with: facts only, gathered without building anything."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from kdrt._version import __version__
from kdrt.backends.tuned import FOLDER, tuned_components
from kdrt.bundle import Bundle, bundle_names, bundle_path
from kdrt.common.home import home
from kdrt.errors import KdrtError
from kdrt_engines.cuda_devices import cuda_devices, torch_cuda_version
from kdrt_engines.processors import cores
from kdrt_engines.registry import EngineStatus, choose, find_engines

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "k-diffusion",
)
"""Distributions whose versions a report on a problem should name."""


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """What there is; memory in bytes, a version None where the package is not installed.

    ``tuned`` says for the components of bundles which engine `kdrt tune` chose on this machine, and
    why."""

    kdrt: str
    system: str
    python: str
    processor: str
    cores: int
    memory: int
    memory_free: int
    cuda: str | None
    gpus: tuple[Gpu, ...]
    packages: dict[str, str | None]
    engines: tuple[EngineStatus, ...]
    chosen: str | None
    home: str
    bundles: tuple[str, ...]
    tuned: dict[str, dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Machine:
    """Look at this machine."""
    memory = psutil.virtual_memory()
    engines = find_engines()
    chosen = choose(engines)
    bundles = tuple(bundle_names())
    return Machine(
        kdrt=__version__,
        system=f"{platform.system()} {platform.release()} ({platform.machine()})",
        python=platform.python_version(),
        processor=_processor(),
        cores=cores(),
        memory=memory.total,
        memory_free=memory.available,
        cuda=torch_cuda_version(),
        gpus=_gpus(),
        packages={name: _version(name) for name in PACKAGES},
        engines=engines,
        chosen=chosen.name if chosen else None,
        home=str(home()),
        bundles=bundles,
        tuned={name: found for name in bundles if (found := _tuned(name))},
    )


def _tuned(name: str) -> dict[str, str]:
    path = bundle_path(name)
    if not (path / FOLDER).is_dir():
        return {}
    try:
        bundle = Bundle.open(path)
    except KdrtError:
        return {}
    return {component: found.why() for component, found in tuned_components(bundle).items()}


def _gpus() -> tuple[Gpu, ...]:
    return tuple(
        Gpu(each.name, ".".join(map(str, each.capability)), each.memory) for each in cuda_devices()
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
