"""What Prometheus is told, in a registry of its own: several services may run in one process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kdrt.batching.observer import Stage
from kdrt.serve.residency_metrics import ResidencyMetrics

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
_STAGE_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_REQUEST_SECONDS = (0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics of a service."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ["model"]
        self._waiting = Gauge(
            "kdrt_images_waiting", "Images that have not begun.", model, registry=registry
        )
        self._running = Gauge(
            "kdrt_images_running", "Images that are being made.", model, registry=registry
        )
        self._images = Counter("kdrt_images", "Images that were made.", model, registry=registry)
        self._admitted = Histogram(
            "kdrt_tick_images",
            "Images that shared an evaluation of the UNet.",
            model,
            buckets=_ROWS,
            registry=registry,
        )
        self._rows = Histogram(
            "kdrt_tick_rows",
            "Rows of an evaluation of the UNet: two for an image with guidance.",
            model,
            buckets=_ROWS,
            registry=registry,
        )
        self._stages = Histogram(
            "kdrt_stage_seconds",
            "Time of a stage: encode and decode of a request, tick of all images that run.",
            ["model", "stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "kdrt_queue_seconds",
            "From the arrival of a request to the beginning of its first image.",
            model,
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._requests = Histogram(
            "kdrt_request_seconds",
            "From the arrival of a request that succeeded to its last image.",
            model,
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "kdrt_errors", "Requests that were refused or failed.", ["kind"], registry=registry
        )
        self.residency = ResidencyMetrics(registry)
        ProcessCollector(registry=registry)
        if torch.cuda.is_available():
            Gauge(
                "kdrt_cuda_reserved_bytes",
                "Memory of the GPU that PyTorch holds; engines of TensorRT come on top.",
                registry=registry,
            ).set_function(torch.cuda.memory_reserved)

    def failed(self, kind: str) -> None:
        """A request was refused or has failed; see `kdrt.serve.errors.Fault.kind`."""
        self._errors.labels(kind).inc()

    def model(
        self, name: str, waiting: Callable[[], float], running: Callable[[], float]
    ) -> ModelMetrics:
        """Those of one model.

        Args:
            name: of the model.
            waiting, running: count its images.
        """
        self._waiting.labels(name).set_function(waiting)
        self._running.labels(name).set_function(running)
        return ModelMetrics(
            self._images.labels(name),
            self._admitted.labels(name),
            self._rows.labels(name),
            self._queue.labels(name),
            self._requests.labels(name),
            self._stages.labels(name, "tick"),
            {
                "encode": self._stages.labels(name, "encode"),
                "decode": self._stages.labels(name, "decode"),
            },
        )

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class ModelMetrics:
    """Those of one model; see :meth:`Metrics.model`."""

    def __init__(
        self,
        images: Counter,
        admitted: Histogram,
        rows: Histogram,
        queue: Histogram,
        requests: Histogram,
        ticks: Histogram,
        stages: dict[Stage, Histogram],
    ) -> None:
        self._images = images
        self._admitted = admitted
        self._rows = rows
        self._queue = queue
        self._requests = requests
        self._ticks = ticks
        self._stages = stages

    def ticked(self, images: int, rows: int, seconds: float) -> None:
        """See `kdrt.batching.observer.Observer`."""
        self._admitted.observe(images)
        self._rows.observe(rows)
        self._ticks.observe(seconds)

    def took(self, stage: Stage, seconds: float) -> None:
        """See `kdrt.batching.observer.Observer`."""
        self._stages[stage].observe(seconds)

    def begun(self, seconds: float) -> None:
        """The first image of a request was admitted, so long after its arrival."""
        self._queue.observe(seconds)

    def made(self, images: int, seconds: float) -> None:
        """A request was made, so long after its arrival."""
        self._images.inc(images)
        self._requests.observe(seconds)
