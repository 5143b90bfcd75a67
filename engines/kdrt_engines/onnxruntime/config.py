"""How ONNX Runtime runs a network: one set of options for every session of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdrt_engines.processors import cores
from kdrt_engines.spec import EngineSpec

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Providers = list[tuple[str, dict[str, str]]]
"""Execution providers with their options, as ONNX Runtime takes them: the first that can compute
an operator does."""


@dataclass(frozen=True)
class OrtConfig:
    """Options of an :class:`~kdrt_engines.onnxruntime.engine.OrtEngine`.

    Attributes:
        provider: ``CPU``, ``CUDA`` or ``TENSORRT``.
        device: where it runs.
        threads: CPU threads; one a core by default.
        lean: spare memory, at the cost of time: weights stay as they are in the file, where they
            would be rearranged for the kernels and, in float16 on a CPU, kept a second time in
            float32; and what a run takes is given back to the system at once.
        estimate_memory: lay out in advance where results will be. Faster for small networks, but
            that memory is kept besides what the first run took.
        stream: CUDA only: where every run is enqueued. A session is tied to one for life.
        cuda_graphs: CUDA only: have ONNX Runtime capture the runs of each binding.
        engine_cache: where the TensorRT provider keeps the engines it builds.
        usual_batch: the batch that most bindings will have; its session is made with the engine.
    """

    provider: str = CPU
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = field(default_factory=cores)
    lean: bool = False
    estimate_memory: bool = True
    stream: torch.cuda.Stream | None = None
    cuda_graphs: bool = False
    engine_cache: Path | None = None
    usual_batch: int = 1

    @property
    def on_cpu(self) -> bool:
        return self.provider == CPU

    def providers(self, spec: EngineSpec) -> Providers:
        """The provider with its options for a network. Behind TensorRT stands CUDA, for what
        TensorRT cannot compute."""
        if self.on_cpu:
            return [(CPU, {})]
        if self.provider == CUDA:
            return [(CUDA, self._cuda(captures=self.cuda_graphs))]
        # Both cannot capture: the inner provider's work would be captured twice.
        return [(self.provider, self._tensorrt(spec)), (CUDA, self._cuda(captures=False))]

    def _common(self) -> dict[str, str]:
        options = {"device_id": str(self.device.index or 0)}
        if self.stream is not None:
            options["user_compute_stream"] = str(self.stream.cuda_stream)
        return options

    def _cuda(self, *, captures: bool) -> dict[str, str]:
        return {**self._common(), "enable_cuda_graph": str(int(captures))}

    def _tensorrt(self, spec: EngineSpec) -> dict[str, str]:
        options = {**self._common(), "trt_cuda_graph_enable": str(self.cuda_graphs)}
        dtypes = {tensor.dtype for tensor in spec.inputs}
        # The graph states its precision, but this provider may not use it unless told to.
        for dtype, option in (("float16", "trt_fp16_enable"), ("bfloat16", "trt_bf16_enable")):
            if dtype in dtypes:
                options[option] = "True"
        if self.engine_cache is not None:
            options["trt_engine_cache_enable"] = "True"
            options["trt_engine_cache_path"] = str(self.engine_cache)
        return options
