"""Bundles for people to read: a line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdrt.backends.engine_files import engine_folders
from kdrt.backends.records import check_record, read_record
from kdrt.bundle import Bundle, Manifest, bundle_path, read_manifest
from kdrt.errors import BundleError, EngineRejectedError
from kdrt_engines.tensorrt.flavour import FLAVOURS


@dataclass(frozen=True)
class BundleRow:
    """A bundle in one line.

    Attributes:
        name: of its folder.
        path: the folder.
        size: of all its files, engines and caches among them, in bytes.
        family: empty where the manifest cannot be read.
        precision: likewise.
        engines: GPUs by flavour of TensorRT, as ``sm89``; those of engines that can be used.
        problem: why the manifest cannot be read.
    """

    name: str
    path: Path
    size: int
    family: str = ""
    precision: str = ""
    engines: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def remark(self) -> str:
        """The engines, or what is wrong."""
        built = (f"{name} ({', '.join(gpus)})" for name, gpus in self.engines.items())
        return self.problem or ", ".join(built) or "none"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def describe(name: str) -> BundleRow:
    """The bundle of a name. Nothing but its manifest and the records of its engines is read."""
    path = bundle_path(name)
    total = folder_size(path)
    try:
        manifest = read_manifest(path)
    except BundleError as error:
        return BundleRow(name, path, total, problem=str(error))
    return BundleRow(
        name,
        path,
        total,
        manifest.family,
        ", ".join(precisions(manifest)),
        _engines(Bundle(path, manifest)),
    )


def precisions(manifest: Manifest) -> Iterator[str]:
    """What the networks compute in, and what their weights are where that is another."""
    yield manifest.precision
    if manifest.baked.weights == "int8":
        yield "int8 weights"
    if manifest.quantization is not None:
        yield manifest.quantization.format


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file())


def _engines(bundle: Bundle) -> dict[str, list[str]]:
    found: dict[str, set[int]] = {}
    for flavour in FLAVOURS.values():
        for folder in engine_folders(bundle, flavour):
            try:
                record = read_record(bundle, folder)
                check_record(bundle, record, record.key.component, record.key.backend_version)
            except EngineRejectedError:
                continue
            found.setdefault(flavour.name, set()).update(record.key.compute_capabilities)
    return {name: [f"sm{gpu}" for gpu in sorted(gpus)] for name, gpus in found.items()}
