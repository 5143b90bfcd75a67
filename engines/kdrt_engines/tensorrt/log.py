"""The reasons TensorRT gives when something fails."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdrt_engines.errors import EngineError


class ErrorLog:
    """Keeps the last error: TensorRT logs the reasons that its calls do not return."""

    def __init__(self, trt: ModuleType) -> None:
        self.last = "it gave no reason"
        self._name = trt.__name__
        log = self

        class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log.last = message

        self.logger = Logger()

    def error(self, what: str) -> EngineError:
        """``what`` failed, with the reason TensorRT logged."""
        return EngineError(f"{self._name} could not {what}: {self.last}")
