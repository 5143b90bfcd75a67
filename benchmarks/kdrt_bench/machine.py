"""What figures depend on: the machine, the versions, the commit; and the most it can do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from kdrt.backends.doctor import Gpu, examine
from kdrt_bench.jobs import Strict
from kdrt_engines.installed import installed_version

_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
_PACKAGES = (
    "kdrt",
    "torch",
    "onnxruntime",
    "openvino",
    "diffusers",
    "transformers",
    "numpy",
    "tensorrt",
    "tensorrt-rtx",
)
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


class Peak(Strict):
    """The most this machine did, with as many threads as the rows: GFLOP/s of float32 matrix
    products, GB/s of a copy, read and write both counted."""

    threads: int
    gflops: float
    gigabytes: float
    device: str = "cpu"


class MachineReport(Strict):
    """What figures depend on. Frequencies in MHz, memory in bytes; None where it is not told."""

    processor: str
    features: tuple[str, ...]
    cores: int
    governor: str | None
    frequency: float | None
    memory: int
    load: float
    system: str
    python: str
    gpus: tuple[dict[str, str], ...]
    driver: str | None
    versions: dict[str, str]
    commit: str | None
    modified: bool
    peak: Peak

    @property
    def kdrt(self) -> str:
        """Its version, and its commit where that is known."""
        version = self.versions.get("kdrt", "unknown")
        if self.commit is None:
            return version
        return f"{version}, commit {self.commit[:10]}{' and changes' if self.modified else ''}"


def describe(peak: Peak) -> MachineReport:
    """This machine, now."""
    seen = examine()
    commit, modified = commit_of(Path(__file__).parent)
    return MachineReport(
        processor=seen.processor,
        features=_features(),
        cores=seen.cores,
        governor=_text(_CPU / "scaling_governor"),
        frequency=_frequency(),
        memory=seen.memory,
        load=os.getloadavg()[0],
        system=seen.system,
        python=seen.python,
        gpus=tuple(_gpu(gpu) for gpu in seen.gpus),
        driver=_text(Path("/sys/module/nvidia/version")),
        versions={name: found for name in _PACKAGES if (found := installed_version(name))},
        commit=commit,
        modified=modified,
        peak=peak,
    )


def measure_peak(threads: int, *, side: int = 2048, megabytes: int = 512, repeats: int = 7) -> Peak:
    """Measure it; the best of several counts, which is what a peak is.

    Args:
        threads: of PyTorch.
        side: of the square matrices.
        megabytes: copied.
        repeats: how often each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        a, b = (torch.randn(side, side, device=device) for _ in range(2))
        product = torch.empty_like(a)
        source = torch.ones(megabytes * 250_000, device=device)
        target = torch.empty_like(source)
        multiply = _best(lambda: torch.mm(a, b, out=product), repeats)
        copy = _best(lambda: target.copy_(source), repeats)
    finally:
        torch.set_num_threads(before)
    return Peak(
        threads=threads,
        gflops=2 * side**3 / multiply / 1e9,
        gigabytes=2 * source.nbytes / copy / 1e9,
        device=device.type,
    )


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """The commit that a folder is at, and whether it was changed since; None outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    return None, False


def _best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        _synchronize()
        begun = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _features() -> tuple[str, ...]:
    text = _text(Path("/proc/cpuinfo")) or ""
    for line in text.splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
            return tuple(feature for feature in _FEATURES if feature in flags)
    return ()


def _frequency() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return float(found.current) if found and found.current else None


def _gpu(gpu: Gpu) -> dict[str, str]:
    """A card, with clocks and power limit where NVML tells."""
    about = {
        "name": gpu.name,
        "compute capability": gpu.compute_capability,
        "memory": f"{gpu.memory / 1e9:.0f} GB",
    }
    with contextlib.suppress(Exception):  # NVML or a driver that does not tell
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        clock = pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM)
        about["SM clock"] = f"{clock} MHz"
        limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(card)
        about["power limit"] = f"{limit / 1000:.0f} W"
    return about


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return None
