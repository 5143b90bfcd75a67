"""What every part is told, and what it gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdrt_bench.gpu_day.rows import Figures

PACKAGES = {
    "inductor": "torch",
    "onnxruntime-cuda": "onnxruntime-gpu",
    "onnxruntime-tensorrt": "onnxruntime-gpu",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
"""Engines that are measured where they are installed, and the distribution each comes from."""

REHEARSED_ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Setting:
    """What all parts are told.

    Attributes:
        folder: of the results; also gets what parts need on the disk.
        dry_run: on the CPU, with the demo in place of models of real size.
        bundle: that the other engines run, by name or folder.
    """

    folder: Path
    dry_run: bool = False
    bundle: str = "demo"

    @property
    def device(self) -> str:
        """Where networks run."""
        return "cpu" if self.dry_run else "cuda"

    @property
    def steps(self) -> int:
        """Of an image; half as many are measured too."""
        return 2 if self.dry_run else 12

    @property
    def rounds(self) -> int:
        """Medians are of so many."""
        return 1 if self.dry_run else 7

    def scratch(self, name: str) -> Path:
        """A new folder for what a part writes."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))


Measurement = tuple[str, Callable[[], Figures]]
"""A row's name, and what makes its figures."""

Measurements = Callable[[Setting], Iterator[Measurement]]


def installed(engine: str) -> str:
    """The version of an engine's distribution; nothing where there is none."""
    try:
        return version(PACKAGES.get(engine, engine))
    except PackageNotFoundError:
        return ""
