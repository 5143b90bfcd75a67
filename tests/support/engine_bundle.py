"""A bundle whose engines are built by a double: whole files with true headers, no TensorRT."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import onnx

from kdrt.bundle import Bundle, Manifest, write_manifest
from kdrt.errors import EngineError
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.keys import EngineKey
from kdrt_engines.tensorrt.build import Follow
from kdrt_engines.tensorrt.engine_file import read_header
from kdrt_engines.tensorrt.job import BuildJob, Built
from kdrt_engines.tensorrt.refit_result import RefitResult
from tests.support.tiny_model import FREEU, Shape, tiny_model

VERSION = "1.7.1.116"
WEIGHTS = ("a.weight", "b.weight")
"""Of every network; a LoRA can change them."""

RESULT = RefitResult(2, 0, 1e-3, 2e-3, 0.0)

BITS = {75: 1, 80: 2, 86: 4, 89: 8, 120: 16, 121: 32}


def engine_bundle(folder: Path, *, freeu: Shape = FREEU, **changes: object) -> Bundle:
    """A bundle with a file for every network, so that each has a hash of its own. ``freeu`` is the
    shape of that input, and ``changes`` are of the manifest."""
    manifest = tiny_model(folder, "sdxl", freeu=freeu).manifest
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
    """A model that has the inputs and outputs of a component, and the weights ``WEIGHTS`` in a file
    beside it, and computes nothing."""
    component = manifest.components[name]
    values = [
        [onnx.helper.make_tensor_value_info(t.name, DTYPES[t.dtype].onnx, t.shape) for t in side]
        for side in (component.inputs, component.outputs)
    ]
    weights = [_external(weight, 16 * index) for index, weight in enumerate(WEIGHTS)]
    graph = onnx.helper.make_graph([], name, *values, weights)
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def _external(name: str, offset: int) -> onnx.TensorProto:
    """Four numbers of ``weights.bin``, as a matrix that a LoRA can change."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=(2, 2))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": str(offset), "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def exported_anew(bundle: Bundle, component: str) -> Bundle:
    """The bundle after the weights of one network have changed."""
    bundle.file(f"onnx/{component}/weights.bin").write_bytes(b"other weights" * 10)
    manifest = Manifest.model_validate(bundle.manifest.model_dump())
    return Bundle(bundle.path, write_manifest(bundle.path, manifest))


def engine_bytes(
    capabilities: tuple[int, ...], size: int = 600, seed: str = "", version: str = VERSION
) -> bytes:
    """A file as TensorRT-RTX 1.7 writes it, with noise for a body."""
    mask = sum(BITS[number] for number in capabilities)
    numbers = [int(part) for part in version.split(".")]
    header = struct.pack("<4sIQQ4B4sI", b"vtrt", 0, 2, size, *numbers, b"vtrt", mask)
    body = random.Random(seed).randbytes(size - len(header))
    return header + body


class ContractError(AssertionError):
    """The builder was asked for something that TensorRT would refuse, or not notice."""


class Builder:
    """Stands for ``build_engine``, and refuses jobs that TensorRT would: unknown inputs, weights
    and targets, sizes that do not fit the network or each other, an output that is in the way.

    Args:
        fused: how many attentions it says were fused.
        during: called while it builds.
        content: makes what it writes.
    """

    def __init__(
        self,
        fused: int | None = 2,
        during: Callable[[], None] = lambda: None,
        content: Callable[[BuildJob], bytes] = lambda job: engine_bytes(
            job.compute_capabilities, 600 + len(job.onnx), seed=job.onnx
        ),
    ) -> None:
        self.fused, self.during, self.content = fused, during, content
        self.jobs: list[BuildJob] = []

    def __call__(self, job: BuildJob, follow: Follow = lambda _phase, _memory: None) -> Built:
        _check_job(job)
        self.jobs.append(job)
        Path(job.output).write_bytes(self.content(job))
        follow("Building engine", 1000)
        self.during()
        return Built(VERSION, 2, self.fused, {"kgen": 5, "gemm": 2}, 4096, 2000, 1.5, 1.2, ("odd",))


class Checker:
    """Stands for ``check_built_engine``: it wants a whole refittable engine, and finds ``result``,
    or the error given."""

    def __init__(self, result: RefitResult = RESULT, error: EngineError | None = None) -> None:
        self.result, self.error = result, error

    def __call__(self, bundle: Bundle, key: EngineKey, path: Path) -> RefitResult:
        if not key.refittable:
            raise ContractError(f"{key.component} was not built to be refitted")
        content = path.read_bytes()
        header = read_header(memoryview(content))
        if header is None or header.length != len(content):
            raise ContractError(f"{path} is no whole engine")
        if self.error is not None:
            raise self.error
        return self.result


def _check_job(job: BuildJob) -> None:
    output = Path(job.output)
    if output.exists() or not output.parent.is_dir():
        raise ContractError(f"{output} exists, or its folder does not")
    graph = onnx.load(job.onnx, load_external_data=False).graph
    inputs = {i.name: i.type.tensor_type.shape.dim for i in graph.input}
    dynamic = {name for name, dims in inputs.items() if any(dim.dim_param for dim in dims)}
    for shapes in job.profiles:
        if set(shapes) != dynamic:
            raise ContractError(f"a profile has {sorted(shapes)}, the network {sorted(dynamic)}")
        for name, three in shapes.items():
            for dim, least, best, most in zip(inputs[name], *three, strict=True):
                if not 1 <= least <= best <= most:
                    raise ContractError(f"{name}: {least}, {best}, {most} is no range")
                if not dim.dim_param and not least == most == dim.dim_value:
                    raise ContractError(f"{name}: {most} for a size of {dim.dim_value}")
    unknown = {*job.refittable} - {weight.name for weight in graph.initializer}
    unknown |= job.flags.keys() - {"TF32", "REQUIRE_USER_ALLOCATION"}
    if unknown:
        raise ContractError(f"the network or TensorRT does not know {sorted(unknown)}")
    targets = job.compute_capabilities
    known = set(BITS) if job.module == "tensorrt_rtx" else set(targets)
    if not set(targets) <= known or list(targets) != sorted(set(targets)):
        raise ContractError(f"TensorRT does not build for {targets}")


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
