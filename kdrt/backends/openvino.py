"""Loading a bundle's networks with OpenVINO."""

from __future__ import annotations

from functools import partial

import torch

from kdrt.backends.openvino_cache import OPENVINO
from kdrt.bundle import Bundle
from kdrt_engines.openvino.config import config_of
from kdrt_engines.openvino.engine import OpenVinoEngine, check_device


class OpenVinoLoader:
    """See :class:`kdrt.backends.loader.Loader`.

    Args:
        bundle: an opened bundle.
        engine: a name of OpenVINO's, with a precision or without.
        threads: CPU threads; None is one a core.

    Raises:
        EngineUnavailableError: OpenVINO does not have the device, or the device the precision.
    """

    def __init__(self, bundle: Bundle, engine: str, threads: int | None) -> None:
        self._bundle, self._engine = bundle, engine
        self._config = config_of(engine, threads)
        check_device(self._config)
        self.device = torch.device("cpu")

    def load(self, component: str) -> OpenVinoEngine:
        described = self._bundle.manifest.components[component]
        return OpenVinoEngine(
            self._bundle.file(described.onnx),
            described.spec(),
            self._config,
            kept=partial(OPENVINO.find, self._bundle, component, self._engine),
            check=self._bundle.check_unchanged,
        )
