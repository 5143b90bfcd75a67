"""Bundles that are exported again, or get engines, while they are served: seen by their files, and
loaded anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from kdrt.serve.errors import ShuttingDownError
from kdrt.serve.fingerprint import Fingerprint
from kdrt.serve.model import ServedModel
from kdrt.serve.residency_metrics import ResidencyMetrics
from kdrt.serve.residents import Residents

_logger = logging.getLogger(__name__)


class BundleWatcher:
    """Looks at the files of all bundles again and again, and replaces what has changed. What cannot
    be loaded is told in the log, and tried again when its files have changed once more.

    Args:
        models: that are served.
        residents: has their versions.
        metrics: are told of replacements.
    """

    def __init__(
        self, models: Iterable[ServedModel], residents: Residents, metrics: ResidencyMetrics
    ) -> None:
        self._models = list(models)
        self._residents = residents
        self._metrics = metrics
        self._seen: dict[str, Fingerprint | None] = {}
        """What was there at the last look."""
        self._failed: dict[str, Fingerprint] = {}
        """What could not be loaded."""
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Look every so many seconds, in a thread, until `close`."""

        def watch() -> None:
            while not self._ending.wait(seconds):
                self.look()

        self._thread = threading.Thread(target=watch, name="kdrt-reload", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look once. What has changed is replaced when two looks found the same: somebody may be
        copying files. Waits until it is loaded."""
        for model in self._models:
            if self._ending.is_set():
                return
            try:
                self._look_at(model)
            except Exception:
                _logger.exception("looking at the files of %s failed", model.name)

    def close(self) -> None:
        """Look no more. Close the residents before, for which a look may wait."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _look_at(self, model: ServedModel) -> None:
        there = Fingerprint.of(model.bundle.path)
        is_settled = there == self._seen.get(model.name)
        self._seen[model.name] = there
        if there is None or not is_settled:
            return
        if there in (model.version.fingerprint, self._failed.get(model.name)):
            return
        _logger.info("the bundle of %s has changed", model.name)
        try:
            self._residents.replace(model, model.reopen())
        except ShuttingDownError:
            return
        except Exception as error:  # whatever it is, the same files will have it again
            self._failed[model.name] = there
            self._metrics.reloaded(model.name, "failed")
            _logger.warning(
                "the new bundle of %s is not used: %s", model.name, error.__cause__ or error
            )
            return
        self._failed.pop(model.name, None)
        self._metrics.reloaded(model.name, "replaced")
        _logger.info("new requests for %s get the new bundle", model.name)
