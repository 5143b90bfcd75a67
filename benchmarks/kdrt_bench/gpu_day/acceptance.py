"""What this machine is, and the tests marked ``gpu``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from kdrt_bench.gpu_day.rows import Figures
from kdrt_bench.gpu_day.setting import PACKAGES, Measurement, Setting, installed

ROOT = Path(__file__).parents[3]

_LAST = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")


def machine(setting: Setting) -> Iterator[Measurement]:
    """Card, driver, versions."""
    yield "here", partial(_here, setting)


def _here(setting: Setting) -> Figures:
    import torch

    found: Figures = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count() or 0,
    }
    found |= {name: installed(name) or "not installed" for name in sorted({*PACKAGES, "diffusers"})}
    if setting.dry_run:
        return {"GPU": "none: a rehearsal on the CPU, whose figures mean nothing", **found}
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA sees no GPU here; --dry-run rehearses on the CPU")
    major, minor = torch.cuda.get_device_capability()
    driver = Path("/sys/module/nvidia/version")
    return {
        "GPU": torch.cuda.get_device_name(),
        "sm": f"{major}{minor}",
        "driver": driver.read_text(encoding="utf-8").strip() if driver.is_file() else "?",
        "CUDA": str(torch.version.cuda),
        "free GB": torch.cuda.mem_get_info()[0] / 1e9,
        **found,
    }


def tests(setting: Setting) -> Iterator[Measurement]:
    """What became of the tests, and a row for each that failed."""
    yield from of_tests(ROOT / "tests" / "gpu", setting)


def of_tests(folder: Path, setting: Setting) -> Iterator[Measurement]:
    """Run the tests of a folder, one after the other."""
    if find_spec("pytest") is None:
        yield "all", _no_pytest
        return
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=short", "-m", "gpu"]
    # Without the project's own options: they need xdist, which this process does not.
    command += ["-o", "addopts=", "-p", "no:cacheprovider", str(folder)]
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)  # the log has it, should this process be ended
            lines.append(line.rstrip())
    yield "pytest -m gpu", partial(_counted, lines[-1] if lines else "", process.returncode)
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            name, _, reason = line.partition(" - ")
            yield name.partition(" ")[2].rpartition("/")[2], partial(_failed, reason)


def _no_pytest() -> Figures:
    raise RuntimeError("pytest is not installed")


def _counted(last: str, code: int) -> Figures:
    counts: Figures = {kind: int(count) for count, kind in _LAST.findall(last)}
    if not counts:
        raise RuntimeError(f"pytest ended with exit code {code} and no result")
    return counts


def _failed(reason: str) -> Figures:
    raise AssertionError(reason or "see the log")
