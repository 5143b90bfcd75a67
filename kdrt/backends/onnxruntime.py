"""Loading a bundle's networks with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdrt.backends.network_hash import network_hash
from kdrt.backends.ort_cache import MEMORY_TO_OPTIMIZE, optimized
from kdrt.bundle import Bundle, Component, OrtGraphs
from kdrt.common.home import home
from kdrt.common.memory import whole_memory
from kdrt.errors import EngineUnavailableError
from kdrt_engines.onnxruntime.config import CPU, CUDA, TENSORRT, OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph
from kdrt_engines.processors import cores

PROVIDERS = {"onnxruntime": CPU, "onnxruntime-cuda": CUDA, "onnxruntime-tensorrt": TENSORRT}
"""The execution provider of each engine."""

_FLOAT = 4


@dataclass(frozen=True)
class _Policy:
    """How a component is run.

    Attributes:
        usual_batch: rows of most runs.
        estimate_memory: lay out its results in advance.
        cuda_graphs: capture its runs, if ONNX Runtime is to capture at all.
    """

    usual_batch: int = 1
    estimate_memory: bool = True
    cuda_graphs: bool = False


# The results of the VAE are the largest of a generation, and it runs once an image.
_VAE = _Policy(estimate_memory=False)

_POLICIES = {
    # Most images are made with guidance. What runs once an image is not worth a CUDA graph.
    "unet": _Policy(usual_batch=2, cuda_graphs=True),
    "vae_decoder": _VAE,
    "vae_encoder": _VAE,
}
"""By component; the others have the defaults."""


class OrtLoader:
    """See :class:`kdrt.backends.loader.Loader`.

    Args:
        bundle: an opened bundle.
        engine: a key of ``PROVIDERS``.
        threads: CPU threads; None is one a core.
        own_cuda_graphs: have ONNX Runtime capture the components that are worth it.
        low_vram: on a CPU compute with weights as they lie in the bundle, if this machine could not
            hold them as the kernels want them.

    Raises:
        EngineUnavailableError: the engine runs on CUDA, which has no GPU here.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        threads: int | None,
        own_cuda_graphs: bool,
        low_vram: bool = False,
    ) -> None:
        self._on_cuda = engine != "onnxruntime"
        if self._on_cuda and not torch.cuda.is_available():
            raise EngineUnavailableError(
                f"{engine} runs on NVIDIA GPUs, and CUDA sees none here; choose another engine"
            )
        self.device = torch.device("cuda" if self._on_cuda else "cpu")
        self._bundle, self._engine = bundle, engine
        self._threads = threads or cores()
        self._own_cuda_graphs = own_cuda_graphs and self._on_cuda
        self._low_vram = low_vram
        # Components hand tensors to each other, so all run on one stream.
        self._stream = torch.cuda.Stream() if self._on_cuda else None  # type: ignore[no-untyped-call]

    def load(self, component: str) -> OrtEngine:
        described = self._bundle.manifest.components[component]
        self._check_precision(described)
        network = self._network(component, described)
        return OrtEngine(
            network,
            described.spec(),
            replace(self._config(component), lean=self._is_lean(network, component)),
            check=self._bundle.check_unchanged,
        )

    def _is_lean(self, network: OrtNetwork, component: str) -> bool:
        """Whether a component computes with the file's weights, which is slower. That goes by the
        machine, not by what is free now: the same command makes the same image. Weights that were
        optimised before are in a file too."""
        if self._on_cuda or not self._low_vram or network.usual.optimized is not None:
            return False
        parameters = self._bundle.manifest.components[component].parameters
        return MEMORY_TO_OPTIMIZE * _FLOAT * parameters > whole_memory()

    def _check_precision(self, component: Component) -> None:
        if not self._on_cuda and any(t.dtype == "bfloat16" for t in component.inputs):
            raise EngineUnavailableError(
                f"ONNX Runtime has no bfloat16 on a CPU, and the bundle "
                f"'{self._bundle.manifest.name}' is bf16; export it with --precision fp32, or "
                "with --target torch and use that engine"
            )

    def _config(self, component: str) -> OrtConfig:
        policy = _POLICIES.get(component, _Policy())
        return OrtConfig(
            PROVIDERS[self._engine],
            self.device,
            self._threads,
            estimate_memory=policy.estimate_memory,
            stream=self._stream,
            cuda_graphs=self._own_cuda_graphs and policy.cuda_graphs,
            engine_cache=self._engine_cache(component),
            usual_batch=policy.usual_batch,
        )

    def _network(self, component: str, described: Component) -> OrtNetwork:
        graphs = described.onnxruntime
        # TensorRT, also inside ONNX Runtime, knows the standard operators only.
        if graphs is None or self._engine == "onnxruntime-tensorrt":
            return OrtNetwork(OrtGraph(self._bundle.file(described.onnx)))
        if self._on_cuda:
            return OrtNetwork(OrtGraph(self._bundle.file(graphs.fused)))
        return self._cpu_network(component, graphs)

    def _cpu_network(self, component: str, graphs: OrtGraphs) -> OrtNetwork:
        """The graphs for a CPU; of those that were optimised for this one, with the result."""
        bundle, kept = self._bundle, optimized(self._bundle, component)
        network, invariants = (kept.network, kept.invariants) if kept else (None, None)
        whole = bundle.file(graphs.whole_on_cpu)
        return OrtNetwork(
            whole=OrtGraph(whole, network if graphs.plain is None else None),
            reduced=None
            if graphs.plain is None
            else ReducedGraph(
                OrtGraph(bundle.file(graphs.plain), network), graphs.neutral, graphs.multiples
            ),
            invariants=None
            if graphs.invariants is None
            else OrtGraph(bundle.file(graphs.invariants), invariants),
        )

    def _engine_cache(self, component: str) -> Path | None:
        """Where the TensorRT provider keeps its engines: in the user's home, since they are code.
        None if that cannot be written: then they are built every time."""
        if self._engine != "onnxruntime-tensorrt":
            return None
        folder = home() / "kernels" / network_hash(self._bundle.manifest, component)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return folder
