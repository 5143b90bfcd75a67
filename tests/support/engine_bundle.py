"""A bundle whose engines are built by a double: whole plans with true headers, no TensorRT."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import onnx

from kdrt.bundle import Bundle, Manifest, write_manifest
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.tensorrt.build import Follow
from kdrt_engines.tensorrt.job import BuildJob, Built
from tests.support.tiny_model import tiny_model

VERSION = "1.7.1.116"
BITS = {75: 1, 80: 2, 86: 4, 89: 8, 120: 16, 121: 32}


def engine_bundle(folder: Path, **changes: object) -> Bundle:
    """A bundle with a file for every network, so that each has a hash of its own."""
    manifest = tiny_model(folder, "sdxl").manifest
    components = {
        name: component.model_copy(update={"onnx": f"onnx/{name}/model.onnx"})
        for name, component in manifest.components.items()
    }
    for name in components:
        (folder / "onnx" / name).mkdir(parents=True, exist_ok=True)
        (folder / "onnx" / name / "model.onnx").write_bytes(empty_graph(name, manifest))
        (folder / "onnx" / name / "weights.bin").write_bytes(name.encode() * 10)
    update = {"components": components, "precision": "fp16", **changes}
    return Bundle(folder, write_manifest(folder, manifest.model_copy(update=update)))


def empty_graph(name: str, manifest: Manifest) -> bytes:
    """A model that has the inputs and outputs of a component, and computes nothing."""
    component = manifest.components[name]
    values = [
        [onnx.helper.make_tensor_value_info(t.name, DTYPES[t.dtype].onnx, t.shape) for t in side]
        for side in (component.inputs, component.outputs)
    ]
    graph = onnx.helper.make_graph([], name, *values)
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def exported_anew(bundle: Bundle, component: str) -> Bundle:
    """The bundle after the weights of one network have changed."""
    bundle.file(f"onnx/{component}/weights.bin").write_bytes(b"other weights")
    manifest = Manifest.model_validate(bundle.manifest.model_dump())
    return Bundle(bundle.path, write_manifest(bundle.path, manifest))


def plan_bytes(
    capabilities: tuple[int, ...], size: int = 600, seed: str = "", version: str = VERSION
) -> bytes:
    """A plan as TensorRT-RTX 1.7 writes it, with noise for a body."""
    mask = sum(BITS[number] for number in capabilities)
    numbers = [int(part) for part in version.split(".")]
    header = struct.pack("<4sIQQ4B4sI", b"vtrt", 0, 2, size, *numbers, b"vtrt", mask)
    body = random.Random(seed).randbytes(size - len(header))
    return header + body


class Builder:
    """Stands for ``build_plan``; ``jobs`` are those it was given, ``plan`` makes what it writes."""

    def __init__(
        self,
        fused: int | None = 2,
        during: Callable[[], None] = lambda: None,
        plan: Callable[[BuildJob], bytes] = lambda job: plan_bytes(
            job.compute_capabilities, 600 + len(job.onnx), seed=job.onnx
        ),
    ) -> None:
        self.fused, self.during, self.plan = fused, during, plan
        self.jobs: list[BuildJob] = []

    def __call__(self, job: BuildJob, follow: Follow = lambda _phase, _memory: None) -> Built:
        self.jobs.append(job)
        Path(job.output).write_bytes(self.plan(job))
        follow("Building engine", 1000)
        self.during()
        return Built(VERSION, 2, self.fused, {"kgen": 5, "gemm": 2}, 4096, 2000, 1.5, 1.2, ("odd",))


class Listener:
    """A report that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.details: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def start(self, stage: str) -> None:
        self.stages.append(stage)

    def running(self, detail: str, memory: int) -> None:
        self.details.append(detail)

    def done(self, detail: str = "") -> None:
        self.details.append(detail)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
