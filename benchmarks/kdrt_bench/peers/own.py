"""kdrt itself, as installed or with one of its techniques left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrt.backends.choice import chosen_engine
from kdrt.backends.fallback import FallbackWarning
from kdrt.backends.loading import load_engines
from kdrt.backends.offload import Offloader
from kdrt.bundle import Bundle
from kdrt.errors import EngineRejectedError, EngineUnavailableError
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import BenchJob
from kdrt_bench.networks_kept import plain_onnx, unfused_bundle
from kdrt_bench.peers.base import Peer
from kdrt_bench.peers.onnxruntime_plain import ArraysEngine
from kdrt_engines import Engine
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtBinding, OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph


class Kdrt(Peer):
    """Options:

    engine      one of `kdrt_engines.registry.ENGINES`; without it, the one kdrt chooses
    cuda_graph  off, step or loop
    low_vram    on: shipped networks are loaded in turn
    network     shipped: whatever `kdrt.load` loads. On ONNX Runtime, batches undivided: plain,
                diffusers' own graph; unfused, fused: the standard graph of a bundle, with
                projections fused or not; dialect: that in ONNX Runtime's operators; cpu: the
                same with its sums in the order of a CPU; reduced: that without FreeU while it is
                off; invariants: that with what follows from the prompt computed once
    io          bound: fixed addresses; arrays: copied into and out of every call
    """

    _engines: Mapping[str, Engine] | None = None
    _offloader: Offloader | None = None
    packages = (
        "kdrt",
        "torch",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
    )

    def __init__(self, job: BenchJob, bundle: Bundle, options: Mapping[str, str]) -> None:
        super().__init__(job, bundle, options)
        if "engine" in options:
            # A fallback would be measured as this engine.
            warnings.simplefilter("error", FallbackWarning)
        if options.get("low_vram") == "on":
            self._offloader = Offloader()

    def prepare(self, components: Sequence[str]) -> None:
        network = self._option("network", "shipped")
        if network == "unfused":
            unfused_bundle(self.model, self.bundle)
        elif network == "plain":
            for component in components:
                plain_onnx(self, component)

    def engine(self, component: str) -> Engine:
        network = self._option("network", "shipped")
        if network == "shipped":
            return self._shipped(component)
        spec, graphs = self.spec(component), self.bundle.manifest.components[component].onnxruntime
        if network in ("dialect", "cpu", "reduced", "invariants") and graphs is not None:
            reduced, invariants = None, None
            if network in ("reduced", "invariants") and graphs.plain is not None:
                reduced = ReducedGraph(
                    OrtGraph(self.bundle.file(graphs.plain)), graphs.neutral, graphs.multiples
                )
            path = self.bundle.file(graphs.fused if network == "dialect" else graphs.whole_on_cpu)
            if network != "dialect" and graphs.invariants is not None:
                invariants = OrtGraph(self.bundle.file(graphs.invariants))
            kind = _Undivided if network == "invariants" else _Recomputing
            return kind(OrtNetwork(OrtGraph(path), reduced, invariants), spec, self._config())
        path = self._file(network, component)
        if self._option("io", "bound") == "arrays":
            return ArraysEngine(path, spec, self.threads)
        return _Undivided(path, spec, self._config())

    def pipeline_options(self) -> dict[str, Any]:
        level = self.options.get("cuda_graph")
        found: dict[str, Any] = {} if level is None else {"cuda_graph": level}
        return found if self._offloader is None else found | {"offloader": self._offloader}

    def settings(self) -> dict[str, str]:
        engine = chosen_engine(self.options.get("engine"), self.bundle)
        return {"engine": engine, "threads": str(self.threads), **self.options}

    def _shipped(self, component: str) -> Engine:
        """As `kdrt.load` loads it, and nothing besides."""
        if self._engines is None:
            engine = self.options.get("engine")
            try:
                self._engines = load_engines(
                    self.bundle,
                    engine,
                    threads=self.threads,
                    offloader=self._offloader,
                    own_cuda_graphs=self.options.get("cuda_graph") not in ("off", None),
                )
            except (EngineUnavailableError, EngineRejectedError) as error:
                damaged = isinstance(error, EngineRejectedError) and error.reason != "missing"
                if engine is None or damaged:
                    raise
                raise PeerUnavailableError(str(error)) from error
        return self._engines[component]

    def _config(self) -> OrtConfig:
        return OrtConfig(threads=self.threads)

    def _option(self, name: str, otherwise: str) -> str:
        return self.options.get(name, otherwise)

    def _file(self, network: str, component: str) -> Path:
        if network == "plain":
            return plain_onnx(self, component)
        bundle = unfused_bundle(self.model, self.bundle) if network == "unfused" else self.bundle
        return bundle.file(bundle.manifest.components[component].onnx)


class _Undivided(OrtEngine):
    """All threads on each operator, whatever the batch."""

    def parts(self, batch: int) -> int:
        return 1


class _Recomputing(_Undivided):
    """It also computes what follows from the prompt at every run."""

    def bind(self, **dims: int) -> OrtBinding:
        return _RecomputingBinding(self, dims)


class _RecomputingBinding(OrtBinding):
    def run(self) -> None:
        self.invalidate()
        super().run()
