"""OpenVINO at its best settings: converted from PyTorch, so that attention stays one operation;
static shapes; one stream and the latency hint; inputs and outputs at fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kdrt_bench.inputs import read_by_peers
from kdrt_bench.networks_kept import openvino_model
from kdrt_bench.peers.base import Peer
from kdrt_engines import Binding, Engine
from kdrt_engines.openvino.quiet import ov
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import allocate


class OpenVino(Peer):
    """Options: ``precision``, OpenVINO's INFERENCE_PRECISION_HINT; without it OpenVINO chooses,
    which on processors with AMX or AVX512-BF16 is bfloat16."""

    packages = ("openvino", "torch", "diffusers", "transformers")
    _used: str = "not run yet"

    def prepare(self, components: Sequence[str]) -> None:
        for component in components:
            openvino_model(self, component)

    def engine(self, component: str) -> Engine:
        return OpenVinoEngine(self, component)

    def configuration(self) -> dict[str, str]:
        """What a model is compiled with."""
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
        }
        if "precision" in self.options:
            hints["INFERENCE_PRECISION_HINT"] = self.options["precision"]
        return hints

    def settings(self) -> dict[str, str]:
        return {
            **self.configuration(),
            "precision in use": self._used,
            "shapes": "static",
            "converted from": "PyTorch",
            "inputs and outputs": "shared memory, bound once",
        }


class OpenVinoEngine(Engine):
    """A model, compiled anew for each set of sizes."""

    def __init__(self, peer: OpenVino, component: str) -> None:
        self.spec: EngineSpec = peer.spec(component)
        self.device = torch.device("cpu")
        self.read = read_by_peers(self.spec)
        self._peer = peer
        self._path = openvino_model(peer, component)
        self._core = ov.Core()

    def bind(self, **dims: int) -> OpenVinoBinding:
        model = self._core.read_model(str(self._path))
        shapes = [list(self.spec.input(name).resolve(dims)) for name in self.read]
        model.reshape(dict(enumerate(map(ov.PartialShape, shapes))))
        compiled = self._core.compile_model(model, "CPU", self._peer.configuration())
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        self._peer._used = precision.get_type_name()
        return OpenVinoBinding(self, compiled, dims)


class OpenVinoBinding(Binding):
    def __init__(self, engine: OpenVinoEngine, compiled: Any, dims: dict[str, int]) -> None:
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._request = compiled.create_infer_request()
        for index, name in enumerate(engine.read):
            array = self.inputs[name].numpy()
            self._request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        for index, tensor in enumerate(self.outputs.values()):
            self._request.set_output_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))

    def run(self) -> None:
        self._request.infer()
