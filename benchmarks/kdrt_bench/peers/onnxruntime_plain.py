"""ONNX Runtime as peers use it, Optimum among them: the network as torch.onnx.export makes it, the
session's defaults, arrays copied in and out of every call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
import torch

from kdrt_bench.networks_kept import plain_onnx
from kdrt_bench.peers.base import Peer
from kdrt_engines import Binding, Engine
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import allocate


class OnnxRuntimePlain(Peer):
    """No options."""

    packages = ("onnxruntime", "torch", "diffusers", "transformers")

    def prepare(self, components: Sequence[str]) -> None:
        for component in components:
            plain_onnx(self, component)

    def engine(self, component: str) -> Engine:
        return ArraysEngine(plain_onnx(self, component), self.spec(component), self.threads)

    def settings(self) -> dict[str, str]:
        return {
            "provider": "CPUExecutionProvider",
            "threads": str(self.threads),
            "graph": "torch.onnx.export(dynamo=False) of the untouched networks",
            "session": "defaults",
            "inputs and outputs": "NumPy arrays, copied in every call",
        }


class ArraysEngine(Engine):
    """A session that takes and gives arrays, as its documentation shows it."""

    def __init__(self, path: Path, spec: EngineSpec, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.spec, self.device = spec, torch.device("cpu")

    def bind(self, **dims: int) -> ArraysBinding:
        return ArraysBinding(self, dims)


class ArraysBinding(Binding):
    def __init__(self, engine: ArraysEngine, dims: dict[str, int]) -> None:
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._session = engine.session
        self._read = [node.name for node in engine.session.get_inputs()]

    def run(self) -> None:
        arrays = {name: self.inputs[name].numpy().copy() for name in self._read}
        results = self._session.run(list(self.outputs), arrays)
        for target, result in zip(self.outputs.values(), results, strict=True):
            target.copy_(torch.from_numpy(result))
