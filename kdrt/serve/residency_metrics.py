"""What Prometheus is told of models that come and go."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LOAD_SECONDS = (0.3, 1, 3, 10, 30, 60, 120, 300, 600)


class ResidencyMetrics:
    """Loads, unloads and replacements, by the name of the model.

    Args:
        registry: of the service.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ["model"]
        self._loads = Counter(
            "kdrt_model_loads",
            "Times that a model was loaded, or could not be.",
            ["model", "outcome"],
            registry=registry,
        )
        self._unloads = Counter(
            "kdrt_model_unloads", "Times that a model was unloaded.", model, registry=registry
        )
        self._seconds = Histogram(
            "kdrt_model_load_seconds",
            "Time of loading and warming up a model.",
            model,
            buckets=_LOAD_SECONDS,
            registry=registry,
        )
        self._bytes = Gauge(
            "kdrt_model_bytes",
            "Memory that a model took when it was loaded, or its estimate where that is more.",
            model,
            registry=registry,
        )
        self._loaded = Gauge("kdrt_models_loaded", "Models that are loaded.", registry=registry)
        self._reloads = Counter(
            "kdrt_model_reloads",
            "Times that a bundle was seen to have changed, and the new one taken or not.",
            ["model", "outcome"],
            registry=registry,
        )

    def loaded(self, model: str, seconds: float) -> None:
        """It took so long."""
        self._loads.labels(model, "loaded").inc()
        self._seconds.labels(model).observe(seconds)

    def failed(self, model: str) -> None:
        """It could not be loaded."""
        self._loads.labels(model, "failed").inc()

    def unloaded(self, model: str) -> None:
        """Its memory is free."""
        self._unloads.labels(model).inc()

    def reloaded(self, model: str, outcome: Literal["replaced", "failed"]) -> None:
        """Its bundle has changed, and the new one serves, or cannot."""
        self._reloads.labels(model, outcome).inc()

    def holds(self, models: int, model: str, size: int) -> None:
        """So many models are loaded, and this one takes so many bytes."""
        self._loaded.set(models)
        self._bytes.labels(model).set(size)
