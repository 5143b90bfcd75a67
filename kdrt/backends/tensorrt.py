"""Loading a bundle's built TensorRT engines."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING

from kdrt.backends.engine_files import open_engine, profile_of
from kdrt.backends.refit_setting import refit_gate
from kdrt.bundle import Bundle
from kdrt.errors import EngineUnavailableError
from kdrt_engines.tensorrt import gpu
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.flavour import Flavour
from kdrt_engines.tensorrt.scratch import ScratchMemory

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.refit_check import RefitGate


class TensorRTLoader:
    """See :class:`kdrt.backends.loader.Loader`. All engines share one block of scratch memory.

    Args:
        bundle: an opened bundle.
        flavour: of TensorRT.

    Raises:
        EngineUnavailableError: the flavour is not installed, or there is no GPU.
    """

    def __init__(self, bundle: Bundle, flavour: Flavour) -> None:
        self._bundle, self._flavour = bundle, flavour
        try:
            self._trt = importlib.import_module(flavour.module)
        except ImportError as error:
            raise EngineUnavailableError(
                f"{flavour.title} is not installed; pip install 'kdrt[{flavour.name}]', or choose "
                "another engine"
            ) from error
        found = gpu.find_gpu()
        if found is None:
            raise EngineUnavailableError(
                f"{flavour.title} runs on NVIDIA GPUs, and CUDA sees none here; choose another "
                "engine (`kdrt build` works without a GPU for tensorrt-rtx)"
            )
        self._gpu, self.device = found, found.device
        self._scratch = ScratchMemory(found.device)
        self._gates: dict[str, RefitGate] = {}

    def load(self, component: str) -> TensorRTEngine:
        opened = open_engine(self._bundle, self._flavour, component, self._gpu.capability)
        refittable = opened.record.key.refittable
        network = self._bundle.file(self._bundle.manifest.components[component].onnx)
        if refittable and component not in self._gates:
            # Kept beside the engine, which may be loaded anew for every image.
            self._gates[component] = refit_gate(network)
        return TensorRTEngine(
            self._trt,
            opened.content,
            opened.spec,
            profiles=opened.profiles,
            scratch=self._scratch,
            gpu=self._gpu,
            runtime_cache=opened.runtime_cache,
            choose=partial(profile_of, self._bundle, opened.record),
            network=network if refittable else None,
            after_refit=self._gates.get(component) if refittable else None,
        )
