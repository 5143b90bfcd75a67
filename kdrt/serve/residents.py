"""Models in memory: loaded when they are asked for, and unloaded when others need their place.

`kdrt.serve.residency` decides; here it is done. After the start one thread loads and unloads, one
model at a time, while the batchers of the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from kdrt.common.units import size
from kdrt.errors import PipelineClosedError
from kdrt.serve.errors import SHUTTING_DOWN, DeadlineError, LoadFailedError, ShuttingDownError
from kdrt.serve.footprint import Footprint, Meter, give_back, in_use
from kdrt.serve.model import ServedModel
from kdrt.serve.residency import Load, Residency, Ticket, Unload
from kdrt.serve.residency_metrics import ResidencyMetrics
from kdrt.serve.settings import ServiceSettings
from kdrt.serve.turn import Turn
from kdrt.serve.version import ModelVersion

_logger = logging.getLogger(__name__)


class Residents:
    """The models of a service, of which so many are loaded as the budget allows.

    Args:
        models: in the order in which they are loaded at the start.
        settings: of the service.
        metrics: are told of loads.
        meter: measures what a model takes.

    Raises:
        InvalidRequestError: a model is beyond the budget all alone.
        KdrtError: with a budget, see `Footprint`.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        settings: ServiceSettings,
        metrics: ResidencyMetrics,
        meter: Meter = in_use,
    ) -> None:
        self._models = list(models)
        self._settings = settings
        self._metrics = metrics
        self._meter = meter
        self._budget = settings.memory
        self._changed = threading.Condition()
        """Held by whoever touches what follows; notified when there may be something to do."""
        self._residency: Residency[ModelVersion] = Residency(self._budget)
        self._footprints: dict[ModelVersion, Footprint] = {}
        self._waiting: dict[Ticket[ModelVersion], Future[None]] = {}
        self._replacements: dict[ModelVersion, tuple[ServedModel, ModelVersion]] = {}
        """What is loaded beside an old version, by that."""
        self._is_closed = False
        self._thread: threading.Thread | None = None
        for model in self._models:
            self._add(model.version, self._footprint(model.version))

    def start(self) -> None:
        """Load the first model, and of the others, one after the other, those that fit, in this
        thread; from then on do so in another.

        Raises:
            ShuttingDownError: it was closed meanwhile.
            KdrtError: a model cannot be loaded, see `ModelVersion.load`.
        """
        for model in self._models:
            with self._changed:
                is_first = not self._residency.in_memory
                if not is_first and not self._residency.has_room_for(
                    self._residency.size(model.version)
                ):
                    continue
                ticket, _ = self._ask(model.version)
            try:
                while (step := self._next_step()) is not None:
                    if (error := self._do(step)) is not None:
                        raise error
            finally:
                self._leave(ticket)
        with self._changed:
            if not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="kdrt-models", daemon=True)
                self._thread.start()

    def is_loaded(self, model: ServedModel) -> bool:
        """Whether requests to a model need not wait until it is loaded."""
        with self._changed:
            return self._residency.is_loaded(model.version)

    async def turn(
        self,
        model: ServedModel,
        images: int,
        seconds: float,
        on_begin: Callable[[int], object] | None = None,
    ) -> Turn:
        """Take a place in the queue of a model, and wait until the model is loaded.

        Args:
            model: which one.
            images: how many will be asked for.
            seconds: that it may take.
            on_begin: told of so many of them that have begun, in another thread.

        Raises:
            QueueFullError: too many wait.
            DeadlineError: it took longer.
            LoadFailedError: it could not be loaded.
            ShuttingDownError: the service ends.
        """
        place = model.queue.enter(images, time.monotonic(), on_begin)
        try:
            ticket = await self._granted(model, seconds)
        except BaseException:
            model.queue.leave(place, time.monotonic(), made=False)
            raise
        return Turn(ticket.key, place, lambda: self._leave(ticket))

    @contextlib.contextmanager
    def shared(self, model: ServedModel) -> Iterator[ModelVersion]:
        """Within the block a model that is loaded stays so, for a look at an unfinished image. None
        is loaded for it, and none makes way.

        Raises:
            PipelineClosedError: it is not loaded.
        """
        with self._changed:
            ticket = self._residency.share(model.version)
        if ticket is None:
            raise PipelineClosedError(
                f"the model {model.name!r} is not loaded, so unfinished images cannot be looked at"
            )
        try:
            yield ticket.key
        finally:
            self._leave(ticket)

    def replace(self, model: ServedModel, new: ModelVersion) -> None:
        """Give a new version to the requests to come, and unload the old one when what it makes is
        finished. What is loaded is loaded anew first, beside the old one if there is room. Waits
        for that; if it fails, the old one stays.

        Raises:
            InvalidRequestError: the new version is beyond the budget all alone.
            LoadFailedError: it could not be loaded, of which the cause says more.
            ShuttingDownError: the service ends.
        """
        footprint = self._footprint(new)
        with self._changed:
            old = model.version
            self._add(new, footprint)
            residency = self._residency
            if old not in residency.in_memory:
                self._swap(model, new)
                return
            if not residency.has_room_for(residency.size(new)):
                _logger.info("%s has no room beside what it replaces: requests wait", model.name)
                self._swap(model, new)
            else:
                self._replacements[old] = (model, new)
            ticket, granted = self._ask(new)
        try:
            granted.result()
        except BaseException:
            with self._changed:
                if self._replacements.pop(old, None) is not None:
                    self._residency.discard(new)
                    self._settle()
            raise
        else:
            with self._changed:
                if self._replacements.pop(old, None) is not None:
                    self._swap(model, new)
        finally:
            self._leave(ticket)

    def refuse_waiting(self) -> None:
        """Fail all requests that wait for a model: the service ends."""
        with self._changed:
            for ticket in self._residency.pop_waiting():
                self._fail(ticket, ShuttingDownError(SHUTTING_DOWN))

    def close(self) -> None:
        """Cancel what is there, and free the models. Closing again does nothing, but for what was
        loaded meanwhile."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            versions = list(self._footprints)
        self.refuse_waiting()
        for version in versions:
            version.end()
        if self._thread is not None:
            self._thread.join()  # it ends after what it is about to load
            for version in versions:
                version.end()

    def _footprint(self, version: ModelVersion) -> Footprint:
        footprint = Footprint(version.bundle, self._settings, self._meter)
        footprint.check(self._budget)
        return footprint

    def _add(self, version: ModelVersion, footprint: Footprint) -> None:
        self._footprints[version] = footprint
        self._residency.add(version, footprint.size)

    async def _granted(self, model: ServedModel, seconds: float) -> Ticket[ModelVersion]:
        """The right to use a model, waited for; see `turn`."""
        with self._changed:
            ticket, granted = self._ask(model.version)
        try:
            if not granted.done():
                async with asyncio.timeout(seconds):
                    await asyncio.wrap_future(granted)
            granted.result()
        except BaseException as error:
            self._leave(ticket)
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"the model was not loaded within {seconds:g} s, and the request was cancelled"
                ) from None
            raise
        return ticket

    def _ask(self, version: ModelVersion) -> tuple[Ticket[ModelVersion], Future[None]]:
        granted: Future[None] = Future()
        if self._is_closed:
            raise ShuttingDownError(SHUTTING_DOWN)
        ticket = self._residency.ask(version)
        self._waiting[ticket] = granted
        self._settle()
        return ticket, granted

    def _leave(self, ticket: Ticket[ModelVersion]) -> None:
        with self._changed:
            self._waiting.pop(ticket, None)
            self._residency.leave(ticket)
            self._settle()

    def _settle(self) -> None:
        """After every change: tell those who got what they waited for, and the thread, and let go
        of what is gone."""
        for ticket in self._residency.pop_granted():
            granted = self._waiting.pop(ticket)
            if granted.set_running_or_notify_cancel():
                granted.set_result(None)
        for version in [v for v in self._footprints if not self._residency.is_known(v)]:
            del self._footprints[version]
        self._changed.notify_all()

    def _fail(self, ticket: Ticket[ModelVersion], error: BaseException) -> None:
        granted = self._waiting.pop(ticket)
        if granted.set_running_or_notify_cancel():
            granted.set_exception(error)

    def _swap(self, model: ServedModel, new: ModelVersion) -> None:
        old, model.version = model.version, new
        self._residency.replace(old, new)
        self._settle()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (step := self._next_step()) is None:
                    if self._is_closed:
                        return
                    self._changed.wait()
            try:
                self._do(step)
            except Exception as error:  # without this thread nothing is ever loaded again
                _logger.exception("%s was not loaded or unloaded in order", step.key.name)
                if isinstance(step, Load) and self._residency.is_known(step.key):
                    self._load_failed(step.key, error)

    def _next_step(self) -> Load[ModelVersion] | Unload[ModelVersion] | None:
        with self._changed:
            return None if self._is_closed else self._residency.step()

    def _do(self, step: Load[ModelVersion] | Unload[ModelVersion]) -> Exception | None:
        """Load or unload.

        Returns:
            What went wrong; those who waited for it know.
        """
        if isinstance(step, Unload):
            self._unload(step.key)
            return None
        return self._load(step.key)

    def _load(self, version: ModelVersion) -> Exception | None:
        started = time.perf_counter()
        footprint = self._footprints[version]
        try:
            if self._renew(version):
                return None
            footprint.begin()
            version.load()
            footprint.end()
        except Exception as error:
            give_back()
            try:
                if self._renew(version):  # it was exported again while it was loaded
                    return None
            except Exception as worse:
                _logger.warning("what is there now of %s is not used: %s", version.name, worse)
            self._load_failed(version, error)
            return error
        self._metrics.loaded(version.name, time.perf_counter() - started)
        with self._changed:
            self._residency.loaded(version, footprint.size)
            self._count(version)
            self._settle()
            used = self._residency.used
        _logger.info(
            "loaded %s: it takes %s, and all that is loaded %s",
            version.name,
            size(footprint.size),
            size(used),
        )
        if self._budget is not None and footprint.size > self._budget:
            _logger.warning(
                "%s takes more than the %s that all may have, so it is the only one that is loaded",
                version.name,
                size(self._budget),
            )
        return None

    def _renew(self, version: ModelVersion) -> bool:
        """Give those who wait the bundle that is there now, where it is another than this one, of
        which the files are gone.

        Returns:
            Whether it did; then that is to be loaded.

        Raises:
            KdrtError: the new one is damaged or beyond the budget.
        """
        model = next((each for each in self._models if each.version is version), None)
        if model is None or self._settings.reload is None or not version.has_changed():
            return False
        new = model.reopen()
        footprint = self._footprint(new)
        with self._changed:
            self._add(new, footprint)
            self._swap(model, new)
            self._residency.failed(version)  # for which nobody waits any more
            self._settle()
        _logger.info("%s is loaded from the bundle that is there now", model.name)
        return True

    def _load_failed(self, version: ModelVersion, error: Exception) -> None:
        if not self._is_closed:
            self._metrics.failed(version.name)
            _logger.error("%s cannot be loaded: %s", version.name, error)
        with self._changed:
            if version in self._replacements:  # which those who wait get in its place
                self._swap(*self._replacements.pop(version))
            for ticket in self._residency.failed(version):
                told = LoadFailedError(
                    f"the model {version.name!r} could not be loaded; the server's log says why"
                )
                told.__cause__ = error
                self._fail(ticket, told)
            self._settle()

    def _unload(self, version: ModelVersion) -> None:
        try:
            version.unload()
        except Exception:
            _logger.exception("%s could not be unloaded in order", version.name)
        give_back()
        self._metrics.unloaded(version.name)
        with self._changed:
            self._residency.unloaded(version)
            if version in self._replacements:  # no room was left for both
                self._swap(*self._replacements.pop(version))
            self._count(version)
            self._settle()
            used = self._residency.used
        _logger.info("unloaded %s: all that is loaded takes %s", version.name, size(used))

    def _count(self, changed: ModelVersion) -> None:
        there = self._residency.in_memory
        taken = sum(self._residency.size(each) for each in there if each.name == changed.name)
        self._metrics.holds(len(there), changed.name, taken)
