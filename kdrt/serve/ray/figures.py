"""Metrics of the front. What only replicas count is left out: zeros would say that they idle."""

from __future__ import annotations

from prometheus_client import generate_latest

from kdrt.serve.metrics import Metrics
from kdrt.serve.workers.figures import OF_EACH_PROCESS, OF_THE_FRONT, Collected

_KNOWN = OF_THE_FRONT | {"kdrt_model_reloads"}
"""The front watches the files of bundles itself, and no replica tells it what that one saw."""


class FrontMetrics(Metrics):
    """Those of a front whose replicas tell it nothing of what they do."""

    def text(self) -> bytes:
        """See `Metrics`."""
        return generate_latest(
            Collected(
                [
                    family
                    for family in self.registry.collect()
                    if family.name in _KNOWN or family.name.startswith(OF_EACH_PROCESS)
                ]
            )
        )
